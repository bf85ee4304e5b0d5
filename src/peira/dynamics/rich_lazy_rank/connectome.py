"""Connectomes in the files that people keep them in: edge lists, matrices, GraphML, JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from peira.data import DataError, read_table
from peira.data.arrays import read_npy, refuse_gaps
from peira.engine.errors import nearest

Rows = Literal["post", "pre"]

# Names that a column or key of an edge list goes by.
PRE = ("pre", "source", "from")
POST = ("post", "target", "to")
WEIGHT = ("weight", "synapses", "count")


@dataclass(frozen=True)
class Connectome:
    """Who sends how much to whom.

    Attributes:
        weights: row i is what neuron i receives, column j what neuron j sends.
        names: of the neurons, in that order.
        signs: +1 or -1 of each neuron's outputs (Dale's law), None where the file does not say.
    """

    weights: Float[Tensor, "post pre"]
    names: tuple[str, ...]
    signs: tuple[int, ...] | None = None


def read_connectome(
    path: str | Path, *, rows: Rows | None = None, signs: str | Path | None = None
) -> Connectome:
    """Read a weighted, directed connectome.

    Args:
        path: `.csv` or `.tsv` with columns pre, post and optionally weight (or source/target,
            from/to; synapses, count), one edge a row, or a square matrix, with or without names in
            its first row and column; `.npy` with a square matrix; `.graphml` (edges from source to
            target, attribute `weight`, node attribute `sign`); `.json` with "nodes" and "edges" or
            "links". Several edges of one pair add up; an edge without a weight counts 1.
        rows: of a matrix only, where it must be given: what row i holds, the inputs of neuron i
            ("post") or its outputs ("pre").
        signs: CSV with the columns neuron and sign (+1 or -1), one row for each neuron.

    Raises:
        DataError: file, row or key, value and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv", ".txt"):
        found = _read_text(path, rows)
    elif kind in READERS:
        found = READERS[kind](path, rows)
    else:
        raise DataError(
            "unknown kind of file", path=path, value=kind, expected=".csv, .npy, .graphml or .json"
        )
    if not found.weights.any():
        raise DataError("no connection: all weights are zero", path=path)
    if signs is None:
        return found
    return Connectome(found.weights, found.names, _read_signs(Path(signs), found.names))


def _read_text(path: Path, rows: Rows | None) -> Connectome:
    """An edge list where the header names both ends, else a matrix."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        separator = max(",;\t", key=first.count)
        header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=separator))]
        if any(name in header for name in PRE) and any(name in header for name in POST):
            _no_rows(path, rows)
            return _edge_table(path)
        table = [first.strip().split(separator)]
        table += [line for line in csv.reader(file, delimiter=separator) if any(line)]
    return _matrix_table(path, [[cell.strip() for cell in line] for line in table], rows)


def _edge_table(path: Path) -> Connectome:
    frame = read_table(path)
    by_name = {str(name).strip().lower(): str(name) for name in frame}
    pre, post = (next(by_name[n] for n in names if n in by_name) for names in (PRE, POST))
    weight = next((by_name[name] for name in WEIGHT if name in by_name), None)
    columns = {pre: "str", post: "str"} | ({weight: "float"} if weight else {})
    frame = read_table(path, columns)  # type: ignore[arg-type]
    weights = frame[weight].tolist() if weight else [1.0] * len(frame)
    edges = list(zip(frame[pre], frame[post], weights, strict=True))
    empty = [row for row, edge in enumerate(edges, 2) if edge[2] != edge[2]]
    if empty:
        raise DataError("no weight", path, empty[0], str(weight), expected="a number")
    names = sorted({str(name) for edge in edges for name in edge[:2]}, key=_natural)
    return _from_edges(names, edges)


def _matrix_table(path: Path, table: list[list[str]], rows: Rows | None) -> Connectome:
    named = not all(_is_number(cell) for cell in table[0] if cell)
    body, names = table[int(named) :], table[0] if named else []
    if named and body and len(body[0]) == len(body) + 1:
        # The first column has names as well; a blank may stand above it.
        body = [line[1:] for line in body]
        names = names[-len(body) :]
    for number, line in enumerate(body, 1 + named):
        if len(line) != len(body):
            raise DataError(
                "not square", path, number, value=f"{len(line)} numbers", expected=str(len(body))
            )
        for place, cell in enumerate(line):
            if not _is_number(cell):
                column = names[place] if len(names) == len(body) else place + 1
                raise DataError("wrong value", path, number, column, cell, "a finite number")
    if not body or (named and len(names) != len(body)):
        raise DataError(
            "names", path, 1, value=f"{len(names)} names", expected=f"one for each of {len(body)}"
        )
    values = np.array([[float(cell) for cell in line] for line in body])
    return _from_matrix(path, values, names, rows)


def _read_npy(path: Path, rows: Rows | None) -> Connectome:
    values = read_npy(path)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.dtype.kind not in "iufb":
        raise DataError(
            "not a square matrix", path=path, value=f"{values.dtype} {values.shape}",
            expected="numbers of shape (N, N)",
        )  # fmt: skip
    refuse_gaps(values.astype(float), path)
    return _from_matrix(path, values.astype(float), [], rows)


def _read_graphml(path: Path, rows: Rows | None) -> Connectome:
    import networkx as nx

    _no_rows(path, rows)
    try:
        graph = nx.read_graphml(path)
    # networkx passes on what its XML parser and its own conversions raise.
    except Exception as error:
        raise DataError(f"not a readable GraphML file ({error})", path=path) from error
    if not graph.is_directed():
        raise DataError("an undirected graph", path=path, expected='edgedefault="directed"')
    nodes = [{"id": name, **about} for name, about in graph.nodes(data=True)]
    edges = [{"source": a, "target": b, **about} for a, b, about in graph.edges(data=True)]
    return _from_lists(path, nodes, edges)


def _read_json(path: Path, rows: Rows | None) -> Connectome:
    _no_rows(path, rows)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON ({error})", path=path) from error
    links = [k for k in ("edges", "links") if isinstance(content, dict) and k in content]
    if not links or not isinstance(content[links[0]], list):
        raise DataError("no list of edges", path=path, expected='the keys "nodes" and "edges"')
    nodes = [
        node if isinstance(node, dict) else {"id": node} for node in content.get("nodes") or []
    ]
    return _from_lists(path, nodes, content[links[0]])


READERS = {".npy": _read_npy, ".graphml": _read_graphml, ".json": _read_json}


def _from_lists(path: Path, nodes: Sequence[Mapping[str, Any]], edges: Sequence[Any]) -> Connectome:
    """Nodes with an id and perhaps a sign, edges with both ends and perhaps a weight."""
    names = [str(_entry(path, "node", number, node, ("id", "name"))) for number, node in
             enumerate(nodes, 1)]  # fmt: skip
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError("a node that is there twice", path=path, value=twice)
    listed = []
    for number, edge in enumerate(edges, 1):
        if not isinstance(edge, Mapping):
            raise DataError(f"edge {number}", path=path, value=edge, expected="an object")
        ends = [str(_entry(path, "edge", number, edge, keys)) for keys in (PRE, POST)]
        weight = next((edge[key] for key in WEIGHT if key in edge), 1.0)
        if isinstance(weight, bool) or not _is_number(weight):
            raise DataError(
                f"weight of edge {number}", path=path, value=weight, expected="a finite number"
            )
        for end in ends if nodes else ():
            if end not in names:
                raise DataError(
                    f"edge {number} has an end that is no node", path=path, value=end,
                    expected=nearest(end, names),
                )  # fmt: skip
        listed.append((ends[0], ends[1], float(weight)))
    if not names:
        names = sorted({name for edge in listed for name in edge[:2]}, key=_natural)
    given = [node.get("sign") for node in nodes]
    signs = None
    if nodes and all(sign is not None for sign in given):
        signs = tuple(
            _sign(path, f"sign of {name}", sign) for name, sign in zip(names, given, strict=True)
        )
    return _from_edges(names, listed, signs)


def _entry(path: Path, what: str, number: int, item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        if key in item:
            return item[key]
    raise DataError(
        f"{what} {number} lacks {keys[0]!r}", path=path, expected=f"one of {', '.join(keys)}"
    )


def _from_edges(
    names: Sequence[str],
    edges: Sequence[tuple[Any, Any, float]],
    signs: tuple[int, ...] | None = None,
) -> Connectome:
    place = {name: index for index, name in enumerate(names)}
    weights = torch.zeros(len(names), len(names))
    if edges:
        post = torch.tensor([place[str(edge[1])] for edge in edges])
        pre = torch.tensor([place[str(edge[0])] for edge in edges])
        values = torch.tensor([edge[2] for edge in edges], dtype=torch.float32)
        weights.index_put_((post, pre), values, accumulate=True)
    return Connectome(weights, tuple(names), signs)


def _from_matrix(
    path: Path, values: np.ndarray, names: Sequence[str], rows: Rows | None
) -> Connectome:
    if rows not in ("post", "pre"):
        raise DataError(
            "a matrix does not say who sends and who receives", path=path, value=rows,
            expected="rows 'post' (row i: inputs of i) or 'pre' (row i: outputs of i)",
        )  # fmt: skip
    weights = torch.from_numpy(values).float()
    names = names or [str(number) for number in range(1, len(values) + 1)]
    return Connectome(weights if rows == "post" else weights.T.contiguous(), tuple(names))


def _no_rows(path: Path, rows: Rows | None) -> None:
    if rows is not None:
        raise DataError(
            "edges have a direction of their own", path=path, value=f"rows={rows}",
            expected="no `rows`: it is for matrices",
        )  # fmt: skip


def _read_signs(path: Path, names: Sequence[str]) -> tuple[int, ...]:
    table = read_table(path, {"neuron": "str", "sign": "str"})
    known = set(names)
    signs: dict[str, int] = {}
    for row, (name, sign) in enumerate(zip(table["neuron"], table["sign"], strict=True), 2):
        if name not in known:
            raise DataError(
                "a neuron that the connectome lacks", path, row, "neuron", name,
                nearest(name, list(names)),
            )  # fmt: skip
        signs[name] = _sign(path, "sign", sign, row)
    missing = [name for name in names if name not in signs]
    if missing:
        raise DataError(
            f"{len(missing)} neurons without a sign", path=path, value=missing[0],
            expected="one row for each neuron",
        )  # fmt: skip
    return tuple(signs[name] for name in names)


def _sign(path: Path, what: str, value: Any, row: int | None = None) -> int:
    if _is_number(value) and float(value) in (1.0, -1.0):
        return int(float(value))
    raise DataError(what, path, row, value=value, expected="+1 or -1")


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers in their order, before words."""
    return (0, float(name), name) if _is_number(name) else (1, 0.0, name)
