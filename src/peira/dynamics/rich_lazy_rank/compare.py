"""One's own initial weights beside others, on the paper's tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from peira.data.errors import DataError
from peira.dynamics.probes import effective_rank
from peira.dynamics.rich_lazy_rank.inits import gaussian_init, shuffle_weights
from peira.dynamics.rich_lazy_rank.network import recurrent_laziness
from peira.dynamics.rich_lazy_rank.tasks import Name, Problem, stream
from peira.dynamics.rich_lazy_rank.training import Recipe, Steps, train_together

if TYPE_CHECKING:
    import pandas as pd


def compare_inits(
    weights: Mapping[str, Float[Tensor, "N N"]],
    task: Name = "2AF",
    *,
    seeds: int = 3,
    recipe: Recipe | None = None,
    kernel_inputs: int = 32,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Train networks from several initial recurrent weights to one loss; how lazily did each learn?

    Args:
        weights: name -> initial recurrent weights, all of one size, rows postsynaptic.
        task: "2AF", "DMS", "CXT", "digits" or "sMNIST".
        seeds: input and output weights and trials are drawn anew for each.
        recipe: how, and to which loss.
        kernel_inputs: probe inputs that the tangent kernel is of.
        steps: makes the training loop, for a progress bar.

    Returns:
        A row for each name and seed: participation_rank, leading_singular_value, norm; steps, loss,
        reached (whether it got to the target loss); kernel_alignment, representation_alignment,
        sign_similarity, weight_change, which are NaN where training diverged.

    Raises:
        DataError: nothing to compare, weights of different sizes, an unknown task.
    """
    import pandas as pd

    recipe = recipe or Recipe()
    sizes = {tuple(matrix.shape) for matrix in weights.values()}
    if len(sizes) != 1 or seeds < 1:
        raise DataError("weights", value=sorted(sizes), expected="one size, and a seed or more")
    problems = {seed: Problem.make(task, recipe.batch_size, seed) for seed in range(seeds)}
    pairs = [(name, seed) for seed in problems for name in weights]
    networks = []
    for name, seed in pairs:
        network = problems[seed].network(len(weights[name]), seed)
        network.set_recurrent(weights[name])
        networks.append(network)
    endings = train_together(
        networks, [seed for _, seed in pairs], problems,
        {seed: stream(seed, "training") for seed in problems}, recipe, steps,
    )  # fmt: skip
    rows = []
    for (name, seed), network, ending in zip(pairs, networks, endings, strict=True):
        row = {
            "init": name, "seed": seed, **sizes_of(weights[name]),
            "steps": ending.step, "loss": ending.loss, "reached": ending.reached,
        }  # fmt: skip
        if math.isfinite(ending.loss):
            probe = problems[seed].probe
            found = recurrent_laziness(
                network, network.state_dict(), ending.state, probe,
                kernel_inputs=min(kernel_inputs, len(probe)),
            )  # fmt: skip
            row |= {name: value for name, value in vars(found).items() if name != "layers"}
        rows.append(row)
    return pd.DataFrame(rows)


def with_controls(weights: Float[Tensor, "N N"], seed: int = 0) -> dict[str, Tensor]:
    """Weights, their shuffles, and a Gaussian matrix, all of one Frobenius norm."""
    gaussian = gaussian_init(len(weights), generator=stream(seed, "base")).to(weights.dtype)
    draws = stream(seed, "shuffle")
    controls = {
        "given": weights,
        "entries permuted": shuffle_weights(weights, "elements", generator=draws),
        "Gaussian": gaussian * (weights.norm() / gaussian.norm()),
    }
    swapped = shuffle_weights(weights, "degrees", generator=draws)
    # Where all units are connected there is nothing to swap.
    if not swapped.equal(weights):
        controls["edges swapped"] = swapped
    return controls


def sizes_of(weights: Float[Tensor, "rows columns"]) -> dict[str, float]:
    """Four effective ranks, Frobenius norm, leading singular value, spectral radius if square."""
    square = weights.shape[0] == weights.shape[1]
    return {
        "participation_rank": effective_rank(weights, "participation"),
        "entropy_rank": effective_rank(weights, "entropy"),
        "stable_rank": effective_rank(weights, "stable"),
        "count_rank": effective_rank(weights, "count"),
        "norm": float(weights.norm()),
        "leading_singular_value": float(torch.linalg.matrix_norm(weights, 2)),
        "spectral_radius": float(torch.linalg.eigvals(weights).abs().max()) if square else math.nan,
    }
