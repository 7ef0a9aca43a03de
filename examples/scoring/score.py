"""Score: what a model gives for the sequences of a table, in whichever engine holds the table."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

import fastlstm


class Score:
    """A function of tables: the same table, with a column of what a model gives.

    A row of a table is a sequence. Its `x` holds T steps of I numbers, one step after the other in
    one list, and so does its new `y` hold those of the output.

    Pickled, it is a path and a fingerprint: each process of an engine maps the file that lies there
    on its machine, once, and refuses it if it is another model.

    Parameters
    ----------
    path : str or path
        Of a model with one input and one output.
    x, y : str
        Names of the columns: float32 (T * I,), or int64 (T,) of a model that takes tokens, and
        float32 (T' * O,).
    """

    def __init__(self, path: str | os.PathLike[str], x: str = "x", y: str = "y") -> None:
        self.path, self.x, self.y = os.path.abspath(path), x, y
        self.model = fastlstm.load(self.path, mmap=True, reproducible=True)
        if len(self.model.inputs) != 1 or len(self.model.outputs) != 1:
            raise ValueError(f"{path} has several inputs or outputs; expected a model with one")

    def __call__(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with `y`: for Ray's ``map_batches`` and Dask's ``map_partitions``."""
        (row,) = self.model.inputs.values()
        made, _ = self.model([np.reshape(x, (-1, *row)) for x in table[self.x].to_numpy()])
        return table.assign(**{self.y: pd.Series([y.ravel() for y in made], table.index, object)})

    def each(self, tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Table by table: for Spark's ``mapInPandas``."""
        return map(self, tables)

    def __reduce__(self) -> tuple[object, ...]:
        return again, (self.path, self.x, self.y, self.model.fingerprint)


@functools.lru_cache(maxsize=4)
def again(path: str, x: str, y: str, fingerprint: str) -> Score:
    """The Score of another process: one for all the tasks that a process is given."""
    score = Score(path, x, y)
    if score.model.fingerprint != fingerprint:
        raise ValueError(f"{path} is another model on this machine; expected a copy of the file")
    return score
