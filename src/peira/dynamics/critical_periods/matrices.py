"""Matrices that a person keeps in files, with what was not observed left empty."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Float

from peira.data import DataError
from peira.data.arrays import read_npy

EMPTY = {"", "na", "nan", "null", "none"}


def read_matrix(path: Path) -> Float[np.ndarray, "rows columns"]:
    """Read numbers from a `.npy` file, or from CSV or TSV without header.

    Args:
        path: the file; in text, empty cells and NaN are entries that were not observed. A first
            row without any number is taken for a header.

    Raises:
        DataError: no such file, an array that is no matrix of numbers, rows of different length,
            a value that is no finite number; names row, column and value.
    """
    if not path.is_file():
        raise DataError("no such file", path=path)
    matrix = _read_npy(path) if path.suffix == ".npy" else _read_text(path)
    if min(matrix.shape) < 2:
        raise DataError("not a matrix", path=path, value=matrix.shape, expected="2 x 2 or more")
    return matrix


def _read_npy(path: Path) -> Float[np.ndarray, "rows columns"]:
    array = read_npy(path)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise DataError("not a matrix of numbers", path=path, expected="2 axes, real numbers")
    infinite = np.argwhere(np.isinf(array.astype(float)))
    if len(infinite):
        row, column = (int(place) + 1 for place in infinite[0])
        raise DataError("infinite entry", path=path, row=row, column=column, expected="a number")
    return array.astype(float)


def _read_text(path: Path) -> Float[np.ndarray, "rows columns"]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count)
            lines = [
                (number, [cell.strip() for cell in line])
                for number, line in enumerate(csv.reader(file, delimiter=separator), 1)
                # A line of separators alone is a row of which nothing was observed.
                if line
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not readable text ({error})", path=path) from error
    if lines and all(_number(cell) is None for cell in lines[0][1]):
        lines = lines[1:]
    if not lines:
        raise DataError("no rows of numbers", path=path)
    width = len(lines[0][1])
    matrix = np.empty((len(lines), width))
    for place, (number, line) in enumerate(lines):
        if len(line) != width:
            raise DataError(
                "row of another length", path=path, row=number, value=len(line),
                expected=f"{width} cells",
            )  # fmt: skip
        for column, cell in enumerate(line):
            value = _number(cell)
            if value is None or np.isinf(value):
                raise DataError(
                    "wrong value", path=path, row=number, column=column + 1, value=cell,
                    expected="a number, or nothing where none was observed",
                )  # fmt: skip
            matrix[place, column] = value
    return matrix


def _number(cell: str) -> float | None:
    if cell.lower() in EMPTY:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return None
