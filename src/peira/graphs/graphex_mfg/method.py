"""Graphex mean field games: everything that a person imports, from one place.

Fabian, Cui, Koeppl: Learning Mean Field Games on Sparse Graphs: A Hybrid Graphex Approach,
ICLR 2024.
"""

from __future__ import annotations

from peira.graphs.graphex_mfg.baselines import LpGraphon, heterogeneous_mean_field
from peira.graphs.graphex_mfg.deviation import best_response_on_graph
from peira.graphs.graphex_mfg.games import SIR, SIS, Colouring, NonlinearSIS, Rumour
from peira.graphs.graphex_mfg.graphex import GeneralisedGamma, SeparablePowerLaw
from peira.graphs.graphex_mfg.learning import Classes, propagate, solve
from peira.graphs.graphex_mfg.networks import fit_graphex
from peira.graphs.graphex_mfg.persistence import keep_neighbours
from peira.graphs.graphex_mfg.simulation import delta_mu, simulate
from peira.graphs.graphex_mfg.tabulated import TabulatedGraphex

__all__ = [
    "SIR",
    "SIS",
    "Classes",
    "Colouring",
    "GeneralisedGamma",
    "LpGraphon",
    "NonlinearSIS",
    "Rumour",
    "SeparablePowerLaw",
    "TabulatedGraphex",
    "best_response_on_graph",
    "delta_mu",
    "fit_graphex",
    "heterogeneous_mean_field",
    "keep_neighbours",
    "propagate",
    "simulate",
    "solve",
]
