"""How much a protobuf message would become, found out before it is parsed.

A field of two bytes becomes an object of a hundred, so that a small file can ask for any memory.
The bytes are walked through by the message's own description, without recursion, and the fields
that are there are counted.
"""

from __future__ import annotations

from typing import Any

__all__ = ["check_wire"]

MAX_FIELDS = 2**20
MAX_MESSAGES = 2**18  # within one another or side by side
MAX_DEPTH = 64

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MESSAGE = 11  # TYPE_MESSAGE of a field's description


def check_wire(data: bytes, description: Any) -> None:
    """Check that a message is whole and not of too many parts.

    Parameters
    ----------
    data : bytes
    description : google.protobuf.descriptor.Descriptor
        Of the message.

    Raises
    ------
    ValueError
        If it ends early, has a tag that no message has, or too many fields.
    """
    inner = _Inner()
    fields = messages = 0
    left = [(0, len(data), description, 1)]
    while left:
        at, end, kind, depth = left.pop()
        known = inner.of(kind)
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            tag, at = _varint(data, at, end)
            wire = tag & 7
            if wire == _VARINT:
                _, at = _varint(data, at, end)
            elif wire == _BYTES:
                size, at = _varint(data, at, end)
                message = known.get(tag >> 3)
                if message is not None:
                    messages += 1
                    if messages > MAX_MESSAGES or depth == MAX_DEPTH:
                        raise ValueError(
                            f"it has more than {MAX_MESSAGES} parts, or parts nested more than "
                            f"{MAX_DEPTH} deep"
                        )
                    if at + size > end:
                        raise ValueError("it ends early")
                    if size:
                        left.append((at, at + size, message, depth + 1))
                at += size
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"it has a field of wire type {wire}")
            if at > end:
                raise ValueError("it ends early")


class _Inner:
    """Number of a field -> description of the message that it is, by the message it is in."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, Any]] = {}

    def of(self, description: Any) -> dict[int, Any]:
        name = description.full_name
        if name not in self._known:
            self._known[name] = {
                number: field.message_type
                for number, field in description.fields_by_number.items()
                if field.type == _MESSAGE
            }
        return self._known[name]


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("it ends early" if at == end else "it has a number of more than 64 bits")
