"""`peira run`: progress on standard error, verdicts or JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.markup import escape

from peira.cli.catalogue import claims_table
from peira.engine.catalogue import paper
from peira.engine.progress import Bars
from peira.engine.report import write_report
from peira.engine.session import Request, Result, run_study


def run_and_print(request: Request, as_json: bool) -> int:
    """Run the study and print what it says.

    Returns the exit status: 1 when a cell failed or there is no figure, 130 when stopped.
    """
    words = Console(stderr=True)
    try:
        with _prints_to_stderr(), Bars(request.slug, words) as bars:
            result = run_study(request, bars)
    except KeyboardInterrupt:
        words.print("stopped: finished cells are kept, and the same command continues")
        return 130
    page, _ = write_report([request.slug], result.folder / "report.html", result.folder)
    kept = json.loads((result.folder / "result.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(as_data(kept, str(page)), indent=1, allow_nan=False))
    else:
        print_result(result, kept, str(page))
    for outcome in result.failed:
        words.print(
            f"[red]failed[/] {escape(outcome.label)}: {escape(outcome.reason)}", soft_wrap=True
        )
    if result.no_figure:
        words.print(
            f"[red]no figure[/] {escape(result.no_figure)}; verdicts and report are kept",
            soft_wrap=True,
        )
    return 1 if result.failed or result.no_figure else 0


@contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """What studies and libraries print, here and in workers, stays out of our data."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


def as_data(kept: Mapping[str, Any], page: str) -> dict[str, Any]:
    """The result as `run --json` gives it."""
    judged = ("verdict", "effect", "ci", "n", "unit", "threshold", "note")
    return {
        "paper": kept["paper"],
        "scale": kept["scale"],
        "seeds": kept["seeds"],
        "claims": [
            {
                "id": claim.id,
                "statement": claim.statement,
                "published": claim.published.model_dump(),
                **{name: verdict[name] for name in judged},
            }
            for claim, verdict in zip(
                paper(kept["paper"]).card.claims, kept["verdicts"], strict=True
            )
        ],
        "failed": kept["failed"],
        "store": kept["store"],
        "report": page,
    }


def print_result(result: Result, kept: Mapping[str, Any], page: str) -> None:
    """The verdict table and where everything is."""
    console = Console(highlight=False, soft_wrap=False)
    card = paper(result.request.slug).card
    console.print(f"[bold]{escape(card.title)}[/]")
    console.print(claims_table(card, kept["verdicts"]))
    console.print(
        f"{kept['cells']} cells x {kept['seeds']} seeds in {kept['seconds']:.0f} s "
        f"({kept['cell_seconds']:.0f} s of computing)"
    )
    figure = result.folder / "figure.png"
    if figure.exists():
        console.print(f"figure  {figure}", soft_wrap=True)
    console.print(f"report  {page}", soft_wrap=True)
    console.print(f"store   {result.store}", soft_wrap=True)
