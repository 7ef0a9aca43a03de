"""Read a trained model from a checkpoint, a live module or a mapping, into layers and tensors.

Pure Python and NumPy: nothing here needs compiled code, and torch is never imported. The path of a
checkpoint through this package: ``checkpoint`` (or ``format``, or ``module.record``) reads what was
saved, ``state_dict`` finds the model's tensors in it, ``blocks`` the layers they make, ``order``
the order in which those run, and :func:`read` converts the tensors and says what it did.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy.typing as npt

from fastlstm import spec
from fastlstm.format import read_tensors
from fastlstm.sources import module, order
from fastlstm.sources.blocks import find_blocks
from fastlstm.sources.checkpoint import StoredTensor, read_checkpoint
from fastlstm.sources.order import Placed
from fastlstm.sources.state_dict import StateDict, Tensor, find_state_dict, listing, to_array
from fastlstm.spec import ConvertError

__all__ = ["Conversion", "read"]

_VOCABULARY = ("vocabulary", "vocab")


@dataclass(frozen=True, eq=False)
class Conversion:
    """A model read from somewhere.

    Parameters
    ----------
    layers : tuple of spec.Layer
        In the order in which they run, checked.
    tensors : dict of str to array
        Exactly those the layers ask for, each with its shape, all of one dtype, C-contiguous, not
        shared with the source.
    report : tuple of str
        Sentences on what each layer was made of, what was converted, left out or taken on the
        caller's word.
    vocabulary : tuple of str, or None
        The string of each token, in order; only of a model that takes tokens.
    """

    layers: tuple[spec.Layer, ...]
    tensors: dict[str, npt.NDArray[Any]]
    report: tuple[str, ...]
    vocabulary: tuple[str, ...] | None = None


def read(
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    *,
    layers: str | Sequence[str] | None = None,
    prefix: str | None = None,
    nonlinearity: str | None = None,
    ignore: str | Sequence[str] = (),
    dtype: str = "float32",
    vocabulary: Sequence[str] | None = None,
) -> Conversion:
    """Read a model; what the source does not tell is taken from arguments, never guessed.

    Parameters
    ----------
    source : path, torch.nn.Module or mapping
        A PyTorch checkpoint or safetensors file (told apart by content), a live module, or a
        mapping of names to arrays or torch tensors, nested or not.
    layers : str or sequence of str, optional
        The layers in the order in which they run: words out of ``one_hot``, ``embedding``,
        ``lstm``, ``gru``, ``rnn``, ``linear``, ``relu``, ``tanh``, ``sigmoid``, ``softmax``,
        ``log_softmax`` and ``dropout`` (without effect), as in ``"embedding, lstm, linear"``. A
        word with weights can be bound to a path: ``"lstm:encoder.rnn"``. Needed unless the source
        holds one recurrent block and nothing else, or is a module whose order is known.
    prefix : str, optional
        Take only the tensors under this dotted path; "" takes all of a checkpoint that holds
        several state dicts.
    nonlinearity : {"tanh", "relu"}, optional
        Of the RNNs, where the source does not tell.
    ignore : str or sequence of str, optional
        Patterns (:mod:`fnmatch`) of names of tensors that may stay unused.
    dtype : {"float32", "float64"}
        What the model is stored in.
    vocabulary : sequence of str, optional
        Token strings in order; by default what the checkpoint holds under "vocabulary" or "vocab".

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
    _check_arguments(layers, prefix, nonlinearity, ignore, dtype, vocabulary)
    tree, notes = _open(source)
    strings, tree = _found_vocabulary(tree)
    found = find_state_dict(tree, prefix)
    ignored = _ignored(found, [ignore] if isinstance(ignore, str) else ignore)
    found.refuse_unreadable(ignored)
    told = module.tell(found.modules, (prefix or "").removesuffix("."))

    given = None if layers is None else order.parse(layers)
    words = told.words if given is None else order.merge(given, told.words or ())
    blocks = find_blocks(found.tensors, ignored, told.known, nonlinearity)
    if not blocks:
        raise ConvertError(
            f"there are no weights under PyTorch's names (weight_ih_l0, weight_hh_l0, ...); "
            f"expected those of an LSTM, GRU or RNN. Tensors seen:\n"
            f"{listing(found.tensors.values())}"
        )
    placed = order.place(words, blocks, told.unsaid)
    model = tuple(item.layer for item in placed)
    if nonlinearity is not None and not any(isinstance(layer, spec.RNN) for layer in model):
        raise ConvertError(
            f"nonlinearity={nonlinearity!r} was given, but there is no RNN among the layers "
            f"({', '.join(layer.kind for layer in model)}); leave it out"
        )
    unused = _check_use(found, placed, ignored)
    sources = dict(_sources(placed))
    try:
        spec.check_layers(model)
        spec.check_tensors(model, {name: tensor.shape for name, tensor in sources.items()})
    except ValueError as error:
        raise ConvertError(f"the layers make no model: {error}") from None
    tensors = {name: to_array(tensor, dtype) for name, tensor in sources.items()}

    report = [*map(_describe, placed), *_conversions(sources, dtype)]
    if words is None:
        report.append("it is the only block of weights and was taken as the whole model")
    if given is not None:
        report.append(f"layers={order.joined(given)!r} was taken on your word")
    if nonlinearity is not None:
        report.append(f"nonlinearity={nonlinearity!r} was taken on your word")
    if given and any(word.kind == "dropout" for word in given):
        report.append("dropout has no effect at inference and was left out")
    report += [*notes, *told.notes, *found.notes]
    if unused:
        report.append(f"not used, as ignore= allows: {_joined(unused)}")
    chosen, note = _chosen_vocabulary(vocabulary, strings, model[0])
    return Conversion(model, tensors, (*report, *note), chosen)


def _check_arguments(
    layers: object,
    prefix: object,
    nonlinearity: object,
    ignore: object,
    dtype: object,
    vocabulary: object,
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
    if nonlinearity not in (None, "tanh", "relu"):
        raise ConvertError(f"nonlinearity is {nonlinearity!r:.100}; expected 'tanh' or 'relu'")
    if dtype not in ("float32", "float64"):
        raise ConvertError(f"dtype is {dtype!r:.100}; expected 'float32' or 'float64'")


def _open(source: object) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """What a source holds, as a nest of mappings, and notes on it."""
    if module.is_module(source):
        return module.record(source)
    if isinstance(source, Mapping):
        return source, ()
    if isinstance(source, str | os.PathLike) and isinstance(os.fspath(source), str):
        return _open_file(os.fspath(source)), ()
    raise TypeError(
        f"source is of type {type(source).__name__}; expected the path of a checkpoint, a "
        f"torch.nn.Module or a mapping of names to arrays"
    )


def _open_file(path: str) -> Mapping[Any, Any]:
    if os.path.isdir(path):
        raise IsADirectoryError(
            errno.EISDIR, "is a directory; expected a checkpoint, give the file inside it", path
        )
    with open(path, "rb") as file:
        head = file.read(9)
        size = os.fstat(file.fileno()).st_size
    # A safetensors file starts with the length of its JSON header.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        tensors = read_tensors(path)
        if "self_check.input" in tensors:
            raise ConvertError(
                f"{path!r:.500} is a fastlstm model already; open it with fastlstm.load"
            )
        return {name: StoredTensor(array, dtype) for name, (array, dtype) in tensors.items()}
    saved = read_checkpoint(path)
    if not isinstance(saved, Mapping):
        raise ConvertError(
            f"{path!r:.500} holds {saved!r:.100}; expected a state dict, or a mapping that holds "
            f"one: save module.state_dict()"
        )
    return saved


def _ignored(found: StateDict, patterns: Iterable[str]) -> frozenset[str]:
    ignored: set[str] = set()
    for pattern in patterns:
        names = {n for n in (*found.tensors, *found.others) if fnmatchcase(n, pattern)}
        if not names:
            raise ConvertError(
                f"ignore={pattern!r:.200} matches no tensor; expected a pattern of names out of\n"
                + listing(found.tensors.values())
            )
        ignored |= names
    return frozenset(ignored)


def _check_use(found: StateDict, placed: Sequence[Placed], ignored: frozenset[str]) -> list[str]:
    """The tensors that no layer uses, all of which must be allowed to stay unused."""
    used = {tensor.name for _, tensor in _sources(placed)}
    for name in found.tensors:
        if name in used and name in ignored:
            raise ConvertError(
                f"ignore= matches {name!r:.200}, which a layer is made of; expected patterns of "
                f"unused tensors only, or of all the tensors of a layer"
            )
    unused = [name for name in found.tensors if name not in used]
    refused = [found.tensors[name] for name in unused if name not in ignored]
    if refused:
        raise ConvertError(
            f"no layer uses {len(refused)} of the {len(found.tensors)} tensors; name their layers "
            f"in layers=, choose a part of the model with prefix=, or allow it with ignore=, for "
            f"example ignore={refused[0].name!r:.200}. Not used:\n{listing(refused)}"
        )
    return unused


def _sources(placed: Iterable[Placed]) -> Iterable[tuple[str, Tensor]]:
    """Name of each tensor of the model, and the tensor of the source it is made of."""
    for layer, block in ((item.layer, item.block) for item in placed):
        if block is not None:
            for name in layer.tensors():
                yield name, block.tensors[name.removeprefix(f"{layer.name}.")]


def _describe(item: Placed) -> str:
    text = f"layer {item.layer.name!r}: {item.layer.describe()}"
    if item.block is None:
        return text
    renamed = []
    for suffix, tensor in item.block.tensors.items():
        own = tensor.name.rpartition(".")[2]
        renamed.append(own if own == suffix else f"{own} (now {suffix})")
    where = f"{item.block.path!r}: " if item.block.path else ""
    return f"{text}, from {where}{_joined(renamed)}"


def _conversions(sources: Mapping[str, Tensor], dtype: str) -> list[str]:
    bits = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
    names: dict[str, list[str]] = {}
    for tensor in sources.values():
        if tensor.dtype != dtype:
            names.setdefault(tensor.dtype, []).append(tensor.name)
    return [
        f"{'widened' if bits[stored] < bits[dtype] else 'narrowed'} from {stored} to {dtype}: "
        f"{_joined(these)}"
        for stored, these in names.items()
    ]


def _joined(names: Sequence[str], most: int = 20) -> str:
    # Names may come from a hostile file and end up on a terminal.
    shown = [name[:200] if name.isprintable() else repr(name)[:200] for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _found_vocabulary(
    tree: Mapping[Any, Any],
) -> tuple[tuple[str, tuple[str, ...]] | None, Mapping[Any, Any]]:
    """The key and strings of a vocabulary at the top of a checkpoint, and the rest of it."""
    for key in _VOCABULARY:
        value = tree.get(key)
        if (
            isinstance(value, list | tuple)
            and value
            and all(isinstance(item, str) for item in value)
            and len(set(value)) == len(value)
        ):
            return (key, tuple(value)), {k: v for k, v in tree.items() if k != key}
    return None, tree


def _chosen_vocabulary(
    given: Sequence[str] | None, found: tuple[str, tuple[str, ...]] | None, first: spec.Layer
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The vocabulary of the model, and a note where it came from or why there is none."""
    tokens = first.input_size if first.takes_tokens else 0
    takes = f"layer {first.name!r} takes {tokens or 'no'} tokens"
    if given is not None:
        if len(set(given)) != len(given):
            raise ConvertError(
                f"vocabulary holds {len(given)} strings, but only {len(set(given))} different "
                f"ones; expected no string twice"
            )
        if len(given) != tokens:
            raise ConvertError(
                f"vocabulary has {len(given)} strings, but {takes}; expected one string for each "
                f"token" + ("" if tokens else ", and layers= beginning with one_hot or embedding")
            )
        return tuple(given), (f"a vocabulary of {len(given)} strings was taken on your word",)
    if found is None:
        return None, ()
    key, strings = found
    if len(strings) != tokens:
        why = f"it has {len(strings)} strings, and {takes}"
        return None, (f"{key!r} of the checkpoint was left out: {why}",)
    return strings, (f"a vocabulary of {len(strings)} strings was read from {key!r}",)
