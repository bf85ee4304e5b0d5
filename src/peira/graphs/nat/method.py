"""NAT as an estimator: fit on a stream, ask for links, go on with new events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from peira.data import DataError
from peira.data.arrays import read_record, write_record
from peira.data.temporal import TemporalEdges, lookup, read_temporal
from peira.graphs.nat.baselines import CommonNeighbours, EdgeBank
from peira.graphs.nat.model import NATNetwork, Parts, Pool
from peira.graphs.nat.ncache import Hash
from peira.graphs.nat.protocol import (
    Negatives,
    Split,
    StreamModel,
    Training,
    batches,
    evaluate,
    inductive,
    replay,
    transductive,
)

if TYPE_CHECKING:
    from torch_geometric.data import TemporalData

    Stream = TemporalEdges | TemporalData | pd.DataFrame | np.ndarray | str | Path

__all__ = ["NAT", "CommonNeighbours", "EdgeBank", "NATNetwork", "as_edges", "compare"]

KIND = "NAT model"
Mode = Literal["transductive", "inductive"]
OnEpoch = Callable[[dict[str, float]], None]


def as_edges(stream: Stream) -> TemporalEdges:
    """A stream from whatever holds one.

    Args:
        stream: `TemporalEdges`; PyTorch Geometric `TemporalData`; a data frame with columns `src`,
            `dst`, `t` (other numeric columns are features); an array of rows (src, dst, t,
            features...); or the path of a file that `read_temporal` reads.

    Raises:
        DataError: not such a thing, or values that cannot be used.
    """
    edges = _as_edges(stream)
    if not len(edges):
        raise DataError("no events", edges.path, expected="at least one")
    return edges


def _as_edges(stream: Stream) -> TemporalEdges:
    if isinstance(stream, TemporalEdges):
        return stream
    if isinstance(stream, str | Path):
        return read_temporal(stream)
    if isinstance(stream, pd.DataFrame):
        return TemporalEdges.from_frame(stream)
    if hasattr(stream, "src") and hasattr(stream, "dst") and hasattr(stream, "t"):
        return TemporalEdges.from_pyg(stream)
    rows = np.asarray(stream)
    if rows.ndim != 2 or rows.shape[1] < 3:
        raise DataError("not a stream", value=rows.shape, expected="rows of (src, dst, t, ...)")
    ends = rows[:, :2]
    if np.issubdtype(rows.dtype, np.floating) and (ends == np.round(ends)).all():
        ends = ends.astype(np.int64)
    return TemporalEdges.from_arrays(
        ends[:, 0], ends[:, 1], rows[:, 2].astype(float), msg=rows[:, 3:].astype(float)
    )


class NAT(BaseEstimator):
    """Neighborhood-aware temporal network: who meets whom next, in a stream of timed links.

    Every node keeps its neighbours in hash tables of fixed size; the score of a pair sees which
    nodes occur at which hops of both ends (Luo & Li 2022).

    Args:
        slots: table sizes of the hops, at most two.
        value_dim, self_dim, position_dim, joint_dim, heads, dropout, pool, time_dim, alpha, hash,
            parts: see `NATNetwork`.
        time_unit: what times are divided by before their code is taken; None takes the mean gap
            between training events, 1.0 the raw times of the official code.
        extra_nodes: room for nodes that `fit` does not see.
        epochs, batch_size, learning_rate, patience, tolerance: of the training.
        validation: share of the stream's last events that decide when training stops.
        random_state: seed of weights, negatives, hash and coins.
        device: `cpu`, `cuda`, or `auto`.

    Attributes:
        network_: the fitted `NATNetwork`; its caches hold the whole stream seen so far.
        nodes_: names of the nodes, in the order of their numbers.
        last_time_: time of the last event seen.
        history_: one row per epoch: loss and validation metrics.
    """

    def __init__(
        self,
        slots: Sequence[int] = (32, 16),
        *,
        value_dim: int = 4,
        self_dim: int = 72,
        position_dim: int = 16,
        joint_dim: int | None = None,
        heads: int = 2,
        dropout: float = 0.1,
        pool: Pool = "sum",
        time_dim: int = 1,
        time_unit: float | None = None,
        alpha: float = 0.9,
        hash: Hash = "prime",
        parts: Parts = "both",
        extra_nodes: int = 0,
        epochs: int = 50,
        batch_size: int = 100,
        learning_rate: float = 1e-4,
        patience: int = 3,
        tolerance: float = 1e-3,
        validation: float = 0.15,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.slots = slots
        self.value_dim = value_dim
        self.self_dim = self_dim
        self.position_dim = position_dim
        self.joint_dim = joint_dim
        self.heads = heads
        self.dropout = dropout
        self.pool = pool
        self.time_dim = time_dim
        self.time_unit = time_unit
        self.alpha = alpha
        self.hash = hash
        self.parts = parts
        self.extra_nodes = extra_nodes
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.tolerance = tolerance
        self.validation = validation
        self.random_state = random_state
        self.device = device

    def fit(self, edges: Stream, y: None = None, *, on_epoch: OnEpoch | None = None) -> Self:
        """Train on a stream; afterwards its caches hold all of it, ready for what comes next.

        `on_epoch` is called with each new row of `history_`. Raises `DataError` for a stream that
        cannot be used, `ValueError` for a wrong setting.
        """
        stream = as_edges(edges)
        self._check_settings()
        split = self._own_split(stream)
        training = self._training(stream, split)
        self._run_epochs(training, on_epoch)
        training.restore_best()
        return self

    def evaluate(
        self,
        edges: Stream,
        mode: Mode = "transductive",
        *,
        each: int = 1,
        on_epoch: OnEpoch | None = None,
    ) -> dict[str, float]:
        """The paper's protocol on one stream: train, stop early, test on the last 15% of time.

        Args:
            edges: the stream.
            mode: `inductive` holds out a tenth of the nodes and tests on events that touch them.
            each: wrong destinations per test event.

        Returns:
            `ap`, `auc`, `accuracy` (means over test batches), `pooled_ap`, `pooled_auc`, `mrr`.
        """
        stream = as_edges(edges)
        self._check_settings()
        training = self._training(stream, self._split(stream, mode))
        self._run_epochs(training, on_epoch)
        found = training.test(each=each)
        self.last_time_ = float(stream.t[-1])
        return found

    def update(self, edges: Stream) -> Self:
        """Show new events without training; node names not seen before take the room left.

        Raises:
            DataError: an event before the last one seen, features of another width, or more new
                nodes than `extra_nodes` left room for.
        """
        check_is_fitted(self, "network_")
        stream = as_edges(edges).compact()
        if stream.t[0] < self.last_time_:
            raise DataError(
                "events of the past", stream.path, 1, "t", float(stream.t[0]),
                f"times from {self.last_time_!r}, the last event seen",
            )  # fmt: skip
        net = self.network_
        if stream.msg.shape[1] != self._edge_dim:
            raise DataError(
                "event features do not fit", stream.path, value=stream.msg.shape[1],
                expected=f"{self._edge_dim} features",
            )  # fmt: skip
        numbers = self._admit(stream)
        net.edge_x = torch.cat([net.edge_x, torch.from_numpy(stream.msg).to(net.edge_x)])
        first = self._events
        net.eval()
        for batch in batches(stream, np.arange(len(stream)), self.batch_size, net.edge_x.device):
            src, dst = (numbers[part - 1] for part in (batch.src, batch.dst))
            net.write(src, dst, batch.t, batch.edge + first)
        self._events += len(stream)
        self.last_time_ = float(stream.t[-1])
        return self

    def predict_proba(
        self, pairs: Shaped[np.ndarray, "pairs 2"] | Sequence[Sequence[Any]], t: float | None = None
    ) -> Float[np.ndarray, "pairs 2"]:
        """Probability that each pair does not, and does, meet next.

        The network was trained against one random destination per event, so these are
        probabilities in that balanced game; their order is what counts.

        Args:
            pairs: names of source and destination.
            t: time of the question; it must not lie before the last event seen. (The published
                score does not depend on it otherwise.)

        Raises:
            DataError: an unknown name, or a question about the past.
        """
        check_is_fitted(self, "network_")
        if t is not None and t < self.last_time_:
            raise DataError(
                "a question about the past", column="t", value=t,
                expected=f"at least {self.last_time_!r}, the time of the last event seen",
            )  # fmt: skip
        names = np.asarray(pairs)
        if names.ndim != 2 or names.shape[1] != 2:
            raise DataError(
                "not pairs", value=names.shape, expected="rows of (source, destination)"
            )
        device = self.network_.edge_x.device
        src, dst = (torch.from_numpy(self._ids(names[:, i])).to(device) for i in (0, 1))
        self.network_.eval()
        parts = []
        with torch.no_grad():
            for u, v in zip(src.split(4096), dst.split(4096), strict=True):
                parts.append(self.network_(u, v[:, None], torch.zeros(len(u)))[0][:, 0])
        met = torch.cat(parts).sigmoid().double().cpu().numpy() if parts else np.empty(0)
        return np.stack([1 - met, met], axis=1)

    def neighbourhood(self, node: Any) -> pd.DataFrame:
        """What the caches of a node hold: `hop`, `neighbour`, `time`, `slot`, newest first."""
        check_is_fitted(self, "network_")
        u = int(self._ids(np.array([node]))[0])
        rows = []
        for hop, table in enumerate(self.network_.tables[1:], start=1):
            for slot in table.key[u].nonzero()[:, 0].tolist():
                name = self.nodes_[int(table.key[u, slot]) - 1]
                rows.append((hop, name, float(table.time[u, slot]), slot))
        frame = pd.DataFrame(rows, columns=["hop", "neighbour", "time", "slot"])
        return frame.sort_values(["hop", "time"], ascending=[True, False], ignore_index=True)

    def save(self, path: str | Path) -> None:
        """Write weights, caches, hash seed and node names to one safetensors file, atomically."""
        check_is_fitted(self, "network_")
        net = self.network_
        tensors = {f"weight.{name}": part for name, part in net.named_parameters()}
        tensors |= {"edge_x": net.edge_x, "node_x": net.node_x}
        for hop, table in enumerate(net.tables):
            tensors |= {f"table{hop}.{name}": part for name, part in table.tensors().items()}
        for name in ("self_rep", "last_partner", "last_edge", "last_time"):
            tensors[f"state.{name}"] = getattr(net, name)
        about = {
            "settings": {**self.get_params(), "slots": list(self.slots)},
            "nodes": self.nodes_.tolist(),
            "room": net.num_nodes,
            "time_unit": net.time_unit,
            "events_seen": net.events_seen,
            "events": self._events,
            "last_time": self.last_time_,
        }
        write_record(Path(path), KIND, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; raises `DataError` for any other file."""
        stored, about = read_record(Path(path), KIND)
        # Mapped memory is not aligned, and sums over it round differently.
        tensors = {name: part.clone() for name, part in stored.items()}
        model = cls(**{**about["settings"], "slots": tuple(about["settings"]["slots"])})
        model.nodes_ = np.array(about["nodes"])
        model.last_time_, model._events = about["last_time"], about["events"]
        net = model._network(
            about["room"], tensors["edge_x"], tensors["node_x"], about["time_unit"]
        )
        model._restore(net, tensors, about["events_seen"])
        return model

    def _restore(self, net: NATNetwork, tensors: dict[str, Tensor], events_seen: int) -> None:
        device = net.edge_x.device
        with torch.no_grad():
            for name, part in net.named_parameters():
                part.copy_(tensors[f"weight.{name}"])
        for hop, table in enumerate(net.tables):
            for name, part in table.tensors().items():
                part.copy_(tensors[f"table{hop}.{name}"])
        for name in ("self_rep", "last_partner", "last_edge", "last_time"):
            setattr(net, name, tensors[f"state.{name}"].to(device))
        net.events_seen = events_seen
        self.network_ = net

    def _check_settings(self) -> None:
        for name in ("value_dim", "self_dim", "position_dim", "heads", "time_dim", "epochs",
                     "batch_size", "patience"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a probability; got {self.alpha}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a share between 0 and 1; got {self.validation}")
        if len(self.slots) > 2 or any(m < 1 for m in self.slots):
            raise ValueError(f"slots must be at most two numbers, 1 or more; got {self.slots}")

    def _split(self, stream: TemporalEdges, mode: Mode) -> Split:
        if mode == "transductive":
            return transductive(stream)
        return inductive(stream, np.random.default_rng(self.random_state))

    def _own_split(self, stream: TemporalEdges) -> Split:
        cut = np.quantile(stream.t, 1 - self.validation) if len(stream) else 0.0
        train = np.flatnonzero(stream.t <= cut)
        val = np.flatnonzero(stream.t > cut)
        if not len(train) or not len(val):
            raise DataError(
                "too few distinct times to hold out the last events", stream.path,
                value=len(np.unique(stream.t)), expected="at least 2",
            )  # fmt: skip
        nothing = np.empty(0, np.int64)
        return Split(train, val, nothing, nothing, nothing)

    def _training(self, stream: TemporalEdges, split: Split) -> Training:
        torch.manual_seed(self.random_state)
        pad = [np.zeros((1, part.shape[1]), np.float32) for part in (stream.msg, stream.x)]
        room = np.zeros((self.extra_nodes, stream.x.shape[1]), np.float32)
        unit = self.time_unit or mean_gap(stream, split.train)
        self.network_ = self._network(
            stream.num_nodes + self.extra_nodes,
            torch.from_numpy(np.vstack([pad[0], stream.msg])),
            torch.from_numpy(np.vstack([pad[1], stream.x, room])),
            unit,
        )
        self.nodes_ = stream.nodes
        self._events, self.last_time_ = len(stream), float(stream.t[-1])
        return Training(
            self.network_, stream, split, seed=self.random_state,
            learning_rate=self.learning_rate, batch_size=self.batch_size, patience=self.patience,
            tolerance=self.tolerance, device=self.network_.edge_x.device,
        )  # fmt: skip

    def _network(self, nodes: int, edge_x: Tensor, node_x: Tensor, time_unit: float) -> NATNetwork:
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        net = NATNetwork(
            nodes, edge_x, node_x, slots=tuple(self.slots), value_dim=self.value_dim,
            self_dim=self.self_dim, position_dim=self.position_dim, joint_dim=self.joint_dim,
            heads=self.heads, dropout=self.dropout, pool=self.pool, time_dim=self.time_dim,
            time_unit=time_unit, alpha=self.alpha, hash=self.hash, parts=self.parts,
            seed=self.random_state,
        ).to(device)  # fmt: skip
        net.reset()
        return net

    def _run_epochs(self, training: Training, on_epoch: OnEpoch | None) -> None:
        rows: list[dict[str, float]] = []
        while len(rows) < self.epochs and not training.finished:
            rows.append(training.epoch())
            if on_epoch is not None:
                on_epoch(rows[-1])
        self.history_ = pd.DataFrame(rows)

    @property
    def _edge_dim(self) -> int:
        return self.network_.edge_x.shape[1]

    def _ids(self, names: Shaped[np.ndarray, " names"]) -> Int[np.ndarray, " names"]:
        return lookup(self.nodes_, names) + 1

    def _admit(self, stream: TemporalEdges) -> Int[Tensor, " nodes"]:
        """Ids of the stream's nodes; new names are added while there is room."""
        if stream.nodes.dtype.kind != self.nodes_.dtype.kind:
            raise DataError(
                "node names of another kind", stream.path, value=stream.nodes[0].item(),
                expected=f"names such as {self.nodes_[0].item()!r}",
            )  # fmt: skip
        new = stream.nodes[~np.isin(stream.nodes, self.nodes_)]
        left = self.network_.num_nodes - len(self.nodes_)
        if len(new) > left:
            raise DataError(
                f"{len(new)} new nodes but room for {left}", stream.path, value=new[left].item(),
                expected="known nodes, or a model fitted with more extra_nodes",
            )  # fmt: skip
        self.nodes_ = np.concatenate([self.nodes_, new])
        ids = torch.from_numpy(self._ids(stream.nodes))
        return ids.to(self.network_.edge_x.device)


def mean_gap(edges: TemporalEdges, events: Int[np.ndarray, " events"]) -> float:
    """Mean time between consecutive events; 1.0 where all are simultaneous."""
    span = float(edges.t[events[-1]] - edges.t[events[0]])
    return span / len(events) if span > 0 else 1.0


def compare(
    model: NAT, edges: Stream, mode: Mode = "transductive", *, on_epoch: OnEpoch | None = None
) -> pd.DataFrame:
    """NAT and the memory rules under the paper's protocol: one row each, columns as in `evaluate`.

    All see the same split, wrong destinations and test batches; the window of `EdgeBank` and the
    half-life of `CommonNeighbours` are as long as the test.
    """
    stream = as_edges(edges)
    rows = {"NAT": model.evaluate(stream, mode, on_epoch=on_epoch)}
    split = model._split(stream, mode)
    span = float(stream.t[-1] - stream.t[split.test[0]]) or 1.0
    rules: dict[str, StreamModel] = {
        "EdgeBank": EdgeBank(),
        "EdgeBank, window": EdgeBank(span),
        "common neighbours": CommonNeighbours(),
        "common neighbours, recent": CommonNeighbours(span),
    }
    past = split.replay if len(split.replay) else np.concatenate([split.train, split.val])
    for name, rule in rules.items():
        replay(rule, stream, past, 1000)
        negatives = Negatives(stream, split.train, split.val, split.test)
        rng = np.random.default_rng([model.random_state, 2**32 - 1])
        rows[name] = evaluate(rule, stream, split.test, negatives, rng)
    return pd.DataFrame.from_dict(rows, orient="index")
