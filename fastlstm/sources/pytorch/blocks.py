"""From named tensors to blocks: which tensors make one layer, and what that layer can be.

A block is the tensors under one dotted path. Its shapes tell its kind and sizes, except that an RNN
does not tell its nonlinearity, and a weight matrix without a bias may be a Linear or an Embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.state_dict import RECURRENT, Tensor, listing

__all__ = ["Block", "Known", "at", "find_blocks"]


@dataclass(frozen=True, slots=True)
class Known:
    """What a module tells of its tensors, and their names and shapes do not.

    ``kind`` is that of a layer in :mod:`fastlstm.chain`, or None with the reason in ``refusal``;
    ``options`` are fields of that layer.
    """

    kind: str | None
    nonlinearity: str | None = None
    refusal: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """The tensors at one path, by the suffix they get in the model, and the layers they can be.

    The layers in ``choices`` have no name of their own yet.
    """

    path: str
    tensors: dict[str, Tensor]
    choices: tuple[spec.Layer, ...]


def find_blocks(
    tensors: Mapping[str, Tensor],
    ignored: frozenset[str],
    known: Mapping[str, Known],
    nonlinearity: str | None,
) -> list[Block]:
    """Group tensors into blocks, in file order.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By name, in file order.
    ignored : frozenset of str
        A path all of whose tensors are named here makes no block.
    known : mapping of str to Known
        What modules tell, by path; empty for a plain state dict.
    nonlinearity : str or None
        "tanh" or "relu" for RNNs of which ``known`` does not tell.

    Raises
    ------
    ConvertError
        If the tensors of a recurrent block contradict each other or some are missing, if the
        nonlinearity of an RNN is not known, or a module with weights is not the plain one.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, suffix = name.rpartition(".")
        groups.setdefault(path, {})[suffix] = tensor
    blocks = []
    for path, group in groups.items():
        if all(tensor.name in ignored for tensor in group.values()):
            continue
        recurrent = {s: t for s, t in group.items() if RECURRENT.fullmatch(s)}
        told = known.get(path)
        if told is not None and told.refusal and (recurrent or "weight" in group):
            raise ConvertError(told.refusal)
        block = _recurrent(path, recurrent) if recurrent else _affine(path, group)
        if block is None:
            continue
        choices = tuple(
            _with_nonlinearity(path, c, told.nonlinearity if told else None, nonlinearity)
            if isinstance(c, spec.RNN)
            else c
            for c in block.choices
            if told is None or c.kind == told.kind
        )
        if told is not None and told.options:
            choices = tuple(dataclasses.replace(c, **told.options) for c in choices)
        if choices:
            blocks.append(dataclasses.replace(block, choices=choices))
    return blocks


def _with_nonlinearity(path: str, layer: spec.RNN, told: str | None, given: str | None) -> spec.RNN:
    if told and given and told != given:
        raise ConvertError(
            f"nonlinearity={given!r} was given, but the RNN {at(path)} has {told!r}; leave "
            f"nonlinearity= out"
        )
    nonlinearity = told or given
    if nonlinearity is None:
        raise ConvertError(
            f"the weights {at(path)} are an RNN's and do not tell its nonlinearity; give "
            f"nonlinearity='tanh' (PyTorch's default) or nonlinearity='relu'"
        )
    return dataclasses.replace(layer, nonlinearity=nonlinearity)


def at(path: str) -> str:
    """Where a path is, for a message."""
    return f"at {path!r:.200}" if path else "at the top"


def _recurrent(path: str, found: Mapping[str, Tensor]) -> Block:
    """One recurrent stack; its layer asks for the tensors there are, or an error names the odd."""
    parsed = {suffix: RECURRENT.fullmatch(suffix) for suffix in found}
    cells = [suffix for suffix, match in parsed.items() if match and match[2] is None]
    if cells and len(cells) < len(found):
        raise ConvertError(
            f"{found[cells[0]].name!r:.200} is a cell's name, but {at(path)} there are also "
            f"names of a stack such as {next(s for s in found if s not in cells)!r}; expected "
            f"one of the two"
        )
    cell = "_l0" if cells else ""
    tensors = {suffix + cell: tensor for suffix, tensor in found.items()}

    def shape(suffix: str) -> tuple[int, ...]:
        if suffix not in tensors:
            name = f"{path}.{suffix}".removeprefix(".").removesuffix(cell)
            raise ConvertError(
                f"tensor {name!r:.200} is missing beside these; was the whole state dict saved?\n"
                + listing(found.values())
            )
        return tensors[suffix].shape

    for suffix, tensor in tensors.items():
        ndim = 1 if suffix.startswith("bias") else 2
        if len(tensor.shape) != ndim or 0 in tensor.shape:
            raise ConvertError(
                f"tensor {tensor.name!r:.200} has shape {tensor.shape}; expected {ndim} "
                f"dimension{'s' * (ndim > 1)}, none of them 0"
            )
    numbers = sorted({int(match[2] or 0) for match in parsed.values() if match})
    for number in range(len(numbers)):
        shape(f"weight_ih_l{number}")

    rows, input_size = shape("weight_ih_l0")
    _, h_size = shape("weight_hh_l0")
    projected = any(suffix.startswith("weight_hr") for suffix in tensors)
    hidden_size = shape("weight_hr_l0")[1] if projected else h_size
    kinds: dict[int, type[spec.Recurrent]] = {
        len(cls.gates) * hidden_size: cls
        for cls in ((spec.LSTM,) if projected else (spec.LSTM, spec.GRU, spec.RNN))
    }
    if rows not in kinds:
        raise ConvertError(
            f"tensor {tensors['weight_ih_l0'].name!r:.200} has {rows} rows; with hidden size "
            f"{hidden_size} (the columns of {'weight_hr' if projected else 'weight_hh'}), expected "
            + ", ".join(f"{n} for {cls.__name__}" for n, cls in kinds.items())
        )
    extra: dict[str, Any] = {"proj_size": h_size} if projected else {}
    try:
        layer = kinds[rows](
            name="block",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=len(numbers),
            bias=any(suffix.startswith("bias") for suffix in tensors),
            bidirectional=any(suffix.endswith("_reverse") for suffix in tensors),
            **extra,
        )
    except ValueError as error:
        why = str(error).removeprefix("layer 'block': ")
        raise ConvertError(f"the weights {at(path)} make no layer: {why}") from None
    for name, wanted in layer.tensors().items():
        suffix = name.removeprefix("block.")
        if shape(suffix) != wanted:
            raise ConvertError(
                f"tensor {tensors[suffix].name!r:.200} has shape {shape(suffix)}; expected "
                f"{wanted}, since {tensors['weight_ih_l0'].name!r:.200} is "
                f"{shape('weight_ih_l0')} and the hidden size {hidden_size}"
            )
    return Block(path, tensors, (layer,))


def _affine(path: str, group: Mapping[str, Tensor]) -> Block | None:
    """A weight matrix that a Linear or an Embedding can be made of; None if it is neither."""
    found = {suffix: group[suffix] for suffix in ("weight", "bias") if suffix in group}
    shape = found["weight"].shape if "weight" in found else ()
    if len(shape) != 2 or 0 in shape:
        return None
    linear = spec.Linear("block", shape[1], shape[0], bias="bias" in found)
    if "bias" in found:
        return Block(path, found, (linear,)) if found["bias"].shape == shape[:1] else None
    return Block(path, found, (linear, spec.Embedding("block", *shape)))
