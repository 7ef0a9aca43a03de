"""Saves that last: killed, concurrent, on a full disk, under odd names, beside other saves."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import durable, format

ROOT = str(Path(fastlstm.__file__).parents[1])


def put(path: Path, content: bytes = b"new") -> None:
    with durable.replacing(path) as file:
        durable.write_all(file, memoryview(content))


def temporaries(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(".fastlstm-"))


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ROOT},
    )


# Writes a state again and again: each is of one number alone, so that a mixture is known.
SAVES = """
import sys, itertools
import numpy as np
from fastlstm import format
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    format.write_state(sys.argv[1], {"a": np.full(int(sys.argv[3]), turn)}, {"turn": str(turn)})
"""


def is_whole(path: Path) -> bool:
    arrays, metadata = format.read_state(path)
    return bool((arrays["a"] == int(metadata["turn"])).all())


class TestKilled:
    def test_the_old_file_or_the_new_one_and_no_litter(self, tmp_path: Path) -> None:
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        rng = random.Random(seed)
        path = tmp_path / "s"
        format.write_state(path, {"a": np.zeros(200_000, np.int64)}, {"turn": "0"})
        for _ in range(8):
            with start(SAVES, path, 10**6, 200_000) as process:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
                time.sleep(rng.uniform(0, 0.05))
                process.kill()
            assert is_whole(path)
            assert set(os.listdir(tmp_path)) <= {"s", *temporaries(tmp_path)}
            assert len(temporaries(tmp_path)) <= 1  # the next save takes away the one before
        format.write_state(path, {"a": np.ones(3, np.int64)}, {"turn": "1"})
        assert os.listdir(tmp_path) == ["s"]
        assert is_whole(path)

    def test_in_the_middle(self, tmp_path: Path) -> None:
        """A process that dies while its file is half written; and several of them at once."""
        code = """
import sys
from fastlstm import durable
with durable.replacing(sys.argv[1]) as file:
    file.write(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""
        path, other = tmp_path / "s", tmp_path / "other"
        put(path, b"old")
        command = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": ROOT}
        running = [
            subprocess.Popen(
                [*command, str(target)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for target in (path, path, path, other)
        ]
        try:
            for process in running:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
            assert len(temporaries(tmp_path)) == 4
            assert path.read_bytes() == b"old"
            running[0].kill()
            running[0].wait()
            running[3].kill()
            running[3].wait()
            put(path, b"newer")
            # That of the dead one is gone, those of the living and of the other target are not.
            assert len(temporaries(tmp_path)) == 3
            assert path.read_bytes() == b"newer"
            put(other)
            assert len(temporaries(tmp_path)) == 2
            assert running[1].communicate()[0] == b""
            assert running[1].returncode == 0
            assert path.read_bytes() == b"half"
        finally:
            for process in running:
                process.kill()
                process.communicate()
        put(path)
        assert sorted(os.listdir(tmp_path)) == ["other", "s"]

    def test_a_gap_between_them_hides_none(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with durable.replacing(path), durable.replacing(path), durable.replacing(path):
            names = temporaries(tmp_path)
        assert len(names) == 3
        (tmp_path / names[2]).write_bytes(b"left")
        put(path)
        assert os.listdir(tmp_path) == ["s"]


class TestTogether:
    def test_threads(self, tmp_path: Path) -> None:
        path = tmp_path / "s"

        def save(turn: int) -> None:
            array = np.full(1000 + turn, turn)
            format.write_state(path, {"a": array}, {"turn": str(turn)})
            assert is_whole(path)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(save, range(160)))
        assert os.listdir(tmp_path) == ["s"]

    def test_more_than_there_are_names(self, tmp_path: Path) -> None:
        """Saves that begin while 16 are under way wait for one to end."""
        path = tmp_path / "s"
        under_way = threading.Semaphore(0)
        finish = threading.Event()

        def slow(turn: int) -> None:
            with durable.replacing(path) as file:
                file.write(b"slow")
                under_way.release()
                finish.wait(60)

        with ThreadPoolExecutor(durable.SLOTS + 1) as threads:
            slows = [threads.submit(slow, turn) for turn in range(durable.SLOTS)]
            for _ in slows:
                assert under_way.acquire(timeout=60)
            assert len(temporaries(tmp_path)) == durable.SLOTS
            one_more = threads.submit(put, path, b"last")
            assert not one_more.done()
            finish.set()
            one_more.result(timeout=60)
            for future in slows:
                future.result(timeout=60)
        assert os.listdir(tmp_path) == ["s"]

    def test_processes(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        running = [start(SAVES, path, 60, 5000) for _ in range(3)]
        for process in running:
            process.communicate(timeout=120)
            assert process.returncode == 0
        assert os.listdir(tmp_path) == ["s"]
        assert is_whole(path)

    def test_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A filesystem that knows none: a save works, and takes nothing of others away."""

        def flock(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        path = tmp_path / "s"
        monkeypatch.setattr("fcntl.flock", flock)
        with durable.replacing(path) as file:
            file.write(b"under way")
            put(path, b"other")
            assert len(temporaries(tmp_path)) == 1
        assert path.read_bytes() == b"under way"
        with durable.replacing(path):
            (name,) = temporaries(tmp_path)
        for slot in range(durable.SLOTS):
            (tmp_path / name.replace("-0.", f"-{slot}.")).touch()
        with pytest.raises(
            FileExistsError, match=r"16 temporary files of killed saves are in the way, as .*/s'$"
        ):
            put(path)


class TestPlaces:
    def test_a_name_as_long_as_can_be(self, tmp_path: Path) -> None:
        for name in ("n" * 255, "ü" * 127):
            path = tmp_path / name
            for content in (b"first", b"second"):
                put(path, content)
                assert path.read_bytes() == content
            assert os.listdir(tmp_path) == [name]
            path.unlink()
        with pytest.raises(OSError, match="too long") as error:
            put(tmp_path / ("n" * 256))
        assert error.value.errno == errno.ENAMETOOLONG
        assert not list(tmp_path.iterdir())

    def test_links_are_followed(self, tmp_path: Path) -> None:
        """To a file, through another link, to a file that is not there yet; not in a circle."""
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        link, further = tmp_path / "a" / "link", tmp_path / "b" / "further"
        link.symlink_to(further)
        further.symlink_to("file")
        for content in (b"first", b"second"):
            put(link, content)
            assert (tmp_path / "b" / "file").read_bytes() == content
            assert os.listdir(tmp_path / "a") == ["link"]
            assert sorted(os.listdir(tmp_path / "b")) == ["file", "further"]
        assert link.is_symlink()
        assert further.is_symlink()
        (tmp_path / "c").symlink_to(tmp_path / "a", target_is_directory=True)
        put(tmp_path / "c" / "link", b"third")
        assert (tmp_path / "b" / "file").read_bytes() == b"third"
        (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "file")
        with pytest.raises(FileNotFoundError, match="no such folder"):
            put(tmp_path / "nowhere")
        (tmp_path / "x").symlink_to("y")
        (tmp_path / "y").symlink_to("x")
        with pytest.raises(OSError, match="symbolic links") as error:
            put(tmp_path / "x")
        assert error.value.errno == errno.ELOOP
        assert (tmp_path / "x").is_symlink()

    def test_a_planted_link_is_not_followed(self, tmp_path: Path) -> None:
        """Whoever may write to the folder knows the temporary file's name."""
        path, victim = tmp_path / "s", tmp_path / "victim"
        victim.write_bytes(b"mine")
        with durable.replacing(path):
            (name,) = temporaries(tmp_path)
        (tmp_path / name).symlink_to(victim)
        put(path)
        assert victim.read_bytes() == b"mine"
        assert not path.is_symlink()
        assert path.read_bytes() == b"new"

    def test_permissions(self, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            put(tmp_path / "s")
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o640
            (tmp_path / "s").chmod(0o606)
            with durable.replacing(tmp_path / "s"):
                (name,) = temporaries(tmp_path)
                # Never more than the older file allows, not even while it is written.
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) & ~0o606 == 0
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o606
        finally:
            os.umask(old)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_the_owner_stays(self, tmp_path: Path) -> None:
        put(tmp_path / "s")
        os.chown(tmp_path / "s", 1234, 2345)
        put(tmp_path / "s")
        found = (tmp_path / "s").stat()
        assert (found.st_uid, found.st_gid) == (1234, 2345)


class TestFlushes:
    @pytest.fixture
    def flushed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was flushed and renamed, in order."""
        seen: list[str] = []
        fsync, replace = os.fsync, os.replace

        def watched_fsync(number: int) -> None:
            kind = "folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file"
            size = os.fstat(number).st_size if kind == "file" else ""
            seen.append(f"{kind}{size}")
            fsync(number)

        def watched_replace(*names: str) -> None:
            seen.append("rename")
            replace(*names)

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "replace", watched_replace)
        return seen

    def test_the_file_then_the_folder(self, tmp_path: Path, flushed: list[str]) -> None:
        put(tmp_path / "s", b"12345")
        assert flushed == ["file5", "rename", "folder"]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_a_filesystem_that_cannot(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)
        put(tmp_path / "s")
        assert os.listdir(tmp_path) == ["s"]

    def test_a_flush_that_fails_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=f"'{tmp_path / 's'}'"):
            put(tmp_path / "s")
        assert not os.listdir(tmp_path)


class TestFailures:
    def test_a_full_disk_names_the_file(self, tmp_path: Path, python: Callable[..., str]) -> None:
        """And an older file, and whatever else is in the folder, stays."""
        path = tmp_path / "s"
        format.write_state(path, {"a": np.zeros(2)}, {})
        before = path.read_bytes()
        told = python(
            """
            import errno, resource, sys
            import numpy as np
            from fastlstm import durable, format

            def full(path, number, write):
                try:
                    write(path)
                except OSError as error:
                    assert error.errno == number, error
                    print(error.filename)

            def state(path):
                format.write_state(path, {"a": np.zeros(10_000)}, {})

            class Full:  # what a full disk does: some of it is written, then nothing
                room = 5000
                def write(self, data):
                    self.room -= len(data)
                    if self.room < 0:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return len(data)

            def on_full_disk(path):
                with durable.replacing(path):
                    durable.write_all(Full(), memoryview(bytes(10_000)))

            full(sys.argv[1], errno.ENOSPC, on_full_disk)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            full(sys.argv[1], errno.EFBIG, state)
            full("new", errno.EFBIG, state)
            """,
            str(path),
        )
        assert told.split() == [str(path), str(path), str(tmp_path / "new")]
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["s"]

    def test_a_folder_that_may_not_be_written_names_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file that was asked for, and not the one that would have been beside it."""
        opens = os.open

        def refuses(path: str, flags: int, *more: int) -> int:
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return opens(path, flags, *more)

        monkeypatch.setattr(os, "open", refuses)
        with pytest.raises(PermissionError) as error:
            put(tmp_path / "s")
        assert error.value.filename == str(tmp_path / "s")

    def test_a_write_that_takes_only_some(self) -> None:
        class Slow:
            def __init__(self) -> None:
                self.got = b""

            def write(self, data: memoryview) -> int:
                self.got += bytes(data[:7])
                return len(data[:7])

        file, content = Slow(), bytes(range(256)) * 3
        durable.write_all(file, memoryview(content))  # type: ignore[arg-type]
        assert file.got == content

    def test_an_interrupt_leaves_nothing(self, tmp_path: Path) -> None:
        put(tmp_path / "s", b"old")

        def interrupted() -> None:
            with durable.replacing(tmp_path / "s") as file:
                file.write(b"half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert (tmp_path / "s").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["s"]

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        def count() -> int:
            return len(os.listdir("/proc/self/fd"))

        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("reads /proc")
        path = tmp_path / "s"
        before = count()
        for _ in range(5):
            put(path)
            with pytest.raises(RuntimeError), durable.replacing(path):
                raise RuntimeError
            with pytest.raises(OSError, match="folder"):
                put(tmp_path)
            (tmp_path / "left").touch()
        assert count() == before


# Memory that is short


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its address space")
def test_short_memory_is_an_error_and_never_an_abort(
    tmp_path: Path, python: Callable[..., str]
) -> None:
    """The library that wrote these files before aborted the process (SIGABRT)."""
    told = python(
        """
        import os, resource, sys
        import numpy as np
        from fastlstm import FormatError, format
        import hashlib  # what the first save imports

        arrays = {"a": np.ones(2**24, np.float32), "b": np.ones((2**11, 2**11))}
        format.write_state("small", {"a": np.zeros(1)}, {})

        def used():
            return next(int(s.split()[1]) << 10 for s in open("/proc/self/status")
                        if s.startswith("VmSize"))

        for extra in (2**26, 2**24, 2**22, 2**20, 2**18, 2**16, 0):
            resource.setrlimit(resource.RLIMIT_AS, (used() + extra, -1))
            try:
                # Written from where they lie: a copy of them would not fit.
                format.write_state("large", arrays, {})
                print("written", end=" ")
            except MemoryError:
                pass
            try:
                format.read_state("large")
                print("read")
            except (MemoryError, FormatError) as error:
                assert "does not fit" in str(error) or isinstance(error, MemoryError), error
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        got, _ = format.read_state("large")
        assert all((got[n] == arrays[n]).all() for n in arrays)
        """
    )
    assert told.split()[:3] == ["written"] * 3
    assert "read" not in told.split()  # there is no room for what it holds
    assert sorted(os.listdir(tmp_path)) == ["large", "small"]


# A file that is replaced while it is loaded

LOADS = """
import sys
import fastlstm
mapped = sys.argv[3] == "mapped"
seen = set()
for _ in range(int(sys.argv[2])):
    model = fastlstm.load(sys.argv[1], mmap=mapped)
    seen.add(model.tensors["rnn.bias_ih_l0"][0])
    bias = model.tensors["rnn.bias_ih_l0"]
    assert (bias == bias[0]).all()
print(len(seen))
"""

REPLACES = """
import sys
import numpy as np
from fastlstm import format, spec
graph = spec.Graph.chain([spec.GRU("rnn", 3, 4)])
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    shapes = spec.check(graph).tensors.items()
    tensors = {n: np.full(s, turn / 1000, "f4") for n, s in shapes}
    format.write_model(sys.argv[1], format.ModelFile(graph, tensors))
"""


@pytest.fixture
def replaced(tmp_path: Path) -> Iterator[Path]:
    """A model that two other processes replace again and again."""
    path = tmp_path / "m"
    subprocess.run(
        [sys.executable, "-c", REPLACES, str(path), "1"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    running = [start(REPLACES, path, 3000) for _ in range(2)]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
    yield path
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("way", ["mapped", "read"])
def test_no_load_fails_while_others_replace_the_file(way: str, replaced: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADS, str(replaced), "150", way],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1  # it was indeed replaced


def test_a_folder_that_can_be_written_but_not_read(tmp_path: Path) -> None:
    """It cannot be flushed, which is no reason not to save."""
    if os.geteuid() == 0:
        pytest.skip("root may read any folder")
    folder = tmp_path / "f"
    folder.mkdir()
    folder.chmod(0o300)
    try:
        put(folder / "s")
        assert (folder / "s").read_bytes() == b"new"
    finally:
        folder.chmod(0o700)
