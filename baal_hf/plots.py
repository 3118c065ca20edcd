"""Pictures of what happened; they need matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def learning_curve(records: Iterable[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Draw accuracy over labels, a line for each heuristic, and write it to `path`.

    Args:
        records: One for each round, with "heuristic", "labelled" (rows) and "accuracy" (share in [0, 1]).
        path: Image file; its suffix chooses the format.
        title: Above the picture.

    Returns:
        `path`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: it would choose a backend for the whole process

    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        curves.setdefault(record["heuristic"], []).append((record["labelled"], 100 * record["accuracy"]))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="labelled rows", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return Path(path)
