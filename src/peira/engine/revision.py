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
    package, and Peira itself.
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
        waiting += [found for found in _imports(seen[name], name) if found.split(".")[0] in roots]
    digest = sha256()
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + seen[name] + b"\0")
    return digest.hexdigest()[:16]


def _submodules(package: str) -> Iterator[str]:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.py")):
            if path.stem != "__init__":
                yield f"{package}.{path.stem}"


@cache
def _source(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    # A name taken from a module (`from package import name`) is no module of its own.
    except (ModuleNotFoundError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(source: bytes, module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.rsplit(".", node.level)[0]
                base = f"{parent}.{base}".rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


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
