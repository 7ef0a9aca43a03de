"""``examples/audio_callback``: the program plays WAV files, and its samples are the model's."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import wave
from pathlib import Path

import c_builds
import numpy as np
import pytest
from exported import BUILT, MAKE, engine, small_model

EXAMPLE = c_builds.ROOT / "examples" / "audio_callback"
RATE, LENGTH = 48_000, 64 * 30 + 17


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built as its README says; the engine is the one of other tests."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the example is for Linux")
    folder = tmp_path_factory.mktemp("audio")
    for name in ("play.c", "Makefile"):
        shutil.copy(EXAMPLE / name, folder)
    shutil.copytree(engine(), folder / "engine")
    old = [word for name in (*BUILT, "run") for word in ("-o", f"engine/{name}")]
    made = c_builds.call([*MAKE, *old, "-C", folder])
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    return folder / "play"


def write_pcm(path: Path, samples: np.ndarray, bits: int, channels: int = 1) -> None:
    """Samples as integers of so many bits."""
    raw = samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(RATE)
        file.writeframes(raw.tobytes())


def write_float(path: Path, samples: np.ndarray) -> None:
    """With a chunk before the format that a reader skips, of an odd size."""
    body = samples.astype("<f4").tobytes()
    chunks = [(b"LIST", b"odd"), (b"fmt ", struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32))]
    chunks.append((b"data", body))
    parts = [n + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for n, b in chunks]
    whole = b"WAVE" + b"".join(parts)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(whole)) + whole)


def read_float(path: Path) -> np.ndarray:
    data = path.read_bytes()
    assert struct.unpack_from("<HHI", data, 20) == (3, 1, RATE)
    assert struct.unpack_from("<I", data, 4) == (len(data) - 8,)
    return np.frombuffer(data, "<f4", offset=44)


def play(player: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return c_builds.call([player, *words])


@pytest.mark.parametrize("kind", ["16 bits", "24 bits", "float"])
def test_a_file_through_the_model(
    player: Path, kind: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Its last block is not whole; the second time starts anew."""
    source, to = tmp_path / "in.wav", tmp_path / "out.wav"
    if kind == "float":
        x = rng.uniform(-1, 1, LENGTH).astype(np.float32)
        write_float(source, x)
    else:
        bits = int(kind[:2])
        samples = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), LENGTH)
        x = (samples / 2.0 ** (bits - 1)).astype(np.float32)
        write_pcm(source, samples, bits)
    done = play(player, source, to, "--times", 2)
    assert done.returncode == 0, done.stderr
    y, _ = small_model()(x[:, None])
    assert read_float(to).tobytes() == y.tobytes()
    assert re.match(r"62 blocks of 64 frames at 48000 Hz, in a thread ", done.stdout)
    assert re.search(r"of real time [\d.]+ %, p50 [\d.]+ us, p99.9 [\d.]+ us, max ", done.stdout)


def test_each_block_at_its_time(player: Path, tmp_path: Path) -> None:
    source, to = tmp_path / "in.wav", tmp_path / "out.wav"
    write_float(source, np.zeros(640, np.float32))
    done = play(player, source, to, "--live")
    assert (done.returncode, len(read_float(to))) == (0, 640), done.stderr


def test_files_that_it_does_not_play(player: Path, tmp_path: Path) -> None:
    source, to = tmp_path / "in.wav", tmp_path / "out.wav"
    write_pcm(source, np.zeros(10, np.int64), 16, channels=2)
    refused = {"more than one channel": play(player, source, to)}
    write_pcm(source, np.zeros(10, np.int64), 8)
    refused["none of PCM"] = play(player, source, to)
    source.write_bytes(b"RIFF....WAVE")
    refused["no samples"] = play(player, source, to)
    source.write_bytes(b"no sound")
    refused["no WAV file"] = play(player, source, to)
    refused["cannot be read"] = play(player, tmp_path / "nothing.wav", to)
    refused["usage"] = play(player, source, to, "--loud")
    for says, done in refused.items():
        assert (done.returncode, says in done.stderr) == (1, True), done.stderr
    assert not to.exists()


def test_every_end_of_a_file_is_no_fault(player: Path, tmp_path: Path) -> None:
    source, to = tmp_path / "in.wav", tmp_path / "out.wav"
    write_float(source, np.zeros(5, np.float32))
    whole = source.read_bytes()
    for end in range(len(whole)):
        source.write_bytes(whole[:end])
        assert play(player, source, to).returncode in (0, 1)
