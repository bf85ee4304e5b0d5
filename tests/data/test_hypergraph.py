"""The three-file simplex format and lists of events: arrays, windows, pairs, every refusal."""

from __future__ import annotations

import gzip
import warnings
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from peira.data.errors import DataError
from peira.data.hypergraph import TemporalHypergraph

SIMPLICES = [(10, [2, 5, 9]), (11, [5, 2]), (11, [7]), (14, [9, 2, 5, 7]), (30, [5, 9])]


def write(folder: Path, name: str = "toy", **files: list[object]) -> Path:
    """The three files of SIMPLICES under `folder`, some of them replaced."""
    content: dict[str, list[object]] = {
        "nverts": [len(members) for _, members in SIMPLICES],
        "simplices": [node for _, members in SIMPLICES for node in members],
        "times": [time for time, _ in SIMPLICES],
    }
    content |= {key.replace("_", "-"): value for key, value in files.items()}
    for part, lines in content.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{name}-{part}.txt").write_text(text, encoding="utf-8")
    return folder / name


def as_sets(h: TemporalHypergraph) -> list[tuple[float, frozenset[int]]]:
    """Times and official ids of every simplex."""
    return [(h.times[s], frozenset(int(i) for i in h.ids[h.simplex(s)])) for s in range(len(h))]


def test_files_give_the_simplices_that_were_written(tmp_path: Path) -> None:
    h = TemporalHypergraph.from_files(write(tmp_path))
    assert as_sets(h) == [(t, frozenset(members)) for t, members in SIMPLICES]
    assert h.ids.tolist() == [2, 5, 7, 9]
    assert h.offsets.tolist() == [0, 3, 5, 6, 10, 12]
    assert h.label(3) == "9"


def test_gzip_and_labels_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    write(folder, node_labels=["2 a b", "5 e", "6 unused", "7 g", "9 i"])
    for path in folder.glob("*.txt"):
        path.with_suffix(".txt.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    h = TemporalHypergraph.from_files(folder)
    assert [h.label(i) for i in range(4)] == ["a b", "e", "g", "i"]
    assert len(h) == 5


def test_real_times_are_read(tmp_path: Path) -> None:
    h = TemporalHypergraph.from_files(write(tmp_path, times=[0.5, 1.5, 2, 2.5, 4]))
    assert h.times.tolist() == [0.5, 1.5, 2.0, 2.5, 4.0]
    assert h.cut(50) == 2.0


@pytest.mark.parametrize(
    ("files", "name", "row", "words"),
    [
        ({"times": [10, 11, 11, 14]}, "toy-times.txt", 5, "4 lines"),
        ({"times": [1, 2, 3, 4, 5, 6]}, "toy-times.txt", 6, "expected 5 lines"),
        ({"nverts": [3, 2, 1, 4, 3]}, "toy-simplices.txt", 13, "expected 13 lines"),
        ({"nverts": [3, 2, 0, 4, 3]}, "toy-nverts.txt", 3, "expected a size of at least 1"),
        ({"nverts": [3, 2, "x", 4, 2]}, "toy-nverts.txt", 3, "got 'x'; expected a whole number"),
        ({"nverts": [3, 2, "", 1, 4, 2]}, "toy-nverts.txt", 3, "expected a whole number"),
        (
            {"simplices": [2, 5, 9, 5, 2, 0, 9, 2, 5, 7, 5, 9]},
            "toy-simplices.txt",
            6,
            "got 0; expected a whole number of at least 1",
        ),
        (
            {"simplices": [2, 5, 9, 5, 2, 1.5, 9, 2, 5, 7, 5, 9]},
            "toy-simplices.txt",
            6,
            "got '1.5'",
        ),
        (
            {"simplices": [2, 5, 9, 5, 2, 10**30, 9, 2, 5, 7, 5, 9]},
            "toy-simplices.txt",
            6,
            "a whole number",
        ),
        ({"times": [10, 11, "later", 14, 30]}, "toy-times.txt", 3, "got 'later'"),
        ({"times": [10, 11, "inf", 14, 30]}, "toy-times.txt", 3, "expected a finite number"),
        ({"times": []}, "toy-times.txt", None, "empty"),
        ({"node_labels": ["2 a", "b 5"]}, "toy-node-labels.txt", 2, "got 'b 5'"),
        ({"node_labels": ["2 a", "2 b"]}, "toy-node-labels.txt", 2, "not yet labelled"),
    ],
)
def test_broken_files_are_refused_with_their_line(
    tmp_path: Path, files: dict[str, list[object]], name: str, row: int | None, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        TemporalHypergraph.from_files(write(tmp_path, **files))
    assert Path(str(caught.value.path)).name == name
    assert caught.value.row == row
    assert words in str(caught.value)


def test_missing_and_corrupt_files_are_refused(tmp_path: Path) -> None:
    stem = write(tmp_path)
    (tmp_path / "toy-times.txt").unlink()
    with pytest.raises(DataError, match=r"toy-times\.txt or toy-times\.txt\.gz"):
        TemporalHypergraph.from_files(stem)
    whole = gzip.compress(b"10\n11\n11\n14\n30\n" * 1000)
    (tmp_path / "toy-times.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        TemporalHypergraph.from_files(stem)


def test_large_simplices_are_refused_or_dropped(tmp_path: Path) -> None:
    stem = write(tmp_path)
    with pytest.raises(DataError, match="got 4; expected at most 3 nodes") as caught:
        TemporalHypergraph.from_files(stem, max_size=3)
    assert caught.value.row == 4
    with pytest.warns(UserWarning, match="left out 1 simplices of more than 3"):
        h = TemporalHypergraph.from_files(stem, max_size=3, large="drop")
    assert as_sets(h) == [(t, frozenset(m)) for t, m in SIMPLICES if len(m) <= 3]


def test_a_node_listed_twice_counts_once_and_warns(tmp_path: Path) -> None:
    stem = write(tmp_path, simplices=[2, 5, 2, 5, 2, 7, 9, 2, 5, 7, 5, 5])
    with pytest.warns(UserWarning, match=r"2 nodes are listed twice.*line 3"):
        h = TemporalHypergraph.from_files(stem)
    assert h.sizes.tolist() == [2, 2, 1, 4, 1]
    assert as_sets(h)[0] == (10, frozenset({2, 5}))
    assert h.incidence.max() == 1


def test_clean_files_do_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TemporalHypergraph.from_files(write(tmp_path))


def test_events_take_any_members() -> None:
    h = TemporalHypergraph.from_events([(3, ["z", "a"]), (1, ["a", "b", "a2"])])
    assert [h.label(i) for i in range(h.num_nodes)] == ["z", "a", "b", "a2"]
    numbers = TemporalHypergraph.from_events([(0, [10, 3]), (1, [7, 3])])
    assert [numbers.label(i) for i in range(3)] == ["3", "7", "10"]
    assert numbers.nodes.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("events", "row"),
    [
        ([], None),
        ([(0, ["a"]), (1, [])], 2),
        ([(0, ["a"]), (float("nan"), ["a"])], 2),
        ([(0, ["a"]), ("noon", ["a"])], 2),
        ([(0, list(range(26)))], 1),
    ],
)
def test_broken_events_are_refused(events: list[tuple[float, list[str]]], row: int | None) -> None:
    with pytest.raises(DataError) as caught:
        TemporalHypergraph.from_events(events)
    assert caught.value.row == row


def test_projection_counts_simplices_per_pair() -> None:
    h = TemporalHypergraph.from_events(SIMPLICES)
    pairs = Counter(pair for _, members in SIMPLICES for pair in combinations(sorted(members), 2))
    dense = np.zeros((4, 4), dtype=int)
    number = {2: 0, 5: 1, 7: 2, 9: 3}
    for (a, b), times in pairs.items():
        dense[number[a], number[b]] = dense[number[b], number[a]] = times
    assert (h.projection.toarray() == dense).all()
    by_incidence = (h.incidence @ h.incidence.T).toarray()
    np.fill_diagonal(by_incidence, 0)
    assert (by_incidence == dense).all()


def test_distinct_simplices_with_their_repeats() -> None:
    h = TemporalHypergraph.from_events([(0, "ab"), (1, "cba"), (2, "ba"), (3, "ac"), (9, "abc")])
    sizes, nodes, counts = h.distinct
    assert sizes.tolist() == [2, 2, 3]
    assert nodes.tolist() == [0, 1, 0, 2, 0, 1, 2]
    assert counts.tolist() == [2, 1, 2]


def test_pairs_come_in_time_order() -> None:
    events = [(5, [1, 2, 3]), (2, [4, 1]), (9, [2]), (2, [3, 2]), (5, [2, 1])]
    h = TemporalHypergraph.from_events(events)
    source, destination, time = h.projected_edges()
    assert list(zip(source.tolist(), destination.tolist(), time.tolist(), strict=True)) == [
        (0, 3, 2), (1, 2, 2), (0, 1, 5), (0, 2, 5), (1, 2, 5), (0, 1, 5),
    ]  # fmt: skip
    alone = TemporalHypergraph.from_events([(0, [1]), (1, [2])])
    assert [len(part) for part in alone.projected_edges()] == [0, 0, 0]


def test_the_cut_is_a_percentile_of_times_and_keeps_ties_together() -> None:
    h = TemporalHypergraph.from_events([(t, ["a", "b"]) for t in (1, 2, 2, 2, 3)])
    assert h.cut(50) == 2
    old, new = h.split(50)
    assert (len(old), len(new)) == (4, 1)
    # 60% of 0, 1, 3 lies at 1.4 -> 1; 75% at 2.0; 62.5% at 1.5 -> 2, rounded half to even.
    h = TemporalHypergraph.from_events([(t, ["a"]) for t in (0, 1, 3)])
    assert [h.cut(p) for p in (60, 62.5, 75)] == [1, 2, 2]


def test_windows_of_a_double_split() -> None:
    h = TemporalHypergraph.from_events([(t, ["a", "b"]) for t in range(11)])
    old, new = h.split(60, 80)
    assert old.times.tolist() == list(range(7))
    assert new.times.tolist() == [7, 8]


def test_splits_that_cannot_be_are_refused() -> None:
    same = TemporalHypergraph.from_events([(4, ["a", "b"]), (4, ["b", "c"])])
    with pytest.raises(DataError, match="at least two different times"):
        same.split(80)
    h = TemporalHypergraph.from_events([(0, ["a"]), (1, ["a"])])
    with pytest.raises(DataError, match="above 0 and at most 100"):
        h.split(0)
    with pytest.raises(DataError, match="one side of the split"):
        h.split(100)


@pytest.mark.parametrize(
    ("name", "nodes", "simplices", "size"),
    [
        ("email-Enron", 143, 10_883, 18),
        ("contact-primary-school", 242, 106_879, 5),
        ("contact-high-school", 327, 172_035, 5),
        ("NDC-classes", 1_161, 49_724, 24),
    ],
)
def test_real_data_have_their_published_sizes(
    real_data: Path, name: str, nodes: int, simplices: int, size: int
) -> None:
    h = TemporalHypergraph.from_files(real_data / "scholp" / name)
    assert (h.num_nodes, len(h), h.sizes.max()) == (nodes, simplices, size)
    pairs = h.projected_edges()[0]
    assert len(pairs) == (h.sizes * (h.sizes - 1) // 2).sum() == h.projection.sum() // 2
