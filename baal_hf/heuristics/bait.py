"""BAIT: rows whose labels leave the last layer least uncertain where it matters for the pool, by Fisher information."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baal_hf.arrays import Array, like
from baal_hf.heuristics.base import Seed, checked_size
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.distances import checked_features
from baal_hf.heuristics.draws import mean_probs

NUMBERS_AT_ONCE = 2**22  # of the intermediate products over rows


def bait(
    probs: Array,
    features: Array,
    labelled_features: Array,
    labelled_predictions: Array,
    query_size: int,
    regularisation: float = 1.0,
) -> tuple[Array, Array]:
    """K rows that together bring down what the labelled ones leave of the pool's Fisher information.

    min_S tr((λI + Σ_{x ∈ L ∪ S} I(x))⁻¹ 1/N Σ_x I(x)), I(x) = (diag p̄ − p̄ p̄ᵀ) ⊗ h hᵀ    (Ash et al., 2021,
    arXiv:2106.09675)

    Greedily: the row that brings the trace down most, 2K times; then the one of these that is missed least is dropped,
    K times. With M⁻¹ the inverse above, only (h ⊗ 1)ᵀ M⁻¹ (h ⊗ 1) is kept for each row, C x C, and updated with each
    pick, in N·d·C² steps.

    For moderate C·d only: two matrices of (C·d)² doubles are kept and one is inverted. 10 classes and 384 features take
    250 MB for them and, for 100 picks out of 10,000 rows, two minutes of one core.

    Args:
        probs: Class probabilities under T posterior draws, [N, C, T].
        features: What the last layer is given for each row, h, [N, d].
        labelled_features: Those of the labelled rows, [L, d]; L may be 0.
        labelled_predictions: Class probabilities of the labelled rows, [L, C, T'].
        query_size: Number of picks, K.
        regularisation: λ > 0: how well the layer is known beforehand, in the units of h².

    Returns:
        The picks in the order in which they were found, int64 [K], and by how much each row would bring the trace down
        as the first, float64 >= 0, [N].

    Raises:
        ValueError: Predictions are no probabilities of the same two or more classes, features are misshapen, not finite
            or of different width, lengths differ, K is not in 1 .. N, or λ <= 0.
        TypeError: An array is none of floating-point numbers.
    """
    values = checked_features(features, "BAIT").double()  # [N, d]
    labelled = checked_features(labelled_features, "BAIT", "labelled_features", 0, values.shape[1])  # [L, d]
    mean = mean_probs(probs, "BAIT", rows=len(values)).to(values)  # [N, C]
    mean = mean / mean.sum(1, keepdim=True)  # rounded ones do not sum to 1
    checked_size(query_size, len(values), "BAIT")
    if not regularisation > 0:
        raise ValueError(f"BAIT needs regularisation > 0, got {regularisation}.")
    size = mean.shape[1] * values.shape[1]  # D = C·d
    known = regularisation * torch.eye(size, dtype=values.dtype, device=values.device)  # [D, D]
    if len(labelled):
        labelled_mean = mean_probs(labelled_predictions, "BAIT", "labelled_predictions", len(labelled)).to(
            values
        )  # [L, C]
        labelled_mean = labelled_mean / labelled_mean.sum(1, keepdim=True)
        if labelled_mean.shape[1] != mean.shape[1]:
            shapes = f"{list(labelled_predictions.shape)} for {list(probs.shape)}"
            raise ValueError(f"BAIT needs labelled_predictions of the same classes, got {shapes}.")
        known += _information(labelled.to(values), labelled_mean)
    state = _Design(values, mean, torch.cholesky_inverse(torch.linalg.cholesky(known)))
    scores = state.decrease(1)  # [N]
    rounding = 1e-10 * float(scores.max())  # gains that differ by less are equal
    picks = _forward(state, min(2 * query_size, len(values)), rounding)
    state.keep(picks)
    picks = _backward(state, picks, query_size, rounding)
    return like(probs, torch.tensor(picks, device=values.device)), like(probs, scores)


def _forward(state: _Design, count: int, rounding: float) -> list[int]:
    """The row that brings the trace down most, time after time; of equal ones the first."""
    picks: list[int] = []
    while len(picks) < count:
        gains = state.decrease(1)  # [N]
        gains[picks] = -torch.inf
        picks.append(int((gains >= gains.max() - rounding).nonzero()[0]))
        state.update(picks[-1], 1)
    return picks


def _backward(state: _Design, picks: list[int], count: int, rounding: float) -> list[int]:
    """The picks that are left when the one that is missed least is dropped, time after time; of equal ones the last."""
    while len(picks) > count:
        gains = state.decrease(-1)  # [n], at most 0
        dropped = int((gains >= gains.max() - rounding).nonzero()[-1])
        state.update(dropped, -1)
        left = [place for place in range(len(picks)) if place != dropped]
        state.keep(left)
        picks = [picks[place] for place in left]
    return picks


class _Design:
    """What the labelled and picked rows tell about the layer, A = M⁻¹ and B = A F A, as each row sees it.

    Adding (s = 1) or removing (s = -1) I(x) = V Vᵀ, V = Q ⊗ h [D, C]:
    A' = A − R S Rᵀ, B' = B − R Zᵀ − Z Rᵀ, R = A V, S = s (1 + s Vᵀ A V)⁻¹, Z = B V S − ½ R S (Vᵀ B V) S,
    and the trace of A F falls by tr(S Vᵀ B V)    (Woodbury, 1950)
    """

    def __init__(self, features: Tensor, mean: Tensor, inverse: Tensor) -> None:
        self.features = features  # [N, d]
        root = mean.sqrt()
        # Q = (1 − p̄ 1ᵀ) diag √p̄, with Q Qᵀ = diag p̄ − p̄ p̄ᵀ for what sums to 1
        self.root = torch.diag_embed(root) - mean[:, :, None] * root[:, None, :]  # [N, C, C]
        self.inverse = inverse  # A, [D, D]
        self.product = inverse @ (_information(features, mean) / len(features)) @ inverse  # B, [D, D]
        self.seen_inverse = self._seen(self.inverse)  # (h ⊗ 1)ᵀ A (h ⊗ 1), [N, C, C]
        self.seen_product = self._seen(self.product)  # [N, C, C]

    def _seen(self, matrix: Tensor) -> Tensor:
        """(h ⊗ 1)ᵀ X (h ⊗ 1) of each row, [D, D] to [N, C, C]."""
        (C, d), size = (self.root.shape[1], self.features.shape[1]), len(matrix)
        parts = []
        for rows in torch.split(self.features, max(1, NUMBERS_AT_ONCE // (C * size))):
            half = (rows @ matrix.view(C, d, size)).view(C, -1, C, d)  # [C, n, C, d]
            parts.append((half * rows[:, None]).sum(-1).transpose(0, 1))  # [n, C, C]
        return torch.cat(parts)

    def _inner(self, sign: int) -> tuple[Tensor, Tensor]:
        """1 + s Vᵀ A V and Vᵀ B V of each row, [N, C, C] each."""
        around = self.root.mT @ self.seen_inverse @ self.root
        eye = torch.eye(around.shape[1], dtype=around.dtype, device=around.device)
        return eye + sign * around, self.root.mT @ self.seen_product @ self.root

    def decrease(self, sign: int) -> Tensor:
        """By how much adding or removing each row brings the trace down, [N]."""
        inner, product = self._inner(sign)
        solved: Tensor = torch.linalg.solve(inner, product)  # [N, C, C]
        return sign * solved.diagonal(dim1=1, dim2=2).sum(1)

    def update(self, row: int, sign: int) -> None:
        """Add or remove the information of this row."""
        h, Q = self.features[row], self.root[row]
        C, d = len(Q), len(h)
        R = self.inverse.view(-1, C, d) @ h @ Q  # [D, C]
        BV = self.product.view(-1, C, d) @ h @ Q  # [D, C]
        inner, product = self._inner(sign)
        S = sign * torch.linalg.inv(inner[row])  # [C, C]
        Z = BV @ S - R @ (S @ product[row] @ S) / 2  # [D, C]
        self.inverse.addmm_(R @ S, R.T, alpha=-1)
        self.product.addmm_(R, Z.T, alpha=-1).addmm_(Z, R.T, alpha=-1)
        P, X = (torch.einsum("ni,ciy->ncy", self.features, each.view(C, d, C)) for each in (R, Z))  # [N, C, C] each
        self.seen_inverse -= P @ S @ P.mT
        self.seen_product -= P @ X.mT + X @ P.mT

    def keep(self, rows: list[int]) -> None:
        """Look at these rows only from now on."""
        self.features, self.root = self.features[rows], self.root[rows]
        self.seen_inverse, self.seen_product = self.seen_inverse[rows], self.seen_product[rows]


def _information(features: Tensor, mean: Tensor) -> Tensor:
    """Σ_x (diag p̄ − p̄ p̄ᵀ) ⊗ h hᵀ, [N, d] and [N, C] to [D, D]."""
    d, C = features.shape[1], mean.shape[1]
    total = features.new_zeros(C * d, C * d)
    at_once = max(1, NUMBERS_AT_ONCE // (C * d))
    for rows, probs in zip(torch.split(features, at_once), torch.split(mean, at_once), strict=True):
        expected = (probs[:, :, None] * rows[:, None, :]).flatten(1)  # [n, D]
        total -= expected.T @ expected
        for c in range(C):
            total[c * d : (c + 1) * d, c * d : (c + 1) * d] += expected[:, c * d : (c + 1) * d].T @ rows
    return total


class BAIT(BatchHeuristic):
    """Rows that leave the last layer least uncertain for the pool, `bait`, as a heuristic.

    Args:
        query_size: Rows to pick, K, where the call does not say.
        shuffle_prop: As for every heuristic that picks rows together.
        regularisation: How well the layer is known beforehand, λ > 0.
        seed: As for every heuristic; nothing is drawn.
    """

    needs = ("predictions", "features", "labelled_features", "labelled_predictions")

    def __init__(
        self, query_size: int | None = None, shuffle_prop: float = 0.0, *, regularisation: float = 1.0, seed: Seed = 0
    ) -> None:
        super().__init__(query_size, shuffle_prop, seed=seed)
        if not regularisation > 0:
            raise ValueError(f"BAIT needs regularisation > 0, got {regularisation}.")
        self.regularisation = regularisation

    def pick(self, predictions: Array, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together, [N, C, T] to picks [K] and by how much each would bring the trace down [N]."""
        return bait(predictions, query_size=query_size, regularisation=self.regularisation, **arrays)
