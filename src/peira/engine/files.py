"""Files that are either whole or absent, and the folders where Peira keeps them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peira.engine.errors import DiskError


def home() -> Path:
    """Folder of runs, checkpoints and reports: `PEIRA_HOME`, else the user's data folder."""
    named = os.environ.get("PEIRA_HOME")
    if named:
        # Workers, of Ray above all, need not share the working folder.
        return Path(named).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("peira")


def make_folder(path: Path) -> None:
    """Make `path` and what is above it; raises `DiskError` when that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DiskError:
    """The error to raise for a file that cannot be written, with its remedy."""
    return DiskError(
        f"cannot write {path}: {error.strerror or error}; free space or choose another folder "
        "(PEIRA_HOME names where Peira keeps its files)"
    )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it replaces `path` only if the block succeeds.

    Raises `DiskError` when the folder cannot be written (full disk, no permission).
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept so that writers which choose a format by it still do.
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes private files; a result is as readable as any other file of its owner.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: str | Path) -> Any | None:
    """The JSON value in `path`; None when the file is absent or was cut short."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
