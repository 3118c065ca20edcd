"""Picture of calibration: how often predictions of each confidence are right; it needs matplotlib (extra `plot`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from baal_hf.arrays import NumpyArray, as_numpy
from baal_hf.metrics.bins import binned, confident, equal_width
from baal_hf.metrics.predictions import checked, checked_bins


def reliability_diagram(
    probs: NumpyArray | Tensor, labels: npt.ArrayLike | Tensor, path: str | Path, n_bins: int = 15, title: str = ""
) -> Path:
    """Draw accuracy over confidence, a bar for each bin of confidences, and write it to `path`.

    A bar is as high as the share of the bin's rows whose predicted class is the true one; where it ends below the
    cross, which marks their mean confidence, the model is too sure. Beneath is the share of all rows in each bin. The
    number is the expected calibration error, the gap of bar and cross averaged over rows (DeGroot & Fienberg, 1983;
    Guo et al., 2017, arXiv:1706.04599).

    Args:
        probs: Class probabilities, [N, C]; average draws first.
        labels: True classes in 0 .. C-1, [N].
        path: Image file in a folder that exists; its suffix chooses the format.
        n_bins: Number of bins of equal width over [0, 1].
        title: Above the picture.

    Returns:
        `path`.

    Raises:
        ValueError: There are no rows, `probs` are misshapen or no probabilities, `labels` are no classes of theirs, or
            `n_bins` is no whole number from 1.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: it would choose a backend for the whole process
    except ImportError as error:
        raise ImportError("reliability_diagram needs matplotlib: pip install 'baal_hf[plot]'.") from error

    who = "reliability_diagram"
    rows, true = (as_numpy(each) if isinstance(each, Tensor) else each for each in (probs, labels))
    distributions, classes = checked(rows, true, who)  # [N, C], [N]
    R = checked_bins(n_bins, who)
    confidence, hits = confident(distributions, classes)  # [N], [N]
    bins = binned(confidence, hits, equal_width(confidence, R), R)
    middles = (np.arange(R) + 0.5) / R  # [R]
    some = bins.counts > 0  # [R]

    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    above, beneath = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    above.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="calibrated", zorder=3)
    above.bar(middles[some], bins.frequency[some], 1 / R, alpha=0.6, edgecolor="white", linewidth=0.5, label="accuracy")
    above.scatter(
        bins.confidence[some], bins.confidence[some], color="C3", marker="x", label="mean confidence", zorder=3
    )
    above.text(
        0.97, 0.04, f"ECE {bins.error:.3f}", ha="right", transform=above.transAxes, bbox={"fc": "w", "ec": "0.8"}
    )
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right", title=title)
    above.legend(frameon=False, loc="upper left")
    beneath.bar(middles, bins.counts / bins.counts.sum(), 1 / R, color="0.6", edgecolor="white", linewidth=0.5)
    beneath.set(xlabel="confidence in the predicted class", ylabel="rows")
    beneath.yaxis.set_major_formatter("{x:.0%}")
    for axes in (above, beneath):
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return Path(path)
