"""Pictures of what happened; they need matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def learning_curve(records: Iterable[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Draw accuracy over labels, a line for each heuristic, and write it to `path`.

    Where a heuristic has several records at the same number of labels (seeds), the line is their mean and a band goes
    from the lowest to the highest.

    Args:
        records: One for each round, with "heuristic", "labelled" (rows) and "accuracy" (share in [0, 1]).
        path: Image file in a folder that exists; its suffix chooses the format.
        title: Above the picture.

    Returns:
        `path`.

    Raises:
        ValueError: There are no records.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: it would choose a backend for the whole process
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("learning_curve needs matplotlib: pip install 'baal_hf[plot]'.") from error

    curves = _curves(records)
    if not curves:
        raise ValueError("learning_curve needs at least one record, got none.")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), marker in zip(curves.items(), "osD^vP*X" * len(curves), strict=False):
        labelled = sorted(points)
        mean = [sum(points[n]) / len(points[n]) for n in labelled]
        (drawn,) = axes.plot(labelled, mean, marker=marker, label=name)
        if any(len(points[n]) > 1 for n in labelled):
            low, high = [min(points[n]) for n in labelled], [max(points[n]) for n in labelled]
            axes.fill_between(labelled, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="labelled rows", ylabel="test accuracy (%)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return Path(path)


def _curves(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """Heuristic -> labelled rows -> accuracies in percent."""
    curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        curves[record["heuristic"]][record["labelled"]].append(100 * record["accuracy"])
    return curves
