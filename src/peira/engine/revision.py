"""Which code made a number: a fingerprint of a paper's modules and of what they import."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

# The engine runs cells and knows no paper; a change in it is meant not to change numbers.
OUTSIDE = ("peira.engine", "peira.cli")


def code_fingerprint(package: str) -> str:
    """16 hex digits over the sources of `package` and of all that it imports from its project.

    Found by reading import statements, so nothing is executed. The project is the top-level
    package, and Peira itself. A name of a lazy package (`engine.lazy`) counts as its module.
    """
    roots = {package.split(".")[0], "peira"}
    seen: dict[str, bytes] = {}
    waiting = [package, *_submodules(package)]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in seen or path is None or name.startswith(OUTSIDE):
            continue
        seen[name] = path.read_bytes()
        waiting += [found for found in _imports(path, name) if found.split(".")[0] in roots]
    digest = sha256()
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + seen[name] + b"\0")
    return digest.hexdigest()[:16]


def _submodules(package: str) -> Iterator[str]:
    path = _source(package)
    for other in sorted(path.parent.glob("*.py")) if path else []:
        if other != path:
            yield f"{package}.{other.stem}"


@cache
def _source(module: str) -> Path | None:
    """The file of a module; None for a name that is none. Only `find_spec` of a top-level package
    imports nothing, so what is below it is looked for as files."""
    root, *parts = module.split(".")
    spec = find_spec(root)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        place = Path(folder, *parts)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None


@cache
def _lazy(package: str) -> dict[str, str]:
    """Name -> module of the table that a package hands to `engine.lazy.exports`."""
    path = _source(package)
    for node in ast.walk(ast.parse(path.read_bytes())) if path else []:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "exports":
            table = ast.literal_eval(node.args[1])
            return {name: f"{package}.{module}" for module in table for name in table[module]}
    return {}


def _imports(path: Path, module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # One dot is the package that holds a module, and a package itself.
                up = node.level - (path.name == "__init__.py")
                parent = module.rsplit(".", up)[0] if up else module
                base = f"{parent}.{base}".rstrip(".")
            yield base
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if _source(name) else _lazy(base).get(alias.name, name)


def git_revision(package: str) -> str:
    """Commit of the checkout that holds `package`, `+` when it has changes; else ''."""
    path = _source(package)
    if path is None:
        return ""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", path.parent, *words], capture_output=True, text=True, timeout=5
            )
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if commit.returncode:
        return ""
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
