"""Time series in .csv and .npy files.

Dimension letters: ``T`` time, ``I`` columns.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Series", "check_ending", "read_series", "write_series"]

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
    """

    values: Array
    names: tuple[str, ...] | None


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


def read_series(path: str, columns: int, dtype: np.dtype[Any]) -> Series:
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

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds something else, or a number that is not finite in `dtype`; the message names the
        line.
    """
    if check_ending(path, "--input") == ".npy":
        names, values = None, _read_npy(path)
        if values.ndim == 1 and columns == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != columns:
            raise ValueError(
                f"{path!r} holds an array of shape {values.shape}; this model takes {columns} "
                f"features a step: expected (T, {columns})"
            )
    else:
        names, rows = _read_csv(path, columns)
        values = np.array(rows, np.float64).reshape(len(rows), columns)
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
    return Series(rounded, names)


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


def _read_csv(path: str, columns: int) -> tuple[tuple[str, ...] | None, list[list[float]]]:
    names = None
    rows: list[list[float]] = []
    for number, cells in _csv_lines(path):
        if len(cells) != columns:
            raise ValueError(
                f"{path!r}, line {number}: it has {len(cells)} columns; this model takes {columns} "
                f"features a step"
            )
        values = [_number(cell) for cell in cells]
        if number == 1 and all(value is None for value in values):
            names = tuple(cell.strip() for cell in cells)
            continue
        row = []
        for cell, value in zip(cells, values, strict=True):
            if value is None or not math.isfinite(value):
                raise ValueError(
                    f"{path!r}, line {number}: {cell!r:.80} is not a finite number; only the first "
                    f"line may be a header"
                )
            row.append(value)
        rows.append(row)
    return names, rows


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


def write_series(path: str, values: Array, names: Sequence[str] | None) -> None:
    """Write a series to a .csv file, with its columns' names if there are any, or a .npy file.

    Parameters
    ----------
    path : str
    values : array (T, I)
        A .csv file has as many digits as tell one value from the next.
    names : sequence of str, optional

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
            writer.writerow(names)
        writer.writerows([str(value) for value in row] for row in values)
