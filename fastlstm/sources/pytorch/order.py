"""From blocks to a model: in which order the layers run, what lies between, and their names.

Weights do not tell that. It is taken from the words of ``layers=``, or of a module that tells it,
and only where the sizes of the blocks leave one way.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Block, at
from fastlstm.sources.pytorch.state_dict import listing

__all__ = ["Placed", "Word", "joined", "merge", "parse", "place"]

WEIGHTED = ("embedding", "lstm", "gru", "rnn", "linear")
WORDS = ("one_hot", *WEIGHTED, *spec.ACTIVATIONS, "dropout")

# Ways of placing blocks that are tried before asking for explicit bindings.
MAX_TRIALS = 20_000


@dataclass(frozen=True, slots=True)
class Word:
    """One word of ``layers=``: a kind, and the path it is bound to if it is (``kind:path``)."""

    kind: str
    path: str | None = None

    def __str__(self) -> str:
        return self.kind if self.path is None else f"{self.kind}:{self.path}"


@dataclass(frozen=True, slots=True)
class Placed:
    """A layer of the model, and the block it is made of if it has weights."""

    layer: spec.Layer
    block: Block | None


def parse(layers: str | Sequence[str]) -> list[Word]:
    """Read the words of ``layers=``.

    Raises
    ------
    ConvertError
        If a word is unknown, or one without weights is bound to a path.
    """
    words = []
    for text in layers.split(",") if isinstance(layers, str) else layers:
        kind, colon, path = (part.strip() for part in text.partition(":"))
        if kind.lower() not in WORDS:
            raise ConvertError(
                f"layers= holds {text.strip()!r:.100}; expected words out of {', '.join(WORDS)}, "
                f"those with weights optionally as word:path"
            )
        if colon and kind.lower() not in WEIGHTED:
            raise ConvertError(
                f"layers= binds {text.strip()!r:.100} to a path, but {kind.lower()} has no "
                f"weights; expected {kind.lower()!r} alone"
            )
        words.append(Word(kind.lower(), path if colon else None))
    return words


def merge(given: Sequence[Word], own: Sequence[Word]) -> list[Word]:
    """Words given for a source whose own words are known: they may add to them, no more.

    Raises
    ------
    ConvertError
        If a word of the source's own is missing, out of order or bound elsewhere.
    """
    left = [word for word in own if word.kind != "dropout"]
    merged = []
    for word in given:
        if left and word.kind == left[0].kind and word.path in (None, left[0].path):
            word = left.pop(0)
        merged.append(word)
    if left:
        raise ConvertError(
            f"layers={joined(given)!r} leaves out {str(left[0])!r} of the source, which runs "
            f"{joined(own)!r}; leave layers= out, or add to these"
        )
    return merged


def joined(words: Iterable[Word]) -> str:
    """Words as ``layers=`` takes them."""
    return ", ".join(map(str, words))


def _suggestion(blocks: Sequence[Block], bound: bool = False) -> str:
    """Words for the blocks in file order, to be pasted and corrected."""
    words = []
    for position, block in enumerate(blocks[:20]):
        kinds = [layer.kind for layer in block.choices]
        kind = "embedding" if "embedding" in kinds and position == 0 else kinds[0]
        words.append(Word(kind, block.path if bound else None))
    return f'layers="{joined(words)}"' + (", ..." if len(blocks) > 20 else "")


def place(words: Sequence[Word] | None, blocks: Sequence[Block], unsaid: str = "") -> list[Placed]:
    """Put the blocks in the order of the words, and give every layer its name.

    Parameters
    ----------
    words : sequence of Word, or None
        What the user or the module says; None for a model that is one recurrent block.
    blocks : sequence of Block
        In file order.
    unsaid : str
        Why a single block is not the whole model either, if that is known.

    Raises
    ------
    ConvertError
        If the words fit the blocks in no way or in more than one, or there are no words and the
        blocks are not one recurrent block alone.
    """
    seen = listing(tensor for block in blocks for tensor in block.tensors.values())
    if words is None:
        if len(blocks) != 1 or unsaid or not isinstance(blocks[0].choices[0], spec.Recurrent):
            raise ConvertError(
                f"weights do not tell in which order layers run, nor what lies between them"
                f"{unsaid and f' ({unsaid})'}; say it with layers=, for example "
                f"{_suggestion(blocks)}, adding relu, tanh, ... where they belong (words: "
                f"{', '.join(WORDS)}), or take one part with prefix=. Weights seen:\n{seen}"
            )
        words = [Word(blocks[0].choices[0].kind)]
    weighted = [word for word in words if word.kind in WEIGHTED]
    if not weighted:
        raise ConvertError(f"layers={joined(words)!r} names no layer with weights")
    candidates = _candidates(weighted, blocks)
    fits = _fits(weighted, candidates)
    if len(fits) > 1:
        raise ConvertError(
            f"layers={joined(words)!r} fits these weights in more than one way; bind each word to "
            f"its path, for example {_suggestion(blocks, bound=True)}. Weights seen:\n{seen}"
        )
    if not fits:
        raise ConvertError(
            f"layers={joined(words)!r} does not fit these weights: "
            f"{_misfit(weighted, candidates)}. In file order they may be "
            f"{_suggestion(blocks, bound=True)}. Weights seen:\n{seen}"
        )
    return _named(words, fits[0])


def _candidates(words: Sequence[Word], blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks each word may stand for: the one it is bound to, else those bound to no word."""
    bound = [None if word.path is None else _bound(word.path, blocks) for word in words]
    taken = [block.path for block in bound if block is not None]
    twice = next((path for path in taken if taken.count(path) > 1), None)
    if twice is not None:
        raise ConvertError(
            f"layers= binds two words to {twice!r:.100}; expected a path of its own for each"
        )
    free = [block for block in blocks if block.path not in taken]
    return [free if block is None else [block] for block in bound]


def _bound(path: str, blocks: Sequence[Block]) -> Block:
    """The block at a path, or the only one whose path ends with it."""
    exact = [block for block in blocks if block.path == path]
    ending = [block for block in blocks if path and block.path.endswith(f".{path}")]
    if len(exact or ending) != 1:
        raise ConvertError(
            f"layers= binds a word to {path!r:.100}, where there {'are' if ending else 'is'} "
            f"{len(ending) or 'no'} block{'s' * bool(ending)} of weights; expected one of "
            + ", ".join(repr(block.path)[:100] for block in blocks[:20])
        )
    return (exact or ending)[0]


_Bound = tuple[Block, spec.Layer]


def _fits(words: Sequence[Word], candidates: Sequence[Sequence[Block]]) -> list[tuple[_Bound, ...]]:
    """At most two ways of giving each word a block of its own, of its kind, so that sizes chain."""
    fits: list[tuple[_Bound, ...]] = []
    open_ends: list[tuple[_Bound, ...]] = [()]
    for _ in range(MAX_TRIALS):
        if not open_ends or len(fits) > 1:
            return fits
        way = open_ends.pop()
        if len(way) == len(words):
            fits.append(way)
            continue
        used = {block.path for block, _ in way}
        open_ends += [
            (*way, (block, layer))
            for block in reversed(candidates[len(way)])
            if block.path not in used
            for layer in block.choices
            if layer.kind == words[len(way)].kind
            and (not way or way[-1][1].output_size == layer.input_size)
        ]
    raise ConvertError(
        "too many orders of the layers would have to be tried; bind each word of layers= to its "
        "path, as in layers='lstm:encoder.rnn, linear:fc'"
    )


def _misfit(words: Sequence[Word], candidates: Sequence[Sequence[Block]]) -> str:
    """Why the words fit in no way: where taking the blocks in file order first fails."""
    used: list[str] = []
    size = None
    for word, blocks in zip(words, candidates, strict=True):
        free = ((b, c) for b in blocks if b.path not in used for c in b.choices)
        block, layer = next(((b, c) for b, c in free if c.kind == word.kind), (None, None))
        if block is None or layer is None:
            return f"none of them is left that can be {str(word)!r}"
        if size is not None and layer.input_size != size:
            return (
                f"the {word.kind} {at(block.path)} takes {layer.input_size} features, but the "
                f"layer before it gives {size}"
            )
        used.append(block.path)
        size = layer.output_size
    raise AssertionError("the blocks do fit in file order")


def _named(words: Sequence[Word], fit: Sequence[_Bound]) -> list[Placed]:
    """The layers in order, those without weights sized by their neighbours, all named."""
    bound = iter(fit)
    size = fit[0][1].input_size
    placed: list[Placed] = []
    paths: list[str | None] = []
    for word in words:
        if word.kind == "dropout":
            continue
        block, layer = None, None
        if word.kind in WEIGHTED:
            block, layer = next(bound)
        elif word.kind == "one_hot":
            layer = spec.OneHot("block", size)
        else:
            layer = spec.Activation("block", word.kind, size)
        placed.append(Placed(layer, block))
        paths.append(block.path if block else word.path)
        size = layer.output_size
    kinds = [word.kind for word in words if word.kind != "dropout"]
    return [
        dataclasses.replace(item, layer=dataclasses.replace(item.layer, name=name))
        for item, name in zip(placed, _names(paths, kinds), strict=True)
    ]


def _names(paths: Sequence[str | None], kinds: Sequence[str]) -> list[str]:
    """A name for each layer: its path without what all paths share, else its kind; unique."""
    # "module" and "_orig_mod" are what DataParallel and torch.compile put into every path.
    parts = [
        [part for part in (path or "").split(".") if part not in ("", "module", "_orig_mod")]
        for path in paths
    ]
    inner = [part[:-1] for part, path in zip(parts, paths, strict=True) if path is not None]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*inner, strict=False))
    shared = len(list(same))
    names: dict[str, None] = {}
    for part, kind in zip(parts, kinds, strict=True):
        name = re.sub(r"[^A-Za-z0-9_.\-]", "_", ".".join(part[shared:])).lstrip(".-")[:180] or kind
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names[unique] = None
    return list(names)
