"""Where a project stands, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.project.trained import TrainedModel
from baal_hf.stopping import kappa

_STEPS = 8
_MODELS = 12
_PAIRS = 6
"""How many of each are told."""


@dataclass(frozen=True)
class Agreement:
    """How often two annotators gave the same label.

    Attributes:
        annotators: The two.
        rows: That both labelled.
        alike: Of these, with the same label.
        kappa: Cohen's, agreement beyond chance, in [-1, 1].
    """

    annotators: tuple[str, str]
    rows: int
    alike: int
    kappa: float


@dataclass(frozen=True)
class Status:
    """Where a project stands.

    Attributes:
        rows: All.
        skipped: Put aside.
        pool: Neither labelled nor skipped.
        events: Of the ledger.
        by_class: Labelled rows by name of the current label, every class.
        by_annotator: Labelled rows by who labelled them; a row counts for each of its annotators.
        by_step: Labelled rows by the step at which they first were.
        several: Rows that several annotators labelled.
        alike: Of these, with one label only.
        agreements: For each two annotators who labelled the same rows.
        models: That were trained, the latest last.
    """

    rows: int
    skipped: int
    pool: int
    events: int
    by_class: dict[str, int] = field(default_factory=dict)
    by_annotator: dict[str, int] = field(default_factory=dict)
    by_step: dict[int, int] = field(default_factory=dict)
    several: int = 0
    alike: int = 0
    agreements: list[Agreement] = field(default_factory=list)
    models: list[TrainedModel] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        """Labelled rows."""
        return sum(self.by_class.values())

    @property
    def is_trained(self) -> bool:
        """Whether the latest model knows all that the ledger says."""
        return bool(self.models) and self.models[-1].events == self.events


def status(dataset: ActiveLearningDataset, models: list[TrainedModel]) -> Status:
    """Where a project with these labels and models stands."""
    names = dataset.labelled.features["label"].names
    current = Counter(dataset.labels)
    steps = Counter(dataset.labelled_map[dataset.labelled_ids].tolist())
    votes = [
        {vote.annotator or "nobody named": vote.label for vote in dataset.votes(row_id)}
        for row_id in dataset.labelled_ids.tolist()
    ]
    several = [row for row in votes if len(row) > 1]
    return Status(
        rows=len(dataset.labelled_map),
        skipped=len(dataset.skipped_ids),
        pool=dataset.n_unlabelled,
        events=len(dataset.ledger),
        by_class={name: current[number] for number, name in enumerate(names)},
        by_annotator=dict(Counter(annotator for row in votes for annotator in row).most_common()),
        by_step={step: steps[step] for step in sorted(steps)},
        several=len(several),
        alike=sum(len(set(row.values())) == 1 for row in several),
        agreements=agreements(several),
        models=models,
    )


def agreements(votes: list[dict[str, int]]) -> list[Agreement]:
    """How two annotators agree, for each two with rows in common, those with most rows first.

    Args:
        votes: Of each row the label by annotator.

    Example:
        >>> agreements([{"anna": 0, "ben": 0}, {"anna": 1, "ben": 1}])
        [Agreement(annotators=('anna', 'ben'), rows=2, alike=2, kappa=1.0)]
    """
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in votes:
        for first, second in combinations(sorted(row), 2):
            pairs.setdefault((first, second), []).append((row[first], row[second]))
    found = []
    for annotators, both in pairs.items():
        labels = np.array(both)  # [n, 2]
        alike = int((labels[:, 0] == labels[:, 1]).sum())
        found.append(Agreement(annotators, len(both), alike, kappa(labels[:, 0], labels[:, 1])))
    return sorted(found, key=lambda one: (-one.rows, one.annotators))


def lines(now: Status, option: str = "") -> list[str]:
    """The status in words.

    Args:
        now: Where the project stands.
        option: Follows the commands that are told, such as " --project reviews".
    """
    parts = f"{now.labelled} of {now.rows} rows ({now.labelled / now.rows:.1%}), {now.pool} in the pool"
    told = [f"Labelled    {parts}" + (f", {now.skipped} skipped" if now.skipped else "")]
    told.append("  by class      " + _counts(now.by_class))
    if now.labelled:
        told.append("  by annotator  " + _counts(now.by_annotator))
        earlier = f"{len(now.by_step) - _STEPS} earlier ones, " if len(now.by_step) > _STEPS else ""
        told.append("  by step       " + earlier + _counts(dict(list(now.by_step.items())[-_STEPS:]), ": "))
    if now.several:
        share = f"{now.alike} of them alike ({now.alike / now.several:.1%})"
        told.append(f"Agreement   {_rows(now.several)} labelled by several annotators, {share}")
        for one in now.agreements[:_PAIRS]:
            who = " and ".join(one.annotators)
            told.append(f"  {who}: {_rows(one.rows)}, {one.alike} alike, Cohen's kappa {one.kappa:.2f}")
        if len(now.agreements) > _PAIRS:
            told.append(f"  and {len(now.agreements) - _PAIRS} other pairs")
    told.append(f"Models      {len(now.models) or 'none yet'}")
    if len(now.models) > _MODELS:
        told.append(f"  {len(now.models) - _MODELS} earlier ones are in curve.jsonl")
    told += [f"  {model_line(model)}" for model in now.models[-_MODELS:]]
    return [*told, *(f"{'Next' if not place else '':12}{line}" for place, line in enumerate(next_steps(now, option)))]


def model_line(model: TrainedModel) -> str:
    """A model and what was measured of it, in one line."""
    metrics = [f"{name.removeprefix('eval_')} {value:.3f}" for name, value in sorted(model.metrics.items())]
    return "  ".join([model.model, f"labelled {model.labelled:5d}", *(metrics or ["no test rows"])])


def next_steps(now: Status, option: str = "") -> list[str]:
    """What to do next, in words."""
    batch = f"batch{max(now.by_step, default=0) + 1}.csv"  # a name that was not told before
    if not now.labelled:
        return [
            f"baal-hf query --heuristic random -k 50 --out {batch}{option}",
            f"then fill in its column label, and baal-hf import {batch} --annotator YOUR_NAME{option}",
        ]
    if not now.is_trained:
        why = "no model is trained yet" if not now.models else f"labels changed since model {now.models[-1].model}"
        return [f"baal-hf train{option}    ({why})"]
    if now.pool:
        return [f"baal-hf query --heuristic bald -k 50 --out {batch}{option}"]
    return [f"baal-hf export --out labels.parquet{option}    (the pool is empty)"]


def _counts(counts: dict[str, int] | dict[int, int], between: str = " ") -> str:
    return ", ".join(f"{name}{between}{count}" for name, count in counts.items())


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
