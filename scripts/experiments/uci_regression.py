"""Regression on small tables with MC dropout, as Gal & Ghahramani (2016) did: test error and test log-likelihood.

    python scripts/experiments/uci_regression.py --data FOLDER     # four data sets, 20 splits each
    python scripts/experiments/uci_regression.py --quick           # seconds, to see that it works

`--data` is a folder with `uci_concrete`, `uci_energy`, `uci_yacht` and `uci_wine_red`, each with `train.parquet`,
`test.parquet` (columns features, label, row) and `splits.json` (rows to train and to test on, 20 times). Without it
scikit-learn's diabetes is used, on random splits; there is nothing published to compare that with.

Settings are those of the authors' repository (yaringal/DropoutUncertaintyExps, the grid search of 2018: one hidden
layer, 100 times 40 epochs), whose means the table compares with; the paper (arXiv:1506.02142) trained for a tenth of
that, and has lower log-likelihoods. For each split, inputs and targets are normalised by mean and standard deviation
of the rows that are trained on. Networks of 50 hidden units, with dropout on inputs and on hidden units and the weight
penalty l² (1 - p) / (2 N τ), length-scale l = 0.01, are trained by Adam for 4,000 epochs in batches of 128 on the first
80 % of the training rows, one for each dropout rate p and precision τ of a grid (the precisions are those that the
authors' results list). The pair with the highest log-likelihood of the other 20 % is taken, and a network is trained
anew with it on all training rows. What is reported, with T draws ŷ_t for each test row, is the root mean squared error
of their mean, and the mean over test rows of

    log p(y) = logsumexp_t(-τ/2 (y - ŷ_t)²) - log T - 1/2 log 2π + 1/2 log τ

Nothing was tuned. The authors used Keras on Theano: weights are drawn as there (uniform, Glorot), biases start at
zero, Adam's epsilon is 1e-7. Other than there: validation rows have 1,000 draws, not 10,000; the networks of a split
see its rows in the same order; dropout rates are met to 1/131,072 in training; test draws are `ModelWrapper`'s, in
which a draw is one network for all rows. Networks of ten splits and of all grid points are trained side by side, as
one batch of matrices: one after the other they would take days.

Written to --output_dir: a file of records for each data set and split, as each group of splits ends (a run that was
stopped goes on after the last whole group), table.md and log_likelihood.png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from run_records import Record, RunRecords, markdown
from scipy.special import logsumexp
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baal_hf import MCDropout, ModelWrapper


@dataclass(frozen=True)
class Settings:
    """What is the same for every data set."""

    rates: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1)
    hidden: int = 50
    epochs: int = 4_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    epsilon: float = 1e-7
    length_scale: float = 1e-2
    trained_share: float = 0.8  # of the training rows, while the grid is searched
    validation_draws: int = 1_000
    draws: int = 10_000
    splits: int = 20
    splits_at_once: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Known:
    """The grid of precisions of a data set, and what was published: means and standard errors over 20 splits."""

    precisions: tuple[float, ...]
    rmse: tuple[float, float] | None = None
    log_likelihood: tuple[float, float] | None = None


UCI = {
    "concrete": Known((0.025, 0.05, 0.075), (4.82, 0.16), (-2.937, 0.025)),
    "energy": Known((0.25, 0.5, 0.75), (0.54, 0.06), (-1.212, 0.005)),
    "yacht": Known((0.25, 0.5, 0.75), (0.67, 0.05), (-1.250, 0.015)),
    "wine_red": Known((2.5, 3.0, 3.5), (0.62, 0.01), (-0.928, 0.013)),
}
DIABETES = Known((1.5e-4, 3e-4, 6e-4))  # labels have a variance of 5,930, half of which is noise
FILES = ("train.parquet", "test.parquet", "splits.json")


@dataclass(frozen=True)
class Regression:
    """A data set: features [M, d], labels [M], and for each split the rows to train on [S, N] and to test on [S, R]."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Tells other data under the same name."""
        parts = (self.features, self.labels, self.train, self.test)
        return f"{zlib.crc32(b''.join(np.ascontiguousarray(part).tobytes() for part in parts)):08x}"


# Data


def uci(folder: Path, names: Sequence[str]) -> list[Regression]:
    """The data sets of these names.

    Raises:
        SystemExit: Files are missing, or splits do not fit the rows or one another.
    """
    missing = [path for name in names for file in FILES if not (path := folder / f"uci_{name}" / file).is_file()]
    if missing:
        raise SystemExit(f"{len(missing)} files are missing, the first of them: {', '.join(map(str, missing[:3]))}")
    return [_read(folder / f"uci_{name}", name) for name in names]


def _read(folder: Path, name: str) -> Regression:
    tables = [pq.read_table(folder / file).to_pydict() for file in FILES[:2]]
    row_ids, features, labels = (
        np.array([value for table in tables for value in table[key]]) for key in ("row", "features", "label")
    )
    order = np.argsort(row_ids)
    splits = json.loads((folder / FILES[2]).read_text())
    try:
        train, test = (np.array(splits[part], dtype=np.int64) for part in ("train", "test"))
    except ValueError as error:
        raise SystemExit(f"{folder / FILES[2]}: all splits need as many rows, to be trained together.") from error
    for number, rows in enumerate(np.concatenate([train, test], axis=1)):
        if not np.array_equal(np.sort(rows), row_ids[order]):
            raise SystemExit(f"{folder / FILES[2]}: split {number} does not have each of the {len(order)} rows once.")
    return Regression(name, features[order], labels[order], train, test)


def diabetes(splits: int, test_share: float = 0.1) -> Regression:
    """scikit-learn's diabetes, randomly split: 442 patients, 10 features."""
    features, labels = load_diabetes(return_X_y=True)
    rows = np.stack([np.random.default_rng([1, i]).permutation(len(labels)) for i in range(splits)])
    test, train = np.split(rows, [round(test_share * len(labels))], axis=1)
    return Regression("diabetes", features, labels, train, test)


class Normalised:
    """Rows of several splits, by mean and standard deviation of the rows of each that are trained on.

    Args:
        data: Where the rows are from.
        train: Rows to train on, [S, N].
        other: Rows to predict, [S, R].
    """

    def __init__(self, data: Regression, train: np.ndarray, other: np.ndarray) -> None:
        features, labels = data.features[train], data.labels[train]  # [S, N, d], [S, N]
        center, scale = features.mean(1, keepdims=True), features.std(1, keepdims=True)
        scale = np.where(scale == 0, 1, scale)
        self.label_mean, self.label_std = labels.mean(1, keepdims=True), labels.std(1, keepdims=True)  # [S, 1]
        self.inputs = _float((features - center) / scale)  # [S, N, d]
        self.targets = _float((labels - self.label_mean) / self.label_std)[:, :, None]  # [S, N, 1]
        self.other_inputs = _float((data.features[other] - center) / scale)  # [S, R, d]
        self.other_labels = data.labels[other]  # [S, R], as they are


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()


# Many networks at once


class Networks:
    """Perceptrons d -> H -> 1 with ReLU and with dropout on inputs and hidden units, trained side by side.

    None has any influence on another: Adam works element by element, and the loss is a sum over networks.

    Args:
        features: d.
        rates: Of dropout, [n].
        penalties: Factor of the sum of squared weights in the loss of each network, [n].
        settings: Of the experiment.
        rng: Draws weights and dropout.
    """

    def __init__(
        self, features: int, rates: np.ndarray, penalties: np.ndarray, settings: Settings, rng: np.random.Generator
    ) -> None:
        n, hidden = len(rates), settings.hidden
        self.rates, self._rng = rates, rng
        self.keep = _float(1 - rates).view(n, 1, 1)
        self.penalties = _float(penalties).view(n, 1, 1)
        self._dropped_below = torch.from_numpy(np.round(rates * 2**16) - 2**15).to(torch.int16).view(n, 1, 1)
        self.weights = [self._glorot(n, features, hidden), self._glorot(n, hidden, 1)]  # [n, d, H], [n, H, 1]
        self.biases = [torch.zeros(n, 1, hidden), torch.zeros(n, 1, 1)]
        self.optimizer = torch.optim.Adam(
            [*self.weights, *self.biases], settings.learning_rate, eps=settings.epsilon, fused=True
        )
        self._space: dict[tuple[int, ...], list[Tensor]] = {}

    def _glorot(self, *shape: int) -> Tensor:
        bound = math.sqrt(6 / (shape[-2] + shape[-1]))
        return _float(self._rng.uniform(-bound, bound, shape))

    def _kept(self, out: Tensor) -> Tensor:
        """Fill [n, ...] with 1 where a unit is kept and 0 where not; a coin is a quarter of a random number's bits."""
        size = out.numel()
        bits = self._rng.integers(-(2**63), 2**63, -(-size // 4), dtype=np.int64)
        coins = torch.from_numpy(bits.view(np.int16)[:size].reshape(out.shape))
        return torch.ge(coins, self._dropped_below, out=out)  # numbers at once: five times as fast as from booleans

    def _hidden(self, inputs: Tensor, space: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs [n, B, d] and hidden units [n, B, H] after dropout, both still to be divided by `keep`."""
        inputs = self._kept(torch.empty_like(inputs)).mul_(inputs)
        hidden, kept, _ = space
        torch.bmm(inputs, self.weights[0] / self.keep, out=hidden).add_(self.biases[0]).relu_()
        return inputs, hidden.mul_(self._kept(kept))

    def _outputs(self, hidden: Tensor, space: list[Tensor]) -> Tensor:
        # a product with a single column is several times slower as a product of matrices
        products = torch.mul(hidden, (self.weights[1] / self.keep).mT, out=space[2])  # [n, B, H]
        return products.sum(2, keepdim=True).add_(self.biases[1])  # [n, B, 1]

    def _space_for(self, rows: int) -> list[Tensor]:
        """Three buffers [n, B, H], kept from step to step: fresh memory costs more than what is computed in it."""
        shape = (len(self.rates), rows, self.weights[0].shape[-1])
        if shape not in self._space:
            self._space[shape] = [torch.empty(shape) for _ in range(3)]
        return self._space[shape]

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """A step of Adam on the mean squared error of a batch and the penalty on weights, for each network.

        Gradients are written out: they take a third of the time that autograd does.

        Args:
            inputs: [n, B, d].
            targets: [n, B, 1].
        """
        space = self._space_for(inputs.shape[1])
        inputs, hidden = self._hidden(inputs, space)
        errors = self._outputs(hidden, space).sub_(targets).mul_(2 / inputs.shape[1])  # [n, B, 1]
        first, last = self.weights
        decay = 2 * self.penalties
        last.grad = torch.mul(hidden, errors, out=space[2]).sum(1)[:, :, None].div_(self.keep).add_(decay * last)
        self.biases[1].grad = errors.sum(1, keepdim=True)
        slopes = torch.mul(errors, (last / self.keep).mT, out=space[2]).mul_(hidden.sign_())  # [n, B, H]
        first.grad = torch.bmm(inputs.mT, slopes).div_(self.keep).add_(decay * first)
        self.biases[0].grad = slopes.sum(1, keepdim=True)
        self.optimizer.step()

    def draws(self, inputs: Tensor, number: int, at_once: int = 20) -> Tensor:
        """Outputs [n, R, T] for inputs [n, R, d] under dropout, with a mask for each row and draw."""
        parts = []
        for start in range(0, number, at_once):
            t = min(at_once, number - start)
            rows = inputs.repeat(1, t, 1)  # [n, t·R, d]
            space = self._space_for(rows.shape[1])
            outputs = self._outputs(self._hidden(rows, space)[1], space)  # [n, t·R, 1]
            parts.append(outputs.view(len(inputs), t, -1).mT)  # [n, R, t]
        return torch.cat(parts, 2)

    def network(self, i: int) -> nn.Sequential:
        """One of them, as a module."""
        rate, (features, hidden) = float(self.rates[i]), self.weights[0].shape[1:]
        module = nn.Sequential(
            *(nn.Dropout(rate), nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(rate), nn.Linear(hidden, 1))
        )
        with torch.no_grad():
            for layer, weight, bias in zip((module[1], module[4]), self.weights, self.biases, strict=True):
                layer.weight.copy_(weight[i].mT)
                layer.bias.copy_(bias[i, 0])
        return module


def trained(rows: Normalised, grid: np.ndarray, settings: Settings, rng: np.random.Generator) -> Networks:
    """Networks for each split and grid point, those of a split side by side.

    Args:
        rows: Of S splits.
        grid: Dropout rate and precision for each split and grid point, [S, G, 2].
        settings: Of the experiment.
        rng: Of all that is random.
    """
    splits, points, _ = grid.shape
    number, features = rows.inputs.shape[1:]
    rates, precisions = grid.reshape(-1, 2).T
    penalties = settings.length_scale**2 * (1 - rates) / (2 * number * precisions)
    networks = Networks(features, rates, penalties, settings, rng)
    for _ in range(settings.epochs):
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(number), (splits, 1)), axis=1))[:, :, None]
        inputs, targets = rows.inputs.take_along_dim(order, 1), rows.targets.take_along_dim(order, 1)
        for batch in zip(inputs.split(settings.batch_size, 1), targets.split(settings.batch_size, 1), strict=True):
            networks.step(*(part.repeat_interleave(points, 0) for part in batch))
    return networks


# The experiment


def log_likelihood(labels: np.ndarray, draws: np.ndarray, precision: np.ndarray | float) -> np.ndarray:
    """The mean over rows of the log-density of labels [..., R] under draws [..., R, T]: [...].

    log p(y) = logsumexp_t(-τ/2 (y - ŷ_t)²) - log T - 1/2 log 2π + 1/2 log τ    (Gal & Ghahramani, 2016)
    """
    precision = np.asarray(precision)[..., None]
    exponents = -precision[..., None] / 2 * (labels[..., None] - draws) ** 2  # [..., R, T]
    log_mean = logsumexp(exponents, -1) - math.log(draws.shape[-1])
    return (log_mean + (np.log(precision) - math.log(2 * math.pi)) / 2).mean(-1)


def group(data: Regression, precisions: Sequence[float], splits: Sequence[int], settings: Settings) -> list[Record]:
    """A record for each of these splits."""
    started = time.perf_counter()
    rng = np.random.Generator(np.random.SFC64([settings.seed, zlib.crc32(data.name.encode()), splits[0]]))
    train, test = data.train[list(splits)], data.test[list(splits)]

    grid = np.array(list(product(settings.rates, precisions)))  # [G, 2]
    cut = int(settings.trained_share * train.shape[1])
    rows = Normalised(data, train[:, :cut], train[:, cut:])
    networks = trained(rows, np.stack([grid] * len(splits)), settings, rng)
    scores = np.stack([*validated(networks, rows, grid, settings)])  # [S, G]
    searched = time.perf_counter()

    chosen = grid[scores.argmax(1)]  # [S, 2]
    rows = Normalised(data, train, test)
    networks = trained(rows, chosen[:, None], settings, rng)
    records = []
    for i, split in enumerate(splits):
        wrapper = ModelWrapper(networks.network(i), nn.MSELoss(), posterior=MCDropout(settings.seed + split))
        test_rows = TensorDataset(rows.other_inputs[i], _float(rows.other_labels[i]))
        draws = wrapper.predict_on_dataset(test_rows, 500, settings.draws, workers=0, verbose=False)[:, 0]  # [R, T]
        draws = draws.astype(np.float64) * rows.label_std[i] + rows.label_mean[i]
        rate, precision = chosen[i].tolist()
        records.append(
            {
                "heuristic": data.name,  # what RunRecords names files by
                "seed": split,
                "rmse": math.sqrt(((draws.mean(1) - rows.other_labels[i]) ** 2).mean()),
                "log_likelihood": float(log_likelihood(rows.other_labels[i], draws, precision)),
                "rate": rate,
                "precision": precision,
                "validation_log_likelihoods": scores[i].tolist(),
                "data": data.fingerprint,
            }
        )
    seconds = {"seconds_grid": searched - started, "seconds_test": time.perf_counter() - searched}
    return [{**record, **seconds} for record in records]


def validated(networks: Networks, rows: Normalised, grid: np.ndarray, settings: Settings) -> Iterator[np.ndarray]:
    """For each split the log-likelihood of its other rows under the network of each grid point, [G]."""
    points = len(grid)
    inputs = rows.other_inputs.repeat_interleave(points, 0)  # [S·G, R, d]
    draws = networks.draws(inputs, settings.validation_draws).unflatten(0, (-1, points)).numpy()  # [S, G, R, T]
    for i, own in enumerate(draws):
        values = own * rows.label_std[i, 0] + rows.label_mean[i, 0]
        yield log_likelihood(np.stack([rows.other_labels[i]] * points), values, grid[:, 1])


def run(data: Regression, precisions: Sequence[float], settings: Settings, records: RunRecords) -> None:
    """Run the groups of splits whose records are not there.

    Raises:
        SystemExit: There are records of other data of that name.
    """
    for start in range(0, settings.splits, settings.splits_at_once):
        splits = range(start, min(start + settings.splits_at_once, settings.splits))
        found = {split: earlier for split in splits if (earlier := records.of(data.name, split))}
        if any(record["data"] != data.fingerprint for earlier in found.values() for record in earlier):
            raise SystemExit(f"{records.folder} has records of other data that are named {data.name}.")
        if len(found) == len(splits):
            continue
        for record in group(data, precisions, splits, settings):
            if record["seed"] not in found:
                records.add(record)
            print(
                f"{data.name:<10} split {record['seed']:2d}  RMSE {record['rmse']:.3f}  log-likelihood "
                f"{record['log_likelihood']:.3f}  at p = {record['rate']:g}, τ = {record['precision']:g}",
                flush=True,
            )


# What came out


def mean_error(records: Sequence[Record], name: str) -> tuple[float, float]:
    """Mean over splits and its standard error, as the authors compute it: with the deviation divided by n."""
    values = np.array([record[name] for record in records])
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def table(records: Sequence[Record], known: dict[str, Known]) -> list[dict[str, str]]:
    """A row for each data set; the last column is the difference of log-likelihoods in published standard errors."""
    rows = []
    for name in dict.fromkeys(record["heuristic"] for record in records):
        own = [record for record in records if record["heuristic"] == name]
        value, error = mean_error(own, "log_likelihood")
        row = {"data set": name, "splits": str(len(own)), "RMSE": _told(mean_error(own, "rmse"), 2)}
        row["published RMSE"] = _told(known[name].rmse, 2)
        row |= {"log-likelihood": _told((value, error), 3), "published": _told(known[name].log_likelihood, 3)}
        published = known[name].log_likelihood
        row["difference"] = f"{value - published[0]:+.3f}" if published else ""
        row["in standard errors"] = f"{(value - published[0]) / published[1]:+.2f}" if published else ""
        rows.append(row)
    return rows


def _told(values: tuple[float, float] | None, digits: int) -> str:
    return f"{values[0]:.{digits}f} ± {values[1]:.{digits}f}" if values else ""


def picture(records: Sequence[Record], known: dict[str, Known], path: Path) -> None:
    """Log-likelihood of each split, its mean, and the published mean with a standard error."""
    names = list(dict.fromkeys(record["heuristic"] for record in records))
    figure = Figure(figsize=(2.2 * len(names) + 1, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [record for record in records if record["heuristic"] == name]
        mean, error = mean_error(own, "log_likelihood")
        offsets = np.linspace(-0.15, 0.15, len(own))
        axes.plot(offsets, [record["log_likelihood"] for record in own], ".", color="0.6", label="splits")
        axes.errorbar([0.35], [mean], [error], fmt="o", capsize=4, label="mean")
        if (published := known[name].log_likelihood) is not None:
            axes.errorbar([0.55], [published[0]], [published[1]], fmt="s", capsize=4, label="published")
        axes.set(title=name, xticks=[], xlim=(-0.3, 0.7))
    axes.legend()
    figure.axes[0].set_ylabel("test log-likelihood")
    figure.savefig(path, dpi=120)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="The folder with uci_concrete and others; else diabetes is used.")
    parser.add_argument("--datasets", nargs="+", choices=UCI, metavar="NAME", help=", ".join(UCI))
    parser.add_argument("--splits", type=int, help="By default the first 20.")
    parser.add_argument("--epochs", type=int, help="By default 4,000.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, dropout and the order of rows.")
    parser.add_argument("--output_dir", type=Path, help="By default outputs/uci_regression.")
    parser.add_argument("--quick", action="store_true", help="4 splits, 20 epochs, 50 draws.")
    args = parser.parse_args(argv)
    if args.datasets and args.data is None:
        parser.error("--datasets needs --data, the folder where they are")
    args.splits = (4 if args.quick else 20) if args.splits is None else args.splits
    args.epochs = (20 if args.quick else 4_000) if args.epochs is None else args.epochs
    for name in ("splits", "epochs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} needs a number from 1, got {getattr(args, name)}")
    args.output_dir = args.output_dir or Path("outputs/uci_regression" + "_quick" * args.quick)
    return args


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not there yet, then print and write what came out; returns the records."""
    args = parsed(argv)
    settings = Settings(epochs=args.epochs, splits=args.splits, seed=args.seed)
    if args.quick:
        settings = replace(settings, validation_draws=20, draws=50, splits_at_once=2)
    names = list(dict.fromkeys(args.datasets or UCI))
    datasets = uci(args.data, names) if args.data else [diabetes(settings.splits)]
    if fewer := [f"{data.name} {len(data.train)}" for data in datasets if len(data.train) < settings.splits]:
        raise SystemExit(f"{settings.splits} splits are asked for, and there are fewer: {', '.join(fewer)}")
    known = UCI if args.data else {"diabetes": DIABETES}
    records = RunRecords(args.output_dir, asdict(settings))
    for data in datasets:
        run(data, known[data.name].precisions, settings, records)
    came_out = records.all([data.name for data in datasets], range(settings.splits))
    text = markdown(table(came_out, known))
    (args.output_dir / "table.md").write_text(text + "\n")
    picture(came_out, known, args.output_dir / "log_likelihood.png")
    print(text)
    print(f"Written to {args.output_dir}: records by data set and split, table.md, log_likelihood.png")
    return came_out


if __name__ == "__main__":
    main()
