"""What PyTorch holds or saves, and arrays under its names, into a graph and tensors.

The path of a checkpoint through this package: ``checkpoint`` (or ``format``, or
``module.record``) reads what was saved, ``state_dict`` finds the model's tensors in it,
``computed`` makes those that others stand for, ``handwritten`` gives those of a cell written by
hand their PyTorch form, as a ``recipe`` tells, ``blocks`` finds the layers they may make, ``order``
runs the words of ``layers=`` over them, and :func:`read` converts the tensors and says what it did.
The forward of a live module is followed by :mod:`fastlstm.sources.live`.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.container import is_ours
from fastlstm.errors import ConvertError
from fastlstm.format import read_tensors
from fastlstm.sources import foreign
from fastlstm.sources.conversion import Conversion, chosen_vocabulary, conversions, joined
from fastlstm.sources.fixed import given_inputs
from fastlstm.sources.pytorch import advice, module, order, words
from fastlstm.sources.pytorch.blocks import Block, find_blocks
from fastlstm.sources.pytorch.checkpoint import StoredTensor, read_checkpoint
from fastlstm.sources.pytorch.computed import computed
from fastlstm.sources.pytorch.making import Source
from fastlstm.sources.pytorch.module import Told
from fastlstm.sources.pytorch.order import Placed
from fastlstm.sources.pytorch.state_dict import (
    StateDict,
    Tensor,
    described,
    find_state_dict,
    listing,
    to_array,
)
from fastlstm.sources.pytorch.words import Word
from fastlstm.sources.recipe import Recipe, built_in_recipes, handwritten, read_recipe

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
    inputs: Mapping[str, Any] | None,
) -> Conversion:
    """Read a checkpoint, a live module or a mapping; arguments and errors are those of
    :func:`fastlstm.sources.read`.
    """
    by_hand = None if recipe is None else read_recipe(recipe)
    given = None if layers is None else words.parse(layers)
    tree, notes = _open(source)
    strings, tree = _found_vocabulary(tree)
    found = find_state_dict(tree, prefix)
    ignored = _ignored(found, [ignore] if isinstance(ignore, str) else ignore)
    path = (prefix or "").removesuffix(".")
    if given is None and by_hand is None and module.can_follow(source, path):
        return _followed(
            source,
            found,
            ignored,
            path,
            nonlinearity,
            dtype,
            vocabulary,
            strings,
            input_size,
            inputs or {},
        )
    options = (prefix, nonlinearity, dtype, vocabulary, input_size)
    try:
        return _of_state_dict(source, found, ignored, given, by_hand, strings, notes, *options)
    except ConvertError as error:
        named = handwritten.told_of(found.tensors) if by_hand is None else ""
        if not named:
            raise
        raise ConvertError(f"{named}\nIf it is none of them: {error}") from None


def _of_state_dict(
    source: object,
    found: StateDict,
    ignored: frozenset[str],
    given: list[Word] | None,
    by_hand: Recipe | None,
    strings: tuple[str, tuple[str, ...]] | None,
    notes: tuple[str, ...],
    prefix: str | None,
    nonlinearity: str | None,
    dtype: str,
    vocabulary: Sequence[str] | None,
    input_size: int | None,
) -> Conversion:
    """Layers of named tensors, in the order that words, a recipe or modules tell."""
    path = (prefix or "").removesuffix(".")
    found.refuse_unreadable(ignored)
    told = module.tell(found.modules, path, _row(given), input_size)
    found = computed(found, ignored)
    originals: tuple[Tensor, ...] = ()
    by_recipe: tuple[Block, ...] = ()
    seen = len(found.tensors)
    if by_hand is not None:
        made = handwritten.translate(by_hand, found, told, ignored, dtype)
        found, originals, by_recipe = made.found, made.sources, made.blocks
        told = dataclasses.replace(made.told, silent=told.silent, unverified=told.unverified)
    own = told.words
    if given is not None and own is not None:
        left_out = _left_out(found, ignored)
        own = tuple(word for word in own if word.path not in left_out)
    row_alone = own is None and given is not None and [w.kind for w in given] == ["input"]
    chosen = None if row_alone else words.merged(given, own)
    blocks = [*by_recipe, *find_blocks(found.tensors, ignored, told.known)]
    if not blocks:
        why = told.unsaid and f" ({told.unsaid})"
        raise ConvertError(
            f"there are no weights under PyTorch's names (weight_ih_l0, weight_hh_l0, ...){why}; "
            f"expected those of an LSTM, GRU or RNN, or recipe= for a cell written by hand (a TOML "
            f"file, or one of {', '.join(built_in_recipes())}). Tensors seen:\n"
            f"{listing(found.tensors.values())}"
        )
    alone = chosen is None
    if chosen is None:
        chosen = [*(given or ()), *_of_one_block(blocks, told, found)]
    if given is not None:
        advice.check_silent(chosen, told, ignored, blocks)
    placement = order.place(
        chosen, blocks, found.tensors, nonlinearity, advice.example(blocks, told, bound=True)
    )
    graph = placement.graph
    recurrent = [node.layer for node in graph.nodes if isinstance(node.layer, spec.RNN)]
    if nonlinearity is not None and not recurrent:
        raise ConvertError(
            f"nonlinearity={nonlinearity!r} was given, but there is no RNN among the layers "
            f"({', '.join(node.layer.kind for node in graph.nodes)}); leave it out"
        )
    of_source = {s.tensor.name for s in placement.sources.values() if isinstance(s.tensor, Tensor)}
    _refuse_ignored(ignored, [name for name in found.tensors if name in of_source])
    unused, counts = advice.check_unused(found.tensors, frozenset(of_source), ignored, blocks, seen)
    try:
        facts = spec.check(graph)
        spec.check_tensors(facts, {name: s.shape for name, s in placement.sources.items()})
    except ValueError as error:
        raise ConvertError(f"the layers make no model: {error}") from None
    tensors = {name: _array(source, dtype) for name, source in placement.sources.items()}

    read_ = [s.tensor for s in placement.sources.values() if isinstance(s.tensor, Tensor)]
    report = [*map(_describe, placement.placed), *conversions((*originals, *read_), dtype)]
    if alone:
        report.append("it is the only block of weights and was taken as the whole model")
    if any(word.kind == "dropout" for word in given or ()):
        report.append("dropout has no effect at inference and was left out")
    report += [*notes, *told.notes, *found.notes]
    if counts:
        report.append(f"not used, counts of training that change no number: {joined(counts)}")
    vocabulary_, note = chosen_vocabulary(vocabulary, strings, graph)
    unverified = _unverified(given, nonlinearity, placement.placed, found, told, source)
    if unused:
        unverified.append(f"not verified: not used, as ignore= allows: {joined(unused)}")
    return Conversion(graph, tensors, (*report, *note, *unverified), vocabulary_)


def _followed(
    source: object,
    found: StateDict,
    ignored: frozenset[str],
    path: str,
    nonlinearity: str | None,
    dtype: str,
    vocabulary: Sequence[str] | None,
    strings: tuple[str, tuple[str, ...]] | None,
    input_size: int | None,
    inputs: Mapping[str, Any],
) -> Conversion:
    """A live module, whose forward tells all."""
    from fastlstm.sources import live  # which only live modules need

    constants, shapes = given_inputs(inputs)
    if constants:
        raise ConvertError(
            f"inputs= gives {next(iter(constants))!r:.200} numbers; of a live module it says the "
            f"shapes of what forward takes, as in (None, None, 80)"
        )
    followed = live.read(source, dtype, path, input_size, shapes)
    made = followed.conversion
    _refuse_ignored(ignored, (f"{path}.{name}" if path else name for name in followed.read))
    _refuse_other(nonlinearity, made.graph)
    chosen, note = chosen_vocabulary(vocabulary, strings, made.graph)
    report = (*made.report, *found.notes, *note)
    return dataclasses.replace(made, report=report, vocabulary=chosen)


def _refuse_other(nonlinearity: str | None, graph: spec.Graph) -> None:
    """Check that RNNs have the nonlinearity they are said to have, and that there is one."""
    if nonlinearity is None:
        return
    found = {n.name: n.layer.nonlinearity for n in graph.nodes if isinstance(n.layer, spec.RNN)}
    for name, own in found.items():
        if nonlinearity != own:
            raise ConvertError(
                f"nonlinearity={nonlinearity!r} was given, but the RNN {name!r} has {own!r}; leave "
                f"nonlinearity= out"
            )
    if not found:
        raise ConvertError(
            f"nonlinearity={nonlinearity!r} was given, but there is no RNN among the layers "
            f"({', '.join(node.layer.kind for node in graph.nodes)}); leave it out"
        )


def _row(given: Sequence[Word] | None) -> tuple[int, ...]:
    """What a step of the input is, if layers= begins with that."""
    first = given[0] if given else None
    return first.parameters["*sizes"] if first is not None and first.kind == "input" else ()


def _of_one_block(blocks: Sequence[Block], told: Told, found: StateDict) -> list[Word]:
    """The word of a model that is one recurrent block and nothing else."""
    kind = blocks[0].choices[0]
    if len(blocks) == 1 and not told.unsaid and kind in ("lstm", "gru", "rnn"):
        return [Word(kind)]
    seen = listing(tensor for block in blocks for tensor in block.tensors.values())
    raise ConvertError(
        f"weights do not tell in which order layers run, nor what lies between them"
        f"{told.unsaid and f' ({told.unsaid})'}; say it with layers=, for example "
        f"{advice.example(blocks, told)}, with relu, tanh, ... wherever forward computes them (a ? "
        f"is to be filled in; docs/layers.md has all words), or convert one part alone with "
        f"prefix=. Weights seen:\n{seen}{advice.beside(found.tensors, blocks)}"
    )


def _unverified(
    given: Sequence[Word] | None,
    nonlinearity: str | None,
    placed: Sequence[Placed],
    found: StateDict,
    told: Told,
    source: object,
) -> list[str]:
    """What was taken on somebody's word, to be read last."""
    lines = [*found.unverified, *told.unverified]
    if given is not None:
        lines.append(
            f"the order of the layers and what lies between them: layers={words.joined(given)!r} "
            f"was taken on your word" + ", and forward was not followed" * module.is_module(source)
        )
    if nonlinearity is not None:
        lines.append(f"nonlinearity={nonlinearity!r} was taken on your word")
    if assumed := list(_assumed(placed)):
        lines.append(f"PyTorch's defaults, of which the source does not tell: {joined(assumed)}")
    if not found.modules and (empty := advice.gaps(placed)):
        lines.append(
            f"what runs at {joined(empty)}, of which no weights are stored: nothing, or what "
            f"layers= says there"
        )
    return [f"not verified: {line}" for line in lines]


def _assumed(placed: Sequence[Placed]) -> Iterable[str]:
    """Parameters that nobody said, and neither weights nor modules tell."""
    for item in placed:
        block = item.weights.block
        if not words.KINDS[item.word.kind].of_each and (
            block is None or item.word.kind in ("lstm", "gru", "rnn")
        ):
            continue
        known = block.known.parameters if block is not None and block.known is not None else {}
        # Sizes tell the groups, and tensors whether a norm is affine.
        said = {*dict(item.word.given), *known, "affine", "groups"}
        left = [f"{n}={v}" for n, v in item.word.parameters.items() if n not in said]
        if left:
            yield f"{', '.join(left)} of {(item.name if block is None else block.path)!r}"


def _open(source: object) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """What a source holds, as a nest of mappings, and notes on it."""
    if module.is_module(source):
        return module.record(source)
    if isinstance(source, Mapping):
        return source, ()
    if isinstance(source, list | tuple) and source and all(hasattr(a, "shape") for a in source):
        return {str(place): item for place, item in enumerate(source)}, ()
    if isinstance(source, str | os.PathLike) and isinstance(os.fspath(source), str):
        return _open_file(os.fspath(source)), ()
    raise TypeError(
        f"source is of type {type(source).__name__}; expected the path of a checkpoint, a "
        f"torch.nn.Module, a mapping of names to arrays or a list of arrays"
    )


def _open_file(path: str) -> Mapping[Any, Any]:
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, foreign.described_directory(path), path)
    with open(path, "rb") as file:
        head = file.read(512)
        size = os.fstat(file.fileno()).st_size
    if foreign.is_safetensors(head, size):
        if is_ours(head):
            raise ConvertError(
                f"{path!r:.500} is a file of fastlstm's own; a model is opened with fastlstm.load"
            )
        tensors = read_tensors(path)
        return {name: StoredTensor(array, dtype) for name, (array, dtype) in tensors.items()}
    saved = read_checkpoint(path)
    if isinstance(saved, list | tuple) and saved:
        return {str(place): item for place, item in enumerate(saved)}
    if not isinstance(saved, Mapping):
        raise ConvertError(
            f"{path!r:.500} holds {described(saved)}; expected a state dict, or a mapping that "
            f"holds one: save module.state_dict()"
        )
    return saved


def _ignored(found: StateDict, patterns: Iterable[str]) -> frozenset[str]:
    ignored: set[str] = set()
    named = (*found.tensors, *found.others, *found.modules)
    for pattern in patterns:
        names = {name for name in named if fnmatchcase(name, pattern)}
        if not names:
            raise ConvertError(
                f"ignore={pattern!r:.200} matches no tensor; expected a pattern of names out of\n"
                + listing(found.tensors.values())
            )
        ignored |= names
    return frozenset(ignored)


def _left_out(found: StateDict, ignored: frozenset[str]) -> frozenset[str]:
    """The paths of modules that ignore= names, or of which it names all tensors."""
    kept = {name.rpartition(".")[0] for name in found.tensors if name not in ignored}
    paths = {name.rpartition(".")[0] for name in ignored & found.tensors.keys()}
    return frozenset((paths - kept) | (ignored & found.modules.keys()))


def _refuse_ignored(ignored: frozenset[str], used: Iterable[str]) -> None:
    """Check that no tensor that a layer is made of may stay unused."""
    for name in used:
        if name in ignored:
            raise ConvertError(
                f"ignore= matches {name!r:.200}, which a layer is made of; expected patterns of "
                f"unused tensors only, or of all the tensors of a layer"
            )


def _array(source: Source, dtype: str) -> npt.NDArray[Any]:
    if isinstance(source.tensor, Tensor):
        return to_array(source.tensor, dtype).reshape(source.shape)
    return np.full(source.shape, source.tensor, dtype)


def _describe(item: Placed) -> str:
    """What a word became."""
    layers = ", ".join(_layer(node.layer) for node in item.nodes[-8:])
    more = f"{len(item.nodes) - 8} more, " if len(item.nodes) > 8 else ""
    text = f"layer {item.name!r}: {more}{layers}"
    block, tensor = item.weights.block, item.weights.tensor
    if tensor is not None:
        return f"{text}, from {tensor.name!r:.200}"
    if block is None:
        return text
    renamed = []
    for suffix, own in block.tensors.items():
        last = own.name.rpartition(".")[2]
        renamed.append(last if last == suffix else f"{last} (now {suffix})")
    where = f"{block.path!r}: " if block.path else ""
    return f"{text}, from {where}{joined(renamed)}"


def _layer(layer: spec.Layer) -> str:
    if isinstance(layer, spec.Index):  # whose runs may be many
        return f"index(shape={list(layer.shape)})"
    return layer.describe()


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
