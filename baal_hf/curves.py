"""Learning curves: what they enclose, where they reach a target, how far they lie from a baseline's.

A record is a mapping, one for each round: "heuristic", "seed", "round" (from 1), "labelled" (rows that the model was
trained on) and metrics by name, such as "eval_accuracy". A run is the rounds of one heuristic with one seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import datasets
import numpy as np

NumpyArray = np.typing.NDArray[np.float64]
Curve = tuple[NumpyArray, NumpyArray]
"""Labelled rows [P], ascending, and the values there [P]."""

_KEYS = ("heuristic", "seed", "round", "labelled")


def learning_curve_area(labelled: Sequence[int] | NumpyArray, values: Sequence[float] | NumpyArray) -> float:
    """Mean height of a learning curve: the area under it by trapezoids, over the range of labelled rows.

    A = 1/(n_P − n_1) Σ_i (n_{i+1} − n_i) (v_i + v_{i+1})/2     (the area under the budget curve; Zhan et al., 2021)

    Areas compare only over one range: a run that stops earlier lacks its highest part.

    >>> learning_curve_area([0, 10, 20], [0.0, 1.0, 1.0])
    0.75

    Args:
        labelled: Numbers of labelled rows, [P], ascending; equal ones (rounds of relabelling) enclose nothing.
        values: The metric there, [P].

    Returns:
        Area in the metric's unit, within the range of the values; a single point has its value.

    Raises:
        ValueError: The two do not form a curve, or several points lie at one number of labelled rows only.
    """
    rows, heights = _curve(labelled, values, "learning_curve_area")
    if len(rows) == 1:
        return float(heights[0])
    if rows[0] == rows[-1]:
        raise ValueError(
            f"learning_curve_area needs points at two numbers of labelled rows, got {len(rows)}, all at {rows[0]:g}."
        )
    return float(np.trapezoid(heights, rows) / (rows[-1] - rows[0]))


def labels_to_reach(
    labelled: Sequence[int] | NumpyArray,
    values: Sequence[float] | NumpyArray,
    target: float,
    greater_is_better: bool = True,
) -> int | None:
    """The number of labelled rows of the first round that reaches the target.

    Only what was seen counts: between rounds no model was trained, so nothing is interpolated, and a curve that falls
    below the target again has reached it.

    >>> labels_to_reach([10, 20, 30], [0.5, 0.8, 0.7], target=0.7)
    20

    Args:
        labelled: Numbers of labelled rows, [P], ascending.
        values: The metric there, [P].
        target: In the metric's unit.
        greater_is_better: Of the metric; False for a loss.

    Returns:
        Rows; None where no round reaches the target.

    Raises:
        ValueError: The two do not form a curve.
    """
    rows, heights = _curve(labelled, values, "labels_to_reach")
    reached = heights >= target if greater_is_better else heights <= target  # [P]
    return int(rows[reached.argmax()]) if reached.any() else None


def runs(records: Iterable[Mapping[str, Any]], metric: str) -> dict[str, dict[Hashable, Curve]]:
    """The learning curve of every run.

    Args:
        records: In any order, with "heuristic", "seed", "labelled" and `metric`; "round" may be left out.
        metric: Name of the values.

    Returns:
        Heuristic -> seed -> curve, in the order met; points lie in the order of labelled rows, then of rounds.

    Raises:
        ValueError: A record lacks one of these, a round is there twice, or a value is not finite.
    """
    points: dict[str, dict[Hashable, dict[tuple[int, int], float]]] = {}
    for record in records:
        missing = [key for key in ("heuristic", "seed", "labelled", metric) if record.get(key) is None]
        if missing:
            raise ValueError(
                f"A learning curve of {metric} needs {', '.join(missing)} in every record, got one with "
                f"{', '.join(record)} only."
            )
        run = points.setdefault(record["heuristic"], {}).setdefault(record["seed"], {})
        place = (record["labelled"], record.get("round") or 0)
        if place in run:
            raise ValueError(
                f"A learning curve needs each round once, got two of {record['heuristic']} with seed "
                f"{record['seed']} at {place[0]} labelled rows. Were two runs with one seed joined?"
            )
        run[place] = record[metric]
    return {
        heuristic: {
            seed: _curve([rows for rows, _ in sorted(run)], [run[place] for place in sorted(run)], heuristic)
            for seed, run in by_seed.items()
        }
        for heuristic, by_seed in points.items()
    }


def aligned(curves: Iterable[Curve]) -> Curve:
    """Curves read at the same numbers of labelled rows: at each that is a point of one of them.

    Between its own points a curve is read by linear interpolation, beyond them not at all. Of several points at one
    number (rounds of relabelling) the last one counts.

    Args:
        curves: R curves, at least one.

    Returns:
        Labelled rows [P], ascending, and values [R, P], NaN beyond a curve's own range.
    """
    curves = list(curves)
    rows = np.unique(np.concatenate([labelled for labelled, _ in curves]))  # [P]
    return rows, np.stack([np.interp(rows, *curve, left=np.nan, right=np.nan) for curve in curves])  # [R, P]


def summary(
    records: Iterable[Mapping[str, Any]],
    metric: str = "eval_accuracy",
    target: float | None = None,
    baseline: str = "random",
    greater_is_better: bool = True,
) -> list[dict[str, Any]]:
    """Each heuristic in numbers, alone and beside the baseline; what cannot be said is None.

    Beside the baseline only seeds count that both were run with, and of two curves only the range of labelled rows that
    both have. How many labels a heuristic saves is read off the mean curves of these seeds, as in the data utilization
    ratio of Melville & Mooney (2004): single runs of the baseline often miss a target that their mean reaches.

    Args:
        records: Of all runs, with "heuristic", "seed", "labelled", `metric` and, where rows are relabelled, "round".
        metric: Name of what is compared.
        target: To be reached, in the metric's unit. None: the baseline's last value, averaged over its seeds; where the
            baseline was not run there is no target.
        baseline: Name of the heuristic to compare with.
        greater_is_better: Of the metric; False for a loss.

    Returns:
        A row for each heuristic, in the order met:

        - "heuristic" and "seeds", their number;
        - "area_mean", "area_std": of `learning_curve_area` over the seeds; "last_mean", "last_std": of the last value.
          A deviation needs two seeds;
        - "target"; "reached": seeds that reach it; "labels": median over all seeds of the labelled rows that it takes,
          a seed that never gets there counting as infinitely many, so None where half of them do not;
        - "pairs": seeds shared with the baseline; "gain_mean", "gain_std": area minus the baseline's on the same seed,
          above 0 is a higher curve; "labels_saved": 1 − labels/labels of the baseline to reach the target, at most 1,
          below 0 where the heuristic needs more. The baseline's own row has 0.

    Raises:
        ValueError: As `runs` and `learning_curve_area` do.
    """
    by_heuristic = runs(records, metric)
    base = by_heuristic.get(baseline, {})
    if target is None and base:
        target = fmean(float(values[-1]) for _, values in base.values())
    return [
        {
            "heuristic": heuristic,
            "seeds": len(curves),
            **_spread("area", [learning_curve_area(*curve) for curve in curves.values()]),
            **_spread("last", [float(values[-1]) for _, values in curves.values()]),
            **_reach(list(curves.values()), target, greater_is_better),
            **_beside([(curves[seed], base[seed]) for seed in curves if seed in base], target, greater_is_better),
        }
        for heuristic, curves in by_heuristic.items()
    ]


def tidy(records: Iterable[Mapping[str, Any]]) -> datasets.Dataset:
    """The records as a table, a row each, sorted by heuristic, seed and round.

    Args:
        records: In any order, with "heuristic", "seed" and "round".

    Returns:
        All columns that one of the records has, None in the rows of the others; "heuristic", "seed", "round" and
        "labelled" come first.

    Raises:
        ValueError: A record lacks one of the three to sort by.
    """
    rows = list(records)
    for record in rows:
        missing = [key for key in _KEYS[:3] if record.get(key) is None]
        if missing:
            raise ValueError(f"tidy needs {', '.join(missing)} in every record, got one with {', '.join(record)} only.")
    rows.sort(key=lambda record: tuple(record[key] for key in _KEYS[:3]))
    names = dict.fromkeys([*_KEYS, *(name for record in rows for name in record)])
    return datasets.Dataset.from_dict({name: [record.get(name) for record in rows] for name in names})


def _curve(labelled: Sequence[int] | NumpyArray, values: Sequence[float] | NumpyArray, who: str) -> Curve:
    """Both as arrays [P], checked."""
    rows, heights = np.asarray(labelled, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or rows.shape != heights.shape or not len(rows):
        raise ValueError(f"{who} needs a value for each number of labelled rows, got {rows.shape} and {heights.shape}.")
    if (np.diff(rows) < 0).any() or rows[0] < 0 or (rows % 1).any():
        raise ValueError(f"{who} needs ascending whole numbers of labelled rows, got {rows.tolist()}.")
    if not np.isfinite(heights).all():
        raise ValueError(f"{who} needs finite values, got {heights.tolist()}.")
    return rows, heights


def _spread(name: str, sample: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation, None where there are too few values."""
    return {
        f"{name}_mean": fmean(sample) if sample else None,
        f"{name}_std": stdev(sample) if len(sample) > 1 else None,
    }


def _reach(curves: list[Curve], target: float | None, greater_is_better: bool) -> dict[str, float | None]:
    """How many of the curves reach the target, and with how many labels."""
    if target is None:
        return {"target": None, "reached": None, "labels": None}
    labels = [labels_to_reach(*curve, target, greater_is_better) for curve in curves]
    median = float(np.median([np.inf if rows is None else rows for rows in labels]))
    return {
        "target": target,
        "reached": sum(rows is not None for rows in labels),
        "labels": median if np.isfinite(median) else None,
    }


def _beside(pairs: list[tuple[Curve, Curve]], target: float | None, greater_is_better: bool) -> dict[str, float | None]:
    """What a heuristic's curves gain over the baseline's with the same seeds."""
    gains = [gain for own, base in pairs if (gain := _gain(own, base)) is not None]
    saved = None
    if pairs and target is not None:
        own_labels, base_labels = (
            labels_to_reach(*_mean(curves), target, greater_is_better) for curves in zip(*pairs, strict=True)
        )
        if own_labels is not None and base_labels:
            saved = 1 - own_labels / base_labels
    return {"pairs": len(pairs), **_spread("gain", gains), "labels_saved": saved}


def _gain(own: Curve, base: Curve) -> float | None:
    """Difference of the areas over the labelled rows that both curves have; None where there are none."""
    low, high = max(own[0][0], base[0][0]), min(own[0][-1], base[0][-1])
    if low > high:
        return None
    return _area_within(own, low, high) - _area_within(base, low, high)


def _area_within(curve: Curve, low: float, high: float) -> float:
    """Area from `low` to `high` labelled rows, both within the curve's range; the curve's value there if they meet."""
    labelled, values = curve
    first, last = np.interp([low, high], labelled, values)
    if low == high:
        return float(first)
    inside = (labelled > low) & (labelled < high)  # [P]
    return learning_curve_area(np.array([low, *labelled[inside], high]), np.array([first, *values[inside], last]))


def _mean(curves: Iterable[Curve]) -> Curve:
    """Mean of curves, at each number of labelled rows over those that have it in their range."""
    rows, values = aligned(curves)  # [P], [R, P]
    # fmean rounds once, whatever the order: the mean of the last values is then exactly the target made of them.
    return rows, np.array([fmean(column[~np.isnan(column)].tolist()) for column in values.T])
