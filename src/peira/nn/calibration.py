"""Whether confidence is worth what it says: calibration errors, proper scores, temperature.

Probabilities are (samples, classes), labels (samples,). A sample's confidence is its largest
probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class Reliability:
    """A reliability table: one row for each bin of confidence.

    Attributes:
        edges: of the bins (bins + 1).
        count: samples in each bin.
        confidence: their mean confidence; 0 in an empty bin.
        accuracy: their accuracy; 0 in an empty bin.
    """

    edges: Float[Tensor, " edges"]
    count: Int[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]

    @property
    def gaps(self) -> Float[Tensor, " bins"]:
        """|accuracy - confidence| of each bin."""
        return (self.accuracy - self.confidence).abs()


def reliability(
    probs: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"],
    bins: int = 15,
    binning: Binning = "width",
) -> Reliability:
    """Confidence against accuracy, bin by bin.

    Args:
        probs: rows that sum to one.
        labels: the true classes.
        bins: number of bins, (lower, upper] each.
        binning: of equal width in [0, 1], or of equal mass (as many samples each).

    Raises:
        ValueError: as `check_probabilities`; fewer than one bin.
    """
    check_probabilities(probs, labels)
    if bins < 1:
        raise ValueError(f"bins is 1 or more; got {bins}")
    confidence, predicted = probs.max(1)
    confidence, correct = confidence.double(), (predicted == labels).double()
    if binning == "width":
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.double, device=probs.device)
        where = torch.bucketize(confidence, edges[1:-1])
    else:
        order = confidence.argsort(stable=True)
        where = torch.empty_like(order)
        where[order] = torch.arange(len(order), device=order.device) * bins // len(order)
        quantiles = torch.linspace(0, 1, bins + 1, dtype=torch.double, device=probs.device)
        edges = torch.quantile(confidence, quantiles)
    count = torch.bincount(where, minlength=bins)
    share = count.clamp(min=1)
    return Reliability(
        edges,
        count,
        torch.bincount(where, confidence, minlength=bins) / share,
        torch.bincount(where, correct, minlength=bins) / share,
    )


def expected_calibration_error(
    probs: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"],
    bins: int = 15,
    binning: Binning = "width",
) -> float:
    """sum_b n_b/n |accuracy_b - confidence_b| (Naeini et al. 2015; Guo et al. 2017, equation 3).

    With bins of equal mass this is the adaptive error of Nixon et al. 2019 for the top class.
    """
    table = reliability(probs, labels, bins, binning)
    return float((table.count * table.gaps).sum() / table.count.sum())


def maximum_calibration_error(
    probs: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], bins: int = 15
) -> float:
    """The largest gap of any bin that has samples (Guo et al. 2017, equation 5)."""
    table = reliability(probs, labels, bins)
    return float(table.gaps[table.count > 0].max())


def negative_log_likelihood(probs: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Mean of -log p(label), nats; probabilities of zero count as the smallest normal double."""
    check_probabilities(probs, labels)
    found = probs.double().gather(1, labels.view(-1, 1))
    return float(-found.clamp(min=torch.finfo(torch.double).tiny).log().mean())


def brier_score(probs: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Mean squared distance to the one-hot label, summed over classes: from 0 to 2."""
    check_probabilities(probs, labels)
    hit = probs.double().gather(1, labels.view(-1, 1)).squeeze(1)
    return float((probs.double().square().sum(1) - 2 * hit + 1).mean())


def fit_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The temperature T at which softmax(logits / T) is most likely (Guo et al. 2017).

    Fitted on held-out data; 1 says that nothing is to be corrected. Searched in [0.01, 100].
    """
    from scipy.optimize import minimize_scalar

    scores = logits.detach().double()

    def loss(log_temperature: float) -> float:
        cooled = scores / float(torch.tensor(log_temperature).exp())
        return float(torch.nn.functional.cross_entropy(cooled, labels))

    # The loss is convex in 1/T, so it has one minimum in log T.
    found = minimize_scalar(loss, bounds=(-4.605, 4.605), method="bounded")
    return float(torch.tensor(float(found.x)).exp())


def calibration_report(
    probs: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], bins: int = 15
) -> dict[str, float]:
    """Accuracy, mean confidence and every measure of this module, by name."""
    check_probabilities(probs, labels)
    confidence, predicted = probs.max(1)
    return {
        "accuracy": float((predicted == labels).double().mean()),
        "confidence": float(confidence.double().mean()),
        "ece": expected_calibration_error(probs, labels, bins),
        "adaptive_ece": expected_calibration_error(probs, labels, bins, "mass"),
        "mce": maximum_calibration_error(probs, labels, bins),
        "nll": negative_log_likelihood(probs, labels),
        "brier": brier_score(probs, labels),
    }


def check_probabilities(probs: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> None:
    """Raise ValueError, naming the first wrong row, unless these are probabilities and labels."""
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            "probabilities are (samples, classes) and labels (samples,); "
            f"got {tuple(probs.shape)} and {tuple(labels.shape)}"
        )
    # What is not finite makes its row's sum so, and no comparison with that holds.
    sums = probs.sum(1)
    fine = (sums - 1).abs() <= 1e-3
    if not bool(fine.all()) or float(probs.detach().min()) < 0:
        row = int(torch.nonzero(~fine | (probs < 0).any(1))[0])
        raise ValueError(f"row {row} is no probabilities: {probs[row].tolist()} (logits, perhaps?)")
    foreign = torch.nonzero((labels < 0) | (labels >= probs.shape[1]))
    if len(foreign):
        row = int(foreign[0])
        raise ValueError(f"label {int(labels[row])} of row {row} is not 0 to {probs.shape[1] - 1}")
