"""Critical periods: deficits in any model, the paper's equations, its networks and its tasks."""

from peira.dynamics.critical_periods.completion import (
    Transfer,
    low_rank_matrix,
    matrix_transfer,
    related_matrix,
)
from peira.dynamics.critical_periods.deficits import DeficitSchedule
from peira.dynamics.critical_periods.pathways import (
    PathwayTask,
    PathwayTrainer,
    balanced_pathways,
    compress,
    gaussian_pathways,
    hierarchy,
    initial_strengths,
    two_views,
)
from peira.dynamics.critical_periods.reduced import (
    conserved,
    lasting_strengths,
    pathway_dynamics,
)
from peira.dynamics.critical_periods.scan import CriticalPeriod, critical_period_scan, view_scan
from peira.dynamics.critical_periods.spectrum import (
    end_to_end_rate,
    singular_flow,
    singular_rates,
)

__all__ = [
    "CriticalPeriod",
    "DeficitSchedule",
    "PathwayTask",
    "PathwayTrainer",
    "Transfer",
    "balanced_pathways",
    "compress",
    "conserved",
    "critical_period_scan",
    "end_to_end_rate",
    "gaussian_pathways",
    "hierarchy",
    "initial_strengths",
    "lasting_strengths",
    "low_rank_matrix",
    "matrix_transfer",
    "pathway_dynamics",
    "related_matrix",
    "singular_flow",
    "singular_rates",
    "two_views",
    "view_scan",
]
