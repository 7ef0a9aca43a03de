"""Which file one is: what a pickled model that is mapped refers to."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field

__all__ = ["KEEP", "Identity"]

KEEP = "keep the file as it was, or pickle a model that was loaded without mmap=True"


@dataclass(frozen=True)
class Identity:
    """Which file one is, and since when: equal for as long as nobody writes to it or replaces it.

    The time of change is set by the system alone: copying tools restore that of modification, and
    a deleted file's number is given to another.
    """

    path: str = field(compare=False)
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> Identity:
        return cls(
            path,
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def same_content(self, status: os.stat_result) -> bool:
        """Whether an open file has not been written to, though it may have been replaced since.

        What replaces a file unlinks it, which changes the time of change, and nothing in it.
        """
        found = Identity.of(self.path, status)
        return dataclasses.replace(found, changed_ns=self.changed_ns) == self

    def lasts(self) -> bool:
        """Whether the file is still there and still the same."""
        try:
            return Identity.of(self.path, os.stat(self.path)) == self
        except OSError:
            return False

    def require(self, found: Identity) -> None:
        if found != self:
            differing = [
                f"{name} {value}, found {vars(found)[name]}"
                for name, value in vars(self).items()
                if value != vars(found)[name] and name != "path"
            ]
            raise ValueError(
                f"the file changed after the pickled model was loaded from it: expected "
                f"{'; '.join(differing)}; {KEEP}"
            )
