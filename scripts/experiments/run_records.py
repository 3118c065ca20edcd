"""Records of runs, written as they come, so that a run that was stopped goes on; and what they say together.

A run is a heuristic with a seed. Its records, one for each number of labels, are a file of its own: several processes
may write to one folder as long as each has runs of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t
from torch import Tensor

from baal_hf.curves import runs
from baal_hf.plots import learning_curve

Record = dict[str, Any]


class RunRecords:
    """The records of runs with the same settings.

    Args:
        folder: Made if it is not there.
        settings: What is the same for all runs, as JSON has it.

    Raises:
        SystemExit: The folder has runs with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        told, text = folder / "settings.json", json.dumps(settings, indent=2)
        if told.exists():
            before, now = json.loads(told.read_text()), json.loads(text)
            if before != now:
                other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
                raise SystemExit(
                    f"{folder} holds runs with other settings ({', '.join(other)}). Choose another --output_dir, or "
                    "remove it."
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"settings.{os.getpid()}.part"
        part.write_text(text)
        part.replace(told)

    def of(self, heuristic: str, seed: int) -> list[Record]:
        """The records of a run that are there; a last line that was cut off is taken away."""
        path = self._path(heuristic, seed)
        if not path.exists():
            return []
        whole, _, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            os.truncate(path, len(whole) + 1 if whole else 0)
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, record: Record) -> None:
        """Write a record behind the others of its run."""
        with self._path(record["heuristic"], record["seed"]).open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def all(self, heuristics: Iterable[str], seeds: Iterable[int]) -> list[Record]:
        """The records of these heuristics and seeds, in this order."""
        seeds = list(seeds)
        return [record for name in heuristics for seed in seeds for record in self.of(name, seed)]

    def _path(self, heuristic: str, seed: int) -> Path:
        return self.folder / f"{heuristic}-{seed}.jsonl"


class Accuracy:
    """Share of rows whose class has the highest output."""

    def __init__(self) -> None:
        self.right = self.rows = 0

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.right += int((outputs.argmax(1) == target).sum())
        self.rows += len(target)

    def compute(self) -> float:
        return self.right / self.rows


def written(records: list[Record], folder: Path, title: str, target: float, against: Iterable[str]) -> str:
    """Table and picture in the folder; returns the table.

    Args:
        records: With "accuracy" in [0, 1] and "images", how many different images are labelled.
        folder: Is there.
        title: Of the picture.
        target: Accuracy to reach, in [0, 1].
        against: Heuristics whose mean over the curve is taken from that of the others.
    """
    text = markdown(table(records, target, against))
    (folder / "table.md").write_text(text + "\n")
    learning_curve(records, folder / "learning_curve.png", title, target=target)
    return text


def table(records: list[Record], target: float, against: Iterable[str]) -> list[dict[str, str]]:
    """A row for each heuristic; accuracies are in percent.

    "labels to" is the median over seeds of the rows that were labelled when the target was first reached, a seed that
    never gets there being behind all others, and in brackets what each seed took. "minus" pairs the seeds that both
    have, with the 95 % t-interval.
    """
    curves = runs(records, "accuracy")
    rows = []
    for name, by_seed in curves.items():
        reached = sorted(_reached(*curve, target) for curve in by_seed.values())
        row = {
            "heuristic": name,
            "seeds": str(len(by_seed)),
            "mean over the curve": interval([100 * values.mean() for _, values in by_seed.values()]),
            "last": f"{np.mean([100 * values[-1] for _, values in by_seed.values()]):.2f}",
            f"labels to {100 * target:g} %": f"{_told(np.median(reached))} ({', '.join(map(_told, reached))})",
            "images": f"{np.mean([last['images'] for last in _last(records, name)]):.0f}",
        }
        for other in against:
            if other in curves:
                pairs = [(by_seed[seed][1], curves[other][seed][1]) for seed in by_seed if seed in curves[other]]
                gaps = [100 * (own.mean() - its.mean()) for own, its in pairs if len(own) == len(its)]
                row[f"minus {other}"] = "" if name == other or not gaps else interval(gaps, "+")
        rows.append(row)
    return rows


def _reached(labelled: np.ndarray, values: np.ndarray, target: float) -> float:
    enough = values >= target  # [P]
    return float(labelled[enough.argmax()]) if enough.any() else np.inf


def _told(labels: float) -> str:
    return f"{labels:g}" if np.isfinite(labels) else "never"


def _last(records: list[Record], name: str) -> list[Record]:
    """The record of each seed of a heuristic with most labels."""
    of_seed = {}
    for record in sorted(records, key=lambda record: record["labelled"]):
        if record["heuristic"] == name:
            of_seed[record["seed"]] = record
    return list(of_seed.values())


def interval(values: list[float], sign: str = "") -> str:
    """Mean of values and half the width of its 95 % t-interval; of a single value there is none."""
    mean = f"{np.mean(values):{sign}.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"


def markdown(rows: list[dict[str, str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    head, *_ = rows[0]
    widths = {name: max(len(name), 3, *(len(row[name]) for row in rows)) for name in rows[0]}

    def line(cells: dict[str, str]) -> str:
        aligned = (cells[name].ljust(w) if name == head else cells[name].rjust(w) for name, w in widths.items())
        return "| " + " | ".join(aligned) + " |"

    rule = {name: "-" * w if name == head else "-" * (w - 1) + ":" for name, w in widths.items()}
    return "\n".join([line({name: name for name in widths}), line(rule), *map(line, rows)])
