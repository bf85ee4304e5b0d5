"""Tables a person keeps in CSV or TSV files, with every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from peira.data.errors import DataError
from peira.engine.errors import nearest
from peira.engine.files import atomic_path

Kind = Literal["float", "int", "str"]
EXPECTED = {"float": "a number", "int": "a whole number", "str": "a value"}


def read_table(
    path: str | Path,
    columns: Mapping[str, Kind] | None = None,
    rename: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Read a CSV or TSV file (also compressed) whose first row names the columns.

    Args:
        path: the file; the separator (comma, semicolon or tab) is found from its first row.
        columns: the columns that must be there, with their kind; others are kept as read, or as
            numbers where all of them are. `float` accepts empty cells as NaN, `int` and `str` do
            not. Blank rows are left out, what a short row lacks is empty.
        rename: names in the file -> names wanted, applied before `columns` is checked.

    Raises:
        DataError: no file, no rows, a row that is too long, a column that is missing or there
            twice, or a value of the wrong kind; names the row (the header is row 1) and the value.
    """
    path = Path(path)
    frame = _read_text(path)
    frame = frame.rename(columns=dict(rename or {}))
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"column {twice[0]!r} is there twice", path=path)
    if frame.empty:
        raise DataError("no rows below the header", path=path)
    for name in columns or {}:
        if name not in frame:
            raise DataError(f"no column {name!r}; {nearest(name, map(str, frame))}", path=path)
    kinds = dict(columns or {})
    table = {
        str(name): _convert(text, kinds[str(name)], path) if name in kinds else _guess(text)
        for name, text in frame.items()
    }
    return pd.DataFrame(table).reset_index(drop=True)


def _read_text(path: Path) -> pd.DataFrame:
    """Every value as stripped text under its column, indexed by the row in the file."""
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        # Without a header every row is held against the first one, and no row is skipped.
        rows = pd.read_csv(
            path, sep=_separator(path), dtype=str, keep_default_na=False, header=None,
            skip_blank_lines=False,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise DataError(f"not a readable table ({error})", path=path) from error
    rows.index = pd.RangeIndex(1, len(rows) + 1)
    rows = pd.DataFrame({name: column.fillna("").str.strip() for name, column in rows.items()})
    rows = rows[(rows != "").any(axis="columns")]
    return rows.iloc[1:].set_axis(list(rows.iloc[0]), axis="columns")


def _separator(path: Path) -> str:
    first = pd.read_csv(path, sep="\0", header=None, nrows=1, dtype=str, engine="python").iat[0, 0]
    return max(",;\t", key=str(first).count)


def _numbers(text: pd.Series[str]) -> pd.Series[float]:
    """The texts as numbers, NaN where they are none."""
    numbers: pd.Series[Any] = pd.to_numeric(text, errors="coerce")
    return numbers


def _convert(text: pd.Series[str], kind: Kind, path: Path) -> pd.Series[Any]:
    if kind == "str":
        values: pd.Series[Any] = text
        bad: pd.Series[bool] = text == ""
    else:
        values = _numbers(text)
        bad = ~pd.Series(np.isfinite(values)) & (text != "")
        if kind == "int":
            # Beyond 64 bits a number would wrap around.
            bad |= (text == "") | (values != values.round()) | (values.abs() >= 2.0**63)
    if bad.any():
        row = int(bad.index[bad][0])
        raise DataError("wrong value", path, row, str(text.name), str(text[row]), EXPECTED[kind])
    return values.astype("int64") if kind == "int" else values


def _guess(text: pd.Series[str]) -> pd.Series[Any]:
    values = _numbers(text)
    return text if (values.isna() & (text != "")).any() else values


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV without row numbers, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
