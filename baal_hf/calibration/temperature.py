"""Temperature scaling: one number that makes all predictions less, or more, sure."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from baal_hf.calibration.scaling import Scaling, minimised

LIMIT = 100.0


class TemperatureScaling(Scaling):
    """q(c|x) = softmax_c(log p(c|x) / τ)    (Guo et al., 2017, arXiv:1706.04599).

    The order of the classes stays as it is, and so does the accuracy. Log-probabilities differ from the logits of that
    paper by a constant a row, which softmax does not see.

    Attributes:
        temperature: τ in [1/100, 100] after `fit`; above 1 where the model was too sure.

    Warns:
        UserWarning: On `fit`, τ is 100: the predictions tell nothing of the labels, or what is wrong.
    """

    temperature: float = 1.0

    def _fit(self, log_probs: Tensor, labels: Tensor) -> None:
        def loss(log_temperature: Tensor) -> Tensor:
            return nll_loss((log_probs / log_temperature.exp()).log_softmax(1), labels)

        (best,) = minimised(loss, [torch.zeros((), dtype=torch.float64)])
        # The NLL is convex in 1/τ, so it has one valley in log τ: where that lies outside, the border is the best.
        self.temperature = min(max(math.exp(min(float(best), 100.0)), 1 / LIMIT), LIMIT)
        if self.temperature == LIMIT:
            warnings.warn(
                f"{self.name} found no temperature below {LIMIT:g}: the predictions are no better than equal "
                "probabilities. Are labels numbered as the columns of the predictions, and rows in the same order?",
                stacklevel=3,
            )

    def _logits(self, log_probs: Tensor) -> Tensor:
        return log_probs / self.temperature  # [N, C, T]
