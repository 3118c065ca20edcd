"""The lazy search against the eager one, on coverage, which is submodular."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics.greedy import lazy_greedy
from tests.laws import few


class Coverage:
    """Rows cover points; a row adds the weight of the points that it covers first."""

    def __init__(self, covers: torch.Tensor, weights: torch.Tensor) -> None:
        self.covers, self.left = covers, weights.clone()  # [N, P], [P]
        self.looked_at = 0

    def gains(self, rows: torch.Tensor) -> torch.Tensor:
        self.looked_at += len(rows)
        return self.covers[rows] @ self.left

    def accept(self, row: int) -> bool:
        self.left = self.left * (1 - self.covers[row])
        return bool(self.left.any())


@few
@given(seed=st.integers(0, 9999), block=st.integers(1, 9), K=st.integers(1, 12))
def test_lazy_is_eager(seed: int, block: int, K: int) -> None:
    """Picks and gains are those of a search that looks at every row each time; ties go to the lowest row."""
    rng = np.random.default_rng(seed)
    covers = torch.from_numpy(rng.random((12, 8)) < 0.3).double()
    weights = torch.from_numpy(rng.integers(1, 4, 8)).double()
    lazy = Coverage(covers, weights)
    picks, gains = lazy_greedy(covers @ weights, lazy.gains, lazy.accept, K, block)

    left, expected, worth = weights.clone(), [], []
    while len(expected) < K and left.any():
        values = [-1.0 if n in expected else float(covers[n] @ left) for n in range(12)]
        best = values.index(max(values))
        if values[best] == 0:
            break
        expected.append(best)
        worth.append(values[best])
        left = left * (1 - covers[best])
    assert picks[: len(expected)].tolist() == expected
    np.testing.assert_allclose(gains[: len(worth)], worth)
    assert len(set(picks.tolist())) == K


def test_nothing_left() -> None:
    """Once nothing can add anything, the other picks follow by what they were worth at first."""
    first = torch.tensor([3.0, 1.0, 2.0, 2.0, 4.0])
    picks, gains = lazy_greedy(first, lambda rows: torch.zeros(len(rows)), lambda row: False, 4, block=2)
    assert picks.tolist() == [4, 0, 2, 3]
    assert gains.tolist() == [4, 0, 0, 0]


def test_few_rows_are_looked_at() -> None:
    """Rows whose bound cannot win are left alone."""
    covers = torch.eye(1000).double()
    weights = torch.arange(1000).double()
    coverage = Coverage(covers, weights)
    lazy_greedy(covers @ weights, coverage.gains, coverage.accept, 10, block=8)
    assert coverage.looked_at <= 9 * 16
