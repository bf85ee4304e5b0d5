"""Public names that cost nothing until they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def exports(
    package: str, table: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` for a package whose names live in its modules.

    Args:
        package: the package's `__name__`.
        table: module, relative to the package -> the names it gives.
    """
    home = {name: f"{package}.{module}" for module, names in table.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return sorted(home), __getattr__, lambda: sorted(home)


def room(package: str, *shared: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a field: what its papers' cards name `public`.

    A name comes from the `method` module of the paper that lists it. Cards are read when the
    first name is asked for, so that importing a field costs nothing.

    Args:
        package: the field's `__name__`.
        shared: its subpackages that belong to no paper; what their `__all__` lists is public too.
    """

    @cache
    def home() -> dict[str, str]:
        import tomllib

        folders = [Path(place) for place in import_module(package).__path__]
        cards = sorted(card for folder in folders for card in folder.glob("*/card.toml"))
        of_papers = {
            name: f"{package}.{card.parent.name}.method"
            for card in cards
            for name in tomllib.loads(card.read_text(encoding="utf-8"))["public"]
        }
        parts = [f"{package}.{part}" for part in shared]
        return of_papers | {name: part for part in parts for name in import_module(part).__all__}

    def __getattr__(name: str) -> Any:
        # Python asks for dunders on every import; no paper has such a name.
        if name.startswith("_") or name not in home():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home()[name]), name)

    return __getattr__, lambda: sorted(home())
