"""Stochastic rankings: their law, their seeds, and that informative rows come first over any base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baal_hf.heuristics import (
    BALD,
    BatchBALD,
    Certainty,
    Entropy,
    GibbsSampling,
    Margin,
    PowerBALD,
    PowerEntropy,
    PowerSampling,
    Precomputed,
    RankBALD,
    RankBasedSampling,
    SoftmaxBALD,
    bald,
    entropy,
)

KINDS = [PowerSampling, GibbsSampling, RankBasedSampling]
NAMED = [PowerBALD, PowerEntropy, SoftmaxBALD, RankBALD]


def random_probs(N: int = 200, C: int = 3, T: int = 5, seed: int = 0) -> np.ndarray:
    """Probabilities [N, C, T] of rows from clear to unclear."""
    rng = np.random.default_rng(seed)
    logits = rng.exponential(2, (N, 1, 1)) * (rng.standard_normal((N, C, 1)) + 0.5 * rng.standard_normal((N, C, T)))
    return torch.from_numpy(logits).softmax(1).numpy()


def weights_of(kind: type, scores: np.ndarray, temperature: float) -> np.ndarray:
    """How likely each row is drawn first, by the paper."""
    if kind is PowerSampling:
        weights = scores ** (1 / temperature)
    elif kind is GibbsSampling:
        weights = np.exp(scores / temperature)
    else:
        ranks = np.array([1 + (scores > score).sum() for score in scores])
        weights = ranks ** (-1 / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_first_rank(kind: type, temperature: float) -> None:
    """A row is drawn first as often as its weight says."""
    scores = np.array([0.1, 0.7, 0.3, 1.5])
    heuristic = kind(Precomputed(), temperature=temperature)
    first = [heuristic(scores)[0] for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 4000, weights_of(kind, scores, temperature), atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_without_replacement(kind: type) -> None:
    """Given the first rank, the second is drawn among the others as their weights say; all ranks are a permutation."""
    scores = np.array([0.1, 0.7, 0.3, 1.5])
    heuristic = kind(Precomputed())
    rankings = np.array([heuristic(scores) for _ in range(6000)])
    assert (np.sort(rankings, axis=1) == np.arange(4)).all()
    second = rankings[rankings[:, 0] == 3, 1]
    weights = weights_of(kind, scores, 1.0)[:3]
    np.testing.assert_allclose(np.bincount(second, minlength=3) / len(second), weights / weights.sum(), atol=0.04)


@pytest.mark.parametrize("base", [BALD, Margin, Certainty, Entropy])
@pytest.mark.parametrize("kind", KINDS)
def test_informative_rows_are_preferred(kind: type, base: type) -> None:
    """Over every base the first tenth of the ranking is more informative than the pool, and the last less."""
    probs = random_probs(1000)
    ranks, scores = kind(base(), temperature=0.1).get_ranks(probs)
    np.testing.assert_array_equal(scores, base().get_uncertainties(probs))
    assert scores[ranks[:100]].mean() > scores.mean() + 0.5 * scores.std()
    assert scores[ranks[-100:]].mean() < scores.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_temperatures(kind: type) -> None:
    """Towards temperature 0 the ranking is the base's own, towards infinity it is random."""
    scores = np.random.default_rng(0).permutation(500) / 500
    cold = kind(Precomputed(), temperature=1e-9)(scores)
    np.testing.assert_array_equal(cold, Precomputed()(scores))
    hot = kind(Precomputed(), temperature=1e9)(scores)
    assert abs(np.corrcoef(hot, cold)[0, 1]) < 0.15


@pytest.mark.parametrize("heuristic", NAMED)
def test_named(heuristic: type) -> None:
    """PowerBALD and its kin give the ranking of their sampler over their base, and the base's scores."""
    kind, base, score = {
        PowerBALD: (PowerSampling, BALD, bald),
        PowerEntropy: (PowerSampling, Entropy, entropy),
        SoftmaxBALD: (GibbsSampling, BALD, bald),
        RankBALD: (RankBasedSampling, BALD, bald),
    }[heuristic]
    probs = random_probs()
    ranks, scores = heuristic(temperature=0.125, seed=3).get_ranks(probs)
    np.testing.assert_array_equal(ranks, kind(base(), temperature=0.125, seed=3)(probs))
    np.testing.assert_allclose(scores, score(probs))


def test_full_length_and_query_size() -> None:
    """Rankings are as long as the pool, or as long as was asked for, in the constructor or in the call."""
    probs = random_probs(50)
    full = PowerBALD(seed=1)(probs)
    assert sorted(full) == list(range(50))
    np.testing.assert_array_equal(PowerBALD(7, seed=1)(probs), full[:7])
    np.testing.assert_array_equal(PowerBALD(7, seed=1)(probs, query_size=9), full[:9])
    with pytest.raises(ValueError, match=r"PowerBALD needs a query_size in 1 \.\. 50, the number of rows, got 51"):
        PowerBALD(51)(probs)


def test_positions_and_batches() -> None:
    """The base's reduction applies, and batches from a generator rank as the whole does."""
    rng = np.random.default_rng(0)
    probs = np.moveaxis(rng.dirichlet(np.ones(3), (20, 4, 5)), -1, 1)  # [N, C, S, T]
    whole = PowerBALD(reduction="mean", seed=2)(probs)
    chunked = PowerBALD(reduction="mean", seed=2)(probs[start : start + 6] for start in range(0, 20, 6))
    np.testing.assert_array_equal(whole, chunked)
    scores = PowerBALD(reduction="mean").get_uncertainties_generator(probs[start : start + 6] for start in (0, 6, 12))
    np.testing.assert_allclose(scores, PowerBALD(reduction="mean").get_uncertainties(probs[:18]))


def test_seeds() -> None:
    """The same seed draws the same ranking, another or a later call another, whatever NumPy's global generator does."""
    probs = random_probs()
    one = PowerBALD(seed=1)
    first = one(probs)
    np.random.seed(0)
    np.testing.assert_array_equal(first, PowerBALD(seed=1)(probs))
    assert (first != one(probs)).any()
    assert (first != PowerBALD(seed=2)(probs)).any()


def test_zero_scores_come_last() -> None:
    """Rows of score 0 have weight 0 under power sampling: they come after all others, in row order."""
    scores = np.array([0.0, 0.2, 0.0, 0.1, 0.0])
    for seed in range(20):
        ranks = PowerSampling(Precomputed(), seed=seed)(scores)
        assert set(ranks[:2]) == {1, 3}
        assert ranks[2:].tolist() == [0, 2, 4]


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_bad_temperature(temperature: float) -> None:
    """A temperature of 0 or below is refused, and the error names the ranking without noise."""
    with pytest.raises(ValueError, match=r"PowerBALD needs a finite temperature above 0, got .* use BALD itself"):
        PowerBALD(temperature=temperature)


def test_bad_sizes_and_kinds() -> None:
    """What can never work is refused when the heuristic is made."""
    with pytest.raises(ValueError, match="PowerBALD needs a query_size of 1 or more, got -1"):
        PowerBALD(-1)
    with pytest.raises(TypeError, match="PowerBALD needs a number as temperature, got str"):
        PowerBALD(temperature="cold")  # type: ignore[arg-type]


def test_negative_scores() -> None:
    """Power sampling of negative scores is refused with their rows; softmax takes them."""
    scores = np.array([0.3, -0.1, 0.2])
    with pytest.raises(ValueError, match=r"PowerSampling needs scores of 0 or more, got others in row 1\."):
        PowerSampling(Precomputed())(scores)
    assert sorted(GibbsSampling(Precomputed())(scores)) == [0, 1, 2]


def test_base() -> None:
    """What is no heuristic cannot be sampled by, and needs are the base's."""
    with pytest.raises(TypeError, match="PowerSampling needs a heuristic to sample by, got str"):
        PowerSampling("bald")  # type: ignore[arg-type]
    assert PowerSampling(Precomputed()).needs == Precomputed.needs
    probs = random_probs(30)
    np.testing.assert_allclose(PowerSampling(BatchBALD(3)).get_ranks(probs)[1], bald(probs))
