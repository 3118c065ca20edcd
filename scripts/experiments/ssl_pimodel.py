"""What unlabelled rows add when few are labelled: 40 labels, supervised and with each semi-supervised method.

    python scripts/experiments/ssl_pimodel.py                        # digits, 10 seeds, about 10 minutes on one core
    python scripts/experiments/ssl_pimodel.py --data FOLDER          # texts
    python scripts/experiments/ssl_pimodel.py --loop modelwrapper    # ModelWrapper's training in place of Trainer's
    python scripts/experiments/ssl_pimodel.py --quick                # seconds, to see that it works

`--data digits` are scikit-learn's: 1,797 images of 8x8, of which a seed sets a fifth apart to test on. Any other data
are texts, as `text_features.py` takes them: `bbc-news`, a folder with `train.parquet` and `test.parquet`, a file, a
data set on the hub; a network sees their features under a frozen MiniLM. As many rows of each class are labelled; all
others to train on are unlabelled rows, whose labels are dropped. For a seed, all methods share the split, the labels,
the first weights, the network with its noise (on inputs, and dropout, while it is trained, also of the supervised run),
the optimizer and the number of steps.

Settings were chosen on seeds 100 to 104, which are not in the table, among a few values each; those of the texts on
AG News, where the supervised run had 74.5 to 75.5 % with all that were tried, and logistic regression 75.3 %.

- supervised: `unlabelled_weight=0`, which is the training of `BaalTransformersTrainer`, or of `ModelWrapper`;
- pi_model, mean_teacher (the model), mean_teacher, the teacher (its weights), pseudo_labels.

The two loops have the same settings: AdamW, a cosine schedule, gradients clipped to norm 1. They draw noise in another
order, so that their accuracies agree on average only.

Written to --output_dir: records of each method and seed, settings.json, table.md (mean accuracy over seeds and the
difference from supervised, paired by seed, with 95 % t-intervals) and accuracy.png; where several numbers of labels are
asked for by --labels, learning_curve.png. Runs whose record is there are not repeated.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from run_records import Accuracy, Record, RunRecords, interval, markdown
from sklearn.datasets import load_digits
from text_features import text_features
from torch import Tensor, nn
from transformers import PrinterCallback, TrainingArguments, get_cosine_schedule_with_warmup, set_seed

from baal_hf import SemiSupervisedModelWrapper, SemiSupervisedTrainer
from baal_hf.plots import learning_curve
from baal_hf.semisupervised import MeanTeacher, PiModel, PseudoLabels, SemiSupervisedMethod


@dataclass(frozen=True)
class Settings:
    """What is the same for every seed; the defaults are those of the digits."""

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


TEXTS = Settings(
    input_noise=0.5,  # inputs have mean 0 and deviation 1
    dropout=0.5,
    steps=300,
    learning_rate=1e-3,
    ramp_up_steps=100,
    decay=0.9,
    threshold=0.8,
)


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

    def __init__(self, inputs: int, classes: int, settings: Settings) -> None:
        super().__init__()
        self.input_noise = settings.input_noise
        self.layers = nn.Sequential(
            nn.Linear(inputs, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, classes),
        )

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [B, C] of rows [B, d], and the loss where labels [B] are given, as Trainer does."""
        if self.training:
            inputs = inputs + self.input_noise * torch.randn_like(inputs)
        logits = self.layers(inputs)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Data(NamedTuple):
    """Rows, to train and to test on."""

    inputs: Tensor  # float32 [N, d]
    classes: np.ndarray  # int64 [N]
    tested: int | None  # the last rows are to test on; None: a seed draws them

    @property
    def fingerprint(self) -> str:
        """Other data have another."""
        return blake2b(self.inputs.numpy().tobytes() + self.classes.tobytes(), digest_size=8).hexdigest()


def loaded(source: str, features_dir: Path, rows: int | None = None) -> Data:
    """The data of a source; of texts only some rows, if one says so."""
    if source == "digits":
        pixels, classes = load_digits(return_X_y=True)
        return Data(torch.from_numpy(pixels / 16).float(), classes, None)  # from 0 .. 16 to [0, 1]
    texts = text_features(source, features_dir, rows)
    classes = torch.cat([texts.train_classes, texts.test_classes]).numpy()
    return Data(torch.cat([texts.train, texts.test]), classes, len(texts.test))


class Split(NamedTuple):
    """The rows of a seed; unlabelled ones have no label."""

    labelled: list[dict[str, Tensor]]
    unlabelled: list[dict[str, Tensor]]
    test: list[dict[str, Tensor]]


def split(data: Data, seed: int, labels: int, settings: Settings) -> Split:
    """As many labelled rows of each class."""
    rng = np.random.default_rng([2, seed])
    number, classes = len(data.classes), int(data.classes.max()) + 1
    if data.tested is None:
        test, train = np.split(rng.permutation(number), [round(settings.test_share * number)])
    else:
        train, test = np.split(np.arange(number), [number - data.tested])
    chosen = [rng.choice(train[data.classes[train] == c], labels // classes, replace=False) for c in range(classes)]
    labelled = np.concatenate(chosen)
    rows = [{"inputs": x, "labels": y} for x, y in zip(data.inputs, torch.from_numpy(data.classes), strict=True)]
    unlabelled = [{"inputs": data.inputs[i]} for i in np.setdiff1d(train, labelled)]
    return Split([rows[i] for i in labelled], unlabelled, [rows[i] for i in test])


Tested = Callable[[], float]
"""Accuracy of a model as it is, in [0, 1]."""


def by_trainer(model: nn.Module, rows: Split, seed: int, settings: Settings, folder: Path, **part: Any) -> Tested:
    """Train with `SemiSupervisedTrainer`."""
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=1000,
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
    trainer = SemiSupervisedTrainer(
        model,
        arguments,
        train_dataset=rows.labelled,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        unlabelled_dataset=rows.unlabelled,
        **part,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return lambda: trainer.evaluate(rows.test)["eval_accuracy"]


def by_modelwrapper(model: nn.Module, rows: Split, seed: int, settings: Settings, folder: Path, **part: Any) -> Tested:
    """Train with `SemiSupervisedModelWrapper`, which leaves schedule and clipping to the optimizer."""
    epochs = math.ceil(settings.steps / math.ceil(len(rows.labelled) / settings.batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, settings.steps)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    wrapper = SemiSupervisedModelWrapper(
        model, nn.CrossEntropyLoss(), unlabelled_dataset=rows.unlabelled, seed=seed, **part
    )
    wrapper.add_metric("accuracy", Accuracy)
    wrapper.train_on_dataset(rows.labelled, optimizer, settings.batch_size, epochs, use_cuda=False, workers=0)

    def tested() -> float:
        wrapper.test_on_dataset(rows.test, 1000, use_cuda=False, workers=0)
        return float(wrapper.get_metrics("test")["test_accuracy"])

    return tested


LOOPS: dict[str, Callable[..., Tested]] = {"trainer": by_trainer, "modelwrapper": by_modelwrapper}


def run(name: str, seed: int, labels: int, settings: Settings, data: Data, loop: str, folder: Path) -> Record:
    """Train and test; of a mean teacher the record has the teacher's accuracy, too."""
    make, weight = methods(settings)[name]
    method = make()
    set_seed(seed)
    model = Network(data.inputs.shape[1], int(data.classes.max()) + 1, settings)
    part = {"method": method, "unlabelled_weight": weight}
    part |= {"ratio": settings.ratio, "ramp_up_steps": settings.ramp_up_steps}
    tested = LOOPS[loop](model, split(data, seed, labels, settings), seed, settings, folder, **part)
    record: Record = {"heuristic": name, "seed": seed, "labelled": labels, "accuracy": tested()}
    if isinstance(method, MeanTeacher):
        with method.swapped_into(model):
            record["teacher"] = tested()
    return record


def with_teachers(records: list[Record]) -> list[Record]:
    """Records of a method, and then those of its teachers, if it has any."""
    told = [r for r in records if "teacher" in r]
    return records + [{**r, "heuristic": f"{r['heuristic']}, the teacher", "accuracy": r["teacher"]} for r in told]


def table(records: list[Record]) -> str:
    """A line for each number of labels and method, in percent."""
    found = {(r["labelled"], r["heuristic"], r["seed"]): 100 * r["accuracy"] for r in records}
    rows = []
    for labels, name in dict.fromkeys((r["labelled"], r["heuristic"]) for r in records):
        by_seed = {seed: accuracy for (n, m, seed), accuracy in found.items() if (n, m) == (labels, name)}
        gains = [a - found[labels, "supervised", s] for s, a in by_seed.items() if (labels, "supervised", s) in found]
        rows.append(
            {
                "method": name,
                "labels": str(labels),
                "accuracy": interval(list(by_seed.values())),
                "minus supervised": interval(gains, "+") if gains and name != "supervised" else "",
                "seeds": str(len(by_seed)),
            }
        )
    return markdown(rows)


def picture(records: list[Record], path: Path, title: str) -> None:
    """Accuracy of each method: a dot for each seed, and the mean."""
    by_method: dict[str, list[float]] = {}
    for record in records:
        by_method.setdefault(record["heuristic"], []).append(100 * record["accuracy"])
    figure = Figure(figsize=(1.5 + 1.3 * len(by_method), 4), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(by_method.values()):
        axes.plot([place - 0.1] * len(values), values, "o", color="0.6", markersize=4)
        axes.plot(place + 0.1, np.mean(values), "D", color="C0")
    axes.set_xticks(range(len(by_method)), [name.replace(", ", ",\n") for name in by_method])
    axes.set(title=title, ylabel="test accuracy (%)", xlim=(-0.5, len(by_method) - 0.5))
    figure.savefig(path, dpi=120)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, bbc-news, a folder, a file or a data set on the hub.")
    parser.add_argument("--features_dir", type=Path, default="outputs/text_features", help="Where those of texts are.")
    parser.add_argument("--loop", choices=LOOPS, default="trainer", help="What trains.")
    parser.add_argument("--output_dir", type=Path, help="By default outputs/ssl_pimodel_ with data and loop.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="By default 0 to 9.")
    parser.add_argument("--labels", type=int, nargs="+", default=[40], help="Multiples of the number of classes.")
    parser.add_argument("--methods", nargs="+", choices=list(methods(Settings())), default=list(methods(Settings())))
    parser.add_argument("--quick", action="store_true", help="Two seeds, few steps, of texts a few rows.")
    args = parser.parse_args(argv)
    args.seeds = args.seeds[:2] if args.quick else args.seeds
    name = f"ssl_pimodel_{Path(args.data).stem}_{args.loop}" + "_quick" * args.quick
    args.output_dir = args.output_dir or Path("outputs") / name
    return args


def check(data: Data, labels: list[int]) -> None:
    """Refuse numbers of labels that the data do not have.

    Raises:
        SystemExit: They are no multiples of the number of classes, or there are too few rows.
    """
    classes = int(data.classes.max()) + 1
    train = data.classes if data.tested is None else data.classes[: -data.tested]
    most = classes * (np.bincount(train, minlength=classes).min() - 1)
    if any(n < classes or n % classes or n > most for n in labels):
        raise SystemExit(f"--labels needs multiples of {classes}, as many of each class, up to {most}, got {labels}.")


def main(argv: list[str] | None = None) -> list[Record]:
    """Run what is asked for and not there yet; print and write the table; returns the records."""
    args = parsed(argv)
    settings = Settings() if args.data == "digits" else TEXTS
    if args.quick:
        settings = replace(settings, steps=30, ramp_up_steps=10)
    data = loaded(args.data, args.features_dir, 200 if args.quick else None)
    check(data, args.labels)
    records = RunRecords(args.output_dir, {**asdict(settings), "data": data.fingerprint, "loop": args.loop})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is tiny: threads would wait for one another
    try:
        for labels, name, seed in ((n, m, s) for n in args.labels for s in args.seeds for m in args.methods):
            if all(record["labelled"] != labels for record in records.of(name, seed)):
                records.add(run(name, seed, labels, settings, data, args.loop, args.output_dir))
    finally:
        torch.set_num_threads(threads)
    by_method = [with_teachers(records.all([name], args.seeds)) for name in args.methods]
    found = [r for n in args.labels for own in by_method for r in own if r["labelled"] == n]
    text = table(found)
    (args.output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
    title = f"{Path(args.data).stem}, with and without unlabelled rows"
    if len(args.labels) > 1:
        learning_curve(found, args.output_dir / "learning_curve.png", title)
    else:
        picture(found, args.output_dir / "accuracy.png", title)
    print(text)
    print(f"Written to {args.output_dir}")
    return found


if __name__ == "__main__":
    main()
