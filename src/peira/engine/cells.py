"""A study is cells x seeds -> one tidy table; a claim is a statement about that table."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from peira.engine.cards import Card, Claim, explain
from peira.engine.errors import StudyError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from peira.engine.runs import Run
    from peira.engine.verdict import Verdict


class Cell(BaseModel):
    """One condition of a study: frozen, typed, bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __str__(self) -> str:
        """The settings that differ from their defaults, as a person would name the condition."""
        named = [
            str(value) if isinstance(value, str) else f"{name}={value}"
            for name, value in self
            if value != type(self).model_fields[name].default
        ]
        return " ".join(named) or "default"

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """A copy with other settings, checked again.

        Raises `StudyError` naming the field, the value and what was expected.
        """
        for name in settings:
            if name not in type(self).model_fields:
                known = type(self).model_fields
                raise StudyError(f"no cell field {name!r}; {nearest(name, known)}")
        try:
            return type(self).model_validate({**self.model_dump(), **settings})
        except ValidationError as error:
            raise StudyError(f"cell field {explain(error)}") from error


@dataclass(frozen=True)
class Censored:
    """A time that did not come: nothing happened up to and including `after`."""

    after: float


Measurement = Mapping[str, "float | Censored"]


@dataclass(frozen=True)
class Scale:
    """Which cells a study measures, and how many seeds of each.

    `cells` may be a function when the list is long or costly to build.
    """

    cells: Sequence[Cell] | Callable[[], Sequence[Cell]]
    seeds: int

    def conditions(self) -> list[Cell]:
        """The cells, each once, in the order given."""
        cells = self.cells() if callable(self.cells) else self.cells
        return list(dict.fromkeys(cells))


C = TypeVar("C", bound=Cell)


class Study(Generic[C]):
    """How a paper's claims are tested. Subclass it in the paper's `study.py` as `Study`."""

    cell: ClassVar[type[Cell]]
    scales: ClassVar[Mapping[str, Scale]]
    # Cells measured together by `measure_many`; fixed, so that numbers do not depend on workers.
    batch_size: ClassVar[int] = 8

    def __init__(self, card: Card) -> None:
        self.card = card

    def claim(self, id: str) -> Claim:
        """The card's claim, with the test and threshold that were fixed before the run."""
        return self.card.claim(id)

    def inputs(self, cell: C) -> dict[str, str]:
        """Data set -> fingerprint of the files that `cell` reads; part of the cell's identity."""
        return {}

    def seeds(self, cell: C, asked: int) -> int:
        """Seeds of `cell` when a scale or a person asks for `asked`.

        Fewer where nothing is drawn, or where a costly cell is judged well enough by fewer.
        """
        return asked

    def measure(self, cell: C, run: Run) -> Measurement:
        """Train, simulate or solve one cell for one seed; metric name -> value."""
        raise NotImplementedError

    def batch(self, cell: C) -> Hashable | None:
        """Cells with the same key (not None) may be measured together by `measure_many`."""
        return None

    def measure_many(self, cells: Sequence[C], runs: Sequence[Run]) -> Sequence[Measurement]:
        """Measure cells of one batch key at once; the numbers must be those of `measure`.

        Draw from `run.rng` and `run.generator` only, because the runs share the global generators.
        The loop is `runs[0].steps(...)`, which keeps the checkpoints of the whole batch.
        """
        raise NotImplementedError

    def claims(self, table: pd.DataFrame) -> Iterator[Verdict]:
        """One verdict for each claim of the card, from one row per cell and seed."""
        raise NotImplementedError

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """The picture of the study. `curves` has cell fields, seed, step, name, value."""
        raise NotImplementedError

    def scale(self, name: str) -> Scale:
        """The scale of that name; raises `StudyError` with the nearest one."""
        if name not in self.scales:
            raise StudyError(f"{self.card.slug}: no scale {name!r}; {nearest(name, self.scales)}")
        return self.scales[name]
