"""Read a trained model from wherever it is: a graph, its tensors, how it is called, and a report.

Pure Python and NumPy: nothing here needs compiled code, and what a source needs to be read, torch
for a live module, onnx or h5py for their files, is imported when there is one.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

from fastlstm.errors import ConvertError
from fastlstm.options import DEFAULTS, Options, complete
from fastlstm.sources import audio, exported, keras, numbers, onnx, torchscript
from fastlstm.sources.conversion import Conversion, chosen_vocabulary
from fastlstm.sources.pytorch import reader as pytorch
from fastlstm.sources.pytorch.module import is_module

__all__ = ["Conversion", "read"]

# Every source can be stored in either type, take the text of its tokens, and be checked to be of so
# many features.
_COMMON = {"dtype", "vocabulary", "input_size"}


class _Source:
    """A source, and what it can be told by.

    Parameters
    ----------
    given : object
        What was given as the source.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        path = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
        self.path = path if isinstance(path, str) and os.path.isfile(path) else ""

    @functools.cached_property
    def tree(self) -> Any:
        """What a file of numbers holds under its names; None of any other source."""
        held = self.path and numbers.holds_numbers(self.path)
        return numbers.read_numbers(self.path) if held else None

    @functools.cached_property
    def script(self) -> Any:
        """The archive of a scripted module, a path or a file in memory; None if it is none."""
        if self.path and self.tree is None and torchscript.is_archive(self.path):
            return self.path
        return torchscript.saved(self.given)


class _Kind(NamedTuple):
    """A kind of source.

    Parameters
    ----------
    what : str
        What it is called in a message.
    fits : callable of a source and its options
        Whether a source is of this kind.
    read : callable of a source and its options
    takes : set of str
        Options beside the common ones that it takes.
    """

    what: str
    fits: Callable[[_Source, Options], Any]
    read: Callable[[_Source, Options], Conversion]
    takes: frozenset[str]


def read(source: Any, **options: Unpack[Options]) -> Conversion:
    """Read a model; what the source does not tell is taken from options, never guessed.

    Parameters
    ----------
    source : path, torch.nn.Module or mapping
        A PyTorch checkpoint, safetensors, ONNX or Keras file, a model of an audio program
        (RTNeural, AIDA-X, GuitarML, Proteus, NAM), or arrays under names in ``.npz``, JSON, a
        pickle or HDF5 (told apart by content, ONNX by its name); a live module, an
        ``onnx.ModelProto``, a mapping of names to arrays or torch tensors, nested or not, or a list
        of them. Of TorchScript and of programs of torch.export, the forward is followed.
    **options
        Those of :func:`fastlstm.convert`.

    Raises
    ------
    ConvertError
        If the source cannot be mapped, wholly and in one way only, to a graph; the message lists
        what was seen and says which option helps.
    FormatError
        If a safetensors file is damaged.
    OSError
        If a file cannot be read.
    TypeError
        If an option is of a type that is not accepted.
    """
    given, opened = complete(options), _Source(source)
    kind = next(kind for kind in _KINDS if kind.fits(opened, given))
    for name in DEFAULTS:
        if name not in kind.takes | _COMMON and given[name]:  # type: ignore[literal-required]
            why = "says by itself which layers it has"
            if name == "inputs":
                why = "has no inputs that are told by name"
            raise ConvertError(f"{name}= was given, but {kind.what} {why}; leave it out")
    made = kind.read(opened, given)
    first = next(one for one in made.graph.inputs if not one.held)
    size, expected = first.tokens or math.prod(first.shape), given["input_size"]
    if expected not in (None, size):
        raise ConvertError(
            f"input_size={expected} was given, but input {first.name!r} takes {size}; leave it out"
        )
    return made


def _with_vocabulary(made: Conversion, options: Options) -> Conversion:
    """A model of a source that holds no vocabulary of its own."""
    chosen, note = chosen_vocabulary(options["vocabulary"], None, made.graph)
    return replace(made, vocabulary=chosen, report=(*made.report, *note))


def _audio(source: _Source, options: Options) -> Conversion:
    try:
        made = audio.read_audio(source.tree, options["dtype"])
    except ConvertError as error:
        raise ConvertError(f"{source.path}: {error}") from None
    return _with_vocabulary(made, options)


def _onnx(source: _Source, options: Options) -> Conversion:
    made = onnx.read(source.given, options["dtype"], options["inputs"])
    return _with_vocabulary(made, options)


def _keras(source: _Source, options: Options) -> Conversion:
    return keras.read(
        source.path,
        ignore=options["ignore"],
        dtype=options["dtype"],
        vocabulary=options["vocabulary"],
    )


def _exported(source: _Source, options: Options) -> Conversion:
    return _followed(source, options, lambda: exported.read(source.path, options["dtype"]), "")


def _script(source: _Source, options: Options) -> Conversion:
    alone = "; layers= takes the weights alone, and has to name all that forward computes"
    return _followed(
        source, options, lambda: torchscript.read(source.script, options["dtype"]), alone
    )


def _followed(
    source: _Source, options: Options, read: Callable[[], Conversion], alone: str
) -> Conversion:
    """A program of torch, which computes what its code or its graph says."""
    try:
        made = read()
    except ConvertError as error:
        module = f"torch.jit.load({source.path!r:.200})" if alone and source.path else "module"
        raise ConvertError(
            f"{source.path or 'the scripted module'}: {error}\nSo forward is not followed. Another "
            f"way is ONNX: torch.onnx.export({module}, example_inputs, 'model.onnx', "
            f"dynamo=False){alone}"
        ) from None
    return _with_vocabulary(made, options)


def _weights(source: _Source, options: Options) -> Conversion:
    given = source.given if source.tree is None else numbers.named(source.tree, source.path)
    return pytorch.read(
        given,
        **{name: options[name] for name in _OF_WEIGHTS},  # type: ignore[literal-required]
    )


def _is_onnx(source: _Source, options: Options) -> bool:
    return onnx.is_model(source.given) or source.path.endswith(".onnx")


def _is_live(source: _Source, options: Options) -> bool:
    """Whether the forward of a module is followed: not if its layers are named."""
    return is_module(source.given) and options["layers"] is None and options["recipe"] is None


def _is_script(source: _Source, options: Options) -> bool:
    """Whether the forward of an archive is followed: not if layers of its weights are named."""
    named = any(options[name] for name in _TOLD)  # type: ignore[literal-required]
    return source.script is not None and not named


_TOLD = ("layers", "prefix", "nonlinearity", "ignore", "recipe")
_OF_WEIGHTS = (*_TOLD, "dtype", "vocabulary", "input_size", "inputs")

# The first that fits is read.
_KINDS = (
    _Kind("an ONNX model", _is_onnx, _onnx, frozenset({"inputs"})),
    _Kind(
        "a model of an audio program",
        lambda source, options: audio.audio_format(source.tree),
        _audio,
        frozenset(),
    ),
    _Kind(
        "a program of torch.export",
        lambda source, options: source.path and exported.is_exported(source.path),
        _exported,
        frozenset(),
    ),
    _Kind("an archive of TorchScript", _is_script, _script, frozenset()),
    _Kind(
        "a Keras model",
        lambda source, options: source.path and source.tree is None and keras.is_keras(source.path),
        _keras,
        frozenset({"ignore"}),
    ),
    _Kind("a live module", _is_live, _weights, frozenset({"inputs", *_TOLD})),
    _Kind("a checkpoint", lambda source, options: True, _weights, frozenset(_TOLD)),
)
