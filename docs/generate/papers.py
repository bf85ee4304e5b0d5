"""MkDocs hook: a page for each paper, from its card, its study, its commands and its docstrings.

Nothing here is written by hand about a paper: what a page says is what `card.toml`, the study's
cells and the signatures in `use.py` say when the site is built.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from peira.cli.using import commands
from peira.engine import verdict
from peira.engine.cards import TESTS, Claim, Test
from peira.engine.catalogue import Paper, papers
from peira.engine.cells import Cell, Scale
from peira.engine.errors import PeiraError

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

# Below MkDocs's own logger, so that `mkdocs build --strict` fails on what is missing.
log = logging.getLogger("mkdocs.papers")

# What stands in a page for the tables of `vocabulary` and `combinations`.
VOCABULARY = "<!-- verdicts -->"
COMBINATIONS = "<!-- combinations -->"
# Written by tests/test_combinations.py.
MEASURED = Path(__file__).parents[1] / "combinations.json"
# Spans that keep their meaning in a card's plain text: code and addresses.
KEPT = re.compile(r"(`[^`\n]+`|https?://[^\s<>]*[^\s<>.,;:)\]'\"])")
SPECIAL = re.compile(r"([\\*_{}\[\]()#+.!|~^=:$@-])")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages to the site, and the papers by room to its navigation."""
    from mkdocs.structure.files import File

    found = readable()
    pages = {paper.slug: page(paper) for paper in found}
    pages["index"] = index(found)
    for name, text in pages.items():
        files.append(File.generated(config, f"papers/{name}.md", content=text))
    rooms = [
        {room: [{paper.slug: f"papers/{paper.slug}.md"} for paper in members]}
        for room, members in by_room(found)
    ]
    for entry in config.nav or []:
        if "Papers" in entry:
            entry["Papers"] = ["papers/index.md", *rooms]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the vocabulary of verdicts, or what combines with what, where a page asks for it."""
    for mark, table in ((VOCABULARY, vocabulary), (COMBINATIONS, combinations)):
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def combinations() -> str:
    """Accuracy of each pair of techniques on one network, and of larger sets, as two tables."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    sets = {frozenset(key.split(" + ")): value for key, value in found.items()}
    names = [key for key in found if " + " not in key and key != "none"]
    rows = [
        [f"**{one}**", *(f"{sets[frozenset((one, other))]:.2f}" for other in names)]
        for one in names
    ]
    larger = [[key, f"{value:.2f}"] for key, value in found.items() if key.count(" + ") > 1]
    return "\n\n".join(
        [
            _table(["with", *names], rows),
            f"On the diagonal a technique alone; with none of them {found['none']:.2f}.",
            _table(["more at once", "accuracy"], larger),
        ]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def vocabulary() -> str:
    """The tests that claims can name, and the first line of what each asks, as a table."""
    asked = {name: plain(_first_line(getattr(verdict, name))) for name in TESTS}
    rows = [f"| [`{name}`][peira.engine.verdict.{name}] | {asked[name]} |" for name in TESTS]
    return "\n".join(["| test | what it asks |", "| --- | --- |", *rows])


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def readable() -> list[Paper]:
    """The installed papers whose cards can be read; the others are named in the log.

    A card that is not there is worth a line, one that is wrong a warning.
    """
    found = []
    for paper in papers():
        try:
            _ = paper.card
            found.append(paper)
        except PeiraError as error:
            absent = isinstance(error.__cause__, FileNotFoundError)
            log.log(logging.INFO if absent else logging.WARNING, "no page: %s", error)
    return found


def by_room(found: Sequence[Paper]) -> list[tuple[str, list[Paper]]]:
    """Papers by field; fields and slugs in alphabetical order."""

    def place(paper: Paper) -> tuple[str, str]:
        return paper.card.field, paper.slug

    grouped = groupby(sorted(found, key=place), key=lambda paper: paper.card.field)
    return [(room, list(members)) for room, members in grouped]


def index(found: Sequence[Paper]) -> str:
    """The list of all papers as Markdown."""
    return _render("index.md.jinja", rooms=by_room(found))


def page(paper: Paper) -> str:
    """All that is known about a paper, as Markdown.

    Parts that cannot be had (no study yet, an extra that is missing) are left out with a warning.
    """
    return _render(
        "paper.md.jinja",
        card=paper.card,
        scales=_or_nothing(paper, "scales", _scales),
        fields=_or_nothing(paper, "cell fields", _fields),
        commands=_or_nothing(paper, "commands", _commands),
        places=_or_nothing(paper, "public names", _places),
    )


def _or_nothing(paper: Paper, what: str, read: Any) -> list[Any]:
    try:
        return list(read(paper))
    # One paper that does not import must not cost the others their pages.
    except Exception as error:
        log.warning("the page of %s lacks its %s: %s", paper.slug, what, error)
        return []


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": plain, "link": link, "published": published, "asks": asks}
    return environment.get_template(template).render(values)


def plain(text: str) -> str:
    """A card's text as Markdown that reads the same: only code spans and addresses are marked up.

    Also fit for one cell of a table: no line breaks, no bars.
    """
    parts = KEPT.split(" ".join(str(text).split()))
    return "".join(_marked(part) if i % 2 else _entities(part) for i, part in enumerate(parts))


def _marked(span: str) -> str:
    if not span.startswith("`"):
        return f"<{span}>"
    # A code span of Markdown could not hold a bar inside a table.
    return f"<code>{_entities(span[1:-1])}</code>"


def _entities(text: str) -> str:
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", escape(text, quote=False))


def link(source: str, words: str) -> str:
    """`words` leading to an address; a source that is no address stands as it is."""
    return f"[{words}]({source})" if source.startswith("http") else plain(source)


def published(claim: Claim) -> str:
    """The paper's number with its unit, its words, and where they are."""
    said = claim.published
    number = "" if said.value is None else f"{said.value:g} {claim.unit}".strip()
    return plain("; ".join(part for part in (number, said.text, said.where) if part))


def asks(test: Test) -> str:
    """The test that judges a claim, leading to its description, with what was fixed for it."""
    said = [] if test.threshold is None else [f"threshold {test.threshold:g} {test.unit}".strip()]
    if test.tolerance is not None:
        said.append(f"tolerance {test.tolerance:g}")
    reference = f"[`{test.test}`][peira.engine.verdict.{test.test}]"
    return ", ".join([reference, *map(plain, said)])


def _scales(paper: Paper) -> Iterator[dict[str, Any]]:
    scales: Mapping[str, Scale] = paper.study().scales
    for name, scale in scales.items():
        yield {"name": name, "cells": len(scale.conditions()), "seeds": scale.seeds}


def _fields(paper: Paper) -> Iterator[dict[str, str]]:
    cell: type[Cell] = paper.study().cell
    for name, schema in cell.model_json_schema()["properties"].items():
        default = repr(schema["default"]) if "default" in schema else "(required)"
        about = str(schema.get("description", ""))
        yield {"name": name, "values": _values(schema), "default": default, "about": about}


def _values(schema: Mapping[str, Any]) -> str:
    """What a cell field takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(map(_values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), *bounds])


def _commands(paper: Paper) -> Iterator[dict[str, Any]]:
    """The commands as `peira use` mounts them."""
    for name, command in commands(paper.slug).commands.items():
        function = inspect.unwrap(getattr(paper.module("use"), name.replace("-", "_")))
        hints = get_type_hints(function)
        rows = [
            {
                "name": parameter.name.upper() if _positional(parameter) else parameter.opts[0],
                "type": _type(hints[parameter.name]),
                "default": "(required)" if parameter.required else repr(parameter.default),
                "about": getattr(parameter, "help", "") or "",
            }
            for parameter in command.params
            if parameter.name in hints
        ]
        words = [row["name"] for row in rows if not row["name"].startswith("-")]
        usage = " ".join(["peira use", paper.slug, name, *words])
        yield {"usage": usage, "name": name, "help": command.help or "", "parameters": rows}


def _positional(parameter: Any) -> bool:
    return not parameter.opts[0].startswith("-")


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    return inspect.formatannotation(hint).replace("pathlib.", "")


def _places(paper: Paper) -> Iterator[str]:
    """Dotted names of the card's public names, where they are defined."""
    others = {path.stem for path in paper.folder.glob("*.py")} - {
        "__init__",
        "method",
        "use",
        "study",
    }
    modules = [f"{paper.package}.{name}" for name in ("method", *sorted(others))]
    for name in paper.card.public:
        place = next(filter(None, (_place(module, name) for module in modules)), "")
        if place:
            yield place
        else:
            log.warning("the page of %s lacks %s: no module of it has that", paper.slug, name)


def _place(module: str, name: str) -> str:
    """`module.name`, or where the module imports it from; '' when it does neither.

    Read from the source: names are exported lazily, and constants do not know their module.
    """
    spec = find_spec(module)
    if spec is None or not spec.origin:
        return ""
    for node in ast.parse(Path(spec.origin).read_bytes()).body:
        if name in _defined(node):
            return f"{module}.{name}"
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            original = {alias.asname or alias.name: alias.name for alias in node.names}
            if name in original:
                return _place(node.module, original[name])
    return ""


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
