"""What a network does with the four test sets, and the progress measures of its induction head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from peira.dynamics.icl_abrupt.task import TEST_SETS, ICLTask, Sequences, stack_sequences
from peira.engine.errors import PeiraError

__all__ = [
    "bayes_in_weights",
    "icl_report",
    "induction_scores",
    "nearest_in_context",
    "record_attention",
]

Report = dict[str, float]
# Sequences in each test set; the paper has 10^4.
TEST_SIZE = 1000


def icl_report(
    model: Callable[[Tensor], Any],
    task: ICLTask,
    attention: Callable[[Tensor], Sequence[Tensor]] | None = None,
    count: int = TEST_SIZE,
) -> Report:
    """Accuracies on the test sets, and progress measures on novel classes.

    Args:
        model: maps tokens (S, 2N+1, dim) to logits (S, L).
        task: gives the test sets.
        attention: maps tokens to the attention maps of two layers, (S, T, T) each (of the second
            the last row will do); default: the model's own `with_attention`. For other modules see
            `record_attention`.
        count: sequences in each test set.

    Returns:
        `test`, `ic`, `ic2`, `iwl`: accuracies. `cla`: probability on labels of the context. With
        attention also `ila1`, `tla2`, `tia2`, see `induction_scores`.

    Raises:
        PeiraError: logits of another shape than (S, L).
    """
    sets = task.test_sets(count)
    with torch.no_grad():
        logits = {name: _tensor(model(sets[name].tokens)) for name in TEST_SETS}
    for name, values in logits.items():
        if values.shape != (count, task.L):
            raise PeiraError(
                f"the model gives {tuple(values.shape)} for the set {name!r}; expected "
                f"({count}, {task.L})"
            )
    maps = None
    with torch.no_grad():
        if attention is not None:
            maps = attention(sets["ic"].tokens)
        elif hasattr(model, "with_attention"):
            maps = model.with_attention(sets["ic"].tokens)[1]
    return {name: float(value) for name, value in _measures(logits, sets, maps).items()}


def stacked_report(model: nn.Module, sets: Mapping[Any, Sequences]) -> list[Report]:
    """`icl_report` of each network of a stacked module that has `with_attention`."""
    logits, maps = {}, None
    with torch.no_grad():
        for name in TEST_SETS:
            logits[name], found = model.with_attention(sets[name].tokens)
            maps = found if name == "ic" else maps
    measured = _measures(logits, sets, maps)
    names = list(measured)
    return [
        dict(zip(names, values, strict=True))
        for values in torch.stack([measured[name] for name in names], dim=1).tolist()
    ]


def stacked_sets(
    tasks: Sequence[ICLTask], count: int, device: torch.device
) -> dict[Any, Sequences]:
    """Test sets of several tasks of one shape, for `stacked_report`."""
    several = [task.test_sets(count) for task in tasks]
    return {
        kind: _to(stack_sequences([sets[kind] for sets in several]), device) for kind in TEST_SETS
    }


def induction_scores(
    attn1: Float[Tensor, "*nets S T T"],
    attn2: Float[Tensor, "*nets S *rows T"],
    matches: Bool[Tensor, "*nets S N"] | None = None,
) -> dict[str, Tensor]:
    """How far two attention maps are an induction head.

    Args:
        attn1: layer 1, rows attend to columns; T = 2N+1.
        attn2: layer 2, all rows, or the last token's alone.
        matches: the pairs of the context that are of the target's class; None leaves the last
            two scores out.

    Returns:
        `ila1`: attention in layer 1 of a label to its own item. `tla2`, `tia2`: attention in
        layer 2 of the target to the labels, and to the items, of its class. Means over sequences.

    Reddy 2023, section 3.
    """
    labels = torch.arange(1, attn1.shape[-1], 2)
    scores = {"ila1": attn1[..., labels, labels - 1].mean(dim=-1).mean(dim=-1)}
    if matches is None:
        return scores
    last = attn2[..., -1, :] if attn2.ndim == attn1.ndim else attn2
    for name, places in (("tla2", labels), ("tia2", labels - 1)):
        scores[name] = (last[..., places] * matches).sum(dim=-1).mean(dim=-1)
    return scores


def record_attention(model: nn.Module, layers: Sequence[str]) -> Callable[[Tensor], list[Tensor]]:
    """Read attention maps of any module through hooks.

    Args:
        model: called with tokens.
        layers: names of the submodules whose output is a map of attention weights, or a tuple with
            one (as of `nn.MultiheadAttention` with `need_weights`); heads are averaged.

    Returns:
        A function of tokens that gives the maps, for `icl_report`'s `attention`.
    """
    modules = [model.get_submodule(name) for name in layers]

    def attention(tokens: Tensor) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        hooks = [
            module.register_forward_hook(
                lambda _, __, output, place=place: found.update({place: _map(output, tokens)})
            )
            for place, module in enumerate(modules)
        ]
        try:
            model(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for place, name in enumerate(layers) if place not in found]
        if missing:
            raise PeiraError(f"the model did not call {missing[0]!r}")
        return [found[place] for place in range(len(modules))]

    return attention


def nearest_in_context(task: ICLTask) -> Callable[[Tensor], Tensor]:
    """The oracle of in-context learning: the label next to the item nearest to the target."""

    def logits(tokens: Tensor) -> Tensor:
        content = tokens[..., task.places :]
        distance = (content[..., :-1:2, :] - content[..., -1:, :]).square().sum(dim=-1)
        nearest = 2 * distance.argmin(dim=-1) + 1
        rows = torch.arange(len(tokens), device=tokens.device)
        return -torch.cdist(content[rows, nearest], task.label_vectors.to(tokens))

    return logits


def bayes_in_weights(task: ICLTask) -> Callable[[Tensor], Tensor]:
    """The best classifier without context: log p(label | target) from the true class means.

    Exact for simulated items: x given its class is normal with mean mu_k / sqrt(1 + eps^2) and
    variance eps^2 / (1 + eps^2) / D in each dimension. For features: their class means, and the
    variance that simulated items with the task's eps would have.
    """
    means = task.class_means / (1 + task.eps**2) ** 0.5
    variance = max(task.eps**2 / (1 + task.eps**2) / task.D, 1e-12)
    log_prior = task.frequencies.log().float()
    labels = torch.arange(task.K) % task.L

    def logits(tokens: Tensor) -> Tensor:
        target = tokens[..., -1, task.places :]
        log = log_prior - torch.cdist(target, means.to(target)).square() / (2 * variance)
        by_label = [log[:, labels == label].logsumexp(dim=1) for label in range(task.L)]
        return torch.stack(by_label, dim=1)

    return logits


def _measures(
    logits: Mapping[Any, Tensor], sets: Mapping[Any, Sequences], maps: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    measured = {
        name: (values.argmax(dim=-1) == sets[name].labels).float().mean(dim=-1)
        for name, values in logits.items()
    }
    novel = sets["ic"]
    present = torch.zeros_like(logits["ic"]).scatter_(-1, novel.context_labels, 1.0)
    share = logits["ic"].softmax(dim=-1) * present
    measured["cla"] = share.sum(dim=-1).mean(dim=-1)
    if maps is not None and len(maps) == 2:
        measured |= induction_scores(maps[0], maps[1], novel.matches)
    return measured


def _map(output: Any, tokens: Tensor) -> Tensor:
    """The attention weights in what a submodule returned, averaged over heads."""
    count, length = tokens.shape[:2]
    for value in output if isinstance(output, tuple | list) else [output]:
        if isinstance(value, Tensor) and value.shape[-2:] == (length, length):
            return value if value.ndim == 3 else value.reshape(count, -1, length, length).mean(1)
    raise PeiraError(f"no attention map of shape (..., {length}, {length}) in a layer's output")


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _to(sequences: Sequences, device: torch.device) -> Sequences:
    return Sequences(*(value.to(device) for value in vars(sequences).values()))
