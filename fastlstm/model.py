"""Model: a file packed for one instruction set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastlstm import format, self_check, sequences, spec
from fastlstm._engine import as_count
from fastlstm.packed import PackedGraph
from fastlstm.paths import Path
from fastlstm.pool import Pool
from fastlstm.reduced import Reduced, Tensor, Tensors
from fastlstm.stored import arrays_of
from fastlstm.stream import Stream
from fastlstm.summary import Summary

__all__ = ["Model"]

Array = npt.NDArray[Any]


class Model(PackedGraph):
    """A recurrent network packed for one instruction set: shareable, picklable, never changed.

    Made by :func:`load`, :func:`convert`, :func:`from_torch` and :func:`quantize`. Only
    ``load(path, into=model)`` changes what one computes, for all that hold it at once.

    Calling it runs whole sequences; :meth:`stream` gives an object that is fed step by step.

    Attributes
    ----------
    graph : spec.Graph
        The model: its inputs, nodes and outputs.
    inputs, outputs : mapping of str to tuple of int
        The axes of a row of each.
    input_size, output_size : int
        Numbers of a row of the first input and output; for a model that takes tokens,
        ``input_size`` is the tokens it knows.
    takes_tokens : bool
        Whether the first input is integer tokens.
    tensors : dict of str to array or Reduced
        The weights, bit for bit as they were given; RuntimeError if they were not kept. Those in
        fewer bytes are Reduced, which NumPy takes as arrays of the numbers they stand for.
    dtype : numpy.dtype
        float32 or float64: what the model computes in.
    precision : dict of str to str
        Name of each layer that has matrices -> what they are stored in: "float32", "float64",
        "float16", "bfloat16" or "int8".
    measured : Measured or None
        What a model with matrices in fewer bytes lost, as it was measured when it was made.
    isa : str
        The instruction set that runs it.
    threads : int
        Threads a call may use, as asked for; never more than the processors the process may use.
    reproducible : bool
        Whether no bit of a result depends on how a sequence is cut into calls.
    nbytes : int
        Bytes of its packed weights, without tables that are read where the tensors lie.
    vocabulary : tuple of str or None
        The text of each token, if the model has one.
    source : dict of str to str
        Where the model came from.
    """

    def __init__(
        self,
        file: format.ModelFile,
        *,
        threads: int = 1,
        isa: str | None = None,
        reproducible: bool = False,
        keep: bool = True,
    ) -> None:
        tensors = {name: format.constant(array) for name, array in file.tensors.items()}
        super().__init__(
            file.graph,
            tensors,
            file.facts,
            threads=threads,
            isa=isa,
            reproducible=reproducible,
            constant=keep or file.mapped_from is not None,
        )
        self.vocabulary = file.vocabulary
        self.source = dict(file.source)
        self.measured = file.measured
        self.precision = self._precision(tensors)
        self._tensors: dict[str, Tensor] | None = tensors
        self._self_check = file.self_check
        self._asked_isa = isa
        self._mapped_from = file.mapped_from
        if not keep:
            _ = self.fingerprint, self.self_check  # they are made of the tensors, and then kept
            self._tensors = None

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        return {given.name: given.shape for given in self.graph.inputs}

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        return {name: self.facts.rows[value].shape for name, value in self.graph.outputs.items()}

    @property
    def input_size(self) -> int:
        port = self._network.moving[0]
        return int(port.tokens or port.count)

    @property
    def output_size(self) -> int:
        return int(self._network.outputs[0].count)

    @property
    def takes_tokens(self) -> bool:
        return bool(self._network.moving[0].tokens)

    @functools.cached_property
    def layers(self) -> tuple[spec.Layer, ...]:
        """The layers of the graph, in the order in which they run."""
        return tuple(node.layer for group in self.facts.groups for node in group.nodes)

    def _precision(self, tensors: Tensors) -> dict[str, str]:
        known = spec.stored(self.graph, self.facts.tensors)
        if self.dtype != np.float32:
            return {name: self.dtype.name for one in known for name in one.layers}
        reduced = {n: t.precision for n, t in tensors.items() if isinstance(t, Reduced)}
        return spec.check_precisions(known, reduced)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Copies of them; those in fewer bytes themselves, which nobody can change."""
        kept = self._kept().items()
        return {name: t if isinstance(t, Reduced) else t.copy() for name, t in kept}

    def _kept(self) -> dict[str, Tensor]:
        if self._tensors is None:
            raise RuntimeError(
                "the tensors of this model were not kept, so it cannot be saved, pickled or read "
                "out; load it without keep=False"
            )
        return self._tensors

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the graph and weights: the same for every copy of this model."""
        return format.fingerprint(self.graph, self._kept())

    @property
    def self_check(self) -> tuple[dict[str, Array], dict[str, Array]] | None:
        """A short input and the output that the float64 reference gives for it, by name.

        None for a model that reads more than 1024 steps before its first output, or that takes
        more than 2**31 multiply-adds until then: a load must not take long.
        """
        if self._self_check is None and self._tensors is not None:
            self._self_check = self_check.make(
                self.graph, self.facts, self._tensors, self.dtype, self._tolerance
            )
        return self._self_check

    @property
    def _tolerance(self) -> float:
        return self_check.tolerance(self.dtype, self.precision, self.measured)

    def check(self) -> float:
        """Run the self-check and return the largest error, relative to the largest output.

        0 for a model that has none.

        Raises
        ------
        FormatError
            If the engine does not give the recorded output: the file or this build is damaged.
        """
        if self.self_check is None:
            return 0.0
        inputs, truth = self.self_check
        made, _ = self(inputs)
        error = self_check.largest_error(
            truth, made if len(truth) > 1 else {next(iter(truth)): made}
        )
        limit = self._tolerance
        if not error <= limit:
            found = (
                f"by {error:.2g} of its size" if error == error else "in what is infinite or NaN"
            )
            raise format.FormatError(
                f"the self-check failed: the {self.isa} kernel differs from the recorded output "
                f"{found}; expected at most {limit:.1e}. The file is damaged, or this build is: "
                f"convert the checkpoint again, and compare with isa='scalar'"
            )
        return error

    def initial_state(self, batch_size: int | None = None) -> dict[str, Array]:
        """The state every sequence starts from: name -> (depth, B, size), or without B.

        Raises
        ------
        ValueError
            If it depends on inputs that are held for a sequence.
        """
        rows = 1 if batch_size is None else as_count("batch_size", batch_size)
        if self._network.held:
            names = ", ".join(repr(port.name) for port in self._network.held)
            raise ValueError(f"where a sequence starts depends on {names}, which it is given")
        return self.state_arrays(self.start_block(rows, []), batch_size is not None)

    @overload
    def __call__(
        self,
        x: Array,
        state: Mapping[str, Array] | None = None,
        *,
        lengths: Array | None = None,
        reset: Array | None = None,
        batch_first: bool = False,
    ) -> tuple[Array, dict[str, Array]]: ...

    @overload
    def __call__(
        self, x: Sequence[Array], state: Mapping[str, Array] | None = None
    ) -> tuple[list[Array], dict[str, Array]]: ...

    @overload
    def __call__(
        self,
        x: Mapping[str, Array],
        state: Mapping[str, Array] | None = None,
        *,
        lengths: Array | None = None,
        reset: Array | None = None,
        batch_first: bool = False,
    ) -> tuple[Any, dict[str, Array]]: ...

    def __call__(
        self,
        x: Array | Sequence[Array] | Mapping[str, Array],
        state: Mapping[str, Array] | None = None,
        *,
        lengths: Array | None = None,
        reset: Array | None = None,
        batch_first: bool = False,
    ) -> tuple[Any, dict[str, Array]]:
        """Run whole sequences.

        Parameters
        ----------
        x : array (T, I) or (T, B, I) of the model's dtype, or integer tokens (T,) or (T, B)
            The input; (B, T, I) or (B, T) with `batch_first`. Or a list or tuple of B such arrays
            (T_b, I) or (T_b,), of any lengths and in any order, which is then the batch. Of a model
            with several inputs, a mapping of their names to such arrays, with the axes of their
            rows; what is held for a sequence has no T.
        state : mapping of str to array (depth, B, size), optional
            Where to start from, as a call returned it; the model's own start, which is zero but
            for models that learned another, if not given. It is not changed.
        lengths : integer array (B,), optional
            Steps of each row of a batch, from 0 to T. What lies behind them in `x` is not looked
            at; `y` is zero there, and the state is that after the row's last step.
        reset : boolean array (T, B), optional
            Where a row starts anew, as a new sequence does, before it reads that step; (B, T) with
            `batch_first`, (T,) if `x` is unbatched. Only of a model that gives an output for every
            step and neither looks ahead nor pools over time.
        batch_first : bool, default False
            Whether the first axis of a batched `x` and `y` is the batch.

        Returns
        -------
        y : array (T', O) or (T', B, O), or (B, T', O) with `batch_first`
            T' is T, but for models that give more or fewer rows than they read. Of a model with
            several outputs, a mapping of their names to such arrays. What is pooled over time, or
            computed of held inputs alone, is (O,) or (B, O). Of a list, a list of arrays (T'_b, O)
            or (O,), each with memory of its own; zero where no row is there to pool.
        state : dict of str to array (depth, B, size)
            The state after the last step; without the B axis if `x` is unbatched.

        Raises
        ------
        TypeError
            If an array is of another dtype or byte order, or not an array; if a list is given with
            `lengths`, `reset` or `batch_first`.
        ValueError
            If a shape does not fit, a token or a length is out of range, a model that pools is
            given no step, or a row of this model cannot start anew within a sequence.
        BaseException
            Whatever a signal's handler raises during the call, as KeyboardInterrupt. There is then
            no result, and `state` is as it was.
        """
        given = sequences.arrange(self, x, lengths, reset, batch_first)
        block = given.start(self, state)
        y = given.run(self, block)
        return y, self.state_arrays(block, given.batch_size is not None)

    def summary(self) -> Summary:
        """The inputs, nodes and outputs, a line each, with their rows, rates and delays.

        Returns
        -------
        Summary
            As a string a table of text; in a notebook one of HTML.
        """
        return Summary(f"fastlstm.Model, {self._numbers}, {self.isa}", self.graph, self.facts)

    @property
    def _numbers(self) -> str:
        """What it computes in, and what matrices are stored in if that is something else."""
        kinds = sorted({*self.precision.values()} - {self.dtype.name})
        return f"{self.dtype}{' with ' * bool(kinds)}{', '.join(kinds)}"

    def stream(
        self, batch_size: int | None = None, *, held: Mapping[str, Array] | None = None
    ) -> Stream:
        """A new stream of this model, where each sequence starts.

        Parameters
        ----------
        batch_size : int, optional
            Rows that step together; without it the stream is unbatched.
        held : mapping of str to array (B, ...) or (...), optional
            Of every input that is held for a sequence, if the model has some.
        """
        return Stream(self, batch_size, held)

    def pool(
        self,
        capacity: int = 1024,
        growth: int = 0,
        *,
        max_batch: int = 256,
        max_wait: float = 0,
        max_pending: int = 4096,
        on_batch: Callable[[int], None] | None = None,
    ) -> Pool:
        """A pool for the many live streams of a server, each with a state of its own.

        Parameters and errors are those of :class:`fastlstm.Pool`.
        """
        return Pool(
            self,
            capacity,
            growth,
            max_batch=max_batch,
            max_wait=max_wait,
            max_pending=max_pending,
            on_batch=on_batch,
        )

    def save(self, path: Path) -> None:
        """Write the model to a file, whole or not at all; :func:`load` reads it."""
        format.write_model(path, self._file())

    def _file(self) -> format.ModelFile:
        return format.ModelFile(
            graph=self.graph,
            tensors=self._kept(),
            self_check=self.self_check,
            vocabulary=self.vocabulary,
            source=self.source,
            measured=self.measured,
        )

    def like(self, file: format.ModelFile, keep: bool = True) -> Model:
        """A model of another file that is run as this one is."""
        options: dict[str, Any] = {"threads": self.threads, "reproducible": self.reproducible}
        return Model(file, isa=self._asked_isa, keep=keep, **options)

    def _take(self, other: Model) -> None:
        """Be another model of the same graph, in all but how it is run."""
        self.take_weights(other)
        self.vocabulary, self.source = other.vocabulary, other.source
        self.precision, self.measured = other.precision, other.measured
        self._tensors, self._self_check = other._tensors, other._self_check
        self._mapped_from = other._mapped_from
        self.__dict__.pop("fingerprint", None)
        if self._tensors is None:
            self.__dict__["fingerprint"] = other.fingerprint

    def __reduce__(self) -> tuple[Any, ...]:
        asked = (self.threads, self._asked_isa, self.reproducible, self._tensors is not None)
        if self._mapped_from is not None and self._mapped_from.lasts():
            return _restore_mapped, (self._mapped_from, *asked)
        return _restore, (self._file(), *asked)

    def __repr__(self) -> str:
        nodes = self.graph.nodes
        layers = ", ".join(node.layer.describe() for node in nodes[:8])
        if len(nodes) > 8 or len(layers) > 400:
            layers = f"{len(nodes)} nodes: {layers[:80]}…"
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"<fastlstm.Model {layers}; {self._numbers}, {self.isa}{threads}>"


def _restore(
    file: format.ModelFile, threads: int, isa: str | None, reproducible: bool, keep: bool
) -> Model:
    # Nobody else's, so that no copy of them is needed.
    for array in arrays_of(file.tensors).values():
        array.flags.writeable = False
    return Model(file, threads=threads, isa=isa, reproducible=reproducible, keep=keep)


def _restore_mapped(
    identity: format.Identity, threads: int, isa: str | None, reproducible: bool, keep: bool
) -> Model:
    file = format.read_model(identity.path, mapped=True, check=False, expected=identity)
    return _restore(file, threads, isa, reproducible, keep)
