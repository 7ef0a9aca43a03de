"""Weights that are not stored but computed from others that are, by name.

Weight norm keeps a length g and a direction v (https://arxiv.org/abs/1602.07868), spectral norm
divides by the largest singular value, which u and v tell (https://arxiv.org/abs/1802.05957),
pruning multiplies by a mask, and weight drop (https://arxiv.org/abs/1708.02182) keeps the weight
itself as raw, and beside it a copy of which some numbers are dropped. The names are those of
torch.nn.utils and torch.nn.utils.parametrizations, and of the AWD-LSTM.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.state_dict import StateDict, Tensor, to_array

__all__ = ["computed"]

Array = npt.NDArray[Any]

_WEIGHT = r"(?P<weight>(?:weight|bias)(?:_ih|_hh|_hr)?(?:_l\d{1,4})?(?:_reverse)?)"
# Every tensor that is one part of a weight, and which part.
_PART = re.compile(
    rf"(?P<path>(?:.*\.)?)(?:{_WEIGHT}_(?P<old>g|v|u|orig|mask|raw)"
    r"|parametrizations\.(?P<name>[^.]+)\.(?P<new>.+))"
)
_OF_NEW = {"original0": "g", "original1": "v", "original": "orig", "0._u": "u", "0._v": "v"}


def computed(found: StateDict, ignored: frozenset[str]) -> StateDict:
    """The tensors, with each weight in the place of what it is computed from.

    Parameters
    ----------
    found : StateDict
    ignored : frozenset of str
        Names that no layer may use.

    Raises
    ------
    ConvertError
        If parts are missing or do not fit, or are of something else.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.tensors.items():
        match = _PART.fullmatch(name)
        if match is not None and not _is_left_out(match["path"], found, ignored):
            weight, part = _place(match)
            if part in parts.setdefault(weight, {}):
                raise _unknown(name)
            parts[weight][part] = tensor
    if not parts:
        return found
    made: dict[str, Tensor] = {}
    becomes: dict[str, str] = {}  # name of each part, and of each copy -> the weight in its place
    notes = []
    for weight, own in parts.items():
        tensor, how = _weight(weight, own, found.tensors)
        made[tensor.name] = tensor
        notes.append(f"{tensor.name!r:.200} {how}")
        becomes |= dict.fromkeys((tensor.name, *(part.name for part in own.values())), tensor.name)
        if wrong := [part.name for part in own.values() if part.name in ignored]:
            raise ConvertError(
                f"ignore= matches {wrong[0]!r:.200}, which {tensor.name!r:.200} is computed from; "
                f"expected patterns of unused tensors only"
            )
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.tensors.items():
        full = becomes.get(name, name)
        tensors.setdefault(full, made.get(full, tensor))
    return dataclasses.replace(found, tensors=tensors, notes=(*found.notes, *notes))


def _is_left_out(path: str, found: StateDict, ignored: frozenset[str]) -> bool:
    """Whether all tensors below a path are named in ignore=."""
    return all(name in ignored for name in found.tensors if name.startswith(path))


def _place(match: re.Match[str]) -> tuple[str, str]:
    """The weight that a tensor is a part of, and the part."""
    if match["old"] is not None:
        return match["path"] + match["weight"], match["old"]
    return match["path"] + match["name"], _OF_NEW.get(match["new"], match["new"])


def _weight(
    name: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[Tensor, str]:
    """What a weight is, of its parts, and what was done."""
    if own.keys() == {"raw"}:
        return _dropped(name, own["raw"], tensors)
    how = _HOW.get(frozenset(own))
    if how is None:
        raise _unknown(next(iter(own.values())).name)
    if name in tensors:
        raise ConvertError(
            f"there are both {name!r:.200} and {next(iter(own.values())).name!r:.200}, which it is "
            f"computed from; expected one of them: convert a mapping without the other"
        )
    what, compute = how
    made = compute(name, own)
    wide = any(tensor.dtype == "float64" for tensor in own.values())
    array = made.astype(np.float64 if wide else np.float32)
    used = ", ".join(repr(tensor.name)[:200] for tensor in own.values())
    tensor = Tensor(name, array.shape, array.dtype.name, array)
    return tensor, f"was computed from {used} ({what})"


def _dropped(name: str, raw: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    """Of weight drop: the raw weight, in the place of the one that drops numbers of it."""
    path, _, suffix = name.rpartition(".")
    inside = f"{path}.module".removeprefix(".")
    beside = [n for n in tensors if n.rpartition(".")[0] == inside]
    full = f"{inside}.{suffix}" if beside else name
    copy = tensors.get(full)
    if copy is not None and copy.shape != raw.shape:
        raise ConvertError(
            f"{raw.name!r:.200} has shape {raw.shape} and {full!r:.200} {copy.shape}; expected the "
            f"same of a weight and its copy with dropout"
        )
    how = f"is {raw.name!r:.200}, of which weight drop makes a copy with numbers dropped"
    return Tensor(full, raw.shape, raw.dtype, raw.value), how


def _unknown(name: str) -> ConvertError:
    return ConvertError(
        f"{name!r:.200} is one part of a reparametrised weight that is computed in a way that is "
        f"not known; expected weight norm, spectral norm, pruning or weight drop, or the weight "
        f"itself: before saving, call torch.nn.utils.remove_weight_norm, "
        f"torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove"
    )


def _array(tensor: Tensor) -> Array:
    return to_array(tensor, "float64")


def _unfit(name: str, own: Mapping[str, Tensor]) -> ConvertError:
    shapes = ", ".join(f"{tensor.name!r:.200} {tensor.shape}" for tensor in own.values())
    return ConvertError(f"the parts of {name!r:.200} do not fit each other: {shapes}")


def _weight_norm(name: str, own: Mapping[str, Tensor]) -> Array:
    g, v = _array(own["g"]), _array(own["v"])
    if g.ndim and (g.ndim != v.ndim or any(a not in (1, b) for a, b in zip(g.shape, v.shape))):  # noqa: B905
        raise _unfit(name, own)
    # The length is over the axes that g has not: all but one, or all.
    axes = tuple(axis for axis in range(v.ndim) if not g.ndim or g.shape[axis] == 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(v * (g / np.sqrt(np.square(v).sum(axis=axes, keepdims=True))))


def _spectral_norm(name: str, own: Mapping[str, Tensor]) -> Array:
    weight, u, v = (_array(own[part]) for part in ("orig", "u", "v"))
    if u.ndim != 1 or v.ndim != 1 or weight.ndim < 2:
        raise _unfit(name, own)
    axes = [
        axis for axis in (0, 1) if (weight.shape[axis], weight.size) == (len(u), len(u) * len(v))
    ]
    if not axes:
        raise _unfit(name, own)
    if len(axes) > 1 and weight.ndim > 2:
        raise ConvertError(
            f"{own['orig'].name!r:.200} of shape {weight.shape} has as many outputs as inputs, so "
            f"nothing tells whether spectral norm goes over the first axis (a convolution) or the "
            f"second (a transposed one); before saving, call torch.nn.utils.remove_spectral_norm"
        )
    matrix = np.moveaxis(weight, axes[0], 0).reshape(len(u), len(v))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(weight / (u @ matrix @ v))


def _pruned(name: str, own: Mapping[str, Tensor]) -> Array:
    weight, mask = _array(own["orig"]), own["mask"]
    if weight.shape != mask.shape:
        raise _unfit(name, own)
    return np.asarray(weight * _array(mask))


_Compute = Callable[[str, Mapping[str, Tensor]], Array]
_HOW: dict[frozenset[str], tuple[str, _Compute]] = {
    frozenset("gv"): ("weight norm", _weight_norm),
    frozenset(("orig", "u", "v")): ("spectral norm", _spectral_norm),
    frozenset(("orig", "mask")): ("pruning", _pruned),
}
