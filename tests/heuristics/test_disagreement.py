"""BALD against its golden case and its bounds."""

import math

import numpy as np
import pytest

from baal_hf.heuristics import BALD, bald, entropy


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
    ("shape", "message"),
    [
        ((2, 3), r"BALD needs posterior draws \[N, C, \.\.\., T\], got \[2, 3\]\. Predict with iterations > 1\."),
        ((2, 3, 1), r"BALD needs 2 posterior draws or more, got \[2, 3, 1\]\. Predict with iterations > 1\."),
    ],
)
def test_missing_draws(shape: tuple[int, ...], message: str) -> None:
    """Disagreement without draws is refused, saying what to do."""
    with pytest.raises(ValueError, match=message):
        BALD()(np.full(shape, 1 / 3))
