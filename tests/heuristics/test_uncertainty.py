"""Scores of the mean prediction, and of how far draws spread, on cases that can be done in the head."""

import math

import numpy as np
import pytest
import torch

from baal_hf.heuristics import (
    Certainty,
    Entropy,
    Margin,
    Variance,
    certainty,
    entropy,
    margin,
    mean_std,
    variance,
    variation_ratio,
)

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


@pytest.mark.parametrize(
    ("score", "name"), [(variance, "Variance"), (mean_std, "MeanStd"), (variation_ratio, "VariationRatio")]
)
def test_spread_needs_draws(score, name: str) -> None:
    """One draw does not vary: it is refused, not scored 0."""
    with pytest.raises(ValueError, match=rf"{name} needs 2 posterior draws or more, got \[1, 2, 1\]"):
        score(FLAT)


@pytest.mark.parametrize("score", [mean_std, variation_ratio])
def test_spread_of_classes_needs_probabilities(score) -> None:
    """Votes and deviations of class probabilities are not taken of other numbers, which Variance scores."""
    with pytest.raises(ValueError, match=r"needs sums of 1 over classes, got 4 in row 0"):
        score(np.full((1, 2, 2), 2.0))


def test_variance_of_large_numbers() -> None:
    """A large mean does not swallow the variance, as a mean of squares less a square of the mean would."""
    assert variance(np.array([[[1e8 - 1, 1e8 + 3]]])) == pytest.approx(4)
    assert variance(np.array([[[4097.0, 4099.0]]], np.float32)) == pytest.approx(1)


def test_mean_std() -> None:
    """Both classes' probabilities lie 0.3 from their mean: so does the score, where the variance is 0.09."""
    probs = np.array([[[0.2, 0.8], [0.8, 0.2]]])
    assert mean_std(probs) == pytest.approx(0.3)
    assert variance(probs) == pytest.approx(0.09)


def test_mean_std_averages_classes() -> None:
    """Classes that no draw gives a chance count: deviations of ½, ½ and 0 are ⅓ on average."""
    assert mean_std(np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("votes", "expected"), [([0, 0, 0], 0), ([0, 0, 1], 1 / 3), ([2, 0, 1], 2 / 3), ([1, 1, 2, 0], 1 / 2)]
)
def test_variation_ratio(votes: list[int], expected: float) -> None:
    """The score is the share of draws outside the class that most draws find most probable, however probable."""
    probs = 0.3 * np.ones((1, 3, len(votes)))
    probs[0, votes, range(len(votes))] = 0.4
    assert variation_ratio(probs) == pytest.approx(expected)


def test_equal_classes_give_the_vote_to_the_first() -> None:
    """A draw that is undecided votes for the first class, as `argmax` does; undecided draws agree."""
    undecided, first, second = [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]
    assert variation_ratio(np.array([[undecided, first]]).mT) == 0
    assert variation_ratio(np.array([[undecided, second]]).mT) == 0.5
    assert variation_ratio(np.array([[undecided, undecided]]).mT) == 0


def test_variance_averages_positions_by_default() -> None:
    """Variance's default reduction is the mean, as in Baal."""
    values = np.zeros((1, 1, 2, 2))
    values[0, 0, 1] = [-1, 1]
    assert Variance().get_uncertainties(values) == pytest.approx(0.5)


@pytest.mark.parametrize("heuristic", [Certainty(), Margin(), Entropy()])
def test_one_draw_is_enough(heuristic) -> None:
    """Scores of the mean prediction exist for a single draw."""
    assert heuristic.get_uncertainties(FLAT) > 0
