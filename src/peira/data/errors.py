"""Bad input, said so that a person can find it: file, row, column, value, what was expected."""

from __future__ import annotations

from pathlib import Path

from peira.engine.errors import PeiraError


class DataError(PeiraError, ValueError):
    """Input that cannot be used.

    Args:
        message: what is wrong, in a few words.
        path: the file it is in.
        row: line or row number in that file, counted from 1.
        column: name or number of the column.
        value: the offending value.
        expected: what would have been right.
    """

    def __init__(
        self,
        message: str,
        path: str | Path | None = None,
        row: int | None = None,
        column: str | int | None = None,
        value: object = None,
        expected: str | None = None,
    ) -> None:
        self.path, self.row, self.column = path, row, column
        self.value, self.expected = value, expected
        place = [str(path)] if path is not None else []
        place += [f"row {row}"] if row is not None else []
        place += [f"column {column!r}"] if column is not None else []
        text = ", ".join(place)
        text = f"{text}: {message}" if text else message
        if value is not None:
            text += f"; got {value!r}"
        if expected is not None:
            text += f"; expected {expected}"
        super().__init__(text)


class MissingData(PeiraError, FileNotFoundError):
    """A data set that is neither at hand nor could be fetched; the message names both remedies."""
