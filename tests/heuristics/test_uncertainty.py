"""Certainty, margin, entropy and variance on cases that can be done in the head."""

import math

import numpy as np
import pytest
import torch

from baal_hf.heuristics import Certainty, Entropy, Margin, Variance, certainty, entropy, margin, variance

CLASSIFICATION = [certainty, margin, entropy]
ONE_HOT = np.array([[[1.0], [0.0]]])  # [N, C, T]
FLAT = np.array([[[0.5], [0.5]]])


@pytest.mark.parametrize("score", CLASSIFICATION)
def test_direction(score) -> None:
    """Higher is more informative: an undecided row outranks a certain one, whose score is 0."""
    sure, unsure = score(ONE_HOT), score(FLAT)
    assert sure == 0 < unsure


@pytest.mark.parametrize(("score", "top"), [(certainty, 0.5), (margin, 1.0), (entropy, math.log(2))])
def test_upper_end(score, top: float) -> None:
    """The flat distribution over two classes reaches the upper end of the range."""
    assert score(FLAT) == pytest.approx(top)


@pytest.mark.parametrize("score", CLASSIFICATION)
def test_probabilities_are_averaged_not_logits(score) -> None:
    """The mean over draws is that of probabilities, where averaging logits would give another score."""
    logits = torch.tensor([[[9.0, -1.0], [0.0, 0.0]]]).double()  # [1, C, T]
    probs = logits.softmax(1)
    right, wrong = score(probs.mean(-1, keepdim=True)), score(logits.mean(-1, keepdim=True).softmax(1))
    assert score(probs).item() == pytest.approx(right.item())
    assert abs(right.item() - wrong.item()) > 0.1


@pytest.mark.parametrize("score", CLASSIFICATION)
def test_rounding_never_goes_below_zero(score) -> None:
    """A certain row whose probabilities sum to 1.0005 by rounding scores 0, not less."""
    assert score(1.0005 * ONE_HOT) == 0


@pytest.mark.parametrize("heuristic", [Certainty(), Margin(), Entropy()])
def test_multi_label_is_not_softmaxed(heuristic) -> None:
    """Sigmoids of several labels are refused with their row and sum, not normalised."""
    sigmoids = np.full((3, 4, 2), 0.25)
    sigmoids[1] = 0.9
    with pytest.raises(ValueError, match=r"sums of 1 over classes, got 3\.6 in row 1\..*logits.*multi-label"):
        heuristic(sigmoids)


def test_single_logit_is_refused() -> None:
    """One class has entropy 0 whatever the model says, so it is refused with the way out."""
    with pytest.raises(
        ValueError, match=r"Entropy needs 2 classes or more, got C = 1 in \[4, 1, 2\]\. Stack .*Variance"
    ):
        entropy(np.ones((4, 1, 2)))


def test_variance_takes_any_finite_number() -> None:
    """Variance is the population variance, of regression outputs too: -1 and 3 vary by 4."""
    assert variance(np.array([[[-1.0, 3.0]]])) == pytest.approx(4)


def test_variance_needs_draws() -> None:
    """One draw does not vary: it is refused, not scored 0."""
    with pytest.raises(ValueError, match=r"Variance needs 2 posterior draws or more, got \[1, 2, 1\]"):
        variance(FLAT)


def test_variance_averages_positions_by_default() -> None:
    """Variance's default reduction is the mean, as in Baal."""
    values = np.zeros((1, 1, 2, 2))
    values[0, 0, 1] = [-1, 1]
    assert Variance().get_uncertainties(values) == pytest.approx(0.5)


@pytest.mark.parametrize("heuristic", [Certainty(), Margin(), Entropy()])
def test_one_draw_is_enough(heuristic) -> None:
    """Scores of the mean prediction exist for a single draw."""
    assert heuristic.get_uncertainties(FLAT) > 0
