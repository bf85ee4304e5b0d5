"""Sparsity against faithfulness: the comparison that every dictionary method is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peira.explain.g_sae.dictionary import GSAE, Mode
from peira.explain.g_sae.faithfulness import faithfulness
from peira.explain.g_sae.fitting import SAERecipe

if TYPE_CHECKING:
    import pandas as pd

    from peira.explain.g_sae.store import ActivationStore, LossFn


def pareto(
    store: ActivationStore,
    model: nn.Module,
    site: str,
    batches: Sequence[tuple[Tensor, Tensor]],
    h: int,
    ks: Iterable[int],
    modes: Iterable[Mode] = ("topk", "additive"),
    beta: float = 10.0,
    recipe: SAERecipe | None = None,
    loss_fn: LossFn | None = None,
    seed: int = 0,
    watch: Callable[[Mode, int], None] | None = None,
) -> pd.DataFrame:
    """Fit a dictionary of every mode for every k, on the same batches, and patch each in.

    Args:
        store: activations and gradients to fit on.
        model, site: the network and the place.
        batches: pairs of inputs and targets that were not fitted on.
        h, ks, modes, beta: of the dictionaries.
        recipe: the same for all.
        loss_fn: as `faithfulness`.
        seed: of the initial directions, the batches and the shuffle.
        watch: told each mode and k before it is fitted.

    Returns:
        One row for each mode, k and selection: `mode`, `k` and the columns of
        `Faithfulness.table`, and `loss_intact`, `loss_ablated`.
    """
    import pandas as pd

    tables = []
    for k in ks:
        for mode in modes:
            if watch is not None:
                watch(mode, k)
            made = GSAE(h, k, beta, mode)
            made.fit(store, recipe=recipe, generator=torch.Generator().manual_seed(seed))
            found = faithfulness(made, model, site, batches, loss_fn, seed)
            rows = found.table().assign(
                mode=mode, k=k,
                loss_intact=found.mean(found.intact), loss_ablated=found.mean(found.ablated),
            )  # fmt: skip
            tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    return table[["mode", "k", *(name for name in table if name not in ("mode", "k"))]]
