"""Kernels that slide over axes of an array, of which one may be time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import places as at
from fastlstm.sources.arrays.core import Core, Operand, ShortError, SizeError, Value
from fastlstm.sources.arrays.places import ANY, FILL

__all__ = ["Sliding"]

Array = npt.NDArray[Any]
Pairs = Sequence[tuple[int, int]]

FEWEST = 4  # steps of a row by which it is seen that they are steps


class Sliding(Core):
    """The part of :class:`~fastlstm.sources.arrays.Builder` for convolutions and poolings."""

    def convolution(
        self,
        x: Operand,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Sequence[int] = (),
        dilation: Sequence[int] = (),
        padding: Pairs = (),
        groups: int = 1,
        transposed: bool = False,
        output_padding: Sequence[int] = (),
    ) -> Any:
        """``torch.nn.functional.conv1d`` and its kin of (N, C, ...); sizes one for each axis."""
        if not isinstance(x, Value) or isinstance(weight, Value) or isinstance(bias, Value):
            raise ConvertError("a convolution needs an array that depends on an input, and weights")
        n = weight.ndim - 2
        C = weight.shape[0] if transposed else weight.shape[1] * groups
        if x.ndim == n + 1:
            made = self.convolution(
                self.move(lambda p: p[None], x), weight, bias, stride=stride, dilation=dilation,
                padding=padding, groups=groups, transposed=transposed,
                output_padding=output_padding,
            )  # fmt: skip
            return self.move(lambda p: p[0], made)
        if x.ndim != n + 2 or x.shape[1] != C:
            got = x.shape[1] if x.ndim > 1 else 1
            raise SizeError(f"a convolution of {C} channels is given {x.shape}", got, C)
        out = weight.shape[1] * groups if transposed else weight.shape[0]
        options: dict[str, Any] = {
            "stride": tuple(stride) or (1,) * n,
            "dilation": tuple(dilation) or (1,) * n,
            "padding": tuple(padding) or ((0, 0),) * n,
        }
        if transposed:
            options |= {"output_padding": tuple(output_padding) or (0,) * n, "transposed": True}
        fixed = {
            "in_channels": C,
            "out_channels": out,
            "groups": groups,
            "bias": bias is not None,
        }
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})

        def layer(kernel: tuple[int, ...], over_time: bool, **options: Any) -> spec.Convolution:
            return spec.Convolution(
                self.layer_name, kernel_size=kernel, over_time=over_time, **fixed, **options
            )

        return self._slide(x, weight.shape[2:], layer, tensors, options)

    def pool(
        self,
        x: Operand,
        function: str,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] = (),
        dilation: Sequence[int] = (),
        padding: Pairs = (),
        count_include_pad: bool = True,
        ceil: bool = False,
    ) -> Any:
        """``max_pool1d``, ``avg_pool2d`` and their kin of (N, C, ...): `function` max or mean."""
        if not isinstance(x, Value):
            raise ConvertError("a pooling needs an array that depends on an input")
        n = len(kernel)
        if x.ndim == n + 1:
            made = self.pool(
                self.move(lambda p: p[None], x), function, kernel, stride=stride,
                dilation=dilation, padding=padding, count_include_pad=count_include_pad, ceil=ceil,
            )  # fmt: skip
            return self.move(lambda p: p[0], made)
        options: dict[str, Any] = {
            "stride": tuple(stride) or tuple(kernel),
            "dilation": tuple(dilation) or (1,) * n,
            "padding": tuple(padding) or ((0, 0),) * n,
        }
        if ceil:
            self._refuse_ceil(x.shape[2:], kernel, options)

        def layer(kernel: tuple[int, ...], over_time: bool, **options: Any) -> spec.Pooling:
            padded = any(map(any, options["padding"]))
            return spec.Pooling(
                self.layer_name,
                {"mean": "average"}.get(function, function),
                kernel,
                over_time=over_time,
                count_include_pad=count_include_pad or not padded,
                **options,
            )

        return self._slide(x, tuple(kernel), layer, {}, options)

    def _refuse_ceil(self, sizes: Sequence[int], kernel: Sequence[int], options: Any) -> None:
        for size, k, s, d, p in zip(
            sizes, kernel, options["stride"], options["dilation"], options["padding"], strict=True
        ):
            if (size + sum(p) - d * (k - 1) - 1) % s:
                raise ConvertError("ceil_mode counts a window that reaches behind the array")

    def _slide(
        self,
        x: Value,
        kernel: tuple[int, ...],
        layer: Any,
        tensors: dict[str, Array],
        options: dict[str, Any],
    ) -> Value:
        """What a kernel makes of (N, C, ...), within a step or over time too."""
        self.count()
        axis = self._time_axis(x.places)
        last = self._last_steps(x.places, kernel, options) if axis is None else None
        if last is not None:
            return self._over_last_steps(x.places, last, kernel, layer, tensors, options)
        if axis is None:
            made = layer(kernel, False, **options)
            given = self.frame([x.places], core=x.ndim - 1)
            reads, moment = self.reads(given, [x.places], core=x.ndim - 1)
            node = self.rows.node(made, reads, tensors)
            return Value(self.back(given, node, node.shape, moment))
        return self._over_time(x.places, axis, kernel, layer, tensors, options)

    def _time_axis(self, places: Array) -> int | None:
        """Which of the axes that a kernel slides over is time; None if none is."""
        moved = np.moveaxis(places, 1, -1)
        parts = self.frame([moved], core=1).axes
        axes = [n for n, axis in enumerate(parts) if any(part.kind == "time" for part in axis)]
        if not axes or axes[0] == 0:
            return None
        if len(parts[axes[0]]) > 1:
            raise ConvertError("a kernel slides over an axis that is time and something else")
        return axes[0] + 1

    def _turned(
        self, axis: int, kernel: tuple[int, ...], tensors: dict[str, Array], options: dict[str, Any]
    ) -> tuple[tuple[int, ...], dict[str, Array], dict[str, Any]]:
        """Kernel, tensors and options with the axis of time first."""
        at_axis = axis - 2
        order = [at_axis, *(n for n in range(len(kernel)) if n != at_axis)]
        if order != list(range(len(kernel))):
            moves = [0, 1, *(n + 2 for n in order)]
            tensors = {
                s: self.derived(a, f"turned {moves}", lambda w: w.transpose(moves))
                if s == "weight" else a
                for s, a in tensors.items()
            }  # fmt: skip
        turned = {
            name: tuple(value[n] for n in order) if isinstance(value, tuple) else value
            for name, value in options.items()
        }
        return tuple(kernel[n] for n in order), tensors, turned

    def _over_time(
        self,
        places: Array,
        axis: int,
        kernel: tuple[int, ...],
        layer: Any,
        tensors: dict[str, Array],
        options: dict[str, Any],
    ) -> Value:
        kernel, tensors, options = self._turned(axis, kernel, tensors, options)
        # (N, time, C, positions): zeros before and behind are the kernel's own padding.
        moved = np.moveaxis(places, axis, 1)
        there = (moved != FILL).any(axis=(0, *range(2, moved.ndim)))
        first, last = int(there.argmax()), len(there) - int(there[::-1].argmax())
        inner = moved[:, first:last]
        before, behind = options["padding"][0]
        padding = ((before + first, behind + len(there) - last), *options["padding"][1:])
        if (first or last < len(there)) and (options.get("transposed") or not tensors):
            raise ConvertError("what is padded with zeros in time is no input of this kernel")
        core = places.ndim - 2
        given = self.frame([inner], core=core)
        reads, moment = self.reads(given, [inner], core=core)
        made = layer(kernel, True, **(options | {"padding": padding}))
        node = self.rows.node(made, reads, tensors)
        reach = made.reaches[0]
        short = node.steps < (FEWEST if self.may_be_longer else 1)
        if self.may_be_longer and not options.get("transposed"):
            # Most of what it gives has to be of steps that are there, so that those are seen.
            short = short or node.steps >= 2 * inner.shape[1]
        if short:
            raise ShortError(
                f"a kernel reaches over {reach} steps", 2 * reach + FEWEST * made.strides[0]
            )
        result = self.back(given.with_steps(node.steps), node, node.shape, moment)
        return Value(np.moveaxis(result, 1, axis))

    def _last_steps(
        self, places: Array, kernel: tuple[int, ...], options: dict[str, Any]
    ) -> int | None:
        """The axis along which the last steps of a row stand, all of which the kernel sees once."""
        if options.get("transposed") or self.steps:
            return None
        for n, size in enumerate(kernel):
            reach, axis = options["dilation"][n] * (size - 1), n + 2
            if not reach or places.shape[axis] != reach + 1 or options["padding"][n] != (0, 0):
                continue
            moved = np.moveaxis(places, axis, -1)
            newest = moved[..., -1:]
            if (newest == FILL).any() or (at.steps_of(newest) == ANY).any():
                continue
            ages = np.arange(reach + 1)[::-1]
            if np.array_equal(moved, at.shifted(np.broadcast_to(newest, moved.shape), ages)):
                return axis
        return None

    def _over_last_steps(
        self,
        places: Array,
        axis: int,
        kernel: tuple[int, ...],
        layer: Any,
        tensors: dict[str, Array],
        options: dict[str, Any],
    ) -> Value:
        """A kernel over the last steps of a row is one over time."""
        kernel, tensors, options = self._turned(axis, kernel, tensors, options)
        options = options | {
            "padding": ((places.shape[axis] - 1, 0), *options["padding"][1:]),
            "stride": (1, *options["stride"][1:]),
        }
        newest = np.moveaxis(places, axis, 1)[:, -1]
        core = newest.ndim - 1
        given = self.frame([newest], core=core)
        reads, moment = self.reads(given, [newest], core=core)
        node = self.rows.node(layer(kernel, True, **options), reads, tensors)
        result = self.back(given, node, node.shape, moment)
        return Value(np.expand_dims(result, axis))
