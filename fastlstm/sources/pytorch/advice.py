"""What a user should say next: words for weights, and what is left out that may not be.

Nothing here proposes to leave out what a model computes with: ``ignore=`` is named only for what
cannot change a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Block
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.module import Silent, Told
from fastlstm.sources.pytorch.order import Placed
from fastlstm.sources.pytorch.state_dict import Tensor, listing
from fastlstm.sources.pytorch.words import Word, joined, shown

__all__ = ["beside", "check_silent", "check_unused", "example", "gaps"]

MOST = 20  # words of an example, and lines of a list

# What must be said of a kernel or a norm, since its weights and PyTorch's defaults do not tell.
_ASKED = {
    "conv": ("stride", "padding"),
    "group_norm": ("num_groups",),
    "rms_norm": ("eps",),
}
# Between two of these there is nearly always a function: two matrices in a row are one.
_MATRICES = ("linear", "conv1d", "conv2d", "conv3d")


def example(blocks: Sequence[Block], told: Told, bound: bool = False) -> str:
    """Words for the blocks in file order, and for what a module holds between them.

    What neither weights nor modules tell is ``?``, to be filled in.
    """
    silent = {one.path: one for one in told.silent}
    by_path = {block.path: block for block in blocks}
    there = (path for path in told.known if path in by_path or path in silent)
    paths = list(dict.fromkeys((*there, *by_path) if silent else by_path))
    words: list[Word] = []
    for path in paths[: MOST + 1]:
        if path in silent:
            words += silent[path].words
            continue
        word = _word(by_path[path], not words, bound or bool(silent))
        before = words[-1].kind if words else ""
        if before.startswith("conv") or (before in _MATRICES and word.kind in _MATRICES):
            words.append(Word("?"))
        words.append(word)
    more = ", ..." if len(paths) > MOST else ""
    return f'layers="{shown(words[: 2 * MOST])}{more}"'


def _word(block: Block, first: bool, bound: bool) -> Word:
    kinds = [kind for kind in block.choices if kind in KINDS]
    kind = "embedding" if "embedding" in kinds and first else kinds[0]
    if kind == "layer_norm" and len(kinds) > 1:
        return Word("?", block.path)  # or another norm, or a PReLU
    known = block.known.parameters if block.known is not None else {}
    asked = next((names for word, names in _ASKED.items() if kind.startswith(word)), ())
    given = tuple((name, "?") for name in asked if name not in known)
    return Word(kind, block.path if bound else None, given)


def check_silent(
    words: Sequence[Word], told: Told, ignored: frozenset[str], blocks: Sequence[Block]
) -> None:
    """Check that words leave out nothing that a module holds and computes.

    Raises
    ------
    ConvertError
        Naming what is left out, and the words that would have it.
    """
    left: dict[str, list[Word]] = {}
    for word in words:
        left.setdefault(word.kind, []).append(word)
    missing: list[Silent] = []
    for one in told.silent:
        if one.path in ignored or not one.checked:
            continue
        for own in one.words:
            alike = left.get(own.kind, [])
            match = next((word for word in alike if _agrees(word, own)), None)
            if match is None:
                missing.append(one)
                break
            alike.remove(match)
        if len(missing) == MOST:
            break
    if missing:
        lines = "\n".join(f"  {one.called}: {shown(one.words)}" for one in missing)
        raise ConvertError(
            f"layers={joined(words)!r:.300} leaves out what the module holds:\n{lines}\nSay where "
            f"it runs, for example {example(blocks, told)}; only one that forward never runs is "
            f"named in ignore="
        )


def _agrees(word: Word, own: Word) -> bool:
    """Whether a word of its kind is that of a module, as far as the file keeps its settings."""
    said, wanted = word.parameters, own.parameters
    return all(
        wanted[name] in ("?", said[name]) for name in wanted if name != "dim" and name in said
    )


def check_unused(
    tensors: Mapping[str, Tensor],
    used: frozenset[str],
    ignored: frozenset[str],
    blocks: Sequence[Block],
    seen: int,
) -> tuple[list[str], list[str]]:
    """The tensors that no layer uses: those that `ignored` allows, and those that change nothing.

    Raises
    ------
    ConvertError
        If there are others, saying of each what it may be.
    """
    unused = [name for name in tensors if name not in used]
    allowed = [name for name in unused if name in ignored]
    paths = {name.rpartition(".")[0] for name in used}
    counts = [
        name
        for name in unused
        if name not in ignored
        and name.rpartition(".")[2] == "num_batches_tracked"
        and name.rpartition(".")[0] in paths
    ]
    refused = {name: tensors[name] for name in unused if name not in {*allowed, *counts}}
    if refused:
        lines = "\n".join(itertools.islice(_uses(refused, blocks), MOST))
        raise ConvertError(
            f"no layer uses {len(refused)} of the {seen} tensors; what forward computes "
            f"with them is missing:\n{lines}\nSay in layers= where each runs; what gives another "
            f"output is a branch at the end, '[linear:a | linear:b]'. Not used:\n"
            f"{listing(refused.values())}"
        )
    return allowed, counts


def _uses(refused: Mapping[str, Tensor], blocks: Sequence[Block]) -> Iterator[str]:
    """Of each tensor, or of each block of them, what it may be."""
    by_path = {block.path: block for block in blocks}
    seen: set[str] = set()
    for name, tensor in refused.items():
        path, _, suffix = name.rpartition(".")
        block, shown = by_path.get(path), ascii(name)[1:-1][:120]
        whole = block is not None and any(t.name == name for t in block.tensors.values())
        if block is not None and (whole or suffix == "num_batches_tracked"):
            if path not in seen:
                seen.add(path)
                at = ascii(path)[1:-1][:120]
                kinds = [f"{kind}:{at}" for kind in block.choices if kind in KINDS]
                yield f"  {path!r:.120}: {' or '.join(kinds)}"
        elif not tensor.dtype.startswith(("float", "bfloat")):
            counter = all(n == 1 for n in tensor.shape)
            what = f"a count, which ignore={name!r:.120} allows" if counter else "no word takes it"
            yield f"  {name!r:.120}: {tensor.dtype}: {what}"
        elif sum(n > 1 for n in tensor.shape) > 1:
            yield f"  {name!r:.120}: a matrix under a name that recipe= gives a meaning"
        else:
            yield (
                f"  {name!r:.120}: a tensor of its own, as a scale, an offset, a mean or a "
                f"deviation: multiply:{shown}, divide:{shown}, add:{shown} or subtract:{shown}; or "
                f"what a recurrence starts from: initial_state of a recipe"
            )


def beside(tensors: Mapping[str, Tensor], blocks: Sequence[Block]) -> str:
    """What the tensors may be that are part of no block, for a message; "" if there are none."""
    own = {tensor.name for block in blocks for tensor in block.tensors.values()}
    own |= {f"{block.path}.num_batches_tracked" for block in blocks}
    others = {name: tensor for name, tensor in tensors.items() if name not in own}
    if not others:
        return ""
    return "\nBeside them:\n" + "\n".join(itertools.islice(_uses(others, blocks), MOST))


def gaps(placed: Iterable[Placed]) -> list[str]:
    """Paths of a Sequential between those of layers, of which nothing is stored."""
    children: dict[str, set[int]] = {}
    for item in placed:
        if item.weights.block is not None:
            parts = item.weights.block.path.split(".")
            for at, part in enumerate(parts):
                if part.isdigit() and len(part) < 5:
                    children.setdefault(".".join(parts[:at]), set()).add(int(part))
    return [
        f"{path}.{n}".removeprefix(".")
        for path, numbers in children.items()
        for n in range(min(numbers) + 1, max(numbers))
        if n not in numbers
    ]
