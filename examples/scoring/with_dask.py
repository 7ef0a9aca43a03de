"""Score a folder of Parquet files with Dask: workers that map one model file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import dask.dataframe as dd
import pyarrow as pa
from distributed import Client
from score import Score


@contextlib.contextmanager
def running(workers: int) -> Iterator[None]:
    """Workers on this machine; ``Client("tcp://scheduler:8786")`` has those of several."""
    with Client(n_workers=workers, threads_per_worker=1, dashboard_address=None):
        yield


def score(model: Path, sequences: Path, scored: Path, workers: int) -> None:
    """Write a file for each partition, which here is a file."""
    table, scorer, lists = dd.read_parquet(sequences), Score(model), pa.list_(pa.float32())
    made = table.map_partitions(scorer, meta=scorer(table.head(0)))
    columns = pa.schema({"id": pa.int64(), "x": lists, "y": lists})
    made.to_parquet(scored, schema=columns, write_index=False)
