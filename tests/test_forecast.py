"""Time-series models: predictions fed back, and series in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chain as spec
import numpy as np
import pytest
from models import CELLS, build, recurrent

import fastlstm
from fastlstm import Model, Stream, cli
from fastlstm.commands.series import continued, read_series, write_series
from fastlstm.forecasting import fitted

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
            "time; expected one output row a step, or the window of steps that it was trained on"
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


class TestWindows:
    """A model that was trained on windows is fed the last so many rows, from the start."""

    @pytest.mark.parametrize("pools", [False, True])
    def test_each_prediction_is_of_the_last_window(self, rng, pools):
        layers = [recurrent("lstm", 3, 13), *[spec.Pool("last", "last", 13)] * pools]
        model = build((*layers, spec.Linear("head", 13, 3)), rng)
        history = rng.standard_normal((20, 3)).astype(np.float32)
        known = history
        for _ in range(6):
            y, _ = model(known[-8:])
            known = np.concatenate([known, y[None] if pools else y[-1:]])
        found = fastlstm.forecast(model, history, 6, window=8)
        np.testing.assert_allclose(found, known[20:], rtol=0, atol=1e-6)
        both = np.stack([history, history[::-1]], axis=1)
        together = fastlstm.forecast(model, both, 6, window=8)
        np.testing.assert_allclose(together[:, 0], found, rtol=0, atol=1e-6)
        over = fitted(model, history, 8)
        assert over.shape == (12, 3)
        for n, row in enumerate(over):
            y, _ = model(history[n : n + 8])
            np.testing.assert_allclose(row, y if pools else y[-1], rtol=0, atol=1e-6)
        assert not np.allclose(found, fastlstm.forecast(model, history, 6), atol=1e-3)

    def test_refuses(self, rng):
        model, history = series_model(rng), np.zeros((4, 3), np.float32)
        with pytest.raises(ValueError, match=r"has 4 steps; expected at least 5, one window"):
            fastlstm.forecast(model, history, 2, window=5)
        with pytest.raises(ValueError, match="window is 0; expected at least 1"):
            fastlstm.forecast(model, history, 2, window=0)
        with pytest.raises(ValueError, match="x has shape"):
            fastlstm.forecast(model, history[:, :2], 2, window=2)
        short = build((spec.Conv1d("c", 3, 3, 4),), rng)
        with pytest.raises(ValueError, match="gives no row for a window of 2 steps"):
            fastlstm.forecast(short, history, 2, window=2)


class TestColumns:
    TEXT = "when,a,note,b\n2024-01-30,1,2,3\n2024-01-31,4,5,6\n2024-02-01,7,8,9\n"

    def read(self, tmp_path, columns, chosen=(), text=TEXT):
        path = tmp_path / "a.csv"
        path.write_text(text, encoding="utf-8")
        return read_series(str(path), columns, FLOAT32, chosen)

    def test_a_column_of_dates(self, tmp_path):
        found = self.read(tmp_path, 3)
        assert found.names == ("a", "note", "b")
        assert found.dates == ("2024-01-30", "2024-01-31", "2024-02-01")
        assert found.date_name == "when"
        np.testing.assert_array_equal(found.values, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        bare = self.read(tmp_path, 3, text=self.TEXT.partition("\n")[2])
        assert (bare.names, bare.dates, bare.date_name) == (None, found.dates, "")
        np.testing.assert_array_equal(bare.values, found.values)

    @pytest.mark.parametrize("chosen", [("b", "a"), ("4", "2"), ("b", "2")])
    def test_chosen(self, tmp_path, chosen):
        found = self.read(tmp_path, 2, chosen)
        assert found.names == ("b", "a")
        assert found.dates is not None
        np.testing.assert_array_equal(found.values, [[3, 1], [6, 4], [9, 7]])

    @pytest.mark.parametrize(
        ("columns", "chosen", "message"),
        [
            (2, (), ", line 2: it has 4 columns; this model takes 2 features a step; choose them "
             "with --column, of 'when', 'a', 'note', 'b'"),
            (2, ("a",), "--column was given 1 times; this model takes 2 features a step"),
            (2, ("a", "c"), " has no column 'c'; expected a number from 1 to 4, or one of 'when', "
             "'a', 'note', 'b'"),
            (2, ("a", "5"), " has no column '5'; expected a number from 1 to 4, or one of 'when', "
             "'a', 'note', 'b'"),
            (2, ("a", "when"), ", line 2: '2024-01-30' is not a finite number; only the first line "
             "may be a header"),
        ],
    )  # fmt: skip
    def test_refuses(self, tmp_path, columns, chosen, message):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            self.read(tmp_path, columns, chosen)
        assert str(caught.value).endswith(message)

    @pytest.mark.parametrize(
        ("dates", "behind"),
        [
            (["2024-02-27", "2024-02-28"], ["2024-02-29", "2024-03-01"]),
            (["2024-01-01 22:00", "2024-01-01 23:00"], ["2024-01-02 00:00", "2024-01-02 01:00"]),
            (["2024-01-01T00:00:30", "2024-01-01T00:01:00"],
             ["2024-01-01T00:01:30", "2024-01-01T00:02:00"]),
            (["2023-10-01", "2023-11-01", "2023-12-01"], ["2024-01-01", "2024-02-01"]),
            (["2023-10-01", "2023-11-01"], ["2023-12-01", "2024-01-01"]),
            (["2023-01-31", "2023-03-31", "2023-05-31"], None),  # September has no 31st
            (["2024-01-01", "2024-01-02", "2024-01-04"], None),
            (["monday", "tuesday"], None),
            (["2024-01-01"], None),
            (["01/02/2024", "02/02/2024"], None),
            (["9999-12-30", "9999-12-31"], None),
        ],
    )  # fmt: skip
    def test_dates_go_on(self, dates, behind):
        assert continued(dates, 2) == behind

    def test_the_command(self, tmp_path, rng, capsys):
        build((recurrent("gru", 1, 5), spec.Linear("head", 5, 1)), rng).save(tmp_path / "m")
        lines = [f"2024-03-{day:02d},{day},{10 * day}" for day in range(1, 21)]
        (tmp_path / "a.csv").write_text("day,one,ten\n" + "\n".join(lines), encoding="utf-8")
        command = ["forecast", str(tmp_path / "m"), "--input", str(tmp_path / "a.csv")]
        out = str(tmp_path / "o.csv")
        more = ["--column", "one", "--window", "5", "--steps", "2", "--output", out]
        assert cli.main([*command, *more]) == 0
        told = capsys.readouterr().out
        assert "(the column 'day' was taken for dates, from 2024-03-01 to 2024-03-20)" in told
        written = Path(out).read_text(encoding="utf-8").splitlines()
        assert written[0] == "day,one"
        assert [line.partition(",")[0] for line in written[1:]] == ["2024-03-21", "2024-03-22"]
        history = np.arange(1, 21, dtype=np.float32)[:, None]
        expected = fastlstm.forecast(fastlstm.load(tmp_path / "m"), history, 2, window=5)
        assert [float(line.partition(",")[2]) for line in written[1:]] == pytest.approx(
            expected[:, 0].tolist(), rel=1e-6
        )
        assert cli.main(command) == 2
        assert "choose them with --column, of 'day', 'one', 'ten'" in capsys.readouterr().err


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
