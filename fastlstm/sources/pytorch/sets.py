"""Several sets of the same weights: the trained ones, and averages of them, side by side.

Training keeps averages of weights under a prefix of their own, or as a list in the order of the
model's parameters. Nothing tells which of them is meant, and one may not stand upon the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fastlstm.errors import ConvertError

__all__ = ["STATISTICS", "in_order", "refuse_several"]

Path = tuple[str, ...]
Shape = tuple[int, ...]

# What averages and slow copies of weights are called.
_AVERAGES = re.compile(
    r"(?:.*[_.\-])?(?:ema|avg|averaged?|shadow|swa|teacher|momentum|target|slow)(?:[_.\-\d].*)?",
    re.IGNORECASE,
)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def refuse_several(
    chosen: Mapping[Path, Shape], beside: Mapping[Path, Shape], wrapper: Path
) -> None:
    """Ask which set of weights is meant, where there are several.

    Parameters
    ----------
    chosen : mapping of path to shape
        The tensors that the model would be made of, in file order, below `wrapper`.
    beside : mapping of path to shape
        All others.
    wrapper : path

    Raises
    ------
    ConvertError
        Naming them.
    """
    names = {".".join(path): shape for path, shape in chosen.items()}
    sets = _twins(names)
    where = ".".join(wrapper)
    if sets:
        sets = [f"{where}.{name}".removeprefix(".") for name in sets]
    else:
        lists: dict[Path, list[Shape]] = {}
        for path, shape in beside.items():
            if path[-1].isdigit():
                lists.setdefault(path[:-1], []).append(shape)
        same = [".".join(p) for p, shapes in lists.items() if p and in_order(names, shapes)]
        sets = [where, *same] if same else []
    if sets:
        said = " or ".join(f"prefix={name!r:.200}" for name in sets)
        raise ConvertError(
            f"there are {len(sets)} sets of the same weights: {', '.join(map(repr, sets))}, such "
            f"as the trained ones and averages of them; expected one: choose it with {said}"
        )


def in_order(names: Mapping[str, Shape], shapes: Sequence[Shape]) -> list[str]:
    """The names that a list of tensors has, if it holds a model's parameters in order, else [].

    Parameters
    ----------
    names : mapping of str to shape
        Of the model's tensors, in file order.
    shapes : sequence of shape
        Of the list.
    """
    parameters = [n for n in names if n.rpartition(".")[2] not in STATISTICS]
    return parameters if parameters and [names[n] for n in parameters] == list(shapes) else []


def _twins(names: Mapping[str, Shape]) -> list[str]:
    """The prefixes of sets that have the same names and shapes, one of them called averages."""
    split = {tuple(name.split(".")): shape for name, shape in names.items()}
    depth = 0
    while len({path[: depth + 1] for path in split if len(path) > depth + 1}) == 1:
        depth += 1
    heads: dict[Path, dict[str, Shape]] = {}
    for path, shape in split.items():
        if len(path) > depth + 1 and not path[-1].endswith(STATISTICS):
            # Some averages are kept without the dots in their names.
            heads.setdefault(path[: depth + 1], {})["".join(path[depth + 1 :])] = shape
    alike: dict[frozenset[tuple[str, Shape]], list[Path]] = {}
    for head, own in heads.items():
        alike.setdefault(frozenset(own.items()), []).append(head)
    for same in alike.values():
        if len(same) > 1 and any(_AVERAGES.fullmatch(head[-1]) for head in same):
            return [".".join(head) for head in same]
    return []
