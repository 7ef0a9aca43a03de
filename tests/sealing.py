"""The digest of a model or state file, as its layout says it: for files that tests forge.

Written out on its own, so that these bytes do not follow a change of the package's unseen.
"""

from __future__ import annotations

import hashlib

START = b'{"__metadata__":{"fastlstm":"{\\"sha256\\":\\"'
BEGIN = 8 + len(START)
END = BEGIN + 64
ZEROS = b"0" * 64


def seal(data: bytes) -> bytes:
    """A file whose digest is right; one that has no place for a digest as it is."""
    if data[8:BEGIN] != START:
        return data
    blank = data[:BEGIN] + ZEROS + data[END:]
    return data[:BEGIN] + hashlib.sha256(blank).hexdigest().encode() + data[END:]
