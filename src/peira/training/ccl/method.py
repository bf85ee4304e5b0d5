"""Cyclical curriculum learning: rounds on easy-biased subsets of cyclically varying size.

Kesgin and Amasyali, "Cyclical Curriculum Learning", IEEE TNNLS 2023. Train once without a
curriculum, take the loss of every sample (`peira.nn.sample_losses`), and train a fresh network on
the rounds of a `CyclicalCurriculum`.
"""

from __future__ import annotations

from peira.training.ccl.baselines import (
    CosinePerSample,
    blend_samples,
    coteaching_losses,
    kept_by_coteaching,
)
from peira.training.ccl.curriculum import (
    Curriculum,
    CurriculumSampler,
    CyclicalCurriculum,
    SelfPacedLearning,
    StagedSelfPacedLearning,
)
from peira.training.ccl.estimator import CyclicalFit, classifier_losses
from peira.training.ccl.sampling import (
    easiest,
    effective_sample_size,
    rank_suspects,
    sampling_probabilities,
    scores_from_losses,
    weighted_subset,
)
from peira.training.ccl.sizes import (
    cyclic_from_full_sizes,
    cyclic_sizes,
    exponential_sizes,
    full_then_cyclic_sizes,
    growing_sizes,
    parabolic_sizes,
    plan_table,
    sharp_sizes,
    shrinking_sizes,
)
from peira.training.ccl.theory import NoisyLeastSquares, compare_cycle

__all__ = [
    "CosinePerSample",
    "Curriculum",
    "CurriculumSampler",
    "CyclicalCurriculum",
    "CyclicalFit",
    "NoisyLeastSquares",
    "SelfPacedLearning",
    "StagedSelfPacedLearning",
    "blend_samples",
    "classifier_losses",
    "compare_cycle",
    "coteaching_losses",
    "cyclic_from_full_sizes",
    "cyclic_sizes",
    "easiest",
    "effective_sample_size",
    "exponential_sizes",
    "full_then_cyclic_sizes",
    "growing_sizes",
    "kept_by_coteaching",
    "parabolic_sizes",
    "plan_table",
    "rank_suspects",
    "sampling_probabilities",
    "scores_from_losses",
    "sharp_sizes",
    "shrinking_sizes",
    "weighted_subset",
]
