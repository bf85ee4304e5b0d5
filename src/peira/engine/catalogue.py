"""The papers that are installed, found by entry point without importing anything of theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from peira.engine.cards import Card
from peira.engine.errors import CardError, PeiraError, StudyError, nearest
from peira.engine.files import home, read_json

if TYPE_CHECKING:
    from peira.engine.cells import Study

GROUP = "peira.papers"


@dataclass(frozen=True)
class Paper:
    """One paper's folder.

    Args:
        slug: its name on the command line.
        package: dotted name of its folder as a Python package.
    """

    slug: str
    package: str

    @cached_property
    def folder(self) -> Path:
        """Where the paper's files are."""
        try:
            spec = find_spec(self.package)
        except ImportError as error:
            raise CardError(f"{self.slug}: cannot find {self.package}: {error}") from error
        if spec is None or not spec.submodule_search_locations:
            raise CardError(f"{self.slug}: entry point {self.package!r} is no package")
        return Path(spec.submodule_search_locations[0])

    @cached_property
    def card(self) -> Card:
        """What the paper claims; raises `CardError` when `card.toml` is wrong."""
        path = self.folder / "card.toml"
        card = Card.read(path)
        if card.slug != self.slug:
            raise CardError(
                f"{path}: slug: {card.slug!r} differs from its entry point {self.slug!r}"
            )
        return card

    def study(self) -> Study[Any]:
        """The paper's study; imports what it needs.

        Raises `StudyError` naming the command that adds a missing extra.
        """
        module = self.module("study")
        found = getattr(module, "Study", None)
        if not inspect.isclass(found):
            raise StudyError(f"{self.package}.study has no class `Study`")
        make = cast(Callable[[Card], "Study[Any]"], found)
        return make(self.card)

    def module(self, name: str) -> ModuleType:
        """`study`, `use` or `method` of the paper, imported."""
        try:
            return import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            if error.name == f"{self.package}.{name}":
                raise StudyError(f"{self.slug} has no {name}.py in {self.folder}") from error
            extras = ",".join(self.card.extras) or "all"
            raise StudyError(
                f"{self.slug} needs {error.name!r}, which is not installed: "
                f"pip install 'peira[{extras}]'"
            ) from error

    @property
    def records(self) -> Path:
        """Folder of the last results of each scale."""
        return home() / "results" / self.slug

    def last(self) -> dict[str, Any] | None:
        """The most recent result of a scale as it is written, or None."""
        found = [read_json(path) for path in self.records.glob("*/result.json")]
        results = [result for result in found if result and not result["changed"]]
        return max(results, key=lambda result: str(result["finished_at"]), default=None)


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def papers() -> list[Paper]:
    """All installed papers, by slug."""
    found = [Paper(point.name, point.value) for point in _entry_points()]
    return sorted(found, key=lambda paper: paper.slug)


def paper(slug: str) -> Paper:
    """The paper of that slug; raises `PeiraError` with the nearest one."""
    known = {paper.slug: paper for paper in papers()}
    if slug not in known:
        raise PeiraError(f"no paper {slug!r}; {nearest(slug, known)}")
    return known[slug]
