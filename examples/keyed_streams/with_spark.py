"""The same in Spark Structured Streaming: ``python with_spark.py FOLDER``.

Reads FOLDER/log, Parquet files of `record`, `key` and `x` in the order of their times, one for each
micro-batch, and writes FOLDER/spark. It goes on from FOLDER/checkpoint, however the last run ended.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from keyed_streams import KeyedStreams
from pyspark.sql import SparkSession
from pyspark.sql.streaming import StatefulProcessor

import fastlstm

PROVIDER = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
SETTINGS = {
    "spark.sql.streaming.stateStore.providerClass": PROVIDER,  # the one that such states need
    "spark.sql.parquet.compression.codec": "uncompressed",
    "spark.io.compression.codec": "zstd",
    "spark.sql.shuffle.partitions": "2",
}


class Steps(StatefulProcessor):  # type: ignore[misc]
    """Steps the stream of each key by the rows that a micro-batch has of it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def init(self, handle: Any) -> None:
        self.stream = handle.getValueState("stream", "bytes binary")
        model = fastlstm.load(self.path, mmap=True, reproducible=True)
        self.streams = KeyedStreams(model, most=1)

    def handleInputRows(  # noqa: N802 - Spark's name
        self, key: tuple[Any], rows: Iterator[pd.DataFrame], timers: Any
    ) -> Iterator[pd.DataFrame]:
        # Spark keeps no order within a micro-batch; the log has one.
        table = pd.concat(rows).sort_values("record")
        before = bytes(self.stream.get()[0]) if self.stream.exists() else None
        x = np.stack([np.asarray(row, np.float32) for row in table["x"]])
        (after,), (y,) = self.streams.process([before], [x])
        self.stream.update((after,))
        yield pd.DataFrame({"record": table["record"], "key": key[0], "y": list(y)})

    def close(self) -> None:
        pass


def write_log(folder: Path, files: int) -> None:
    """The records of sample.py as files, each a second younger than the one before."""
    records = np.load(folder / "records.npy")
    (folder / "log").mkdir()
    for number, some in enumerate(np.array_split(np.arange(len(records)), files)):
        x = pa.array(list(records["x"][some]), pa.list_(pa.float32()))
        table = pa.table({"record": some, "key": records["key"][some], "x": x})
        path = folder / "log" / f"{number:06}.parquet"
        pq.write_table(table, path, compression="none")
        os.utime(path, (1e9 + number, 1e9 + number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that sample.py wrote")
    parser.add_argument("--files", type=int, default=8, help="of the log, if there is none yet")
    folder, files = vars(parser.parse_args()).values()
    if not (folder / "log").exists():
        write_log(folder, files)
    # For the Python of this machine; a cluster has it by spark-submit --py-files.
    beside = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, beside))
    builder = SparkSession.builder.master("local[2]")
    session = builder.config(map=SETTINGS).getOrCreate()
    log = session.readStream.schema("record long, key long, x array<float>")
    records = log.option("maxFilesPerTrigger", 1).parquet(str(folder / "log"))
    steps = Steps(str((folder / "model.safetensors").resolve()))
    columns = "record long, key long, y array<float>"
    made = records.groupBy("key").transformWithStateInPandas(steps, columns, "Append", "None")
    sink = made.writeStream.format("parquet").option("path", str(folder / "spark"))
    sink = sink.option("checkpointLocation", str(folder / "checkpoint"))
    sink.trigger(availableNow=True).start().awaitTermination()
    session.stop()


if __name__ == "__main__":
    main()
