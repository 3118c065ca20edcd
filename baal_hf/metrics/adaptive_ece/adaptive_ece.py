"""Calibration error of each class's probability in bins that hold equally many, as a module of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from baal_hf.metrics.bins import binned, equal_mass
from baal_hf.metrics.predictions import checked, checked_bins

_DESCRIPTION = "How far each class's probability lies from how often it is true, in bins that hold equally many rows."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): Class probabilities, [N, C].
    references (`list` of `int`): True classes, [N].
    n_bins (`int`): Number of bins of each class, 15 unless given; with fewer rows, each has a bin of its own.

Returns:
    adaptive_ece (`float`): In [0, 1]; lower is better.

Examples:
    >>> adaptive_ece.compute(predictions=[[0.25, 0.75], [0.25, 0.75]], references=[1, 0])
    {'adaptive_ece': 0.25}
"""


class AdaptiveECE(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """ACE = 1/C Σ_c Σ_r n_rc/N |freq(r,c) - conf(r,c)|    (Nixon et al., 2019, arXiv:1904.01685).

    The N probabilities of class c, sorted, are cut into R ranges of as equal a number n_rc as can be: range ⌊k R/N⌋ has
    the one that k others are smaller than. That makes n_rc/N the paper's 1/R where R divides N; where it does not,
    others cut elsewhere (`numpy.array_split` makes the first ranges the longer ones), and differ by a little. Equal
    probabilities stay in one range, so that the order of the rows does not matter. freq(r,c) is the share of a range's
    rows whose true class is c, and conf(r,c) the mean of p(c|x). All classes count, as in the paper; AdaECE of Mukhoti
    et al. (2020, arXiv:2002.09437) looks at the predicted one alone.
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
        probs, labels = checked(predictions, references, "adaptive_ece")  # [N, C], [N]
        n_bins = checked_bins(n_bins, "adaptive_ece")
        errors = [
            binned(column, labels == c, equal_mass(column, n_bins), n_bins).error for c, column in enumerate(probs.T)
        ]  # [C]
        return {"adaptive_ece": float(np.mean(errors))}
