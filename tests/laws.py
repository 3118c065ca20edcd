"""The laws of every heuristic, stated once; tests/heuristics/test_laws.py runs them over all of them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import mul
from statistics import fmean, pstdev, pvariance
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from baal_hf import heuristics
from baal_hf.heuristics import AbstractHeuristic

few = settings(max_examples=20, deadline=None)
Draws = list[list[float]]  # one row and position, [C][T]


@dataclass(frozen=True)
class Case:
    """A heuristic, its pure function, what it may answer, and the textbook in plain Python."""

    make: Callable[..., AbstractHeuristic]
    score: Callable[[Any], Any]
    upper: Callable[[int], float]
    reference: Callable[[Draws], float]
    needs_draws: bool = False
    smooth: bool = True  # whether a small change of the probabilities is a small change of the score

    @property
    def name(self) -> str:
        """The heuristic's name."""
        return self.make().name


def mean_probs(draws: Draws) -> list[float]:
    """Each class's mean over draws."""
    return [fmean(row) for row in draws]


def plain_entropy(probs: list[float]) -> float:
    """Entropy in nats."""
    return -sum(p * math.log(p) for p in probs if p > 0)


def plain_margin(draws: Draws) -> float:
    """One minus the lead of the first class over the second."""
    second, first = sorted(mean_probs(draws))[-2:]
    return 1 - (first - second)


def plain_bald(draws: Draws) -> float:
    """Mean Kullback-Leibler divergence from each draw to the mean: BALD by another road."""
    mean = mean_probs(draws)
    columns = zip(*draws, strict=True)
    return fmean(sum(p * math.log(p / m) for p, m in zip(column, mean, strict=True) if p > 0 < m) for column in columns)


def plain_votes(draws: Draws) -> list[float]:
    """Share of draws whose first most probable class each class is."""
    votes = [column.index(max(column)) for column in zip(*draws, strict=True)]
    return [votes.count(c) / len(votes) for c in range(len(draws))]


def plain_kl(first: Iterable[float], second: Iterable[float]) -> float:
    """Kullback-Leibler divergence in nats; less than 1e-10 counts as that in the logarithm."""
    return sum(p * math.log(max(p, 1e-10) / max(q, 1e-10)) for p, q in zip(first, second, strict=True))


def plain_expected_kl(draws: Draws) -> float:
    """Mean divergence over all pairs of draws."""
    columns = list(zip(*draws, strict=True))
    return fmean(plain_kl(first, second) for first in columns for second in columns)


def plain_binary_entropy(p: float) -> float:
    """Entropy in nats of a label that is true with probability p."""
    return plain_entropy([p, 1 - p])


def plain_label_bald(row: list[float]) -> float:
    """BALD of one label, as that of two classes."""
    return plain_bald([row, [1 - p for p in row]])


def plain_gaussian_bald(draws: Draws) -> float:
    """Half the log determinant of identity plus covariance, by elimination."""
    outputs = range(len(draws))
    centred = [[value - fmean(row) for value in row] for row in draws]
    table = [[fmean(map(mul, centred[i], centred[j])) + (i == j) for j in outputs] for i in outputs]
    total = 0.0
    for i in outputs:
        total += math.log(table[i][i])
        for j in outputs[i + 1 :]:
            ratio = table[j][i] / table[i][i]
            table[j] = [below - ratio * above for below, above in zip(table[j], table[i], strict=True)]
    return total / 2


CASES = [
    Case(
        heuristics.Certainty,
        heuristics.certainty,
        upper=lambda C: 1 - 1 / C,
        reference=lambda draws: 1 - max(mean_probs(draws)),
    ),
    Case(heuristics.Margin, heuristics.margin, upper=lambda C: 1, reference=plain_margin),
    Case(
        heuristics.Entropy,
        heuristics.entropy,
        upper=math.log,
        reference=lambda draws: plain_entropy(mean_probs(draws)),
    ),
    Case(
        heuristics.VariationRatio,
        heuristics.variation_ratio,
        upper=lambda C: 1 - 1 / C,
        reference=lambda draws: 1 - max(plain_votes(draws)),
        needs_draws=True,
        smooth=False,
    ),
    Case(
        heuristics.MeanStd,
        heuristics.mean_std,
        upper=lambda C: 0.5,
        reference=lambda draws: fmean(pstdev(row) for row in draws),
        needs_draws=True,
    ),
    Case(
        heuristics.Variance,
        heuristics.variance,
        upper=lambda C: 0.25,
        reference=lambda draws: fmean(pvariance(row) for row in draws),
        needs_draws=True,
    ),
    Case(heuristics.BALD, heuristics.bald, upper=math.log, reference=plain_bald, needs_draws=True),
    Case(
        heuristics.ExpectedKL,
        heuristics.expected_kl,
        upper=lambda C: 10 * math.log(10),
        reference=plain_expected_kl,
        needs_draws=True,
        smooth=False,
    ),
    Case(
        heuristics.ReverseMutualInformation,
        heuristics.reverse_mutual_information,
        upper=lambda C: 10 * math.log(10),
        reference=lambda draws: fmean(plain_kl(mean_probs(draws), column) for column in zip(*draws, strict=True)),
        needs_draws=True,
        smooth=False,
    ),
    Case(
        heuristics.VoteEntropy,
        heuristics.vote_entropy,
        upper=math.log,
        reference=lambda draws: plain_entropy(plain_votes(draws)),
        needs_draws=True,
        smooth=False,
    ),
    Case(
        heuristics.MaxKL,
        heuristics.max_kl,
        upper=lambda C: math.log(6),  # the most draws of `probs`
        reference=lambda draws: max(plain_kl(column, mean_probs(draws)) for column in zip(*draws, strict=True)),
        needs_draws=True,
    ),
    # Probabilities of classes will do as those of labels, and as outputs of a regression.
    Case(
        heuristics.MultiLabelEntropy,
        heuristics.multi_label_entropy,
        upper=lambda C: math.log(2),
        reference=lambda draws: fmean(map(plain_binary_entropy, mean_probs(draws))),
    ),
    Case(
        heuristics.MultiLabelBALD,
        heuristics.multi_label_bald,
        upper=lambda C: math.log(2),
        reference=lambda draws: fmean(map(plain_label_bald, draws)),
        needs_draws=True,
    ),
    Case(
        heuristics.GaussianBALD,
        heuristics.gaussian_bald,
        upper=lambda C: C / 2 * math.log(1.25),  # a probability's variance is 1/4 at most
        reference=plain_gaussian_bald,
        needs_draws=True,
    ),
    Case(heuristics.MNLP, heuristics.mnlp, upper=math.log, reference=lambda draws: -math.log(max(mean_probs(draws)))),
]


@st.composite
def probs(draw: st.DrawFn, positions: int | None = None) -> np.ndarray:
    """Probabilities [N, C, *S, T] from flat to one-hot, with exact zeros, and draws from equal to contradictory."""
    N, C, T = draw(st.integers(1, 5)), draw(st.integers(2, 5)), draw(st.integers(2, 6))
    axes = draw(st.integers(0, 2)) if positions is None else positions
    S = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0, 1000.0]))
    logits = torch.from_numpy(scale * rng.standard_normal((N, C, *S, T)))
    return logits.softmax(1).numpy()


@st.composite
def coarse_probs(draw: st.DrawFn) -> np.ndarray:
    """Probabilities [N, C, T] in steps of 1/256, which every precision holds exactly; with zeros and equal classes."""
    N, C, T = draw(st.integers(1, 5)), draw(st.integers(2, 5)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    trials = draw(st.sampled_from([1, 2, 4, 256]))
    counts = rng.multinomial(trials, rng.dirichlet(np.ones(C), (N, 1)), (N, T))  # [N, T, C]
    return np.moveaxis(counts, 1, 2) / trials


def reference_scores(case: Case, values: np.ndarray) -> np.ndarray:
    """The plain reference at each position, [N, C, *S, T] to [N, *S]."""
    table = np.moveaxis(values, 1, -2)  # [N, *S, C, T]
    scores = np.empty(table.shape[:-2])
    for place in np.ndindex(scores.shape):
        scores[place] = case.reference(table[place].tolist())
    return scores


def within_range(case: Case, values: np.ndarray) -> None:
    """Scores are finite, one a row and position, and within the range that the docstring promises."""
    scores = case.score(values)
    assert scores.shape == values.shape[:1] + values.shape[2:-1]
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert (scores <= case.upper(values.shape[1]) + 1e-9).all()


def agrees_with_reference(case: Case, values: np.ndarray) -> None:
    """Scores are those of the textbook formula in plain Python."""
    np.testing.assert_allclose(case.score(values), reference_scores(case, values), atol=1e-9)


def rows_are_independent(case: Case, values: np.ndarray, order: np.ndarray) -> None:
    """Permuting rows permutes scores."""
    np.testing.assert_allclose(case.score(values[order]), case.score(values)[order], atol=1e-12)


def axis_is_a_set(case: Case, values: np.ndarray, axis: int) -> None:
    """Reversing and rolling classes or draws changes no score."""
    for other in (np.flip(values, axis), np.roll(values, 1, axis)):
        np.testing.assert_allclose(case.score(other), case.score(values), atol=1e-12)


def repeating_draws_changes_nothing(case: Case, values: np.ndarray) -> None:
    """Every draw twice is the same posterior, hence the same score."""
    np.testing.assert_allclose(case.score(np.repeat(values, 2, -1)), case.score(values), atol=1e-12)


def chunked_equals_whole(case: Case, values: np.ndarray, size: int) -> None:
    """Scores and ranks of batches from a generator are those of the whole array."""
    batches = [values[start : start + size] for start in range(0, len(values), size)]
    whole, chunked = case.make(reduction="mean"), case.make(reduction="mean")
    np.testing.assert_allclose(chunked.get_uncertainties(iter(batches)), whole.get_uncertainties(values), atol=1e-12)
    np.testing.assert_array_equal(chunked(iter(batches)), case.make(reduction="mean")(values))


def same_numbers_same_scores(case: Case, values: np.ndarray, dtype: torch.dtype) -> None:
    """Numbers that half precision holds exactly are scored in float32, as in double but for float32's own rounding."""
    exact = torch.from_numpy(values)
    scores = case.score(exact.to(dtype))
    assert torch.equal(exact.to(dtype).double(), exact)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.double().numpy(), case.score(values), atol=2e-5)


def half_agrees_with_double(case: Case, values: np.ndarray, dtype: torch.dtype) -> None:
    """Half precision is scored in float32 and differs from double by no more than its own rounding."""
    scores = case.score(torch.from_numpy(values).to(dtype))
    assert scores.dtype == torch.float32
    tolerance = 32 * torch.finfo(dtype).eps
    np.testing.assert_allclose(scores.double().numpy(), case.score(values), atol=tolerance)


def padding_is_ignored(case: Case, values: np.ndarray, width: int) -> None:
    """Padding [N, C, S, T] with NaN positions gives NaN scores there and changes no reduction."""
    pad = np.full((*values.shape[:2], width, values.shape[-1]), np.nan)
    padded = np.concatenate([values, pad], axis=2)  # [N, C, S + width, T]
    scores = case.score(padded)  # [N, S + width]
    np.testing.assert_allclose(scores[:, : values.shape[2]], case.score(values), atol=1e-12)
    assert np.isnan(scores[:, values.shape[2] :]).all()
    for reduction in ("max", "min", "mean", "sum"):
        heuristic = case.make(reduction=reduction)
        np.testing.assert_allclose(heuristic.get_uncertainties(padded), heuristic.get_uncertainties(values), atol=1e-12)
