"""Which heuristics cope with a pool that is full of near-copies: repeated digits, every heuristic on the same seeds.

    python scripts/experiments/repeated_digits.py                                  # all heuristics, 10 seeds
    python scripts/experiments/repeated_digits.py --heuristics Random BALD --seeds 0 1
    python scripts/experiments/repeated_digits.py --quick                          # seconds, to see that it works

The data are scikit-learn's digits: 1,797 images of 8x8, inputs in [0, 1], a fifth of them to test on. Of each of the
others the pool has four copies, each with noise from N(0, 0.1) of its own, 0.1 being the standard deviation, after
Repeated MNIST (Kirsch et al., 2019, arXiv:1906.08158). The test images have no noise. 20 rows are labelled at the
start, two different images of each class; each step labels 10 more, up to 300. The top 10 of a ranking by BALD often
hold several copies of one image, and the second copy teaches little.

For a seed, all heuristics share the split, the noise, the first labels, the first weights and the dropout noise of
training. The network is trained anew after each step. A query sees 50 draws of MC dropout, each one network for all
rows; accuracy is that of their mean. Features are the hidden layer without dropout. EPIG's targets are 100 rows of the
pool.

The network is plain: 64-128-10, ReLU, dropout 0.5; 200 full-batch steps of Adam at 0.01. It was looked for on labels at
random, 20 to 300 of them, on four seeds that are not in the table and without any heuristic, among one or two hidden
layers of 128 or 256, dropout 0.25 to 0.7, 100 to 400 steps and L2 penalties from 0 to 0.01: 400 steps changed neither
accuracy nor likelihood by more than their spread, and a single draw is less accurate than the mean of 50 at every size,
so that the draws do disagree. A penalty of 0.001 had the lowest negative log-likelihood with few labels; with it BALD
and Random are not told apart (README.md beside this file), and the penalty was taken out after that was seen.

Written to --output_dir: records.jsonl (a line for each heuristic, seed and number of labels), table.md and
learning_curve.png. Runs that are in records.jsonl already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from baal_hf import ActiveLearningDataset, ActiveLearningLoop, MCDropout
from baal_hf.heuristics import (
    BADGE,
    BALD,
    CAL,
    EPIG,
    AbstractHeuristic,
    BatchBALD,
    CoreSet,
    Entropy,
    KMeans,
    Margin,
    PowerBALD,
    ProbCover,
    Random,
    RankBALD,
    SoftmaxBALD,
    TypiClust,
)
from baal_hf.plots import learning_curve

CLASSES = 10

HEURISTICS: dict[str, Callable[[int], AbstractHeuristic]] = {
    "Random": lambda seed: Random(seed=seed),
    "BALD": lambda seed: BALD(seed=seed),
    "PowerBALD": lambda seed: PowerBALD(temperature=1 / 8, seed=seed),  # coldness 8
    "SoftmaxBALD": lambda seed: SoftmaxBALD(temperature=1 / 8, seed=seed),  # coldness 8, of scores in nats
    "RankBALD": lambda seed: RankBALD(seed=seed),  # coldness 1: with 8 the first 10 ranks are nearly always BALD's
    "Margin": lambda seed: Margin(seed=seed),
    "Entropy": lambda seed: Entropy(seed=seed),
    "BatchBALD": lambda seed: BatchBALD(num_draw=2_000, seed=seed),
    "EPIG": lambda seed: EPIG(seed=seed),
    "BADGE": lambda seed: BADGE(seed=seed),
    "CoreSet": lambda seed: CoreSet(seed=seed),
    "KMeans": lambda seed: KMeans(seed=seed),
    "TypiClust": lambda seed: TypiClust(seed=seed),
    "ProbCover": lambda seed: ProbCover(classes=CLASSES, seed=seed),
    "CAL": lambda seed: CAL(seed=seed),
}

EXPECTED = [("PowerBALD", "BALD"), ("SoftmaxBALD", "BALD"), ("Margin", "BALD"), ("BALD", "Random")]
"""Who is expected ahead of whom."""

DRAWN = ["Random", "BALD", "PowerBALD", "Margin", "BatchBALD", "BADGE"]
"""Heuristics in the picture; fifteen curves cannot be told apart."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every heuristic and seed."""

    copies: int = 4
    noise: float = 0.1  # standard deviation; inputs are in [0, 1]
    test_share: float = 0.2
    initial: int = 20
    query_size: int = 10
    labels: int = 300
    draws: int = 50
    targets: int = 100
    hidden: int = 128
    dropout: float = 0.5
    steps: int = 200
    learning_rate: float = 1e-2
    l2: float = 0.0

    @property
    def sizes(self) -> list[int]:
        """Numbers of labels at which accuracy is measured."""
        return list(range(self.initial, self.labels + 1, self.query_size))


class Digits(NamedTuple):
    """The data of a seed."""

    rows: TensorDataset  # inputs [N, 64] and classes [N]; row i shows image i % images
    images: int
    first: np.ndarray  # rows that are labelled at the start
    targets: TensorDataset  # inputs [N*, 64], no classes
    test_inputs: Tensor  # [M, 64]
    test_classes: Tensor  # [M]


def digits(seed: int, settings: Settings) -> Digits:
    """Split, noise, first labels and targets of a seed."""
    rng = np.random.default_rng([1, seed])  # another stream than that of the heuristics, which are seeded with `seed`
    pixels, classes = load_digits(return_X_y=True)
    pixels = pixels / 16  # [1797, 64], from 0 .. 16 to [0, 1]
    order = rng.permutation(len(pixels))
    test, train = np.split(order, [round(settings.test_share * len(order))])
    copied = np.tile(train, settings.copies)  # [N]
    inputs = tensor(pixels[copied] + rng.normal(0, settings.noise, (len(copied), pixels.shape[1])))
    per_class = settings.initial // CLASSES
    first = [rng.choice(np.flatnonzero(classes[train] == c), per_class, replace=False) for c in range(CLASSES)]
    targets = rng.choice(len(copied), settings.targets, replace=False)
    return Digits(
        rows=TensorDataset(inputs, torch.from_numpy(classes[copied])),
        images=len(train),
        first=np.concatenate(first),
        targets=TensorDataset(inputs[targets]),
        test_inputs=tensor(pixels[test]),
        test_classes=torch.from_numpy(classes[test]),
    )


def tensor(values: np.ndarray) -> Tensor:
    """As float32."""
    return torch.from_numpy(values.astype(np.float32))


class Classifier:
    """A perceptron with one hidden layer, with what the loop asks of a model."""

    def __init__(self, seed: int, settings: Settings) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.seed = seed
        self.model = nn.Sequential(
            nn.Linear(64, settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(settings.hidden, CLASSES)
        )
        self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.posterior = MCDropout(seed)

    def fit(self, dataset: ActiveLearningDataset) -> None:
        """Train from the first weights on what is labelled; dropout noise depends on seed and number of labels."""
        settings = self.settings
        inputs, classes = next(iter(DataLoader(dataset.labelled, batch_size=len(dataset))))  # [L, 64] and [L]
        self.model.load_state_dict(self.weights)
        torch.manual_seed(1000 * self.seed + len(dataset))
        optimizer = torch.optim.Adam(
            self.model.parameters(), settings.learning_rate, weight_decay=settings.l2, fused=True
        )
        self.model.train()
        for _ in range(settings.steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(inputs), classes).backward()
            optimizer.step()
        self.model.eval()

    def probabilities(self, rows: Any, iterations: int) -> Tensor:
        """Predictions of rows under posterior draws, [N, C, T]."""
        return self.drawn(inputs_of(rows), iterations)

    def drawn(self, inputs: Tensor, iterations: int) -> Tensor:
        """Predictions under posterior draws, [N, 64] to [N, C, T]."""
        probs = torch.empty(len(inputs), CLASSES, iterations)
        for t in range(iterations):
            with torch.inference_mode(), self.posterior.draw(self.model, t):
                probs[..., t] = self.model(inputs).softmax(-1)
        return probs

    def features(self, rows: Any) -> Tensor:
        """The hidden layer without dropout, [N, d]."""
        with torch.inference_mode():
            return self.model[:-1](inputs_of(rows))

    def accuracy(self, data: Digits) -> float:
        """Share of test images whose class is the most probable one in the mean of the draws."""
        mean = self.drawn(data.test_inputs, self.settings.draws).mean(-1)  # [M, C]
        return (mean.argmax(1) == data.test_classes).double().mean().item()


def inputs_of(rows: Any) -> Tensor:
    """The inputs of labelled, unlabelled or target rows, [N, 64]."""
    return torch.cat([batch[0] for batch in DataLoader(rows, batch_size=4096)])


def run(name: str, seed: int, settings: Settings) -> Iterator[dict[str, Any]]:
    """A record for each number of labels."""
    data = digits(seed, settings)
    dataset = ActiveLearningDataset(data.rows)
    dataset.annotate(data.first)
    classifier = Classifier(seed, settings)
    loop = ActiveLearningLoop(
        dataset,
        classifier.probabilities,
        HEURISTICS[name](seed),
        query_size=settings.query_size,
        get_features=classifier.features,
        targets=data.targets,
        iterations=settings.draws,
    )
    for size in settings.sizes:
        classifier.fit(dataset)
        started = time.perf_counter()
        accuracy = classifier.accuracy(data)
        evaluated = time.perf_counter()
        images = len(np.unique(dataset.labelled_ids % data.images))
        if size < settings.sizes[-1]:
            loop.step()
        yield {
            "heuristic": name,
            "seed": seed,
            "labelled": size,
            "accuracy": accuracy,
            "images": images,
            "queried": [event.row_id for event in dataset.ledger][size:],
            "seconds_query": time.perf_counter() - evaluated,
            "seconds_test": evaluated - started,
        }


def run_job(job: tuple[str, int, Settings]) -> list[dict[str, Any]]:
    """All records of a heuristic and a seed, in a process of one thread."""
    torch.set_num_threads(1)  # the network is small: threads would wait for one another
    return list(run(*job))


def run_all(names: list[str], seeds: list[int], settings: Settings, workers: int, folder: Path) -> list[dict[str, Any]]:
    """The records of all runs, those in the folder among them; written after each run, so that none is lost."""
    records = finished(folder, settings)
    done = {(record["heuristic"], record["seed"]) for record in records}
    jobs = [(name, seed, settings) for seed in seeds for name in names if (name, seed) not in done]
    started = time.perf_counter()
    for count, new in enumerate(results(jobs, workers), 1):
        records += new
        write_records(records, settings, folder)
        name, seed, mean = new[0]["heuristic"], new[0]["seed"], 100 * np.mean([r["accuracy"] for r in new])
        minutes = (time.perf_counter() - started) / 60
        print(f"{count:3d}/{len(jobs)}  {name:<12} seed {seed}  mean {mean:.2f}  {minutes:5.1f} min", flush=True)
    order = {name: place for place, name in enumerate(names)}
    wanted = [record for record in records if record["heuristic"] in order and record["seed"] in seeds]
    return sorted(wanted, key=lambda record: (order[record["heuristic"]], record["seed"], record["labelled"]))


def results(jobs: list[tuple[str, int, Settings]], workers: int) -> Iterator[list[dict[str, Any]]]:
    """The records of each job, as they come."""
    if workers == 1:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(run_job, jobs)


def finished(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Records of earlier runs.

    Raises:
        SystemExit: They were made with other settings.
    """
    if not (folder / "records.jsonl").exists():
        return []
    if json.loads((folder / "settings.json").read_text()) != asdict(settings):
        raise SystemExit(f"{folder} holds runs with other settings. Choose another --output_dir, or remove it.")
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def write_records(records: list[dict[str, Any]], settings: Settings, folder: Path) -> None:
    """Put the file there whole, so that a run that is stopped leaves complete runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=2))
    part = folder / "records.jsonl.part"
    part.write_text("".join(json.dumps(record) + "\n" for record in records))
    part.replace(folder / "records.jsonl")


# What came out


class Curves(NamedTuple):
    """Accuracies in percent of a heuristic, and the different images among the last labels."""

    accuracy: np.ndarray  # [seeds, sizes]
    images: np.ndarray  # [seeds]


def curves_of(records: list[dict[str, Any]]) -> dict[str, Curves]:
    """The curves of each heuristic, seeds and sizes in ascending order."""
    curves = {}
    for name in dict.fromkeys(record["heuristic"] for record in records):
        own = [record for record in records if record["heuristic"] == name]
        seeds = len({record["seed"] for record in own})
        accuracy = np.array([100 * record["accuracy"] for record in own]).reshape(seeds, -1)
        images = np.array([record["images"] for record in own]).reshape(seeds, -1)
        curves[name] = Curves(accuracy, images[:, -1])
    return curves


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of values [n] and half the width of its 95 % t-interval; infinite for a single value."""
    if len(values) == 1:
        return float(values[0]), float("inf")
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def gap(curves: dict[str, Curves], name: str, other: str) -> tuple[float, float]:
    """By how much a heuristic's mean over the curve is ahead of another's, paired by seed, and its 95 % interval."""
    return interval(curves[name].accuracy.mean(1) - curves[other].accuracy.mean(1))


def labels_to(accuracy: np.ndarray, percent: float, sizes: list[int]) -> str:
    """The first number of labels at which the mean curve [sizes] has that accuracy; "-" if none."""
    reached = np.flatnonzero(accuracy >= percent)
    return str(sizes[reached[0]]) if len(reached) else "-"


def table(curves: dict[str, Curves], settings: Settings) -> list[dict[str, str]]:
    """A row for each heuristic."""
    rows = []
    for name, (accuracy, images) in curves.items():
        mean = accuracy.mean(0)  # [sizes]
        row = {
            "heuristic": name,
            "mean over the curve": f"{mean.mean():.2f}",
            f"at {settings.sizes[-1]}": f"{mean[-1]:.2f}",
            "labels to 90 %": labels_to(mean, 90, settings.sizes),
            "to 95 %": labels_to(mean, 95, settings.sizes),
            "images": f"{images.mean():.0f}",
        }
        if "BALD" in curves:
            row["minus BALD"] = "" if name == "BALD" else "{:+.2f} ± {:.2f}".format(*gap(curves, name, "BALD"))
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    head, *_ = widths

    def line(cells: dict[str, str]) -> str:
        aligned = (cells[name].ljust(w) if name == head else cells[name].rjust(w) for name, w in widths.items())
        return "| " + " | ".join(aligned) + " |"

    rule = {name: "-" * w if name == head else "-" * (w - 1) + ":" for name, w in widths.items()}
    return "\n".join([line({name: name for name in widths}), line(rule), *map(line, rows)])


def verdicts(curves: dict[str, Curves]) -> list[str]:
    """Whether each expected gap is there and larger than its interval."""
    told = []
    for name, other in EXPECTED:
        if name in curves and other in curves:
            mean, half = gap(curves, name, other)
            verdict = "ahead" if mean > half else "behind" if mean < -half else "not told apart"
            told.append(f"{name} and {other}: {mean:+.2f} ± {half:.2f}, {verdict}")
    return told


def write(records: list[dict[str, Any]], settings: Settings, folder: Path) -> str:
    """Table and picture; returns the table and the verdicts."""
    curves = curves_of(records)
    text = "\n".join([markdown(table(curves, settings)), "", *verdicts(curves)])
    (folder / "table.md").write_text(text + "\n")
    drawn = [name for name in DRAWN if name in curves] or list(curves)
    means = [  # of the seeds: bands of several heuristics would hide one another
        {"heuristic": name, "labelled": size, "accuracy": accuracy / 100}
        for name in drawn
        for size, accuracy in zip(settings.sizes, curves[name].accuracy.mean(0), strict=True)
    ]
    seeds = len({record["seed"] for record in records})
    learning_curve(means, folder / "learning_curve.png", f"Repeated digits, mean of {seeds} seeds")
    return text


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--heuristics", nargs="+", choices=HEURISTICS, metavar="NAME", help=f"Of {', '.join(HEURISTICS)}."
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="By default 0 to 9.")
    parser.add_argument("--workers", type=int, default=2, help="Processes, of one thread each; by default 2.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/repeated_digits"))
    parser.add_argument("--quick", action="store_true", help="BALD and Random, one seed, 40 labels, one process.")
    args = parser.parse_args(argv)
    args.heuristics = list(dict.fromkeys(args.heuristics or (["Random", "BALD"] if args.quick else HEURISTICS)))
    args.seeds = sorted(set(args.seeds or range(1 if args.quick else 10)))
    return args


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not there yet, then print and write what came out; returns the records."""
    args = parsed(argv)
    settings = Settings()
    if args.quick:
        settings = replace(settings, copies=2, labels=40, draws=5, targets=10, steps=30)
    records = run_all(args.heuristics, args.seeds, settings, 1 if args.quick else args.workers, args.output_dir)
    print(write(records, settings, args.output_dir))
    print(f"Written to {args.output_dir}: records.jsonl, table.md, learning_curve.png")
    return records


if __name__ == "__main__":
    main()
