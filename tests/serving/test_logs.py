"""What a server logs: lines of JSON, a bounded number of each kind."""

from __future__ import annotations

import json
import logging

import pytest

from fastlstm.serving import logs

log = logging.getLogger("fastlstm.serving")


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are afterwards what they were."""
    for name in logs.LOGGERS:
        for attribute in ("handlers", "propagate", "level"):
            logger = logging.getLogger(name)
            monkeypatch.setattr(logger, attribute, getattr(logger, attribute))
        monkeypatch.setattr(logger, "handlers", [])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_an_object(capsys):
    logs.set_up()
    why = "\x1b[31m \u202e ü\n"
    log.warning("refused", extra={"fields": {"why": why}})
    raw = capsys.readouterr().err
    assert raw.isascii()
    assert "\x1b" not in raw
    assert raw.count("\n") == 1
    found = json.loads(raw)
    assert (found["level"], found["event"], found["why"]) == (
        "warning",
        "refused",
        "\x1b[31m \u202e ü\n",
    )


def test_a_flood_is_a_few_lines(capsys, monkeypatch):
    logs.set_up()
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])

    def refuse(number: int) -> None:
        log.warning("refused", extra={"fields": {"number": number}})

    for number in range(1000):
        refuse(number)
        log.warning(f"a task at {number:#x} failed")  # as asyncio says it: never twice the same
    found = lines(capsys)
    assert len(found) == 2 * logs.MOST_ALIKE
    now[0] = logs.WINDOW_SECONDS
    refuse(1000)
    (found,) = lines(capsys)
    assert found["left_out"] == 1000 - logs.MOST_ALIKE


def test_a_long_text_is_cut(capsys):
    logs.set_up()
    try:
        raise ValueError("x" * 100_000)
    except ValueError:
        log.exception("y" * 100_000)
    (line,) = lines(capsys)
    assert len(json.dumps(line)) < 3 * logs.MOST_CHARACTERS
    assert str(line["error"]).endswith("x")


def test_others_are_heard_from_warnings_on(capsys):
    logs.set_up()
    logging.getLogger("uvicorn.error").info("started")
    logging.getLogger("asyncio").error("late")
    (line,) = lines(capsys)
    assert (line["event"], line["logger"]) == ("late", "asyncio")
