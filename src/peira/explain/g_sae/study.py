"""How the paper's claims are tested: planted features, and a Transformer trained on a grammar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import peira
from peira.engine import verdict as v
from peira.engine.cards import Claim
from peira.explain.g_sae.baselines import GatedSAE, JumpReLUSAE, PCADictionary, ReLUSAE
from peira.explain.g_sae.dictionary import GSAE, MODES, Dictionary
from peira.explain.g_sae.faithfulness import (
    Faithfulness,
    bootstrap_difference,
    faithfulness,
    steering_effects,
)
from peira.explain.g_sae.fitting import SAERecipe, fit_end_to_end, start
from peira.explain.g_sae.grammar import crops, reader, text_tokens, train_reader
from peira.explain.g_sae.planted import Planted
from peira.explain.g_sae.store import ActivationStore, token_batches

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Method = Literal[
    "topk", "additive", "product", "shuffled", "relu", "gated", "jumprelu", "end-to-end",
    "random", "pca",
]  # fmt: skip
G_SAES: tuple[Method, ...] = ("additive", "product")
STEERED: tuple[Method, ...] = ("topk", "additive", "product", "shuffled", "end-to-end", "random")
BASELINES: tuple[Method, ...] = (
    "shuffled", "relu", "gated", "jumprelu", "end-to-end", "random", "pca",
)  # fmt: skip
KS = (4, 8, 16)
# The k at which all methods meet on the trained network.
MEET = 8
# Features of each planted row: with as many units, each feature could have one of its own.
ACTIVE = 8
# Added to a run's seed, so that no two things are drawn from one stream: with equal seeds the
# initial directions of a dictionary would be the planted ones, number for number.
HELD_OUT, LAW, SHUFFLE = 1_000_000, 2_000_000, 3_000_000


class Cell(peira.Cell):
    """One dictionary of one network's activations."""

    method: Method = Field("topk", description="how the dictionary is learnt and selects")
    host: Literal["planted", "text"] = Field("planted", description="whose activations")
    k: int = Field(4, ge=1, description="units that fire on a row (on average, where not fixed)")
    h: int = Field(256, ge=1, description="units")
    beta: float = Field(10.0, ge=0, description="weight of the gradient in `additive`")
    steps: int = Field(2500, ge=1, description="training batches of the dictionary")
    batch: int = Field(128, ge=1, description="rows of a batch")
    learning_rate: float = Field(2e-3, gt=0, description="of Adam")
    rows: int = Field(40_000, ge=1, description="rows of activations that it learns from")
    held_out: int = Field(4000, ge=1, description="rows that it is judged on")
    letters: int = Field(200_000, ge=1000, description="text that the network learns from")
    host_steps: int = Field(500, ge=1, description="training steps of the text's network")
    width: int = Field(64, ge=1, description="features of the text's network")
    layers: int = Field(2, ge=1, description="blocks of the text's network")
    context: int = Field(48, ge=2, description="letters that the text's network reads")
    units: int = Field(200, ge=1, description="live units that steer, at most")
    contexts: int = Field(64, ge=1, description="texts that are steered")
    strength: float = Field(0.5, gt=0, description="push, over the mean length of activations")


def planted_cells(base: Cell) -> list[Cell]:
    """The paper's two modes, TopK and the shuffled gradient, at k half of the active features."""
    methods: tuple[Method, ...] = ("topk", *G_SAES, "shuffled")
    few = [base.changed({"method": method}) for method in methods]
    enough = [base.changed({"method": method, "k": ACTIVE}) for method in ("topk", "product")]
    return [*few, *enough]


def text_cells(base: Cell, ks: tuple[int, ...], meet: int) -> list[Cell]:
    """Curves over k of TopK and g-SAE; at one k everything else."""
    methods: tuple[Method, ...] = ("topk", *G_SAES)
    curves = [base.changed({"method": method, "k": k}) for k in ks for method in methods]
    return [*curves, *(base.changed({"method": method, "k": meet}) for method in BASELINES)]


def small_cells() -> list[Cell]:
    """The planted features as in the card, the trained network with h = 8 d."""
    text = Cell(host="text", h=512, steps=400, batch=256, held_out=3072)
    return [*planted_cells(Cell()), *text_cells(text, KS, MEET)]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    planted = Cell(h=48, steps=4, batch=32, rows=400, held_out=100)
    text = Cell(
        host="text", h=32, steps=3, batch=32, rows=200, held_out=60, letters=2000,
        host_steps=2, width=16, context=12, units=5, contexts=3,
    )  # fmt: skip
    return [*planted_cells(planted), *text_cells(text, (4, 8), MEET)]


def paper_cells() -> list[Cell]:
    """h = 32 d, k of 8 to 64, on a network of 6 layers; 10^8 rows are drawn."""
    text = Cell(
        host="text", h=8192, steps=25_000, batch=4096, learning_rate=3e-4, rows=4_000_000,
        held_out=100_000, letters=20_000_000, host_steps=20_000, width=256, layers=6, context=128,
    )  # fmt: skip
    return [*planted_cells(Cell(steps=10_000, batch=4096)), *text_cells(text, (8, 16, 32, 64), 32)]


class Study(peira.Study[Cell]):
    """Dictionaries at equal sparsity, judged by what the network loses."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=5),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to five, three of side comparisons and of what has to train a network."""
        main = cell.host == "planted" and cell.k < ACTIVE
        return asked if main or asked > 5 or cell.width > 64 else min(asked, 3)

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        host = host_of(cell, run)
        dictionary = self._fitted(cell, run, host)
        found = faithfulness(dictionary, host.model, host.site, host.held_out, seed=run.seed)
        best = found.patched[found.best_known]
        held_out = ActivationStore.from_model(host.model, host.site, host.held_out)
        measured: dict[str, float | peira.Censored] = {
            "loss": found.mean(best.losses),
            "loss_intact": found.mean(found.intact),
            "loss_ablated": found.mean(found.ablated),
            "recovered": found.recovered(found.best_known),
            "kl": best.kl,
            "nmse": best.nmse,
            "firing": best.firing,
            "dead": float((dictionary.firing(held_out) == 0).sum()),
            "delta": found.delta(found.best_known),
            **{f"delta_{name}": found.delta(name) for name in found.patched},
        }
        if cell.method in G_SAES:
            measured |= self._against_topk(cell, run, host, found)
        if host.planted is not None:
            big, small = host.planted.recovered(dictionary.decoder)
            measured |= {"recovered_big": float(big), "recovered_small": float(small)}
        elif cell.method in STEERED:
            measured |= _steering(cell, run, host, dictionary, held_out)
        return measured

    def _fitted(self, cell: Cell, run: peira.Run, host: Host) -> Dictionary:
        """The cell's dictionary; TopK's is shared, for the others are held against it."""
        if cell.method != "topk":
            return fitted(cell, run, host)
        settings = cell.model_dump()
        dictionary = empty(cell, host)
        dictionary.load_state_dict(run.shared("topk", shared_topk, **settings))
        return dictionary.to(run.device)

    def _against_topk(
        self, cell: Cell, run: peira.Run, host: Host, found: Faithfulness
    ) -> dict[str, float]:
        """Gain over TopK in bootstrapped loss; TopK's units selected as this method selects."""
        topk = self._fitted(cell.changed({"method": "topk"}), run, host)
        assert isinstance(topk, GSAE) and cell.method in MODES
        hinted = topk.selecting(cell.method, cell.beta)
        theirs = faithfulness(hinted, host.model, host.site, host.held_out, seed=run.seed)
        gain, low, high = bootstrap_difference(
            theirs.patched["none"].losses, found.patched["gradient"].losses, run.seed
        )
        return {
            "gain": gain,
            "gain_low": low,
            "gain_high": high,
            "delta_topk_hinted": theirs.delta("gradient"),
        }

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim = self.claim
        planted, network = {"host": "planted", "k": ACTIVE // 2}, _network(table)
        topk, product = {**planted, "method": "topk"}, {**planted, "method": "product"}
        lower, seeds, error = claim("C1").parts
        yield v.all_of(
            claim("C1"),
            [
                v.smaller(table, "loss", product, topk, lower),
                v.count(_seeds_below(table, "loss", product, topk), seeds),
                v.larger(table, "nmse", product, topk, error),
            ],
        )
        yield v.larger(table, "delta_none", product, topk, claim("C2a"))
        plain = {name: {**network, "method": name} for name in ("topk", *G_SAES)}
        yield v.smaller(table, "delta_none", plain["additive"], plain["topk"], claim("C2b"))
        controls = with_controls(table)
        names = ("trained without", "trained with shuffled", "selected with shuffled")
        yield v.against_controls(
            v.smaller, controls, "loss", product,
            {name: {**planted, "method": name} for name in names}, claim("C2c"),
        )  # fmt: skip
        ours, theirs = claim("C3").parts
        yield v.all_of(
            claim("C3"),
            [
                v.smaller(table, "dead", {**planted, "method": "additive"}, topk, ours),
                v.smaller(table, "dead", plain["additive"], plain["topk"], theirs),
            ],
        )
        for id, method in (("C4a", "additive"), ("C4b", "product")):
            yield v.count(gains(table, method), claim(id))
        for id, method in (("C5a", "additive"), ("C5b", "product")):
            yield v.larger(table, "steering_kl", plain[method], plain["topk"], claim(id))
        yield _recovery(table, claim("C6"))
        others = {name: {**network, "method": name} for name in BASELINES if name != "end-to-end"}
        yield v.against_controls(v.smaller, table, "delta", plain["additive"], others, claim("C7a"))
        whole = {**network, "method": "end-to-end"}
        yield v.smaller(table, "delta", plain["additive"], whole, claim("C7b"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.explain.g_sae.figure import draw

        return draw(table)


@dataclass(frozen=True)
class Host:
    """A network to look into.

    Attributes:
        store: activations and gradients to learn from.
        held_out: batches of inputs and targets to judge on.
        inputs: what the store was made of.
        contexts: inputs to steer.
        planted: the law of the activations, where there is one.
    """

    model: nn.Module
    site: str
    store: ActivationStore
    held_out: list[tuple[Tensor, Tensor]]
    inputs: Tensor
    contexts: Tensor
    planted: Planted | None = None


def host_of(cell: Cell, run: peira.Run) -> Host:
    """The network of one seed, the same for all methods."""
    if cell.host == "planted":
        return _planted_host(cell, run)
    names = ("rows", "letters", "host_steps", "width", "layers", "context")
    settings = {name: getattr(cell, name) for name in names}
    state, inputs, store = run.shared("reader", trained_reader, **settings)
    model = reader(cell.context, cell.width, cell.layers).to(run.device)
    model.load_state_dict(state)
    generator = torch.Generator().manual_seed(HELD_OUT + run.seed)
    texts = text_tokens(2000 + 4 * cell.held_out, HELD_OUT + run.seed)
    count = max(1, cell.held_out // cell.context)
    unseen = crops(texts, count, cell.context + 1, generator).to(run.device)
    short = min(12, cell.context)
    contexts = crops(texts, cell.contexts, short, generator).to(run.device)
    batches = list(token_batches(unseen, 32))
    return Host(model, "blocks.0", store, batches, inputs[:, :-1], contexts)


def _planted_host(cell: Cell, run: peira.Run) -> Host:
    generator = torch.Generator().manual_seed(LAW + run.seed)
    law = Planted.draw(generator, active=ACTIVE // 2)
    model = law.network().to(run.device)
    rows, labels = (part.to(run.device) for part in law.sample(cell.rows, generator))
    store = ActivationStore.from_model(model, "site", [(rows, labels)])
    held_out = [tuple(part.to(run.device) for part in law.sample(cell.held_out, generator))]
    return Host(model, "site", store, held_out, rows, rows[:1], law)  # type: ignore[arg-type]


def trained_reader(run: peira.Run, **settings: Any) -> tuple[dict[str, Tensor], Tensor, Any]:
    """A network trained on the grammar, and its activations with gradients at the first block."""
    model = reader(settings["context"], settings["width"], settings["layers"]).to(run.device)
    letters = text_tokens(settings["letters"], run.seed)
    train_reader(
        model, letters, settings["host_steps"], batch=24, generator=run.generator,
        watch=lambda save: run.steps(settings["host_steps"], save, "reader"),
        learning_rate=6e-3 if settings["layers"] == 2 else 1e-3,
    )  # fmt: skip
    count = max(1, settings["rows"] // settings["context"])
    inputs = crops(letters, count, settings["context"] + 1, run.generator).to(run.device)
    store = ActivationStore.from_model(model, "blocks.0", token_batches(inputs, 64))
    return {name: value.cpu() for name, value in model.state_dict().items()}, inputs.cpu(), store


def empty(cell: Cell, host: Host | None = None) -> Dictionary:
    """The cell's dictionary before it is fitted, with parameters where the host is given."""
    d = None if host is None else host.store.activations.shape[1]
    if cell.method in ("topk", "end-to-end", "random"):
        return GSAE(cell.h, cell.k, cell.beta, "topk", d)
    if cell.method == "shuffled":
        mode: Literal["additive", "product"] = "product" if cell.host == "planted" else "additive"
        return GSAE(cell.h, cell.k, cell.beta, mode, d)
    if cell.method in G_SAES:
        return GSAE(cell.h, cell.k, cell.beta, cell.method, d)  # type: ignore[arg-type]
    if cell.method == "pca":
        return PCADictionary(cell.k, d)
    kinds = {"relu": ReLUSAE, "gated": GatedSAE, "jumprelu": JumpReLUSAE}
    return kinds[cell.method](cell.h, cell.k, d)


def fitted(cell: Cell, run: peira.Run, host: Host) -> Dictionary:
    """The cell's dictionary, learnt with the same budget as all others."""
    recipe = SAERecipe(cell.steps, cell.batch, cell.learning_rate)
    dictionary, draws = empty(cell), run.generator
    if cell.method == "random":
        start(dictionary, host.store, None, recipe, draws, run.device)
    elif cell.method == "end-to-end":
        fit_end_to_end(
            dictionary, host.model, host.site, host.inputs, host.store, recipe, draws,
            lambda save: run.steps(cell.steps, save),
        )  # fmt: skip
    else:
        apart = torch.Generator().manual_seed(SHUFFLE + run.seed)
        store = host.store.shuffled(apart) if cell.method == "shuffled" else host.store
        dictionary.fit(
            store, None, recipe, draws, lambda save: run.steps(cell.steps, save), run.device
        )
    return dictionary


def shared_topk(run: peira.Run, **settings: Any) -> dict[str, Tensor]:
    """State of the TopK dictionary of one seed."""
    cell = Cell(**settings)
    return {
        name: value.cpu()
        for name, value in fitted(cell, run, host_of(cell, run)).state_dict().items()
    }


def _steering(
    cell: Cell, run: peira.Run, host: Host, dictionary: Dictionary, held_out: ActivationStore
) -> dict[str, float | peira.Censored]:
    """Mean effect of a push of equal length along randomly drawn live units."""
    live = (dictionary.firing(held_out) > 0).nonzero().squeeze(1)
    some = live[torch.randperm(len(live), generator=run.generator)[: cell.units]]
    lengths = torch.as_tensor(host.store.activations).float().norm(dim=1)
    moved = steering_effects(
        host.model, host.site, host.contexts, dictionary.decoder[some.to(run.device)],
        cell.strength * float(lengths.mean()),
    )  # fmt: skip
    return {"steering_kl": float(moved.kl.mean()), "steering_l2": float(moved.l2.mean())}


def _network(table: pd.DataFrame) -> dict[str, Any]:
    """The rows of the trained network at the k where all methods meet."""
    rows = table[(table["host"] == "text") & (table["method"] == "pca")]
    return {"host": "text", "k": int(rows["k"].iloc[0]) if len(rows) else MEET}


def _seeds_below(
    table: pd.DataFrame, metric: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> dict[str, bool]:
    first, second = (v.select(table, group).set_index("seed")[metric] for group in (a, b))
    both = first.index.intersection(second.index)
    return {f"seed {seed}": bool(first[seed] < second[seed]) for seed in sorted(both)}


def _recovery(table: pd.DataFrame, claim: Claim) -> v.Verdict:
    """Small features found; that neither dictionary finds one says nothing about them."""
    product, topk = (
        {"host": "planted", "k": ACTIVE, "method": name} for name in ("product", "topk")
    )
    verdict = v.larger(table, "recovered_small", product, topk, claim)
    found = [v.select(table, group)["recovered_small"].sum() for group in (product, topk)]
    if any(found):
        return verdict
    return replace(verdict, verdict="inconclusive", note="neither finds any")


def gains(table: pd.DataFrame, method: Method) -> dict[str, bool]:
    """For each k: is the loss below TopK's in every seed, by an interval over texts?"""
    rows = v.select(table, {"host": "text", "method": method})
    return {f"k = {k}": bool((part["gain_low"] > 0).all()) for k, part in rows.groupby("k")}


def with_controls(table: pd.DataFrame) -> pd.DataFrame:
    """The table, and rows of what a g-SAE's gradient does where it was not learnt with.

    "trained without": TopK's units, selected with the gradient at inference only. "trained with
    shuffled": gradients of other rows in training, the right ones at inference. "selected with
    shuffled": the g-SAE, with gradients of other rows at inference.
    """
    import pandas as pd

    product, shuffled = (v.select(table, {"method": name}) for name in ("product", "shuffled"))
    made = [
        rows.assign(method=name, loss=rows["loss_intact"] + rows[delta])
        for name, rows, delta in (
            ("trained without", product, "delta_topk_hinted"),
            ("trained with shuffled", shuffled, "delta_gradient"),
            ("selected with shuffled", product, "delta_shuffled"),
        )
        if delta in rows
    ]
    return pd.concat([table, *made], ignore_index=True)
