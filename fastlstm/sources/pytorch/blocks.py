"""From named tensors to blocks: which tensors make one layer, and what that layer can be.

A block is the tensors under one dotted path. Its shapes tell which words of ``layers=`` it may be,
and the sizes of each: a matrix without a bias may be a Linear or an Embedding, a vector with one a
LayerNorm or a GroupNorm. What they do not tell, such as a stride, is said by the word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.state_dict import RECURRENT, Tensor, listing

__all__ = ["Block", "Known", "at", "find_blocks"]


@dataclass(frozen=True, slots=True)
class Known:
    """What a module tells of its tensors, and their names and shapes do not.

    Parameters
    ----------
    kind : str or None
        A word of ``layers=``, or None with the reason in `refusal`.
    nonlinearity : str, optional
        Of an RNN.
    refusal : str
    options : mapping of str to object
        Fields of the layer in :mod:`fastlstm.spec`.
    parameters : mapping of str to object
        Parameters of the word.
    """

    kind: str | None
    nonlinearity: str | None = None
    refusal: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """The tensors at one path, by the suffix they get in the model, and what they can be.

    Parameters
    ----------
    path : str
    tensors : dict of str to Tensor
    choices : dict of str to Layer or None
        By word, the layer of those sizes, called "block"; None where that is no single layer.
    known : Known, optional
    """

    path: str
    tensors: dict[str, Tensor]
    choices: dict[str, spec.Layer | None]
    known: Known | None = None


def find_blocks(
    tensors: Mapping[str, Tensor], ignored: frozenset[str], known: Mapping[str, Known]
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

    Raises
    ------
    ConvertError
        If the tensors of a recurrent block contradict each other or some are missing, or a module
        with weights is none that is known.
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
        block = _recurrent(path, recurrent) if recurrent else _plain(path, group)
        choices = {
            kind: layer
            for kind, layer in block.choices.items()
            if told is None or kind == told.kind
        }
        if choices:
            blocks.append(dataclasses.replace(block, choices=choices, known=told))
    return blocks


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
    for suffix, wanted in layer.tensors().items():
        if shape(suffix) != wanted:
            raise ConvertError(
                f"tensor {tensors[suffix].name!r:.200} has shape {shape(suffix)}; expected "
                f"{wanted}, since {tensors['weight_ih_l0'].name!r:.200} is "
                f"{shape('weight_ih_l0')} and the hidden size {hidden_size}"
            )
    return Block(path, tensors, {layer.kind: layer})


def _plain(path: str, group: Mapping[str, Tensor]) -> Block:
    """What the tensors of any other layer can be; no choices if they are of none."""
    names = ("weight", "bias", "running_mean", "running_var")
    found = {name: group[name] for name in names if name in group}
    shapes = {name: tensor.shape for name, tensor in found.items()}
    choices: dict[str, spec.Layer | None] = {}
    if not any(0 in shape for shape in shapes.values()):
        for kind, layer in _layers(shapes):
            # A word that has the tensors of another shape, or others, is not what they are.
            if layer is None or {s: tuple(n) for s, n in layer.tensors().items()} == shapes:
                choices.setdefault(kind, layer)
    return Block(path, found, choices)


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, spec.Layer | None]]:
    """What may be layers of tensors of these shapes, by word, those that are likely first."""
    if "running_mean" in shapes and len(shapes["running_mean"]) == 1:
        yield (
            "batch_norm",
            spec.BatchNorm("block", *shapes["running_mean"], affine="weight" in shapes),
        )
    shape, bias = shapes.get("weight", ()), shapes.get("bias", ())
    if not 1 <= len(shape) <= 5 or "running_mean" in shapes:
        return
    rows, columns, *kernel = (*shape, 0) if len(shape) == 1 else shape
    if len(shape) == 2:
        yield "linear", spec.Linear("block", columns, rows, bias=bool(bias))
        yield "embedding", spec.Embedding("block", rows, columns)
    elif len(shape) > 2:
        n = len(kernel)
        sizes = tuple(kernel)
        options: dict[str, Any] = {"bias": bool(bias), "over_time": True}
        yield f"conv{n}d", spec.Convolution("block", columns, rows, sizes, **options)
        groups = bias[0] // columns if len(bias) == 1 else 1
        if groups and not rows % groups:
            yield (
                f"conv_transpose{n}d",
                spec.Convolution(
                    "block", rows, columns * groups, sizes, groups, transposed=True, **options
                ),
            )
    yield "layer_norm", spec.LayerNorm("block", shape, bias=bool(bias))
    yield "rms_norm", spec.RMSNorm("block", shape)
    if len(shape) == 1:
        yield "group_norm", spec.GroupNorm("block", 1, rows)
        yield "instance_norm", spec.GroupNorm("block", rows, rows)
        if not bias:
            yield "prelu", None
