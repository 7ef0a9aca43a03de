"""What PyTorch holds or saves, and arrays under its names, into layers and tensors.

The path of a checkpoint through this package: ``checkpoint`` (or ``format``, or
``module.record``) reads what was saved, ``state_dict`` finds the model's tensors in it,
``handwritten`` gives those of a cell written by hand their PyTorch form, as a ``recipe`` tells,
``blocks`` finds the layers they make, ``order`` the order in which those run, and :func:`read`
converts the tensors and says what it did. The forward of a live module is followed by ``trace``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fastlstm import chain as spec
from fastlstm.chain.lower import lowered
from fastlstm.container import is_ours
from fastlstm.errors import ConvertError
from fastlstm.format import read_tensors
from fastlstm.sources.conversion import Conversion, chosen_vocabulary, conversions, joined
from fastlstm.sources.pytorch import module, order
from fastlstm.sources.pytorch.blocks import find_blocks
from fastlstm.sources.pytorch.checkpoint import StoredTensor, read_checkpoint
from fastlstm.sources.pytorch.order import Placed
from fastlstm.sources.pytorch.state_dict import (
    StateDict,
    Tensor,
    find_state_dict,
    listing,
    to_array,
)
from fastlstm.sources.recipe import built_in_recipes, handwritten, read_recipe

__all__ = ["read"]

_VOCABULARY = ("vocabulary", "vocab")


def read(
    source: object,
    *,
    layers: str | Sequence[str] | None,
    prefix: str | None,
    nonlinearity: str | None,
    ignore: str | Sequence[str],
    dtype: str,
    vocabulary: Sequence[str] | None,
    recipe: str | os.PathLike[str] | None,
    input_size: int | None,
) -> Conversion:
    """Read a checkpoint, a live module or a mapping; arguments and errors are those of
    :func:`fastlstm.sources.read`.
    """
    by_hand = None if recipe is None else read_recipe(recipe)
    tree, notes = _open(source)
    strings, tree = _found_vocabulary(tree)
    found = find_state_dict(tree, prefix)
    ignored = _ignored(found, [ignore] if isinstance(ignore, str) else ignore)
    path = (prefix or "").removesuffix(".")
    if layers is None and by_hand is None and module.can_follow(source, path):
        from fastlstm.sources import trace  # which only live modules need

        traced = trace.trace(source, dtype, path, nonlinearity, input_size)
        _refuse_ignored(ignored, traced.read)
        graph = lowered(traced.layers)
        chosen, note = chosen_vocabulary(vocabulary, strings, graph)
        report = [*traced.report, *conversions(traced.read.values(), dtype), *found.notes, *note]
        return Conversion(graph, traced.tensors, tuple(report), chosen)
    found.refuse_unreadable(ignored)
    told = module.tell(found.modules, path)
    seen = len(found.tensors)
    originals: tuple[Tensor, ...] = ()
    if by_hand is not None:
        made = handwritten.translate(by_hand, found, told, ignored, dtype)
        found, told, originals = made.found, made.told, made.sources

    given = None if layers is None else order.parse(layers)
    words = told.words if given is None else order.merge(given, told.words or ())
    blocks = find_blocks(found.tensors, ignored, told.known, nonlinearity)
    if not blocks:
        raise ConvertError(
            f"there are no weights under PyTorch's names (weight_ih_l0, weight_hh_l0, ...); "
            f"expected those of an LSTM, GRU or RNN, or recipe= for a cell written by hand (a TOML "
            f"file, or one of {', '.join(built_in_recipes())}). Tensors seen:\n"
            f"{listing(found.tensors.values())}"
        )
    placed = order.place(words, blocks, told.unsaid)
    model = tuple(item.layer for item in placed)
    if nonlinearity is not None and not any(isinstance(layer, spec.RNN) for layer in model):
        raise ConvertError(
            f"nonlinearity={nonlinearity!r} was given, but there is no RNN among the layers "
            f"({', '.join(layer.kind for layer in model)}); leave it out"
        )
    unused = _check_use(found, placed, ignored, seen)
    sources = dict(_sources(placed))
    try:
        spec.check_layers(model)
        spec.check_tensors(model, {name: tensor.shape for name, tensor in sources.items()})
    except ValueError as error:
        raise ConvertError(f"the layers make no model: {error}") from None
    tensors = {name: to_array(tensor, dtype) for name, tensor in sources.items()}

    report = [*map(_describe, placed), *conversions((*originals, *sources.values()), dtype)]
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
        report.append(f"not used, as ignore= allows: {joined(unused)}")
    graph = lowered(model)
    chosen, note = chosen_vocabulary(vocabulary, strings, graph)
    return Conversion(graph, tensors, (*report, *note), chosen)


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
        head = file.read(512)
        size = os.fstat(file.fileno()).st_size
    # A safetensors file starts with the length of its JSON header.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        if is_ours(head):
            raise ConvertError(
                f"{path!r:.500} is a file of fastlstm's own; a model is opened with fastlstm.load"
            )
        tensors = read_tensors(path)
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


def _check_use(
    found: StateDict, placed: Sequence[Placed], ignored: frozenset[str], seen: int
) -> list[str]:
    """The tensors that no layer uses, all of which must be allowed to stay unused."""
    used = {tensor.name for _, tensor in _sources(placed)}
    _refuse_ignored(ignored, [name for name in found.tensors if name in used])
    unused = [name for name in found.tensors if name not in used]
    refused = [found.tensors[name] for name in unused if name not in ignored]
    if refused:
        raise ConvertError(
            f"no layer uses {len(refused)} of the {seen} tensors; name their layers "
            f"in layers=, choose a part of the model with prefix=, or allow it with ignore=, for "
            f"example ignore={refused[0].name!r:.200}. Not used:\n{listing(refused)}"
        )
    return unused


def _refuse_ignored(ignored: frozenset[str], used: Iterable[str]) -> None:
    """Check that no tensor that a layer is made of may stay unused."""
    for name in used:
        if name in ignored:
            raise ConvertError(
                f"ignore= matches {name!r:.200}, which a layer is made of; expected patterns of "
                f"unused tensors only, or of all the tensors of a layer"
            )


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
    return f"{text}, from {where}{joined(renamed)}"


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
