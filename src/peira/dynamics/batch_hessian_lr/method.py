"""The curvature that a batch sees, the largest learning rate it allows, and a tuner from both.

Granziol, Zohren, Roberts, "Learning Rates as a Function of Batch Size: A Random Matrix Theory
Approach to Neural Network Training", JMLR 23 (2022), arXiv 2006.09092.
"""

from __future__ import annotations

from peira.dynamics.batch_hessian_lr.baselines import AdaHessian, ArmijoSGD
from peira.dynamics.batch_hessian_lr.law import (
    ASSUMPTIONS,
    BatchSpectrumLaw,
    Curvature,
    Estimate,
    Landscape,
    batch_spectrum_law,
    curvature,
)
from peira.dynamics.batch_hessian_lr.matrices import (
    Spike,
    effective_batch,
    spiked_wigner,
    spiked_wishart,
)
from peira.dynamics.batch_hessian_lr.rates import (
    heavy_ball,
    max_lr,
    min_damping,
    noise_scale,
    noise_scale_lr,
    rescale_lr,
)
from peira.dynamics.batch_hessian_lr.sweep import LRRange, LRSweep, lr_range_test, measure_max_lr
from peira.dynamics.batch_hessian_lr.tuner import SLQTuner, Tuning

__all__ = [
    "ASSUMPTIONS",
    "AdaHessian",
    "ArmijoSGD",
    "BatchSpectrumLaw",
    "Curvature",
    "Estimate",
    "LRRange",
    "LRSweep",
    "Landscape",
    "SLQTuner",
    "Spike",
    "Tuning",
    "batch_spectrum_law",
    "curvature",
    "effective_batch",
    "heavy_ball",
    "lr_range_test",
    "max_lr",
    "measure_max_lr",
    "min_damping",
    "noise_scale",
    "noise_scale_lr",
    "rescale_lr",
    "spiked_wigner",
    "spiked_wishart",
]
