"""Score a folder of Parquet files with Spark: Python workers that map one model file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pyspark.sql import SparkSession
from score import Score


@contextlib.contextmanager
def running(workers: int) -> Iterator[None]:
    """Spark in this process; ``spark-submit --py-files score.py`` sends it to a cluster."""
    session = SparkSession.builder.master(f"local[{workers}]").getOrCreate()
    session.sparkContext.addPyFile(str(Path(__file__).with_name("score.py")))
    yield
    session.stop()


def score(model: Path, sequences: Path, scored: Path, workers: int) -> None:
    """Write a file for each partition."""
    table = SparkSession.active().read.parquet(str(sequences))
    columns = "id long, x array<float>, y array<float>"
    table.mapInPandas(Score(model).each, columns).write.parquet(str(scored))
