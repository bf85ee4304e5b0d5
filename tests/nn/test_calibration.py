"""Calibration measures against hand counts, scikit-learn and known posteriors."""

import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from peira.nn import (
    brier_score,
    calibration_report,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    negative_log_likelihood,
    reliability,
)


def table():
    confidence = torch.tensor([0.55, 0.58, 0.95, 0.95, 1.0])
    labels = torch.tensor([0, 1, 0, 0, 1])
    return torch.stack([confidence, 1 - confidence], 1), labels


def test_bins_by_hand():
    probs, labels = table()
    found = reliability(probs, labels, bins=10)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert found.accuracy[5] == pytest.approx(0.5)
    assert found.confidence[9] == pytest.approx((0.95 + 0.95 + 1) / 3)
    by_hand = (2 * abs(0.5 - 0.565) + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    assert expected_calibration_error(probs, labels, 10) == pytest.approx(by_hand, abs=1e-6)
    assert maximum_calibration_error(probs, labels, 10) == pytest.approx(0.3, abs=1e-6)


def test_bins_of_equal_mass_hold_as_many_samples():
    torch.manual_seed(0)
    probs = torch.randn(107, 4).softmax(1)
    found = reliability(probs, torch.randint(4, (107,)), bins=10, binning="mass")
    assert set(found.count.tolist()) == {10, 11}
    assert (found.confidence.diff() >= 0).all()


def test_a_sample_on_an_edge_belongs_to_the_lower_bin():
    probs = torch.tensor([[0.5, 0.5], [0.6, 0.4]], dtype=torch.double)
    assert reliability(probs, torch.tensor([0, 0]), bins=2).count.tolist() == [1, 1]


def test_proper_scores_are_those_of_scikit_learn():
    torch.manual_seed(0)
    probs, labels = torch.randn(50, 3).double().softmax(1), torch.randint(3, (50,))
    assert negative_log_likelihood(probs, labels) == pytest.approx(log_loss(labels, probs))
    binary = torch.stack([1 - probs[:, 0], probs[:, 0]], 1)
    halves = (labels == 0).long()
    # scikit-learn's binary score counts one of the two classes.
    assert brier_score(binary, halves) == pytest.approx(2 * brier_score_loss(halves, binary[:, 1]))


def test_labels_drawn_from_the_probabilities_are_calibrated():
    torch.manual_seed(0)
    logits = 2 * torch.randn(40_000, 5)
    labels = torch.multinomial(logits.softmax(1), 1).squeeze(1)
    assert expected_calibration_error(logits.softmax(1), labels) < 0.01
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.09)
    sharp = calibration_report((3 * logits).softmax(1), labels)
    assert sharp["ece"] > 0.1
    assert sharp["confidence"] > sharp["accuracy"]


@pytest.mark.parametrize(
    ("probs", "labels", "why"),
    [
        ([[2.0, -1.0]], [0], "row 0 is no probabilities"),
        ([[0.5, 0.5], [3.0, 1.0]], [0, 0], "row 1"),
        ([[0.5, 0.5]], [2], "label 2 of row 0"),
        ([[0.5, 0.5]], [0, 1], "samples"),
    ],
)
def test_what_is_no_probability_is_refused(probs, labels, why):
    with pytest.raises(ValueError, match=why):
        calibration_report(torch.tensor(probs), torch.tensor(labels))
