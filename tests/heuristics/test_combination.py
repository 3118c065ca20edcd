"""Heuristics combined, on one output or several, by their scores or their ranks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics import (
    BALD,
    CVIRS,
    EPIG,
    CombineHeuristics,
    CoreSet,
    Entropy,
    KMeans,
    Margin,
    MultiLabelBALD,
    PowerSampling,
    Precomputed,
    Random,
    Variance,
    bald,
    entropy,
    margin,
    variance,
)
from baal_hf.heuristics.combination import gaussian_quantiles, ranked
from tests.laws import few


def random_probs(N: int = 30, C: int = 3, T: int = 5, seed: int = 0) -> np.ndarray:
    """Probabilities [N, C, T]."""
    return np.random.default_rng(seed).dirichlet(np.ones(C), (N, T)).transpose(0, 2, 1)


scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=20).map(np.array)


@few
@given(values=scores)
def test_ranked(values: np.ndarray) -> None:
    """Ranks are scipy's average ranks, scaled to (0, 1)."""
    np.testing.assert_allclose(ranked(values), (scipy.stats.rankdata(values) - 0.5) / len(values), atol=1e-12)


@few
@given(values=scores)
def test_quantiles(values: np.ndarray) -> None:
    """Quantiles are those of the standard normal at each rank: finite, ordered as the scores, symmetric about 0."""
    quantiles = gaussian_quantiles(values)
    shares = (scipy.stats.rankdata(values) - 0.5) / len(values)
    np.testing.assert_allclose(quantiles, scipy.stats.norm.ppf(shares), atol=1e-9)
    assert np.isfinite(quantiles).all()
    np.testing.assert_allclose(gaussian_quantiles(-values), -quantiles, atol=1e-9)


def test_weighted_sum() -> None:
    """Scores are the weighted sum of the heuristics' scores, ranked from the highest."""
    probs = random_probs()
    ranks, combined = CombineHeuristics([BALD(), Margin()], [0.8, -0.2], "sum").get_ranks(probs)
    np.testing.assert_allclose(combined, 0.8 * bald(probs) - 0.2 * margin(probs))
    np.testing.assert_array_equal(ranks, np.argsort(-combined, kind="stable"))
    np.testing.assert_allclose(
        CombineHeuristics([BALD(), Margin()])(probs, 3), np.argsort(-bald(probs) - margin(probs))[:3]
    )


def test_outputs() -> None:
    """With a list, each heuristic scores the output of its own: classes, a regressed value, scores that are there."""
    probs, values = random_probs(), np.random.default_rng(1).standard_normal((30, 2, 4, 5))
    there = np.arange(30.0)
    combined = CombineHeuristics([Entropy(), Variance(), Precomputed()], [1, 2, 3], "sum")
    expected = entropy(probs) + 2 * variance(values).mean(1) + 3 * there
    np.testing.assert_allclose(combined.get_uncertainties([probs, values, there]), expected)
    batches = ([probs[i : i + 8], values[i : i + 8], there[i : i + 8]] for i in range(0, 30, 8))
    np.testing.assert_allclose(combined.get_uncertainties(batches), expected)


@pytest.mark.parametrize("normalisation", ["rank", "quantile"])
def test_normalisation(normalisation: str) -> None:
    """By rank or quantile a heuristic's scale does not matter, and ranks are those among all batches."""
    probs = random_probs()
    small = np.random.default_rng(2).random(30)

    def made() -> CombineHeuristics:
        return CombineHeuristics([BALD(), Precomputed()], reduction="sum", normalisation=normalisation)

    def combine(scale: float) -> np.ndarray:
        return made().get_uncertainties([probs, scale * small])

    np.testing.assert_allclose(combine(1.0), combine(1e6))
    function = ranked if normalisation == "rank" else gaussian_quantiles
    np.testing.assert_allclose(combine(1.0), function(bald(probs)) + function(small))
    batches = ([probs[i : i + 7], small[i : i + 7]] for i in range(0, 30, 7))
    chunked = CombineHeuristics(
        [BALD(), Precomputed()], reduction="sum", normalisation=normalisation
    ).get_uncertainties(batches)
    np.testing.assert_allclose(chunked, combine(1.0))


def test_reductions() -> None:
    """Heuristics are put together by mean, sum, max or min of their weighted scores, or by a function of them."""
    probs = random_probs()
    both = np.stack([bald(probs), 2 * margin(probs)], axis=1)
    for reduction, expected in {
        "mean": both.mean(1),
        "sum": both.sum(1),
        "max": both.max(1),
        "min": both.min(1),
        np.prod: None,
    }.items():
        if expected is None:
            reduction, expected = (lambda scores: scores.prod(1)), both.prod(1)
        combined = CombineHeuristics([BALD(), Margin()], [1, 2], reduction)
        np.testing.assert_allclose(combined.get_uncertainties(probs), expected)


@pytest.mark.parametrize(
    "members",
    [
        lambda: [CVIRS()],
        lambda: [CVIRS(), Variance()],
        lambda: [KMeans(seed=1), Variance()],
        lambda: [CoreSet(), Variance()],
        lambda: [CombineHeuristics([Variance(), MultiLabelBALD()], normalisation="rank"), Variance()],
        lambda: [PowerSampling(CVIRS()), Variance()],
    ],
)
def test_rows_that_are_scored_together(members) -> None:
    """Where a row's score depends on the others, batches from a generator score as the whole array does."""
    probs = np.random.default_rng(0).random((40, 4, 5))  # sigmoids [N, C, T]
    rng = np.random.default_rng(1)
    given = {
        "labelled_labels": rng.integers(0, 2, (6, 4)),
        "features": rng.standard_normal((40, 3)),
        "labelled_features": np.zeros((0, 3)),
    }
    combined, again = CombineHeuristics(members()), CombineHeuristics(members())
    arrays = {name: given[name] for name in combined.needs if name != "predictions"}
    whole = combined.get_uncertainties(probs, **arrays)
    batches = (probs[start : start + 7] for start in range(0, 40, 7))
    np.testing.assert_allclose(again.get_uncertainties(batches, **arrays), whole)


def test_errors_in_batches_name_the_row() -> None:
    """An error in a later batch says which, and where that batch starts."""
    bad = random_probs(5)
    bad[2] = np.nan
    with pytest.raises(ValueError, match=r"In batch 1, whose row 0 is row 6 of all: BALD needs finite .* in row 2\."):
        CombineHeuristics([BALD(), Entropy()])(batch for batch in (random_probs(6), bad))


def test_positions() -> None:
    """Positions are reduced by each heuristic's own reduction, before the heuristics are put together."""
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (6, 4, 5)).transpose(0, 3, 1, 2)  # [N, C, S, T]
    combined = CombineHeuristics([BALD(reduction="max"), Entropy(reduction="sum")], reduction="sum").get_uncertainties(
        probs
    )
    np.testing.assert_allclose(combined, bald(probs).max(1) + entropy(probs).sum(1))


def test_needs() -> None:
    """A combination needs what its parts need, and gives each its own."""
    probs, targets = random_probs(), random_probs(seed=1)
    combined = CombineHeuristics([BALD(), EPIG()], reduction="sum")
    assert combined.needs == ["predictions", "target_predictions"]
    expected = bald(probs) + EPIG().get_uncertainties(probs, target_predictions=targets)
    np.testing.assert_allclose(combined.get_uncertainties(probs, target_predictions=targets), expected)
    with pytest.raises(TypeError, match="CombineHeuristics needs predictions of the rows to be predicted well"):
        combined(probs)


def test_tensors_and_random() -> None:
    """Tensors are scored, and Random joins in with its own numbers."""
    probs = torch.from_numpy(random_probs())
    combined = CombineHeuristics([BALD(), Random(seed=1)], [1, 0.5], "sum").get_uncertainties(probs)
    np.testing.assert_allclose(combined, bald(probs).numpy() + 0.5 * Random(seed=1).get_uncertainties(range(30)))


def test_precomputed() -> None:
    """Scores that are there are ranked from the highest, also from batches and with positions."""
    assert Precomputed()(np.array([0.1, 0.9, 0.5])).tolist() == [1, 2, 0]
    assert Precomputed()(np.array([part]) for part in (0.1, 0.9, 0.5)).tolist() == [1, 2, 0]
    assert Precomputed(reduction="max")(torch.tensor([[0.1, 0.2], [0.9, torch.nan]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="Precomputed needs finite scores, got NaN or infinity in row 1"):
        Precomputed()(np.array([0.1, np.nan]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heuristics": []}, ValueError, "needs at least one heuristic, got none"),
        ({"heuristics": [BALD(), "bald"]}, TypeError, "needs heuristics, got str"),
        ({"heuristics": [BALD()], "weights": [1, 2]}, ValueError, "for each heuristic, got 2 for 1 heuristics"),
        ({"heuristics": [BALD()], "weights": [np.nan]}, ValueError, "needs finite weights"),
        ({"heuristics": [BALD()], "normalisation": "z"}, ValueError, "out of none, rank, quantile, got 'z'"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    """Nothing to combine, weights of another number and unknown normalisations are refused."""
    with pytest.raises(error, match=message):
        CombineHeuristics(**arguments)


def test_bad_predictions() -> None:
    """A list that is not one output for each heuristic, outputs of other rows, and no batches are refused."""
    combined = CombineHeuristics([BALD(), Entropy()])
    with pytest.raises(ValueError, match=r"a list of predictions for each heuristic, got 3 for 2 .* generator"):
        combined([random_probs()] * 3)
    with pytest.raises(ValueError, match="scores of the same rows, got 30 of BALD, 20 of Entropy"):
        combined([random_probs(), random_probs(20)])
    with pytest.raises(ValueError, match="at least one batch of predictions, got none"):
        combined(batch for batch in ())
    with pytest.raises(TypeError, match="CombineHeuristics needs an array, a tensor or an iterable"):
        combined(3)
