"""Texts given to a command, as tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastlstm import Model
from fastlstm.tokens import tokenise, unknown_note

__all__ = ["tokenise_all"]


def tokenise_all(model: Model, texts: Sequence[str], option: str) -> list[list[int]]:
    """The tokens of each text; characters that are unknown are noted on standard error.

    Raises
    ------
    ValueError
        If the model has no vocabulary, or one that lacks a character and has no ``"<unk>"``.
    """
    if model.vocabulary is None:
        raise ValueError(
            f"this model has no vocabulary to read {option} with; give --tokens, or convert it "
            f"again with --vocabulary"
        )
    unknown: dict[str, None] = {}
    found = []
    for text in texts:
        tokens, lacking = tokenise(text, model.vocabulary)
        found.append(tokens)
        unknown |= dict.fromkeys(lacking)
    if unknown:
        print(f"fastlstm: note: {unknown_note(list(unknown))}", file=sys.stderr)
    return found
