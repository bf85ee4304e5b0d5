"""Time-stamped edge lists: JODIE, SNAP and processed ML files, tables, PyTorch Geometric."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from peira.data.errors import DataError
from peira.data.tables import read_table

if TYPE_CHECKING:
    from torch_geometric.data import TemporalData

Unsorted = Literal["sort", "refuse"]


@dataclass(frozen=True, eq=False, repr=False)
class TemporalEdges:
    """A stream of timed interactions, oldest first; equal times keep the order of the source.

    Attributes:
        src, dst: node numbers 0..num_nodes-1 of both ends of each event.
        t: time of each event, non-negative, in the unit of the source.
        nodes: the source's own name of each node number.
        msg: features of each event; width 0 where there are none.
        x: features of each node; width 0 where there are none.
        y: label of each event, or None.
        path: the file it came from, for error messages.

    Raises:
        DataError: naming event, column, value and what was expected, when lengths disagree, a time
            is missing, negative or earlier than the one before, or a node number has no node.
    """

    src: Int[np.ndarray, " events"]
    dst: Int[np.ndarray, " events"]
    t: Float[np.ndarray, " events"]
    nodes: Shaped[np.ndarray, " nodes"]
    msg: Float[np.ndarray, "events msg_features"]
    x: Float[np.ndarray, "nodes node_features"]
    y: Float[np.ndarray, " events"] | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        events = len(self.src)
        for name in ("dst", "t", "msg") + (("y",) if self.y is not None else ()):
            if len(getattr(self, name)) != events:
                raise DataError(
                    "one value per event is needed", self.path, column=name,
                    value=len(getattr(self, name)), expected=f"{events} values",
                )  # fmt: skip
        if len(self.x) != len(self.nodes):
            raise DataError(
                "node features must have one row per node", self.path, value=len(self.x),
                expected=f"{len(self.nodes)} rows",
            )  # fmt: skip
        self._check_nodes()
        self._check_times()
        for name in ("msg", "x"):
            bad = np.argwhere(~np.isfinite(getattr(self, name)))
            if bad.size:
                row, column = (int(i) for i in bad[0])
                raise DataError(
                    f"missing feature in {name!r}", self.path, row + 1, column + 1,
                    float(getattr(self, name)[row, column]), "a finite number",
                )  # fmt: skip

    def _check_nodes(self) -> None:
        for name in ("src", "dst"):
            ids = getattr(self, name)
            bad = np.flatnonzero((ids < 0) | (ids >= self.num_nodes))
            if bad.size:
                row = int(bad[0])
                raise DataError(
                    "no such node", self.path, row + 1, name, int(ids[row]),
                    f"a node number from 0 to {self.num_nodes - 1}",
                )  # fmt: skip

    def _check_times(self) -> None:
        _check_time_values(self.t, self.path, np.arange(len(self.t)) + 1)
        late = np.flatnonzero(np.diff(self.t) < 0)
        if late.size:
            row = int(late[0]) + 1
            raise DataError(
                "events are not in order of time", self.path, row + 1, "t", float(self.t[row]),
                f"at least {float(self.t[row - 1])!r}, the time of the event before",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.src)

    def __repr__(self) -> str:
        return (
            f"TemporalEdges(nodes={self.num_nodes}, events={len(self)}, "
            f"msg={self.msg.shape[1]}, x={self.x.shape[1]})"
        )

    @property
    def num_nodes(self) -> int:
        """Number of nodes, also those without an event."""
        return len(self.nodes)

    @classmethod
    def from_arrays(
        cls,
        src: Any,
        dst: Any,
        t: Any,
        *,
        msg: Any = None,
        y: Any = None,
        unsorted: Unsorted = "sort",
        path: Path | None = None,
        rows: Int[np.ndarray, " events"] | None = None,
    ) -> Self:
        """Edges whose nodes have any names; they are numbered in sorted order.

        Args:
            src, dst: names of both ends (whole numbers or text), one per event.
            t: times.
            msg: event features, `(events, features)` or None.
            y: event labels or None.
            unsorted: put events in order of time, or refuse them when they are not.
            path, rows: the file, and the line of each event in it, for error messages.
        """
        rows = np.arange(len(src)) + 1 if rows is None else rows
        times = _times(t, path)
        _check_time_values(times, path, rows)
        ends = np.concatenate([_names(src, "src", path, rows), _names(dst, "dst", path, rows)])
        names, numbers = np.unique(ends, return_inverse=True)
        features = np.zeros((len(times), 0)) if msg is None else np.asarray(msg, dtype=float)
        features = features[:, None] if features.ndim == 1 else features
        order = _time_order(times, unsorted, path, rows)
        return cls(
            src=numbers[: len(times)][order],
            dst=numbers[len(times) :][order],
            t=times[order],
            nodes=names,
            msg=features[order].astype(np.float32),
            x=np.zeros((len(names), 0), np.float32),
            y=None if y is None else np.asarray(y, dtype=float)[order],
            path=path,
        )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        src: str = "src",
        dst: str = "dst",
        time: str = "t",
        features: Sequence[str] | None = None,
        unsorted: Unsorted = "sort",
    ) -> Self:
        """Edges in a data frame; `features` None takes every other numeric column.

        Raises `DataError` for a missing column or a value that is no number.
        """
        for name in (src, dst, time, *(features or ())):
            if name not in frame:
                raise DataError(
                    "no such column", column=name, expected=f"one of {', '.join(map(str, frame))}"
                )
        if features is None:
            numeric = frame.select_dtypes("number").columns
            features = [name for name in numeric if name not in (src, dst, time)]
        return cls.from_arrays(
            frame[src].to_numpy(), frame[dst].to_numpy(), frame[time].to_numpy(),
            msg=frame[list(features)].to_numpy(dtype=float), unsorted=unsorted,
        )  # fmt: skip

    @classmethod
    def from_pyg(cls, data: TemporalData, *, num_nodes: int | None = None) -> Self:
        """From PyTorch Geometric: `src`, `dst`, `t`, and `msg`, `y` where present; ids are kept."""
        src, dst = data.src.cpu().numpy(), data.dst.cpu().numpy()
        size = num_nodes or int(max(src.max(), dst.max())) + 1
        msg = data.msg if "msg" in data else None
        return cls(
            src=src.astype(np.int64),
            dst=dst.astype(np.int64),
            t=data.t.cpu().numpy().astype(float),
            nodes=np.arange(size),
            msg=np.zeros((len(src), 0), np.float32)
            if msg is None
            else msg.cpu().numpy().reshape(len(src), -1).astype(np.float32),
            x=np.zeros((size, 0), np.float32),
            y=data.y.cpu().numpy().astype(float) if "y" in data else None,
        )

    def to_pyg(self) -> TemporalData:
        """As `torch_geometric.data.TemporalData`; whole-number times become int64, as in PyG."""
        import torch
        from torch_geometric.data import TemporalData

        whole = bool((self.t == np.round(self.t)).all())
        return TemporalData(
            src=torch.from_numpy(self.src),
            dst=torch.from_numpy(self.dst),
            t=torch.from_numpy(self.t.astype(np.int64) if whole else self.t),
            msg=torch.from_numpy(self.msg),
            **({} if self.y is None else {"y": torch.from_numpy(self.y)}),
        )

    def select(self, keep: Shaped[np.ndarray, " kept"]) -> Self:
        """The events of a mask or of ascending positions; nodes and their numbers stay."""
        return type(self)(
            self.src[keep], self.dst[keep], self.t[keep], self.nodes, self.msg[keep], self.x,
            None if self.y is None else self.y[keep], self.path,
        )  # fmt: skip

    def compact(self) -> Self:
        """The same events with only the nodes that occur in them, numbered anew."""
        used, numbers = np.unique(np.concatenate([self.src, self.dst]), return_inverse=True)
        return type(self)(
            numbers[: len(self)], numbers[len(self) :], self.t, self.nodes[used], self.msg,
            self.x[used], self.y, self.path,
        )  # fmt: skip


def lookup(
    nodes: Shaped[np.ndarray, " nodes"], names: Shaped[np.ndarray, " names"]
) -> Int[np.ndarray, " names"]:
    """Positions of `names` in `nodes`; raises `DataError` for the first one that is not there."""
    if nodes.dtype.kind in "US" and names.dtype.kind == "O":
        names = names.astype(str)
    found = np.zeros(len(names), dtype=np.int64)
    same_kind = (nodes.dtype.kind in "US") == (names.dtype.kind in "US")
    if same_kind:
        order = np.argsort(nodes, kind="stable")
        found = order[np.searchsorted(nodes[order], names).clip(max=len(nodes) - 1)]
    strange = np.flatnonzero(nodes[found] != names) if same_kind else np.arange(len(names))
    if strange.size:
        raise DataError(
            "unknown node", row=int(strange[0]) + 1, value=names[strange[0]].item(),
            expected=f"a name of the stream seen so far, such as {nodes[0].item()!r}",
        )  # fmt: skip
    return found


def _times(t: Any, path: Path | None) -> Float[np.ndarray, " events"]:
    try:
        kind = np.asarray(t).dtype.kind
        if kind in "mM":
            raise ValueError("dates")
        return np.asarray(t, dtype=float)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"times are no numbers ({error})", path, column="t",
            expected="numbers, such as seconds since the first event",
        ) from error  # fmt: skip


def _names(
    ids: Any, column: str, path: Path | None, rows: Int[np.ndarray, " events"]
) -> Shaped[np.ndarray, " events"]:
    """Node names as whole numbers or text; refuses missing ones and fractions."""
    names = np.asarray(ids)
    bad = np.flatnonzero(pd.isna(names))
    if names.dtype.kind == "f" and not bad.size:
        bad = np.flatnonzero(names != np.round(names))
    if bad.size:
        row = int(bad[0])
        raise DataError(
            "not a node", path, int(rows[row]), column, str(names[row]), "a whole number or a name"
        )
    if names.dtype.kind == "f":
        return names.astype(np.int64)
    return names.astype(str) if names.dtype == object else names


def _check_time_values(
    t: Float[np.ndarray, " events"], path: Path | None, rows: Int[np.ndarray, " events"]
) -> None:
    bad = np.flatnonzero(~np.isfinite(t) | (t < 0))
    if bad.size:
        first = int(bad[0])
        raise DataError(
            "wrong time", path, int(rows[first]), "t", float(t[first]), "a finite number, 0 or more"
        )


def _time_order(
    t: Float[np.ndarray, " events"],
    unsorted: Unsorted,
    path: Path | None,
    rows: Int[np.ndarray, " events"],
) -> Int[np.ndarray, " events"]:
    late = np.flatnonzero(np.diff(t) < 0)
    if late.size and unsorted == "refuse":
        first = int(late[0]) + 1
        raise DataError(
            "events are not in order of time", path, int(rows[first]), "t", float(t[first]),
            f"at least {float(t[first - 1])!r}, the time of the event before",
        )  # fmt: skip
    return np.argsort(t, kind="stable") if late.size else np.arange(len(t))


def read_temporal(path: str | Path, *, unsorted: Unsorted = "sort") -> TemporalEdges:
    """Read a temporal edge list in whichever of the four formats its first line shows.

    `user_id,item_id,...` is JODIE, `u,i,ts,label,idx` the processed triple, a header with
    `src`/`source`, `dst`/`target` and `t`/`time`/`timestamp`, separated by commas, semicolons or
    tabs, a table; anything else is read as SNAP.
    """
    path = _existing(path)
    first = _first_line(path).strip().lower()
    columns = [name.strip() for name in first.replace(";", ",").replace("\t", ",").split(",")]
    if columns[:2] == ["user_id", "item_id"]:
        return read_jodie(path, unsorted=unsorted)
    if {"u", "i", "ts", "idx"} <= set(columns):
        return read_processed(path)
    if len(columns) >= 3 and not first.startswith("#") and not _is_number(columns[0]):
        return read_edge_table(path, unsorted=unsorted)
    return read_snap(path, unsorted=unsorted)


def read_jodie(path: str | Path, *, unsorted: Unsorted = "sort") -> TemporalEdges:
    """Read a JODIE CSV: a header, then `user_id,item_id,timestamp,state_label,feature,...`.

    The graph is bipartite: users and items are numbered from 0 each on their own. Users come
    first, items follow; `nodes` names them `u0, u1, ..., i0, i1, ...`.

    Raises:
        DataError: naming file, line, column, value and what was expected.
    """
    path = _existing(path)
    values, rows = _read_numbers(path, skip=1, sep=",", at_least=4)
    names = ["user_id", "item_id", "timestamp", "state_label"]
    users = _whole(values[:, 0], path, rows, names[0], lowest=0)
    items = _whole(values[:, 1], path, rows, names[1], lowest=0)
    _check_time_values(values[:, 2], path, rows)
    order = _time_order(values[:, 2], unsorted, path, rows)
    used_users, user = np.unique(users, return_inverse=True)
    used_items, item = np.unique(items, return_inverse=True)
    nodes = np.array([f"u{i}" for i in used_users] + [f"i{i}" for i in used_items])
    return TemporalEdges(
        src=user[order],
        dst=item[order] + len(used_users),
        t=values[order, 2],
        nodes=nodes,
        msg=values[order, 4:].astype(np.float32),
        x=np.zeros((len(nodes), 0), np.float32),
        y=values[order, 3],
        path=path,
    )


def read_snap(path: str | Path, *, unsorted: Unsorted = "sort") -> TemporalEdges:
    """Read a SNAP temporal network: lines `src dst time`, separated by white space or commas.

    Leading lines that start with `#` or hold names instead of numbers are skipped; node ids may
    be any whole numbers. Files may end in .gz.

    Raises:
        DataError: naming file, line, column, value and what was expected.
    """
    path = _existing(path)
    skip, first = _leading_lines(path)
    values, rows = _read_numbers(path, skip=skip, sep="," if "," in first else r"\s+", at_least=3)
    src = _whole(values[:, 0], path, rows, "src", lowest=0)
    dst = _whole(values[:, 1], path, rows, "dst", lowest=0)
    msg = values[:, 3:] if values.shape[1] > 3 else None
    return TemporalEdges.from_arrays(
        src, dst, values[:, 2], msg=msg, unsorted=unsorted, path=path, rows=rows
    )


def read_edge_table(
    path: str | Path,
    *,
    src: str | None = None,
    dst: str | None = None,
    time: str | None = None,
    features: Sequence[str] | None = None,
    unsorted: Unsorted = "sort",
) -> TemporalEdges:
    """Read a CSV or TSV with a header; nodes may have any names.

    Args:
        path: the file.
        src, dst, time: its column names; None looks for the usual ones.
        features: numeric columns that describe the event; None takes none.
        unsorted: put events in order of time, or refuse them when they are not.
    """
    path = _existing(path)
    header = list(read_table(path).columns)
    ends = [
        _column(given, usual, header, path)
        for given, usual in (
            (src, ("src", "source", "from", "u", "user")),
            (dst, ("dst", "target", "to", "destination", "i", "v", "item")),
            (time, ("t", "time", "timestamp", "ts", "unixtime")),
        )
    ]
    kinds: dict[str, Literal["str", "float"]] = {ends[0]: "str", ends[1]: "str", ends[2]: "float"}
    kinds |= dict.fromkeys(features or (), "float")
    frame = read_table(path, columns=kinds)
    for name in features or ():
        empty = np.flatnonzero(frame[name].isna())
        if empty.size:
            raise DataError("empty cell", path, int(empty[0]) + 2, name, expected="a number")
    return TemporalEdges.from_arrays(
        frame[ends[0]].to_numpy(dtype=str), frame[ends[1]].to_numpy(dtype=str), frame[ends[2]],
        msg=frame[list(features)] if features else None, unsorted=unsorted, path=path,
        rows=np.arange(len(frame)) + 2,
    )  # fmt: skip


def read_processed(path: str | Path, *, remap: bool = False) -> TemporalEdges:
    """Read `ml_NAME.csv` (`u,i,ts,label,idx`) with `ml_NAME.npy` and `ml_NAME_node.npy` beside it.

    Node ids and `idx` count from 1; row 0 of both feature files is padding and left out.

    Args:
        path: the CSV file.
        remap: accept node ids with gaps and number the nodes anew (their ids stay in `nodes`).

    Raises:
        DataError: id 0 used as a node, ids with gaps, events out of order, feature files whose
            number of rows does not fit, or a value that is no number.
    """
    path = _existing(path)
    frame = read_table(
        path, columns={"u": "int", "i": "int", "ts": "float", "label": "float", "idx": "int"}
    )
    rows = np.arange(len(frame)) + 2
    _check_time_values(frame["ts"].to_numpy(), path, rows)
    _time_order(frame["ts"].to_numpy(), "refuse", path, rows)
    edge_features = _features(path.with_suffix(".npy"))
    node_features = _features(path.with_name(path.stem + "_node.npy"))
    ends = {name: _whole(frame[name].to_numpy(), path, rows, name, lowest=1) for name in "ui"}
    index = _whole(frame["idx"].to_numpy(), path, rows, "idx", lowest=1)
    _check_rows(edge_features, len(frame) + 1, path.with_suffix(".npy"), "events + 1 (padding)")
    beyond = np.flatnonzero(index > len(frame))
    if beyond.size:
        row = int(beyond[0])
        raise DataError(
            "event index without features", path, row + 2, "idx", int(index[row]),
            f"1 to {len(frame)}",
        )  # fmt: skip
    used = np.unique(np.concatenate([ends["u"], ends["i"]]))
    highest = int(used[-1])
    if len(used) != highest and not remap:
        missing = int(np.setdiff1d(np.arange(1, highest + 1), used)[0])
        raise DataError(
            f"node ids have gaps: {missing} never occurs", path, column="u, i",
            expected=f"every id from 1 to {highest}, or remap=True",
        )  # fmt: skip
    _check_rows(node_features, highest + 1, path.with_name(path.stem + "_node.npy"), "nodes + 1")
    return TemporalEdges(
        src=np.searchsorted(used, ends["u"]),
        dst=np.searchsorted(used, ends["i"]),
        t=frame["ts"].to_numpy(),
        nodes=used,
        msg=edge_features[index],
        x=node_features[used],
        y=frame["label"].to_numpy(),
        path=path,
    )


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    return path


def _open(path: Path) -> Any:
    return gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _first_line(path: Path) -> str:
    return _leading_lines(path, only_empty=True)[1]


def _leading_lines(path: Path, *, only_empty: bool = False) -> tuple[int, str]:
    """Number of lines above the data, and the first line of data."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file):
                token = line.replace(",", " ").split()
                if token and (only_empty or _is_number(token[0])):
                    return number, line
                # A header has one line of names; words further down are errors in the data.
                if token and number and not line.startswith("#"):
                    return number, line
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"not a readable text file ({error})", path=path) from error
    raise DataError("no events", path=path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_numbers(
    path: Path, skip: int, sep: str, at_least: int
) -> tuple[Float[np.ndarray, "rows columns"], Int[np.ndarray, " rows"]]:
    """All numbers below `skip` lines, with the line number of each row."""
    try:
        frame = pd.read_csv(
            path, sep=sep, header=None, skiprows=skip, skip_blank_lines=False, low_memory=False
        )
    except pd.errors.EmptyDataError:
        raise DataError("no events", path=path) from None
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"not a readable table ({error})", path=path) from error
    frame = frame[: int(np.flatnonzero(frame.notna().any(axis=1))[-1]) + 1]
    rows = np.arange(len(frame)) + skip + 1
    if frame.shape[1] < at_least:
        raise DataError(
            "too few columns", path, int(rows[0]), value=frame.shape[1],
            expected=f"at least {at_least}",
        )  # fmt: skip
    numbers = frame.apply(pd.to_numeric, errors="coerce")
    if numbers.isna().any(axis=None):
        row, column = (int(i[0]) for i in np.nonzero(numbers.isna().to_numpy()))
        missing = bool(frame.isna().to_numpy()[row, column])
        raise DataError(
            "empty or short row" if missing else "wrong value", path, int(rows[row]),
            column + 1, None if missing else frame.iat[row, column], "a number",
        )  # fmt: skip
    return numbers.to_numpy(dtype=float), rows


def _whole(
    values: Float[np.ndarray, " rows"],
    path: Path,
    rows: Int[np.ndarray, " rows"],
    column: str,
    lowest: int,
) -> Int[np.ndarray, " rows"]:
    bad = np.flatnonzero((values != np.round(values)) | (values < lowest))
    if bad.size:
        row = int(bad[0])
        reason = " (0 is padding)" if lowest == 1 else ""
        raise DataError(
            "wrong id", path, int(rows[row]), column, float(values[row]),
            f"a whole number, {lowest} or more{reason}",
        )  # fmt: skip
    return values.astype(np.int64)


def _features(path: Path) -> Float[np.ndarray, "rows features"]:
    if not path.is_file():
        raise DataError("no such file; the processed format is three files", path=path)
    try:
        values: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"not a NumPy array ({error})", path=path) from error
    if values.ndim != 2:
        raise DataError("wrong shape", path, value=values.shape, expected="two dimensions")
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        row, column = (int(i) for i in bad[0])
        raise DataError(
            "missing value", path, row, column, float(values[row, column]), "a finite number"
        )
    return np.asarray(values, dtype=np.float32)


def _check_rows(values: Shaped[np.ndarray, ...], needed: int, path: Path, what: str) -> None:
    if len(values) != needed:
        raise DataError(
            "wrong number of feature rows", path, value=len(values), expected=f"{needed}, {what}"
        )


def _column(given: str | None, usual: Sequence[str], header: list[str], path: Path) -> str:
    for name in (given,) if given else usual:
        for column in header:
            if str(column).lower() == name.lower():
                return column
    raise DataError(
        "no such column", path, 1, given or usual[0], expected=f"one of {', '.join(header)}"
    )
