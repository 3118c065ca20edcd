"""Pictures of what happened; they need matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from baal_hf.curves import NumpyArray, aligned, runs
from baal_hf.sampling.adaptive import student_quantile


def learning_curve(
    records: Iterable[Mapping[str, Any]],
    path: str | Path,
    title: str = "",
    metric: str = "accuracy",
    target: float | None = None,
) -> Path:
    """Draw a metric over labels, a line for each heuristic, and write it to `path`.

    The line is the mean over the heuristic's runs, its seeds. Where two or more reach, a band shows the 95 % interval
    of that mean, by Student's t: it says how well the mean is known, not how far seeds lie apart, and is wide for two
    or three; of a share it ends at 0 and 100 %. Runs with other numbers of labelled rows are read between their points,
    as `curves.aligned` says.

    Args:
        records: One for each round, with "heuristic", "labelled" (rows), the metric and, where there are several runs,
            "seed". Without it the n-th record of a heuristic at a number of rows belongs to its n-th run.
        path: Image file in a folder that exists; its suffix chooses the format.
        title: Above the picture.
        metric: Name of the values. "accuracy" or "eval_accuracy", a share in [0, 1], is shown in percent.
        target: Value, in the metric's unit, at which to draw a horizontal line; None for no line.

    Returns:
        `path`.

    Raises:
        ValueError: There are no records, or they form no curves, as `curves.runs` says.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: it would choose a backend for the whole process
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("learning_curve needs matplotlib: pip install 'baal_hf[plot]'.") from error

    curves = runs(_with_seeds(records), metric)
    if not curves:
        raise ValueError("learning_curve needs at least one record, got none.")
    measured = metric.removeprefix("eval_").replace("_", " ")
    share = measured == "accuracy"
    unit, possible = (100, (0, 100)) if share else (1, (-math.inf, math.inf))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    banded = False
    for (name, by_seed), marker in zip(curves.items(), "osD^vP*X" * len(curves), strict=False):
        labelled, values = aligned(by_seed.values())  # [P], [R, P]
        mean, half = _interval(unit * values)  # [P], [P]
        (drawn,) = axes.plot(labelled, mean, marker=marker, label=name)
        if not np.isnan(half).all():
            low, high = np.clip([mean - half, mean + half], *possible)  # [P], [P]
            axes.fill_between(labelled, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
            banded = True
    if target is not None:
        axes.axhline(unit * target, color="0.4", linestyle="--", linewidth=1, label="target")
    axes.set(xlabel="labelled rows", ylabel=f"test {measured}" + " (%)" * share, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="mean and its 95 % interval" if banded else None, title_fontsize="small")
    figure.savefig(path, dpi=150)
    return Path(path)


def _with_seeds(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The records, those without a seed told apart by how many of their place came before."""
    before: Counter[tuple[Any, Any]] = Counter()
    for record in records:
        if record.get("seed") is not None:
            yield record
            continue
        place = (record.get("heuristic"), record.get("labelled"))
        yield {**record, "seed": ("without seed", before[place])}
        before[place] += 1


def _interval(values: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Mean over runs [P] and half the width of its 95 % t-interval [P], NaN for one run, of values [R, P]."""
    n = (~np.isnan(values)).sum(0)  # [P], at least 1
    mean = np.nanmean(values, 0)  # [P]
    squares = np.nansum((values - mean) ** 2, 0)  # [P]
    half = [
        _student(k - 1) * math.sqrt(square / (k - 1) / k) if k > 1 else math.nan
        for k, square in zip(n.tolist(), squares.tolist(), strict=True)
    ]
    return mean, np.array(half)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; with one degree of freedom, Cauchy's, the series is 11 % too low."""
    return math.tan(0.475 * math.pi) if freedom == 1 else student_quantile(0.975, freedom)
