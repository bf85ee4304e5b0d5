"""`peira doctor`: what this installation can do, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

from rich.console import Console
from rich.markup import escape

from peira.engine.catalogue import papers
from peira.engine.errors import PeiraError
from peira.engine.files import home
from peira.engine.store import Store

LIBRARIES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "numba", "mlflow")


def examine(store: str | None = None) -> dict[str, Any]:
    """Versions, extras, accelerator, data folder and store, as plain data."""
    extras = missing_by_extra()
    return {
        "python": platform.python_version(),
        "peira": version("peira"),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "gpu": _gpu(),
        "extras": {name: {"missing": packages} for name, packages in extras.items()},
        "papers": [_paper(found, extras) for found in papers()],
        "remedy": _remedy(extras),
        "data": os.environ.get("PEIRA_DATA", ""),
        "home": {"path": str(home()), "free_gib": _free()},
        "store": _store(store),
    }


def missing_by_extra() -> dict[str, list[str]]:
    """Extra of the package -> those of its requirements that are not installed."""
    from packaging.requirements import Requirement

    about = metadata("peira")
    extras: dict[str, list[str]] = {name: [] for name in about.get_all("Provides-Extra") or []}
    for line in about.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        for name in extras:
            only = requirement.marker and not requirement.marker.evaluate({"extra": ""})
            mine = only and requirement.marker.evaluate({"extra": name})  # type: ignore[union-attr]
            if mine and requirement.name != "peira" and _version(requirement.name) is None:
                extras[name].append(requirement.name)
    return extras


def _paper(found: Any, extras: dict[str, list[str]]) -> dict[str, Any]:
    try:
        needs = found.card.extras
    except PeiraError as error:
        return {"slug": found.slug, "missing": [], "problem": str(error)}
    lacking = sorted({package for name in needs for package in extras.get(name, [name])})
    return {"slug": found.slug, "missing": lacking, "problem": ""}


def _remedy(extras: dict[str, list[str]]) -> str:
    lacking = sorted(name for name, packages in extras.items() if packages)
    return f"pip install 'peira[{','.join(lacking)}]'" if lacking else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _free() -> float | None:
    place = home()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return round(shutil.disk_usage(place).free / 2**30, 1)
    except OSError:
        return None


def _store(uri: str | None) -> dict[str, Any]:
    store = Store("doctor", uri)
    try:
        store.reach()
    except PeiraError as error:
        return {"uri": store.uri, "reachable": False, "problem": str(error)}
    return {"uri": store.uri, "reachable": True, "problem": ""}


def print_findings(findings: dict[str, Any]) -> None:
    """The findings as lines a person can act on."""
    console = Console(highlight=False)
    libraries = ", ".join(f"{k} {v or 'missing'}" for k, v in findings["libraries"].items())
    console.print(f"peira   {findings['peira']}, Python {findings['python']}")
    console.print(f"uses    {libraries}")
    console.print(f"gpu     {findings['gpu'] or 'none seen: everything runs on the CPU'}")
    console.print(f"data    {findings['data'] or 'PEIRA_DATA not set: fetched on first use'}")
    console.print(f"files   {findings['home']['path']}, {findings['home']['free_gib']} GiB free")
    store = findings["store"]
    state = "reachable" if store["reachable"] else f"[red]{escape(store['problem'])}[/]"
    console.print(f"store   {store['uri']}: {state}")
    for paper in findings["papers"]:
        if paper["missing"] or paper["problem"]:
            why = paper["problem"] or f"needs {', '.join(paper['missing'])}"
            console.print(f"[yellow]paper   {paper['slug']}: {escape(why)}[/]")
    ready = sum(not paper["missing"] and not paper["problem"] for paper in findings["papers"])
    console.print(f"papers  {ready} of {len(findings['papers'])} ready")
    if findings["remedy"]:
        console.print(f"all extras: {escape(findings['remedy'])}")
