"""From words and blocks to a graph: in which order the layers run, and what they are called.

Weights do not tell the order. It is taken from the words of ``layers=``, or of a module that tells
it, and which weights are whose only where the sizes leave one way.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Block
from fastlstm.sources.pytorch.blocks import at as at_
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.making import MisfitError, Source, Value, Weights
from fastlstm.sources.pytorch.program import State, advanced
from fastlstm.sources.pytorch.state_dict import Tensor, listing
from fastlstm.sources.pytorch.words import BRANCHES, OPEN, Word, joined, parse, shown

__all__ = ["Placed", "Placement", "Word", "place"]

INPUT, OUTPUT = "input", "output"

MAX_WORDS = 4096  # a graph has no more layers

# Ways of placing blocks that are tried before asking for explicit bindings.
MAX_TRIALS = 20_000


@dataclass(frozen=True, slots=True)
class Placed:
    """A word of the model: what it is called, what it made, and of which weights."""

    word: Word
    name: str
    nodes: tuple[spec.Node, ...]
    weights: Weights


@dataclass(frozen=True, slots=True)
class Placement:
    """A graph, the sources of its tensors by full name, and what each word became."""

    graph: spec.Graph
    sources: dict[str, Source]
    placed: tuple[Placed, ...]


def place(
    words: Sequence[Word],
    blocks: Sequence[Block],
    tensors: Mapping[str, Tensor],
    nonlinearity: str | None,
    example: str,
) -> Placement:
    """Run the words in their order, each with weights of its own.

    Parameters
    ----------
    words : sequence of Word
        What the user or the module says.
    blocks : sequence of Block
        In file order.
    tensors : mapping of str to Tensor
        All there are, by name, of which a word may take one.
    nonlinearity : str or None
        Of RNNs of which nothing else tells.
    example : str
        Words of these blocks, bound to their paths, for messages.

    Raises
    ------
    ConvertError
        If the words fit the weights in no way or in more than one.
    """
    if len(words) > MAX_WORDS:
        raise ConvertError(f"there are {len(words)} layers; at most {MAX_WORDS} are supported")
    if not any(KINDS[word.kind].weights for word in words if word.is_word):
        raise ConvertError(f"layers={joined(words)!r:.1000} names no layer with weights")
    search = _Search(words, blocks, tensors, nonlinearity)
    fits = search.fits()
    if len(fits) == 1:
        return _named(words, *fits[0], nonlinearity)
    seen = listing(tensor for block in blocks for tensor in block.tensors.values())
    if fits:
        raise ConvertError(
            f"layers={joined(words)!r:.1000} fits these weights in more than one way; bind each "
            f"word to its path, for example {example}. Weights seen:\n{seen}"
        )
    raise ConvertError(
        f"layers={joined(words)!r:.1000} does not fit these weights: {search.misfit}"
        f"{_in_file_order(words, example)}. Weights seen:\n{seen}"
    )


def _in_file_order(words: Sequence[Word], example: str) -> str:
    """What the words may be, if that is not what they are."""
    try:
        own = [word.kind for word in parse(example.partition('"')[2].rpartition('"')[0])]
    except ConvertError:  # it has a "?" to be filled in
        own = []
    same = own == [word.kind for word in words]
    return "" if same else f". In file order they may be {example}"


class _Fit(NamedTuple):
    """A way that fits: the row of the input, and the weights of each word."""

    row: spec.Row
    weights: tuple[Weights, ...]


class _Search:
    """All ways of giving each word weights of its own, of its kind, so that rows fit."""

    def __init__(
        self,
        words: Sequence[Word],
        blocks: Sequence[Block],
        tensors: Mapping[str, Tensor],
        nonlinearity: str | None,
    ) -> None:
        self.words, self.blocks, self.nonlinearity = words, blocks, nonlinearity
        self.bound = [_bound(word, blocks, tensors) for word in words]
        taken = {w.block.path for w in self.bound if w.block is not None}
        self.free = [block for block in blocks if block.path not in taken]
        self.misfit = "none of them takes an input"
        self.furthest = -1

    def fits(self) -> list[_Fit]:
        """At most two of them."""
        fits: list[_Fit] = []
        ways: list[tuple[spec.Row, tuple[Weights, ...], State]] = [
            (row, (), State((Value(INPUT, row),))) for row in dict.fromkeys(self.rows())
        ]
        for _ in range(MAX_TRIALS):
            if not ways or len(fits) > 1:
                return fits
            row, weights, state = ways.pop()
            at = len(weights)
            if at == len(self.words):
                fits.append(_Fit(row, weights))
                continue
            tried = False
            for choice in reversed(list(self.choices(at, weights))):
                tried = True
                try:
                    behind = advanced(state, self.words[at], str(at), choice, self.nonlinearity)
                except MisfitError as error:
                    self.missed(at, f"{self.described(at, choice)}: {error}")
                else:
                    ways.append((row, (*weights, choice), behind))
            if not tried:
                self.missed(at, f"none of them is left that can be {str(self.words[at])!r}")
        raise ConvertError(
            "too many orders of the layers would have to be tried; bind each word of layers= to "
            "its path, as in layers='lstm:encoder.rnn, linear:fc'"
        )

    def missed(self, at: int, why: str) -> None:
        if at > self.furthest:
            self.furthest, self.misfit = at, why

    def described(self, at: int, weights: Weights) -> str:
        word = self.words[at]
        return f"the {word.kind} {at_(weights.block.path)}" if weights.block else shown([word])

    def choices(self, at: int, before: Sequence[Weights]) -> Iterator[Weights]:
        """What the word at a place may be bound to."""
        word, bound = self.words[at], self.bound[at]
        if not _takes_block(word):
            yield bound
        elif bound.block is not None:
            if word.kind in bound.block.choices:
                yield bound
        else:
            used = {weights.block.path for weights in before if weights.block is not None}
            for block in self.free:
                if word.kind in block.choices and block.path not in used:
                    yield Weights(block)

    def rows(self) -> Iterator[spec.Row]:
        """What a step of the input may be, as the first layer that tells has it."""
        tokens = False
        for at, word in enumerate(self.words):
            if word.kind == "input":
                yield spec.Row(dict(word.given)["*sizes"])
                return
            if word.kind == "one_hot":
                tokens = True
                size = word.parameters["size"]
                if isinstance(size, int):
                    yield spec.Row((), size)
                    return
            elif _takes_block(word):
                yield from self.rows_of(at, tokens)
                return
            elif word.kind != OPEN and not (word.is_word and _keeps_axes(word)):
                break
        raise ConvertError(
            f"layers={joined(self.words)!r:.1000} does not tell what a step of the input is; begin "
            f"it with input(...): input(40) for 40 features, input(1, 80, 80) for 1 channel of 80 "
            f"x 80"
        )

    def rows_of(self, at: int, tokens: bool) -> Iterator[spec.Row]:
        """Rows that the word at a place may take, if those before it leave them as they are."""
        word = self.words[at]
        choices = list(self.choices(at, ()))
        if not choices:
            self.missed(at, f"none of them can be {str(word)!r}")
        for choice in choices:
            block = choice.block
            layer = block.layer(word.kind) if block is not None else None
            shape = getattr(layer, "input_shape", None)
            if isinstance(layer, spec.Convolution) and shape is not None:
                known = block.known.parameters if block is not None and block.known else {}
                groups = dict(word.given).get("groups", known.get("groups", 1))
                if not layer.transposed and isinstance(groups, int):
                    shape = (layer.in_channels * groups,)
            if shape is None:
                raise ConvertError(
                    f"layers= has {word.kind} before any layer that tells what a step of the input "
                    f"is; begin it with input(...): input(1, 80, 80) for 1 channel of 80 x 80"
                )
            given = getattr(layer, "input_tokens", 0)
            if tokens and len(shape) == 1 and not given:
                yield spec.Row((), shape[0])
            else:
                yield spec.Row(tuple(shape), given)


def _takes_block(word: Word) -> bool:
    """Whether a word takes the tensors of a layer."""
    if not word.is_word or KINDS[word.kind].weights != "layer":
        return False
    if "affine" in dict(word.given):
        return bool(dict(word.given)["affine"])
    return word.path is not None or word.parameters.get("affine") is not False


def _keeps_axes(word: Word) -> bool:
    """Whether a row has the same axes before a word that needs no others."""
    kind = KINDS[word.kind]
    return kind.of_each or kind.weights == "tensor" or word.kind in _KEEPING


_KEEPING = ("dropout", "identity", "softmax", "log_softmax")


def _bound(word: Word, blocks: Sequence[Block], tensors: Mapping[str, Tensor]) -> Weights:
    """What a word is bound to by its path, or by the only one that ends with it."""
    path, of_tensor = word.path, word.is_word and KINDS[word.kind].weights == "tensor"
    if path is None or not (of_tensor or _takes_block(word)):
        return Weights()
    if of_tensor:
        names = [name for name in tensors if name == path] or [
            name for name in tensors if path and name.endswith(f".{path}")
        ]
        if len(names) != 1:
            raise _unbound("tensor{s}", path, names, list(tensors))
        return Weights(tensor=tensors[names[0]])
    exact = [block for block in blocks if block.path == path]
    ending = [block for block in blocks if path and block.path.endswith(f".{path}")]
    if len(exact or ending) != 1:
        raise _unbound(
            "block{s} of weights", path, [b.path for b in ending], [b.path for b in blocks]
        )
    return Weights((exact or ending)[0])


def _unbound(what: str, path: str, found: Sequence[str], there: Sequence[str]) -> ConvertError:
    shown = found or difflib.get_close_matches(path, there, 5, 0.4) or list(there)[:20]
    is_there = f"are {len(found)} " if found else "is no "
    return ConvertError(
        f"layers= binds a word to {path!r:.100}, where there {is_there}"
        f"{what.format(s='s' * bool(found))}; expected one of "
        + ", ".join(repr(name)[:100] for name in shown[:20])
    )


def _named(
    words: Sequence[Word], row: spec.Row, weights: Sequence[Weights], nonlinearity: str | None
) -> Placement:
    """The graph, every layer by its name."""
    names = _names(words, weights)
    state = State((Value(INPUT, row),))
    layers: dict[str, str] = {}  # path of each block -> the layer that has its tensors
    placed = []
    for word, name, bound in zip(words, names, weights, strict=True):
        if (block := bound.block) is not None:
            bound = bound._replace(shared=layers.get(block.path, ""))
            layers.setdefault(block.path, name)
        before = len(state.made)
        state = advanced(state, word, name, bound, nonlinearity)
        if len(state.made) > before and state.made[-1].nodes:
            placed.append(Placed(word, name, state.made[-1].nodes, bound))
    sources: dict[str, Source] = {}
    for made in state.made:
        for full, source in made.sources.items():
            if sources.setdefault(full, source) != source:
                raise ConvertError(
                    f"two tensors of the model would be called {full!r:.200}; expected names that "
                    f"differ: give the source's tensors as a mapping under other names"
                )
    ends = [value.name for value in state.values]
    if len({*ends}) < len(ends) or INPUT in ends:
        raise ConvertError(
            f"layers={joined(words)!r:.1000} gives {', '.join(map(repr, ends))}; expected each "
            f"branch at the end to hold a layer of its own, since each is an output"
        )
    outputs = {OUTPUT: ends[0]} if len(ends) == 1 else {name: name for name in ends}
    graph = spec.Graph(
        (spec.Input(INPUT, row.shape, tokens=row.tokens),),
        tuple(node for made in state.made for node in made.nodes),
        outputs,
    )
    return Placement(graph, sources, tuple(placed))


def _names(words: Sequence[Word], weights: Sequence[Weights]) -> list[str]:
    """A name for each word: its path without what all paths share, else its kind; unique."""
    paths = [
        weight.block.path if weight.block else None if weight.tensor else word.path
        for word, weight in zip(words, weights, strict=True)
    ]
    # "module" and "_orig_mod" are what DataParallel and torch.compile put into every path.
    parts = [
        [part for part in (path or "").split(".") if part not in ("", "module", "_orig_mod")]
        for path in paths
    ]
    inner = [part[:-1] for part, path in zip(parts, paths, strict=True) if path is not None]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*inner, strict=False))
    shared = len(list(same))
    names = {INPUT: None}
    made = []
    for part, word in zip(parts, words, strict=True):
        if word.kind in (*BRANCHES, "dropout", "identity", "input"):
            made.append("")  # they make no layer
            continue
        name = re.sub(r"[^A-Za-z0-9_.\-]", "_", ".".join(part[shared:])).lstrip(".-")[:180]
        unique, number = name or word.kind, 1
        while unique in names:
            number += 1
            unique = f"{name or word.kind}_{number}"
        names[unique] = None
        made.append(unique)
    return made
