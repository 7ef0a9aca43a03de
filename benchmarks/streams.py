"""Many live streams, some of which step together: ``python benchmarks/streams.py``.

A pool holds 10,000 streams. One call steps N of them, drawn anew for every call, beside its peers
on a batch of N, all in one process and in turns. The peers are timed twice:

* bare: their states are batched already and stay so from call to call, as if the same N streams
  stepped for ever. No server has that, and it favours them; ratios are of this unless said.
* gathered: each of the 10,000 streams has a row in an array of states, and a call takes the rows
  of those that were drawn, steps, and puts the new ones back. That is what the pool's call does.

What every peer returns is compared first, over calls enough for streams to be drawn again. The
floor and the multiply-adds a second are measured in the same turns, as by ``compare.py``. Memory
is what the resident set of a new process grows by when 100,000 streams open and all step.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import GATES, Case
from floor import Floor, bound
from onnx_model import STATES, onnx_model
from peers import CELLS, PACKAGES, STACKS, STEPS_COMPARED, agreeing, makers, missing
from timing import (
    Call,
    Timed,
    cores,
    interleaved,
    machine,
    machine_line,
    summary,
    three_digits,
    write_json,
)

import fastlstm

OPEN = 10_000
MANY = 100_000  # streams whose memory is measured
BATCH = 250  # of them that step together

POOL, SAME, ONE_THREAD = "pool", "pool, same slots", "pool, one thread"
BATCHED, SINGLE, BY_NUMBER = "Stream, batch", "Stream, single", "pool, single slot"
PEERS = ("onnxruntime", "OpenVINO", "torch nn", "torch cell")
GATHERED = ("onnxruntime, gathered", "torch nn, gathered", "torch cell, gathered")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What the calls step: the same streams in the same order, whoever makes them.

    Parameters
    ----------
    case : Case
        One step of B streams.
    module : torch.nn.Module
        The stack of one layer.
    model : fastlstm.Model
        The same, for all calls of ours: one team of threads.
    x : float32 array (B, I)
        The input, the same in every call.
    streams : int64 array (calls, B)
        The streams of each call, from 0 to OPEN; those of a call differ.
    """

    case: Case
    module: torch.nn.Module
    model: fastlstm.Model
    x: np.ndarray
    streams: np.ndarray


def drawn(case: Case, threads: int) -> Drawn:
    """Every stream once, as far as whole calls go, then every one again in another order.

    Before them come the first few calls in reverse, so that few calls tell whether states are kept.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    module = STACKS[case.kind](case.I, case.H).eval()
    x = rng.standard_normal((case.B, case.I), dtype=np.float32)
    whole = OPEN // case.B * case.B
    orders = [rng.permutation(OPEN)[:whole].reshape(-1, case.B) for _ in range(2)]
    first = orders[0][:STEPS_COMPARED, ::-1]
    model = fastlstm.from_torch(module, threads=threads)
    return Drawn(case, module, model, x, np.concatenate([first, *orders]))


def opened(model: fastlstm.Model) -> tuple[fastlstm.Pool, np.ndarray]:
    """A pool of OPEN streams and their slots: int64 (OPEN,)."""
    pool = model.pool(capacity=OPEN)
    for _ in range(OPEN):
        pool.open()
    return pool, pool.slots


def pool_call(draw: Drawn, model: fastlstm.Model) -> Call:
    """The streams of each call, by an array of slots."""
    pool, slots = opened(model)
    out = np.empty((draw.case.B, draw.case.H), np.float32)
    following, step, x = itertools.cycle(list(slots[draw.streams])).__next__, pool.step, draw.x
    return lambda: step(following(), x, out=out)


def house_calls(draw: Drawn) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Calls that step the same streams for ever, and what names them.

    One pool for all: their differences are then of the calls alone.
    """
    case, x, model = draw.case, draw.x, draw.model
    pool, slots = opened(model)
    some = slots[draw.streams[0]]

    def call(step: Callable[..., Any], *given: Any) -> Callable[[], Call]:
        out = np.empty((*given[-1].shape[:-1], case.H), np.float32)
        return lambda: lambda: step(*given, out=out)

    yield SAME, call(pool.step, some, x)
    yield BATCHED, call(model.stream(case.B).step, x)
    if case.B == 1:
        yield BY_NUMBER, call(pool.step, int(slots[draw.streams[1, 0]]), x[0])
        yield SINGLE, call(model.stream().step, x[0])


def torch_gathered_call(draw: Drawn, stack: bool) -> Call:
    """torch's stack or its cell on rows of an array of states (OPEN, H)."""
    case, module, given = draw.case, draw.module, torch.from_numpy(draw.x)
    if not stack:
        weights = {k.removesuffix("_l0"): v for k, v in module.state_dict().items()}
        module = CELLS[case.kind](case.I, case.H).eval()
        module.load_state_dict(weights)
    states = [torch.zeros(OPEN, case.H) for _ in STATES[case.kind]]
    following = itertools.cycle(list(torch.from_numpy(draw.streams))).__next__

    def run() -> torch.Tensor:
        rows = following()
        with torch.inference_mode():
            before = [state.index_select(0, rows) for state in states]
            if stack:
                before = [rows_of_state.unsqueeze(0) for rows_of_state in before]
            hidden = tuple(before) if len(before) > 1 else before[0]
            made = module(given.unsqueeze(0), hidden)[1] if stack else module(given, hidden)
            after = made if isinstance(made, tuple) else (made,)
            for state, new in zip(states, after, strict=True):
                state.index_copy_(0, rows, new.view(case.B, case.H))
        return after[0]

    return run


def onnxruntime_gathered_call(draw: Drawn, threads: int) -> Call:
    """onnxruntime on rows of an array of states (OPEN, H): taken into what it is bound to."""
    import onnxruntime

    case = draw.case
    weights = {name: tensor.detach().numpy() for name, tensor in draw.module.state_dict().items()}
    data = onnx_model(case.kind, weights, 1, case.B)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    binding, arrays = session.io_binding(), {}
    for nodes, bind in (
        (session.get_inputs(), binding.bind_ortvalue_input),
        (session.get_outputs(), binding.bind_ortvalue_output),
    ):
        for node in nodes:
            given = draw.x[None] if node.name == "x" else np.zeros(node.shape, np.float32)
            value = onnxruntime.OrtValue.ortvalue_from_numpy(given)
            bind(node.name, value)
            arrays[node.name] = given, value  # a binding keeps none of the memory it is given
    moved = [
        (np.zeros((OPEN, case.H), np.float32), arrays[name][0][0], arrays[f"{name}_out"][0][0])
        for name in (f"{state}0" for state in STATES[case.kind])
    ]
    run, y = session.run_with_iobinding, arrays["y"][0]
    following = itertools.cycle(list(draw.streams)).__next__

    def step() -> np.ndarray:
        rows = following()
        for states, before, _ in moved:
            # Without "clip" the rows would pass through another array on their way.
            np.take(states, rows, 0, out=before, mode="clip")
        run(binding)
        for states, _, after in moved:
            states[rows] = after
        return y

    return step


def gathered_makers(draw: Drawn, threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name and maker of what steps the streams drawn; torch's stack, the measure, first."""
    yield "torch nn, gathered", lambda: torch_gathered_call(draw, True)
    yield POOL, lambda: pool_call(draw, draw.model)
    if threads > 1:
        yield ONE_THREAD, lambda: pool_call(draw, fastlstm.from_torch(draw.module))
    if "onnxruntime" not in missing():
        yield "onnxruntime, gathered", lambda: onnxruntime_gathered_call(draw, threads)
    yield "torch cell, gathered", lambda: torch_gathered_call(draw, False)


def bare_makers(draw: Drawn, threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Name and maker of what steps the same rows again and again; torch's stack first."""
    peers = dict(makers(draw.case, threads))
    yield "torch nn", peers.pop("torch nn")
    del peers["fastlstm"]
    yield from house_calls(draw)
    yield from peers.items()


def checked(case: Case, threads: int) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls to be timed, which agree with torch, and why others are left out.

    Raises
    ------
    AssertionError
        If a call of ours disagrees.
    """
    torch.set_num_threads(threads)
    draw = drawn(case, threads)
    bare, left_out = agreeing(bare_makers(draw, threads), STEPS_COMPARED)
    gathered, more = agreeing(gathered_makers(draw, threads), 2 * STEPS_COMPARED)
    left_out |= more
    ours = (POOL, SAME, ONE_THREAD, BATCHED, SINGLE, BY_NUMBER)
    if wrong := [f"{name}: {left_out[name]}" for name in ours if name in left_out]:
        raise AssertionError(f"{case}: {wrong[0]}")
    return bare | gathered, left_out


def best(medians: dict[str, float], names: tuple[str, ...]) -> dict[str, Any]:
    """The fastest of these peers, and how many times the pool's time it takes."""
    name = min((n for n in names if n in medians), key=medians.__getitem__)
    return {"peer": name, "times_pool": medians[name] / medians[POOL]}


def measured(case: Case, floor: Floor | None, threads: int, **budget: Any) -> dict[str, Any]:
    """One row: the times of a step of B streams."""
    calls, left_out = checked(case, threads)
    work = case.work(threads)
    floor_jobs = floor.jobs(work) if floor else {}
    figures = interleaved(
        {name: Timed(call) for name, call in calls.items()} | floor_jobs, threads=threads, **budget
    )
    found = {name: summary(values) for name, values in figures.items()}
    medians = {name: times["median"] for name, times in found.items()}
    row: dict[str, Any] = {
        "case": str(case),
        **vars(case),
        "threads": threads,
        "turns": len(figures[POOL]),
        "microseconds": {name: found[name] for name in calls},
        "best_bare": best(medians, PEERS),
        "best_gathered": best(medians, GATHERED),
        "left_out": left_out,
    }
    if case.B == 1:
        row["nanoseconds_over_stream"] = {
            ours: summary((1e3 * np.subtract(figures[ours], figures[theirs])).tolist())
            for ours, theirs in ((BY_NUMBER, SINGLE), (SAME, BATCHED))
        }
    if ONE_THREAD in calls:
        row["times_one_thread"] = medians[ONE_THREAD] / medians[POOL]
    if floor_jobs:
        least = bound(work, {name: medians[name] for name in floor_jobs})
        sums = work.multiply_adds / 1e6 * medians["multiply-adds"]
        row["percent_of_peak"] = 100 * sums / medians[POOL]
        row["floor"] = {
            "microseconds": least.microseconds,
            "bound": least.name,
            "percent": 100 * least.microseconds / medians[POOL],
            "reading_microseconds": found["reading"],
            "microseconds_per_million_multiply_adds": found["multiply-adds"],
        }
    return row


def resident() -> int:
    """Bytes of this process that are in memory, as Linux tells it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def resident_growth(kind: str, I: int, H: int) -> int:  # noqa: E741
    """Bytes that this process grows by when MANY streams open and each makes a step."""
    torch.manual_seed(0)
    model = fastlstm.from_torch(STACKS[kind](I, H).eval())
    x, out = np.zeros((BATCH, I), np.float32), np.empty((BATCH, H), np.float32)
    before = resident()
    pool = model.pool(capacity=MANY)
    for _ in range(MANY):
        pool.open()
    for some in pool.slots.reshape(-1, BATCH):
        pool.step(some, x, out=out)
    return resident() - before


def memory(case: Case) -> dict[str, int] | None:
    """Bytes of MANY streams, measured in a process of their own; None where Linux is not."""
    if not Path("/proc/self/statm").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        grown = process.submit(resident_growth, case.kind, case.I, case.H).result()
    return {"streams": MANY, "resident": grown, "state": 4 * case.H * len(STATES[case.kind])}


def spread(times: dict[str, float]) -> str:
    """Median and quartiles."""
    median, p25, p75 = (three_digits(times[name]) for name in ("median", "p25", "p75"))
    return f"{median} [{p25} {p75}]"


def lines(row: dict[str, Any]) -> Iterator[str]:
    """A row as it is printed."""
    micros, B = row["microseconds"], row["B"]
    pool = micros[POOL]["median"]
    text = f"{row['case']:28} {spread(micros[POOL]):>22} p99 {three_digits(micros[POOL]['p99']):7}"
    bare, gathered = row["best_bare"], row["best_gathered"]
    text += f" {bare['times_pool']:5.2f} x {bare['peer']}, {gathered['times_pool']:.2f} x"
    text += f" {gathered['peer']}; {B / pool * 1e6:,.0f} streams a second"
    if "floor" in row:
        text += f"; {row['percent_of_peak']:.0f} % of the multiply-adds,"
        text += f" {row['floor']['percent']:.0f} % of the floor by {row['floor']['bound']}"
    yield text
    for group in ((SAME, BATCHED, BY_NUMBER, SINGLE, ONE_THREAD), PEERS, GATHERED):
        given = [f"{name} {spread(micros[name])}" for name in group if name in micros]
        yield f"    {'  '.join(given)}"
    for name, nanoseconds in row.get("nanoseconds_over_stream", {}).items():
        more, low, high = (round(nanoseconds[key]) for key in ("median", "p25", "p75"))
        yield f"    {name}: {more} [{low} {high}] ns more than the Stream in the same turn"
    if "times_one_thread" in row:
        yield f"    {row['times_one_thread']:.2f} x the throughput of one thread"
    for name, reason in row["left_out"].items():
        yield f"    without {name}: {reason}"


def threads_text(threads: int) -> str:
    """How many, in words."""
    return "one thread" if threads == 1 else f"{threads} threads"


def memory_line(found: dict[str, int]) -> str:
    """The memory of many streams, in a sentence."""
    streams, each = found["streams"], found["resident"] / found["streams"]
    return (
        f"{streams:,} open streams: {found['resident'] / 1e6:.1f} MB resident, {each:.0f} bytes"
        f" each, of which {found['state']} are the state"
    )


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table of the rows of one cell and one number of threads."""
    names = [
        name
        for name in (POOL, *PEERS, *GATHERED)
        if any(name in row["microseconds"] for row in rows)
    ]
    heads = [*names, "best bare peer / pool", "best gathered / pool", "% of FMA peak", "% of floor"]
    if any("times_one_thread" in row for row in rows):
        heads.append("one thread / pool")
    yield f"| one step of N streams, microseconds | {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * len(heads)
    for row in rows:
        times = row["microseconds"]
        cells = [three_digits(times[n]["median"]) if n in times else "" for n in names]
        cells += [f"{row[key]['times_pool']:.2f}" for key in ("best_bare", "best_gathered")]
        cells.append(f"{row['percent_of_peak']:.0f}" if "floor" in row else "")
        cells.append(f"{row['floor']['percent']:.0f}" if "floor" in row else "")
        if "times_one_thread" in row:
            cells.append(f"{row['times_one_thread']:.2f}")
        name = f"{row['kind'].upper()} {row['I']} → {row['H']}, N={row['B']}"
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024], metavar="N",
        help="that step together (default 1 4 16 64 256 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1], help="of every peer (default 1)"
    )
    parser.add_argument("--cell", nargs="+", choices=GATES, default=["lstm"], help="(default lstm)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("I", "H"), default=(128, 128))
    parser.add_argument("--turns", type=int, help="turns of each call (default: by --seconds)")
    parser.add_argument("--seconds", type=float, default=10, help="of a row (default 10)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if not 1 <= min(arguments.streams) <= max(arguments.streams) <= OPEN:
        parser.error(f"--streams are {arguments.streams}; expected 1 to {OPEN}")
    if not 1 <= min(arguments.threads) <= max(arguments.threads) <= cores():
        parser.error(f"--threads are {arguments.threads}; expected 1 to {cores()}, the cores here")
    if min(arguments.size) < 1:
        parser.error(f"--size is {arguments.size}; expected sizes from 1 on")

    isa = fastlstm.from_torch(torch.nn.LSTM(1, 16)).isa
    about = machine(PACKAGES, isa=isa)
    print(machine_line(about))
    for name, remedy in missing().items():
        print(f"without {name}: not installed ({remedy})")
    try:
        floor = Floor()
    except (OSError, subprocess.CalledProcessError) as error:
        floor = None
        print(f"without the floor: the C compiler cannot be used ({error})")
    print(f"a step of streams drawn from {OPEN:,}, microseconds a call: median [quartiles]")
    found: dict[str, Any] = {"machine": about, "open": OPEN, "rows": [], "memory": {}}
    tables: list[str] = []
    for kind, threads in itertools.product(arguments.cell, arguments.threads):
        print(f"\n{kind}, {threads_text(threads)}")
        rows = []
        for N in arguments.streams:
            case = dataclasses.replace(Case(kind, *arguments.size), B=N)
            budget = {"turns": arguments.turns, "seconds": arguments.seconds}
            row = measured(case, floor, threads, **budget)
            rows.append(row)
            print("\n".join(lines(row)), flush=True)
        found["rows"] += rows
        tables += ["", f"{threads_text(threads).capitalize()}:", "", *table(rows)]
    print()
    for kind in arguments.cell:
        taken = memory(Case(kind, *arguments.size))
        if taken:
            found["memory"][kind] = taken
            print(f"{kind}: {memory_line(taken)}")
    print("\n".join(tables))
    if arguments.json:
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
