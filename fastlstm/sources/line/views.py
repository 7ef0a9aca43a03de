"""Operations that move or take parts of an array without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastlstm import chain as spec
from fastlstm.errors import ConvertError
from fastlstm.sources.line.axes import (
    FEATURES,
    TIME,
    Axis,
    Group,
    Role,
    Size,
    leaves,
    regroup,
    settle,
    significant,
    size_of,
)
from fastlstm.sources.line.chain import row_size
from fastlstm.sources.line.nodes import (
    Array,
    Constant,
    Convolved,
    End,
    Final,
    Half,
    Joined,
    Node,
    Part,
    State,
    Value,
    Zeros,
)

__all__ = ["Views", "half"]

WHOLE = 2**31 - 1  # a stop from here on is the end of any axis


class Views:
    """The part of :class:`~fastlstm.sources.line.Line` that rearranges and cuts arrays."""

    def constant(self, array: Array) -> Value:
        """An array that depends on no input."""
        axes = [(Axis(int(n), Role()),) for n in array.shape]
        return Value(Constant("a constant", (), array=array), axes)

    def zeros(self, shape: Sequence[int | Size | None]) -> Value:
        """A constant zero of any shape, such as an initial state."""
        return Value(Zeros("a zero", ()), [_group_of(n) for n in shape])

    def expand(self, x: Value, shape: Sequence[int | Size | None], name: str) -> Value:
        """A constant, repeated along axes of size 1; anything else must have the shape already."""
        if isinstance(x.node, Zeros):
            return self.zeros(shape)
        if isinstance(x.node, Constant):
            more = len(shape) - x.ndim
            if more >= 0 and all(
                have in (1, n) for have, n in zip(x.shape, shape[more:], strict=True)
            ):
                array = x.node.array.reshape((1,) * more + x.node.array.shape)
                node = Constant(x.node.name, (), array=array)
                return Value(node, [_group_of(n) for n in shape])
        elif len(shape) == x.ndim and all(
            n in (-1, 1) or Size.of(group) == Size.of(n)
            for group, n in zip(x.axes, shape, strict=True)
            if n is not None
        ):
            return x
        raise ConvertError(
            f"{name!r:.200} expands an array of shape {x.shape}; expected only a constant to be "
            f"repeated"
        )

    def _axis(self, x: Value, axis: int, name: str) -> int:
        if not -x.ndim <= axis < x.ndim:
            raise ConvertError(
                f"{name!r:.200} works on axis {axis} of an array of {x.ndim}; expected one it has"
            )
        return axis % x.ndim

    def transpose(self, x: Value, order: Sequence[int], name: str = "transpose") -> Value:
        """The axes in another order, one entry for each axis."""
        places = [self._axis(x, axis, name) for axis in order]
        if sorted(places) != list(range(x.ndim)):
            raise ConvertError(
                f"{name!r:.200} orders axes as {tuple(order)}; expected each of {x.ndim} once"
            )
        if isinstance(x.node, Constant):
            return _constant(x.node.array.transpose(places), [x.axes[i] for i in places])
        return Value(x.node, [x.axes[i] for i in places])

    def reshape(self, x: Value, shape: Sequence[int | Size], name: str = "reshape") -> Value:
        """Axes merged and taken apart; sizes not known are those of :meth:`Value.size`, or -1."""
        if isinstance(x.node, Constant):
            sizes = [Size.of(n) for n in shape]
            if x.node.array.shape == x.shape and not any(n.unknown for n in sizes):
                try:
                    return self.constant(x.node.array.reshape([n.number for n in sizes]))
                except ValueError as error:
                    raise ConvertError(f"{name!r:.200}: {error}") from None
            if x.node.array.size == 1:
                array = x.node.array.reshape((1,) * len(shape))
                return Value(Constant(x.node.name, (), array=array), [_group_of(n) for n in shape])
        groups = regroup(x.axes, shape, name)
        for group in groups:
            _settle_merged(group, name)
        return Value(x.node, groups)

    def flatten(self, x: Value, start: int = 0, end: int = -1, name: str = "flatten") -> Value:
        """The axes from `start` to `end`, both included, merged."""
        if x.ndim == 0:
            return self.unsqueeze(x, 0, name)
        first, last = self._axis(x, start, name), self._axis(x, end, name)
        sizes = [x.size(axis) for axis in range(x.ndim)]
        merged = Size()
        for size in sizes[first : last + 1]:
            merged = merged * size
        _settle_merged(sum(x.axes[first : last + 1], ()), name)
        return self.reshape(x, [*sizes[:first], merged, *sizes[last + 1 :]], name)

    def squeeze(self, x: Value, axis: int | None = None, name: str = "squeeze") -> Value:
        """Without an axis of size 1, or without all of them."""
        places = range(x.ndim) if axis is None else [self._axis(x, axis, name)]
        gone = [i for i in places if x.shape[i] == 1]
        if axis is not None and not gone:
            raise ConvertError(
                f"{name!r:.200} squeezes axis {axis} of an array of shape {x.shape}; expected an "
                f"axis of size 1"
            )
        kept = [i for i in range(x.ndim) if i not in gone]
        if isinstance(x.node, Constant):
            array = x.node.array.reshape([x.node.array.shape[i] for i in kept])
            return _constant(array, [x.axes[i] for i in kept])
        return Value(x.node, [x.axes[i] for i in kept])

    def unsqueeze(self, x: Value, axis: int, name: str = "unsqueeze") -> Value:
        """With an axis of size 1 more, which becomes axis `axis`."""
        if not -x.ndim - 1 <= axis <= x.ndim:
            raise ConvertError(
                f"{name!r:.200} adds axis {axis} to an array of {x.ndim}; expected it among these"
            )
        axes: list[Group] = list(x.axes)
        axes.insert(axis % (x.ndim + 1), ())
        if isinstance(x.node, Constant):
            return _constant(np.expand_dims(x.node.array, axis), axes)
        return Value(x.node, axes)

    def identity(self, x: Value, name: str = "identity") -> Value:
        """What has no effect, such as dropout."""
        return x

    def select(self, x: Value, axis: int, index: int, name: str = "select") -> Value:
        """One position of an axis, which goes: ``out[:, -1]``, ``h_n[-1]``."""
        axis = self._axis(x, axis, name)
        stop = index + 1 if index != -1 else None
        if x.shape[axis] == 1 and any(a.role.is_(TIME) for a in x.axes[axis]):
            return self.squeeze(self._end(x, axis, True, name), axis, name)
        return self.squeeze(self.slice(x, axis, index, stop, 1, name), axis, name)

    def slice(
        self,
        x: Value,
        axis: int,
        start: int | None,
        stop: int | None,
        step: int = 1,
        name: str = "slice",
    ) -> Value:
        """``x[start:stop:step]`` along an axis: all, an end of time, a half, a cropped padding."""
        axis = self._axis(x, axis, name)
        size = x.shape[axis]
        begin, end, taken = start or 0, stop, None
        if size is not None:
            begin, end, step = slice(start, stop, step).indices(size)
            taken = max(end - begin, 0)
        elif end is not None and (begin < 0) == (end < 0):
            taken = max(end - begin, 0)
        whole = begin == 0 and (end is None or end >= (size or WHOLE))
        if step == 1 and whole:
            return x
        if isinstance(x.node, Constant) and x.node.array.shape[axis] == size:
            array = x.node.array[(slice(None),) * axis + (slice(start, stop, step),)]
            axes = list(x.axes)
            axes[axis] = _group_of(array.shape[axis])
            return _constant(array, axes)
        made = None
        if step == 1 and taken != 0:
            made = self._part(x, axis, begin, end, taken, name)
        if made is None:
            asked = ":".join("" if n is None else str(n) for n in (start, stop, step))
            raise ConvertError(
                f"{name!r:.200} takes [{asked}] along axis {axis} of an array of shape {x.shape}; "
                f"expected the last step, one half of the channels, or all but what the padding of "
                f"a convolution added"
            )
        return made

    def _part(
        self, x: Value, axis: int, begin: int, end: int | None, taken: int | None, name: str
    ) -> Value | None:
        """The positions from `begin` to `end` of an axis, not all; None if that is no part."""
        node, group, size = x.node, x.axes[axis], x.shape[axis]
        if isinstance(node, Zeros):
            return _resized(x, node, axis, _group_of(taken))
        if isinstance(node, State):
            part = State(f"{node.name}[{begin}:{'' if end is None else end}]", (), x)
            return _resized(x, part, axis, _group_of(taken))
        if isinstance(node, Joined) and group == (node.joint,) and axis == node.axis:
            return self._piece(x, node, begin, end, name)
        if isinstance(node, Final) and node.layers in group:
            return self._of_last_layer(x, node, axis, begin, end, name)
        if not all(a.role.is_(FEATURES) for a in significant(group)):
            if (begin, end) == (-1, None) or (size is not None and begin == size - 1):
                return self._end(x, axis, True, name)
            if (begin, end) == (0, 1):
                return self._end(x, axis, False, name)
        if isinstance(node, Convolved) and significant(group) == node.along:
            return _cropped(x, node, axis, begin, end)
        if size is None or 2 * (taken or 0) != size or begin not in (0, size // 2):
            return None
        return half(x, axis, int(begin > 0), name)

    def _piece(
        self, x: Value, node: Joined, begin: int, end: int | None, name: str
    ) -> Value | None:
        """One of the arrays that were concatenated, taken again, or a part of it."""
        place, at = node.axis or 0, 0
        whole = [*node.values[0].axes]
        whole[place] = x.axes[place]
        for value in node.values:
            size = value.shape[place]
            if size is None or end is None or list(x.axes) != whole:
                return None
            if at <= begin < end <= at + size:
                return self.slice(value, place, begin - at, end - at, 1, name)
            at += size
        return None

    def _of_last_layer(
        self, x: Value, node: Final, axis: int, begin: int, end: int | None, name: str
    ) -> Value | None:
        """Of the states of several layers, those of the last, or of one direction of it."""
        assert node.last is not None
        group, size = x.axes[axis], x.shape[axis]
        rest = tuple(a for a in group if a is not node.layers)
        directions = size_of(rest)
        if group[0] is not node.layers or size is None or directions is None:
            return None
        first = size - directions
        if begin < first:
            return None
        last = _resized(x, node.last.node, axis, rest)
        end = size if end is None else end
        return self.slice(last, axis, begin - first, end - first, 1, name)

    def _end(self, x: Value, axis: int, last: bool, name: str) -> Value:
        """The last row of a sequence, or the first, its axis of size 1."""
        over = significant(x.axes[axis])
        settle(over, TIME, name)

        row = tuple(a for a in leaves(x.node.row) if a not in over)

        def make(layer: str) -> Part | None:
            return spec.Pool(layer, "last", row_size(row)), {}

        expected = "the backward half of it, beside the last row's forward half"
        node = End(name, row, x, make if last else None, "" if last else expected, last=last)
        return _resized(x, node, axis, ())


def _constant(array: Array, axes: Sequence[Group]) -> Value:
    return Value(Constant("a constant", (), array=array), axes)


def _group_of(size: int | Size | None) -> Group:
    if isinstance(size, Size):
        return (*size.unknown, *_group_of(size.number))
    return () if size == 1 else (Axis(size, Role()),)


def _settle_merged(group: Group, name: str) -> None:
    """What is merged with features is features."""
    if len(group) > 1 and any(axis.role.is_(FEATURES) for axis in group):
        settle(group, FEATURES, name)


def _resized(x: Value, node: Node, axis: int, group: Group) -> Value:
    return Value(node, [*x.axes[:axis], group, *x.axes[axis + 1 :]])


def _cropped(x: Value, node: Convolved, axis: int, begin: int, end: int | None) -> Value | None:
    """A convolution without what its padding added on either side."""
    size = x.shape[axis]
    if end is not None and end >= 0:
        if size is None:
            return None
        end -= size
    made = node.crop(begin, -(end or 0)) if begin >= 0 else None
    return _resized(x, made, axis, made.along) if made else None


def half(x: Value, axis: int, which: int, name: str) -> Value | None:
    """The first (0) or second (1) half of an axis; None if its outer part has no halves."""
    group = significant(x.axes[axis])
    if not group or group[0].size is None or group[0].size % 2:
        return None
    settle(group, FEATURES, name)
    left = group[0].half

    def halved(axes: Group) -> Group:
        return tuple(b for a in leaves(axes) for b in (left if a is group[0] else (a,)))

    node = Half(
        name,
        halved(x.node.row),
        x,
        unfinished="both halves to be combined: added, multiplied, or as a magnitude",
        axis=group[0],
        which=which,
    )
    return _resized(x, node, axis, halved(group))
