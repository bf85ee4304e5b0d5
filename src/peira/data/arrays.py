"""Numbers in a person's files: arrays (.npy, .npz), tables of features, weights (.safetensors)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from peira.data.errors import DataError
from peira.data.tables import read_table
from peira.engine.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
# What NumPy raises for a file that is none of its own, is cut off, or holds Python objects.
UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError)


def read_npz(path: Path, needed: Sequence[str] = ()) -> dict[str, Array]:
    """All arrays of an .npz file by name.

    Raises `DataError` for a file that is absent or not readable, and for a `needed` array that is
    not in it.
    """
    refuse_absent(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise DataError(f"not a readable .npz file ({error})", path=path) from error
    for name in needed:
        if name not in found:
            raise DataError(
                f"no array {name!r}", path=path, value=sorted(found),
                expected=f"arrays {', '.join(needed)}",
            )  # fmt: skip
    return found


def read_npy(path: Path) -> Array:
    """The array of an .npy file; raises `DataError` for one that is absent or not readable."""
    refuse_absent(path)
    try:
        found = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"not a readable .npy file ({error})", path=path) from error
    if not isinstance(found, np.ndarray):
        raise DataError("several arrays", path=path, expected="an .npy file of one")
    return found


def read_features(
    path: Path, target: str, kind: Literal["float", "str"] = "float"
) -> tuple[Floats, Array, list[str]]:
    """A CSV or TSV of numbers with one column that is to be predicted.

    Args:
        path: the table, with a header.
        target: name of that column.
        kind: whether the target is a number or a label.

    Returns:
        The other columns (rows, columns), the target (rows,), and the other columns' names.

    Raises:
        DataError: as `read_table`; no other column; a gap, or a number that is not finite.
    """
    names = [str(name) for name in read_table(path, {target: kind}) if name != target]
    if not names:
        raise DataError(f"no columns beside {target!r}", path=path)
    table = read_table(path, {**dict.fromkeys(names, "float"), target: kind})
    values = table[names].to_numpy(dtype=np.float64)
    # The header is row 1.
    refuse_gaps(values, path, names, first=2)
    found = table[target].to_numpy()
    if kind == "float":
        found = found.astype(np.float64)
        refuse_gaps(found[:, None], path, [target], first=2)
    return values, found, names


def refuse_gaps(
    values: Array, path: Path | None = None, names: Sequence[str] | None = None, first: int = 1
) -> None:
    """Raise `DataError` naming row and column of the first number that is not finite.

    Args:
        values: (rows, columns).
        path: the file they are from.
        names: of the columns; without them columns are counted from 1.
        first: number of the first row.
    """
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = (int(i) for i in wrong[0])
        value = float(values[row, column])
        name = names[column] if names else column + 1
        if np.isnan(value):
            raise DataError("missing value", path, row + first, name, expected="a number")
        raise DataError("not finite", path, row + first, name, value, "a number")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a .safetensors file by name, and its metadata.

    Raises `DataError` for a file that is absent or of another format.
    """
    from safetensors import SafetensorError, safe_open

    refuse_absent(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(f"not a .safetensors file ({error})", path=path) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(
            {name: value.detach().contiguous() for name, value in tensors.items()},
            temporary,
            metadata=dict(metadata or {}),
        )


def write_record(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write tensors and their settings as one .safetensors file, whole or not at all.

    Args:
        path: file to write.
        kind: what it is, as `read_record` will ask: "NAT model".
        tensors: by name.
        about: settings, whatever JSON can hold.
    """
    write_tensors(path, tensors, {kind: json.dumps(about)})


def read_record(path: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors and settings that `write_record` wrote.

    Raises `DataError` for a file that is absent, of another format, or of another kind.
    """
    tensors, metadata = read_tensors(path)
    try:
        return tensors, json.loads(metadata[kind])
    except (KeyError, json.JSONDecodeError):
        raise DataError(f"not a {kind}", path=path, value=sorted(metadata) or None) from None


def refuse_absent(path: Path) -> None:
    """Raise `DataError` where there is no such file."""
    if not path.is_file():
        raise DataError("no such file", path=path)
