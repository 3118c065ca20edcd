"""Several heuristics on several seeds, in one table and one picture."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

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
        metric: Which of the records' metrics is compared; higher is better.
        target: Value of the metric to reach; None takes the last of the baseline.
        baseline: Heuristic that others are compared with.

    Returns:
        All records, a row for each round.

    Raises:
        ValueError: No heuristic or no seed.
    """
    place, records = Path(folder), []
    for seed in seeds:
        for heuristic in heuristics:
            records += experiment(heuristic, seed, place / f"{heuristic}-{seed}").start()
    if not records:
        raise ValueError("Comparing needs at least one heuristic and one seed.")
    table = tidy(records)
    table.to_csv(place / "records.csv")
    lines = summary(records, metric, target, baseline)
    (place / "summary.json").write_text(json.dumps(lines, indent=2), encoding="utf-8")
    try:
        from baal_hf.plots import learning_curve

        learning_curve(records, place / "learning_curve.png", metric=metric)
    except ImportError as error:
        logger.warning("There is no picture of the learning curves: %s", error)
    return table
