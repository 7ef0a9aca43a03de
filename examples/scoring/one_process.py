"""Score a folder of Parquet files in this process."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from score import Score

BATCH = 256  # sequences that run together, in whichever engine


def score(model: Path, sequences: Path, scored: Path) -> None:
    """Write a file for each file."""
    scored.mkdir(parents=True)
    scorer = Score(model)
    for path in sorted(sequences.glob("*.parquet")):
        table = pd.read_parquet(path)
        parts = [scorer(table[at : at + BATCH]) for at in range(0, len(table), BATCH)]
        pd.concat(parts).to_parquet(scored / path.name)
