"""Expected calibration error of the predicted class, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate

from baal_hf.metrics.bins import binned, confident, equal_width
from baal_hf.metrics.predictions import checked, checked_bins

_DESCRIPTION = "How far the confidence in the predicted class lies from how often it is right, in bins of equal width."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): Class probabilities, [N, C].
    references (`list` of `int`): True classes, [N].
    n_bins (`int`): Number of bins, 15 unless given.

Returns:
    ece (`float`): In [0, 1]; lower is better.

Examples:
    >>> ece.compute(predictions=[[0.25, 0.75], [0.25, 0.75]], references=[1, 0])
    {'ece': 0.25}
"""


class ECE(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """ECE = Σ_b n_b/N |acc(b) - conf(b)|, n_b of the N rows in bin b    (Guo et al., 2017, arXiv:1706.04599).

    A row lies in bin b of R if max_c p(c|x) is in ((b-1)/R, b/R]; acc(b) is the share of its rows whose most probable
    class, the first of equal ones, is the true one, and conf(b) the mean of max_c p(c|x).
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
        probs, labels = checked(predictions, references, "ece")  # [N, C], [N]
        n_bins = checked_bins(n_bins, "ece")
        confidence, hits = confident(probs, labels)  # [N], [N]
        return {"ece": binned(confidence, hits, equal_width(confidence, n_bins), n_bins).error}
