"""One self-contained HTML file: claims beside measurements, figures, data, settings, versions."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peira.engine.catalogue import Paper, paper, papers, published
from peira.engine.errors import PeiraError
from peira.engine.files import read_json, write_text


def write_report(
    slugs: Sequence[str], path: Path, folder: Path | None = None
) -> tuple[Path, list[str]]:
    """Write the last results of papers as one page.

    Args:
        slugs: papers; none means all that have results.
        path: the HTML file.
        folder: results to take instead of the last ones (for a single paper).

    Returns the file and the slugs in it. Raises `PeiraError` when there is nothing to report.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    wanted = [paper(slug) for slug in slugs] or [found for found in papers() if found.last()]
    sections = [_section(found, folder) for found in wanted]
    if not sections:
        raise PeiraError("no results yet: `peira run SLUG` makes some")
    environment = Environment(
        loader=PackageLoader("peira.engine", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "published": published}
    page = environment.get_template("report.html.jinja").render(sections=sections)
    write_text(path, page)
    return path.resolve(), [section["card"].slug for section in sections]


def _section(found: Paper, folder: Path | None) -> dict[str, Any]:
    result = read_json(folder / "result.json") if folder else found.last()
    if not result:
        raise PeiraError(f"{found.slug} has no results yet: `peira run {found.slug}` makes some")
    place = folder or found.records / result["folder"]
    verdicts = {verdict["claim"]: verdict for verdict in result["verdicts"]}
    return {
        "card": found.card,
        "result": result,
        "figure": _figure(place / "figure.png"),
        "claims": [(claim, verdicts.get(claim.id)) for claim in found.card.claims],
        "command": command(result),
        "rows": result["rows"],
        "columns": list(dict.fromkeys(name for row in result["rows"] for name in row)),
    }


def _figure(path: Path) -> str:
    if not path.exists():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def command(result: Mapping[str, Any]) -> str:
    """The command that gives these numbers again."""
    words = ["peira", "run", result["paper"], "--scale", result["scale"]]
    changed = result["changed"]
    if "seeds" in changed:
        words += ["--seeds", str(changed["seeds"])]
    for name, values in changed.get("cells", {}).items():
        words += ["--cells", f"{name}={','.join(values)}"]
    for name, value in changed.get("set", {}).items():
        words += ["--set", f"{name}={value}"]
    if "max_steps" in changed:
        words += ["--max-steps", str(changed["max_steps"])]
    return shlex.join(words)


def number(value: object) -> str:
    """A number as a reader wants it; an absent one as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
