"""Commands for a person's own network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from peira.engine.files import atomic_path
from peira.graphs.graphex_mfg.baselines import LpGraphon, heterogeneous_mean_field
from peira.graphs.graphex_mfg.games import named_game
from peira.graphs.graphex_mfg.graphex import SeparablePowerLaw
from peira.graphs.graphex_mfg.learning import propagate, solve
from peira.graphs.graphex_mfg.networks import degrees_of, fit_graphex, read_network
from peira.graphs.graphex_mfg.simulation import delta_mu, simulate

__all__ = ["compare", "equilibrium", "fit", "sample"]

NETWORK = Annotated[
    Path, typer.Argument(help="edge list `u v`, SNAP text, KONECT out.*, or .mtx; also .gz")
]
GAME = Annotated[
    str, typer.Option(help="sis, nonlinear-sis, threshold-sis, sir, rumour or colouring")
]


def fit(network: NETWORK) -> None:
    """Fit a power-law graphex to a network and say whether its limit applies."""
    found = fit_graphex(network)
    law = found.graphex.degree_law(3, found.nu)
    degrees = degrees_of(read_network(network))
    table = Table("quantity", "network", "fitted graphex")
    table.add_row("nodes", str(found.nodes), f"{found.graphex.expected_nodes(found.nu):.0f}")
    table.add_row("edges", str(found.edges), f"{found.graphex.expected_edges(found.nu):.0f}")
    for k in range(3):
        share = (degrees == k + 1).mean()
        table.add_row(f"share of degree {k + 1}", f"{share:.3f}", f"{law[k]:.3f}")
    low, high = found.sigma_interval
    table.add_row("sigma (95% interval)", "", f"{found.sigma:.3f} ({low:.3f} to {high:.3f})")
    table.add_row("size nu", "", f"{found.nu:.1f}")
    table.add_row("tail exponent", f"{found.tail_exponent:.2f}", f"{1 + found.sigma:.2f}")
    Console().print(table)


def sample(
    out: Annotated[Path, typer.Argument(help="edge list to write")],
    sigma: float = 0.5,
    nu: float = 150.0,
    seed: int = 0,
) -> None:
    """Sample a sparse power-law graph and write its edges, one `u v` a line."""
    graph = SeparablePowerLaw(sigma).sample(nu, np.random.default_rng(seed)).tocoo()
    once = graph.row < graph.col
    edges = np.column_stack([graph.row[once], graph.col[once]])
    with atomic_path(out) as temporary:
        np.savetxt(temporary, edges, fmt="%d")
    Console().print(f"{graph.shape[0]} nodes, {len(edges)} edges: {out}")


def equilibrium(
    network: NETWORK,
    out: Annotated[Path, typer.Argument(help="JSON file for the policies")],
    game: GAME = "sis",
    kstar: int = 10,
    iterations: int = 300,
    rate: float = 0.3,
    trials: int = 20,
    seed: int = 0,
) -> None:
    """Learn the equilibrium, check it by simulating the network, and write the policies."""
    rules, graph = named_game(game), read_network(network)
    console = Console()
    with console.status("learning"):
        found = solve(rules, fit_graphex(network).graphex, kstar, iterations, rate)
    with console.status("simulating"):
        played = simulate(rules, graph, found, trials, np.random.default_rng(seed))
    classes = [f"degree {k}" for k in range(1, kstar + 1)] + ["core"]
    table = Table(
        "class", "agents", "most likely first action", "exploitability", "return on the graph"
    )
    for number, name in enumerate(classes):
        inside = played.classes == number
        first = found.policies[number, 0].argmax(-1)
        table.add_row(
            name,
            str(int(inside.sum())),
            ", ".join(f"{x}: {rules.actions[u]}" for x, u in zip(rules.states, first, strict=True)),
            f"{found.gains[0, number]:.3f} -> {found.gains[-1, number]:.3f}",
            f"{played.returns[inside].mean():.2f}" if inside.any() else "",
        )
    console.print(table)
    error = delta_mu(played.mean_fields, found.mean_field(played.degrees))
    console.print(f"mean-field error {error:.2f} % over {trials} simulations")
    document = {
        "game": game, "states": rules.states, "actions": rules.actions, "classes": classes,
        "policies": found.policies.tolist(), "mean_fields": found.mean_fields.tolist(),
    }  # fmt: skip
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def compare(
    network: NETWORK, game: GAME = "sis", kstar: int = 10, trials: int = 50, seed: int = 0
) -> None:
    """Error of the limits' mean fields on a network, all agents playing uniformly."""
    rules, graph = named_game(game), read_network(network)
    degrees = degrees_of(graph)
    graphex = fit_graphex(network).graphex
    hybrid = propagate(rules, graphex, kstar)
    with Console().status("simulating"):
        played = simulate(rules, graph, hybrid, trials, np.random.default_rng(seed))
    mixed = heterogeneous_mean_field(rules, degrees, kstar)
    predicted = {
        "hybrid graphex": hybrid.mean_field(degrees),
        "core alone (plain mean field)": propagate(rules, graphex, 0).mean_field(degrees),
        "L^p graphon": propagate(rules, LpGraphon(degrees), 0).mean_field(degrees),
        "heterogeneous mean field": np.tensordot(hybrid.weights(degrees), mixed, 1),
    }
    table = Table("limit", "mean-field error (%)")
    for name, field in predicted.items():
        table.add_row(name, f"{delta_mu(played.mean_fields, field):.2f}")
    Console().print(table)
