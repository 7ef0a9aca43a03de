"""Score a folder of Parquet files with Ray Data: actors that map one model file."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import ray
from one_process import BATCH
from score import Score


class KilledOnce(Score):
    """A Score whose process dies as by ``kill -9``, the first time that the row `id` is scored."""

    def __init__(self, path: Path, id: int, mark: Path) -> None:
        super().__init__(path)
        self.id, self.mark = id, mark

    def __call__(self, table: pd.DataFrame) -> pd.DataFrame:
        made = super().__call__(table)
        if self.id in set(table["id"]) and not self.mark.exists():
            self.mark.write_text(f"{os.getpid()}\n", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return made


@contextlib.contextmanager
def running(workers: int) -> Iterator[None]:
    """Ray on this machine; ``ray.init("auto")`` joins the cluster that this one is a part of."""
    # An actor has a processor to itself: without one more, nothing would read or write.
    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def score(
    model: Path, sequences: Path, scored: Path, workers: int, kill_at: int | None = None
) -> None:
    """Write files of Ray's own names.

    Parameters
    ----------
    kill_at : int, optional
        The `id` of a row: the actor that scores it first is killed before it can answer, and
        leaves its number in a file beside `scored`.
    """
    # Lists stay lists in the files, not tensors in a type that only Ray knows.
    options = ray.data.DataContext.get_current()
    options.enable_tensor_extension_casting = False
    options.enable_progress_bars = False
    if kill_at is None:
        maker, given = Score, (model,)
    else:
        maker, given = KilledOnce, (model, kill_at, Path(f"{scored}.killed"))
    ray.data.read_parquet(str(sequences)).map_batches(
        maker,
        fn_constructor_args=given,
        batch_format="pandas",
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=workers),
    ).write_parquet(str(scored))
