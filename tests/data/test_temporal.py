"""Temporal edge lists: official formats, PyTorch Geometric, and what is said about bad files."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from peira.data import DataError
from peira.data.temporal import (
    TemporalEdges,
    lookup,
    read_edge_table,
    read_jodie,
    read_processed,
    read_snap,
    read_temporal,
)

JODIE = "user_id,item_id,timestamp,state_label,comma_separated_list_of_features\n"


def put(path, text):
    path.write_text(text)
    return path


def test_jodie_is_bipartite_with_items_after_users(tmp_path):
    path = put(tmp_path / "w.csv", JODIE + "0,0,0.0,0,0.5,1\n2,0,36.0,1,0.25,2\n0,1,77.0,0,0,3\n")
    edges = read_temporal(path)
    assert edges.src.tolist() == [0, 1, 0] and edges.dst.tolist() == [2, 2, 3]
    assert edges.nodes.tolist() == ["u0", "u2", "i0", "i1"]
    assert edges.msg.tolist() == [[0.5, 1], [0.25, 2], [0, 3]]
    assert edges.y.tolist() == [0, 1, 0] and edges.t.tolist() == [0, 36, 77]
    assert edges.x.shape == (4, 0)


def test_snap_keeps_gaps_as_names_and_sorts_or_refuses(tmp_path):
    path = tmp_path / "net.txt.gz"
    path.write_bytes(gzip.compress(b"# a comment\n7 100 5\n0 7 3\n100 0 3\n"))
    edges = read_temporal(path)
    assert edges.nodes.tolist() == [0, 7, 100]
    assert edges.t.tolist() == [3, 3, 5]
    assert edges.nodes[edges.src].tolist() == [0, 100, 7]
    with pytest.raises(DataError, match=r"row 3, column 't'.*not in order of time; got 3.0"):
        read_snap(path, unsorted="refuse")


def test_snap_header_of_names_is_skipped(tmp_path):
    edges = read_temporal(put(tmp_path / "a.txt", "src dst time\n1 2 10\n2 3 11\n"))
    assert len(edges) == 2 and edges.num_nodes == 3


def test_table_with_names_and_features(tmp_path):
    path = put(
        tmp_path / "calls.csv", "time,source,target,length,what\n2,ann,bob,1.5,x\n1,bob,eve,2,y\n"
    )
    edges = read_temporal(path)
    assert edges.nodes.tolist() == ["ann", "bob", "eve"] and edges.msg.shape == (2, 0)
    assert edges.src.tolist() == [1, 0]
    assert read_edge_table(path, features=["length"]).msg.tolist() == [[2.0], [1.5]]


def processed(folder, rows="1,2,0,0,1\n3,2,5,1,2\n", edge_rows=3, node_rows=4):
    path = put(folder / "ml_toy.csv", ",u,i,ts,label,idx\n" + "".join(
        f"{i},{line}\n" for i, line in enumerate(rows.splitlines())))  # fmt: skip
    np.save(folder / "ml_toy.npy", np.arange(2.0 * edge_rows).reshape(edge_rows, 2))
    np.save(folder / "ml_toy_node.npy", np.arange(3.0 * node_rows).reshape(node_rows, 3))
    return path


def test_processed_triple_drops_the_padding_rows(tmp_path):
    edges = read_temporal(processed(tmp_path))
    assert edges.src.tolist() == [0, 2] and edges.dst.tolist() == [1, 1]
    assert edges.msg.tolist() == [[2, 3], [4, 5]]
    assert edges.x.tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert edges.nodes.tolist() == [1, 2, 3]


def test_processed_ids_with_gaps_are_renumbered_on_demand(tmp_path):
    path = processed(tmp_path, "1,2,0,0,1\n5,2,5,1,2\n", node_rows=6)
    with pytest.raises(DataError, match=r"gaps: 3 never occurs.*remap=True"):
        read_processed(path)
    edges = read_processed(path, remap=True)
    assert edges.nodes.tolist() == [1, 2, 5] and edges.x[2].tolist() == [15, 16, 17]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "0,2,0,0,1\n1,2,5,1,2\n"}, r"row 2, column 'u'.*got 0.0.*0 is padding"),
        ({"rows": "1,2,9,0,1\n3,2,5,1,2\n"}, r"row 3, column 't'.*not in order"),
        ({"rows": "1,2,0,0,1\n3,2,5,1,9\n"}, r"row 3, column 'idx'.*got 9.*1 to 2"),
        ({"edge_rows": 5}, r"ml_toy.npy: wrong number of feature rows; got 5; expected 3"),
        ({"node_rows": 3}, r"ml_toy_node.npy: wrong number of feature rows; got 3; expected 4"),
        ({"rows": "1,2,0,0,1\n3,2,-5,1,2\n"}, r"row 3, column 't'.*wrong time; got -5.0"),
        ({"rows": "1,two,0,0,1\n"}, r"row 2, column 'i'.*got 'two'"),
    ],
)
def test_bad_processed_triples(tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        read_processed(processed(tmp_path, **settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (JODIE + "0,0,0,0\n1,x,3,0\n", r"row 3, column 2.*got 'x'; expected a number"),
        (JODIE + "0,0,0,0\n1,-1,3,0\n", r"row 3, column 'item_id'.*got -1.0"),
        (JODIE + "0,0,0,0\n1.5,1,3,0\n", r"row 3, column 'user_id'.*got 1.5"),
        (JODIE + "0,0,0,0\n1,1,inf,0\n", r"row 3, column 't'.*got inf"),
        (JODIE + "0,0,0,0,1\n1,1,3,0\n", r"row 3, column 5.*short row"),
        (JODIE + "0,0,0,0\n\n1,1,3,0\n", r"row 3.*empty or short row"),
        (JODIE + "0,0,0\n", r"row 2.*too few columns; got 3"),
        (JODIE, "no events"),
    ],
)
def test_bad_jodie_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_jodie(put(tmp_path / "bad.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n1 b 4\n", r"row 2, column 2.*got 'b'"),
        ("1 2 3\n1 2\n", r"row 2, column 3.*short row"),
        ("1 2 3\n1 2 -4\n", r"row 2, column 't'.*got -4.0"),
        ("# only words\n", "no events"),
        ("", "no events"),
    ],
)
def test_bad_snap_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_snap(put(tmp_path / "bad.txt", text))


def test_missing_columns_and_files_are_named(tmp_path):
    table = put(tmp_path / "t.csv", "src,dst,when\n1,2,3\n")
    with pytest.raises(DataError, match=r"no such column.*expected one of src, dst, when"):
        read_edge_table(table)
    assert len(read_edge_table(table, time="when")) == 1
    with pytest.raises(DataError, match="no such file"):
        read_temporal(tmp_path / "nothing.csv")
    (tmp_path / "ml_a.csv").write_text("u,i,ts,label,idx\n1,2,0,0,1\n")
    with pytest.raises(DataError, match=r"ml_a.npy: no such file.*three files"):
        read_processed(tmp_path / "ml_a.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"src": np.array([0, 3])},
            r"row 2, column 'src'.*got 3; expected a node number from 0 to 2",
        ),
        ({"t": np.array([2.0, 1.0])}, r"row 2.*not in order"),
        ({"t": np.array([np.nan, 1.0])}, r"row 1.*wrong time"),
        ({"msg": np.zeros((3, 1), np.float32)}, r"column 'msg'.*got 3; expected 2 values"),
        ({"x": np.zeros((2, 1), np.float32)}, r"one row per node; got 2; expected 3 rows"),
    ],
)
def test_inconsistent_streams_are_refused(change, message):
    good = {
        "src": np.array([0, 1]), "dst": np.array([1, 2]), "t": np.array([0.0, 1.0]),
        "nodes": np.arange(3), "msg": np.zeros((2, 0), np.float32),
        "x": np.zeros((3, 0), np.float32),
    }  # fmt: skip
    assert len(TemporalEdges(**good)) == 2
    with pytest.raises(DataError, match=message):
        TemporalEdges(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src": ["a", None, "c"]}, r"row 2, column 'src': not a node; got 'nan'"),
        ({"dst": [1.0, 2.0, 2.5]}, r"row 3, column 'dst': not a node; got '2.5'"),
        ({"t": pd.date_range("2024-01-01", periods=3)}, r"column 't'.*times are no numbers"),
        ({"t": ["1", "2", "soon"]}, r"column 't'.*times are no numbers"),
        ({"w": [1.0, np.nan, 2.0]}, r"row 2, column 1: missing feature in 'msg'"),
    ],
)
def test_bad_data_frames(change, message):
    good = pd.DataFrame({"src": ["a", "b", "c"], "dst": ["d", "e", "f"], "t": [1, 2, 3]})
    assert TemporalEdges.from_frame(good).num_nodes == 6
    with pytest.raises(DataError, match=message):
        TemporalEdges.from_frame(good.assign(**change))


def test_pytorch_geometric_and_back():
    frame = pd.DataFrame({"src": [0, 2, 1], "dst": [1, 1, 0], "t": [5, 7, 7], "w": [0.5, 1.5, 2.5]})
    edges = TemporalEdges.from_frame(frame)
    data = edges.to_pyg()
    assert data.num_events == 3 and str(data.t.dtype) == "torch.int64"
    again = TemporalEdges.from_pyg(data)
    for name in ("src", "dst", "t", "msg", "nodes"):
        assert np.array_equal(getattr(again, name), getattr(edges, name))


def test_selection_and_compaction_keep_names():
    edges = TemporalEdges.from_arrays(["a", "b", "d"], ["b", "c", "a"], [1.0, 2.0, 3.0])
    late = edges.select(edges.t > 1.5)
    assert late.num_nodes == 4
    small = late.select(np.array([1])).compact()
    assert small.nodes.tolist() == ["a", "d"]
    assert small.nodes[small.src].tolist() == ["d"]


def test_lookup_finds_names_in_any_order_and_names_the_stranger():
    nodes = np.array(["b", "a", "d"])
    assert lookup(nodes, np.array(["d", "a", "b"])).tolist() == [2, 1, 0]
    assert lookup(np.array([5, 2]), np.array([2, 5, 2])).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"row 2: unknown node; got 'z'"):
        lookup(nodes, np.array(["a", "z"]))
    with pytest.raises(DataError, match=r"row 1: unknown node; got 3; expected .*'b'"):
        lookup(nodes, np.array([3]))


def test_college_messages(real_data):
    edges = read_temporal(real_data / "collegemsg" / "CollegeMsg.txt")
    assert (edges.num_nodes, len(edges)) == (1899, 59835)
    assert edges.t[0] == 1082040961
