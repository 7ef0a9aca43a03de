"""A straight line of operations on one array, translated into the layers of a model.

What traces a graph, of torch or ONNX, calls one method of :class:`Line` for each operation, in
order, and :meth:`Line.finish` with the output. The array may make detours that end where they
began: a block whose input is added or concatenated to its output, and two halves of the channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line.axes import (
    ANY,
    BATCH,
    FEATURES,
    POSITION,
    TIME,
    Axis,
    Group,
    Role,
    Size,
    leaves,
    settle,
    significant,
    size_of,
)
from fastlstm.sources.line.chain import Made, make_layers, order, refuse_unordered
from fastlstm.sources.line.nodes import (
    Absorbing,
    Array,
    Convolved,
    Lengths,
    Node,
    Padded,
    Part,
    Value,
)
from fastlstm.sources.line.recurrences import Recurrence, Recurrences

__all__ = ["Line", "Made", "Recurrence", "Size", "Value"]


class Line(Recurrences):
    """Operations in the order in which they run, from one input to one output.

    Every method takes values and gives a new one; `name` is that of the operation, for messages and
    for the layer it becomes. All raise ConvertError, which names the operation, for what no list of
    layers can compute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start: Node | None = None
        self._input: tuple[Axis, ...] = ()
        self._tokens = False

    def input(
        self,
        shape: Sequence[int | None],
        *,
        tokens: bool = False,
        time: int | None = None,
        batch: int | None = None,
    ) -> Value:
        """The one input of data; `tokens` are integers. Known axes may be told."""
        if self._start is not None:
            raise ConvertError("there are two inputs of data; expected one, and states")
        axes = tuple(Axis(size, Role(POSITION if tokens else ANY)) for size in shape)
        for axis, role in ((time, TIME), (batch, BATCH)):
            if axis is not None:
                axes[axis].role.settle(role, "the input")
        self._input = axes
        self._tokens = tokens
        self._start = Node("the input", () if tokens else axes)
        return Value(self._start, [(axis,) for axis in axes])

    def is_integer(self, x: Value) -> bool:
        """Whether a value is an input of integers."""
        return isinstance(x.node, Lengths) or (self._tokens and x.node is self._start)

    def linear(self, x: Value, weight: Array, bias: Array | None, name: str) -> Value:
        """``x W^T + b`` along the last axis: weight (out, in), bias (out,)."""
        _refuse_shape(name, weight, 2)
        read = self._read(x, [-1], weight.shape[1], name)
        out_features, in_features = weight.shape
        out = Axis(out_features, Role(FEATURES))

        def make(bias: Array | None, layer: str) -> Part:
            columns = order(x.node.row, read, name)
            tensors = {"weight": weight if columns is None else weight[:, columns]}
            if bias is not None:
                tensors["bias"] = bias
            return spec.Linear(layer, in_features, out_features, bias is not None), tensors

        def affine(bias: Array | None) -> Absorbing:
            def absorb(seen: Value, w: Array, b: Array) -> Absorbing | None:
                if seen.axes[-1:] != ((out,),) or (w != 1).any() or math.prod(b.shape[:-1]) != 1:
                    return None
                more = np.broadcast_to(b.reshape(-1), out_features)
                return affine((more if bias is None else bias + more).astype(weight.dtype))

            return Absorbing(name, (out,), x, functools.partial(make, bias), absorb=absorb)

        return Value(affine(bias), [*x.axes[:-1], (out,)])

    def embedding(self, x: Value, weight: Array, name: str) -> Value:
        """Tokens -> rows of a table (tokens, features)."""
        _refuse_shape(name, weight, 2)
        self._refuse_no_tokens(x, name)
        out = Axis(weight.shape[1], Role(FEATURES))

        def make(layer: str) -> Part:
            return spec.Embedding(layer, *weight.shape), {"weight": weight}

        return Value(Node(name, (out,), x, make), [*x.axes, (out,)])

    def one_hot(self, x: Value, num_classes: int, name: str) -> Value:
        """Tokens -> vectors of zeros and a one."""
        self._refuse_no_tokens(x, name)
        out = Axis(num_classes, Role(FEATURES))

        def make(layer: str) -> Part:
            return spec.OneHot(layer, num_classes), {}

        return Value(Node(name, (out,), x, make), [*x.axes, (out,)])

    def _refuse_no_tokens(self, x: Value, name: str) -> None:
        if x.node is not self._start or not self._tokens:
            raise ConvertError(
                f"{name!r:.200} looks up what is no input of integers; expected the tokens that "
                f"the model takes"
            )

    def conv1d(
        self,
        x: Value,
        weight: Array,
        bias: Array | None,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        padding_mode: str = "zeros",
        dilation: int = 1,
        groups: int = 1,
        name: str,
    ) -> Value:
        """``torch.nn.Conv1d`` of (N, C, L) or (C, L): over time, or within the frame of a step."""
        _refuse_shape(name, weight, 3)
        if x.ndim not in (2, 3):
            raise ConvertError(
                f"{name!r:.200} is given an array of shape {x.shape}; expected batch, channels and "
                f"length"
            )
        if isinstance(x.node, Padded) and x.axes[-1] == x.node.after and x.node.source:
            if any(padding) and padding_mode != x.node.mode:
                raise ConvertError(
                    f"{name!r:.200} pads by {padding_mode!r} what {x.node.name!r:.200} pads by "
                    f"{x.node.mode!r}; expected one of them"
                )
            padding_mode = x.node.mode
            padding = (padding[0] + x.node.padding[0], padding[1] + x.node.padding[1])
            x = Value(x.node.source.node, [*x.axes[:-1], x.node.before])
        out_channels, in_channels, kernel_size = weight.shape
        in_channels *= groups
        settle(x.axes[-2], FEATURES, name)
        if size_of(x.axes[-2]) != in_channels:
            raise ConvertError(
                f"{name!r:.200} takes {in_channels} channels; the array of shape {x.shape} it is "
                f"given has {x.shape[-2]} of them along axis {x.ndim - 2}"
            )
        for group in x.axes[:-2]:
            settle(group, POSITION, name)
        settle(x.axes[-1], TIME | FEATURES if padding_mode == "zeros" else FEATURES, name)
        channels = Axis(out_channels, Role(FEATURES))

        def convolved(left: int, right: int) -> Convolved | None:
            padded = padding[0] - left * stride, padding[1] - right * stride
            if min(*padded, left, right) < 0:
                return None
            along = _run_along(x.axes[-1], kernel_size, stride, padded, dilation, name)
            make = functools.partial(
                _convolution, x, weight, bias, padded, padding_mode, stride, dilation, groups, name
            )

            def crop(more_left: int, more_right: int) -> Convolved | None:
                return convolved(left + more_left, right + more_right)

            row = (channels, *along)
            return Convolved(name, row, x, make, along=significant(along), crop=crop)

        node = convolved(0, 0)
        if node is None:
            raise ConvertError(f"{name!r:.200} has padding {padding}; expected at least 0")
        return Value(node, [*x.axes[:-2], (channels,), node.row[1:]])

    def pad(self, x: Value, left: int, right: int, mode: str, name: str) -> Value:
        """The last axis padded, by "zeros", "reflect" or "replicate", for a convolution."""
        if min(left, right) < 0:
            x = self.slice(x, -1, max(-left, 0), min(right, 0) or None, 1, name)
            left, right = max(left, 0), max(right, 0)
        if left == right == 0:
            return x
        if mode not in ("zeros", "reflect", "replicate"):
            raise ConvertError(
                f"{name!r:.200} pads by {mode!r:.80}; expected zeros, reflect or replicate"
            )
        settle(x.axes[-1], TIME | FEATURES if mode == "zeros" else FEATURES, name)
        if isinstance(x.node, Padded) and x.axes[-1] == x.node.after and x.node.source:
            if mode != "zeros" or x.node.mode != "zeros":
                raise ConvertError(
                    f"{name!r:.200} pads what {x.node.name!r:.200} has padded; expected one of them"
                )
            left, right = left + x.node.padding[0], right + x.node.padding[1]
            x = Value(x.node.source.node, [*x.axes[:-1], x.node.before])
        before = x.axes[-1]
        after = _resized(before, left + right, name)
        node = Padded(
            name,
            x.node.row,
            x,
            unfinished="a convolution right behind it",
            before=before,
            after=after,
            padding=(left, right),
            mode=mode,
        )
        return Value(node, [*x.axes[:-1], after])

    def finish(self, output: Value, *, state_outputs: Mapping[str, Value] | None = None) -> Made:
        """The layers from the input to `output`.

        Parameters
        ----------
        output : Value
        state_outputs : mapping of str to Value, optional
            By name, the outputs that carry states out: last states of recurrent layers, stacked or
            not. The model returns these on its own.

        Raises
        ------
        ConvertError
            Naming the operation that no layer computes.
        """
        if self._start is None:
            raise ConvertError("there is no input; expected one")
        for name, value in (state_outputs or {}).items():
            if not self.is_state(value):
                raise ConvertError(
                    f"output {name!r:.200} is computed by {value.node.name!r:.200}; expected one "
                    f"output beside the last states of recurrent layers"
                )
        self._settle_rest()
        made = make_layers(output, self._start)
        self._refuse_lengths(made)
        return made

    def _settle_rest(self) -> None:
        """Settle the roles that nothing has told, and check that time and batch are one each."""
        roles = list(dict.fromkeys(axis.role for axis in self._input))
        if self._single_step:
            for role in roles:
                role.settle(BATCH | FEATURES, self._single_step)
        timed = any(role.is_(TIME) for role in roles)
        for role in roles:
            if role.is_length and len(role.possible) > 1:
                role.settle(FEATURES if timed else TIME, "a convolution")
                timed = True
        if not any(role.is_(FEATURES) for role in roles) and not self._tokens and roles:
            last = self._input[-1].role
            if last.possible & FEATURES and not last.is_length:
                last.settle(FEATURES, "the input")
        for role in roles:
            if role.possible & POSITION:
                role.settle(POSITION, "the input")
        for axis in self._joints:
            if axis.role.possible & FEATURES:
                axis.role.settle(FEATURES, "a concatenation")
        positions = [axis for axis in self._input if axis.size != 1 and axis.role.is_(POSITION)]
        for one in (TIME, BATCH):
            if len(positions) > 2 or sum(axis.role.is_(one) for axis in positions) > 1:
                raise ConvertError(
                    f"the input of shape {tuple(axis.size for axis in self._input)} has "
                    f"{len(positions)} axes that hold no features; expected time and batch, one "
                    f"each at most"
                )


def _refuse_shape(name: str, weight: Array, ndim: int) -> None:
    if weight.ndim != ndim or 0 in weight.shape:
        raise ConvertError(
            f"{name!r:.200} has a weight of shape {weight.shape}; expected {ndim} axes, none of "
            f"size 0"
        )


def _resized(group: Group, more: int, name: str) -> Group:
    """An axis with `more` positions more; of the width of a frame if it is no axis of its own."""
    if len(significant(group)) == 1:
        return (significant(group)[0].longer(more),)
    if len(group) == 1:
        return (group[0].longer(more),)
    settle(group, FEATURES, name)
    return (Axis((size_of(group) or 1) + more, Role(FEATURES)),)


def _run_along(
    group: Group, kernel_size: int, stride: int, padding: tuple[int, int], dilation: int, name: str
) -> Group:
    """The axis of the output of a convolution along an axis."""
    reach = dilation * (kernel_size - 1)
    size = size_of(group)
    room = None if size is None else size + sum(padding) - reach
    if room is not None and room < 1:
        raise ConvertError(
            f"{name!r:.200} runs over {size} positions and padding of {sum(padding)}; expected "
            f"more than {reach}, to fill its kernel"
        )
    count = None if room is None else (room - 1) // stride + 1
    for axis in group:
        axis.role.is_length = True
    if stride == 1:
        made = _resized(group, sum(padding) - reach, name)
    elif len(significant(group)) == 1:
        made = (Axis(count, significant(group)[0].role),)
    else:
        settle(group, FEATURES, name)
        made = (Axis(count, Role(FEATURES)),)
    if count == 1 and size != 1 and not any(a.role.is_(TIME) for a in leaves(group)):
        settle(group, FEATURES, name)
        return ()
    return made


def _convolution(
    x: Value,
    weight: Array,
    bias: Array | None,
    padding: tuple[int, int],
    padding_mode: str,
    stride: int,
    dilation: int,
    groups: int,
    name: str,
    layer: str,
) -> Part:
    """The layer of a convolution, over time or within a frame as its axis turned out to be."""
    out_channels, in_channels, kernel_size = weight.shape
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    sizes = (in_channels * groups, out_channels, kernel_size, stride, dilation, groups)
    if any(axis.role.is_(TIME) for axis in x.axes[-1]):
        refuse_unordered(x, [x.axes[-2]], name)
        return spec.Conv1d(
            layer,
            *sizes,
            bias is not None,
            padding_left=padding[0],
            padding_right=padding[1],
        ), tensors
    refuse_unordered(x, [x.axes[-2], x.axes[-1]], name)
    width = size_of(x.axes[-1])
    if width is None:
        raise ConvertError(
            f"{name!r:.200} runs within a frame whose width is not known; expected a known one"
        )
    return spec.FrameConv1d(
        layer,
        *sizes,
        bias is not None,
        width=width,
        padding_left=padding[0],
        padding_right=padding[1],
        padding_mode=padding_mode if any(padding) else "zeros",
    ), tensors
