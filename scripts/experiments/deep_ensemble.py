"""What a deep ensemble, MC dropout and a temperature do for a small network's probabilities: digits and short texts.

    python scripts/experiments/deep_ensemble.py --data FOLDER     # 20 seeds, 3 minutes of one core
    python scripts/experiments/deep_ensemble.py --quick           # seconds, to see that it works

The sets are scikit-learn's digits (1,797 images of 8x8) and texts, as a frozen sentence encoder's features. `--data` is
a folder with `train.parquet` and `test.parquet`, of columns `text` and `label`; `bbc-news` (the default, which installs
with the extra `demo`); or a data set on the hub. A seed splits all rows of a set at random, also those of
its own test split: some to train on, 300 held out to fit temperatures on, and all others to test on. Seeds share rows,
so that intervals tell of splits and training, not of other data.

The network is a perceptron of two hidden layers with ReLU and dropout, trained by Adam for a fixed number of epochs on
few rows, so that it becomes too sure of others. For a seed, the rows of the table share split and networks:

- one network: the first of five, without dropout;
- MC dropout: the first network, the mean of T draws (Gal & Ghahramani, 2016, arXiv:1506.02142);
- ensemble of 5: the mean of the five, without dropout, which differ in first weights, order of rows and dropout
  (Lakshminarayanan et al., 2017, arXiv:1612.01474);
- each of these + temperature: the mean's, fitted on the held-out rows (Guo et al., 2017, arXiv:1706.04599).

Other than in the ensembles' paper there is no adversarial training, members have dropout while they are trained, and
the network is smaller; MC dropout's draws share their masks between rows, as everywhere in this package.

Settings were chosen on some of seeds 100 to 104, which are not in the table, so that one network is too sure. On digits
300 rows, 50 epochs and dropout 0.1 at learning rate 1e-3 left it nearly calibrated, with an ECE of 1.6 %, and then MC
dropout (2.2 %), an ensemble (1.9 %) and a temperature (2.0 %) had no lower one: where nothing is to be mended, they do
not mend. 200 rows and dropout 0.2 at 3e-3 made it 3.0 %. On trec6 these settings made it 22 % with an NLL of 1.62 nats,
and 300 rows and 30 epochs at 1e-3 16 % and 1.05; the latter were kept. No others were tried to their end.

Written to --output_dir, a folder for each set: records and test predictions by seed. Beside them table.md, with scores
(mean over seeds), differences paired by seed, 95 % t-intervals of both, and what they say of each claim; and
reliability.png, of all seeds' test predictions: pooled, their ECE is below the mean over seeds, which also counts the
noise of bins with few rows. A run that was stopped goes on with the seed where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import image
from run_records import Record, RunRecords, interval, markdown
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from text_features import text_features
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baal_hf import EnsembleModelWrapper, MCDropout, ModelWrapper, TemperatureScaling, metrics
from baal_hf.reliability import reliability_diagram

Predictions = dict[str, np.ndarray]  # of each predictor, probabilities [N, C]

PREDICTORS = ("one network", "MC dropout", "ensemble")
SCORES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier_score": "Brier"}
CLAIMS = (  # of the first, a score is lower than of the second
    ("ensemble", "one network", "nll"),
    ("ensemble", "one network", "ece"),
    ("MC dropout", "one network", "nll"),
    ("MC dropout", "one network", "ece"),
    ("one network + temperature", "one network", "ece"),
)
BATCH = 500  # rows that are predicted at once


@dataclass(frozen=True)
class Settings:
    """What is the same for every seed of a set."""

    train_rows: int
    held_out_rows: int
    hidden: int = 128
    dropout: float = 0.2
    epochs: int = 50
    batch_size: int = 32
    learning_rate: float = 3e-3
    members: int = 5
    draws: int = 50
    bins: int = 15


SETTINGS = {
    "digits": Settings(train_rows=200, held_out_rows=300),
    "text": Settings(train_rows=300, held_out_rows=300, epochs=30, learning_rate=1e-3),
}


def quick(settings: Settings) -> Settings:
    """What is there to see that it works."""
    return replace(settings, train_rows=60, held_out_rows=60, hidden=32, epochs=20, draws=5)


class Rows(NamedTuple):
    """All rows of a set."""

    inputs: Tensor  # float32 [M, d]
    classes: Tensor  # int64 [M]

    @property
    def number_of_classes(self) -> int:
        return int(self.classes.max()) + 1

    @property
    def fingerprint(self) -> str:
        """Tells these rows from others by their classes: features differ in the last digit between machines."""
        return hashlib.blake2b(self.classes.numpy().tobytes(), digest_size=8).hexdigest()

    def of(self, row_ids: np.ndarray) -> TensorDataset:
        return TensorDataset(self.inputs[row_ids], self.classes[row_ids])


def digits() -> Rows:
    """Pixels from 0 .. 16 to [0, 1]."""
    pixels, classes = load_digits(return_X_y=True)
    return Rows(torch.from_numpy(pixels / 16).float(), torch.from_numpy(classes).long())


def texts(source: str, kept_in: Path, rows: int | None) -> Rows:
    """The source's rows to train and to test on, together."""
    found = text_features(source, kept_in, rows)
    return Rows(torch.cat([found.train, found.test]), torch.cat([found.train_classes, found.test_classes]))


def split(rows: int, seed: int, settings: Settings) -> list[np.ndarray]:
    """Row ids to train on, held out, and to test on."""
    places = np.random.default_rng([3, seed]).permutation(rows)
    return np.split(places, np.cumsum([settings.train_rows, settings.held_out_rows]))


def network(features: int, classes: int, settings: Settings) -> nn.Sequential:
    """Inputs [B, d] to logits [B, C]."""
    return nn.Sequential(
        *(nn.Linear(features, settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout)),
        *(nn.Linear(settings.hidden, settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout)),
        nn.Linear(settings.hidden, classes),
    )


def predicted(seed: int, settings: Settings, rows: Rows) -> tuple[Predictions, Predictions]:
    """Train the members; what each predictor makes of the held-out and of the test rows."""
    train, *others = (rows.of(row_ids) for row_ids in split(len(rows.classes), seed, settings))
    model = network(rows.inputs.shape[1], rows.number_of_classes, settings)
    criterion = nn.CrossEntropyLoss()
    members = EnsembleModelWrapper(model, criterion)
    first = ModelWrapper(model, criterion, posterior=MCDropout(seed))  # the same model, while it is the first member
    drawn = []
    for member in range(settings.members):
        torch.manual_seed(1_000 * seed + member)
        members.reset_all()
        optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
        members.train_on_dataset(train, optimizer, settings.batch_size, settings.epochs, workers=0)
        members.add_checkpoint()
        if member == 0:
            drawn = [
                first.predict_on_dataset(part, BATCH, settings.draws, workers=0, verbose=False) for part in others
            ]  # [N, C, T] each
    networks = [members.predict_on_dataset(part, BATCH, workers=0, verbose=False) for part in others]  # [N, C, 5] each
    held_out, test = (
        dict(zip(PREDICTORS, (each[..., 0], draws.mean(-1), each.mean(-1)), strict=True))  # [N, C] each
        for each, draws in zip(networks, drawn, strict=True)
    )
    return held_out, test


def run(seed: int, settings: Settings, rows: Rows) -> tuple[list[Record], Predictions, np.ndarray]:
    """A record for each row of the table; the test rows' probabilities, and their classes [N]."""
    held_out, test = predicted(seed, settings, rows)
    _, held_out_classes, classes = (
        rows.classes[row_ids].numpy() for row_ids in split(len(rows.classes), seed, settings)
    )
    temperatures = {}
    for name in PREDICTORS:
        scaling = TemperatureScaling().fit(held_out[name], held_out_classes)
        test[f"{name} + temperature"] = scaling.calibrated(test[name])
        temperatures[f"{name} + temperature"] = scaling.temperature
    records = [
        {
            "heuristic": name,
            "seed": seed,
            **scores(probs, classes, settings.bins),
            "temperature": temperatures.get(name, 1.0),
            "test_rows": len(classes),
        }
        for name, probs in test.items()
    ]
    return records, test, classes


def scores(probs: np.ndarray, classes: np.ndarray, bins: int) -> dict[str, float]:
    """Each score of probabilities [N, C]."""
    given = {"predictions": probs, "references": classes}
    return {
        "accuracy": float((probs.argmax(1) == classes).mean()),
        "nll": metrics.load("nll").compute(**given)["nll"],
        "ece": metrics.load("ece").compute(**given, n_bins=bins)["ece"],
        "brier_score": metrics.load("brier_score").compute(**given)["brier_score"],
    }


NAMES = (*PREDICTORS, *(f"{name} + temperature" for name in PREDICTORS))


def run_set(rows: Rows, settings: Settings, seeds: Iterable[int], folder: Path) -> list[Record]:
    """The records of a set; those that are there are not made again."""
    records = RunRecords(folder, {**asdict(settings), "data": rows.fingerprint})
    for seed in seeds:
        kept = folder / f"predictions-{seed}.npz"
        missing = [name for name in NAMES if not records.of(name, seed)]
        if kept.is_file() and not missing:
            continue
        made, probs, classes = run(seed, settings, rows)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(part, classes=classes, **probs)
        part.replace(kept)
        for record in made:
            if record["heuristic"] in missing:
                records.add(record)
        print(f"{folder.name:<6} seed {seed:2d}  accuracy {100 * made[0]['accuracy']:.2f} %", flush=True)
    return records.all(NAMES, seeds)


def by_seed(records: list[Record], name: str, score: str) -> np.ndarray:
    """A score times 100 for each seed of a row of the table, [seeds]."""
    return np.array([100 * record[score] for record in records if record["heuristic"] == name])


def report(of_set: dict[str, list[Record]], bins: int) -> str:
    """For each set two tables, and a line for each claim."""
    parts = [
        f"All numbers times 100: accuracy in percent, NLL in 1/100 nat, ECE in {bins} bins of equal width in percent "
        "points. Mean over seeds and 95 % t-interval."
    ]
    for title, records in of_set.items():
        seeds, rows = len(by_seed(records, NAMES[0], "ece")), records[0]["test_rows"]
        levels = [
            {"": name} | {told: interval(list(by_seed(records, name, score))) for score, told in SCORES.items()}
            for name in NAMES
        ]
        for row in levels:
            row["temperature"] = f"{by_seed(records, row[''], 'temperature').mean() / 100:.2f}"
        pairs = [(name, NAMES[0]) for name in NAMES[1:]] + [(f"{name} + temperature", name) for name in PREDICTORS[1:]]
        gaps = [
            {"difference": f"{one} - {other}"}
            | {told: interval(list(gap(records, one, other, score)), "+") for score, told in SCORES.items()}
            for one, other in pairs
        ]
        claims = [
            f"- {one} has a lower {SCORES[score]} than {other}: {verdict(gap(records, one, other, score))}"
            for one, other, score in CLAIMS
        ]
        told = f"### {title}: {seeds} seeds, {rows} test rows"
        parts += [told, markdown(levels), markdown(gaps), "\n".join(claims)]
    return "\n\n".join(parts)


def gap(records: list[Record], one: str, other: str, score: str) -> np.ndarray:
    """Differences of a score times 100, paired by seed, [seeds]."""
    return by_seed(records, one, score) - by_seed(records, other, score)


def verdict(gaps: np.ndarray) -> str:
    """Whether the 95 % t-interval of differences excludes 0, and on which side."""
    if len(gaps) < 2:
        return "one seed does not tell."
    half = student_t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    told = f"{gaps.mean():+.2f}, interval {gaps.mean() - half:+.2f} to {gaps.mean() + half:+.2f}"
    if gaps.mean() + half < 0:
        return f"yes ({told}, excludes 0)."
    return f"no, higher ({told}, excludes 0)." if gaps.mean() - half > 0 else f"not told apart ({told}, includes 0)."


def picture(folders: dict[str, Path], seeds: list[int], bins: int, path: Path) -> None:
    """Reliability diagrams of all seeds' rows pooled: for each set a line of predictors, and one + temperature."""
    lines = []
    for title, folder in folders.items():
        pools = [dict(np.load(folder / f"predictions-{seed}.npz")) for seed in seeds]
        classes = np.concatenate([pool["classes"] for pool in pools])
        with tempfile.TemporaryDirectory() as aside:
            tiles = []
            for name in NAMES:
                probs = np.concatenate([pool[name] for pool in pools])
                drawn = reliability_diagram(probs, classes, Path(aside, "tile.png"), bins, f"{title}: {name}")
                tiles.append(image.imread(drawn)[::2, ::2])
        half = len(PREDICTORS)
        lines += [np.concatenate(tiles[:half], 1), np.concatenate(tiles[half:], 1)]
    image.imsave(path, np.ascontiguousarray(np.concatenate(lines)))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bbc-news", help="Of texts: bbc-news, a folder, or a data set on the hub.")
    parser.add_argument("--sets", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="By default both.")
    parser.add_argument("--seeds", nargs="+", type=int, help="By default 0 to 19.")
    parser.add_argument("--features_dir", type=Path, default=Path("outputs/text_features"), help="Keeps features.")
    parser.add_argument("--output_dir", type=Path, help="By default outputs/deep_ensemble.")
    parser.add_argument("--quick", action="store_true", help="Two seeds, few rows and epochs: does it run?")
    args = parser.parse_args(argv)
    args.sets = list(dict.fromkeys(args.sets))
    args.seeds = sorted(set(args.seeds or range(2 if args.quick else 20)))
    if args.seeds[0] < 0:
        parser.error(f"--seeds needs numbers from 0, got {args.seeds[0]}")
    args.output_dir = args.output_dir or Path("outputs/deep_ensemble" + "_quick" * args.quick)
    return args


def check(title: str, rows: Rows, settings: Settings) -> None:
    """Refuse sets that leave nothing to test on.

    Raises:
        SystemExit: There are not as many test rows as rows to train on, or only one class.
    """
    needed = 2 * settings.train_rows + settings.held_out_rows
    if len(rows.classes) < needed or rows.number_of_classes < 2:
        raise SystemExit(
            f"{title} needs {needed} rows of two classes or more ({settings.train_rows} to train on, "
            f"{settings.held_out_rows} held out, {settings.train_rows} to test on), got {len(rows.classes)} of "
            f"{rows.number_of_classes}."
        )


def main(argv: list[str] | None = None) -> dict[str, list[Record]]:
    """Run what is not there yet, then print and write what came out; returns the records of each set."""
    args = parsed(argv)
    sources: dict[str, Callable[[], Rows]] = {
        "digits": digits,
        "text": lambda: texts(args.data, args.features_dir, 100 if args.quick else None),
    }
    titles = {"digits": "digits", "text": f"text ({Path(args.data).name})"}
    came_out, folders = {}, {}
    threads = torch.get_num_threads()
    for name in args.sets:
        settings, rows = SETTINGS[name], sources[name]()
        settings = quick(settings) if args.quick else settings
        check(titles[name], rows, settings)
        folders[titles[name]] = args.output_dir / name
        torch.set_num_threads(1)  # the network is tiny: threads would wait for one another
        try:
            came_out[titles[name]] = run_set(rows, settings, args.seeds, args.output_dir / name)
        finally:
            torch.set_num_threads(threads)
    text = report(came_out, settings.bins)
    (args.output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
    picture(folders, args.seeds, settings.bins, args.output_dir / "reliability.png")
    print(f"{text}\n\nWritten to {args.output_dir}: table.md, reliability.png, records and predictions by set")
    return came_out


if __name__ == "__main__":
    main()
