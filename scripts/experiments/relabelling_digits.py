"""Finding wrong labels: our relabelling scores beside cleanlab's, on digits with flipped labels.

    python scripts/experiments/relabelling_digits.py
    python scripts/experiments/relabelling_digits.py --quick    # one seed, one rate, few epochs

Of the labels of scikit-learn's digits (1,347 training rows) 5, 10 and 20 % are flipped: uniformly to another class, or
to the runner-up class of another model (logistic regression, held out), which is the harder and the likelier mistake. A
small dropout MLP gives 5-fold out-of-fold probabilities under posterior draws of MC dropout. All scores see the same
folds and the same draws. Shown for each, over seeds, with 95 % t-intervals:

- average precision of finding the flipped rows;
- accuracy of the MLP on 450 test rows, trained with all labels after as many rows as were flipped, those that the score
  ranks first, have been given their right label; beside it the accuracy before any correction and with clean labels.

Entropy and BALD do not see the label: they are the tools for choosing what to label next, and the wrong ones here. BALD
helps when it is taken off a score that sees the label: a row on which the draws disagree says less about its label.
Rows of cleanlab's that say (draws) are its ensemble functions, with the draws as the ensemble.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from torch import Tensor, nn

from baal_hf import MCDropout
from baal_hf.heuristics import (
    BALD,
    AbstractHeuristic,
    CombineHeuristics,
    NormalizedMargin,
    SelfConfidence,
    active_label_cleaning,
    activelab,
    adjusted_probs,
    bald,
    confidence_weighted_entropy,
    entropy,
    normalized_margin,
    self_confidence,
)

try:
    from cleanlab import multiannotator, rank
except ImportError as error:
    raise SystemExit('This compares with cleanlab: pip install "cleanlab>=2.9"') from error

NOISES = ("uniform", "runner-up")


@dataclass(frozen=True)
class Settings:
    """What is run."""

    rates: tuple[float, ...] = (0.05, 0.1, 0.2)
    seeds: int = 5
    folds: int = 5
    draws: int = 30
    hidden: int = 128
    dropout: float = 0.2
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 5e-3


Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # probabilities [N, C, T] and labels [N] to scores [N]


def score_of(heuristic: AbstractHeuristic) -> Score:
    """A heuristic as a function."""
    return lambda probs, labels: heuristic.get_uncertainties(probs, labels=labels)


OURS: dict[str, Score] = {
    "SelfConfidence": self_confidence,
    "SelfConfidence, adjusted": lambda probs, labels: self_confidence(adjusted_probs(probs, labels), labels),
    "NormalizedMargin": normalized_margin,
    "NormalizedMargin, adjusted": lambda probs, labels: normalized_margin(adjusted_probs(probs, labels), labels),
    "ConfidenceWeightedEntropy": confidence_weighted_entropy,
    "ActiveLabelCleaning": active_label_cleaning,
    "ActiveLab": activelab,
    "SelfConfidence + NormalizedMargin, by rank": score_of(
        CombineHeuristics([SelfConfidence(), NormalizedMargin()], normalisation="rank")
    ),
    "SelfConfidence + 2 NormalizedMargin - BALD": score_of(
        CombineHeuristics([SelfConfidence(), NormalizedMargin(), BALD()], weights=[1, 2, -1])
    ),
}
BLIND: dict[str, Score] = {
    "Entropy": lambda probs, labels: entropy(probs),
    "BALD": lambda probs, labels: bald(probs),
}
CLEANLAB = {
    "self_confidence": ("self_confidence", False),
    "self_confidence, adjusted": ("self_confidence", True),
    "normalized_margin": ("normalized_margin", False),
    "normalized_margin, adjusted": ("normalized_margin", True),
    "confidence_weighted_entropy": ("confidence_weighted_entropy", False),
}


def cleanlab_scores(probs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Cleanlab's label quality of the mean and of the draws [N, C, T] as an ensemble, negated: higher is worse."""
    members = [draw for draw in np.moveaxis(probs, -1, 0)]  # T times [N, C]
    scores = {}
    for name, (method, adjust) in CLEANLAB.items():
        setting = {"method": method, "adjust_pred_probs": adjust}
        scores[name] = -rank.get_label_quality_scores(labels, probs.mean(-1), **setting)
        scores[f"{name} (draws)"] = -rank.get_label_quality_ensemble_scores(labels, members, verbose=False, **setting)
    quality, _ = multiannotator.get_active_learning_scores_ensemble(labels[:, None], np.stack(members))
    return scores | {"ActiveLab (draws)": -quality}


def network(settings: Settings) -> nn.Module:
    """Two hidden layers with dropout after each."""
    width, rate = settings.hidden, settings.dropout
    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Dropout(rate), nn.Linear(width, width), nn.ReLU(), nn.Dropout(rate)]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def trained(images: Tensor, labels: np.ndarray, settings: Settings, seed: int) -> nn.Module:
    """The network after training on these rows, in evaluation mode; the same seed gives the same network."""
    torch.manual_seed(seed)
    model, classes = network(settings).train(), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(images)).split(settings.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), classes[rows]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def drawn(model: nn.Module, images: Tensor, draws: int) -> np.ndarray:
    """Probabilities under posterior draws, [N, C, T]."""
    posterior, parts = MCDropout(), []
    for t in range(draws):
        with posterior.draw(model, t):
            parts.append(model(images).double().softmax(1))  # [N, C]
    return torch.stack(parts, -1).numpy()


def out_of_fold(images: Tensor, labels: np.ndarray, settings: Settings, seed: int) -> np.ndarray:
    """Probabilities of each row under draws of a network that was not trained on it, [N, C, T]."""
    probs = np.empty((len(labels), 10, settings.draws))
    folds = StratifiedKFold(settings.folds, shuffle=True, random_state=seed).split(images, labels)
    for fold, (seen, held_out) in enumerate(folds):
        model = trained(images[seen], labels[seen], settings, seed=100 * seed + fold)
        probs[held_out] = drawn(model, images[held_out], settings.draws)
    return probs


def runner_up(images: Tensor, labels: np.ndarray) -> np.ndarray:
    """The most probable wrong class of each row by logistic regression, held out, [N]."""
    other = LogisticRegression(C=0.1, max_iter=1000)
    probs = cross_val_predict(other, images.numpy(), labels, cv=5, method="predict_proba")  # [N, C]
    probs[np.arange(len(labels)), labels] = -1
    return probs.argmax(1)


def flipped(labels: np.ndarray, second: np.ndarray, noise: str, rate: float, seed: int) -> np.ndarray:
    """The labels with a share of them wrong; the same seed flips the same rows, whatever the noise."""
    rng = np.random.default_rng([seed, round(1000 * rate)])
    rows = rng.choice(len(labels), round(rate * len(labels)), replace=False)
    given = labels.copy()
    given[rows] = (labels[rows] + rng.integers(1, 10, len(rows))) % 10 if noise == "uniform" else second[rows]
    return given


def accuracy(
    train: Tensor, labels: np.ndarray, test: tuple[Tensor, np.ndarray], settings: Settings, seed: int
) -> float:
    """Share of the test rows that the network gets right, trained with these labels."""
    answers = trained(train, labels, settings, seed)(test[0]).argmax(1).numpy()  # [N]
    return float((answers == test[1]).mean())


def one_seed(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """A record for each noise, rate and score."""
    images, classes = load_digits(return_X_y=True)
    split = train_test_split(images / 16, classes, test_size=0.25, stratify=classes, random_state=seed)
    train, test_images = (torch.from_numpy(part).float() for part in split[:2])
    labels, test = split[2], (test_images, split[3])
    second = runner_up(train, labels)
    known: dict[bytes, float] = {}  # accuracies by the labels trained with: many scores correct the same rows

    def accuracy_with(given: np.ndarray) -> float:
        if given.tobytes() not in known:
            known[given.tobytes()] = accuracy(train, given, test, settings, seed)
        return known[given.tobytes()]

    records: list[dict[str, Any]] = []
    for noise in NOISES:
        for rate in settings.rates:
            given = flipped(labels, second, noise, rate, seed)
            wrong, probs = given != labels, out_of_fold(train, given, settings, seed)  # [N], [N, C, T]
            setting = {"noise": noise, "rate": rate, "seed": seed}
            fixed = {"before": accuracy_with(given), "clean": accuracy_with(labels)}
            for kind, name, scores in all_scores(probs, given):
                first = np.argsort(-scores, kind="stable")[: wrong.sum()]
                corrected = given.copy()
                corrected[first] = labels[first]
                found = {"precision": float(average_precision_score(wrong, scores)), "after": accuracy_with(corrected)}
                records.append(setting | {"kind": kind, "score": name} | found | fixed)
    return records


def all_scores(probs: np.ndarray, labels: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Who made the score, its name, and the scores [N], higher for labels more likely wrong."""
    ours = [("ours", name, score(probs, labels)) for name, score in OURS.items()]
    theirs = [("cleanlab", name, scores) for name, scores in cleanlab_scores(probs, labels).items()]
    return ours + theirs + [("blind", name, score(probs, labels)) for name, score in BLIND.items()]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % t-interval; NaN for a single seed."""
    if len(values) < 2:
        return values[0], math.nan
    return fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and interval over seeds for each noise, rate and score."""
    groups = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in ("noise", "rate", "kind", "score"))].append(record)
    rows = []
    for (noise, rate, kind, score), group in groups.items():
        row = {"noise": noise, "rate": rate, "kind": kind, "score": score, "seeds": len(group)}
        for name in ("precision", "after", "before", "clean"):
            row[name], row[f"{name}_interval"] = interval([record[name] for record in group])
        rows.append(row)
    return rows


def cell(mean: float, half: float) -> str:
    """A percentage with its interval."""
    return f"{100 * mean:.2f}" + ("" if math.isnan(half) else f" ± {100 * half:.2f}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Average precision and accuracy in percent, a table each: a line for a score, a column for a setting."""
    settings = list(dict.fromkeys((row["noise"], row["rate"]) for row in rows))
    at = {(row["noise"], row["rate"], row["kind"], row["score"]): row for row in rows}
    names = list(dict.fromkeys((row["kind"], row["score"]) for row in rows))
    head = ["| | score | " + " | ".join(f"{noise} {100 * rate:g} %" for noise, rate in settings) + " |"]
    head += ["|" + "---|" * (2 + len(settings))]

    def lines(what: str) -> list[str]:
        cells = {n: [cell(at[s + n][what], at[s + n][f"{what}_interval"]) for s in settings] for n in names}
        return [f"| {kind} | {name} | " + " | ".join(cells[kind, name]) + " |" for kind, name in names]

    def bound(what: str, told: str) -> str:
        some = [at[s + names[0]] for s in settings]
        return f"| | {told} | " + " | ".join(cell(row[what], row[f"{what}_interval"]) for row in some) + " |"

    return "\n".join(
        [
            *("Average precision of finding the flipped labels, %:", "", *head, *lines("precision"), ""),
            *("Accuracy on the test rows, %, after correcting the rows ranked first:", "", *head),
            *(bound("before", "no correction"), *lines("after"), bound("clean", "clean labels")),
        ]
    )


def verdicts(rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[str]:
    """For each setting our best score beside cleanlab's best, and what correcting by it does to the accuracy."""
    told = []
    for noise, rate in dict.fromkeys((row["noise"], row["rate"]) for row in rows):
        best, seeds = {}, {}
        for kind in ("ours", "cleanlab"):
            here = [row for row in rows if (row["noise"], row["rate"], row["kind"]) == (noise, rate, kind)]
            best[kind] = max(here, key=lambda row: row["precision"])
            key = (noise, rate, kind, best[kind]["score"])
            seeds[kind] = [r["precision"] for r in records if (r["noise"], r["rate"], r["kind"], r["score"]) == key]
        lead = interval([one - other for one, other in zip(seeds["ours"], seeds["cleanlab"], strict=True)])
        ours, theirs = (f"{row['score']} {100 * row['precision']:.2f}" for row in best.values())
        before, after, clean = (f"{100 * best['ours'][name]:.2f}" for name in ("before", "after", "clean"))
        told.append(
            f"{noise} {100 * rate:g} %: our best is {ours}, cleanlab's {theirs}, the lead {cell(*lead)}; "
            f"accuracy {before} before, {after} corrected, {clean} with clean labels"
        )
    return told


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run all seeds, print and write the tables; returns the rows of table.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/relabelling_digits", help="Where the tables are written.")
    parser.add_argument("--seeds", type=int, default=Settings.seeds, help="Number of seeds.")
    parser.add_argument("--quick", action="store_true", help="One seed, one rate, few epochs: does it run?")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds needs to be at least 1, got {args.seeds}.")
    settings = Settings(seeds=args.seeds)
    if args.quick:
        settings = replace(settings, rates=(0.2,), seeds=1, folds=3, draws=5, epochs=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is tiny: threads would wait for one another
    try:
        records = [record for seed in range(settings.seeds) for record in one_seed(settings, seed)]
    finally:
        torch.set_num_threads(threads)
    rows = summary(records)
    text = markdown(rows) + "\n\n" + "\n".join(f"- {line}" for line in verdicts(rows, records)) + "\n"
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(text)
    print(f"Written to {folder}: table.md, table.csv")
    return rows


if __name__ == "__main__":
    main()
