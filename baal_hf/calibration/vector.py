"""Vector scaling: a temperature and a bias for each class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from baal_hf.calibration.scaling import Scaling, minimised, warn_of_absent_classes


class VectorScaling(Scaling):
    """q(c|x) = softmax_c(w_c log p(c|x) + b_c)    (Guo et al., 2017, arXiv:1706.04599).

    That paper scales logits. Log-probabilities differ from them by a constant a row, which w multiplies, so that the
    two are not the same. Nothing keeps the 2 C parameters small: fit on many rows of each class.

    Attributes:
        weights: w after `fit`, float64 [C].
        intercept: b after `fit`, float64 [C].

    Warns:
        UserWarning: On `fit`, a class has no row.
    """

    weights: Tensor
    intercept: Tensor

    def _fit(self, log_probs: Tensor, labels: Tensor) -> None:
        C = log_probs.shape[1]
        warn_of_absent_classes(labels, C, self.name)

        def loss(weights: Tensor, intercept: Tensor) -> Tensor:
            return nll_loss((log_probs * weights + intercept).log_softmax(1), labels)

        start = [torch.ones(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)]
        self.weights, self.intercept = minimised(loss, start)

    def _logits(self, log_probs: Tensor) -> Tensor:
        weights, intercept = (each.to(log_probs)[:, None] for each in (self.weights, self.intercept))  # [C, 1] each
        return log_probs * weights + intercept  # [N, C, T]
