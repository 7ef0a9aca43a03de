"""Step a stream for each key of a log of records, each record exactly once.

``python exactly_once.py FOLDER`` reads model.safetensors and records.npy, and goes on from where
job.sqlite says that the last run came to, however that ended. It stands for an engine: the records
for a partition of a log, the database for a checkpoint and for a sink that takes part in it. What
has been read, the states after it and the output that came of it change together, in one
transaction, or not at all.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from pathlib import Path

import numpy as np
from keyed_streams import KeyedStreams

import fastlstm

TABLES = """
create table if not exists progress (records integer not null);
create table if not exists streams (key integer primary key, state blob not null);
create table if not exists outputs (record integer primary key, key integer, y blob not null);
insert into progress select 0 where not exists (select * from progress);
"""


def advance(job: sqlite3.Connection, streams: KeyedStreams, first: int, some: np.ndarray) -> None:
    """Step the streams of some records (N,), the first of which has the number `first`.

    Raises
    ------
    sqlite3.IntegrityError
        If another process, which should be dead, has written them meanwhile.
    """
    keys, of_record = np.unique(some["key"], return_inverse=True)
    numbers = [np.flatnonzero(of_record == i) for i in range(len(keys))]
    find = "select state from streams where key = ?"
    before = [(job.execute(find, (key,)).fetchone() or (None,))[0] for key in keys.tolist()]
    after, ys = streams.process(before, [some["x"][which] for which in numbers])
    outputs = [
        (first + n, key, row.tobytes())
        for key, which, y in zip(keys.tolist(), numbers, ys, strict=True)
        for n, row in zip(which.tolist(), y, strict=True)
    ]
    with job:
        job.executemany("insert into outputs values (?, ?, ?)", outputs)
        states = zip(keys.tolist(), after, strict=True)
        job.executemany("insert or replace into streams values (?, ?)", states)
        job.execute("update progress set records = ?", (first + len(some),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that sample.py wrote")
    parser.add_argument("--batch", type=int, default=256, help="records of a transaction")
    given = parser.parse_args()
    model = fastlstm.load(given.folder / "model.safetensors", reproducible=True)
    streams = KeyedStreams(model, most=given.batch)
    records = np.load(given.folder / "records.npy", mmap_mode="r")
    job = sqlite3.connect(given.folder / "job.sqlite")
    job.executescript(TABLES)
    (done,) = job.execute("select records from progress").fetchone()
    print(f"from record {done}", flush=True)
    start, first = time.perf_counter(), done
    while done < len(records):
        advance(job, streams, done, records[done : done + given.batch])
        done = min(done + given.batch, len(records))
        print(f"to record {done}", flush=True)
    took = time.perf_counter() - start
    job.close()
    print(f"{done - first} records in {took:.2f} s")


if __name__ == "__main__":
    main()
