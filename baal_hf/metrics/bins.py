"""Bins of confidences, and how far confidence and outcome lie apart in them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """What fell into each of R bins; a mean over no rows is 0.

    Attributes:
        counts: Predictions in each bin, [R].
        confidence: Mean of their probabilities, [R].
        frequency: Share of them that came true, [R].
    """

    counts: Numbers
    confidence: Values
    frequency: Values

    @property
    def error(self) -> float:
        """Gap of confidence and frequency, averaged over predictions: Σ_b n_b/N |frequency_b - confidence_b|."""
        return float(np.abs(self.frequency - self.confidence) @ (self.counts / self.counts.sum()))


def binned(probs: Values, hits: npt.NDArray[np.bool_], numbers: Numbers, n_bins: int) -> Bins:
    """Predictions put together by the number of their bin.

    Args:
        probs: Probability of each prediction, [N].
        hits: Whether it came true, [N].
        numbers: Its bin in 0 .. R-1, [N].
        n_bins: R.
    """
    counts = np.bincount(numbers, minlength=n_bins)  # [R]
    some = np.maximum(counts, 1)  # [R]
    confidence = np.bincount(numbers, probs, n_bins) / some  # [R]
    return Bins(counts, confidence, np.bincount(numbers, hits, n_bins) / some)


def equal_width(probs: Values, n_bins: int) -> Numbers:
    """Number of the bin [0, 1/R], (1/R, 2/R], ..., ((R-1)/R, 1] that each probability lies in, [N].

    >>> equal_width(np.array([0.0, 0.5, 0.51, 1.0]), 2).tolist()
    [0, 0, 1, 1]
    """
    return np.searchsorted(np.arange(1, n_bins) / n_bins, probs, side="left")  # [N]


def equal_mass(probs: Values, n_bins: int) -> Numbers:
    """Number of the bin of each probability, where all R bins hold as many as can be, [N].

    Equal probabilities share a bin, the one of the first of them, whatever the order of the rows; hence bins of tied
    values may be fuller than others, or empty.

    >>> equal_mass(np.array([0.9, 0.1, 0.2, 0.8]), 2).tolist()
    [1, 0, 0, 1]
    """
    below = np.searchsorted(np.sort(probs), probs, side="left")  # [N], how many are smaller
    return below * n_bins // len(probs)


def confident(probs: Values, labels: Numbers) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Probability of each row's most probable class, the first of equal ones, [N]; whether it is the true one, [N]."""
    top = probs.argmax(1)  # [N]
    return np.take_along_axis(probs, top[:, None], 1)[:, 0], top == labels
