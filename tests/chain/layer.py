"""What all layers share: a name, checked fields, tensors, state, and how they treat time."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import sys
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

from fastlstm.spec.frozen import Frozen
from fastlstm.spec.layer import MAX_SIZE

__all__ = ["MAX_SIZE", "Layer", "SameSize", "extra", "layer_kind"]

Kind = TypeVar("Kind")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


def extra(*, default: Any, least: int = 1) -> Any:
    """A field that a file holds only where it is not `default`: most layers do without it."""
    metadata = {"extra": True, "least": least}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, extra))
def layer_kind(cls: type[Kind]) -> type[Kind]:
    """A frozen dataclass that takes its methods from :class:`Layer`, with the fields of `extra`."""
    return dataclasses.dataclass(init=False, repr=False, eq=False)(cls)


@layer_kind
class Layer(Frozen):
    """One layer of a model: its options, the tensors it needs and the state it keeps.

    Parameters
    ----------
    name : str
        Unique within the model; tensors are called ``<name>.<suffix>``, and so are state arrays,
        such as ``<name>.h``.
    """

    name: str
    kind: ClassVar[str]
    takes_tokens: ClassVar[bool] = False
    pools: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"layer name {self.name!r:.80} is not usable; expected 1 to 200 letters, digits, "
                f"'_', '.' or '-', not starting with '.' or '-'"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                least = field.metadata.get("least", 1)
                if hasattr(value, "__index__") and not isinstance(value, bool):
                    # A size that was read from an array is NumPy's integer.
                    object.__setattr__(self, field.name, value := operator.index(value))
                if type(value) is not int or not least <= value <= MAX_SIZE:
                    raise self._refused(field.name, f"an integer from {least} to {MAX_SIZE}")
            elif field.type == "bool" and type(value) is not bool:
                raise self._refused(field.name, "true or false")
            elif field.type == "float":
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if number and value <= sys.float_info.max:  # an integer may be larger
                    object.__setattr__(self, field.name, value := float(value))
                if type(value) is not float or not 0 <= value < math.inf:
                    raise self._refused(field.name, "a finite number of at least 0")
            elif field.type == "tuple[str, ...]" and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

    def _refused(self, field: str, expected: str) -> ValueError:
        return ValueError(
            f"layer {self.name!r}: {field} is {getattr(self, field)!r:.80}; expected {expected}"
        )

    if TYPE_CHECKING:  # a property here would become the default of a field of the same name

        @property
        def input_size(self) -> int:
            """Features a step of this layer reads (for a token layer, the tokens it knows)."""

        @property
        def output_size(self) -> int:
            """Features a step of this layer writes."""

    @property
    def looks_ahead(self) -> str:
        """Why an output needs later steps, so that the layer cannot be streamed; "" if it can."""
        return ""

    @property
    def delay(self) -> int:
        """Steps to read before the first output, beyond the first."""
        return 0

    @property
    def step_stride(self) -> int:
        """Steps to read for each further output."""
        return 1

    def steps(self, T: int) -> int:
        """Outputs of a whole sequence of `T` steps."""
        return T

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Full tensor name -> shape, in PyTorch's order."""
        return {}

    def state(self) -> dict[str, tuple[int, int]]:
        """Full state name -> (depth, size) for one stream; empty for a layer without state."""
        return {}

    def initial(self) -> dict[str, str]:
        """Full state name -> name of the tensor it starts from, where that is not zero."""
        return {}

    @property
    def work(self) -> int:
        """Multiply-adds of a step, at most; a function of one number counts as eight."""
        return sum(math.prod(shape) for shape in self.tensors().values()) + 8 * self.output_size

    def counts(self) -> dict[str, int]:
        """Full state name -> bound, of state that is an integer from 0 to below the bound."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON values, ``kind`` first."""
        values: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if not (field.metadata.get("extra") and value == field.default):
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Layer:
        """The inverse of :meth:`to_dict` without its ``kind``, strict."""
        known = {f.name: f for f in fields(cls)}
        needed = {name for name, f in known.items() if not f.metadata.get("extra")}
        if wrong := sorted(map(str, (options.keys() - known) | (needed - options.keys()))):
            raise ValueError(
                f"layer kind {cls.kind!r}: missing or unknown fields "
                f"{', '.join(map(repr, wrong)):.200}"
            )
        for name, value in options.items():
            field = known[name]
            if field.type == "tuple[str, ...]" and (
                not isinstance(value, list) or not all(isinstance(text, str) for text in value)
            ):
                raise ValueError(f"layer kind {cls.kind!r}: {name} is not a list of strings")
            if field.default is not MISSING and field.metadata.get("extra"):
                given = tuple(value) if isinstance(value, list) else value
                if given == field.default and type(given) is type(field.default):
                    raise ValueError(
                        f"layer kind {cls.kind!r}: {name} is {value!r:.80}, which is left out"
                    )
        return cls(**options)

    def describe(self) -> str:
        """Options in the style of ``repr`` of a torch module, without the name."""
        inside = ", ".join(f"{k}={v}" for k, v in self.to_dict().items() if k not in _SILENT)
        return f"{self.kind}({inside})"


class SameSize(Layer):
    """A layer of as many features out as in, in a field ``size`` of each kind's own."""

    if TYPE_CHECKING:

        @property
        def size(self) -> int:
            """Features of a step."""

    @property
    def input_size(self) -> int:
        return self.size

    @property
    def output_size(self) -> int:
        return self.size


_SILENT = ("kind", "name")
