"""Time-stamped groups of nodes: the three-file simplex format and lists of events."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num
from scipy import sparse

from peira.data.errors import DataError

MAX_SIZE = 25
"""Largest simplex that is read unless the caller says otherwise (Benson et al. 2018 keep 25)."""


@dataclass(frozen=True, eq=False, repr=False)
class TemporalHypergraph:
    """A sequence of simplices (sets of nodes), each with a time.

    Simplex `s` holds the nodes `nodes[offsets[s]:offsets[s + 1]]`, each once, and happened at
    `times[s]`. Nodes are numbered 0..n-1 in the order of their official ids.

    Attributes:
        sizes: number of nodes of each simplex.
        nodes: node numbers of all simplices, one simplex after the other.
        times: time of each simplex, in the unit of the source; in the order of the source.
        ids: official id of each node number (ascending).
        labels: name of each node number, or None where the source has no names.
        name: what to call this data set in messages.
    """

    sizes: Int[np.ndarray, " simplices"]
    nodes: Int[np.ndarray, " incidences"]
    times: Num[np.ndarray, " simplices"]
    ids: Int[np.ndarray, " n"]
    labels: tuple[str, ...] | None = None
    name: str = "hypergraph"

    @classmethod
    def from_files(
        cls,
        stem: str | Path,
        *,
        max_size: int = MAX_SIZE,
        large: Literal["refuse", "drop"] = "refuse",
    ) -> Self:
        """Read `STEM-nverts`, `STEM-simplices`, `STEM-times` (and `STEM-node-labels` if there).

        The files end in .txt or .txt.gz and hold one number per line: the size of each simplex,
        the node ids (from 1) of all simplices in turn, the time of each simplex. A node-labels
        line is an id, a space and the label.

        Args:
            stem: path up to the hyphen, `data/email-Enron/email-Enron`; a folder `data/email-Enron`
                stands for the stem of its own name inside it.
            max_size: largest simplex that is accepted. Triples grow with its cube.
            large: whether larger simplices are refused or left out (the paper leaves them out).

        Raises:
            DataError: naming file, line, value and what was expected, if a file is missing or
                unreadable, lengths disagree, an id is below 1, or a simplex is empty or too large.
        """
        stem = _resolve_stem(Path(stem))
        sizes_path = _find(stem, "nverts")
        nodes_path = _find(stem, "simplices")
        times_path = _find(stem, "times")
        sizes = _read_whole_numbers(sizes_path)
        official = _read_whole_numbers(nodes_path)
        times = _read_times(times_path)
        _check_lengths(sizes, official, times, sizes_path, nodes_path, times_path)
        low = np.flatnonzero(official < 1)
        if low.size:
            raise DataError(
                "a node id is too small",
                path=nodes_path,
                row=int(low[0]) + 1,
                value=int(official[low[0]]),
                expected="a whole number of at least 1",
            )
        sizes, official, times = _limit_size(
            sizes, official, times, max_size, large, path=sizes_path
        )
        sizes, official = _without_repeats(sizes, official, where=str(nodes_path))
        ids, nodes = np.unique(official, return_inverse=True)
        labels_path = _look_for(stem, "node-labels")
        labels = None if labels_path is None else _read_labels(labels_path, ids)
        return cls(sizes, nodes.astype(np.int64), times, ids, labels, stem.name)

    @classmethod
    def from_events(
        cls,
        events: Iterable[tuple[float, Iterable[Hashable]]],
        *,
        max_size: int = MAX_SIZE,
        large: Literal["refuse", "drop"] = "refuse",
        name: str = "events",
    ) -> Self:
        """Build from (time, members) pairs; members are anything hashable.

        Whole-number members keep their numeric order, others are numbered as they appear.

        Raises:
            DataError: naming the event (counted from 1), if there are none, a time is not finite,
                or an event has no members or more than `max_size`.
        """
        pairs = [(time, list(members)) for time, members in events]
        if not pairs:
            raise DataError("there are no events", expected="at least one (time, members) pair")
        times = _event_times([time for time, _ in pairs])
        for row, (_, members) in enumerate(pairs, start=1):
            if not members:
                raise DataError("an event has no members", row=row, expected="at least one node")
        sizes = np.array([len(members) for _, members in pairs], dtype=np.int64)
        members = [member for _, group in pairs for member in group]
        number, labels = _number_members(members)
        nodes = np.array([number[member] for member in members], dtype=np.int64)
        sizes, nodes, times = _limit_size(sizes, nodes, times, max_size, large, path=None)
        sizes, nodes = _without_repeats(sizes, nodes, where=name)
        ids = np.arange(1, len(labels) + 1)
        return cls(sizes, nodes, times, ids, labels, name)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, nodes={self.num_nodes}, simplices={len(self)})"
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_nodes(self) -> int:
        """Number of node numbers, whether or not they occur in this window."""
        return len(self.ids)

    @cached_property
    def offsets(self) -> Int[np.ndarray, " simplices+1"]:
        """Start of each simplex in `nodes`, with the total at the end."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @cached_property
    def present(self) -> Int[np.ndarray, " nodes_present"]:
        """Node numbers that occur in at least one simplex of this window, ascending."""
        return np.unique(self.nodes)

    @cached_property
    def incidence(self) -> sparse.csr_array:
        """Binary matrix A, nodes x simplices: A[i, s] = 1 where node i is in simplex s."""
        columns = np.repeat(np.arange(len(self)), self.sizes)
        ones = np.ones(len(self.nodes), dtype=np.int64)
        shape = (self.num_nodes, len(self))
        return sparse.csr_array((ones, (self.nodes, columns)), shape=shape)

    @cached_property
    def distinct(
        self,
    ) -> tuple[
        Int[np.ndarray, " distinct"], Int[np.ndarray, " members"], Int[np.ndarray, " distinct"]
    ]:
        """Each set of nodes once: sizes, nodes (ascending in each set), number of occurrences.

        Sets are ordered by size, then by their nodes.
        """
        sizes, nodes, counts = [], [], []
        for size in np.unique(self.sizes):
            starts = self.offsets[:-1][self.sizes == size]
            members = np.sort(self.nodes[starts[:, None] + np.arange(size)], axis=1)
            members = members[np.lexsort(members.T[::-1])]
            first = np.ones(len(members), dtype=bool)
            first[1:] = (members[1:] != members[:-1]).any(axis=1)
            where = np.flatnonzero(first)
            sizes.append(np.full(len(where), size))
            nodes.append(members[where].ravel())
            counts.append(np.diff(np.append(where, len(members))))
        if not sizes:
            empty = np.empty(0, dtype=np.int64)
            return empty, empty, empty
        return np.concatenate(sizes), np.concatenate(nodes), np.concatenate(counts)

    @cached_property
    def projection(self) -> sparse.csr_array:
        """Weights W = A Aᵀ without its diagonal: W[i, j] = number of simplices with both."""
        sizes, nodes, counts = self.distinct
        columns = np.repeat(np.arange(len(sizes)), sizes)
        shape = (self.num_nodes, len(sizes))
        once = sparse.csr_array((np.ones_like(nodes), (nodes, columns)), shape=shape)
        times = sparse.csr_array((np.repeat(counts, sizes), (nodes, columns)), shape=shape)
        weights = sparse.csr_array(once @ times.T)
        weights.setdiag(0)
        weights.eliminate_zeros()
        weights.sort_indices()
        return weights

    def simplex(self, index: int) -> Int[np.ndarray, " size"]:
        """Node numbers of one simplex."""
        return self.nodes[self.offsets[index] : self.offsets[index + 1]]

    def label(self, node: int) -> str:
        """Name of a node number, or its official id where there are no names."""
        return str(self.ids[node]) if self.labels is None else self.labels[node]

    def select(self, keep: np.ndarray[Any, Any]) -> Self:
        """The simplices where the boolean mask `keep` is true, with the same node numbers."""
        nodes = self.nodes[np.repeat(keep, self.sizes)]
        return type(self)(
            self.sizes[keep], nodes, self.times[keep], self.ids, self.labels, self.name
        )

    def until(self, time: float) -> Self:
        """The simplices at or before `time`."""
        return self.select(self.times <= time)

    def cut(self, percent: float) -> float:
        """Time below or at which `percent` of the timestamps lie (linear interpolation).

        It is a percentile of the times and not of the rows, so simplices of one time stay
        together. Whole-number times give a whole-number cut (rounded half to even).

        Raises:
            DataError: if all times are equal.
        """
        if not 0 < percent <= 100:
            raise DataError(
                "the split is out of range", value=percent, expected="above 0 and at most 100"
            )
        if len(self) == 0 or self.times.min() == self.times.max():
            raise DataError(
                f"{self.name} cannot be split in time",
                value=None if len(self) == 0 else self.times[0].item(),
                expected="at least two different times",
            )
        cut = float(np.percentile(self.times, percent))
        return float(np.rint(cut)) if np.issubdtype(self.times.dtype, np.integer) else cut

    def split(self, percent: float = 80, until: float = 100) -> tuple[Self, Self]:
        """Old simplices (time <= cut(percent)) and new ones (up to cut(until)).

        Raises:
            DataError: if all times are equal or either side of the split is empty.
        """
        first = self.cut(percent)
        old = self.times <= first
        new = ~old if until == 100 else ~old & (self.times <= self.cut(until))
        if not old.any() or not new.any():
            raise DataError(
                f"{self.name} has no simplex on one side of the split",
                value=first,
                expected="simplices before and after the split time",
            )
        return self.select(old), self.select(new)

    def projected_edges(
        self,
    ) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Num[np.ndarray, " pairs"]]:
        """All pairs of nodes of every simplex as (source, destination, time), in time order.

        Source < destination (node numbers); a pair occurs once per simplex that holds it. Events
        of one time keep the order of the simplices.
        """
        order = np.argsort(self.times, kind="stable")
        starts, sizes = self.offsets[:-1][order], self.sizes[order]
        sources, destinations, positions = [], [], []
        for size in np.unique(sizes[sizes > 1]):
            rows = np.flatnonzero(sizes == size)
            members = np.sort(self.nodes[starts[rows, None] + np.arange(size)], axis=1)
            first, second = np.triu_indices(size, k=1)
            sources.append(members[:, first].ravel())
            destinations.append(members[:, second].ravel())
            positions.append(np.repeat(rows, len(first)))
        if not sources:
            empty = np.empty(0, dtype=np.int64)
            return empty, empty.copy(), np.empty(0, dtype=self.times.dtype)
        position = np.concatenate(positions)
        in_time = np.argsort(position, kind="stable")
        return (
            np.concatenate(sources)[in_time],
            np.concatenate(destinations)[in_time],
            self.times[order][position[in_time]],
        )


def _resolve_stem(stem: Path) -> Path:
    return stem / stem.name if stem.is_dir() else stem


def _look_for(stem: Path, part: str) -> Path | None:
    paths = [stem.with_name(f"{stem.name}-{part}{ending}") for ending in (".txt", ".txt.gz")]
    return next((path for path in paths if path.is_file()), None)


def _find(stem: Path, part: str) -> Path:
    path = _look_for(stem, part)
    if path is None:
        raise DataError(
            "a file of the data set is missing",
            path=stem.with_name(f"{stem.name}-{part}.txt"),
            expected=f"{stem.name}-{part}.txt or {stem.name}-{part}.txt.gz",
        )
    return path


def _read_whole_numbers(path: Path) -> Int[np.ndarray, " lines"]:
    try:
        # Text such as "inf" is cast before pandas refuses it.
        with np.errstate(invalid="ignore"):
            table = pd.read_csv(path, header=None, dtype=np.int64, skip_blank_lines=False)
    except (ValueError, OverflowError, OSError, EOFError, zlib.error):
        table = None
    if table is not None and table.shape[1] == 1:
        return table[0].to_numpy()
    return np.array(_parse_lines(path, int, "a whole number"), dtype=np.int64)


def _read_times(path: Path) -> Num[np.ndarray, " lines"]:
    try:
        return _read_whole_numbers(path)
    except DataError:
        return _read_real_times(path)


def _read_real_times(path: Path) -> Float[np.ndarray, " lines"]:
    times = np.array(_parse_lines(path, float, "a number"), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if bad.size:
        raise DataError(
            "a time is not finite",
            path=path,
            row=int(bad[0]) + 1,
            value=times[bad[0]].item(),
            expected="a finite number",
        )
    return times


def _lines(path: Path) -> list[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read ({error})", path=path) from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _parse_lines(path: Path, number: type[int] | type[float], expected: str) -> list[float]:
    lines = _lines(path)
    if not lines:
        raise DataError("the file is empty", path=path, expected=f"{expected} on each line")
    values = []
    for row, line in enumerate(lines, start=1):
        try:
            value = number(line)
            if number is int and not -(2**63) <= value < 2**63:
                raise ValueError(line)
        except ValueError as error:
            raise DataError(
                "a line cannot be read", path=path, row=row, value=line, expected=expected
            ) from error
        values.append(value)
    return values


def _check_lengths(
    sizes: np.ndarray[Any, Any],
    official: np.ndarray[Any, Any],
    times: np.ndarray[Any, Any],
    sizes_path: Path,
    nodes_path: Path,
    times_path: Path,
) -> None:
    low = np.flatnonzero(sizes < 1)
    if low.size:
        raise DataError(
            "a simplex has no nodes",
            path=sizes_path,
            row=int(low[0]) + 1,
            value=int(sizes[low[0]]),
            expected="a size of at least 1",
        )
    if len(times) != len(sizes):
        raise DataError(
            "the number of times differs from the number of simplices",
            path=times_path,
            row=min(len(times), len(sizes)) + 1,
            value=f"{len(times)} lines",
            expected=f"{len(sizes)} lines, as in {sizes_path.name}",
        )
    if len(official) != sizes.sum():
        raise DataError(
            "the number of node ids differs from the sum of the sizes",
            path=nodes_path,
            row=min(len(official), int(sizes.sum())) + 1,
            value=f"{len(official)} lines",
            expected=f"{int(sizes.sum())} lines, the sum of {sizes_path.name}",
        )


def _limit_size(
    sizes: np.ndarray[Any, Any],
    nodes: np.ndarray[Any, Any],
    times: np.ndarray[Any, Any],
    max_size: int,
    large: Literal["refuse", "drop"],
    path: Path | None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    over = np.flatnonzero(sizes > max_size)
    if over.size == 0:
        return sizes, nodes, times
    if large == "refuse":
        raise DataError(
            "a simplex is too large to count all its triples",
            path=path,
            row=int(over[0]) + 1,
            value=int(sizes[over[0]]),
            expected=f"at most {max_size} nodes (drop larger ones with large='drop', "
            "or raise max_size)",
        )
    keep = sizes <= max_size
    warnings.warn(
        f"left out {over.size:,} simplices of more than {max_size} nodes", UserWarning, stacklevel=3
    )
    return sizes[keep], nodes[np.repeat(keep, sizes)], times[keep]


def _without_repeats(
    sizes: np.ndarray[Any, Any], nodes: np.ndarray[Any, Any], where: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    simplex = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((nodes, simplex))
    repeat = np.zeros(len(nodes), dtype=bool)
    same_simplex = simplex[order][1:] == simplex[order][:-1]
    repeat[order[1:]] = same_simplex & (nodes[order][1:] == nodes[order][:-1])
    if not repeat.any():
        return sizes, nodes
    first = int(np.flatnonzero(repeat)[0])
    warnings.warn(
        f"{where}: {int(repeat.sum()):,} nodes are listed twice in one simplex (first on line "
        f"{first + 1}); each is counted once",
        UserWarning,
        stacklevel=3,
    )
    return np.bincount(simplex[~repeat], minlength=len(sizes)), nodes[~repeat]


def _read_labels(path: Path, ids: np.ndarray[Any, Any]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for row, line in enumerate(_lines(path), start=1):
        identifier, _, name = line.partition(" ")
        if not identifier.isdecimal() or int(identifier) < 1 or int(identifier) in names:
            raise DataError(
                "a label line does not start with a new node id",
                path=path,
                row=row,
                value=line,
                expected="an id of at least 1 that is not yet labelled, a space, the label",
            )
        names[int(identifier)] = name.strip()
    return tuple(names.get(identifier, str(identifier)) for identifier in ids.tolist())


def _event_times(times: Sequence[float]) -> Num[np.ndarray, " simplices"]:
    for row, time in enumerate(times, start=1):
        is_number = isinstance(time, (int, float, np.integer, np.floating))
        if not is_number or not math.isfinite(time):
            raise DataError(
                "an event's time is not a number", row=row, value=time, expected="a finite number"
            )
    return np.array(times)


def _number_members(members: Sequence[Hashable]) -> tuple[dict[Hashable, int], tuple[str, ...]]:
    distinct = list(dict.fromkeys(members))
    whole = [member for member in distinct if isinstance(member, int | np.integer)]
    if len(whole) == len(distinct):
        distinct = [*sorted(whole)]
    number = {member: index for index, member in enumerate(distinct)}
    return number, tuple(str(member) for member in distinct)
