"""BALD and its kin against golden cases, cases that can be done in the head, and one another."""

import math

import numpy as np
import pytest
from hypothesis import given

from baal_hf.heuristics import (
    BALD,
    bald,
    entropy,
    expected_kl,
    max_kl,
    reverse_mutual_information,
    vote_entropy,
)
from tests.laws import few, probs

NAMES = {
    bald: "BALD",
    expected_kl: "ExpectedKL",
    reverse_mutual_information: "ReverseMutualInformation",
    vote_entropy: "VoteEntropy",
    max_kl: "MaxKL",
}
MIRRORED = np.array([[[0.75, 0.25], [0.25, 0.75]]])  # [N, C, T]
CERTAIN = np.array([[[1.0, 0.0], [0.0, 1.0]]])


def test_golden_case() -> None:
    """Four 4-class mixtures with T = 20 have entropy 1.2376 and conditional entropy 1.2069, as in batchbald_redux."""
    share = np.linspace(0, 1, 20)  # [T]
    first, second = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.3, 0.3, 0.2, 0.2])
    rows = [np.outer(np.roll(first, n), 1 - share) + np.outer(np.roll(second, n), share) for n in range(4)]
    probs = np.stack(rows)  # [N, C, T]
    np.testing.assert_allclose(entropy(probs), 1.2376, atol=5e-5)
    np.testing.assert_allclose(entropy(probs) - bald(probs), 1.2069, atol=5e-5)


def test_contradiction() -> None:
    """Draws that are each certain of another class hold log min(C, T) nats."""
    certain = np.eye(3)[None]  # [1, C, T]
    assert bald(certain) == pytest.approx(math.log(3))
    assert bald(certain[..., :2]) == pytest.approx(math.log(2))


def test_noise_is_not_disagreement() -> None:
    """Draws that agree on a coin toss score 0 where entropy is highest, and never below 0 by rounding."""
    probs = np.random.default_rng(0).dirichlet(np.ones(7), 500).astype(np.float32)  # [N, C]
    scores = BALD().get_uncertainties(np.repeat(probs[..., None], 30, -1))
    assert (scores >= 0).all()
    assert scores.max() < 1e-6


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (bald, math.log(2) - (0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
        (expected_kl, math.log(3) / 4),  # half of the pairs differ, with ¾ log 3 - ¼ log 3
        (reverse_mutual_information, math.log(4 / 3) / 2),  # ½ log(½ / ¾) + ½ log(½ / ¼)
        (vote_entropy, math.log(2)),
        (max_kl, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
    ],
)
def test_mirrored_draws(score, expected: float) -> None:
    """Draws of ¾, ¼ and ¼, ¾ have the scores that one gets by hand."""
    assert score(MIRRORED) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (bald, math.log(2)),
        (expected_kl, 5 * math.log(10)),
        (reverse_mutual_information, 5 * math.log(10) - math.log(2)),
        (vote_entropy, math.log(2)),
        (max_kl, math.log(2)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_excluded_classes(score, expected: float, dtype: type) -> None:
    """A probability of exactly 0 counts as 1e-10 in a logarithm, in every precision, and the score stays finite."""
    assert score(CERTAIN.astype(dtype)) == pytest.approx(expected, rel=1e-6)


@few
@given(values=probs())
def test_parts(values: np.ndarray) -> None:
    """Expected KL is BALD and reverse mutual information together, and the furthest draw is at least as far as BALD."""
    np.testing.assert_allclose(expected_kl(values), bald(values) + reverse_mutual_information(values), atol=1e-8)
    assert (max_kl(values) >= bald(values) - 1e-12).all()


def test_one_draw_against_three() -> None:
    """MaxKL sees the one draw of four that all others exclude, log T nats from the mean; the votes are 3 to 1."""
    values = np.array([[[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    assert max_kl(values) == pytest.approx(math.log(4))
    assert vote_entropy(values) == pytest.approx(math.log(4) - 0.75 * math.log(3))


def test_votes_of_three_classes() -> None:
    """Votes of 2, 1 and 1 draws have an entropy of 1.5 bits, however narrow each vote was."""
    values = 0.33 * np.ones((1, 3, 4))
    values[0, [0, 2, 0, 1], range(4)] = 0.34
    assert vote_entropy(values) == pytest.approx(1.5 * math.log(2))


def test_equal_classes_give_the_vote_to_the_first() -> None:
    """A draw that is undecided votes for the first class, also beside padding."""
    values = np.full((2, 2, 2, 2), 0.5)  # [N, C, S, T]
    values[0, :, 0, 1] = [0, 1]
    values[1, :, 1] = np.nan
    np.testing.assert_allclose(vote_entropy(values), [[math.log(2), 0], [0, np.nan]])


@pytest.mark.parametrize("score", NAMES, ids=NAMES.values())
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3), r" needs posterior draws \[N, C, \.\.\., T\], got \[2, 3\]\. Predict with iterations > 1\."),
        ((2, 3, 1), r" needs 2 posterior draws or more, got \[2, 3, 1\]\. Predict with iterations > 1\."),
        (
            (2, 4, 2),
            r" needs sums of 1 over classes, got 1\.3333 in row 0 and others in row 1\. .* Turn logits into",
        ),
    ],
)
def test_bad_predictions(score, shape: tuple[int, ...], message: str) -> None:
    """Disagreement without draws, or between other numbers than probabilities, is refused, saying what to do."""
    with pytest.raises(ValueError, match=NAMES[score] + message):
        score(np.full(shape, 1 / 3))
