"""From named tensors to blocks: which tensors make one layer, and what that layer can be.

A block is the tensors under one dotted path. Its shapes tell which words of ``layers=`` it may be,
and the sizes of each: a matrix without a bias may be a Linear or an Embedding, a vector with one a
LayerNorm or a GroupNorm. What they do not tell, such as a stride, is said by the word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    choices : tuple of str
        Words of ``layers=``.
    own : Layer, optional
        The layer, whatever it is called, where more than the shapes tells of it.
    known : Known, optional
    """

    path: str
    tensors: dict[str, Tensor]
    choices: tuple[str, ...]
    own: spec.Layer | None = None
    known: Known | None = None

    def layer(self, kind: str) -> spec.Layer | None:
        """The layer of these sizes that a word stands for; None of a PReLU, which is no layer."""
        return self.own or _layer(kind, {s: t.shape for s, t in self.tensors.items()})


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
        choices = tuple(kind for kind in block.choices if told is None or kind == told.kind)
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
            twice = len(wanted) == 1 and shape(suffix) == (2 * wanted[0],)
            raise ConvertError(
                f"tensor {tensors[suffix].name!r:.200} has shape {shape(suffix)}; expected "
                f"{wanted}, since {tensors['weight_ih_l0'].name!r:.200} is "
                f"{shape('weight_ih_l0')} and the hidden size {hidden_size}"
                + "; it is twice that, as CuDNN keeps both biases in one, which then has the gates "
                "and axes of its weights in an order of its own, too" * twice
            )
    return Block(path, tensors, (layer.kind,), layer)


def _plain(path: str, group: Mapping[str, Tensor]) -> Block:
    """What the tensors of any other layer can be; no choices if they are of none."""
    names = ("weight", "bias", "running_mean", "running_var")
    found = {name: group[name] for name in names if name in group}
    shapes = [tensor.shape for tensor in found.values()]
    odd = any(0 in shape for shape in shapes)
    return Block(path, found, () if odd else tuple(_kinds(found.keys(), shapes)))


def _kinds(names: Collection[str], shapes: Sequence[tuple[int, ...]]) -> Iterator[str]:
    """What layers may have tensors of these names and shapes, those that are likely first."""
    alike = len({*shapes}) == 1
    if "running_mean" in names:
        # With weight and bias, or with neither.
        if alike and len(shapes[0]) == 1 and len(names) in (2, 4) and "running_var" in names:
            yield "batch_norm"
        return
    if "weight" not in names or "running_var" in names or not 1 <= len(shapes[0]) <= MAX_AXES:
        return
    (rows, *columns), biased = shapes[0], "bias" in names
    n = len(shapes[0])
    if n == 1 and (alike or not biased):
        yield "layer_norm"
        yield from ("group_norm", "instance_norm") if biased else ("rms_norm", "prelu")
    elif biased and alike:
        yield "layer_norm"
    elif n == 2 and (not biased or shapes[1] == (rows,)):
        yield "linear"
        if not biased:
            yield "embedding"
    elif n > 2:
        if not biased or shapes[1] == (rows,):
            yield f"conv{n - 2}d"
        if not biased or (len(shapes[1]) == 1 and _groups(rows, columns[0], shapes[1][0])):
            yield f"conv_transpose{n - 2}d"


def _groups(rows: int, columns: int, outputs: int) -> int:
    """The groups of a transposed kernel with so many outputs; 0 if that is none."""
    groups, odd = divmod(outputs, columns)
    return 0 if odd or rows % groups else groups


MAX_AXES = 5  # of a weight: those of a kernel of three, and channels


def _layer(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> spec.Layer | None:
    """The layer, called "block", that a word stands for, of tensors of these shapes."""
    shape, biased = shapes.get("weight", ()), "bias" in shapes
    match kind:
        case "batch_norm":
            return spec.BatchNorm("block", shapes["running_mean"][0], affine="weight" in shapes)
        case "layer_norm":
            return spec.LayerNorm("block", shape, bias=biased)
        case "rms_norm":
            return spec.RMSNorm("block", shape)
        case "group_norm":
            return spec.GroupNorm("block", 1, shape[0])
        case "instance_norm":
            return spec.GroupNorm("block", shape[0], shape[0])
        case "linear":
            return spec.Linear("block", shape[1], shape[0], bias=biased)
        case "embedding":
            return spec.Embedding("block", shape[0], shape[1])
        case "prelu":
            return None
    rows, columns, *kernel = shape
    if not kind.startswith("conv_transpose"):
        return spec.Convolution("block", columns, rows, tuple(kernel), bias=biased, over_time=True)
    groups = _groups(rows, columns, shapes["bias"][0]) if biased else 1
    return spec.Convolution(
        "block",
        rows,
        columns * groups,
        tuple(kernel),
        groups,
        biased,
        over_time=True,
        transposed=True,
    )
