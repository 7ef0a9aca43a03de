"""Pools that move: pickled, copied, saved and loaded; and files that hold anything else.

A file that is damaged anywhere raises FormatError and opens nothing.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ISAS, STREAMING, build, every_kind, input_for, model_file, recurrent, state_for
from safetensors.numpy import load, save
from ways import assert_same_bits, assert_same_state

from fastlstm import FormatError, Model, Pool, format

LAYERS = {
    "lstm": (recurrent("lstm", 3, 5, num_layers=2),),
    "gru": (recurrent("gru", 3, 4),),
    **{kind: every_kind(2)[kind] for kind in STREAMING},
}
INDEX = 2**24 - 1  # of a slot's number


def exact(kind: str, rng: np.random.Generator, dtype: Any = np.float32, **options: Any) -> Model:
    return build(LAYERS[kind], rng, dtype, reproducible=True, **options)


def lived(model: Model, rng: np.random.Generator, streams: int = 6, **options: Any) -> Pool:
    """A pool whose streams have come, gone and made different numbers of steps."""
    pool = model.pool(**({"capacity": 2 * streams} | options))
    for i in range(2 * streams):
        slot = pool.open(state_for(model, rng, None) if i % 3 == 0 else None)
        pool.run(slot, input_for(model, rng, i))
        if i % 2:
            pool.close(int(rng.choice(pool.slots)))
    assert len(pool) == streams
    return pool


def content(pool: Pool, slots: Any = None) -> tuple[dict[str, np.ndarray], list[int]]:
    slots = pool.slots if slots is None else slots
    return pool.get_state(slots), pool.steps(slots).tolist()


def assert_same_content(got: Any, expected: Any) -> None:
    assert_same_state(got[0], expected[0])
    assert got[1] == expected[1]


def assert_same_future(
    one: Pool, ones: list[int], other: Pool, others: list[int], rng: np.random.Generator
) -> None:
    """Both go on alike; of both, nothing stays behind."""
    x = input_for(one.model, rng, 4, len(ones))
    lengths = rng.integers(0, 5, len(ones))
    expected = one.run(ones, x, lengths)
    assert_same_bits(other.run(others, x, lengths), expected)
    assert_same_bits(other.step(others, x[0]), one.step(ones, x[0]))
    assert_same_content(content(other, others), content(one, ones))


class TestPickle:
    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy"])
    def test_goes_on_under_the_same_numbers(
        self, kind: str, way: str, rng: np.random.Generator
    ) -> None:
        model = exact(kind, rng)
        pool = lived(model, rng)
        slots, before = pool.slots.tolist(), content(pool)
        make = {
            "pickle": lambda pool: pickle.loads(pickle.dumps(pool)),
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
        }
        twin = make[way](pool)
        assert type(twin) is Pool
        assert (twin.slots.tolist(), len(twin), twin.capacity) == (slots, 6, 12)
        assert (twin.model is model) == (way == "copy")
        assert twin.model.isa == model.isa
        assert_same_content(content(twin, slots), before)
        assert_same_future(twin, slots[::-1], pickle.loads(pickle.dumps(pool)), slots[::-1], rng)
        assert_same_content(content(pool), before)  # the twin's steps are its own
        twin.close(slots[0])
        assert slots[0] in pool
        assert slots[0] not in twin

    def test_free_places_are_found_again(self, rng: np.random.Generator) -> None:
        """All of them, once each, and no number is given a second time."""
        for _ in range(20):
            model = exact("gru", rng)
            pool, live = model.pool(capacity=int(rng.integers(5, 40)), growth=3), []
            for _ in range(60):
                if live and rng.random() < 0.5:
                    pool.close(live.pop(rng.integers(len(live))))
                else:
                    live.append(pool.open())
            pool.set_state(live, state_for(model, rng, len(live)))
            twin = pickle.loads(pickle.dumps(pool))
            state, room = twin.get_state(live), twin.capacity - len(twin)
            assert twin.capacity == pool.capacity
            new = [twin.open() if i % 2 or not live else twin.fork(live[0]) for i in range(room)]
            assert twin.capacity == pool.capacity
            assert not set(new) & set(live)
            assert len({slot & INDEX for slot in live + new}) == len(live) + room
            assert not any(slot in pool for slot in new)
            assert_same_state(twin.get_state(live), state)
            assert sorted(twin.slots.tolist()) == sorted(live + new)
            twin.open()  # grows
            assert twin.capacity == pool.capacity + 3
            twin.close([*live, *new])

    def test_of_no_streams_and_of_a_full_pool(self, rng: np.random.Generator) -> None:
        model = exact("lstm", rng)
        for streams in (0, 4):
            pool = model.pool(capacity=4)
            slots = [pool.open() for _ in range(streams)]
            twin = pickle.loads(pickle.dumps(pool))
            assert twin.slots.tolist() == slots
            for _ in range(4 - streams):
                twin.open()
            with pytest.raises(RuntimeError, match="all 4 slots of this pool are taken"):
                twin.open()

    def test_options_go_with_it(self, rng: np.random.Generator) -> None:
        pool = exact("gru", rng).pool(3, 2, max_batch=5, max_wait=7.5, max_pending=9)
        for twin in (pickle.loads(pickle.dumps(pool)), copy.copy(pool)):
            assert (twin.capacity, twin.growth, twin._batching) == (3, 2, (5, 7.5, 9))

    def test_in_another_process_new_numbers_are_new(
        self, rng: np.random.Generator, python: Callable[..., str], tmp_path: Path
    ) -> None:
        """One that has opened fewer streams than the one in which the numbers were given."""
        model = exact("delayed", rng)
        for _ in range(50):
            pool = lived(model, rng)
        (tmp_path / "pool").write_bytes(pickle.dumps(pool))
        code = """
            import json, pickle, sys
            from pathlib import Path

            pool = pickle.loads(Path(sys.argv[1]).read_bytes())
            old = pool.slots.tolist()
            new = [pool.open() for _ in range(6)]
            other = pool.model.pool(capacity=20)
            others = [other.open() for _ in range(20)]
            assert min(new + others) > max(old) and len({*old, *new, *others}) == 32
            assert not any(slot in pool for slot in others)
            state = {n: a.tobytes().hex() for n, a in pool.get_state(old).items()}
            print(json.dumps([old, pool.steps(old).tolist(), state]))
            """
        old, steps, state = json.loads(python(code, str(tmp_path / "pool")))
        assert old == pool.slots.tolist()
        assert steps == pool.steps(old).tolist()
        assert state == {n: a.tobytes().hex() for n, a in pool.get_state(old).items()}

    def test_in_the_same_process_numbers_stay_apart(self, rng: np.random.Generator) -> None:
        pool = lived(exact("gru", rng), rng)
        twin = copy.copy(pool)
        a, b = pool.open(), twin.open()
        assert a != b
        assert a not in twin
        assert b not in pool
        pool.close(pool.slots)
        assert len(twin) == 7


class TestSaveAndLoad:
    @pytest.mark.parametrize("kind", LAYERS)
    def test_all(self, kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact(kind, rng)
        pool = lived(model, rng)
        pool.save(tmp_path / "s")
        other = model.pool(capacity=6)
        made = other.load(tmp_path / "s")
        assert list(made) == pool.slots.tolist()
        assert sorted(made.values()) == sorted(other.slots.tolist())
        assert all(type(slot) is int for pair in made.items() for slot in pair)
        assert not any(slot in other for slot in made)
        assert not any(slot in pool for slot in made.values())
        assert_same_content(content(other, list(made.values())), content(pool, list(made)))
        assert_same_future(pool, list(made), other, list(made.values()), rng)

    def test_float64_and_every_instruction_set(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        double = exact("lstm", rng, np.float64)
        pool = lived(double, rng)
        pool.save(tmp_path / "d")
        other = double.pool()
        made = other.load(tmp_path / "d")
        assert_same_content(content(other, list(made.values())), content(pool, list(made)))
        file = model_file(LAYERS["lstm"], rng)
        pools = [Model(file, isa=isa).pool() for isa in ISAS]
        for i in range(4):
            pools[0].run(pools[0].open(), input_for(pools[0].model, rng, i))
        pools[0].save(tmp_path / "s")
        for pool in pools[1:]:
            made = pool.load(tmp_path / "s")
            assert_same_content(content(pool, list(made.values())), content(pools[0]))

    def test_some(self, rng: np.random.Generator, tmp_path: Path) -> None:
        """Of a pool and of a file; in any order, in any integer array."""
        model = exact("delayed", rng)
        pool = lived(model, rng)
        slots = pool.slots[rng.permutation(6)]
        pool.save(tmp_path / "four", slots[:4])
        pool.save(str(tmp_path / "one"), slots[5:].tolist())
        other = model.pool()
        made = other.load(tmp_path / "four", slots[[2, 0, 3]])
        assert sorted(made) == sorted(slots[[2, 0, 3]].tolist())
        assert_same_content(content(other, list(made.values())), content(pool, list(made)))
        again = other.load(tmp_path / "four", slots[:2].tolist())
        assert not set(again.values()) & set(made.values())
        assert_same_content(content(other, list(again.values())), content(pool, list(again)))
        last = other.load(str(tmp_path / "one"), tuple(slots[5:].tolist()))
        assert list(last) == [slots[5]]
        assert other.load(tmp_path / "four", []) == {}
        assert other.load(tmp_path / "four", np.array([], int)) == {}
        assert len(other) == 6

    def test_none_at_all(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("lstm", rng)
        pool = lived(model, rng)
        model.pool().save(tmp_path / "empty")
        pool.save(tmp_path / "none", [])
        before = content(pool)
        for name in ("empty", "none"):
            assert pool.load(tmp_path / name) == {}
            assert pool.load(tmp_path / name, []) == {}
            with pytest.raises(ValueError, match=r"slot 5 is not in '.*'"):
                pool.load(tmp_path / name, [5])
        assert_same_content(content(pool), before)
        other = exact("lstm", rng)  # of other weights
        with pytest.raises(FormatError, match="streams of another model"):
            other.pool().load(tmp_path / "empty")

    def test_twice_and_into_a_pool_with_streams(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        model = exact("gru", rng)
        pool = lived(model, rng, capacity=40)
        slots, before = pool.slots.tolist(), content(pool)
        pool.save(tmp_path / "s")
        made = [pool.load(tmp_path / "s") for _ in range(3)]
        assert len({slot for one in made for slot in one.values()} | set(slots)) == 24
        for one in made:
            assert_same_content(content(pool, list(one.values())), before)
        assert_same_content(content(pool, slots), before)

    def test_what_was_closed_since_does_not_come_back(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        model = exact("gru", rng)
        pool = lived(model, rng)
        slots, before = pool.slots.tolist(), content(pool)
        pool.save(tmp_path / "s")
        pool.close(slots)
        made = pool.load(tmp_path / "s")
        assert not set(made.values()) & set(slots)
        assert not any(slot in pool for slot in slots)
        assert_same_content(content(pool, list(made.values())), before)

    @pytest.mark.parametrize("room", [0, 1, 5])
    def test_without_room_for_all_nothing_is_opened(
        self, room: int, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        model = exact("lstm", rng)
        pool = lived(model, rng)
        pool.save(tmp_path / "s")
        other = model.pool(capacity=4 + room)
        held = [other.open(state_for(model, rng, None)) for _ in range(4)]
        before = content(other)
        for _ in range(3):
            with pytest.raises(RuntimeError, match=f"{4 + room} slots of this pool are taken"):
                other.load(tmp_path / "s")
            assert other.slots.tolist() == held
            assert_same_content(content(other), before)
        made = other.load(tmp_path / "s", pool.slots[:room])
        assert len(made) == room
        with pytest.raises(RuntimeError, match="are taken"):
            other.open()

    def test_grows_for_them(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("lstm", rng)
        pool = lived(model, rng, 40)
        pool.save(tmp_path / "s")
        other = model.pool(capacity=1, growth=1)
        other.open()
        made = other.load(tmp_path / "s")
        assert (len(other), other.capacity) == (41, 41)
        assert_same_content(content(other, list(made.values())), content(pool))

    def test_slots_that_are_not_in_the_file(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("lstm", rng)
        pool = lived(model, rng)
        slots = pool.slots.tolist()
        pool.save(tmp_path / "s", slots[:4])
        before = content(pool)
        for wrong in (slots[4], 0, -1, 2**63 - 1, 2**70, slots[0] + 1):
            with pytest.raises(ValueError, match=rf"slot {wrong} is not (in '.*s'|open)"):
                pool.load(tmp_path / "s", [slots[1], wrong])
        with pytest.raises(
            ValueError, match=rf"slot {slots[1]} is not in '.*s', or is given twice"
        ):
            pool.load(tmp_path / "s", [slots[1], slots[0], slots[1]])
        for kind in ([float(slots[0])], [True], np.array([slots[0]], float), "s", [None], ["1"]):
            with pytest.raises(TypeError, match="slots"):
                pool.load(tmp_path / "s", kind)
        with pytest.raises(ValueError, match="slots has shape"):
            pool.load(tmp_path / "s", [[slots[0]]])
        assert pool.slots.tolist() == slots
        assert_same_content(content(pool), before)

    def test_odd_numbers_are_kept(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("gru", rng)
        pool = model.pool()
        odd = np.array([[np.nan, np.inf, -np.inf, -0.0]], "f4")
        payload = np.array([[0x7FC12345, 1, 0x80000001, 0x7F7FFFFF]], "u4").view("f4")
        slots = [pool.open({"rnn.h": array}) for array in (odd, payload)]
        pool.save(tmp_path / "s")
        made = pool.load(tmp_path / "s")
        for slot, array in zip(slots, (odd, payload), strict=True):
            assert_same_bits(pool.get_state(made[slot])["rnn.h"], array)

    def test_the_same_pool_gives_the_same_bytes(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        pool = lived(exact("causal", rng), rng)
        pool.save(tmp_path / "a")
        pool.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_changed_stream_is_a_changed_file(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        """What is loaded is a copy of when it was saved."""
        model = exact("lstm", rng)
        pool = lived(model, rng)
        before = content(pool)
        pool.save(tmp_path / "s")
        pool.step(pool.slots, input_for(model, rng, 6))
        made = pool.load(tmp_path / "s")
        assert_same_content(content(pool, list(made.values())), before)


class TestAtomic:
    """A file appears whole or not at all."""

    def test_a_failing_write_leaves_the_old_file(
        self, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = exact("lstm", rng)
        pool = lived(model, rng)
        path = tmp_path / "s"
        pool.save(path)
        before = path.read_bytes()
        pool.step(pool.slots, input_for(model, rng, 6))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        for name in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                with pytest.raises(OSError, match="No space left"):
                    pool.save(path)
            assert path.read_bytes() == before
            assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
        pool.save(path)
        assert path.read_bytes() != before

    def test_a_refused_slot_leaves_the_old_file(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        pool = lived(exact("lstm", rng), rng)
        path = tmp_path / "s"
        path.write_bytes(b"older")
        for wrong in ([1], [pool.slots[0]] * 2, [1.5]):
            with pytest.raises((TypeError, ValueError)):
                pool.save(path, wrong)
        assert path.read_bytes() == b"older"
        assert len(list(tmp_path.iterdir())) == 1

    def test_paths_that_cannot_be(self, rng: np.random.Generator, tmp_path: Path) -> None:
        pool = lived(exact("lstm", rng), rng)
        with pytest.raises(FileNotFoundError):
            pool.save(tmp_path / "no" / "s")
        with pytest.raises(IsADirectoryError):
            pool.save(tmp_path)
        with pytest.raises(FileNotFoundError):
            pool.load(tmp_path / "no")
        with pytest.raises(FormatError, match="folder"):
            pool.load(tmp_path)
        assert len(pool) == 6

    @pytest.mark.skipif(os.name != "posix", reason="kills a process")
    def test_killed_while_writing(self, rng: np.random.Generator, tmp_path: Path) -> None:
        """At any time: the file is the old or the new one, and loads."""
        model = exact("lstm", rng)
        model.save(tmp_path / "m")
        pool = lived(model, rng, 200)
        pool.save(tmp_path / "s")
        code = (
            "import sys, fastlstm\n"
            "pool = fastlstm.load(sys.argv[1]).pool()\n"
            "pool.load(sys.argv[2])\n"
            "print('ready', flush=True)\n"
            "while True: pool.save(sys.argv[2])\n"
        )
        for turn in range(4):
            command = [sys.executable, "-c", code, str(tmp_path / "m"), str(tmp_path / "s")]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
                # So many of its files are seen before it is killed, in the middle of another.
                seen = {(tmp_path / "s").stat().st_ctime_ns}
                while len(seen) < 2 + turn:
                    seen.add((tmp_path / "s").stat().st_ctime_ns)
                process.kill()
            other = model.pool()
            made = other.load(tmp_path / "s")
            assert_same_content(content(other, list(made.values())), content(pool))


def spans(data: bytes) -> dict[str, tuple[int, int]]:
    """Of each array of a file: from which byte to which."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return {
        name: (end + entry["data_offsets"][0], end + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


@pytest.fixture(params=["lstm", "delayed", "features"])
def saved(request: pytest.FixtureRequest, rng: np.random.Generator, tmp_path: Path) -> Any:
    """A pool, the file it wrote, and another pool with streams, which tries damaged ones."""
    model = exact(request.param, rng)
    pool, trial = lived(model, rng), model.pool(capacity=9)
    for _ in range(3):
        trial.run(trial.open(), input_for(model, rng, 4))
    pool.save(tmp_path / "s")
    return pool, tmp_path / "s", trial


class TestDamage:
    def refused(self, trial: Pool, path: Path, data: bytes, match: str = "") -> None:
        slots, before = trial.slots.tolist(), content(trial)
        path.write_bytes(data)
        with pytest.raises(FormatError) as raised:
            trial.load(path)
        assert str(path) in str(raised.value)
        assert match in str(raised.value)
        assert trial.slots.tolist() == slots
        assert_same_content(content(trial), before)

    def test_truncated(self, saved: Any) -> None:
        _, path, trial = saved
        data = path.read_bytes()
        for length in sorted({*range(0, len(data), 7), *range(0, 40), len(data) - 1}):
            self.refused(trial, path, data[:length])

    def test_something_is_appended_or_inserted(self, saved: Any) -> None:
        _, path, trial = saved
        data = path.read_bytes()
        for more in (b"\0", b" ", data, b"\0" * 4096):
            self.refused(trial, path, data + more)
        end = 8 + int.from_bytes(data[:8], "little")
        for at in (0, 8, end, len(data) - 4):
            self.refused(trial, path, data[:at] + b"\0\0\0\0" + data[at:])
            self.refused(trial, path, data[:at] + data[at + 4 :])

    def test_flipped_bits(self, saved: Any, rng: np.random.Generator) -> None:
        """Anywhere: in the header, in the slots and steps, and in the numbers of the states."""
        _, path, trial = saved
        data, where = path.read_bytes(), spans(path.read_bytes())
        end = 8 + int.from_bytes(data[:8], "little")
        flips = [*rng.integers(0, len(data), 150), *rng.integers(0, end, 150)]
        flips += [at for name in ("pool.slots", "pool.steps") for at in range(*where[name])]
        for at in map(int, flips):
            damaged = bytearray(data)
            damaged[at] ^= 1 << int(rng.integers(8))
            self.refused(trial, path, bytes(damaged))

    def test_whole_blocks_of_zeros_and_ones(self, saved: Any, rng: np.random.Generator) -> None:
        """A file system's sectors, lost anywhere."""
        _, path, trial = saved
        data = path.read_bytes()
        for fill in (b"\0", b"\xff"):
            for size in (8, 64, 512):
                for at in rng.integers(0, len(data), 8):
                    hole = data[:at] + (fill * size)[: len(data) - at] + data[at + size :]
                    if hole != data:  # a state may hold zeros
                        self.refused(trial, path, hole)

    def test_random_bytes(self, saved: Any, rng: np.random.Generator) -> None:
        _, path, trial = saved
        for size in (0, 1, 7, 8, 9, 100, 5000):
            self.refused(trial, path, rng.bytes(size))
        for size in (2, 100, 5000):
            self.refused(trial, path, size.to_bytes(8, "little") + b"{" + rng.bytes(size))


class TestOtherFiles:
    def test_of_another_model(self, rng: np.random.Generator, tmp_path: Path) -> None:
        """The same layers, other weights; and other layers whose state is the same."""
        pool = lived(exact("gru", rng), rng)
        pool.save(tmp_path / "s")
        for other in (exact("gru", rng), build(recurrent("gru", 5, 4), rng)):
            trial = other.pool()
            with pytest.raises(FormatError, match=r"streams of another model.*these very weights"):
                trial.load(tmp_path / "s")
            assert len(trial) == 0

    def test_of_a_stream(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("lstm", rng)
        for batch in (None, 1, 6):
            model.stream(batch).save(tmp_path / "s")
            trial = model.pool()
            with pytest.raises(
                FormatError, match=r"a stream's saved state.*; expected a pool's saved streams"
            ):
                trial.load(tmp_path / "s")
            assert len(trial) == 0

    @pytest.mark.parametrize("streams", [0, 1, 3])
    def test_a_stream_does_not_load_a_pool(
        self, streams: int, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        for kind in ("lstm", "features"):
            model = exact(kind, rng)
            pool = model.pool()
            for _ in range(streams):
                pool.open(state_for(model, rng, None))
            pool.save(tmp_path / "s")
            for batch in (None, 1, 3):
                stream = model.stream(batch)
                stream.state = state = state_for(model, rng, batch)
                with pytest.raises(FormatError, match="Pool"):
                    stream.load(tmp_path / "s")
                assert_same_state(stream.state, state)

    def test_of_something_else(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("lstm", rng)
        model.save(tmp_path / "model")
        (tmp_path / "tensors").write_bytes(save({"a": np.zeros(3, "f4")}))
        (tmp_path / "pickle").write_bytes(pickle.dumps(model.pool()))
        trial = model.pool()
        for name, match in (
            ("model", "this is a model, which fastlstm.load reads"),
            ("tensors", "ordinary safetensors"),
            ("pickle", "pickle"),
        ):
            with pytest.raises(FormatError, match=match):
                trial.load(tmp_path / name)
        assert len(trial) == 0

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a device")
    def test_a_device_or_a_pipe(self, rng: np.random.Generator, tmp_path: Path) -> None:
        trial = exact("lstm", rng).pool()
        os.mkfifo(tmp_path / "pipe")
        for path in ("/dev/zero", "/dev/null", tmp_path / "pipe"):
            with pytest.raises(FormatError, match="expected a regular file"):
                trial.load(path)


class TestForged:
    """Sound containers that no pool wrote: what is in them is judged before a stream opens."""

    @pytest.fixture
    def model(self, rng: np.random.Generator) -> Model:
        return exact("lstm", rng)

    def parts(self, model: Model, N: int = 3) -> dict[str, np.ndarray]:
        state = state_for(model, np.random.default_rng(4), N)
        numbers = (np.arange(1, N + 1) << 24) + np.arange(N)
        return state | {"pool.slots": numbers, "pool.steps": np.arange(N)}

    def refused(self, model: Model, path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
        format.write_state(path, arrays, {"fingerprint": model.fingerprint}, "pool")
        self.refused_file(model, path, match)

    def refused_file(self, model: Model, path: Path, match: str) -> None:
        pool = model.pool()
        slot = pool.open(state_for(model, np.random.default_rng(5), None))
        before = content(pool)
        for slots in (None, [1 << 24]):
            with pytest.raises(FormatError, match=match) as raised:
                pool.load(path, slots)
            assert str(path) in str(raised.value)
        assert pool.slots.tolist() == [slot]
        assert_same_content(content(pool), before)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"pool.steps": np.array([0, -1, 5])}, "made -1 steps"),
            ({"pool.steps": np.array([0, -(2**63), 5])}, f"made -{2**63} steps"),
            ({"pool.slots": np.array([1, 2, 1]) << 24}, "twice"),
            ({"pool.slots": np.array([1, 2]) << 24}, "twice, or lacks its steps|shape"),
            ({"pool.slots": np.arange(1, 5) << 24}, "twice, or lacks its steps|shape"),
            ({"pool.steps": np.array([1, 2])}, "lacks its steps|shape"),
            ({"pool.steps": np.array([1, 2, 3, 4])}, "lacks its steps|shape"),
            ({"pool.steps": None}, "lacks the slots or the steps"),
            ({"pool.slots": None}, "lacks the slots or the steps"),
            ({"pool.steps": None, "pool.slots": None}, "lacks the slots or the steps"),
            ({"pool.steps": np.zeros(3)}, "lacks the slots or the steps"),
            ({"pool.steps": np.zeros(3, "f4")}, "lacks the slots or the steps"),
            ({"pool.slots": np.arange(3.0)}, "lacks the slots or the steps"),
            ({"pool.slots": np.arange(1, 4)[None]}, "lacks the slots or the steps"),
            ({"pool.steps": np.zeros((), int)}, "lacks the slots or the steps"),
            ({"rnn.h": None}, r"state has the arrays 'rnn\.c'"),
            ({"rnn.h": None, "rnn.c": None}, r"state has the arrays none"),
            ({"rnn.x": np.zeros((2, 3, 5), "f4")}, r"'rnn\.x'"),
            ({"rnn.h": np.zeros((2, 2, 5), "f4")}, r"'rnn\.h' has shape \(2, 2, 5\)"),
            ({"rnn.h": np.zeros((3, 2, 5), "f4")}, r"'rnn\.h' has shape \(3, 2, 5\)"),
            ({"rnn.h": np.zeros((2, 5), "f4")}, r"'rnn\.h' has shape \(2, 5\)"),
            ({"rnn.c": np.zeros((2, 3, 4), "f4")}, r"'rnn\.c' has shape \(2, 3, 4\)"),
            ({"rnn.c": np.zeros((2, 3, 5))}, r"'rnn\.c' is of float64"),
            ({"rnn.c": np.zeros((2, 3, 5), int)}, r"'rnn\.c' is of int64"),
        ],
    )
    def test_arrays(self, model: Model, change: dict[str, Any], match: str, tmp_path: Path) -> None:
        arrays = self.parts(model) | change
        arrays = {name: array for name, array in arrays.items() if array is not None}
        self.refused(model, tmp_path / "s", arrays, match)

    @pytest.mark.parametrize("numbers", [[0, 1 << 24, 2 << 24], [-1, 1 << 24, 2 << 24], [5, 6, 7]])
    def test_numbers_that_no_slot_has(
        self, model: Model, numbers: list[int], tmp_path: Path
    ) -> None:
        arrays = self.parts(model) | {"pool.slots": np.array(numbers)}
        self.refused(model, tmp_path / "s", arrays, "slot")

    def test_counts_of_steps_in_a_state(self, rng: np.random.Generator, tmp_path: Path) -> None:
        model = exact("delayed", rng)
        for wrong in (-1, 2**40, 2**62, -(2**63)):
            arrays = self.parts(model)
            arrays["a.count"][0, 1] = wrong
            self.refused(model, tmp_path / "s", arrays, f"'a.count' holds {wrong}; expected a")

    @pytest.mark.parametrize(
        ("metadata", "match"),
        [
            ({"fingerprint": None}, "another model"),
            ({"fingerprint": "0" * 64}, "another model"),
        ],
    )
    def test_metadata(
        self, model: Model, metadata: dict[str, Any], match: str, tmp_path: Path
    ) -> None:
        given = {"fingerprint": model.fingerprint} | metadata
        given = {name: text for name, text in given.items() if text is not None}
        format.write_state(tmp_path / "s", self.parts(model), given, "pool")
        self.refused_file(model, tmp_path / "s", match)

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            *(("pool.steps", dtype) for dtype in ("u8", "i4", "i2", "?", "f2", "u1")),
            *(("pool.slots", dtype) for dtype in ("u8", "i4", "?", "f2")),
            *(("rnn.h", dtype) for dtype in ("f2", "i4", "u4", "?")),
        ],
    )
    def test_dtypes_that_we_never_write(
        self, model: Model, name: str, dtype: str, tmp_path: Path
    ) -> None:
        """By the library, with our metadata: its writer takes what ours refuses."""
        pool = model.pool()
        for _ in range(3):
            pool.open()
        pool.save(tmp_path / "s")
        data = (tmp_path / "s").read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        text = json.loads(data[8:end])["__metadata__"]
        arrays = dict(load(data))
        with np.errstate(all="ignore"):
            arrays[name] = arrays[name].astype(dtype)
        (tmp_path / "s").write_bytes(save(arrays, text))
        self.refused_file(model, tmp_path / "s", "tensor|lacks|is of")

    def test_arrays_without_elements(self, model: Model, tmp_path: Path) -> None:
        pool = model.pool()
        pool.open()
        pool.save(tmp_path / "s")
        data = (tmp_path / "s").read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        text = json.loads(data[8:end])["__metadata__"]
        arrays = {n: a[..., :0] if a.ndim == 1 else a[:, :0] for n, a in load(data).items()}
        (tmp_path / "s").write_bytes(save(arrays, text))
        self.refused_file(model, tmp_path / "s", "shape")
