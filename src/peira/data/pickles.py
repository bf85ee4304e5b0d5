"""Official files that are pickles: read without running what they name."""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peira.data.errors import DataError


def _as_bytes(text: str, encoding: str) -> bytes:
    """What Python 3 calls to rebuild bytes from an old pickle protocol."""
    return text.encode("latin1")


_REBUILD_ARRAY = np.empty(0).__reduce__()[0]
# Numbers and plain containers; nothing that acts.
PLAIN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _as_bytes,
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


def read_pickle(path: Path, allowed: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """What a pickle of arrays and plain containers holds; text of Python 2 as Latin-1.

    Args:
        path: the file.
        allowed: (module, name) -> what stands in for it, besides arrays and containers.

    Raises:
        DataError: no such file, a damaged one, or one that names anything else.
    """
    known = PLAIN | dict(allowed or {})

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
            return known[module, name]

    try:
        return Restricted(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError as error:
        raise DataError("a file of the data set is missing", path=path) from error
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise DataError(f"the file cannot be read ({error})", path=path) from error
