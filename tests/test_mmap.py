"""load(..., mmap=True): the same model, the file's pages in common, and pickles that refer to it.

Damaged files are tested in test_format.py, for files that are read and those that are mapped.
"""

from __future__ import annotations

import copy
import errno
import gc
import mmap
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import chain as spec
import numpy as np
import pytest
from models import CELLS, build, every_kind, input_for, model_file, recurrent
from sealing import seal

import fastlstm
from fastlstm import FormatError, Model, _engine, format
from fastlstm import spec as vocabulary
from fastlstm.plan.lowering import plan

POSIX = pytest.mark.skipif(os.name != "posix", reason="replaces or cuts a mapped file")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

# A table that the kernels read as it lies, in front of matrices that are packed.
LOOKUP = (
    spec.Embedding("e", 20_000, 64),
    spec.LayerNorm("norm", 64),
    recurrent("lstm", 64, 24, num_layers=2),
    spec.Linear("out", 24, 7),
)
MODELS = {
    **{cell: (recurrent(cell, 5, 9, num_layers=2, bidirectional=True),) for cell in CELLS},
    "folded": (spec.Embedding("e", 11, 6), recurrent("gru", 6, 9), spec.Linear("out", 9, 11)),
    "one_hot": (spec.OneHot("o", 11), recurrent("lstm", 11, 5), spec.Linear("out", 5, 11)),
    "lookup": LOOKUP,
    **every_kind(4),
}
FIX = "keep the file as it was, or pickle a model that was loaded without mmap=True"


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    build(LOOKUP, rng).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def tokens(rng: np.random.Generator, steps: int = 40) -> np.ndarray:
    return rng.integers(0, LOOKUP[0].input_size, (steps, 2))


def is_mapped(array: np.ndarray | None) -> bool:
    """Whether an array's memory is that of a mapping, by whose memory it is a view of."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)


def table_of(model: Model) -> np.ndarray:
    """The Embedding's table, which the model reads where it lies."""
    table = model._tensors["e.weight"]
    assert model.nbytes < table.nbytes / 4
    return table


def refers(model: Model) -> bool:
    """Whether a model's pickle is a reference, which is a few hundred bytes."""
    size = len(pickle.dumps(model))
    whole = sum(array.nbytes for array in model.tensors.values())
    assert whole > 2**20
    assert size < 600 or size > whole
    return size < 600


class TestSameModel:
    def test_without_weights(self, tmp_path):
        model = build(spec.Activation("t", "tanh", 3))
        model.save(tmp_path / "m")
        again = pickle.loads(pickle.dumps(fastlstm.load(tmp_path / "m", mmap=True)))
        assert again.fingerprint == model.fingerprint

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("name", MODELS)
    def test_in_every_respect(self, name, dtype, rng, tmp_path):
        build(MODELS[name], rng, dtype).save(tmp_path / "m")
        read = fastlstm.load(tmp_path / "m")
        mapped = fastlstm.load(tmp_path / "m", mmap=True)
        x = input_for(read, rng, 40, 2)
        for ours, theirs in zip(mapped(x)[1].items(), read(x)[1].items(), strict=True):
            assert ours[0] == theirs[0]
            assert ours[1].tobytes() == theirs[1].tobytes()
        assert mapped(x)[0].tobytes() == read(x)[0].tobytes()
        assert list(mapped.tensors) == list(read.tensors)
        for tensor, array in mapped.tensors.items():
            assert array.tobytes() == read.tensors[tensor].tobytes()
        assert mapped.fingerprint == read.fingerprint
        assert mapped.check() == read.check()
        assert mapped.nbytes == read.nbytes
        assert (mapped.layers, mapped.vocabulary) == (read.layers, read.vocabulary)
        mapped.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()

    def test_in_a_stream(self, path, rng, tmp_path):
        read, mapped = fastlstm.load(path), fastlstm.load(path, mmap=True)
        x = tokens(rng)
        stream, other = mapped.stream(2), read.stream(2)
        assert np.array_equal(stream.run(x), other.run(x))
        stream.save(tmp_path / "state")
        other.load(tmp_path / "state")
        again = pickle.loads(pickle.dumps(stream))
        for row in x:
            assert np.array_equal(stream.step(row), other.step(row))
        again.run(x)
        assert np.array_equal(again.state["rnn.h"], stream.state["rnn.h"])

    def test_passes_verification(self, path):
        assert fastlstm.verify(fastlstm.load(path, mmap=True), steps=100).agrees

    def test_with_everything_else_that_is_asked_for(self, path, isa):
        model = fastlstm.load(path, threads=2, isa=isa, reproducible=True, mmap=True)
        again = pickle.loads(pickle.dumps(model))
        for one in (model, again):
            assert (one.threads, one.isa, one.reproducible) == (2, isa, True)
        assert refers(model)
        assert refers(again)

    def test_whose_self_check_fails_is_refused(self, path):
        bias = fastlstm.load(path).tensors["out.bias"]
        data = path.read_bytes()
        assert data.count(bias.tobytes()) == 1
        changed = data.replace(bias.tobytes(), (bias + 1).tobytes())
        path.write_bytes(changed)
        for mapped in (False, True):
            with pytest.raises(FormatError, match="not the one that was written: its SHA-256"):
                fastlstm.load(path, mmap=mapped)
        path.write_bytes(seal(changed))
        with pytest.raises(FormatError, match="self-check failed"):
            fastlstm.load(path, mmap=True)
        assert fastlstm.load(path, mmap=True, check=False).tensors


class TestMemory:
    def test_tensors_are_the_mapping_and_a_table_is_read_there(self, path):
        model = fastlstm.load(path, mmap=True)
        assert is_mapped(table_of(model))
        assert len(model._tensors) == 13
        assert all(map(is_mapped, model._tensors.values()))

    def test_a_table_of_a_file_that_is_read_is_held_once(self, path):
        model = fastlstm.load(path)
        assert not any(map(is_mapped, model._tensors.values()))
        assert model.nbytes < table_of(model).nbytes / 4

    def test_what_a_table_was_made_of_is_the_mapping(self, rng, tmp_path):
        build(MODELS["folded"], rng).save(tmp_path / "m")
        assert all(map(is_mapped, fastlstm.load(tmp_path / "m", mmap=True)._tensors.values()))

    def test_without_the_tensors_it_is_the_mapping_still(self, path, rng):
        model, x = fastlstm.load(path, mmap=True, keep=False), tokens(rng)
        assert model.nbytes == fastlstm.load(path, mmap=True).nbytes
        assert model(x)[0].tobytes() == fastlstm.load(path)(x)[0].tobytes()
        again = pickle.loads(pickle.dumps(model))
        for one in (model, again):
            with pytest.raises(RuntimeError, match="were not kept"):
                _ = one.tensors
        assert again(x)[0].tobytes() == model(x)[0].tobytes()

    def test_what_is_handed_out_is_the_callers(self, path, rng):
        model, x = fastlstm.load(path, mmap=True), tokens(rng)
        y, before = model(x)[0], path.read_bytes()
        checks = [array for given in model.self_check for array in given.values()]
        for array in (*model.tensors.values(), *checks):
            assert not is_mapped(array)
            array[...] = 1
        assert np.array_equal(model(x)[0], y)
        assert path.read_bytes() == before

    def test_the_mapping_cannot_be_written_to(self, path):
        for array in format.read_model(path, mapped=True).tensors.values():
            assert is_mapped(array)
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True

    @pytest.mark.parametrize("padding", range(8))
    def test_tensors_may_lie_anywhere(self, padding, path, isa, rng, tmp_path):
        """White space behind a header moves them: by a multiple of their size, or they are copied.

        At a multiple of 4 that is none of 16 or 64 the kernels read the very bytes of the file.
        """
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = data[8:end] + b" " * padding
        moved = len(header).to_bytes(8, "little") + header + data[end:]
        (tmp_path / "moved").write_bytes(seal(moved))
        read = fastlstm.load(tmp_path / "moved", isa=isa)
        mapped = fastlstm.load(tmp_path / "moved", isa=isa, mmap=True)
        table = table_of(mapped)
        assert is_mapped(table) == (padding % 4 == 0)
        assert table.flags.aligned
        x = tokens(rng)
        assert np.array_equal(mapped(x)[0], read(x)[0])
        assert mapped.fingerprint == read.fingerprint

    def test_what_may_change_is_copied(self, rng):
        """What cannot change, in no way that NumPy knows of, is not."""
        file = model_file(LOOKUP, rng)
        table = file.tensors["e.weight"]
        view = table.view()
        view.flags.writeable = False
        constant = table.copy()
        constant.flags.writeable = False
        for given, is_shared in ((table, False), (view, False), (constant, True)):
            file.tensors["e.weight"] = given
            kept = table_of(Model(file))
            assert np.shares_memory(kept, given) is is_shared
            assert not kept.flags.writeable
            assert np.array_equal(kept, table)

    @LINUX
    def test_takes_no_memory_for_what_is_the_mapping(self, rng, tmp_path, python):
        layers = (spec.Embedding("e", 100_000, 64), recurrent("gru", 64, 24))
        build(layers, rng).save(tmp_path / "m")
        table = 100_000 * 64 * 4
        code = """
            import gc, re, sys
            from pathlib import Path
            import numpy as np, fastlstm
            from models import build, recurrent

            def own():  # bytes that are this process's alone, as if there were no file
                text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
                return int(re.search(r"Private_Dirty: *([0-9]+)", text)[1]) * 1024

            build(recurrent("gru", 3, 4), np.random.default_rng(1)).save("small")
            fastlstm.load("small", mmap=True)
            before = own()
            model = fastlstm.load("m", mmap=sys.argv[1] == "mapped")
            model(np.arange(0, 100_000, 7))
            gc.collect()
            print(own() - before)
        """
        assert int(python(code, "read")) > 0.9 * table
        assert int(python(code, "mapped")) < 0.2 * table


def describe(model: Model, x: np.ndarray) -> tuple[np.ndarray, bool, str]:
    """What a worker got: its outputs, whether its table is the file's, and how it refers to it."""
    return model(x)[0], is_mapped(table_of(model)), repr(model)


def sharing(model: Model, path: Path) -> dict[str, int]:
    """Bytes of this process's mapping of a file, by /proc/self/smaps, all of its table read."""
    table_of(model).sum()
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            inside = line.endswith(f" {path}")
        elif inside and values[-1] == "kB":
            found[key] = found.get(key, 0) + int(values[0]) * 1024
    return found


in_worker: list[Model] = []


def adopt(model: Model) -> None:
    in_worker.append(model)


def run_adopted(x: np.ndarray) -> tuple[np.ndarray, bool, str]:
    return describe(in_worker[0], x)


def available(*methods: str) -> list[str]:
    return [method for method in methods if method in multiprocessing.get_all_start_methods()]


class TestProcesses:
    @pytest.mark.parametrize("method", available("spawn", "forkserver"))
    def test_a_process_gets_an_equal_model(self, method, path, rng):
        model, x = fastlstm.load(path, mmap=True), tokens(rng)
        with multiprocessing.get_context(method).Pool(1) as pool:
            y, mapped, text = pool.apply(describe, (model, x))
        assert y.tobytes() == model(x)[0].tobytes()
        assert mapped
        assert text == repr(model)

    @pytest.mark.parametrize("method", available("spawn", "forkserver"))
    def test_a_pool_is_given_it_once(self, method, path, rng):
        model = fastlstm.load(path, mmap=True)
        inputs = [tokens(rng) for _ in range(6)]
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, context, initializer=adopt, initargs=(model,)) as pool:
            for x, (y, mapped, _) in zip(inputs, pool.map(run_adopted, inputs), strict=True):
                assert y.tobytes() == model(x)[0].tobytes()
                assert mapped

    @pytest.mark.parametrize("method", available("fork"))
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_fork_has_it(self, method, path, rng):
        x = tokens(rng)
        in_worker[:] = [fastlstm.load(path, mmap=True)]
        with multiprocessing.get_context(method).Pool(1) as pool:
            y, mapped, _ = pool.apply(run_adopted, (x,))
        assert y.tobytes() == in_worker.pop()(x)[0].tobytes()
        assert mapped

    @LINUX
    def test_share_the_pages(self, path):
        model = fastlstm.load(path, mmap=True)
        table = table_of(model).nbytes
        sharing(model, path)  # every page of the table is now in this process too
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(sharing, (model, path))
        if not found:
            pytest.skip("smaps does not name the mapping here")
        assert found["Shared_Clean:"] >= table
        assert found["Private_Dirty:"] == found["Shared_Dirty:"] == 0


class TestPickle:
    def test_is_a_few_hundred_bytes(self, path, rng):
        model, x = fastlstm.load(path, mmap=True), tokens(rng)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(model, protocol)
            assert len(data) < 600 + len(str(path))
            again = pickle.loads(data)
            assert again.fingerprint == model.fingerprint
            assert again(x)[0].tobytes() == model(x)[0].tobytes()
        assert len(pickle.dumps(fastlstm.load(path))) > path.stat().st_size * 0.9

    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
    def test_copies_map_the_file_too(self, make, path):
        made = make(fastlstm.load(path, mmap=True))
        assert is_mapped(table_of(made))

    def test_of_a_relative_path_works_from_anywhere(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(path.parent)
        data = pickle.dumps(fastlstm.load(path.name, mmap=True))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert refers(pickle.loads(data))

    @POSIX
    def test_of_a_symbolic_link_names_the_file_itself(self, path, rng, tmp_path):
        (tmp_path / "link").symlink_to(path)
        model = fastlstm.load(tmp_path / "link", mmap=True)
        (tmp_path / "link").unlink()
        build(LOOKUP, rng).save(tmp_path / "newer")
        (tmp_path / "link").symlink_to(tmp_path / "newer")
        assert refers(model)
        assert pickle.loads(pickle.dumps(model)).fingerprint == model.fingerprint

    def changes(self, path: Path, other: Path) -> dict[str, Callable[[], object]]:
        """Ways for a file to be another than it was. In some, a mapping of it sees the change."""
        status = path.stat()

        def written_in_place() -> None:
            data = path.read_bytes()
            while path.stat().st_ctime_ns == status.st_ctime_ns:  # which has a clock of its own
                with open(path, "r+b") as file:
                    file.write(data)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it were older

        def replaced() -> None:
            shutil.copy2(other, path.with_suffix(".new"))
            os.utime(path.with_suffix(".new"), ns=(status.st_atime_ns, status.st_mtime_ns))
            os.replace(path.with_suffix(".new"), path)

        def replaced_by_a_folder() -> None:
            path.unlink()
            path.mkdir()

        return {
            "written in place": written_in_place,
            "replaced": replaced,
            "replaced by a folder": replaced_by_a_folder,
            "missing": path.unlink,
            "its folder is missing": lambda: path.parent.rename(path.parent.with_suffix(".old")),
        }

    WAYS = (
        *("written in place", "replaced", "replaced by a folder", "missing"),
        "its folder is missing",
    )

    @POSIX
    @pytest.mark.parametrize("way", WAYS)
    def test_is_whole_once_the_file_is_another(self, way, rng, tmp_path):
        folder = tmp_path / "models"
        folder.mkdir()
        path, other = folder / "m", tmp_path / "other"
        for place in (path, other):
            build(LOOKUP, rng).save(place)
        model, x = fastlstm.load(path, mmap=True), tokens(rng)
        y = model(x)[0]
        assert refers(model)
        self.changes(path, other)[way]()
        assert not refers(model)
        again = pickle.loads(pickle.dumps(model))
        assert not is_mapped(table_of(again))
        assert again(x)[0].tobytes() == model(x)[0].tobytes() == y.tobytes()
        assert again.fingerprint == model.fingerprint

    @POSIX
    @pytest.mark.parametrize("way", WAYS)
    def test_of_a_file_that_became_another_is_refused(self, way, rng, tmp_path):
        folder = tmp_path / "models"
        folder.mkdir()
        path, other = folder / "m", tmp_path / "other"
        for place in (path, other):
            build(LOOKUP, rng).save(place)
        data, before = pickle.dumps(fastlstm.load(path, mmap=True)), path.stat()
        self.changes(path, other)[way]()
        if "missing" in way:
            with pytest.raises(FileNotFoundError) as gone:
                pickle.loads(data)
            assert gone.value.filename == str(path)
            assert gone.value.strerror == (
                f"No such file or directory: a pickled model refers to this file; {FIX}"
            )
            return
        with pytest.raises(FormatError) as error:
            pickle.loads(data)
        if way == "replaced by a folder":
            expected = "this is a folder or a device; expected a regular file"
        else:
            now = path.stat()
            inode = f"inode {before.st_ino}, found {now.st_ino}"
            parts = [inode] if way == "replaced" else []
            parts.append(f"changed_ns {before.st_ctime_ns}, found {now.st_ctime_ns}")
            expected = (
                f"the file changed after the pickled model was loaded from it: expected "
                f"{'; '.join(parts)}; {FIX}"
            )
        assert str(error.value) == f"{path}: {expected}"

    def test_of_a_file_of_another_size_is_refused(self, path):
        data, before = pickle.dumps(fastlstm.load(path, mmap=True)), path.stat().st_size
        with open(path, "ab") as file:
            file.write(b"more")
        with pytest.raises(FormatError, match=f"expected size {before}, found {before + 4}; mod"):
            pickle.loads(data)

    @pytest.mark.usefixtures("obeys_permissions")
    def test_of_a_file_that_may_not_be_read_any_more(self, path):
        data = pickle.dumps(fastlstm.load(path, mmap=True))
        path.parent.chmod(0)
        try:
            with pytest.raises(PermissionError, match=f"a pickled model refers to.*{FIX}"):
                pickle.loads(data)
        finally:
            path.parent.chmod(0o700)


@POSIX
class TestFilesThatChange:
    def test_replaced_or_deleted_is_harmless(self, path, rng, tmp_path):
        model, x = fastlstm.load(path, mmap=True), tokens(rng, 4000)
        y, fingerprint = fastlstm.load(path)(x)[0], model.fingerprint
        build(LOOKUP, rng).save(tmp_path / "newer")
        os.replace(tmp_path / "newer", path)
        assert model(x)[0].tobytes() == y.tobytes()
        assert fastlstm.load(path).fingerprint != fingerprint
        path.unlink()
        del model.fingerprint  # to be computed anew
        assert model(x)[0].tobytes() == y.tobytes()
        assert model.fingerprint == fingerprint

    def test_a_model_is_saved_over_its_own_file(self, path, rng):
        model, x, before = fastlstm.load(path, mmap=True), tokens(rng, 4000), path.read_bytes()
        y = fastlstm.load(path)(x)[0]
        model.save(path)
        assert path.read_bytes() == before
        assert model(x)[0].tobytes() == y.tobytes()
        assert not refers(model)
        assert refers(fastlstm.load(path, mmap=True))

    @pytest.mark.parametrize("change", ["header", "shorter", "longer", "empty", "rewritten"])
    def test_changed_before_it_is_mapped_is_refused(self, change, path, monkeypatch):
        data, judge = path.read_bytes(), format._check_notes
        changed = {
            "header": data.replace(b'"out.bias"', b'"out.bios"'),
            "shorter": data[:-1],
            "longer": data + b"0",
            "empty": b"",
            "rewritten": data,
        }[change]

        def write(what: str, notes: object) -> None:
            path.write_bytes(changed)
            os.utime(path, ns=(1, 1))
            judge(what, notes)

        monkeypatch.setattr(format, "_check_notes", write)
        with pytest.raises(FormatError, match=r"the file changed while it was read; read it again"):
            format.read_model(path, mapped=True)

    def test_a_file_that_cannot_be_mapped_is_an_oserror(self, path, monkeypatch):
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        monkeypatch.setattr(mmap, "mmap", fail)
        message = r"the file cannot be mapped; load it without mmap=True: '.*model\.safetensors'"
        with pytest.raises(OSError, match=message) as error:
            fastlstm.load(path, mmap=True)
        assert error.value.errno == errno.ENODEV
        assert fastlstm.load(path).tensors

    def test_cut_short_kills_the_process_only_if_mapped(self, path, python):
        """Why mapping is off by default."""
        code = """
            import os, resource, sys
            import numpy as np, fastlstm
            model = fastlstm.load(sys.argv[1], mmap=sys.argv[2] == "mapped")
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            child = os.fork()
            if not child:
                os.truncate(sys.argv[1], 0)
                model(np.arange(20_000))
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
        copied = shutil.copy(path, path.with_suffix(".copy"))
        assert int(python(code, str(copied), "read")) == 0
        assert int(python(code, str(path), "mapped")) == -signal.SIGBUS


class TestEngine:
    """A network that is told that its tensors stay reads a table where it lies, and else a copy."""

    def network(self, constant: bool, tensors: dict[str, np.ndarray], dtype: type = np.float32):
        graph = model_file(LOOKUP, np.random.default_rng(1)).graph
        program = plan(graph, tensors, vocabulary.check(graph))
        ports = [_engine.Port("input", ())], [_engine.Port("output", (7,))]
        given = [tensors[name] for name in program.tensor_names]
        decoded = _engine.Program(program.to_bytes())
        return _engine.Network(decoded, given, np.dtype(dtype), "scalar", *ports, constant=constant)

    def test_a_table_is_read_where_it_lies(self, rng):
        tensors = model_file(LOOKUP, rng).tensors
        copied, read = self.network(False, tensors), self.network(True, tensors)
        assert copied.nbytes - read.nbytes == tensors["e.weight"].nbytes

    def test_one_of_another_type_is_refused(self, rng):
        tensors = model_file(LOOKUP, rng, np.float64).tensors
        assert self.network(False, tensors).nbytes > tensors["e.weight"].nbytes / 2
        with pytest.raises(ValueError, match="is of another type than the model"):
            self.network(True, tensors)

    def test_it_is_kept_alive(self, path, rng, tmp_path):
        x = tokens(rng)
        expected = fastlstm.load(path)(x)[0]
        stream = fastlstm.load(path, mmap=True, keep=False).stream(2)
        path.unlink()
        gc.collect()
        assert stream.run(x).tobytes() == expected.tobytes()
