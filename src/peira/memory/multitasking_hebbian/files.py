"""Rows of -1, 1 and blanks in a person's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from peira.data import DataError, read_npz, read_table

# Names under which rows are looked for in an .npz file.
ARRAYS = ("examples", "x")


def read_rows(
    path: Path, label: str, labelled: bool = False
) -> tuple[Float[np.ndarray, "rows spins"], Shaped[np.ndarray, " rows"] | None, list[str]]:
    """Rows, labels and column names of a CSV or .npz file.

    Args:
        path: CSV or TSV with a header; or .npz with an array `examples` or `x`.
        label: column (in .npz: array) of labels, which is no entry of the rows.
        labelled: whether labels must be there.

    Returns:
        Entries, not-a-number or 0 where blank; labels or None; names of the columns.

    Raises:
        DataError: an absent or unreadable file, no labels where they are asked for, or an entry
            other than -1, 0, 1 and blank, with its row and column.
    """
    values, labels, names = (_npz if path.suffix == ".npz" else _table)(path, label, labelled)
    wrong = np.argwhere(~np.isnan(values) & ~np.isin(values, (-1, 0, 1)))
    if len(wrong):
        row, column = (int(i) for i in wrong[0])
        # The header of a table is row 1.
        line = row + (1 if path.suffix == ".npz" else 2)
        raise DataError(
            "wrong entry", path, line, names[column], float(values[row, column]),
            "-1, 1, or 0 or nothing for a blank",
        )  # fmt: skip
    blank = np.flatnonzero(~(np.nan_to_num(values) != 0).any(axis=1))
    if len(blank):
        line = int(blank[0]) + (1 if path.suffix == ".npz" else 2)
        raise DataError("all blank", path, line, expected="some -1 or 1")
    return values, labels, names


def _npz(
    path: Path, label: str, labelled: bool
) -> tuple[Float[np.ndarray, "rows spins"], Shaped[np.ndarray, " rows"] | None, list[str]]:
    arrays = read_npz(path, needed=(label,) if labelled else ())
    name = next((name for name in ARRAYS if name in arrays), None)
    if name is None:
        raise DataError(
            "no rows", path=path, value=sorted(arrays), expected=f"an array {' or '.join(ARRAYS)}"
        )
    rows = arrays[name]
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "biuf":
        raise DataError(
            f"array {name!r} has shape {rows.shape} of {rows.dtype}", path=path,
            expected="a matrix of numbers",
        )  # fmt: skip
    labels = arrays.get(label)
    if labels is not None and labels.shape != (len(rows),):
        raise DataError(
            f"array {label!r} has shape {labels.shape}", path=path, expected=f"{len(rows)} labels"
        )
    return rows.astype(float), labels, [str(i) for i in range(1, rows.shape[1] + 1)]


def _table(
    path: Path, label: str, labelled: bool
) -> tuple[Float[np.ndarray, "rows spins"], Shaped[np.ndarray, " rows"] | None, list[str]]:
    table = read_table(path)
    if labelled and label not in table:
        raise DataError(f"no column {label!r}", path=path, expected="a column of labels")
    if labelled:
        # As they are written, and none missing.
        table[label] = read_table(path, {label: "str"})[label]
    entries = [str(name) for name in table if name != label]
    if not entries:
        raise DataError(f"no columns beside {label!r}", path=path)
    if any(table[name].dtype.kind not in "if" for name in entries):
        # Read again as numbers, for the error that names the first entry that is none.
        read_table(path, dict.fromkeys(entries, "float"))
    labels = table[label].to_numpy() if label in table else None
    return table[entries].to_numpy(dtype=float), labels, entries
