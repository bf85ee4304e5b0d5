"""In-context classification: task, networks, progress measures, and models of the timing.

Reddy, "The mechanistic basis of data dependence and abrupt learning in an in-context
classification task", arXiv 2312.03002.
"""

from __future__ import annotations

from peira.dynamics.icl_abrupt.model import Classifier, InContextNet, InductionHead, stack, unstack
from peira.dynamics.icl_abrupt.report import (
    bayes_in_weights,
    icl_report,
    induction_scores,
    nearest_in_context,
    record_attention,
)
from peira.dynamics.icl_abrupt.task import ICLTask, Sequences, project
from peira.dynamics.icl_abrupt.timing import (
    ICLTiming,
    TimingFit,
    fit_timing,
    icl_timing_model,
    nested_logit_loss,
)
from peira.dynamics.icl_abrupt.training import ICLRecipe, train_icl, train_together

__all__ = [
    "Classifier",
    "ICLRecipe",
    "ICLTask",
    "ICLTiming",
    "InContextNet",
    "InductionHead",
    "Sequences",
    "TimingFit",
    "bayes_in_weights",
    "fit_timing",
    "icl_report",
    "icl_timing_model",
    "induction_scores",
    "nearest_in_context",
    "nested_logit_loss",
    "project",
    "record_attention",
    "stack",
    "train_icl",
    "train_together",
    "unstack",
]
