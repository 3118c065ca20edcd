"""MNLP: the terms, their mean over real positions, and what it ranks."""

import math

import numpy as np
import pytest
import torch

from baal_hf.arrays import masked
from baal_hf.heuristics import MNLP, mnlp


def sequence(*confidences: float, width: int) -> np.ndarray:
    """One row of 2 classes and 1 draw whose first tokens have those confidences, padded to a width: [1, 2, S, 1]."""
    row = np.full((1, 2, width, 1), np.nan)
    for s, p in enumerate(confidences):
        row[0, :, s, 0] = [p, 1 - p]
    return row


def test_by_hand() -> None:
    """Tokens with confidences of ½ and 1 have terms of log 2 and 0, and a mean of half of log 2."""
    row = sequence(0.5, 1, width=2)
    np.testing.assert_allclose(mnlp(row), [[math.log(2), 0]], atol=1e-12)
    assert MNLP().get_uncertainties(row) == pytest.approx(math.log(2) / 2)


def test_probability_of_the_most_probable_sequence() -> None:
    """The sum of the terms is the negative log probability of the most probable of all sequences of labels."""
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (1, 4, 1)).transpose(0, 3, 1, 2)  # [1, C, S, 1]
    every = np.stack(np.meshgrid(*[range(3)] * 4)).reshape(4, -1)  # [S, 3⁴]
    best = max(math.prod(probs[0, c, s, 0] for s, c in enumerate(labels)) for labels in every.T)
    assert mnlp(probs).sum() == pytest.approx(-math.log(best))


def test_length_does_not_win() -> None:
    """A short unsure sequence outranks a long one that is surer of each token, where the sum would say the contrary."""
    rows = np.concatenate([sequence(*[0.9] * 8, width=8), sequence(0.6, width=8)])
    assert MNLP()(rows).tolist() == [1, 0]
    assert MNLP(reduction="sum")(rows).tolist() == [0, 1]


def test_padding_and_masks() -> None:
    """Padded and masked positions do not count, however a row is padded."""
    short, long = sequence(0.7, 0.8, width=2), sequence(0.7, 0.8, width=5)
    assert MNLP().get_uncertainties(short) == MNLP().get_uncertainties(long)
    hidden = masked(short, np.array([[False, True]]))
    assert MNLP().get_uncertainties(hidden) == pytest.approx(-math.log(0.8))
    np.testing.assert_allclose(MNLP().get_uncertainties([short, long]), MNLP().get_uncertainties(short)[0])


def test_draws_are_averaged_first() -> None:
    """Draws that are sure of different labels leave the sequence unsure: the mean is of probabilities."""
    assert mnlp(np.eye(2)[None]) == pytest.approx(math.log(2))


def test_without_positions() -> None:
    """A row of one label is a sequence of length one."""
    probs = torch.tensor([[[0.25], [0.75]]])
    torch.testing.assert_close(mnlp(probs), torch.tensor([-math.log(0.75)]))
    assert MNLP().get_uncertainties(probs) == pytest.approx(-math.log(0.75))


def test_certainty_is_zero() -> None:
    """A certain sequence scores exactly 0, also where rounding makes its probability 1.0005."""
    assert mnlp(np.array([[[1.0005], [0.0]]])) == 0


def test_needs_probabilities() -> None:
    """Log probabilities are refused: they are no probabilities."""
    with pytest.raises(ValueError, match=r"MNLP needs probabilities, got negative values in row 0\."):
        mnlp(np.log(np.full((1, 2, 3, 1), 0.5)))
