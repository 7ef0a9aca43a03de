"""Time-series models: predictions fed back, and series in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CELLS, build, recurrent

import fastlstm
from fastlstm import Model, Stream
from fastlstm import chain as spec
from fastlstm.commands.series import read_series, write_series

FLOAT32 = np.dtype(np.float32)


def series_model(rng: np.random.Generator, cell: str = "lstm", **options: Any) -> Model:
    return build((recurrent(cell, 3, 13, num_layers=2), spec.Linear("head", 13, 3)), rng, **options)


class TestForecast:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("cell", CELLS)
    def test_feeds_predictions_back(self, rng, cell, dtype):
        model = series_model(rng, cell, dtype=dtype)
        history = rng.standard_normal((20, 3)).astype(dtype)
        known = history
        for _ in range(12):
            y, _ = model(known)
            known = np.concatenate([known, y[-1:]])
        found = fastlstm.forecast(model, history, 12)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, known[20:], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(fastlstm.forecast(model, history, 5), found[:5])

    def test_the_rows_of_a_batch_are_what_they_are_alone(self, rng, isa):
        model = series_model(rng, isa=isa)
        history = rng.standard_normal((7, 4, 3)).astype(np.float32)
        together = fastlstm.forecast(model, history, 9)
        assert together.shape == (9, 4, 3)
        for row in range(4):
            alone = fastlstm.forecast(model, np.ascontiguousarray(history[:, row]), 9)
            np.testing.assert_allclose(together[:, row], alone, rtol=0, atol=1e-6)

    def test_leaves_the_history_alone(self, rng):
        history = rng.standard_normal((4, 3)).astype(np.float32)
        before = history.copy()
        fastlstm.forecast(series_model(rng), history, 3)
        np.testing.assert_array_equal(history, before)

    def test_refuses(self, rng):
        model = series_model(rng)
        history = np.zeros((4, 3), np.float32)
        tokens = build((spec.Embedding("e", 3, 3),), rng)
        bidirectional = build(
            (recurrent("gru", 3, 4, bidirectional=True), spec.Linear("head", 8, 3)), rng
        )
        for given, x, steps, error, message in (
            (
                tokens, history, 2, ValueError,
                "this model takes tokens, not features; expected a time-series model. "
                "fastlstm.generate continues tokens",
            ),
            (
                build(recurrent("gru", 3, 5), rng), history, 2, ValueError,
                "this model takes 3 features a step and gives 5; to feed its predictions back, it "
                "must give as many as it takes: is its last layer missing?",
            ),
            (model, history, 0, ValueError, "steps is 0; expected at least 1"),
            (model, history, 1.0, TypeError, "steps is 1.0; expected an integer"),
            (model, history, True, TypeError, "steps is True; expected an integer"),
            (
                model, history[:0], 2, ValueError,
                "the history has no steps; expected at least one to continue from",
            ),
        ):  # fmt: skip
            with pytest.raises(error) as caught:
                fastlstm.forecast(given, x, steps)
            assert str(caught.value) == message
        for x in (history[:, :2], history[0], np.zeros((2, 2, 2, 3), np.float32)):
            with pytest.raises(ValueError, match="x has shape"):
                fastlstm.forecast(model, x, 2)
        for x in (history.astype(np.float64), history.tolist()):
            with pytest.raises(TypeError, match=r"^x "):
                fastlstm.forecast(model, x, 2)
        with pytest.raises(ValueError, match="is bidirectional"):
            fastlstm.forecast(bidirectional, history, 2)

    def test_refuses_models_that_do_not_give_a_row_a_step(self, rng, monkeypatch):
        model, history = series_model(rng), np.zeros((4, 3), np.float32)
        message = (
            "this model does not give one prediction for every step: it pools or strides over "
            "time; expected one output row a step"
        )
        run = Stream.run
        with monkeypatch.context() as patched:
            patched.setattr(Stream, "run", lambda self, x: run(self, x)[1:], raising=False)
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                fastlstm.forecast(model, history, 1)
            assert str(caught.value) == message
        monkeypatch.setattr(Stream, "step", lambda self, x: None, raising=False)
        assert len(fastlstm.forecast(model, history, 1)) == 1
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            fastlstm.forecast(model, history, 2)
        assert str(caught.value) == message


class TestCsv:
    @pytest.mark.parametrize(
        ("text", "names", "values"),
        [
            ("1,2\n3,-4e-1\n", None, [[1, 2], [3, -0.4]]),
            ("a,b c\n1,2\n", ("a", "b c"), [[1, 2]]),
            ('"a, b",c\r\n 1 ,"2"\r\n3,4', ("a, b", "c"), [[1, 2], [3, 4]]),
            ("\ufeffx,y\n1,2\n", ("x", "y"), [[1, 2]]),
        ],
    )
    def test_reads(self, tmp_path, text, names, values):
        path = tmp_path / "a.csv"
        path.write_bytes(text.encode())
        found = read_series(str(path), 2, FLOAT32)
        assert found.names == names
        assert found.values.dtype == np.float32
        np.testing.assert_array_equal(found.values, np.array(values, np.float32))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", " holds no rows; expected at least one step of the series"),
            ("a,b\n", " holds no rows; expected at least one step of the series"),
            (
                "1,2\n3,4,5\n",
                ", line 2: it has 3 columns; this model takes 2 features a step",
            ),
            ("1,2\n\n3,4\n", ", line 2: it has 0 columns; this model takes 2 features a step"),
            ("1;2\n", ", line 1: it has 1 columns; this model takes 2 features a step"),
            (
                "a,b\n1,x\n",
                ", line 2: 'x' is not a finite number; only the first line may be a header",
            ),
            (
                "a,1\n1,2\n",
                ", line 1: 'a' is not a finite number; only the first line may be a header",
            ),
            (
                "1,2\nc,d\n",
                ", line 2: 'c' is not a finite number; only the first line may be a header",
            ),
            ("1,\n", ", line 1: '' is not a finite number; only the first line may be a header"),
            (
                "1,nan\n",
                ", line 1: 'nan' is not a finite number; only the first line may be a header",
            ),
            (
                "1,2\n1_0,2\n",
                ", line 2: '1_0' is not a finite number; only the first line may be a header",
            ),
            (
                "1,2\n1,-1e60\n",
                ": row 1, column 1 is -1e+60; expected a finite number of float32",
            ),
            ('1,"2\n', ", line 1: unexpected end of data"),
        ],
    )
    def test_refuses(self, tmp_path, text, message):
        path = tmp_path / "a.csv"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read_series(str(path), 2, FLOAT32)
        assert str(caught.value) == f"{str(path)!r}{message}"

    def test_refuses_another_encoding(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_bytes("größe,b\n1,2\n".encode("latin1"))
        with pytest.raises(ValueError, match=r"a\.csv' is not UTF-8 text: "):
            read_series(str(path), 2, FLOAT32)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_gives_back_what_was_written(self, tmp_path, rng, dtype):
        values = (rng.standard_normal((50, 3)) * 10.0 ** rng.integers(-30, 30, (50, 3))).astype(
            dtype
        )
        path = str(tmp_path / "a.csv")
        for names in (None, ("a", 'b, "c"', "d")):
            write_series(path, values, names)
            found = read_series(path, 3, np.dtype(dtype))
            assert found.names == names
            np.testing.assert_array_equal(found.values, values)


class TestNpy:
    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "i4", "u1"])
    def test_reads(self, tmp_path, dtype):
        path = str(tmp_path / "a.npy")
        for values in (np.arange(6).reshape(3, 2), np.asfortranarray(np.arange(6).reshape(3, 2))):
            np.save(path, values.astype(dtype))
            found = read_series(path, 2, FLOAT32)
            assert found.names is None
            assert type(found.values) is np.ndarray
            assert found.values.dtype == np.float32
            assert found.values.flags.c_contiguous
            np.testing.assert_array_equal(found.values, values)

    def test_of_one_column(self, tmp_path):
        path = str(tmp_path / "a.npy")
        np.save(path, np.arange(5.0))
        np.testing.assert_array_equal(
            read_series(path, 1, FLOAT32).values, np.arange(5, dtype=np.float32)[:, None]
        )

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                np.zeros(4),
                " holds an array of shape (4,); this model takes 2 features a step: expected "
                "(T, 2)",
            ),
            (
                np.zeros((2, 2, 2)),
                " holds an array of shape (2, 2, 2); this model takes 2 features a step: expected "
                "(T, 2)",
            ),
            (np.zeros((0, 2)), " holds no rows; expected at least one step of the series"),
            (
                np.zeros((3, 2), complex),
                " holds complex128; expected an array of real numbers",
            ),
            (np.zeros((3, 2), bool), " holds bool; expected an array of real numbers"),
            (
                np.array([[1, 2], [3, np.inf]]),
                ": row 1, column 1 is inf; expected a finite number of float32",
            ),
            (
                np.array([[1e300, 2]]),
                ": row 0, column 0 is 1e+300; expected a finite number of float32",
            ),
            (
                np.array([[{}, 2]], object),
                " is not a sound .npy file of numbers: Array can't be memory-mapped: Python "
                "objects in dtype.",
            ),
        ],
    )
    def test_refuses(self, tmp_path, values, message):
        path = str(tmp_path / "a.npy")
        np.save(path, values, allow_pickle=True)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read_series(path, 2, FLOAT32)
        assert str(caught.value) == f"{path!r}{message}"

    def test_a_huge_shape_allocates_nothing(self, tmp_path):
        path = tmp_path / "a.npy"
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**15, 2)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(64))
        with pytest.raises(ValueError, match=r"is not a sound \.npy file of numbers: "):
            read_series(str(path), 2, FLOAT32)

    def test_any_bytes_load_or_raise(self, tmp_path, rng):
        path = tmp_path / "a.npy"
        np.save(path, np.ones((4, 2), np.float32))
        sound = path.read_bytes()
        damaged = [b"", b"PK\x03\x04", sound[:40], b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"]
        for _ in range(300):
            content = bytearray(sound)
            for at in rng.integers(0, 80, 2):
                content[at] = rng.integers(256)
            damaged.append(bytes(content))
        refused = 0
        for content in damaged:
            path.write_bytes(content)
            try:
                found = read_series(str(path), 2, FLOAT32)
            except ValueError:
                refused += 1
            else:
                assert found.values.shape[1] == 2
        assert refused > 200

    def test_gives_back_what_was_written(self, tmp_path: Path, rng: np.random.Generator) -> None:
        path, values = str(tmp_path / "a.npy"), rng.standard_normal((5, 3))
        write_series(path, values, ("lost", "names", "here"))
        np.testing.assert_array_equal(read_series(path, 3, np.dtype(np.float64)).values, values)


@pytest.mark.parametrize("name", ["a.txt", "csv", "a.npz"])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^--input is .*; expected a file that ends in \.csv or"):
        read_series(name, 2, FLOAT32)
