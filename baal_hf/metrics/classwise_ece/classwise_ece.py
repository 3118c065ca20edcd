"""Calibration error of each class's probability, averaged over classes, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from baal_hf.metrics.bins import binned, equal_width
from baal_hf.metrics.predictions import checked, checked_bins

_DESCRIPTION = "How far each class's probability lies from how often it is true, in bins of equal width."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): Class probabilities, [N, C].
    references (`list` of `int`): True classes, [N].
    n_bins (`int`): Number of bins, 15 unless given.

Returns:
    classwise_ece (`float`): In [0, 1]; lower is better. With many classes most probabilities are near 0, and so is it.

Examples:
    >>> classwise_ece.compute(predictions=[[0.25, 0.75], [0.25, 0.75]], references=[1, 0])
    {'classwise_ece': 0.25}
"""


class ClasswiseECE(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """cwECE = 1/C Σ_c Σ_b n_bc/N |freq(b,c) - conf(b,c)|    (Kull et al., 2019, arXiv:1910.12656).

    Row x counts for class c in bin b of R if p(c|x) is in ((b-1)/R, b/R], 0 in the first; of the n_bc rows there,
    freq(b,c) is the share whose true class is c, and conf(b,c) the mean of p(c|x). It is the static calibration error
    of Nixon et al. (2019, arXiv:1904.01685).
    """

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

    def _compute(self, predictions: Any, references: Any, n_bins: int = 15) -> dict[str, float]:
        probs, labels = checked(predictions, references, "classwise_ece")  # [N, C], [N]
        n_bins = checked_bins(n_bins, "classwise_ece")
        errors = [
            binned(column, labels == c, equal_width(column, n_bins), n_bins).error for c, column in enumerate(probs.T)
        ]  # [C]
        return {"classwise_ece": float(np.mean(errors))}
