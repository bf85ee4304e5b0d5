"""Where the real data sets come from: a folder the person names, or the official source."""

from __future__ import annotations

import errno
import hashlib
import os
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from peira.data.errors import DataError, MissingData
from peira.engine.errors import nearest
from peira.engine.files import cannot_write, home

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)


@cache
def catalogue() -> dict[str, Any]:
    """Data set -> its source, licence and files with checksums, from `sources.toml`."""
    text = resources.files("peira.data").joinpath("sources.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def locate(dataset: str, filename: str) -> Path:
    """Path of one official file of a data set.

    Looks in `$PEIRA_DATA/<dataset>/<filename>`, then in Peira's cache, then fetches it from the
    official source and checks its SHA-256.

    Raises:
        MissingData: not at hand and not to be fetched; says both remedies.
        DiskError: fetched, but it cannot be kept.
        DataError: `dataset` or `filename` is not in the catalogue and not in `PEIRA_DATA`.
    """
    folder = os.environ.get("PEIRA_DATA")
    if folder:
        given = Path(folder).expanduser() / dataset / filename
        if given.is_file():
            return given
    entry = catalogue().get(dataset)
    if entry is None:
        raise DataError(f"unknown data set {dataset!r}; {nearest(dataset, catalogue())}")
    if filename not in entry["files"]:
        raise DataError(f"unknown file of {dataset!r}; {nearest(filename, entry['files'])}")
    return _fetch(dataset, filename, entry)


def _fetch(dataset: str, filename: str, entry: dict[str, Any]) -> Path:
    import pooch

    file = entry["files"][filename]
    target = home() / "data" / dataset / filename
    url = file.get("url") or entry["base"] + filename
    if "sha256" not in file:
        raise MissingData(
            f"{dataset}/{filename} is not at hand, and what {url} gives cannot be checked: fetch "
            f"it yourself and set PEIRA_DATA to a folder that holds {dataset}/{filename}"
        )
    pooch.get_logger().setLevel("ERROR")
    packed = url.endswith(".gz") and target.suffix != ".gz"
    try:
        path = pooch.retrieve(
            url,
            known_hash=None if packed else f"sha256:{file['sha256']}",
            path=target.parent,
            fname=target.name + ".gz" * packed,
            downloader=pooch.HTTPDownloader(timeout=10),
            processor=pooch.Decompress(method="gzip", name=target.name) if packed else None,
        )
        if packed and pooch.file_hash(path) != file["sha256"]:
            Path(path).unlink()
            raise ValueError("checksum of the unpacked file")
        return Path(path)
    # pooch passes on whatever its transport raised, and a ValueError for a wrong checksum.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            raise cannot_write(target, error) from error
        why = "wrong checksum" if isinstance(error, ValueError) else type(error).__name__
        raise MissingData(
            f"{dataset}/{filename} is not at hand and could not be fetched from {url} "
            f"({why}): connect to the network, or set PEIRA_DATA to a folder "
            f"that holds {dataset}/{filename}"
        ) from error


def fingerprint(paths: str | Path | Iterable[str | Path]) -> str:
    """First 16 hex digits of the SHA-256 of the files' bytes, in the order given."""
    if isinstance(paths, str | Path):
        paths = [paths]
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
