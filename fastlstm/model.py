"""Model: a file packed for one instruction set, and the ways to get one."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastlstm import _engine, format, pack, processors, sequences
from fastlstm import chain as spec
from fastlstm.pool import Pool
from fastlstm.stream import Stream, block_from_state, state_from_block

__all__ = ["Model", "convert", "from_torch", "load"]

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]

# A kernel whose vectors are mostly padding for this model (hidden sizes far below its lanes) is
# passed over if it would take more memory than this many times the weights, plus a floor.
MOST_PADDING = 1.5
FREE_PADDING_BYTES = 4 * 2**20

# A token model's check takes as many different tokens, so that it reads their rows of a table.
SELF_CHECK_STEPS = 8
SELF_CHECK_TOKENS = 32
SELF_CHECK_NUMBERS = 2**18  # at most in a layer's output, but for what one step needs
SELF_CHECK_SEED = 20261121

# Largest error of the engine, relative to the largest output. A check is as long as rounding, in
# every way it was tried, stays within a tenth of that: a chaotic model soon does not, with any
# kernel, and one way alone may be off by a tenth of what the next machine's is.
SELF_CHECK_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
SELF_CHECK_DRAWS = 2  # of weights with other last bits


class Model:
    """A recurrent network packed for one instruction set: immutable, shareable, picklable.

    Made by :func:`load`, :func:`convert` and :func:`from_torch`.

    Calling it runs whole sequences; :meth:`stream` gives an object that is fed step by step.

    Attributes
    ----------
    layers : tuple of spec.Layer
        The model, first layer first.
    input_size, output_size : int
        Features of a step; for a model that takes tokens, ``input_size`` is the tokens it knows.
    takes_tokens : bool
        Whether the input is integer tokens.
    dtype : numpy.dtype
        float32 or float64: what the model computes in.
    isa : str
        The instruction set that runs it.
    threads : int
        Threads a call may use, as asked for; never more than the processors the process may use.
    reproducible : bool
        Whether no bit of a result depends on how a sequence is cut into calls.
    nbytes : int
        Bytes of its packed weights.
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
    ) -> None:
        threads = _engine.as_count("threads", threads, 1)
        dtypes = {array.dtype for array in file.tensors.values()} or {np.dtype(np.float32)}
        (self.dtype,) = dtypes
        self.layers = file.layers
        self.threads = threads
        self.reproducible = reproducible
        self.vocabulary = file.vocabulary
        self.source = dict(file.source)
        self._self_check = file.self_check
        self._asked_isa = isa
        self.isa, lanes = _choose_kernel(self.layers, self.dtype, isa)
        self._mapped_from = file.mapped_from
        constant = file.mapped_from is not None
        packed = pack.pack(self.layers, file.tensors, lanes, self.dtype, constant=constant)
        self._packed = packed
        most = min(threads, processors.available()) if threads > 1 else 1
        self._network = _engine.Network(packed, self.isa, reproducible, most)

    @property
    def input_size(self) -> int:
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        return self.layers[-1].output_size

    @property
    def takes_tokens(self) -> bool:
        return self.layers[0].takes_tokens

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes

    @property
    def tensors(self) -> dict[str, Array]:
        """The weights under PyTorch's names, bit for bit as they were given."""
        return pack.unpack(self.layers, self._packed)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the layers and weights: the same for every copy of this model."""
        return format.fingerprint(self.layers, self.tensors)

    @property
    def self_check(self) -> tuple[Array, Array] | None:
        """A short input and the output that the float64 reference gives for it.

        None for a model that reads more than 1024 steps before its first output, or that takes
        more than 2**31 multiply-adds until then: a load must not take long.
        """
        if self._self_check is None and self.delay < format.check_steps(self.layers):
            self._self_check = _make_self_check(self.layers, self.tensors, self.dtype)
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
        x, truth = self.self_check
        y = self(x)[0].reshape(truth.shape)
        with np.errstate(all="ignore"):
            expected = truth.astype(self.dtype)
            finite = np.isfinite(expected)
            largest = np.abs(expected, where=finite, out=np.zeros_like(expected)).max()
            size = max(1.0, float(largest))
            same = np.array_equal(y[~finite], expected[~finite], equal_nan=True)
            error = float(np.abs(y[finite] - expected[finite]).max(initial=0.0)) / size
        limit = SELF_CHECK_TOLERANCE[self.dtype.name]
        if not (same and error <= limit):
            found = f"by {error:.2g} of its size" if same else "in what is infinite or NaN"
            raise format.FormatError(
                f"the self-check failed: the {self.isa} kernel differs from the recorded output "
                f"{found}; expected at most {limit:.0e}. The file is damaged, or this build is: "
                f"convert the checkpoint again, and compare with isa='scalar'"
            )
        return error

    @property
    def pools_over_time(self) -> bool:
        """Whether a whole sequence gives one row: a stream then gives it anew after each step."""
        return any(layer.pools for layer in self.layers)

    @property
    def looks_ahead(self) -> str:
        """Why the model takes whole sequences only and cannot be streamed; "" if it can."""
        return spec.looks_ahead(self.layers)

    @property
    def delay(self) -> int:
        """Steps that a stream reads without an output before its first one."""
        return spec.delay(self.layers)

    @property
    def step_stride(self) -> int:
        """Steps that a stream reads for each further output: 1, but for strided convolutions."""
        return spec.step_stride(self.layers)

    def initial_state(self, batch_size: int | None = None) -> dict[str, Array]:
        """The state every sequence starts from: name -> (depth, B, size), or without B."""
        rows = 1 if batch_size is None else _engine.as_count("batch_size", batch_size)
        return state_from_block(self, self._start_block(rows), batch_size is not None)

    def _start_block(self, batch_size: int) -> Array:
        block = np.empty((batch_size, self._packed.state_size), self.dtype)
        block[:] = self._packed.initial
        return block

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

    def __call__(
        self,
        x: Array | Sequence[Array],
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
            (T_b, I) or (T_b,), of any lengths and in any order, which is then the batch.
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
            T' is T, but for models with convolutions over time, which may give fewer. A model that
            pools over time gives (O,) or (B, O). Of a list, a list of arrays (T'_b, O) or (O,),
            each with memory of its own; zero where no row is there to pool.
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
        if state is None:
            block = self._start_block(given.x.shape[1])
        else:
            block = block_from_state(self, state, given.batch_size)
        y = given.run(self, block)
        return y, state_from_block(self, block, given.batch_size is not None)

    def stream(self, batch_size: int | None = None) -> Stream:
        """A new stream of this model, its state at zero.

        Parameters
        ----------
        batch_size : int, optional
            Rows that step together; without it the stream is unbatched.
        """
        return Stream(self, batch_size)

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
            layers=self.layers,
            tensors=self.tensors,
            self_check=self.self_check,
            vocabulary=self.vocabulary,
            source=self.source,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        asked = (self.threads, self._asked_isa, self.reproducible)
        if self._mapped_from is not None and self._mapped_from.lasts():
            return _restore_mapped, (self._mapped_from, *asked)
        return _restore, (self._file(), *asked)

    def __repr__(self) -> str:
        layers = ", ".join(layer.describe() for layer in self.layers)
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"<fastlstm.Model {layers}; {self.dtype}, {self.isa}{threads}>"


def _restore(file: format.ModelFile, threads: int, isa: str | None, reproducible: bool) -> Model:
    return Model(file, threads=threads, isa=isa, reproducible=reproducible)


def _restore_mapped(
    identity: format.Identity, threads: int, isa: str | None, reproducible: bool
) -> Model:
    file = format.read_model(identity.path, mapped=True, check=False, expected=identity)
    return _restore(file, threads, isa, reproducible)


def _choose_kernel(
    layers: Sequence[spec.Layer], dtype: np.dtype[Any], isa: str | None
) -> tuple[str, int]:
    """(name, lanes) of the kernel asked for by argument or FASTLSTM_ISA, else of the best one."""
    if isa is not None and not isinstance(isa, str):
        raise TypeError(f"isa is {isa!r}; expected the name of an instruction set or None")
    here = dict(_engine.kernels(dtype.itemsize))
    asked, by = isa, "isa="
    # The environment speaks for float32, where there is a choice; float64 has one kernel.
    if asked is None and dtype == np.float32:
        asked, by = os.environ.get("FASTLSTM_ISA") or None, "FASTLSTM_ISA="
    if asked is not None:
        if asked not in here:
            known = asked in _engine.known_isas()
            why = "this processor does not have it" if known else "there is no such instruction set"
            if known and dtype == np.float64:
                why = "float64 models have the plain kernel only"
            raise ValueError(f"{by}{asked!r}: {why}; expected one of {', '.join(here)}")
        return asked, here[asked]
    for name, lanes in here.items():
        plain, packed = (n * dtype.itemsize for n in pack.packed_size(layers, lanes))
        if packed <= MOST_PADDING * plain + FREE_PADDING_BYTES:
            return name, lanes
    return name, lanes


def _make_self_check(
    layers: Sequence[spec.Layer], tensors: Mapping[str, Array], dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    from fastlstm.chain import reference  # what running a model does not need

    rng = np.random.default_rng(SELF_CHECK_SEED)
    x: Array
    if layers[0].takes_tokens:
        known = layers[0].input_size
        steps = min(known, SELF_CHECK_TOKENS, format.check_steps(layers))
        x = rng.choice(known, steps, replace=False)
    else:
        steps = spec.delay(layers) + SELF_CHECK_STEPS * spec.step_stride(layers)
        widest = max(layer.output_size for layer in layers)
        steps = min(steps, max(SELF_CHECK_NUMBERS // widest, 1))
        steps = min(max(steps, spec.delay(layers) + 1), format.check_steps(layers))
        x = rng.standard_normal((steps, layers[0].input_size)).astype(dtype)
    with np.errstate(all="ignore"):  # weights that are not finite stay what they are
        y, _ = reference.forward(layers, tensors, x[:, None])
        others = [reference.forward(layers, tensors, x[:, None], dtype=dtype)[0]]
        for _ in range(SELF_CHECK_DRAWS):
            others.append(reference.forward(layers, _with_other_bits(tensors, rng), x[:, None])[0])
        limit = 0.1 * SELF_CHECK_TOLERANCE[dtype.name] * np.abs(y).max()
        off = np.any([np.abs(y - other) > limit for other in others], axis=0)
    lost = np.flatnonzero(off.any(axis=(1, 2)))
    if lost.size:
        kept = max(1, int(lost[0]))
        x = x[: spec.delay(layers) + 1 + (kept - 1) * spec.step_stride(layers)]
        with np.errstate(all="ignore"):
            y, _ = reference.forward(layers, tensors, x[:, None])
    return x, y[:, 0]


def _with_other_bits(tensors: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Weights of which every other one is less by its last two bits or so.

    The same ones for all outputs of a matrix: it is as if its inputs were rounded another way.
    """
    found = {}
    for name, tensor in tensors.items():
        less = 2 * np.finfo(tensor.dtype).eps * rng.integers(2, size=tensor.shape[-1:])
        found[name] = tensor * (1 - less).astype(tensor.dtype)
    return found


def _report_text(report: Sequence[str]) -> str:
    """The report as one note of a model file; what does not fit is counted."""
    kept = list(report)
    while len(text := "\n".join(kept)) > format.MAX_NOTE_CHARS - 40:
        kept.pop()
    left = len(report) - len(kept)
    return text + (f"\n(and {left} more lines)" if left else "")


def load(
    path: Path,
    *,
    threads: int = 1,
    isa: str | None = None,
    reproducible: bool = False,
    check: bool = True,
    mmap: bool = False,
) -> Model:
    """Read a model file and pack it for this machine.

    Parameters
    ----------
    path : path
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

    Raises
    ------
    FormatError
        If the file is not a sound model, is not the one that was written, or fails its
        self-check.
    OSError
        If it cannot be read or mapped.
    TypeError, ValueError
        If `threads` or `isa` cannot be had here.
    """
    file = format.read_model(path, mapped=mmap, check=check)
    model = Model(file, threads=threads, isa=isa, reproducible=reproducible)
    if check:
        model.check()
    return model


def convert(
    source: Any,
    destination: Path,
    *,
    layers: str | Sequence[str] | None = None,
    prefix: str | None = None,
    nonlinearity: str | None = None,
    ignore: Sequence[str] = (),
    dtype: str = "float32",
    vocabulary: Sequence[str] | None = None,
    recipe: Path | None = None,
    input_size: int | None = None,
) -> Model:
    """Convert a trained checkpoint to a model file.

    Parameters
    ----------
    source : path, torch.nn.Module, or mapping of str to array
        A ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file (read without torch), a ``.safetensors``,
        ``.npz``, ``.onnx``, ``.keras`` or ``.h5`` file, a live module, or a state dict.
    destination : path
        The file to write; replaced whole or left as it was.
    layers : str or sequence of str, optional
        The order of the layers, which a file does not tell:
        ``"embedding, lstm, linear"``, or with the prefix of each one's tensors,
        ``"lstm:encoder.rnn, relu, linear:head"``. Not needed for one recurrent block alone, nor
        for a live module, whose forward tells.
    prefix : str, optional
        Take only the tensors whose names start with it.
    nonlinearity : {"tanh", "relu"}, optional
        Of an RNN, which a file does not tell.
    ignore : sequence of str, optional
        Patterns (``fnmatch``) of tensor names that may stay unused.
    dtype : {"float32", "float64"}, default "float32"
        What the model is stored and computed in.
    vocabulary : sequence of str, optional
        The text of each token of a token model, if the checkpoint holds none.
    recipe : str or path, optional
        Of cells written by hand, which tensor is which gate: a built-in recipe, one of
        ``"d2l"``, ``"gluon"`` and ``"two-linear"`` (LSTMs; with ``-gru`` or ``-rnn`` behind it,
        those) and ``"assignment6"``, or a TOML file (:mod:`fastlstm.sources.recipe` says what is
        in it). Layers that it does not name are added with `layers`.
    input_size : int, optional
        Features of a step, where the forward of a live module does not tell: the samples of a frame
        that convolutions see.

    Returns
    -------
    Model
        The model that was written, ready to run. ``model.source["report"]`` tells what became of
        every tensor.

    Raises
    ------
    ConvertError
        If the source cannot be mapped; the message lists what was seen and what to pass.
    OSError
        If a file cannot be read or written.
    """
    model = from_torch(
        source,
        layers=layers,
        prefix=prefix,
        nonlinearity=nonlinearity,
        ignore=ignore,
        dtype=dtype,
        vocabulary=vocabulary,
        recipe=recipe,
        input_size=input_size,
    )
    model.check()
    model.save(destination)
    return model


def from_torch(
    source: Any,
    *,
    layers: str | Sequence[str] | None = None,
    prefix: str | None = None,
    nonlinearity: str | None = None,
    ignore: Sequence[str] = (),
    dtype: str = "float32",
    vocabulary: Sequence[str] | None = None,
    recipe: Path | None = None,
    input_size: int | None = None,
    threads: int = 1,
    isa: str | None = None,
    reproducible: bool = False,
) -> Model:
    """A model of a live ``torch.nn.Module``, or of any other source; nothing is written.

    Parameters and errors are those of :func:`convert`, without its destination, and `threads`,
    `isa` and `reproducible` those of :func:`load`.
    """
    from fastlstm import sources  # a third of the package, which running a model does not need

    made = sources.read(
        source,
        layers=layers,
        prefix=prefix,
        nonlinearity=nonlinearity,
        ignore=ignore,
        dtype=dtype,
        vocabulary=vocabulary,
        recipe=recipe,
        input_size=input_size,
    )
    is_path = isinstance(source, str | os.PathLike)
    name = os.path.basename(os.fspath(source)) if is_path else type(source).__qualname__
    return Model(
        format.ModelFile(
            layers=made.layers,
            tensors=made.tensors,
            vocabulary=made.vocabulary,
            source={"from": name, "report": _report_text(made.report)},
        ),
        threads=threads,
        isa=isa,
        reproducible=reproducible,
    )
