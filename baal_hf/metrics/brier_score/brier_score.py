"""Brier score, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from baal_hf.metrics.predictions import checked

_DESCRIPTION = "Squared distance of the predicted probabilities from the true class, averaged over rows."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): Class probabilities, [N, C].
    references (`list` of `int`): True classes, [N].

Returns:
    brier_score (`float`): In [0, 2], lower is better. With two classes, twice the score of the second one alone.

Examples:
    >>> brier_score.compute(predictions=[[0.5, 0.5], [0.0, 1.0]], references=[1, 1])
    {'brier_score': 0.25}
"""


class BrierScore(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """BS = 1/N Σ_i Σ_c (p(c|x_i) - [y_i = c])²    (Brier, 1950)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            # References are not int64: that would cut 0.9 down to 0, and say nothing.
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float64")), references=datasets.Value("float64")
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        probs, labels = checked(predictions, references, "brier_score")  # [N, C], [N]
        truth = np.eye(probs.shape[1])[labels]  # [N, C]
        return {"brier_score": float(np.square(probs - truth).sum(1).mean())}
