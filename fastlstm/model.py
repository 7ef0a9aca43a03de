"""Model: a file packed for one instruction set."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, overload

import numpy.typing as npt

from fastlstm import format, self_check, sequences, spec
from fastlstm._engine import as_count
from fastlstm.packed import PackedGraph
from fastlstm.paths import Path, at_path
from fastlstm.pool import Pool
from fastlstm.stream import Stream
from fastlstm.summary import Summary

__all__ = ["Model", "load"]

Array = npt.NDArray[Any]


class Model(PackedGraph):
    """A recurrent network packed for one instruction set: shareable, picklable, never changed.

    Made by :func:`load`, :func:`convert` and :func:`from_torch`. Only ``load(path, into=model)``
    changes what one computes, for all that hold it at once.

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
    tensors : dict of str to array
        The weights, bit for bit as they were given; RuntimeError if they were not kept.
    dtype : numpy.dtype
        float32 or float64: what the model computes in.
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
        self._tensors: dict[str, Array] | None = tensors
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

    @property
    def tensors(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._kept().items()}

    def _kept(self) -> dict[str, Array]:
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
            self._self_check = self_check.make(self.graph, self.facts, self._tensors, self.dtype)
        return self._self_check

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
        limit = self_check.TOLERANCE[self.dtype.name]
        if not error <= limit:
            found = (
                f"by {error:.2g} of its size" if error == error else "in what is infinite or NaN"
            )
            raise format.FormatError(
                f"the self-check failed: the {self.isa} kernel differs from the recorded output "
                f"{found}; expected at most {limit:.0e}. The file is damaged, or this build is: "
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
        return Summary(f"fastlstm.Model, {self.dtype}, {self.isa}", self.graph, self.facts)

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
        )

    def _take(self, other: Model) -> None:
        """Be another model of the same graph, in all but how it is run."""
        self.take_weights(other)
        self.vocabulary, self.source = other.vocabulary, other.source
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
        return f"<fastlstm.Model {layers}; {self.dtype}, {self.isa}{threads}>"


def _restore(
    file: format.ModelFile, threads: int, isa: str | None, reproducible: bool, keep: bool
) -> Model:
    for array in file.tensors.values():  # nobody else's, so that no copy of them is needed
        array.flags.writeable = False
    return Model(file, threads=threads, isa=isa, reproducible=reproducible, keep=keep)


def _restore_mapped(
    identity: format.Identity, threads: int, isa: str | None, reproducible: bool, keep: bool
) -> Model:
    file = format.read_model(identity.path, mapped=True, check=False, expected=identity)
    return _restore(file, threads, isa, reproducible, keep)


def load(
    path: Path | BinaryIO,
    *,
    threads: int = 1,
    isa: str | None = None,
    reproducible: bool = False,
    check: bool = True,
    mmap: bool = False,
    keep: bool = True,
    into: Model | None = None,
) -> Model:
    """Read a model file and pack it for this machine.

    Parameters
    ----------
    path : path or binary file
        A file that :func:`convert` or :meth:`Model.save` wrote.
    threads : int, default 1
        Threads a call may use, the caller's among them: no more than the processors that this
        process may use, and fewer, down to one, where the work is too small to be shared or a
        second call runs at the same time. The others start when a call first needs them, belong to
        the model, and wait for the next call spinning for 50 microseconds, then asleep. The numbers
        are the same bits with any number of threads, with the exceptions of `reproducible`.
    isa : str, optional
        Instruction set to force, one of ``fastlstm doctor``'s list; the environment variable
        ``FASTLSTM_ISA`` does the same. The best one by default.
    reproducible : bool, default False
        Whether results must be the same bits however a sequence is cut into calls. Only the scalar
        and the float64 kernels do otherwise: they leave the input projection of long sequences to
        BLAS, which is faster and sums in another order.
    check : bool, default True
        Whether to compare the file with the SHA-256 stored in it, which finds a changed bit and
        takes about half a second for each GB, and to run the stored self-check, which takes a few
        milliseconds. Without it a mapped file is not read beyond what is packed: for a file that
        is known to be whole.
    mmap : bool, default False
        Whether to map the file instead of reading it. Processes that map one file share in memory
        what the kernels read just as it lies there, an Embedding's table above all, and the tensors
        that are only kept to give them back, as biases are. Matrices are packed into memory of each
        process, mapped or not. Four processes of a model with an Embedding of 100,000 by 256 and
        6 MB of other weights had 106 MB each of their own, and mapped 8 MB each and 105 MB in
        common.

        Such a model pickles as a reference to the file, a few hundred bytes, as long as the file
        is the one that was loaded and nobody has written to it; later it pickles whole, as other
        models do. Unpickling a reference raises OSError if the file is gone by then, and
        FormatError if it has changed.

        Replacing or deleting the file is harmless, as :meth:`Model.save` replaces it, also while it
        is being loaded. The digest is checked when the file is loaded, not when a reference is
        unpickled, which stands for the very file that was loaded. Writing into
        it changes the model, and cutting it short kills every process that then reads what is gone
        (SIGBUS), as does a disk that fails; no program can turn that into an error, hence off by
        default. The file stays open as long as the model lives.
    keep : bool, default True
        Whether the model holds its tensors beside their packed form, which together take twice the
        bytes of the file; an Embedding's table is held once, and read where it lies. Without them
        the model computes the same, and ``tensors``, ``save`` and pickling raise RuntimeError, but
        for a reference to a mapped file.
    into : Model, optional
        A model of the same graph, which from now on computes with the weights of this file, and is
        returned: its streams and pools go on in their states, each from its next call on, and a
        call that runs meanwhile ends with the weights that it began with. What was computed of
        held inputs as a sequence began stays until it is reset. `threads`, `isa` and
        `reproducible` are the model's own. Nothing has changed whenever this raises. On an
        interpreter without the GIL no other thread may begin a call meanwhile.

    Raises
    ------
    FormatError
        If the file is not a sound model, is not the one that was written, or fails its
        self-check.
    OSError
        If it cannot be read or mapped.
    TypeError, ValueError
        If `threads` or `isa` cannot be had here, or are given with `into`; if `into` is of another
        graph or dtype.
    """
    if into is not None:
        if not isinstance(into, Model):
            raise TypeError(f"into is a {type(into).__qualname__}; expected a Model")
        if (threads, isa, reproducible) != (1, None, False):
            raise TypeError(
                "threads, isa and reproducible are those of the model that is given as into; "
                "expected none of them with it"
            )
        threads, isa, reproducible = into.threads, into.isa, into.reproducible
    if mmap and not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}; with mmap=True expected a path")
    with at_path(path) as name:
        file = format.read_model(name, mapped=mmap, check=check)
    if into is not None:
        try:
            into.check_weights(file.graph, file.tensors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    try:
        model = Model(file, threads=threads, isa=isa, reproducible=reproducible, keep=keep)
    except MemoryError as error:
        raise format.FormatError(f"{name}: the model does not fit in memory: {error}") from error
    if check and file.self_check is not None:  # to make one takes the reference, and longer
        model.check()
    if into is None:
        return model
    into._take(model)
    return into
