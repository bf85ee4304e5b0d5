"""g-SAE: sparse dictionaries whose active units are chosen by their effect on the loss.

Olmo, Wilson, Forsey, Hepner, Howe, Wingate, "Features that Make a Difference: Leveraging Gradients
for Improved Dictionary Learning", Findings of NAACL 2025, arXiv 2411.10397. Works on any network:
activations and gradients come from forward hooks, and so does the patching that judges the result.
"""

from __future__ import annotations

from peira.explain.g_sae.baselines import GatedSAE, JumpReLUSAE, PCADictionary, ReLUSAE
from peira.explain.g_sae.dictionary import (
    GSAE,
    MODES,
    Dictionary,
    Mode,
    SparseCode,
    load_dictionary,
)
from peira.explain.g_sae.faithfulness import (
    SELECTIONS,
    Faithfulness,
    Steering,
    bootstrap_difference,
    faithfulness,
    steering_effects,
)
from peira.explain.g_sae.fitting import SAERecipe, fit_end_to_end, start
from peira.explain.g_sae.pareto import pareto
from peira.explain.g_sae.planted import Planted, PlantedNetwork
from peira.explain.g_sae.store import (
    ActivationStore,
    LossFn,
    Rows,
    cross_entropy_loss,
    probe,
    token_batches,
)

__all__ = [
    "GSAE",
    "MODES",
    "SELECTIONS",
    "ActivationStore",
    "Dictionary",
    "Faithfulness",
    "GatedSAE",
    "JumpReLUSAE",
    "LossFn",
    "Mode",
    "PCADictionary",
    "Planted",
    "PlantedNetwork",
    "ReLUSAE",
    "Rows",
    "SAERecipe",
    "SparseCode",
    "Steering",
    "bootstrap_difference",
    "cross_entropy_loss",
    "faithfulness",
    "fit_end_to_end",
    "load_dictionary",
    "pareto",
    "probe",
    "start",
    "steering_effects",
    "token_batches",
]
