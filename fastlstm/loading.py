"""Model files, read and packed for this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from fastlstm import format
from fastlstm.model import Model
from fastlstm.paths import Path, at_path

__all__ = ["load"]


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
    precision: str | Mapping[str, str] | None = None,
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

    precision : str or mapping of str to str, optional
        What to store its matrices in as soon as it is read, as :func:`quantize` takes it: the
        model is then the one that this would give, and is mapped no more. A file that
        ``fastlstm quantize`` wrote needs none of it, and loads faster.

    Raises
    ------
    FormatError
        If the file is not a sound model, is not the one that was written, or fails its
        self-check.
    OSError
        If it cannot be read or mapped.
    TypeError, ValueError
        If `threads` or `isa` cannot be had here, or are given with `into`; if `into` is of another
        graph or dtype; if the matrices cannot be stored in that precision.
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
    options: dict[str, Any] = {"threads": threads, "isa": isa, "reproducible": reproducible}
    try:
        model = Model(file, **options, keep=keep or precision is not None)
        if check and file.self_check is not None:  # to make one takes the reference, and longer
            model.check()
        if precision is not None:
            from fastlstm.quantisation import quantize  # what running a model does not need

            model = quantize(model, precision)
            model = model if keep else model.like(model._file(), keep=False)
    except MemoryError as error:
        raise format.FormatError(f"{name}: the model does not fit in memory: {error}") from error
    if into is None:
        return model
    into._take(model)
    return into
