"""Kernels that slide over the positions of a step, over time, or over both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar

from fastlstm.spec.frozen import extra, frozen
from fastlstm.spec.layer import MAX_REACH, OneRow
from fastlstm.spec.row import Row, Shape
from fastlstm.spec.timing import SAME, Term

__all__ = ["Convolution", "Pooling", "Sliding"]

Pair = tuple[int, int]


@frozen
class Sliding(OneRow):
    """What convolutions and poolings share: a kernel, and how it moves over rows (C, ...).

    Parameters
    ----------
    kernel_size : tuple of int
        One size for each axis that the kernel moves over; an integer stands for one axis. With
        `over_time`, the first of them is time, and a row has one axis fewer.
    stride, dilation : tuple of int
        One for each axis; left out where all are 1.
    padding : tuple of (int, int)
        Before and behind each axis; left out where all are 0. Over time, what is padded behind
        stands at the end of a sequence: a stream gives the rows that need it late.
    over_time : bool
        Whether the kernel moves over time.
    """

    if TYPE_CHECKING:  # a field here would stand before those of each kind

        @property
        def kernel_size(self) -> tuple[int, ...]: ...

    _: KW_ONLY
    stride: tuple[int, ...] = extra(default=())
    dilation: tuple[int, ...] = extra(default=())
    padding: tuple[tuple[int, int], ...] = extra(default=(), least=0)
    over_time: bool = extra(default=False)

    def __post_init__(self) -> None:
        for field in ("kernel_size", "stride", "dilation"):
            if hasattr(value := getattr(self, field), "__index__"):
                object.__setattr__(self, field, (value,))
        super().__post_init__()
        n = len(self.kernel_size)
        if not 1 <= n <= 3:
            raise self._refused("kernel_size", "one to three axes")
        for field, plain in (("stride", (1,) * n), ("dilation", (1,) * n), ("padding", _NONE * n)):
            value = getattr(self, field)
            if value and len(value) != n:
                raise self._refused(field, f"{n} of them, as many as kernel_size has")
            if value == plain:
                object.__setattr__(self, field, ())

    @property
    def strides(self) -> tuple[int, ...]:
        return self.stride or (1,) * len(self.kernel_size)

    @property
    def dilations(self) -> tuple[int, ...]:
        return self.dilation or (1,) * len(self.kernel_size)

    @property
    def paddings(self) -> tuple[Pair, ...]:
        return self.padding or _NONE * len(self.kernel_size)

    @property
    def reaches(self) -> tuple[int, ...]:
        """Positions from the first that a kernel touches to the last, in each axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.kernel_size, strict=True))

    def _axes(self, shape: Shape) -> Shape:
        """The axes of a row that the kernel moves over."""
        n = len(self.kernel_size) - self.over_time
        if len(shape) != 1 + n:
            axes = ", ".join(["channels", *["positions"] * n])
            raise ValueError(f"it takes rows ({axes}), and is given {Row(shape)}")
        return shape[1:]

    def moved(self, shape: Shape) -> Shape:
        """The axes of a row that the kernel moved over, as the output has them."""
        sizes = []
        axes = list(zip(self.reaches, self.strides, self.paddings, strict=True))
        for size, (reach, stride, padding) in zip(
            self._axes(shape), axes[self.over_time :], strict=True
        ):
            if (left := size + sum(padding) - reach) < 1:
                raise ValueError(f"its kernel does not fit into {Row(shape)} with its padding")
            sizes.append((left - 1) // stride + 1)
        return tuple(sizes)

    def _check_time(self, numbers: int) -> None:
        """Check what a kernel over time asks for, each step of so many numbers."""
        if not self.over_time:
            return
        reach, padding = self.reaches[0], self.paddings[0]
        if max(padding) > reach:
            raise self._refused("padding", f"at most {reach} before and behind each sequence")
        if reach * numbers > MAX_REACH:
            raise ValueError(
                f"it reaches back over {reach} steps of {numbers} numbers; at most {MAX_REACH} "
                f"numbers are supported"
            )

    @property
    def terms(self) -> tuple[Term, Term]:
        if not self.over_time:
            return SAME, SAME
        reach, stride, (before, behind) = self.reaches[0], self.strides[0], self.paddings[0]
        offset = before - reach - 1 + stride
        return Term(1, offset + behind, stride), Term(1, offset, stride)

    @property
    def kept(self) -> int:
        """Rows that a stream of a kernel over time keeps."""
        return self.reaches[0]

    def state(self, reads: Sequence[Row]) -> dict[str, Shape]:
        """The last inputs, in order, and how many there were, where the output depends on it."""
        if not self.over_time:
            return {}
        kept = {"x": (self.kept, *reads[0].shape)} if self.kept else {}
        return kept | ({"count": (1,)} if self.counts else {})

    @property
    def counts(self) -> bool:
        """Whether what a kernel over time gives depends on how many steps there were.

        It does not where every step gives as many rows as the last one, from the first on.
        """
        whole, stream = self.terms
        return (whole.offset, stream.offset) != (0, 0) or stream.divisor > 1


_NONE: tuple[Pair, ...] = ((0, 0),)


@frozen
class Convolution(Sliding):
    """``torch.nn.Conv1d``, ``Conv2d``, and their transposed kin.

    Over time, one row of ``nn.Conv1d``'s input (channels, time) is a step (channels,), and of
    ``nn.Conv2d``'s (channels, time, positions) a step (channels, positions).

    Parameters
    ----------
    in_channels, out_channels, groups : int
    bias : bool
    transposed : bool
        ``torch.nn.ConvTranspose1d``, ``2d``: `padding` is then what is cut off before and behind
        the output, and `output_padding` what is added behind it.
    output_padding : tuple of int
        One for each axis, each less than the stride; left out where all are 0.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int = 1
    bias: bool = True
    _: KW_ONLY
    transposed: bool = extra(default=False)
    output_padding: tuple[int, ...] = extra(default=(), least=0)
    kind: ClassVar[str] = "convolution"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("in_channels", "out_channels"):
            if getattr(self, field) % self.groups:
                raise self._refused(field, f"a multiple of groups, which is {self.groups}")
        if not self.output_padding:
            return
        if not self.transposed or len(self.output_padding) != len(self.kernel_size):
            raise self._refused("output_padding", "none, or of a transposed kernel one an axis")
        if any(p >= s for p, s in zip(self.output_padding, self.strides, strict=True)):
            raise self._refused("output_padding", f"less than the stride, {list(self.strides)}")
        if not any(self.output_padding):
            object.__setattr__(self, "output_padding", ())

    @property
    def input_shape(self) -> Shape | None:
        """The axes of a row that it takes, where the layer tells."""
        return (self.in_channels,) if len(self.kernel_size) == self.over_time else None

    @property
    def output_paddings(self) -> tuple[int, ...]:
        return self.output_padding or (0,) * len(self.kernel_size)

    def of_row(self, shape: Shape) -> Shape:
        if shape[:1] != (self.in_channels,):
            axes = ", ".join(
                ["channels"] + ["positions"] * (len(self.kernel_size) - self.over_time)
            )
            raise ValueError(
                f"it takes rows ({axes}) of {self.in_channels} channels, and is given {Row(shape)}"
            )
        self._check_time(math.prod(shape))
        return (self.out_channels, *self.moved(shape))

    def tail(self, axis: int) -> int:
        """What a transposed kernel's output has beyond ``stride`` numbers for each input."""
        (before, behind), stride = self.paddings[axis], self.strides[axis]
        return self.reaches[axis] + 1 - stride + self.output_paddings[axis] - before - behind

    def moved(self, shape: Shape) -> Shape:
        if not self.transposed:
            return super().moved(shape)
        sizes = tuple(
            size * self.strides[axis] + self.tail(axis)
            for axis, size in enumerate(self._axes(shape), self.over_time)
        )
        if any(size < 1 for size in sizes):
            raise ValueError(f"its padding cuts off all of what it makes of {Row(shape)}")
        return sizes

    @property
    def terms(self) -> tuple[Term, Term]:
        if not (self.over_time and self.transposed):
            return super().terms
        before, stride, tail = self.paddings[0][0], self.strides[0], self.tail(0)
        return Term(stride, tail), Term(stride, -self.late - before)

    @property
    def late(self) -> int:
        """Rows that a stream of a transposed kernel cannot give before the end.

        What is cut off behind a sequence may be more than what the last input alone makes.
        """
        return max(-self.tail(0) - self.paddings[0][0], 0)

    @property
    def kept(self) -> int:
        if not self.transposed:
            return super().kept
        return -((-self.late - self.reaches[0]) // self.strides[0])

    def tensors(self) -> dict[str, Shape]:
        rows, columns = self.out_channels, self.in_channels // self.groups
        if self.transposed:
            rows, columns = self.in_channels, self.out_channels // self.groups
        shapes: dict[str, Shape] = {"weight": (rows, columns, *self.kernel_size)}
        return shapes | ({"bias": (self.out_channels,)} if self.bias else {})

    @property
    def depthwise(self) -> bool:
        """Whether each output is made of one channel, its own: its weights are no matrix."""
        return self.groups == self.in_channels == self.out_channels > 1

    def matrices(self) -> dict[str, int]:
        return {} if self.depthwise else {"weight": int(self.transposed)}

    def work(self, reads: Sequence[Row]) -> int:
        positions = math.prod(self.moved(reads[0].shape))
        return (
            (self.out_channels * self.in_channels // self.groups)
            * positions
            * math.prod(self.kernel_size)
        )


@frozen
class Pooling(Sliding):
    """``torch.nn.MaxPool1d``, ``AvgPool2d`` and their kin.

    `function` is ``"max"`` or ``"average"``. An average counts the padding too, unless
    `count_include_pad` is false. A maximum never does.

    Padding is at most what a kernel reaches over, so that each one begins before the end of the
    input and ends behind its beginning. One whose dilation is larger than an axis may still step
    over all of it. Within a step such options are refused; over time, the length of a sequence is
    not known before. Of nothing but padding, then, a maximum is minus infinity, as torch's is, and
    an average is that of the padding, 0, or, if it does not count, of no numbers, NaN.
    """

    function: str
    kernel_size: tuple[int, ...]
    _: KW_ONLY
    count_include_pad: bool = extra(default=True)
    kind: ClassVar[str] = "pooling"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.function not in ("max", "average"):
            raise self._refused("function", "'max' or 'average'")
        if self.function == "max" and not self.count_include_pad:
            raise self._refused("count_include_pad", "true where function is 'max'")
        for reach, padding in zip(self.reaches, self.paddings, strict=True):
            if max(padding) > reach:
                raise self._refused(
                    "padding",
                    f"at most {list(self.reaches)}, dilation * (kernel_size - 1), before and "
                    f"behind each axis: of more, some kernels see no input",
                )

    @property
    def counts(self) -> bool:
        return super().counts or self.reaches[0] > 0  # what is padding is not seen as a number

    def of_row(self, shape: Shape) -> Shape:
        moved = self.moved(shape)
        self._check_seen(shape, moved)
        self._check_time(math.prod(shape))
        return (shape[0], *moved)

    def _check_seen(self, shape: Shape, moved: Shape) -> None:
        """Check that at each place over positions the kernel sees one that is no padding."""
        options = list(zip(self.strides, self.dilations, self.paddings, strict=True))
        for size, places, (stride, dilation, (before, _)) in zip(
            self._axes(shape), moved, options[self.over_time :], strict=True
        ):
            if size >= dilation:
                continue
            # The kernel at place j begins at a = stride * j - before. It reaches into the axis, so
            # it touches its first `dilation` numbers at a % dilation, of which `size` are there:
            # a // dilation - (a - size) // dilation is 1 if that is one of them, and else 0.
            seen = _floor_sum(places, stride, -before, dilation)
            seen -= _floor_sum(places, stride, -before - size, dilation)
            if seen < places:
                raise ValueError(
                    f"at {places - seen} of {places} places its kernel sees nothing but padding: "
                    f"its dilation, {dilation}, steps over an axis of {size}; expected a dilation "
                    f"of at most {size}, or another padding"
                )

    def work(self, reads: Sequence[Row]) -> int:
        return reads[0].shape[0] * math.prod((*self.moved(reads[0].shape), *self.kernel_size))


def _floor_sum(n: int, factor: int, offset: int, divisor: int) -> int:
    """The sum of ``(factor * j + offset) // divisor`` over j from 0 to n - 1, as Euclid divides.

    It takes the steps of a greatest common divisor: n may be any number that a file has.
    """
    total = 0
    while n > 0:
        # Whole multiples of the divisor are summed at once; points below what is left of the line
        # are counted by the rows that they stand in, which is such a sum with the axes exchanged.
        total += n * (n - 1) // 2 * (factor // divisor) + n * (offset // divisor)
        factor, offset = factor % divisor, offset % divisor
        n, offset = divmod(factor * n + offset, divisor)
        factor, divisor = divisor, factor
    return total
