"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field

import peira
from peira.data import fingerprint, locate
from peira.data.hypergraph import TemporalHypergraph
from peira.data.temporal import TemporalEdges, read_jodie, read_snap
from peira.engine import verdict as v
from peira.graphs.nat.attention import TGAT, MemoryNetwork, padded
from peira.graphs.nat.baselines import CommonNeighbours, EdgeBank
from peira.graphs.nat.generate import closure_task, triadic_stream
from peira.graphs.nat.method import mean_gap
from peira.graphs.nat.mixer import GraphMixer
from peira.graphs.nat.model import NATNetwork
from peira.graphs.nat.protocol import (
    Decoys,
    Negatives,
    Split,
    Training,
    batches,
    evaluate,
    inductive,
    replay,
    transductive,
)
from peira.graphs.nat.pyg import GeometricTGN
from peira.graphs.nat.walks import WalkNetwork

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

Data = Literal[
    "triadic", "forgetting", "closure", "collegemsg", "email-Enron", "wikipedia", "reddit"
]
Method = Literal[
    "nat", "nat-attention", "nat-joint", "nat-self", "nat-one-hop", "nat-no-hops",
    "tgn", "tgn-geometric", "jodie", "dyrep", "tgat", "graphmixer", "cawn",
    "edgebank", "edgebank-window", "common-neighbours", "common-recent",
]  # fmt: skip
RULES = ("edgebank", "edgebank-window", "common-neighbours", "common-recent")
ONE_VECTOR = ("nat-self", "tgn", "jodie", "dyrep", "tgat", "graphmixer")
"""What represents a node by one vector (or, as `nat-self`, scores by nothing else)."""

SIZES = (2, 8, 32)
"""Numbers of first-hop slots that are compared; 32 is the published one."""

AT_CHANCE = ("nat-self", "tgn", "jodie", "dyrep", "tgat")
"""Those of them that the closure task is put to."""

# One training step is not timed: the first one also compiles and allocates.
WARM_STEPS = 1


class Cell(peira.Cell):
    """One model on one stream."""

    method: Method = Field("nat", description="what is trained, or the rule that is applied")
    data: Data = "wikipedia"
    mode: Literal["transductive", "inductive"] = "transductive"
    task: Literal["links", "speed"] = Field("links", description="what is measured: AP or time")
    events: int = Field(0, ge=0, description="first events of the stream that are used; 0: all")
    slots: int = Field(32, ge=1, description="M_1, slots of a node's first-hop table")
    alpha: float = Field(0.9, ge=0, le=1, description="chance that a newcomer overrides a slot")
    edge_features: Literal["used", "published"] = Field(
        "used", description="published: none, as the official script sets all event ids to 0"
    )
    neighbours: int = Field(20, ge=1, description="events that TGAT draws per node and layer")
    dropout: float = Field(0.1, ge=0, lt=1)
    epochs: int = Field(50, ge=1, description="at most; training stops when validation does")
    batch_size: int = Field(100, ge=1, description="events per training step")
    eval_batch_size: int = Field(32, ge=1, description="events scored before any of them is shown")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam")
    steps: int = Field(20, ge=1, description="training steps timed in a speed cell")


@dataclass(frozen=True)
class Stream:
    """What a cell works on.

    Attributes:
        edges: the events.
        negatives: wrong destinations of the test; None draws them at random.
        counted: test events that count; None: all.
    """

    edges: TemporalEdges
    negatives: Decoys | None = None
    counted: Bool[np.ndarray, " events"] | None = None


def small_cells() -> list[Cell]:
    """CollegeMsg in both modes, Enron, and the simulators, with a tenth of the published epochs."""
    short = {"epochs": 4, "batch_size": 200, "learning_rate": 1e-3, "dropout": 0, "neighbours": 5}
    base = Cell(data="collegemsg", events=8000, **short)
    compared: tuple[Method, ...] = ("nat", *ONE_VECTOR, *RULES)
    cells = [
        base.changed({"method": method, "mode": mode})
        for mode in ("transductive", "inductive")
        for method in compared
    ]
    cells += [base.changed({"method": "nat-no-hops"})]
    cells += [base.changed({"slots": slots}) for slots in SIZES]
    cells += [
        base.changed({"method": rule, "eval_batch_size": 1})
        for rule in ("edgebank", "common-neighbours")
    ]
    enron = base.changed({"data": "email-Enron", "events": 5000})
    cells += [enron.changed({"method": m}) for m in ("nat", "nat-attention", "nat-one-hop", *RULES)]
    closure = base.changed({"data": "closure", "events": 8000, "batch_size": 100})
    cells += [closure.changed({"method": m}) for m in ("nat", *AT_CHANCE, "common-recent")]
    forgetting = base.changed({"data": "forgetting", "events": 6000, "slots": 8})
    cells += [forgetting.changed({"alpha": alpha}) for alpha in (0.0, 0.9)]
    return cells + speed_cells(base, walk_steps=2)


def speed_cells(base: Cell, walk_steps: int) -> list[Cell]:
    """NAT, TGN and walks with the published dropout, and NAT without, timed."""
    timed = base.changed({"task": "speed", "dropout": 0.1})
    return [
        timed,
        timed.changed({"dropout": 0}),
        timed.changed({"method": "tgn-geometric"}),
        timed.changed({"method": "tgn"}),
        timed.changed({"method": "cawn", "steps": walk_steps}),
    ]


def smoke_cells() -> list[Cell]:
    """Every model and task on streams of a few hundred simulated events."""
    base = Cell(
        data="triadic", events=300, epochs=1, batch_size=50, learning_rate=1e-3, dropout=0.1
    )
    networks: tuple[Method, ...] = (
        "nat", "nat-attention", "nat-self", "nat-no-hops",
        "tgn", "jodie", "dyrep", "tgat", "graphmixer", "cawn",
    )  # fmt: skip
    return [
        *(base.changed({"method": m}) for m in (*networks, "common-neighbours")),
        base.changed({"mode": "inductive"}),
        base.changed({"data": "closure"}),
        base.changed({"task": "speed", "steps": 2}),
        base.changed({"task": "speed", "steps": 1, "method": "cawn"}),
    ]


def paper_cells() -> list[Cell]:
    """Wikipedia and Reddit in both modes, and all simulators, with the published settings."""
    methods: tuple[Method, ...] = (
        "nat", "nat-attention", "nat-joint", "nat-self", "nat-one-hop", "nat-no-hops",
        "tgn", "jodie", "dyrep", "tgat", "graphmixer", "cawn", *RULES,
    )  # fmt: skip
    cells = [
        Cell(method=method, data=data, mode=mode, alpha=0.7)
        for data in ("wikipedia", "reddit", "collegemsg")
        for mode in ("transductive", "inductive")
        for method in methods
    ]
    cells += [
        cell.changed({"edge_features": "published"}) for cell in cells if cell.method == "nat"
    ]
    cells += [
        Cell(method=method, data="closure", events=20_000)
        for method in ("nat", *AT_CHANCE, "common-recent")
    ]
    cells += [Cell(data="wikipedia", slots=slots, alpha=0.7) for slots in SIZES]
    cells += [Cell(data="triadic", events=20_000, slots=slots) for slots in SIZES]
    cells += [Cell(data="forgetting", events=20_000, slots=8, alpha=alpha) for alpha in (0.0, 0.9)]
    return cells + speed_cells(Cell(alpha=0.7), walk_steps=20)


class Study(peira.Study[Cell]):
    """Joint neighbourhoods against single vectors: accuracy in both modes, chance, speed, size."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(smoke_cells, seeds=1),
        "small": peira.Scale(small_cells, seeds=5),
        "paper": peira.Scale(paper_cells, seeds=5),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        # In a shortened study three seeds do for slow rivals and for what hardly varies.
        spared = cell.method in ONE_VECTOR and (cell.method != "nat-self" or cell.data == "closure")
        spared |= cell.data in ("email-Enron", "forgetting") or cell.task == "speed"
        return min(asked, 3) if spared and cell.epochs < 50 else asked

    def inputs(self, cell: Cell) -> dict[str, str]:
        paths = files(cell.data)
        return {cell.data: fingerprint(paths)} if paths else {}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        stream = load(cell, np.random.default_rng([run.seed, 1]))
        edges = stream.edges
        # The mask is drawn apart from the data, so that all methods of a seed share it.
        split = (
            transductive(edges)
            if cell.mode == "transductive"
            else inductive(edges, np.random.default_rng([run.seed, 2]))
        )
        unit = mean_gap(edges, split.train)
        if cell.method in RULES:
            return score_rule(cell, stream, split, run.seed)
        model = build(cell, edges, unit, run.seed).to(run.device)
        # State lives where the parameters are only after a reset there.
        model.reset()
        training = Training(
            model, edges, split, seed=run.seed, learning_rate=cell.learning_rate,
            batch_size=cell.batch_size, eval_batch_size=cell.eval_batch_size, device=run.device,
        )  # fmt: skip
        if cell.task == "speed":
            return {"train_speed": train_speed(training, run.budget(cell.steps))}
        seconds = []
        for epoch in run.steps(cell.epochs, save=(training,), name="epochs"):
            if training.finished:
                break
            began = time.perf_counter()
            found = training.epoch()
            seconds.append(time.perf_counter() - began)
            run.log(epoch, loss=found["loss"], val_ap=found["val_ap"])
        found = training.test(stream.negatives, counted=stream.counted)
        return {
            **found,
            "epochs_run": training.epochs,
            "epoch_seconds": float(np.mean(seconds or 0)),
        }

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        yield self._joint_matters(table)
        yield self._more_so_for_new_nodes(table)
        yield self._speed(table)
        yield self._closure(table)
        yield self._cache(table)

    def _joint_matters(self, table: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C1")
        parts = claim.parts
        links = _links(table)
        gap = _gaps(links, ("nat-self",))
        old, new = ({"mode": mode} for mode in ("transductive", "inductive"))
        full, alone, hopless, rule = (
            {"method": m} for m in ("nat", "nat-self", "nat-no-hops", "common-neighbours")
        )
        return v.all_of(
            claim,
            [
                v.larger(links, "ap", full | old, than=alone | old, claim=parts[0]),
                v.larger(links, "ap", full | old, than=hopless | old, claim=parts[1]),
                v.larger(links, "ap", full | new, than=alone | new, claim=parts[2]),
                v.larger(gap, "gap", new, than=old, claim=parts[3]),
                v.larger(links, "pooled_ap", full | old, than=rule | old, claim=parts[4]),
            ],
        )

    def _more_so_for_new_nodes(self, table: pd.DataFrame) -> v.Verdict:
        gaps = _gaps(_links(table), ONE_VECTOR)
        return v.larger(
            gaps, "gap", {"mode": "inductive"}, than={"mode": "transductive"},
            claim=self.claim("C2"),
        )  # fmt: skip

    def _speed(self, table: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C3")
        rows = _select(table, task="speed", dropout=0.1)
        return v.all_of(
            claim,
            [
                v.at_least(rows, "train_speed", "nat", than="cawn", claim=claim.parts[0]),
                v.at_least(rows, "train_speed", "nat", than="tgn-geometric", claim=claim.parts[1]),
            ],
        )

    def _closure(self, table: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C4")
        rows = _select(table, data="closure")
        chance = [
            v.equals(rows, "pooled_auc", method, claim=part)
            for method, part in zip(AT_CHANCE, claim.parts[1:], strict=True)
        ]
        return v.all_of(claim, [v.above(rows, "pooled_auc", "nat", claim=claim.parts[0]), *chance])

    def _cache(self, table: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C5")
        sizes = _select(_real_rows(table), method="nat", mode="transductive")
        forgetting = _select(table, data="forgetting")
        return v.all_of(
            claim,
            [
                v.trend(sizes, "slots", "ap", claim=claim.parts[0]),
                v.larger(_gains(sizes), "gain", "2 to 8", than="8 to 32", claim=claim.parts[1]),
                v.larger(
                    forgetting, "ap", {"alpha": 0.9}, than={"alpha": 0.0}, claim=claim.parts[2]
                ),
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.graphs.nat.figure import draw

        return draw(table)


def _select(table: pd.DataFrame, **group: Any) -> pd.DataFrame:
    return v.select(table, group)


def _real_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Link prediction on the real network that decides, all methods scored in equal batches."""
    rows = _select(table, task="links", edge_features="used")
    if not len(rows):
        return rows
    # Where a scale has both, the paper's own data set decides.
    first = "wikipedia" if (rows["data"] == "wikipedia").any() else "collegemsg"
    return rows[(rows["data"] == first) & (rows["eval_batch_size"] > 1)]


def _links(table: pd.DataFrame) -> pd.DataFrame:
    """The same with the published table size."""
    return _select(_real_rows(table), slots=max(SIZES))


def _gaps(links: pd.DataFrame, rivals: tuple[str, ...]) -> pd.DataFrame:
    """AP of NAT minus that of the rival with the best mean, per mode and seed."""
    import pandas as pd

    rows = []
    for mode in ("transductive", "inductive"):
        part = _select(links, mode=mode)
        if not len(part):
            continue
        ap = part.pivot(index="seed", columns="method", values="ap")
        if "nat" not in ap or not set(rivals) & set(ap):
            continue
        # Costly rivals have fewer seeds: all are judged on the seeds they share.
        ap = ap[["nat", *(name for name in rivals if name in ap)]].dropna()
        best = ap.drop(columns="nat").mean().idxmax()
        gap = ap["nat"] - ap[best]
        rows += [{"mode": mode, "seed": seed, "gap": x, "rival": best} for seed, x in gap.items()]
    return pd.DataFrame(rows, columns=["mode", "seed", "gap", "rival"])


def _gains(sizes: pd.DataFrame) -> pd.DataFrame:
    """AP gained from 2 to 8 and from 8 to 32 first-hop slots, per seed."""
    import pandas as pd

    rows = []
    if len(sizes):
        ap = sizes.pivot(index="seed", columns="slots", values="ap")
        for low, high in ((2, 8), (8, 32)):
            if {low, high} <= set(ap):
                rows += [
                    {"method": f"{low} to {high}", "seed": seed, "gain": gain}
                    for seed, gain in (ap[high] - ap[low]).items()
                ]
    return pd.DataFrame(rows, columns=["method", "seed", "gain"])


def files(data: Data) -> list[Path]:
    """The files that a data set is read from; none for a simulated one."""
    if data == "collegemsg":
        return [locate("collegemsg", "CollegeMsg.txt")]
    if data in ("wikipedia", "reddit"):
        return [locate("jodie", f"{data}.csv")]
    if data == "email-Enron":
        parts = ("nverts", "simplices", "times")
        return [locate("scholp", f"{data}/{data}-{part}.txt.gz") for part in parts]
    return []


def load(cell: Cell, rng: np.random.Generator) -> Stream:
    """The stream of a cell; simulated ones are drawn from `rng`."""
    size = {"events": cell.events} if cell.events else {}
    if cell.data == "closure":
        # As sparse at every length as the 600 nodes of the default's 8,000 events.
        task = closure_task(rng, nodes=max(120, 2 * (cell.events * 3 // 80)), **size)
        return Stream(task.edges, Decoys(task.decoy), task.closing)
    if cell.data == "triadic":
        return Stream(triadic_stream(rng, **size))
    if cell.data == "forgetting":
        return Stream(triadic_stream(rng, forget=max(cell.events // 8, 1), **size))
    edges = _real(cell.data)
    return Stream(
        edges.select(np.arange(min(cell.events, len(edges)))).compact() if size else edges
    )


def _real(data: Data) -> TemporalEdges:
    paths = files(data)
    if data == "collegemsg":
        return read_snap(paths[0])
    if data in ("wikipedia", "reddit"):
        return read_jodie(paths[0])
    groups = TemporalHypergraph.from_files(paths[0].with_name(data))
    return TemporalEdges.from_arrays(*groups.projected_edges())


def build(cell: Cell, edges: TemporalEdges, unit: float, seed: int) -> Any:
    """The network of a cell, for a stream whose mean gap between events is `unit`."""
    if cell.method in ("tgn", "jodie", "dyrep"):
        return MemoryNetwork(edges, cell.method, dropout=cell.dropout, time_unit=unit)
    if cell.method == "tgn-geometric":
        return GeometricTGN(edges, dropout=cell.dropout, time_unit=unit)
    if cell.method == "tgat":
        return TGAT(edges, neighbours=cell.neighbours, dropout=cell.dropout, time_unit=unit)
    if cell.method == "graphmixer":
        return GraphMixer(edges, time_unit=unit)
    if cell.method == "cawn":
        return WalkNetwork(edges, time_unit=unit)
    used = edges.msg if cell.edge_features == "used" else edges.msg[:, :0]
    slots: tuple[int, ...] = (cell.slots, 16)
    if cell.method in ("nat-self", "nat-no-hops"):
        slots = ()
    elif cell.method == "nat-one-hop":
        slots = (cell.slots,)
    return NATNetwork(
        edges.num_nodes, padded(used), padded(edges.x), slots=slots, alpha=cell.alpha,
        dropout=cell.dropout, time_unit=unit, seed=seed,
        pool="attention" if cell.method == "nat-attention" else "sum",
        parts={"nat-self": "self", "nat-joint": "joint"}.get(cell.method, "both"),
    )  # fmt: skip


def score_rule(cell: Cell, stream: Stream, split: Split, seed: int) -> dict[str, float]:
    """Metrics of a parameter-free rule that was shown everything before the test."""
    edges = stream.edges
    span = float(edges.t[-1] - edges.t[0])
    rule = {
        "edgebank": EdgeBank,
        # As in its paper, the window is as long as the test.
        "edgebank-window": lambda: EdgeBank(float(edges.t[-1] - edges.t[split.test[0]])),
        "common-neighbours": CommonNeighbours,
        "common-recent": lambda: CommonNeighbours(span / 20),
    }[cell.method]()
    past = split.replay if len(split.replay) else np.concatenate([split.train, split.val])
    replay(rule, edges, past, cell.batch_size)
    return evaluate(
        rule, edges, split.test,
        stream.negatives or Negatives(edges, split.train, split.val, split.test),
        np.random.default_rng([seed, 2**32 - 1]),
        batch_size=cell.eval_batch_size, counted=stream.counted,
    )  # fmt: skip


def train_speed(training: Training, steps: int) -> float:
    """Events per second of training, with half of the training events already shown.

    On the CPU it is processor time that counts, so that what else the machine does is left out.
    """
    clock = time.process_time if torch.device(training.device).type == "cpu" else time.perf_counter
    events = training.split.train
    half = len(events) // 2
    replay(training.model, training.edges, events[:half], training.batch_size, training.device)
    training.model.train()
    rng = np.random.default_rng(0)
    negatives = Negatives(training.edges, events)
    shown, began = 0, 0.0
    later = batches(training.edges, events[half:], training.batch_size, training.device)
    for step, batch in enumerate(later):
        if step == WARM_STEPS:
            began = clock()
        if step == WARM_STEPS + steps:
            break
        wrong = negatives.draw(rng, batch.edge.cpu().numpy(), 1).to(training.device)
        float(training.step(batch, wrong))
        shown += len(batch.src) * (step >= WARM_STEPS)
    return shown / (clock() - began)
