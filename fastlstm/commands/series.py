"""Time series in .csv and .npy files.

Dimension letters: ``T`` time, ``I`` columns.
"""

from __future__ import annotations

import csv
import datetime
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Series", "check_ending", "continued", "read_series", "write_series"]

Array = npt.NDArray[Any]

ENDINGS = (".csv", ".npy")


@dataclass(frozen=True, eq=False)
class Series:
    """A time series.

    Parameters
    ----------
    values : float array (T, I)
        Finite.
    names : tuple of str, or None
        Of the columns, if the file has them.
    dates : tuple of str, or None
        Of each row, if a column of the file is no numbers.
    date_name : str
        Of that column; "" if the file has no names.
    """

    values: Array
    names: tuple[str, ...] | None
    dates: tuple[str, ...] | None = None
    date_name: str = ""


def check_ending(path: str, option: str) -> str:
    """The ending of a file's name.

    Raises
    ------
    ValueError
        If it is none of ENDINGS.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS:
        raise ValueError(f"{option} is {path!r}; expected a file that ends in .csv or .npy")
    return ending


def read_series(
    path: str, columns: int, dtype: np.dtype[Any], chosen: Sequence[str] = ()
) -> Series:
    """Read a series of so many columns.

    Parameters
    ----------
    path : str
        A .csv file: a row a step, numbers with commas between; its first line may name the columns.
        Or a .npy file: an array (T, I), or (T,) if I is 1.
    columns : int
        I.
    dtype : numpy.dtype
        Of the values: they are rounded to it.
    chosen : sequence of str, optional
        The columns of a .csv file, by name or number, from 1 on; all if none are given, but for one
        of no numbers, which is taken for dates.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds something else, or a number that is not finite in `dtype`; the message names the
        line.
    """
    names: tuple[str, ...] | None = None
    dates, date_name = None, ""
    if check_ending(path, "--input") == ".npy":
        if chosen:
            raise ValueError(f"--column is of a .csv file; {path!r} is an array")
        values = _read_npy(path)
        if values.ndim == 1 and columns == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != columns:
            raise ValueError(
                f"{path!r} holds an array of shape {values.shape}; this model takes {columns} "
                f"features a step: expected (T, {columns})"
            )
    else:
        table = _Table(path, columns, chosen)
        names, dates, date_name = table.names, table.dates, table.date_name
        values = np.array(table.rows, np.float64).reshape(len(table.rows), columns)
    if not len(values):
        raise ValueError(f"{path!r} holds no rows; expected at least one step of the series")
    with np.errstate(over="ignore"):
        rounded = np.array(values, dtype, order="C")
    wrong = np.argwhere(~np.isfinite(rounded))
    if len(wrong):
        t, i = (int(index) for index in wrong[0])
        raise ValueError(
            f"{path!r}: row {t}, column {i} is {values[t, i]}; expected a finite number of {dtype}"
        )
    return Series(rounded, names, dates, date_name)


def _read_npy(path: str) -> Array:
    try:
        # Mapped, so that a header of a huge shape allocates nothing.
        values: Array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # a header is read as Python, with whatever error that makes
        raise ValueError(f"{path!r} is not a sound .npy file of numbers: {error}") from None
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path!r} holds {values.dtype}; expected an array of real numbers")
    return values


class _Table:
    """The columns of a .csv file that a model takes, and perhaps one of dates.

    Attributes
    ----------
    rows : list of list of float
    names, dates : tuple of str, or None
    date_name : str
    """

    def __init__(self, path: str, columns: int, chosen: Sequence[str]) -> None:
        self.rows: list[list[float]] = []
        self.names: tuple[str, ...] | None = None
        self.dates: tuple[str, ...] | None = None
        self.date_name = ""
        self._path, self._columns = path, columns
        header: list[str] | None = None
        places: list[int] | None = None
        date: int | None = None
        dates: list[str] = []
        width = 0
        for number, cells in _csv_lines(path):
            if number == 1 and all(_number(cell) is None for cell in cells) and len(cells):
                header, width = [cell.strip() for cell in cells], len(cells)
                if width < columns:
                    raise self._wrong(number, cells)
                continue
            if places is None:
                width = width or len(cells)
                places, date = self._places(number, cells, header, chosen)
            if len(cells) != width:
                raise self._wrong(number, cells)
            self.rows.append([self._value(number, cells[place]) for place in places])
            dates += [] if date is None else [cells[date].strip()]
        if header is not None and places is not None:
            self.names = tuple(header[place] for place in places)
            self.date_name = header[date] if date is not None else ""
        if date is not None:
            self.dates = tuple(dates)

    def _places(
        self, number: int, cells: list[str], header: list[str] | None, chosen: Sequence[str]
    ) -> tuple[list[int], int | None]:
        """Where the columns are, and that of dates, by the first row of numbers."""
        words = [place for place, cell in enumerate(cells) if _number(cell) is None]
        if chosen:
            places = [self._place(name, len(cells), header) for name in chosen]
            if len(places) != self._columns:
                raise ValueError(
                    f"--column was given {len(places)} times; this model takes {self._columns} "
                    f"features a step"
                )
            words = [place for place in words if place not in places]
            return places, words[0] if len(words) == 1 else None
        if len(cells) == self._columns + 1 and len(words) == 1:
            return [place for place in range(len(cells)) if place != words[0]], words[0]
        if len(cells) != self._columns:
            raise self._wrong(number, cells, header)
        return list(range(len(cells))), None

    def _place(self, name: str, width: int, header: list[str] | None) -> int:
        if header is not None and header.count(name) == 1:
            return header.index(name)
        if name.isascii() and name.isdigit() and 1 <= int(name) <= width:
            return int(name) - 1
        known = "" if header is None else f", or one of {', '.join(map(repr, header)):.300}"
        raise ValueError(
            f"{self._path!r} has no column {name!r:.80}; expected a number from 1 to {width}{known}"
        )

    def _wrong(self, number: int, cells: list[str], header: list[str] | None = None) -> ValueError:
        more = ""
        if header is not None and len(cells) > self._columns:
            more = f"; choose them with --column, of {', '.join(map(repr, header)):.300}"
        return ValueError(
            f"{self._path!r}, line {number}: it has {len(cells)} columns; this model takes "
            f"{self._columns} features a step{more}"
        )

    def _value(self, number: int, cell: str) -> float:
        value = _number(cell)
        if value is None or not math.isfinite(value):
            raise ValueError(
                f"{self._path!r}, line {number}: {cell!r:.80} is not a finite number; only the "
                f"first line may be a header"
            )
        return value


def continued(dates: Sequence[str], count: int) -> list[str] | None:
    """So many dates behind these, as far apart and written alike; None where that is not plain.

    They are those of ISO 8601, as far apart from one to the next in days, hours or less, or in
    months.
    """
    try:
        found = [datetime.datetime.fromisoformat(text) for text in dates]
        steps = {b - a for a, b in itertools.pairwise(found)}
    except (ValueError, TypeError):
        return None
    months = [12 * one.year + one.month for one in found]
    apart = {b - a for a, b in itertools.pairwise(months)}
    last = found[-1]
    try:
        if len(apart) == 1 and 0 not in apart and {one.day for one in found} == {last.day}:
            (by,) = apart
            total = [months[-1] - 1 + n * by for n in range(1, count + 1)]
            behind = [last.replace(year=m // 12, month=m % 12 + 1) for m in total]
        elif len(steps) == 1:
            (step,) = steps
            behind = [last + n * step for n in range(1, count + 1)]
        else:
            return None
    except (ValueError, OverflowError):  # a day that a month has not, or the end of the calendar
        return None
    written: list[Callable[[datetime.datetime], str]] = [
        lambda one: one.date().isoformat(),
        *(
            functools.partial(datetime.datetime.isoformat, sep=sep, timespec=unit)
            for sep in ("T", " ")
            for unit in ("hours", "minutes", "seconds", "milliseconds", "microseconds")
        ),
    ]
    for write in written:
        if [write(one) for one in found] == list(dates):
            return [write(one) for one in behind]
    return None


def _csv_lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of every line; an empty line has no cells."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            for cells in lines:
                yield lines.line_num, cells
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{path!r}, line {lines.line_num}: {error}") from None


def _number(cell: str) -> float | None:
    # float() takes digits with "_" between, which no other program writes.
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def write_series(
    path: str,
    values: Array,
    names: Sequence[str] | None,
    dates: Sequence[str] | None = None,
    date_name: str = "",
) -> None:
    """Write a series to a .csv file, with its columns' names if there are any, or a .npy file.

    Parameters
    ----------
    path : str
    values : array (T, I)
        A .csv file has as many digits as tell one value from the next.
    names : sequence of str, optional
    dates : sequence of str, optional
        Of each row, which a .csv file has in its first column.
    date_name : str
        Of that column.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    if check_ending(path, "--output") == ".npy":
        with open(path, "wb") as binary:
            np.save(binary, values, allow_pickle=False)
        return
    with Path(path).open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        if names is not None:
            writer.writerow(names if dates is None else [date_name, *names])
        begin: list[list[str]] = [[]] * len(values) if dates is None else [[date] for date in dates]
        writer.writerows(
            [*first, *(str(value) for value in row)]
            for first, row in zip(begin, values, strict=True)
        )
