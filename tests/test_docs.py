"""The site: what a card says stands on its page, word for word; strict build, nothing external."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import time
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import markdown
import pytest

from peira.data import DataError
from peira.engine.cards import TESTS
from peira.engine.catalogue import Paper, papers
from peira.engine.errors import PeiraError

ROOT = Path(__file__).parents[1]
CARD = r'''
number = 1
slug = "made-up"
title = "Snakes_and_ladders * 2 < 3"
field = "games"
authors = ["A. *Star*", "B_C_D"]
year = 1999
source = "https://example.org/a_b_c"
summary = "one | two"
abstract = ["1999. was a year", "see https://example.org/x_y_z, section `a_b`"]
data = ["smoke: [none](nowhere) & nothing"]
extras = ["graphs"]
public = ["climb", "Board", "LIMIT"]
example = """
from made_up.method import climb
climb(3)
"""

[[claims]]
id = "C1"
statement = "|x|_1 **grows** as `a|b` <b>not bold</b>"
test = "larger"
threshold = 0.25
tolerance = 0.5
unit = "m"
published = { value = 1.5, text = "about", where = "Table 7" }

[[claims]]
id = "C2"
statement = "both parts"
test = "all_of"
published = { where = "Sec. 4" }
[[claims.parts]]
test = "sooner"
threshold = 3.0
unit = "x"
[[claims.parts]]
test = "equivalent"
threshold = 0.01

[[findings]]
title = "the ladder_is_upside *down*"
evidence = """line one,
line two at https://example.org/code.py#L3."""
switch = "ladder='published'"
'''
FILES = {
    "__init__.py": '"""A game."""\n',
    "card.toml": CARD,
    "board.py": 'class Board:\n    """A board."""\n\n\nLIMIT: int = 6\n"""Most steps."""\n',
    "method.py": (
        "from made_up.board import LIMIT, Board as Board\n\n\n"
        'def climb(steps):\n    """Climb."""\n    return min(steps, LIMIT)\n'
    ),
    "use.py": '''
from pathlib import Path
from typing import Annotated, Literal
import typer

__all__ = ["best_move"]


def best_move(
    board: Annotated[Path, typer.Argument(help="a board | or two")],
    depth: int = 3,
    rule: Literal["old", "new"] = "new",
) -> None:
    """Print the best move."""
''',
    "study.py": """
from typing import Literal
from pydantic import Field
import peira


class Cell(peira.Cell):
    method: Literal["up", "down"] = "up"
    rungs: int = Field(4, ge=1, lt=90, description="of the ladder | in all")
    slope: float | None = None


class Study(peira.Study[Cell]):
    cell = Cell
    scales = {"smoke": peira.Scale([Cell(), Cell(rungs=5)], seeds=7)}
""",
}


def generator(name: str) -> ModuleType:
    """A module of `docs/generate`, which is no package."""
    path = ROOT / "docs" / "generate" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"generate_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hook of MkDocs that writes the pages."""
    return generator("papers")


@pytest.fixture
def made_up(tmp_path, monkeypatch) -> Paper:
    """A paper whose card is full of characters that Markdown would take for its own."""
    for name, text in FILES.items():
        path = tmp_path / "made_up" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    paper = Paper("made-up", "made_up")
    monkeypatch.setattr("peira.cli.using.paper", lambda slug: paper)
    yield paper
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]


class Reader(HTMLParser):
    """The text of a page, and the rows of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.rows, self.in_cell = "", [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        self.words += "" if tag in ("code", "a", "span", "em", "strong") else " "

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words += data
        if self.in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


def read(text: str) -> Reader:
    """Markdown as a browser's reader sees it."""
    return Reader(markdown.markdown(text, extensions=["tables", "fenced_code"]))


def said(text: str) -> str:
    """A card's text as it must appear: one line, code spans without their marks."""
    return " ".join(text.replace("`", "").split())


def test_a_page_says_what_the_card_says_word_for_word(pages, made_up):
    text, card = read(pages.page(made_up)).text, made_up.card
    words = [card.title, card.summary, *card.abstract, *card.data, *card.authors]
    words += [claim.statement for claim in card.claims]
    words += [part for finding in card.findings for part in (finding.title, finding.evidence)]
    words += [card.findings[0].switch, "climb(3)", "pip install 'peira[graphs]'"]
    for expected in words:
        assert said(expected) in text


def test_claims_stand_beside_published_numbers_and_tests(pages, made_up):
    rows = {row[0]: row[1:] for row in read(pages.page(made_up)).rows if row}
    assert rows["C1"][1:] == [
        "1.5 m; about; Table 7",
        "[larger][peira.engine.verdict.larger], threshold 0.25 m, tolerance 0.5",
    ]
    assert rows["C2"][1] == "Sec. 4"
    assert "1. [sooner][peira.engine.verdict.sooner], threshold 3 x" in rows["C2"][2]
    assert "2. [equivalent][peira.engine.verdict.equivalent], threshold 0.01" in rows["C2"][2]


def test_scales_cell_fields_and_commands_come_from_the_code(pages, made_up):
    reader = read(pages.page(made_up))
    assert ["smoke", "2", "7"] in reader.rows
    assert ["method", "up, down", "'up'", ""] in reader.rows
    assert ["rungs", "integer ≥ 1 < 90", "4", "of the ladder | in all"] in reader.rows
    assert ["slope", "number or null", "None", ""] in reader.rows
    assert "peira use made-up best-move BOARD" in reader.text
    assert ["BOARD", "Path", "(required)", "a board | or two"] in reader.rows
    assert ["--depth", "int", "3", ""] in reader.rows
    assert ["--rule", "old, new", "'new'", ""] in reader.rows


def test_public_names_lead_to_where_they_are_defined(pages, made_up):
    lines = pages.page(made_up).splitlines()
    places = [line.removeprefix("::: ") for line in lines if line.startswith("::: ")]
    assert places == ["made_up.method.climb", "made_up.board.Board", "made_up.board.LIMIT"]


def test_a_paper_half_written_keeps_its_page_and_is_warned_about(pages, made_up, caplog):
    (made_up.folder / "study.py").write_text("import no_such_package\n")
    (made_up.folder / "board.py").write_text("LIMIT = 6\n")
    text = pages.page(made_up)
    assert "Table 7" in read(text).text
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("scales" in line and "no_such_package" in line for line in warned)
    assert any("Board" in line for line in warned)


def test_a_wrong_card_is_warned_about_and_an_absent_one_is_not(
    pages, made_up, caplog, monkeypatch, tmp_path
):
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "card.toml").write_text("number = 'one'\n")
    (tmp_path / "absent").mkdir()
    all_three = [made_up, Paper("wrong", "wrong"), Paper("absent", "absent")]
    monkeypatch.setattr(pages, "papers", lambda: all_three)
    with caplog.at_level("INFO"):
        assert pages.readable() == [made_up]
    levels = {name: r.levelname for r in caplog.records for name in ("wrong", "absent")
              if f"/{name}/" in r.getMessage()}  # fmt: skip
    assert levels == {"wrong": "WARNING", "absent": "INFO"}


def test_index_lists_papers_by_room(pages, made_up):
    text = pages.index([made_up])
    assert "## games" in text
    assert ["made-up", "one | two", "2", "1"] in read(text).rows


def test_every_verdict_has_its_line(pages):
    rows = read(pages.on_page_markdown((ROOT / "docs" / "ideas.md").read_text())).rows
    asked = {row[0].partition("]")[0].lstrip("["): row[1] for row in rows if len(row) == 2}
    assert set(TESTS) <= set(asked)
    assert all(len(asked[name]) > 20 for name in TESTS)


def test_the_refusal_shown_is_what_is_said():
    refusal = DataError("wrong value", "flows.csv", 7, "population", "12k", "a number")
    assert f"peira: {refusal}\n" in (ROOT / "docs" / "own-data.md").read_text()


DOCSTRING = """Fit.

    Args:
        a, b,
        c: as for
            `other`, or not.
        d: 0, 1,
            or 2.

    Example:
        >>> x["k"][0]
        1
    """


def test_wrapped_names_and_examples_reach_the_reference():
    import griffe

    text = generator("docstrings").readable(textwrap.dedent(DOCSTRING.replace("Fit", "    Fit")))
    function = griffe.Function("fit", parameters=griffe.Parameters())
    sections = griffe.Docstring(text, parent=function).parse("google", warnings=False)
    named = {one.name: one.description for one in sections[1].value}
    assert named == {"a, b, c": "as for\n`other`, or not.", "d": "0, 1,\nor 2."}
    assert sections[2].kind is griffe.DocstringSectionKind.examples
    assert '>>> x["k"][0]' in sections[2].value[0][1]


QUOTED = re.findall(
    r"<!-- from (\S+) -->\n```\w+\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize(("path", "code"), QUOTED, ids=[str(n) for n in range(len(QUOTED))])
def test_the_guide_quotes_code_that_is_there(path, code):
    assert code in (ROOT / path).read_text(), f"CONTRIBUTING.md shows other code than {path}"


def test_the_guide_names_files_and_targets_that_are_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(QUOTED) >= 4
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`", guide)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in set(re.findall(r"`((?:src|tests|benchmarks)/[\w/.]+)`", guide)):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_no_other_server(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60 * float(os.environ["PEIRA_PATIENCE"])
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*?src=\"?([^\" >]+)", page.read_text())
        loaded += re.findall(r"<link\b[^>]*?href=\"?([^\" >]+)", page.read_text())
        assert not [address for address in loaded if "//" in address], page
    for paper in papers():
        try:
            card = paper.card
        except PeiraError:
            continue
        page = tmp_path / "papers" / card.slug / "index.html"
        text = Reader(page.read_text().partition("<article")[2].partition("</article>")[0]).text
        words = [claim.statement for claim in card.claims]
        words += [finding.evidence for finding in card.findings]
        for expected in words:
            assert said(expected) in text, card.slug
