"""Lines of JSON on standard error, however much there is to say a bounded number of them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

__all__ = ["set_up"]

MOST_ALIKE = 10  # lines of one kind
WINDOW_SECONDS = 60.0
MOST_CHARACTERS = 4000  # of a traceback or text

# Ours, and those of the libraries that speak the protocols.
LOGGERS = ("fastlstm.serving", "uvicorn.error", "asyncio", "grpc")


class Limit(logging.Filter):
    """Lets a few lines of each kind pass in a minute; the first of the next one tells how many not.

    Lines are of one kind if they come from one place in the code: clients can change their text.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], list[float]] = {}  # since, lines

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.pathname, record.lineno
        now = time.monotonic()
        seen = self._seen.get(kind)
        if seen is None or now - seen[0] >= WINDOW_SECONDS:
            if seen is not None and seen[1] > MOST_ALIKE:
                record.left_out = int(seen[1]) - MOST_ALIKE
            seen = self._seen[kind] = [now, 0]
        seen[1] += 1
        return seen[1] <= MOST_ALIKE


class Lines(logging.Formatter):
    """A record as one line of JSON, in ASCII: nothing in it reaches a terminal raw."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage()[:MOST_CHARACTERS],
        }
        line |= getattr(record, "fields", {})
        if record.name != LOGGERS[0]:
            line["logger"] = record.name
        if left_out := getattr(record, "left_out", 0):
            line["left_out"] = left_out
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)[-MOST_CHARACTERS:]
        return json.dumps(line)


def set_up(level: str = "INFO") -> None:
    """Have all that a server logs go through one handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    handler.addFilter(Limit())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level if name == LOGGERS[0] else "WARNING")
        logger.propagate = False
