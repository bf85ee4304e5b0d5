"""Tables a person keeps in CSV or TSV files, with every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from peira.data.errors import DataError
from peira.engine.errors import nearest

Kind = Literal["float", "int", "str"]


def read_table(
    path: str | Path,
    columns: Mapping[str, Kind] | None = None,
    rename: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Read a CSV or TSV file (also compressed) whose first row names the columns.

    Args:
        path: the file; the separator (comma, semicolon or tab) is found from its first row.
        columns: the columns that must be there, with their kind; others are kept as read.
            `float` accepts empty cells as NaN, `int` and `str` do not.
        rename: names in the file -> names wanted, applied before `columns` is checked.

    Raises:
        DataError: no file, no rows, a column that is missing or a value of the wrong kind; names
            the row (the header is row 1) and the value.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        frame = pd.read_csv(path, sep=_separator(path), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"not a readable table ({error})", path=path) from error
    frame.columns = frame.columns.str.strip()
    frame = frame.rename(columns=dict(rename or {}))
    if frame.empty:
        raise DataError("no rows below the header", path=path)
    for name, kind in (columns or {}).items():
        if name not in frame:
            raise DataError(f"no column {name!r}; {nearest(name, map(str, frame))}", path=path)
        frame[name] = _convert(frame[name], kind, path)
    for name in frame.columns.difference(list(columns or {})):
        frame[name] = _guess(frame[name])
    return frame


def _separator(path: Path) -> str:
    first = pd.read_csv(path, sep="\0", header=None, nrows=1, dtype=str, engine="python").iat[0, 0]
    return max(",;\t", key=str(first).count)


def _convert(column: pd.Series[str], kind: Kind, path: Path) -> pd.Series[float]:
    text = column.str.strip()
    if kind == "str":
        bad = text == ""
        values = text
    else:
        values = pd.to_numeric(text.replace("", np.nan), errors="coerce")
        bad = values.isna() & (text != "") if kind == "float" else values.isna()
        if kind == "int":
            bad |= values != values.round()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        expected = {"float": "a number", "int": "a whole number", "str": "a value"}[kind]
        raise DataError(
            "wrong value", path, row + 2, str(column.name), str(column.iloc[row]), expected
        )
    return values.astype("int64") if kind == "int" else values


def _guess(column: pd.Series[str]) -> pd.Series[float]:
    text = column.str.strip()
    values = pd.to_numeric(text.replace("", np.nan), errors="coerce")
    return column if (values.isna() & (text != "")).any() else values
