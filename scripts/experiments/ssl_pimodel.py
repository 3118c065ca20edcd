"""What unlabelled rows add when few are labelled: digits with 40 labels, supervised and with each method.

    python scripts/experiments/ssl_pimodel.py              # 10 seeds, about 10 minutes on one core
    python scripts/experiments/ssl_pimodel.py --quick      # seconds, to see that it works

The data are scikit-learn's digits: 1,797 images of 8x8, a fifth of them to test on. Four of each class are labelled;
all others of the training images are unlabelled rows, whose labels are dropped. For a seed, all methods share the
split, the labels, the first weights, the network with its noise (on inputs, and dropout, while it is trained, also of
the supervised run), the optimizer and the number of steps.

Noise, weights and the threshold were chosen on seeds 100 to 104, which are not in the table, among a few values each.

- supervised: `unlabelled_weight=0`, which is `BaalTransformersTrainer`'s training;
- pi_model, mean_teacher (the model), mean_teacher (the teacher's weights), pseudo_labels.

Written to --output_dir: records.jsonl (a line for each run), table.md (mean accuracy over seeds and the difference from
supervised, paired by seed, with 95 % t-intervals) and, where several numbers of labels are asked for by --labels,
learning_curve.png. Runs that are in records.jsonl already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import PrinterCallback, TrainingArguments, set_seed

from baal_hf.plots import learning_curve
from baal_hf.semisupervised import MeanTeacher, PiModel, PseudoLabels, SemiSupervisedMethod
from baal_hf.semisupervised.trainer import SemiSupervisedTrainer

CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """What is the same for every seed."""

    test_share: float = 0.2
    hidden: int = 128
    input_noise: float = 0.2  # standard deviation; inputs are in [0, 1]
    dropout: float = 0.3
    steps: int = 600
    batch_size: int = 40
    learning_rate: float = 3e-3
    ratio: float = 0.75  # three unlabelled rows beside a labelled one
    ramp_up_steps: int = 200
    decay: float = 0.99
    threshold: float = 0.9
    pi_weight: float = 10.0
    teacher_weight: float = 10.0
    pseudo_weight: float = 1.0


def methods(settings: Settings) -> dict[str, tuple[Callable[[], SemiSupervisedMethod], float]]:
    """How to make each method, and its weight."""
    return {
        "supervised": (PiModel, 0.0),
        "pi_model": (PiModel, settings.pi_weight),
        "mean_teacher": (lambda: MeanTeacher(settings.decay), settings.teacher_weight),
        "pseudo_labels": (lambda: PseudoLabels(settings.threshold), settings.pseudo_weight),
    }


class Network(nn.Module):
    """A perceptron of two hidden layers that adds noise to its inputs while it is trained."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.input_noise = settings.input_noise
        self.layers = nn.Sequential(
            nn.Linear(64, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, CLASSES),
        )

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [B, C] of images [B, 64], and the loss where labels [B] are given."""
        if self.training:
            pixels = pixels + self.input_noise * torch.randn_like(pixels)
        logits = self.layers(pixels)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


Rows = list[dict[str, Tensor]]


def digits(seed: int, labels: int, settings: Settings) -> tuple[Rows, Rows, Rows]:
    """Labelled, unlabelled and test rows of a seed; unlabelled ones have no label."""
    rng = np.random.default_rng([2, seed])
    pixels, classes = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels / 16).float()  # [1797, 64], from 0 .. 16 to [0, 1]
    test, train = np.split(rng.permutation(len(classes)), [round(settings.test_share * len(classes))])
    chosen = [rng.choice(train[classes[train] == c], labels // CLASSES, replace=False) for c in range(CLASSES)]
    labelled = np.concatenate(chosen)
    unlabelled = np.setdiff1d(train, labelled)
    rows = [{"pixels": x, "labels": y} for x, y in zip(inputs, torch.from_numpy(classes), strict=True)]
    return [rows[i] for i in labelled], [{"pixels": inputs[i]} for i in unlabelled], [rows[i] for i in test]


def run(name: str, seed: int, labels: int, settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Train and test; a record, two for a mean teacher."""
    labelled, unlabelled, test = digits(seed, labels, settings)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=len(test),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    method, weight = methods(settings)[name]
    set_seed(seed)
    trainer = SemiSupervisedTrainer(
        Network(settings),
        arguments,
        train_dataset=labelled,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        unlabelled_dataset=unlabelled,
        method=method(),
        unlabelled_weight=weight,
        ratio=settings.ratio,
        ramp_up_steps=settings.ramp_up_steps,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    record = {"seed": seed, "labelled": labels, "settings": asdict(settings)}
    records = [{"heuristic": name, "accuracy": trainer.evaluate(test)["eval_accuracy"], **record}]
    if isinstance(trainer.method, MeanTeacher):
        with trainer.method.swapped_into(trainer.model):
            accuracy = trainer.evaluate(test)["eval_accuracy"]
        records.append({"heuristic": f"{name}, the teacher", "accuracy": accuracy, **record})
    return records


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % t-interval, in percent."""
    mean = 100 * fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = 100 * stdev(values) / math.sqrt(len(values)) * student_t.ppf(0.975, len(values) - 1)
    return f"{mean:.2f} ± {half:.2f}"


def table(records: list[dict[str, Any]]) -> str:
    """A line for each number of labels and method."""
    lines = ["| labels | method | accuracy, % | minus supervised | seeds |", "| ---: | --- | ---: | ---: | ---: |"]
    found = {(r["labelled"], r["heuristic"], r["seed"]): r["accuracy"] for r in records}
    for labels, name in dict.fromkeys((r["labelled"], r["heuristic"]) for r in records):
        by_seed = {seed: a for (n, m, seed), a in found.items() if (n, m) == (labels, name)}
        gains = [a - found[labels, "supervised", s] for s, a in by_seed.items() if (labels, "supervised", s) in found]
        gain = "" if name == "supervised" or not gains else interval(gains)
        lines.append(f"| {labels} | {name} | {interval(list(by_seed.values()))} | {gain} | {len(by_seed)} |")
    return "\n".join(lines)


def known(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """Records of these settings; a line that was cut off is none."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["settings"] == asdict(settings):
            records.append(record)
    return records


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is asked for and not there yet; print and write the table; returns the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="outputs/ssl_pimodel", help="Where records and table are written.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="Seeds.")
    parser.add_argument("--labels", type=int, nargs="+", default=[40], help="Numbers of labels, multiples of 10.")
    parser.add_argument("--methods", nargs="+", choices=list(methods(Settings())), default=list(methods(Settings())))
    parser.add_argument("--quick", action="store_true", help="Two seeds, few steps: does it run?")
    args = parser.parse_args(argv)
    if any(labels < CLASSES or labels % CLASSES for labels in args.labels):
        parser.error(f"--labels needs multiples of {CLASSES}, as many of each class, got {args.labels}.")
    settings = replace(Settings(), steps=30, ramp_up_steps=10) if args.quick else Settings()
    seeds = args.seeds[:2] if args.quick else args.seeds
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "records.jsonl"
    asked = [(labels, name, seed) for labels in args.labels for name in args.methods for seed in seeds]
    done = {(r["labelled"], r["heuristic"], r["seed"]) for r in known(path, settings)}
    cut = path.is_file() and not path.read_text(encoding="utf-8").endswith("\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is tiny: threads would wait for one another
    try:
        for labels, name, seed in asked:
            if (labels, name, seed) not in done:
                lines = "".join(json.dumps(r) + "\n" for r in run(name, seed, labels, settings, folder))
                with open(path, "a", encoding="utf-8") as file:
                    file.write("\n" * cut)  # behind a line that was cut off
                    cut = False
                    file.write(lines)
    finally:
        torch.set_num_threads(threads)
    records = [
        r for r in known(path, settings) if (r["labelled"], r["heuristic"].split(",")[0], r["seed"]) in set(asked)
    ]
    records.sort(key=lambda r: asked.index((r["labelled"], r["heuristic"].split(",")[0], r["seed"])))
    text = table(records)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    if len(args.labels) > 1:
        learning_curve(records, folder / "learning_curve.png", "Digits, with and without unlabelled rows")
    print(text)
    print(f"Written to {folder}")
    return records


if __name__ == "__main__":
    main()
