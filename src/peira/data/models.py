"""Fitted scikit-learn estimators on disk, without pickles of unknown origin."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from peira.data.errors import DataError
from peira.engine.files import atomic_path

# Beyond what skops trusts itself: classes of these packages. A file names what is called with
# values of its own, so a function or a class from anywhere else could run a stranger's code.
TRUSTED = ("peira.", "sklearn._loss.", "sklearn.ensemble.", "sklearn.tree.", "xgboost.sklearn.")
TRUSTED_NAMES = ("xgboost.core.Booster", "builtins.bytearray")


def save_model(path: str | Path, estimator: Any) -> None:
    """Write a fitted estimator to `path` (skops format), atomically."""
    import skops.io

    with atomic_path(path) as temporary:
        skops.io.dump(estimator, temporary)


def load_model(path: str | Path) -> Any:
    """Read an estimator written by `save_model`.

    Raises `DataError` when the file is absent, is not such a model, or holds anything but
    estimators of Peira and of the libraries it stands on.
    """
    import skops.io

    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        unknown = skops.io.get_untrusted_types(file=path)
        strangers = [name for name in unknown if not _trusted(name)]
        if strangers:
            raise DataError(f"holds types of unknown origin: {', '.join(strangers)}", path=path)
        return skops.io.load(path, trusted=unknown)
    except DataError:
        raise
    # A file that is no skops archive fails in many ways (zip, JSON, key and import errors).
    except Exception as error:
        raise DataError(
            f"not a model saved by Peira ({type(error).__name__}: {error})", path=path
        ) from error


def _trusted(name: str) -> bool:
    """Whether `name` is a class of a trusted package, defined there and not only imported."""
    if name in TRUSTED_NAMES:
        return True
    if not name.startswith(TRUSTED):
        return False
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute, None)
    if not inspect.isclass(found) or not found.__module__.startswith(TRUSTED):
        return False
    # Of Peira only estimators: what its machinery does at construction is not for a file to ask.
    return not name.startswith("peira.") or hasattr(found, "get_params")
