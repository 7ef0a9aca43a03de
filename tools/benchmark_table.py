"""Write the tables of README.md from what ``benchmarks/compare.py --json`` measured.

    python tools/benchmark_table.py [FILE.json ...]     rewrite README.md
    python tools/benchmark_table.py --check             exit status 1 if that would change it

Without files, those under benchmarks/results whose name ends in "-thread.json" or "-threads.json"
are taken, fewest threads first. The tables stand between two comments in README.md; everything
between them is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

START, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"

PEERS = ("fastlstm", "onnxruntime", "OpenVINO", "torch nn", "torch cell")
HEADS = (*PEERS, "best peer / fastlstm", "% of floor")


def figure(microseconds: float) -> str:
    """Three digits, or all of those before the point; never an exponent."""
    return f"{microseconds:.0f}" if microseconds >= 99.95 else f"{microseconds:#.3g}"


def name_of(row: Mapping[str, Any]) -> str:
    """A case, as the first column shows it."""
    layers = f", {row['layers']} layers" if row["layers"] > 1 else ""
    steps = f", T={row['T']} B={row['B']}" if row["T"] else ""
    rows = f", B={row['B']}" if row["B"] > 1 and not row["T"] else ""
    return f"{row['kind'].upper()} {row['I']} → {row['H']}{layers}{steps}{rows}"


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of one table."""
    yield f"| {title} | {' | '.join(HEADS)} |"
    yield "| --- |" + " ---: |" * len(HEADS)
    for row in rows:
        times = row["microseconds"]
        cells = [figure(times[name]["median"]) if name in times else "" for name in PEERS]
        ratio, floor = row["times_best_peer"], row.get("floor")
        cells.append(f"{ratio:.1f}" if ratio >= 9.995 else f"{ratio:.2f}")
        cells.append(f"{floor['percent']:.0f}" if floor else "")
        yield f"| {name_of(row)} | {' | '.join(cells)} |"


def section(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of one run: what it was measured on, then steps and sequences."""
    about, rows = found["machine"], found["rows"]
    versions = {name: version for name, version in about["versions"].items() if version}
    sizes = ", ".join(f"{size // 1024} KB of {name}" for name, size in about["caches"].items())
    threads = "One thread" if about["threads"] == 1 else f"{about['threads']} threads"
    yield f"{threads}, {about['processor']} ({', '.join([about['isa'], sizes]).rstrip(', ')}),"
    yield f"{', '.join(f'{name} {version}' for name, version in versions.items())}:"
    for title, wanted in (("one step", False), ("whole sequence", True)):
        chosen = [row for row in rows if bool(row["T"]) == wanted]
        if chosen:
            yield ""
            yield from table(f"{title}, microseconds", chosen)
    failed = {
        f"{peer} is left out of {name_of(row)}: {reason}."
        for row in rows
        for peer, reason in row["left_out"].items()
    }
    if failed:
        yield ""
        yield from sorted(failed)


def rewritten(readme: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The README's text with the tables of these runs.

    Raises
    ------
    ValueError
        If the two comments are not there, each once and in order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in before or END in after:
        raise ValueError(f"expected {START} and, after it, {END}, each once")
    parts = ["\n".join(section(run)) for run in sorted(runs, key=lambda r: r["machine"]["threads"])]
    tables = "\n\n".join(parts)
    return f"{before}{START}\n{tables}\n{END}{after}"


def replace(path: Path, text: str) -> None:
    """Write a file, whole or not at all; it keeps its permissions."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="what compare.py --json wrote")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if it would")
    parser.add_argument(
        "--readme", type=Path, default=ROOT / "README.md", help="the file to rewrite"
    )
    given = parser.parse_args(arguments)
    patterns = ("*-thread.json", "*-threads.json")
    files = given.files or [path for pattern in patterns for path in RESULTS.glob(pattern)]
    if not files:
        parser.error(f"no results in {RESULTS}; name files that compare.py --json wrote")
    old = given.readme.read_text(encoding="utf-8")
    try:
        new = rewritten(old, [json.loads(path.read_text(encoding="utf-8")) for path in files])
    except (ValueError, KeyError) as error:
        print(f"{given.readme}: {error}", file=sys.stderr)
        return 2
    if new == old:
        return 0
    if given.check:
        print(f"{given.readme}: not the tables of {', '.join(map(str, files))}; rewrite them with")
        print("python tools/benchmark_table.py")
        return 1
    replace(given.readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
