"""Frozen dataclasses that share their methods, for everything that a graph is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

__all__ = ["Frozen", "extra", "frozen"]

Kind = TypeVar("Kind")


def extra(*, default: Any, least: float | None = None) -> Any:
    """A field that a file holds only where it is not `default`: most layers do without it."""
    metadata = {"extra": True} | ({} if least is None else {"least": least})
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, extra))
def frozen(cls: type[Kind]) -> type[Kind]:
    """A frozen dataclass that takes its methods from :class:`Frozen`.

    To generate them for each of these classes would take most of the time in which the vocabulary
    is imported.
    """
    return dataclasses.dataclass(init=False, repr=False, eq=False)(cls)


class Frozen:
    """What a frozen dataclass can do, by its fields."""

    if TYPE_CHECKING:  # a type checker takes the arguments from the fields
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    else:

        def __init__(self, *values: Any, **options: Any) -> None:
            known = fields(self)
            by_position = [field.name for field in known if not field.kw_only]
            given = dict(zip(by_position, values)) | options  # noqa: B905 - checked below
            if len(values) > len(by_position) or len(given) < len(values) + len(options):
                raise TypeError(f"{type(self).__name__} takes {', '.join(by_position)}, each once")
            for field in known:
                if field.name not in given and field.default is MISSING:
                    raise TypeError(f"{type(self).__name__} needs {field.name}")
                object.__setattr__(self, field.name, given.pop(field.name, field.default))
            if given:
                raise TypeError(f"{type(self).__name__} takes no {', '.join(given)}")
            self.__post_init__()

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to {name!r} of {type(self).__name__}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete {name!r} of {type(self).__name__}")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"{type(self).__name__}({inside})"

    def __post_init__(self) -> None:
        """Check the fields, and give them the form that is kept."""
