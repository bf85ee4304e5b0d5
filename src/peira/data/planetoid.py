"""Graphs whose nodes carry features and classes: Planetoid `ind.*` files and gnn-benchmark `.npz`.

Sources: Yang et al., "Revisiting semi-supervised learning with graph embeddings", ICML 2016
(Planetoid: Cora, CiteSeer, PubMed); Bojchevski and Günnemann, "Deep Gaussian embedding of
graphs", ICLR 2018 (graph2gauss: Cora_ML); Shchur et al., "Pitfalls of graph neural network
evaluation", 2018 (gnn-benchmark: Amazon, Coauthor).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from peira.data.errors import DataError
from peira.data.pickles import read_pickle

if TYPE_CHECKING:
    from torch_geometric.data import Data

PLANETOID_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
# The public split gives 500 validation nodes, right after the training nodes.
PUBLIC_VALIDATION = 500


@dataclass(frozen=True)
class AttributedGraph:
    """An undirected simple graph with node features and one class per node.

    Attributes:
        x: features, one row per node, as the file has them (not scaled).
        edge_index: both directions of every edge, without self loops or repeats, sorted by source
            and then by target; node numbers from 0.
        y: class 0..C-1 of each node, -1 where the source has none.
        classes: name of each class, or empty where the source has no names.
        splits: node numbers of the published parts ("train", "validation", "test"); empty where
            the source publishes no split.
        name: what to call the graph in messages.
    """

    x: sparse.csr_matrix
    edge_index: Int[np.ndarray, "2 edges"]
    y: Int[np.ndarray, " nodes"]
    classes: tuple[str, ...] = ()
    splits: dict[str, Int[np.ndarray, " part"]] = field(default_factory=dict)
    name: str = "graph"

    @property
    def num_nodes(self) -> int:
        """Number of nodes, isolated ones included."""
        return int(self.y.shape[0])

    def to_pyg(self) -> Data:
        """The graph as a PyG `Data` with dense float features (masks where there is a split)."""
        import torch
        from torch_geometric.data import Data

        data = Data(
            x=torch.from_numpy(self.x.toarray()).float(),
            edge_index=torch.from_numpy(self.edge_index),
            y=torch.from_numpy(self.y),
        )
        for part, nodes in self.splits.items():
            mask = torch.zeros(self.num_nodes, dtype=torch.bool)
            mask[torch.from_numpy(nodes)] = True
            data[f"{'val' if part == 'validation' else part}_mask"] = mask
        return data


def planetoid_paths(folder: str | Path, name: str) -> list[Path]:
    """The eight official files of one Planetoid data set (name in lower case), in reading order."""
    return [Path(folder) / f"ind.{name.lower()}.{part}" for part in PLANETOID_PARTS]


def read_planetoid(folder: str | Path, name: str) -> AttributedGraph:
    """Read the Planetoid files `ind.NAME.{x,tx,allx,y,ty,ally,graph,test.index}`.

    Only arrays, sparse matrices and dictionaries of lists are unpickled; anything else in the
    files is refused. CiteSeer has 15 test nodes that no file describes: they get zero features
    and class -1 (other readers give them class 0).

    Args:
        folder: where the files lie.
        name: `cora`, `citeseer` or `pubmed`.

    Raises:
        DataError: naming the file, if one is missing, unreadable, holds something else than the
            format allows, or disagrees with the others in size.
    """
    paths = dict(zip(PLANETOID_PARTS, planetoid_paths(folder, name), strict=True))
    x, tx, allx = (_matrix(paths[part]) for part in ("x", "tx", "allx"))
    y, ty, ally = (_one_hot(paths[part]) for part in ("y", "ty", "ally"))
    neighbours = _neighbours(paths["graph"])
    tested = _test_nodes(paths["test.index"])
    for matrix, labels, part in ((x, y, "y"), (tx, ty, "ty"), (allx, ally, "ally")):
        if matrix.shape[0] != labels.shape[0]:
            raise DataError(
                "features and classes differ in their number of rows",
                path=paths[part], value=labels.shape[0], expected=f"{matrix.shape[0]} rows",
            )  # fmt: skip
    if tested.size != tx.shape[0] or tested.min() < allx.shape[0]:
        raise DataError(
            "the test nodes do not match the test features",
            path=paths["test.index"],
            value=f"{tested.size} nodes from {tested.min()}",
            expected=f"{tx.shape[0]} nodes from {allx.shape[0]} on",
        )
    nodes = int(max(tested.max() + 1, len(neighbours)))
    place = np.concatenate([np.arange(allx.shape[0]), tested])
    return AttributedGraph(
        x=_placed(sparse.vstack([allx, tx]), place, nodes),
        edge_index=_edges_of(neighbours, nodes, paths["graph"]),
        y=_classes(np.vstack([ally, ty]), place, nodes),
        splits={
            "train": np.arange(len(y)),
            "validation": np.arange(len(y), min(len(y) + PUBLIC_VALIDATION, len(ally))),
            "test": np.sort(tested),
        },
        name=name.lower(),
    )


def read_gnn_npz(path: str | Path) -> AttributedGraph:
    """Read a graph in the `.npz` layout of graph2gauss and gnn-benchmark, or of MUSAE.

    The archive holds the CSR parts `adj_matrix.{data,indices,indptr,shape}` and
    `attr_matrix.{...}` (or `adj_data`, ..., `attr_data`, ...) and `labels`; or, for MUSAE (GitHub),
    `edges` (arcs x 2), `features` and `target`. Arcs are taken in both directions; weights and
    self loops are dropped. Pickled members are never opened.

    Raises:
        DataError: naming the file and the member, if it is no such archive, a member is missing
            or pickled, or sizes disagree.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            musae = {"edges", "features", "target"} <= set(archive.files)
            arcs, features, labels = (_musae if musae else _benchmark)(archive, path)
            classes = _class_names(archive, path)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"the file cannot be read ({error})", path=path) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the file is no .npz archive ({error})", path=path) from error
    nodes = features.shape[0]
    if labels.shape != (nodes,) or (arcs.size and not 0 <= arcs.min() <= arcs.max() < nodes):
        raise DataError(
            "edges, features and classes differ in their number of nodes",
            path=path,
            value=f"nodes up to {arcs.max(initial=0)}, {labels.size} classes",
            expected=f"{nodes} nodes, as the features have",
        )
    return AttributedGraph(
        x=features,
        edge_index=simple_edges(arcs, nodes),
        y=labels,
        classes=classes,
        name=path.stem,
    )


def simple_edges(arcs: Int[np.ndarray, "2 arcs"], nodes: int) -> Int[np.ndarray, "2 edges"]:
    """Both directions of every arc, without self loops and repeats, sorted by source, target."""
    arcs = np.asarray(arcs, dtype=np.int64)
    arcs = arcs[:, arcs[0] != arcs[1]]
    codes = np.unique(np.concatenate([arcs[0] * nodes + arcs[1], arcs[1] * nodes + arcs[0]]))
    return np.stack([codes // nodes, codes % nodes])


class _StoredCsr:
    """Stands in for the pickled SciPy class, so that only its plain parts are taken."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


_SPARSE = {
    ("scipy.sparse.csr", "csr_matrix"): _StoredCsr,
    ("scipy.sparse._csr", "csr_matrix"): _StoredCsr,
}


def _read(path: Path) -> Any:
    return read_pickle(path, _SPARSE)


def _matrix(path: Path) -> sparse.csr_matrix:
    stored = _read(path)
    if not isinstance(stored, _StoredCsr):
        raise DataError(
            "not a feature matrix", path=path, value=type(stored).__name__,
            expected="a sparse CSR matrix",
        )  # fmt: skip
    try:
        state = stored.state
        shape = state.get("_shape", state.get("shape"))
        parts = (state["data"], state["indices"], state["indptr"])
        matrix = sparse.csr_matrix(parts, shape=shape, dtype=np.float32)
        matrix.check_format()
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"the sparse matrix is damaged ({error!r})", path=path) from error
    return matrix


def _one_hot(path: Path) -> Float[np.ndarray, "nodes classes"]:
    array = _read(path)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iufb":
        raise DataError(
            "not a table of classes", path=path, value=type(array).__name__,
            expected="an array of nodes x classes, one 1 per row",
        )  # fmt: skip
    return array


def _neighbours(path: Path) -> dict[int, list[int]]:
    graph = _read(path)
    if not isinstance(graph, dict) or not all(isinstance(row, list) for row in graph.values()):
        raise DataError(
            "not a graph", path=path, value=type(graph).__name__,
            expected="a dictionary from a node to the list of its neighbours",
        )  # fmt: skip
    return graph


def _test_nodes(path: Path) -> Int[np.ndarray, " tested"]:
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read ({error})", path=path) from error
    for row, line in enumerate(lines, start=1):
        if not line.isdigit():
            raise DataError(
                "not a node number", path=path, row=row, value=line, expected="a whole number"
            )
    if not lines:
        raise DataError("the file is empty", path=path, expected="one test node per line")
    return np.array(lines, dtype=np.int64)


def _placed(matrix: Any, place: Int[np.ndarray, " rows"], nodes: int) -> sparse.csr_matrix:
    stored = matrix.tocoo()
    indices = (place[stored.row], stored.col)
    return sparse.csr_matrix((stored.data, indices), shape=(nodes, stored.shape[1]))


def _classes(
    one_hot: Float[np.ndarray, "rows classes"], place: Int[np.ndarray, " rows"], nodes: int
) -> Int[np.ndarray, " nodes"]:
    y = np.full(nodes, -1, dtype=np.int64)
    y[place] = np.where(one_hot.sum(axis=1) > 0, one_hot.argmax(axis=1), -1)
    return y


def _edges_of(
    neighbours: dict[int, list[int]], nodes: int, path: Path
) -> Int[np.ndarray, "2 edges"]:
    sources = np.repeat(list(neighbours), [len(row) for row in neighbours.values()])
    targets = np.array([target for row in neighbours.values() for target in row], dtype=np.int64)
    arcs = np.stack([sources.astype(np.int64), targets])
    outside = (arcs < 0) | (arcs >= nodes)
    if outside.any():
        raise DataError(
            "a neighbour is no node of the graph", path=path,
            value=int(arcs[outside][0]), expected=f"a number from 0 to {nodes - 1}",
        )  # fmt: skip
    return simple_edges(arcs, nodes)


def _member(archive: Any, name: str, path: Path) -> Any:
    try:
        return archive[name]
    except KeyError as error:
        raise DataError(
            "a member of the archive is missing", path=path, column=name,
            expected=f"one of {', '.join(sorted(archive.files))}" if archive.files else None,
        ) from error  # fmt: skip
    except ValueError as error:
        raise DataError(
            "a member of the archive is pickled", path=path, column=name, expected="a plain array"
        ) from error


def _benchmark(archive: Any, path: Path) -> tuple[Any, sparse.csr_matrix, Any]:
    adjacency, features = _csr(archive, "adj", path), _csr(archive, "attr", path)
    return (
        np.stack(adjacency.nonzero()),
        features,
        _member(archive, "labels", path).astype(np.int64),
    )


def _musae(archive: Any, path: Path) -> tuple[Any, sparse.csr_matrix, Any]:
    arcs, features, target = (
        _member(archive, name, path) for name in ("edges", "features", "target")
    )
    arcs = arcs if arcs.shape[0] == 2 else arcs.T
    return arcs.astype(np.int64), sparse.csr_matrix(features), target.astype(np.int64)


def _csr(archive: Any, kind: str, path: Path) -> sparse.csr_matrix:
    stem = f"{kind}_matrix." if f"{kind}_matrix.data" in archive.files else f"{kind}_"
    data, indices, indptr, shape = (
        _member(archive, stem + part, path) for part in ("data", "indices", "indptr", "shape")
    )
    try:
        matrix = sparse.csr_matrix((data, indices, indptr), shape=tuple(shape), dtype=np.float32)
        matrix.check_format()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the sparse matrix is damaged ({error})", path=path, column=stem.rstrip("._")
        ) from error
    return matrix


def _class_names(archive: Any, path: Path) -> tuple[str, ...]:
    if "class_names" not in archive.files:
        return ()
    try:
        return tuple(str(name) for name in archive["class_names"])
    except ValueError:
        # Older archives pickle the names; they are not needed.
        return ()
