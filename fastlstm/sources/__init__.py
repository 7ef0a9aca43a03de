"""Read a trained model from wherever it is, into layers and tensors.

Pure Python and NumPy: nothing here needs compiled code, and what a source needs to be read, torch
for a live module, onnx or h5py for their files, is imported when there is one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources import audio, exported, keras, numbers, onnx, torchscript
from fastlstm.sources.conversion import Conversion, chosen_vocabulary
from fastlstm.sources.pytorch import reader as pytorch

__all__ = ["Conversion", "read"]


def read(
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    *,
    layers: str | Sequence[str] | None = None,
    prefix: str | None = None,
    nonlinearity: str | None = None,
    ignore: str | Sequence[str] = (),
    dtype: str = "float32",
    vocabulary: Sequence[str] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    input_size: int | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Conversion:
    """Read a model; what the source does not tell is taken from arguments, never guessed.

    Parameters
    ----------
    source : path, torch.nn.Module or mapping
        A PyTorch checkpoint, safetensors, ONNX or Keras file, a model of an audio program
        (RTNeural, AIDA-X, GuitarML, Proteus, NAM), or arrays under names in ``.npz``, JSON, a
        pickle or HDF5 (told apart by content, ONNX by its name); a live module, an
        ``onnx.ModelProto``, a mapping of names to arrays or torch tensors, nested or not, or a list
        of them. Of TorchScript and of programs of torch.export, the forward is followed.
    layers : str or sequence of str, optional
        The layers in the order in which they run, as in ``"embedding, lstm, linear"``: a word for
        each layer and function, with parameters if it has any, ``"elu(0.5)"``. One with weights can
        be bound to a path, ``"lstm:encoder.rnn"``; branches stand in brackets,
        ``"lstm, [linear:a | linear:b]"``. ``docs/layers.md`` has all of them. Needed unless the
        source holds one recurrent block and nothing else, is a live module, whose forward tells,
        or a stored one whose order is known.
    prefix : str, optional
        Take only the tensors under this dotted path, or, where there are none, those whose names
        begin with it; of averages kept as a list, its path; "" takes all of a checkpoint that holds
        several state dicts.
    nonlinearity : {"tanh", "relu"}, optional
        Of the RNNs, where the source does not tell.
    ignore : str or sequence of str, optional
        Patterns (:mod:`fnmatch`) of names of tensors that may stay unused, and of stored modules
        without weights that forward does not run; of a Keras file also of layers that are left
        out, each handing on what it reads.
    dtype : {"float32", "float64"}
        What the model is stored in.
    vocabulary : sequence of str, optional
        Token strings in order; by default what the checkpoint holds under "vocabulary" or "vocab".
    recipe : str or path, optional
        Of cells written by hand, which tensor is which gate (``docs/recipes.md``): the name of a
        built-in recipe or the path of a TOML file. It also tells the order of the layers it names;
        ``layers`` may add others to them.
    input_size : int, optional
        Features of a step, where the forward of a live module does not tell: the samples of a frame
        that convolutions see. It is checked against every other source.
    inputs : mapping, optional
        Of an ONNX model, inputs that are the same in every call, as numbers or arrays, and the
        sizes of others, as tuples (see :func:`fastlstm.sources.fixed.given_inputs`).

    Raises
    ------
    ConvertError
        If the source cannot be mapped, wholly and in one way only, to layers; the message lists
        what was seen and says which argument helps.
    FormatError
        If a safetensors file is damaged.
    OSError
        If a file cannot be read.
    TypeError
        If an argument is of a type that is not accepted.
    """
    _check_arguments(layers, prefix, nonlinearity, ignore, dtype, vocabulary, recipe, input_size)
    named: dict[str, object] = {
        "layers": layers,
        "prefix": prefix,
        "nonlinearity": nonlinearity,
        "ignore": ignore,
        "recipe": recipe,
    }
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    is_file = isinstance(path, str) and os.path.isfile(path)
    is_onnx = onnx.is_model(source) or (is_file and path.endswith(".onnx"))
    if inputs and not is_onnx:
        raise ConvertError("inputs= was given, and the source is no ONNX model; leave it out")
    held = numbers.read_numbers(path) if is_file and numbers.holds_numbers(path) else None
    if held is not None:
        is_file = False
    script = path if is_file and torchscript.is_archive(path) else torchscript.saved(source)
    if what := audio.audio_format(held):
        made = _complete(what, path, held, named, dtype, vocabulary)
    elif is_onnx:
        _refuse_options("an ONNX model", named)
        made = onnx.read(source, dtype, inputs)
        chosen, note = chosen_vocabulary(vocabulary, None, made.graph)
        made = replace(made, vocabulary=chosen, report=(*made.report, *note))
    elif is_file and exported.is_exported(path):
        _refuse_options("a program of torch.export", named)
        made = _followed(exported.read, path, path, dtype, vocabulary)
    elif script is not None and not any(named.values()):
        made = _followed(torchscript.read, script, path, dtype, vocabulary)
    elif is_file and keras.is_keras(path):
        named.pop("ignore")
        _refuse_options("a Keras model", named)
        made = keras.read(path, ignore=ignore, dtype=dtype, vocabulary=vocabulary)
    else:
        made = pytorch.read(
            source if held is None else numbers.named(held, path),
            layers=layers,
            prefix=prefix,
            nonlinearity=nonlinearity,
            ignore=ignore,
            dtype=dtype,
            vocabulary=vocabulary,
            recipe=recipe,
            input_size=input_size,
        )
    first = next(one for one in made.graph.inputs if not one.held)
    size = first.tokens or math.prod(first.shape)
    if input_size not in (None, size):
        raise ConvertError(
            f"input_size={input_size} was given, but input {first.name!r} takes {size}; leave it "
            f"out"
        )
    return made


def _complete(
    what: str,
    path: str,
    tree: Any,
    options: Mapping[str, object],
    dtype: str,
    vocabulary: Sequence[str] | None,
) -> Conversion:
    """A model of an audio program, which says by itself which layers it has."""
    _refuse_options(what, options)
    try:
        made = audio.read_audio(tree, dtype)
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None
    chosen_vocabulary(vocabulary, None, made.graph)
    return made


def _followed(
    read: Callable[[Any, str], Conversion],
    source: Any,
    path: str,
    dtype: str,
    vocabulary: Sequence[str] | None,
) -> Conversion:
    """A program of torch, which computes what its code or its graph says."""
    try:
        made = read(source, dtype)
    except ConvertError as error:
        scripted = read is torchscript.read
        module = f"torch.jit.load({path!r:.200})" if scripted and path else "module"
        alone = "; layers= takes the weights alone, and has to name all that forward computes"
        raise ConvertError(
            f"{path or 'the scripted module'}: {error}\nSo forward is not followed. Another way is "
            f"ONNX: torch.onnx.export({module}, example_inputs, 'model.onnx', dynamo=False)"
            f"{alone if scripted else ''}"
        ) from None
    chosen, note = chosen_vocabulary(vocabulary, None, made.graph)
    return replace(made, vocabulary=chosen, report=(*made.report, *note))


def _refuse_options(what: str, options: Mapping[str, object]) -> None:
    if given := [name for name, value in options.items() if value]:
        raise ConvertError(
            f"{given[0]}= was given, but {what} says by itself which layers it has; leave it out"
        )


def _check_arguments(
    layers: object,
    prefix: object,
    nonlinearity: object,
    ignore: object,
    dtype: object,
    vocabulary: object,
    recipe: object,
    input_size: object,
) -> None:
    def strings(value: object) -> bool:
        return isinstance(value, Sequence) and all(isinstance(item, str) for item in value)

    if layers is not None and not strings(layers):
        raise TypeError(f"layers is {layers!r:.100}; expected a string or a sequence of strings")
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"prefix is {prefix!r:.100}; expected a string")
    if not strings(ignore):
        raise TypeError(f"ignore is {ignore!r:.100}; expected a pattern or a sequence of patterns")
    if vocabulary is not None and (isinstance(vocabulary, str) or not strings(vocabulary)):
        raise TypeError(f"vocabulary is {vocabulary!r:.100}; expected a sequence of strings")
    if not isinstance(recipe, str | os.PathLike | None):
        raise TypeError(f"recipe is {recipe!r:.100}; expected a name or the path of a TOML file")
    if input_size is not None and (type(input_size) is not int or input_size < 1):
        raise TypeError(f"input_size is {input_size!r:.100}; expected a positive integer")
    if nonlinearity not in (None, "tanh", "relu"):
        raise ConvertError(f"nonlinearity is {nonlinearity!r:.100}; expected 'tanh' or 'relu'")
    if dtype not in ("float32", "float64"):
        raise ConvertError(f"dtype is {dtype!r:.100}; expected 'float32' or 'float64'")
