"""`peira list` and `peira show`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from peira.engine.catalogue import Paper, papers, published
from peira.engine.errors import PeiraError, nearest

COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
SHOWN = ("supported", "refuted", "inconclusive")


def find(words: Sequence[str], field: str) -> list[Paper]:
    """Papers of a field whose title, facts or claims hold all the words, in any case."""
    everything = sound(papers())
    fields = {paper.facts.field for paper in everything}
    if field and field not in fields:
        raise PeiraError(f"no field {field!r}; {nearest(field, fields)}")
    return [
        paper
        for paper in everything
        if (not field or paper.facts.field == field)
        and all(word.lower() in _text(paper.facts) for word in words)
    ]


def sound(found: Sequence[Paper]) -> list[Paper]:
    """The papers whose cards can be read; the others are named on standard error."""
    readable = []
    for paper in found:
        try:
            _ = paper.facts
            readable.append(paper)
        except PeiraError as error:
            print(f"peira: left out: {error}", file=sys.stderr)
    return readable


def _text(card: Any) -> str:
    claims = [claim.statement for claim in card.claims]
    parts = [card.slug, card.title, card.summary, card.field, *card.authors, *card.abstract]
    return "\n".join([*parts, *claims]).lower()


def counts(last: Mapping[str, Any] | None) -> dict[str, int]:
    """How many claims the last run supported, refuted and left open."""
    return dict(Counter(verdict["verdict"] for verdict in last["verdicts"])) if last else {}


def summary(paper: Paper) -> dict[str, Any]:
    """A paper in one record, for `list --json`."""
    card, last = paper.facts, paper.last()
    return {
        "slug": card.slug,
        "number": card.number,
        "field": card.field,
        "title": card.title,
        "summary": card.summary,
        "claims": len(card.claims),
        "last_run": last and {"scale": last["scale"], "finished_at": last["finished_at"]},
        "verdicts": counts(last),
    }


def details(paper: Paper) -> dict[str, Any]:
    """The whole card with the last verdicts, for `show --json`."""
    return {**paper.record, "last_run": paper.last()}


def print_list(found: Sequence[Paper]) -> None:
    """One line each; a table on a terminal and in a file alike."""
    if not found:
        raise PeiraError("no paper has all of these words")
    rows = [("paper", "field", "last verdicts", "what it does")]
    rows += [(p.facts.slug, p.facts.field, _state(p), escape(p.facts.summary)) for p in found]
    lines = [[Text.from_markup(cell) for cell in row] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    for *short, words in lines:
        for cell, width in zip(short, widths[:-1], strict=True):
            cell.pad_right(width + 2 - cell.cell_len)
        console.print(Text.assemble(*short, words), no_wrap=True, overflow="ellipsis")


def _state(paper: Paper) -> str:
    said = counts(paper.last())
    named = [f"[{COLOURS[name]}]{said[name]} {name}[/]" for name in SHOWN if name in said]
    return " ".join(named) or "[dim]not run[/]"


def print_card(paper: Paper) -> None:
    """The card as a page for the terminal."""
    card, last = paper.facts, paper.last()
    console = Console(highlight=False)
    console.print(f"[bold]{escape(card.title)}[/]")
    console.print(f"{escape(', '.join(card.authors))}, {card.year}", style="dim")
    console.print(f"{card.source}" + (f"  code: {card.code}" if card.code else ""), style="dim")
    console.print(f"\n{escape(card.summary)}\n")
    for fact in card.abstract:
        console.print(Padding(f"• {escape(fact)}", (0, 0, 0, 2)))
    console.print(claims_table(card, last["verdicts"] if last else []))
    if last:
        console.print(f"Last run: {last['scale']}, {last['finished_at']}\n", style="dim")
    for finding in card.findings:
        console.print(f"[bold]Finding:[/] {escape(finding.title)}")
        console.print(Padding(escape(finding.evidence), (0, 0, 0, 2)))
        if finding.switch:
            console.print(f"  switch: {escape(finding.switch)}")
    console.print("\n[bold]On your own data[/]")
    console.print(Padding(escape(card.example.strip()), (0, 0, 0, 2)))
    console.print(f"\npeira run {card.slug} --scale small\npeira use {card.slug} --help")


def claims_table(card: Any, verdicts: Sequence[Mapping[str, Any]]) -> Table:
    """Claims with the published numbers, beside what was measured."""
    measured = {verdict["claim"]: verdict for verdict in verdicts}
    table = Table("", "claim", "measured [95% CI]", "verdict", padding=(0, 1), show_lines=True)
    table.columns[1].ratio = 1
    table.columns[2].max_width = 26
    for claim in card.claims:
        verdict = measured.get(claim.id)
        words = escape(claim.statement)
        words += f"\n[dim]published: {escape(published(claim))}[/]"
        if verdict and verdict["note"]:
            words += f"\n[dim]measured: {escape(verdict['note'])}[/]"
        table.add_row(
            claim.id,
            words,
            f"{escape(effect(verdict))}\n[dim]n = {verdict['n']}[/]" if verdict else "",
            f"[{COLOURS[verdict['verdict']]}]{verdict['verdict']}[/]" if verdict else "not run",
        )
    return table


def effect(verdict: Mapping[str, Any]) -> str:
    """`9.8 x [5.1, 18.6]`."""
    if verdict["effect"] is None:
        return "not measured"
    low, high = verdict["ci"]
    unit = f" {verdict['unit']}" if verdict["unit"] else ""
    if low is None or high is None:
        return f"{verdict['effect']:.3g}{unit}"
    if low == high == verdict["effect"]:
        return f"{verdict['effect']:.3g}{unit}"
    return f"{verdict['effect']:.3g}{unit} [{low:.3g}, {high:.3g}]"
