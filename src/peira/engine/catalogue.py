"""The papers that are installed, found by entry point without importing anything of theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from peira.engine.errors import CardError, DiskError, PeiraError, StudyError, nearest
from peira.engine.files import home, read_json, write_json

if TYPE_CHECKING:
    from peira.engine.cards import Card
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
        from peira.engine.cards import Card

        path = self.folder / "card.toml"
        card = Card.read(path)
        if card.slug != self.slug:
            raise CardError(
                f"{path}: slug: {card.slug!r} differs from its entry point {self.slug!r}"
            )
        return card

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `card` holds, as JSON values, for those who only show it.

        They come from a copy that was kept when the card was last checked, as long as neither the
        card nor its schema has changed: checking all cards would take most of the time that
        `peira list` has. Raises `CardError` as `card` does.
        """
        kept_at = home() / "cards" / f"{self.slug}.json"
        stamp = [_stamp(self.folder / "card.toml"), _stamp(Path(__file__).with_name("cards.py"))]
        kept = read_json(kept_at)
        if not kept or kept["stamp"] != stamp:
            kept = {"stamp": stamp, "card": self.card.model_dump(mode="json")}
            # Where nothing can be kept, cards are checked every time.
            with suppress(DiskError):
                write_json(kept_at, kept)
        return cast(dict[str, Any], kept["card"])

    @cached_property
    def facts(self) -> Any:
        """`record` with the attributes of `Card`: `facts.claims[0].published.where`."""
        return _attributes(self.record)

    def study(self) -> Study[Any]:
        """The paper's study; imports what it needs.

        Raises `StudyError` naming the command that adds a missing extra.
        """
        module = self.module("study")
        found = getattr(module, "Study", None)
        if not inspect.isclass(found):
            raise StudyError(f"{self.package}.study has no class `Study`")
        make = cast("Callable[[Card], Study[Any]]", found)
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


def _stamp(path: Path) -> list[Any]:
    """Changes whenever the file does; None for the time of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return [str(path), None, None]
    return [str(path), found.st_mtime_ns, found.st_size]


def _attributes(value: Any) -> Any:
    """JSON with attributes in place of keys, as the models have them."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _attributes(inside) for name, inside in value.items()})
    return [_attributes(inside) for inside in value] if isinstance(value, list) else value


def published(claim: Any) -> str:
    """The number that a claim's paper gives, with its unit, then the words."""
    value, unit, text = claim.published.value, claim.unit, claim.published.text
    number = "" if value is None else f"{value:g} {unit}".strip()
    return "; ".join(part for part in (number, text) if part) or "no number"


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
