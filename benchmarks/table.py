"""Table of ratios from what pytest-benchmark has measured: `python benchmarks/table.py FILE.json`.

The benchmark `test_<topic>_peira` is compared with every `test_<topic>_<peer>` of the same file and
the same parameters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

OURS = "_peira"
# Ratios this close to 1 are called even: medians of two measurements differ by as much.
EVEN = 1.05
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


@dataclass(frozen=True)
class Row:
    """One comparison; medians in seconds.

    Attributes:
        topic: the file's subject and what both do, with the parameters if there are any.
        ours: median time of Peira.
        peer: name of the other side.
        theirs: median time of the other side.
    """

    topic: str
    ours: float
    peer: str
    theirs: float

    @property
    def ratio(self) -> float:
        """How many times Peira's time the peer takes: above 1 Peira is faster."""
        return self.theirs / self.ours


def compare(measured: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """All comparisons in a pytest-benchmark JSON, in its order, and the names without a partner.

    Of several topics that a name could belong to, the longest counts: `test_walk_sum_scipy` is the
    peer of `test_walk_sum_peira`, also where there is a `test_walk_peira`.
    """
    benchmarks: Sequence[Mapping[str, Any]] = measured["benchmarks"]
    ours = {_key(one): one for one in benchmarks if _stem(one).endswith(OURS)}
    rows, matched = [], set()
    for one in benchmarks:
        file, stem, parameters = _key(one)
        if stem.endswith(OURS):
            continue
        topics = [
            key
            for key in ours
            if key[::2] == (file, parameters) and stem.startswith(key[1].removesuffix(OURS) + "_")
        ]
        if not topics:
            continue
        best = max(topics, key=lambda key: len(key[1]))
        topic = best[1].removesuffix(OURS)
        peer = stem.removeprefix(topic + "_")
        subject = Path(file).stem.removeprefix("test_").replace("_", "-")
        words = f"{subject}: {topic.removeprefix('test_').replace('_', ' ')}"
        words += f" [{parameters}]" if parameters else ""
        rows.append(Row(words, _median(ours[best]), peer.replace("_", " "), _median(one)))
        matched |= {best, _key(one)}
    alone = [str(one["fullname"]) for one in benchmarks if _key(one) not in matched]
    return rows, alone


def _stem(one: Mapping[str, Any]) -> str:
    return str(one["name"]).partition("[")[0]


def _key(one: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(one["fullname"]).partition("::")[0], _stem(one), str(one["param"] or "")


def _median(one: Mapping[str, Any]) -> float:
    return float(one["stats"]["median"])


def machine(measured: Mapping[str, Any]) -> str:
    """Processor, cores, system and Python that the times belong to."""
    info = measured["machine_info"]
    cpu = info.get("cpu", {})
    name = cpu.get("brand_raw") or info.get("processor") or info["machine"]
    cores = f"{cpu['count']} cores" if "count" in cpu else ""
    parts = [name, cores, info["system"], f"Python {info['python_version']}"]
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Three digits in the unit that suits."""
    # Rounded first: 0.9996 s is 1 s, and not 1e+03 ms.
    seconds = float(f"{seconds:.3g}")
    unit, size = next((pair for pair in UNITS if seconds >= pair[1]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def table(rows: Sequence[Row], caption: str) -> Table:
    """The comparisons as a table for the terminal."""
    drawn = Table(title="Time of a peer / time of Peira", caption=caption)
    for name in ("topic", "peer"):
        drawn.add_column(name, overflow="fold")
    for name in ("peira, median", "peer, median", "ratio"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        colour = "green" if row.ratio > EVEN else "red" if row.ratio < 1 / EVEN else "yellow"
        ratio = f"[{colour}]{row.ratio:.3g}x[/]"
        drawn.add_row(
            escape(row.topic), escape(row.peer), duration(row.ours), duration(row.theirs), ratio
        )
    return drawn


def main(path: Path) -> None:
    """Print the table of one JSON file, and which benchmarks have no partner."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    rows, alone = compare(measured)
    console = Console(highlight=False)
    console.print(table(rows, escape(machine(measured))))
    for name in alone:
        console.print(f"not compared: {escape(name)}", soft_wrap=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/table.py FILE.json")
    main(Path(sys.argv[1]))
