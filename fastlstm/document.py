"""The document: the JSON text of a file, judged as text before an object is made of it.

A text of a few bytes a value becomes objects of a hundred: what they would take is counted first,
so that a hostile text costs neither memory nor time.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["dump", "judge", "parse"]

# A graph of 4,000 nodes has about 200,000 items, a vocabulary one for each word.
MAX_NESTING, MAX_ITEMS, MAX_SCALAR = 16, 2**20, 40

# Bytes that an item takes at most, with its place in what holds it and, of a string, in a set of
# strings; a key that comes for the first time is also remembered by the parser.
SCALAR_BYTES, STRING_BYTES, LIST_BYTES, MAPPING_BYTES = 48, 96, 96, 300
KEY_BYTES, NEW_KEY_BYTES = 60, 350

# The closing quote is optional: else each quote in an open string would search to the end anew.
# Long white space is passed as one: to look for an item at each of its characters takes seconds.
_ITEM = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:]|[^\s"\[\]{}:,]++|[\s,]{64}[\s,]*+')

_SURROGATE = re.compile("[\ud800-\udfff]")


def dump(value: object) -> str:
    """JSON in ASCII, the same text for equal values whatever the order of their keys.

    Raises
    ------
    ValueError
        If a string holds half of a character (a surrogate), which no reader would give back.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if "\\ud" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            near = error.object[max(error.start - 20, 0) : error.end + 20]
            raise ValueError(f"{near!r} holds half of a character (a surrogate)") from error
    return text


def judge(text: str, most_bytes: int) -> None:
    """Check that what a text describes is bounded, in time that its length bounds.

    Parameters
    ----------
    text : str
        That is, or may be, JSON.
    most_bytes : int
        What its objects may take in memory.

    Raises
    ------
    ValueError
        If it is nested too deep, has too many items, a string that no encoding can hold, or takes
        too much memory.
    """
    nesting = needed = 0
    keys: set[str] = set()
    last = slice(0)
    for items, match in enumerate(_ITEM.finditer(text)):
        start, end = match.span()
        first = text[start]
        if first == '"':
            last = slice(start, end)
            escaped = text.find("\\u", start, end) >= 0
            needed += STRING_BYTES + (4 if escaped else 1) * (end - start)
            if needed <= most_bytes and escaped:
                _check_encodes(text[last])
        elif first == ":":
            new = needed <= most_bytes and text[last] not in keys
            needed += NEW_KEY_BYTES if new else KEY_BYTES
            if new:
                keys.add(text[last])
        elif first in "[{":
            nesting += 1
            needed += LIST_BYTES if first == "[" else MAPPING_BYTES
        elif first in "]}":
            nesting -= 1
        elif first != "," and not first.isspace():
            needed += SCALAR_BYTES
            if end - start > MAX_SCALAR:
                raise ValueError(f"{text[start : start + 40]!r} is no value; the file is damaged")
        if nesting > MAX_NESTING or items == MAX_ITEMS or needed > most_bytes:
            raise ValueError(
                f"the 'fastlstm' entry is nested more than {MAX_NESTING} deep, has more than "
                f"{MAX_ITEMS} items or takes more than {most_bytes} bytes of memory; the file is "
                f"damaged"
            )


def _check_encodes(string: str) -> None:
    # JSON can spell half of a surrogate pair; no encoding can, so it could not even be printed.
    try:
        half = _SURROGATE.search(json.loads(string))
    except ValueError:
        return  # which the parser tells better
    if half:
        raise ValueError(f"{string!r:.80} holds half of a character (a surrogate)")


def parse(text: str | bytes) -> Any:
    """The value of a text that was judged, or is known to be short; strict.

    Raises
    ------
    ValueError
        If it is not JSON, holds NaN or infinity, or a key twice.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{text[:40]!r} is not JSON: {error}; the file is damaged") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key appears twice in the metadata; the file is damaged")
    return mapping


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number; the file is damaged")
    return value
