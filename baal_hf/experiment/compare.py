"""Several heuristics on several seeds, in one table and one picture."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets

from baal_hf.curves import summary, tidy
from baal_hf.experiment.experiment import ActiveLearningExperiment

logger = logging.getLogger(__name__)


def compare(
    experiment: Callable[[str, int, Path], ActiveLearningExperiment],
    heuristics: Sequence[str],
    seeds: Iterable[int],
    folder: str | Path,
    *,
    metric: str = "eval_accuracy",
    target: float | None = None,
    baseline: str = "random",
    greater_is_better: bool = True,
) -> datasets.Dataset:
    """Run an experiment for each heuristic and seed, or go on with those that were begun.

    Writes to the folder `records.csv`, `summary.json` (`curves.summary`: areas under the curves, and labels to reach
    the target, beside the baseline's) and, where matplotlib is installed, `learning_curve.png`.

    Args:
        experiment: (heuristic, seed, folder) -> the experiment, with its dataset, model and initial labels; with the
            same seed these should be the same for all heuristics.
        heuristics: Names.
        seeds: Of the runs.
        folder: Has a folder for each run.
        metric: Which of the records' metrics is compared; "eval_accuracy" comes from a trainer's `compute_metrics`, or
            a wrapper's `add_metric("accuracy", ...)`.
        target: Value of the metric to reach; None takes the last of the baseline.
        baseline: Heuristic that others are compared with, where it is among them.
        greater_is_better: Whether a higher value of the metric is better.

    Returns:
        All records, a row for each round.

    Raises:
        ValueError: No heuristic or no seed, no such metric, or two experiments with the same trainer.
    """
    place, records, learners = Path(folder), list[dict[str, Any]](), list[weakref.ref[Any]]()
    for seed in seeds:
        for heuristic in heuristics:
            run = experiment(heuristic, seed, place / f"{heuristic}-{seed}")
            learner = getattr(run.learner, "trainer", run.learner)
            if any(learner is other() for other in learners):
                raise ValueError("Each experiment needs a trainer of its own: one that was trained begins elsewhere.")
            learners.append(weakref.ref(learner))
            for record in run.rounds():
                if metric not in record:
                    raise ValueError(f"Comparing needs the metric {metric!r}, the records have {', '.join(record)}.")
                records.append(record)
    if not records:
        raise ValueError("Comparing needs at least one heuristic and one seed.")
    table = tidy(records)
    if not run.learner.is_main:
        return table
    table.to_csv(place / "records.csv")
    lines = summary(records, metric, target, baseline, greater_is_better)
    (place / "summary.json").write_text(json.dumps(lines, indent=2), encoding="utf-8")
    try:
        from baal_hf.plots import learning_curve

        learning_curve(records, place / "learning_curve.png", metric=metric)
    except ImportError as error:
        logger.warning("There is no picture of the learning curves: %s", error)
    return table
