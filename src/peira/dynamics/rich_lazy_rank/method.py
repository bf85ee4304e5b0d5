"""How connectivity structure shapes rich and lazy learning: measure it, and set it.

Liu, Baratin, Cornford, Mihalas, Shea-Brown, Lajoie (ICLR 2024), arXiv 2310.08513. The measures of
change are those of `peira.dynamics.probes`; `recurrent_laziness` puts them together as the paper
does. `effective_rank`, `laziness` and `LazinessTracker` are there too.
"""

from __future__ import annotations

from peira.dynamics.rich_lazy_rank.compare import compare_inits
from peira.dynamics.rich_lazy_rank.connectome import Connectome, read_connectome
from peira.dynamics.rich_lazy_rank.inits import (
    aligned_init,
    block_init,
    chain_init,
    connectome_init,
    gaussian_init,
    low_rank_init,
    orthogonal_init,
    shuffle_weights,
)
from peira.dynamics.rich_lazy_rank.linear import linear_flow, linear_kernel
from peira.dynamics.rich_lazy_rank.network import RateRNN, RecurrentLaziness, recurrent_laziness

__all__ = [
    "Connectome",
    "RateRNN",
    "RecurrentLaziness",
    "aligned_init",
    "block_init",
    "chain_init",
    "compare_inits",
    "connectome_init",
    "gaussian_init",
    "linear_flow",
    "linear_kernel",
    "low_rank_init",
    "orthogonal_init",
    "read_connectome",
    "recurrent_laziness",
    "shuffle_weights",
]
