"""Types of TorchScript, as far as they tell how arrays are nested."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastlstm.errors import ConvertError

__all__ = ["nested", "places"]

MAX_TYPE = 1000


def places(kind: str, at: str = "") -> Iterator[tuple[str, str]]:
    """Place and type of each part of a type: of tuples ``"[1][0]"``, of an array "".

    ``Optional`` is what it may hold.
    """
    if len(kind) > MAX_TYPE:
        raise ConvertError(f"a type of more than {MAX_TYPE} characters: {kind!r:.80}")
    if match := re.fullmatch(r"Optional\[(.*)\]", kind):
        yield from places(match[1], at)
    elif match := re.fullmatch(r"Tuple\[(.*)\]", kind):
        for n, part in enumerate(_parts(match[1])):
            yield from places(part, f"{at}[{n}]")
    else:
        yield at, kind


def nested(kind: str, name: str, given: Mapping[str, Any]) -> Any:
    """A value of a type, of arrays by name and place: ``{"hc[0]": h, "hc[1]": c}``."""
    if match := re.fullmatch(r"Optional\[(.*)\]", kind):
        return nested(match[1], name, given)
    if match := re.fullmatch(r"Tuple\[(.*)\]", kind):
        return tuple(nested(k, f"{name}[{n}]", given) for n, k in enumerate(_parts(match[1])))
    return given[name]


def _parts(text: str) -> list[str]:
    """Types with commas between them."""
    parts, depth, begin = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    last = text[begin:].strip()
    return [*parts, last] if last else parts
