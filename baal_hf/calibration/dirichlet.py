"""Dirichlet calibration: a linear map of the log-probabilities, its off-diagonal and intercept kept small."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from baal_hf.calibration.scaling import Scaling, minimised, warn_of_absent_classes


class DirichletScaling(Scaling):
    """q(c|x) = softmax_c(Σ_j w_cj log p(j|x) + b_c)    (Kull et al., 2019, arXiv:1910.12656).

    W and b minimise NLL + λ/(C (C-1)) Σ_{i≠j} w_ij² + μ/C Σ_i b_i², the paper's ODIR (off-diagonal and intercept
    regularisation). The paper chooses λ and μ by cross-validation; what is best varies over many powers of ten with the
    data, so do the same where it matters. Small ones fit the noise of few rows; large ones leave the diagonal alone
    free, which scales each class by itself.

    Args:
        l2: λ, >= 0. The default is for hundreds of rows and some ten classes.
        mu: μ, >= 0; None means the same as `l2`.

    Attributes:
        weights: W after `fit`, float64 [C, C].
        intercept: b after `fit`, float64 [C].

    Raises:
        ValueError: `l2` or `mu` is negative or not finite.

    Warns:
        UserWarning: On `fit`, a class has no row.
    """

    weights: Tensor
    intercept: Tensor

    def __init__(self, l2: float = 100.0, mu: float | None = None) -> None:
        self.l2 = _checked_factor("l2", l2)
        self.mu = self.l2 if mu is None else _checked_factor("mu", mu)

    def _fit(self, log_probs: Tensor, labels: Tensor) -> None:
        C = log_probs.shape[1]
        warn_of_absent_classes(labels, C, self.name)
        off_diagonal = 1 - torch.eye(C, dtype=torch.float64)  # [C, C]

        def loss(weights: Tensor, intercept: Tensor) -> Tensor:
            nll = nll_loss((log_probs @ weights.T + intercept).log_softmax(1), labels)
            off = (weights * off_diagonal).square().sum() / (C * (C - 1))
            return nll + self.l2 * off + self.mu * intercept.square().mean()

        start = [torch.eye(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)]
        self.weights, self.intercept = minimised(loss, start)

    def _logits(self, log_probs: Tensor) -> Tensor:
        return self.weights.to(log_probs) @ log_probs + self.intercept.to(log_probs)[:, None]  # [N, C, T]


def _checked_factor(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"DirichletScaling needs a finite {name} >= 0, got {value}.")
    return float(value)
