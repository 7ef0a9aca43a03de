"""``fastlstm perplexity``: how well a token model predicts a text."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import fastlstm
from fastlstm.commands import terminal
from fastlstm.commands.arguments import add_model, load_model, tokens
from fastlstm.commands.texts import tokenise_all
from fastlstm.tokens import check_generates

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "measure how well a token model predicts a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.description = (
        "Measure how well a token model predicts a text: exp of the mean negative log likelihood "
        "of every token after the first. Of several texts, each starts from a zero state."
    )
    add_model(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--text", metavar="FILE", action="append", help="a file of UTF-8 text; may be given again"
    )
    given.add_argument(
        "--tokens",
        type=tokens,
        metavar="1,2,3",
        action="append",
        help="a text as tokens; may be given again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the perplexity of each text, and of all together."""
    model = load_model(arguments)
    check_generates(model)
    files = arguments.text or []
    texts = arguments.tokens or tokenise_all(model, [_read_text(file) for file in files], "--text")
    names = files or [f"--tokens number {number}" for number in range(1, len(texts) + 1)]
    found = []
    for name, text in zip(names, texts, strict=True):
        if len(text) < 2:
            raise ValueError(
                f"{name} holds fewer than two tokens; expected more, for the first has no "
                f"prediction"
            )
        found.append(fastlstm.perplexity(model, text))
    predicted = [len(text) - 1 for text in texts]
    shares = [n / sum(predicted) for n in predicted]
    together = math.prod(p**share for p, share in zip(found, shares, strict=True))
    if arguments.json:
        terminal.write_json(
            {
                "model": arguments.model,
                "isa": model.isa,
                "perplexity": together,
                "bits_per_token": math.log2(together),
                "predicted": sum(predicted),
                "texts": [
                    {"text": file, "perplexity": p, "bits_per_token": math.log2(p), "predicted": n}
                    for file, p, n in zip(
                        files or [None] * len(texts), found, predicted, strict=True
                    )
                ],
            }
        )
        return 0
    page = terminal.open_page()
    rows = list(zip(names, predicted, found, strict=True))
    if len(rows) > 1:
        rows.append(("all together", sum(predicted), together))
    page.table(
        ("text", "predicted", "perplexity", "bits/token"),
        [(name, f"{n:,}", f"{p:.4f}", f"{math.log2(p):.4f}") for name, n, p in rows],
        right="predicted perplexity bits/token",
    )
    return 0


def _read_text(path: str) -> str:
    try:
        # As it is: a model may know "\r" as a token.
        with Path(path).open(encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}") from None
