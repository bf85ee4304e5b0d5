"""`peira new`: the folder of a paper, complete but for its blanks."""

from __future__ import annotations

import keyword
import re
from datetime import date
from pathlib import Path

from peira.engine.catalogue import papers
from peira.engine.errors import PeiraError
from peira.engine.files import write_text

FILES = ("card.toml", "__init__.py", "method.py", "use.py", "study.py")
TABLE = '[project.entry-points."peira.papers"]\n'


def make_paper(slug: str, field: str, into: Path) -> list[Path]:
    """Write the files of a new paper and return their paths.

    In a checkout of Peira it becomes a paper of the room `field` and is entered in
    `pyproject.toml`; anywhere else it becomes a package of its own, `peira-SLUG`.

    Raises `PeiraError` for a name that cannot be one, or that is taken.
    """
    for name, value in (("slug", slug), ("--field", field)):
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", value):
            raise PeiraError(f"{name} {value!r}: expected lower-case words joined by dashes")
        if keyword.iskeyword(value):
            raise PeiraError(f"{name} {value!r} is a word of Python: choose another")
    if slug in {found.slug for found in papers()}:
        raise PeiraError(f"there is a paper {slug!r} already: `peira show {slug}`")
    name, room = slug.replace("-", "_"), field.replace("-", "_")
    builtin = (into / "src" / "peira" / "engine").is_dir()
    root = into if builtin else into / f"peira-{slug}"
    package = f"peira.{room}.{name}" if builtin else f"peira_{name}"
    folder = root / "src" / package.replace(".", "/")
    if folder.exists():
        raise PeiraError(f"{folder} exists already")
    words = {"slug": slug, "field": field, "package": package, "year": date.today().year}
    files = {folder / template: template for template in FILES}
    tests = root / "tests" / room if builtin else root / "tests"
    files[tests / f"test_{name}.py"] = "test.py"
    if not builtin:
        files[tests / "test_conformance.py"] = "conformance.py"
        files[root / "pyproject.toml"] = "pyproject.toml"
    if builtin:
        _enter(root / "pyproject.toml", slug, package)
        if not (folder.parent / "__init__.py").exists():
            files[folder.parent / "__init__.py"] = "room.py"
    for path, template in files.items():
        write_text(path, _fill(template, words))
    return list(files)


def _fill(template: str, words: dict[str, object]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("peira.cli", "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{template}.jinja").render(words)


def _enter(pyproject: Path, slug: str, package: str) -> None:
    text = pyproject.read_text(encoding="utf-8")
    if TABLE not in text:
        raise PeiraError(f"{pyproject}: no table {TABLE.strip()}")
    head, tail = text.split(TABLE)
    write_text(pyproject, f'{head}{TABLE}{slug} = "{package}"\n{tail}')
