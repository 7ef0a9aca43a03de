"""The forward of a live module as a program of arrays: recorded anew for each size of its inputs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.arrays import Builder
from fastlstm.sources.aten.forward import Input, Ran, flat
from fastlstm.sources.live.inputs import Given
from fastlstm.sources.live.subject import Subject
from fastlstm.sources.live.taint import tensors_in
from fastlstm.sources.torchscript.archive import read_archive
from fastlstm.sources.torchscript.program import ScriptForward

__all__ = ["LiveForward", "arguments"]

Array = npt.NDArray[Any]


def arguments(
    subject: Subject, given: Given, sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Random arrays of these sizes, as forward takes them."""
    import torch

    dtype = torch.float64 if subject.double else torch.float32

    def made(place: str) -> Any:
        generator = torch.Generator().manual_seed(0)
        if given.kinds.get(place) == "int":
            return torch.zeros(sizes[place], dtype=torch.int64)
        return torch.randn(sizes[place], generator=generator, dtype=dtype)

    return {
        name: tuple(map(made, places)) if isinstance(places, tuple) else made(places)
        for name, places in given.nested.items()
    }


class LiveForward:
    """The forward of a module, as :class:`~fastlstm.sources.aten.forward.Forward` has it.

    Parameters
    ----------
    subject : Subject
    given : Given
        What it takes.
    """

    def __init__(self, subject: Subject, given: Given) -> None:
        self._subject, self._given = subject, given
        first = arguments(subject, given, given.sizes)
        self._changed = subject.changed(first)
        self.inputs = tuple(
            Input(place, shape, given.kinds.get(place, "float"), state=n > 0)
            for n, (place, shape) in enumerate(given.shapes.items())
        )
        self.outputs = tuple(place or "output" for place, _ in flat(subject.run(first)))
        self.attributes: dict[str, Any] = dict(self._changed)
        self.dtypes: Mapping[int, str] = {}
        self._recorded: dict[Any, ScriptForward] = {}
        self.dtypes = dict(self._record(given.sizes).dtypes)

    def may_write(self) -> dict[str, Array]:
        """By path, arrays that a call changes."""
        return dict(self._changed)

    def _record(self, sizes: Mapping[str, tuple[int, ...]]) -> ScriptForward:
        """The record of forward for arrays of these sizes."""
        import torch

        key = tuple(sizes.items())
        if key in self._recorded:
            return self._recorded[key]
        subject, module = self._subject, self._subject.module
        own = module.forward
        given = arguments(subject, self._given, sizes)
        kept = {path: subject.tensor(path) for path in self._changed}
        states = [kept[path].detach().clone() for path in self._changed]
        arrays = [*tensors_in(given), *states]

        def forward(*arrays: Any) -> Any:
            """The forward of arrays alone, each state given and given back as one of them."""
            left = iter(arrays)

            def nested(places: Any) -> Any:
                return tuple(next(left) for _ in places) if isinstance(places, tuple) else next(left)

            named = {name: nested(places) for name, places in self._given.nested.items()}
            for path in self._changed:
                subject.put(path, next(left))
            returned = [tensor for _, tensor in flat(own(**named))]
            written = [subject.tensor(path) for path in self._changed]
            return (*returned, *written)

        vars(module)["forward"] = forward
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traced = torch.jit.trace(module, tuple(arrays), check_trace=False)
                archive = io.BytesIO(traced.save_to_buffer())
        except ConvertError:
            raise
        except Exception as error:  # of whatever a forward does
            raise ConvertError(
                f"it cannot be recorded: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        finally:
            del vars(module)["forward"]
            for path, tensor in kept.items():
                subject.put(path, tensor)
        made = self._recorded[key] = ScriptForward(read_archive(archive))
        return made

    def __call__(
        self, builder: Builder, given: Mapping[str, Any], states: Mapping[str, Any]
    ) -> Ran:
        """Follow it once, with these inputs and what these attributes hold."""
        sizes = {place: tuple(value.shape) for place, value in given.items()}
        script = self._record(sizes)
        places = [*self._given.shapes]
        values = [*(given[place] for place in places)]
        values += [states.get(path, start) for path, start in self._changed.items()]
        named = {one.name: value for one, value in zip(script.inputs, values, strict=True)}
        ran = script(builder, named, {})
        returned = [*ran.returned.values()]
        count = len(returned) - len(self._changed)
        return Ran(
            dict(zip(self._places(count), returned[:count], strict=True)),
            dict(zip(self._changed, returned[count:], strict=True)),
        )

    def _places(self, count: int) -> list[str]:
        """The places of what forward returned."""
        if len(self.outputs) != count:
            raise ConvertError(
                f"it gives {len(self.outputs)} arrays of one size of its inputs, and {count} of "
                f"another"
            )
        return [place if place != "output" else "" for place in self.outputs]


