"""Model files that nobody vouches for, and arguments that are wrong: each is an error, and nothing
is written."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from programs import Driver, driver_of
from random_graphs import random_graph
from streamed import Streamed, opened

from fastlstm import spec
from fastlstm.exporting.model_file import model_file
from fastlstm.plan.lowering import plan

SEED = 20261201
HEAD, SUMMED_FROM = 56, 32  # bytes, as core/file.c has them
ODD = [0, 1, 2, 3, 7, 8, 9, 64, 2**16, 2**31, 2**32, 2**61, 2**63, 2**64 - 8, 2**64 - 1]


def file_of(graph: spec.Graph, rng: np.random.Generator) -> bytes:
    facts = spec.check(graph)
    tensors = {n: rng.normal(0, 0.4, s).astype(np.float32) for n, s in facts.tensors.items()}
    return model_file(plan(graph, tensors, facts), tensors)


def small_file(rng: np.random.Generator) -> bytes:
    """Of one row each step; its names leave a gap before the tensors."""
    nodes = (spec.Node(spec.GRU("rnn", 1, 3), ("x",)), spec.Node(spec.Linear("y", 3, 1), ("rnn",)))
    return file_of(spec.Graph((spec.Input("x", (1,)),), nodes, {"output_row": "y"}), rng)


def held_file(rng: np.random.Generator) -> bytes:
    inputs = (spec.Input("x", (2,)), spec.Input("knobs", (2,), held=True))
    nodes = (
        spec.Node(spec.Arithmetic("both", "multiply"), ("x", "knobs")),
        spec.Node(spec.LSTM("rnn", 2, 3), ("both",)),
    )
    return file_of(spec.Graph(inputs, nodes, {"y": "rnn"}), rng)


def ahead_file(rng: np.random.Generator) -> bytes:
    nodes = (spec.Node(spec.LSTM("rnn", 2, 3, bidirectional=True), ("x",)),)
    return file_of(spec.Graph((spec.Input("x", (2,)),), nodes, {"y": "rnn"}), rng)


def tokens_file(rng: np.random.Generator) -> bytes:
    inputs = (spec.Input("ids", (), tokens=5), spec.Input("speaker", (), tokens=3, held=True))
    nodes = (
        spec.Node(spec.Embedding("one", 5, 2), ("ids",)),
        spec.Node(spec.Embedding("two", 3, 2), ("speaker",)),
        spec.Node(spec.Arithmetic("both", "add"), ("one", "two")),
        spec.Node(spec.RNN("rnn", 2, 3), ("both",)),
    )
    return file_of(spec.Graph(inputs, nodes, {"y": "rnn"}), rng)


def random_files(count: int) -> list[bytes]:
    made = []
    for seed in range(count):
        graph, tensors = random_graph(np.random.default_rng([SEED, seed]))
        made.append(model_file(plan(graph, tensors), tensors))
    return made


def with_words(file: bytes, words: dict[int, int]) -> bytes:
    """A file with other 64-bit words at some bytes."""
    changed = bytearray(file)
    for at, number in words.items():
        struct.pack_into("<Q", changed, at, number % 2**64)
    return bytes(changed)


def summed(file: bytes) -> bytes:
    """A file that says its own size and checksum, whatever is in it."""
    return with_words(file, {16: len(file), 24: zlib.crc32(file[SUMMED_FROM:])})


def words_of(file: bytes) -> dict[str, int]:
    """The head's words that tell what comes, and where the parts begin."""
    program, names, tensors = struct.unpack_from("<3Q", file, SUMMED_FROM)
    types = HEAD
    return {
        **{"program": program, "names": names, "tensors": tensors, "types_at": types},
        "program_at": types + 8 * tensors,
        "names_at": types + 8 * tensors + program,
        "end_of_names": types + 8 * tensors + program + names,
    }


def refused(driver: Driver, file: bytes) -> tuple[str, str]:
    (answer,) = opened(driver, [Streamed(file)])
    return answer.error, answer.message


@pytest.mark.parametrize("build", ["plain", "address"])
def test_arguments_that_are_wrong(build: str, tmp_path: Path, rng: np.random.Generator) -> None:
    paths = []
    for number, data in enumerate((small_file(rng), held_file(rng), ahead_file(rng))):
        paths.append(tmp_path / f"{number}.flm")
        paths[-1].write_bytes(data)
    driver_of(build).call("arguments", *map(str, paths))


@pytest.mark.parametrize("build", ["plain", "address"])
def test_every_bit_and_every_end(build: str, tmp_path: Path, rng: np.random.Generator) -> None:
    file = tmp_path / "model.flm"
    file.write_bytes(small_file(rng))
    driver_of(build).call("changes", str(file))


def test_what_is_no_model(rng: np.random.Generator) -> None:
    driver, file = driver_of("address"), small_file(rng)
    for other in (b"", b"flmodel\0", rng.bytes(4096), b"\x7fELF" + file[4:], file[8:]):
        error, message = refused(driver, other)
        assert (error, "begin so" in message) == ("program", True), message
    error, message = refused(driver, with_words(file, {8: 2}))
    assert (error, "newer version" in message) == ("program", True), message
    error, message = refused(driver, with_words(file, {8: 0}))
    assert (error, "older version" in message) == ("program", True), message
    error, message = refused(driver, file + bytes(64))
    assert (error, "another size" in message) == ("program", True), message


WRONG: dict[str, tuple[Callable[[bytes, dict[str, int]], bytes], str, str]] = {
    "names that are not terminated": (
        lambda f, at: f[: at["end_of_names"] - 8] + b"x" * 8 + f[at["end_of_names"] :],
        "program",
        "names",
    ),
    "names that are not UTF-8": (
        lambda f, at: f[: at["names_at"]] + b"\xff" + f[at["names_at"] + 1 :],
        "program",
        "UTF-8",
    ),
    "a name too many": (
        lambda f, at: (
            with_words(f, {40: at["names"] + 64})[: at["end_of_names"]]
            + b"x".ljust(64, b"\0")
            + f[at["end_of_names"] :]
        ),
        "program",
        "names",
    ),
    "a type that is unknown": (lambda f, at: with_words(f, {at["types_at"]: 2}), "tensors", "tens"),
    "a type of too many bits": (
        lambda f, at: with_words(f, {at["types_at"]: 2**32}),
        "tensors",
        "tensors",
    ),
    "a type that is larger": (
        lambda f, at: with_words(f, {at["types_at"]: 1}),
        "tensors",
        "tensors",
    ),
    "a tensor too few": (
        lambda f, at: with_words(
            f[: at["types_at"]] + f[at["types_at"] + 8 :], {48: at["tensors"] - 1}
        ),
        "tensors",
        "tensors",
    ),
    "a tensor too many": (
        lambda f, at: with_words(
            f[: at["types_at"]] + bytes(8) + f[at["types_at"] :], {48: at["tensors"] + 1}
        ),
        "tensors",
        "tensors",
    ),
    "a gap that is not zero": (
        lambda f, at: f[: at["end_of_names"]] + b"\1" + f[at["end_of_names"] + 1 :],
        "tensors",
        "tensors",
    ),
    "bytes that are left over": (lambda f, at: f + bytes(8), "tensors", "tensors"),
    "numbers too few": (lambda f, at: f[:-8], "tensors", "tensors"),
    "a program of no whole words": (
        lambda f, at: with_words(f, {32: at["program"] - 4, 40: at["names"] + 4}),
        "program",
        "larger than it is",
    ),
    "a program of another version": (
        lambda f, at: with_words(f, {at["program_at"] + 8: 99}),
        "program",
        "none that this version reads",
    ),
    "no program": (
        lambda f, at: with_words(f, {32: 0, 40: at["names"] + at["program"]}),
        "program",
        "none that this version reads",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_behind_a_right_checksum(what: str, rng: np.random.Generator) -> None:
    change, error, says = WRONG[what]
    file = small_file(rng)
    at = words_of(file)
    assert at["end_of_names"] % 64, "the file has no gap to spoil"
    driver = driver_of("address")
    (whole,) = opened(driver, [Streamed(summed(file))])
    assert whole.error == "ok"
    got, message = refused(driver, summed(change(file, at)))
    assert (got, says in message) == (error, True), message


def test_sizes_that_overflow(rng: np.random.Generator) -> None:
    """Any size of the head is any number; the checksum is right."""
    file, cases = small_file(rng), []
    at = words_of(file)
    for place in (32, 40, 48):
        (was,) = struct.unpack_from("<Q", file, place)
        for number in [*ODD, *(-was + n for n in (-8, 0, 8)), was + 8, was - 8, 2**61 + was]:
            if number % 2**64 != was:
                cases.append(Streamed(summed(with_words(file, {place: number}))))
    for program in ODD:
        for names in ODD:
            words = {32: program, 40: names, 48: (at["tensors"] - program - names) % 2**61}
            cases.append(Streamed(summed(with_words(file, words))))
    errors = Counter(answer.error for answer in opened(driver_of("address"), cases))
    assert set(errors) <= {"program", "tensors", "large"}, errors


def test_streams_that_are_too_large(rng: np.random.Generator) -> None:
    file, cases = small_file(rng), []
    for B in (2**20, 2**40, 2**59, 2**62):
        cases.append(Streamed(file, T=1, batch=B))
    assert {answer.error for answer in opened(driver_of("address"), cases)} == {"large"}
    (answer,) = opened(driver_of("address"), [Streamed(file, [1], T=2**62)])
    assert answer.error == "ok"  # a stream takes no memory for steps that it does not keep


def test_tokens_that_are_none(rng: np.random.Generator) -> None:
    """Of a step far behind others, and of a held input: nothing runs."""
    case = Streamed(tokens_file(rng), [3], T=2)
    ids, speaker = np.arange(7)[:, None, None] % 5, np.array([[1]])
    wrong = ids.copy()
    wrong[6] = 5
    case.reset([speaker])
    case.get_state()
    case.run(7, [wrong], [7])
    wrong = wrong.copy()
    wrong[6] = -1
    case.run(7, [wrong], [7])
    case.reset([speaker + 2])
    case.get_state()
    case.run(7, [ids], [7])
    (answer,) = opened(driver_of("address"), [case])
    begun, before, large, negative, held, after, rows = answer.calls
    assert (begun, large, negative, held) == ("ok", "argument", "argument", "argument")
    assert before == after
    assert rows[0].shape == (1, 7, 3)


@pytest.mark.parametrize(
    "name", [*"\x01\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff", "\U00010000", "\U0010ffff"]
)
def test_names_are_utf8(name: str, rng: np.random.Generator) -> None:
    """Python's decoder says what is: of the name as it is, and with any byte of it changed."""
    file = small_file(rng)
    at = file.index(b"output_row")
    driver, cases, valid = driver_of("address"), [], []
    for text in (name.encode(), *spoilt(name.encode(), rng)):
        made = file[:at] + (text + b"output_row")[:10] + file[at + 10 :]
        cases.append(Streamed(summed(made)))
        try:
            text.decode()
            valid.append(0 not in text)
        except UnicodeDecodeError:
            valid.append(False)
    answers = opened(driver, cases)
    assert valid[0]
    assert not all(valid)
    assert [answer.error == "ok" for answer in answers] == valid


def spoilt(text: bytes, rng: np.random.Generator) -> list[bytes]:
    made = [text[:-1] + b"/", text + b"\xbf", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
    made += [b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf5\x80\x80\x80"]
    for _ in range(60):
        other = bytearray(text)
        other[int(rng.integers(len(text)))] = int(rng.integers(1, 256))
        made.append(bytes(other))
    return made


def changed(file: bytes, rng: np.random.Generator) -> bytes:
    """A few words that are others, mostly outside of the program, and a right checksum."""
    at = words_of(file)
    edges = [SUMMED_FROM, at["program_at"], at["names_at"], at["end_of_names"], len(file)]
    for _ in range(int(rng.integers(1, 4))):
        part = int(rng.choice(4, p=[0.4, 0.2, 0.2, 0.2]))
        first, end = edges[part], edges[part + 1] if part else HEAD
        if end - first < 8:
            continue
        place = first + 8 * int(rng.integers(0, (end - first) // 8))
        (was,) = struct.unpack_from("<Q", file, place)
        ways = [was ^ 1 << int(rng.integers(64)), ODD[int(rng.integers(len(ODD)))]]
        ways += [was + 8 * int(rng.integers(-2, 3)), int(rng.integers(2**62))]
        file = with_words(file, {place: ways[int(rng.integers(4))]})
    if rng.random() < 0.2:
        file = file[: len(file) - 4 * int(rng.integers(1, 40))]
    return summed(file) if len(file) > HEAD else file


def test_changed_words_behind_a_right_checksum() -> None:
    """Each is refused, or is a model that runs within its memory."""
    rng = np.random.default_rng(SEED)
    cases = []
    for file in random_files(60):
        for number in range(40):
            made = changed(file, rng) if number else file
            case = Streamed(made, T=int(rng.integers(1, 6)), batch=int(rng.integers(1, 4)))
            case.try_all()
            cases.append(case)
    found = Counter(
        answer.calls[0] if answer.error == "ok" else answer.error
        for answer in opened(driver_of("address"), cases)
    )
    assert set(found) <= {"ok", "program", "tensors", "large"}, found
    assert found["ok"] > 0.05 * len(cases), found
    assert found["program"] + found["tensors"] > 0.3 * len(cases), found
