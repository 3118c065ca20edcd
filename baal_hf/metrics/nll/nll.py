"""Negative log-likelihood, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from baal_hf.metrics.predictions import checked

_DESCRIPTION = "Negative logarithm of the true class's probability, averaged over rows; also called log loss."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): Class probabilities, [N, C].
    references (`list` of `int`): True classes, [N].

Returns:
    nll (`float`): In nats, in [0, 36.04]; lower is better. A probability below 2^-52, such as 0, counts as 2^-52.

Examples:
    >>> nll.compute(predictions=[[0.0, 1.0], [0.0, 1.0]], references=[1, 1])
    {'nll': 0.0}
"""

SMALLEST = 2.0**-52  # one wrong 0 would make the whole infinite; scikit-learn's log_loss in float64 stops here, too


class NLL(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """NLL = -1/N Σ_i log p(y_i|x_i), p at least 2^-52    (Good, 1952)."""

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
        probs, labels = checked(predictions, references, "nll")  # [N, C], [N]
        true = probs[np.arange(len(labels)), labels].clip(SMALLEST, 1)  # [N], rounding may have made it more than 1
        return {"nll": float(-np.log(true).mean()) + 0.0}  # 0.0 and not -0.0 where all are 1
