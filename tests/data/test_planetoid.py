"""Planetoid and gnn-benchmark readers: against PyG's readers, and against damaged files."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from scipy import sparse

from peira.data import DataError
from peira.data.planetoid import PLANETOID_PARTS, read_gnn_npz, read_planetoid, simple_edges


@pytest.fixture
def archive(tmp_path):
    """Four nodes, arcs 0->1, 1->0, 2->1 and a loop at 3, in the `adj_matrix.data` layout."""
    adjacency = sparse.csr_matrix(
        (np.array([1.0, 1, 5, 1]), ([0, 1, 2, 3], [1, 0, 1, 3])), shape=(4, 4)
    )
    features = sparse.csr_matrix(np.array([[0, 2.0], [1, 0], [0, 0], [3, 4]]))
    path = tmp_path / "toy.npz"

    def write(**changes):
        members = {"labels": np.array([1, 0, 1, 0])}
        for stem, matrix in (("adj_matrix", adjacency), ("attr_matrix", features)):
            for part in ("data", "indices", "indptr", "shape"):
                members[f"{stem}.{part}"] = np.array(getattr(matrix, part))
        members |= changes
        np.savez(path, **{name: value for name, value in members.items() if value is not None})
        return path

    return write


@pytest.fixture
def planetoid(tmp_path):
    """Five nodes: 0-1 trained, 2 more known, 4 tested, 3 described by no file (as in CiteSeer)."""

    def dump(part, value):
        with open(tmp_path / f"ind.toy.{part}", "wb") as file:
            pickle.dump(value, file, protocol=2)

    one_hot = np.eye(2, dtype=np.int32)
    dump("x", sparse.csr_matrix(np.array([[1.0, 0, 0], [0, 1, 0]])))
    dump("allx", sparse.csr_matrix(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])))
    dump("tx", sparse.csr_matrix(np.array([[7.0, 0, 7]])))
    dump("y", one_hot[[0, 1]])
    dump("ally", one_hot[[0, 1, 1]])
    dump("ty", one_hot[[0]])
    dump("graph", {0: [1, 1, 4], 1: [0], 2: [2], 3: [], 4: [0]})
    (tmp_path / "ind.toy.test.index").write_text("4\n")
    return tmp_path


def test_npz_arcs_become_simple_undirected_edges(archive):
    graph = read_gnn_npz(archive())
    assert graph.edge_index.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert graph.x.toarray().tolist() == [[0, 2], [1, 0], [0, 0], [3, 4]]
    assert graph.y.tolist() == [1, 0, 1, 0]
    assert graph.name == "toy"


def test_npz_underscore_layout_reads_the_same(archive, tmp_path):
    with np.load(archive()) as members:
        renamed = {name.replace("_matrix.", "_"): members[name] for name in members.files}
    np.savez(tmp_path / "old.npz", **renamed)
    old, new = read_gnn_npz(tmp_path / "old.npz"), read_gnn_npz(tmp_path / "toy.npz")
    assert np.array_equal(old.edge_index, new.edge_index)
    assert (old.x != new.x).nnz == 0


def test_musae_layout(tmp_path):
    np.savez(
        tmp_path / "git.npz",
        edges=np.array([[0, 1], [2, 1], [1, 1]]),
        features=np.arange(6.0).reshape(3, 2),
        target=np.array([0, 1, 0]),
    )
    graph = read_gnn_npz(tmp_path / "git.npz")
    assert graph.edge_index.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert graph.x.toarray().tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "'labels'.*missing"),
        ({"labels": np.array([0, 1])}, "differ in their number of nodes"),
        ({"labels": np.array([{}, 1, 2, 3], dtype=object)}, "'labels'.*pickled"),
        ({"adj_matrix.indices": np.array([1, 0, 9, 3])}, "'adj_matrix'.*damaged"),
    ],
)
def test_npz_errors_name_file_and_member(archive, changes, message):
    with pytest.raises(DataError, match=f"toy.npz.*{message}"):
        read_gnn_npz(archive(**changes))


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(DataError, match=r"text\.npz"):
        read_gnn_npz(tmp_path / "text.npz")


def test_planetoid_puts_test_rows_in_their_place(planetoid):
    graph = read_planetoid(planetoid, "toy")
    assert graph.x.toarray().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [7, 0, 7]]
    assert graph.y.tolist() == [0, 1, 1, -1, 0]
    assert graph.edge_index.T.tolist() == [[0, 1], [0, 4], [1, 0], [4, 0]]
    assert graph.splits["test"].tolist() == [4]
    data = graph.to_pyg()
    assert data.train_mask.tolist() == [True, True, False, False, False]


def test_planetoid_refuses_code_in_pickles(planetoid, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "went-off"),)

    with open(planetoid / "ind.toy.graph", "wb") as file:
        pickle.dump(Bomb(), file)
    with pytest.raises(DataError, match=r"ind\.toy\.graph.*mkdir is not allowed"):
        read_planetoid(planetoid, "toy")
    assert not (tmp_path / "went-off").exists()


def test_planetoid_errors_name_the_file(planetoid):
    shutil.copy(planetoid / "ind.toy.y", planetoid / "ind.toy.ty")
    with pytest.raises(DataError, match=r"ind\.toy\.ty.*got 2.*expected 1 rows"):
        read_planetoid(planetoid, "toy")
    (planetoid / "ind.toy.ty").unlink()
    with pytest.raises(DataError, match=r"ind\.toy\.ty.*missing"):
        read_planetoid(planetoid, "toy")


def test_planetoid_test_nodes_are_whole_numbers(planetoid):
    (planetoid / "ind.toy.test.index").write_text("4\nfour\n")
    with pytest.raises(DataError, match=r"ind\.toy\.test\.index, row 2: not a node.*'four'"):
        read_planetoid(planetoid, "toy")
    (planetoid / "ind.toy.test.index").write_text("2\n")
    with pytest.raises(DataError, match="'1 nodes from 2'; expected 1 nodes from 3 on"):
        read_planetoid(planetoid, "toy")


def test_simple_edges_of_nothing():
    assert simple_edges(np.empty((2, 0), dtype=np.int64), 3).shape == (2, 0)


def test_cora_and_citeseer_agree_with_pyg(real_data):
    from torch_geometric.io import read_planetoid_data

    for name, nodes, edges in (("cora", 2708, 10556), ("citeseer", 3327, 9104)):
        ours = read_planetoid(real_data / "planetoid", name)
        theirs = read_planetoid_data(str(real_data / "planetoid"), name)
        assert (ours.num_nodes, ours.edge_index.shape[1]) == (nodes, edges)
        assert torch.equal(torch.from_numpy(ours.x.toarray()), theirs.x)
        order = np.lexsort(theirs.edge_index.numpy()[::-1])
        assert np.array_equal(ours.edge_index, theirs.edge_index.numpy()[:, order])
        described = ours.y >= 0
        assert np.array_equal(ours.y[described], theirs.y.numpy()[described])
        # The nodes that PyG gives class 0 although no file describes them.
        assert (~described).sum() == (15 if name == "citeseer" else 0)
        assert (ours.x[np.flatnonzero(~described)].nnz) == 0
        assert np.array_equal(ours.splits["test"], np.flatnonzero(theirs.test_mask))


def test_cora_ml_has_the_published_size(real_data):
    from torch_geometric.io.npz import parse_npz

    path = real_data / "planetoid" / "cora_ml.npz"
    graph = read_gnn_npz(path)
    assert graph.x.shape == (2995, 2879)
    assert graph.edge_index.shape == (2, 16316)
    assert len(np.unique(graph.y)) == 7
    with np.load(path) as members:
        renamed = {
            name.replace("_matrix.", "_"): members[name]
            for name in members.files
            if "matrix" in name and "edge" not in name
        }
        theirs = parse_npz({**renamed, "labels": members["labels"]})
    assert np.array_equal(graph.edge_index, theirs.edge_index.numpy())
    assert np.array_equal((graph.x > 0).toarray(), theirs.x.numpy() > 0)


def test_part_names_are_the_official_ones(real_data):
    for part in PLANETOID_PARTS:
        assert (real_data / "planetoid" / f"ind.cora.{part}").is_file()
