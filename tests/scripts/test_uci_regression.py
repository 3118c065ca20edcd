"""`scripts/experiments/uci_regression.py`: what is written, going on, networks side by side against single ones."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.utils.data import TensorDataset

from baal_hf import MCDropout, ModelWrapper

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; what is beside it can be imported meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("uci_regression")


def shown(script: ModuleType, *arguments: str) -> tuple[list[dict], str]:
    """Records and screen of a quick run."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(["--quick", *arguments])
    return records, screen.getvalue()


@pytest.fixture(scope="module")
def quick(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    """Records, folder and screen of a quick run."""
    out = tmp_path_factory.mktemp("quick")
    records, screen = shown(script, "--epochs", "10", "--output_dir", str(out))
    return records, out, screen


def written(folder: Path, labels: np.ndarray, splits: dict[str, list[list[int]]]) -> None:
    """A data set of rows whose feature is the row number, in files as the UCI ones, rows out of order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("test", range(len(labels) // 3)), ("train", range(len(labels) - 1, len(labels) // 3 - 1, -1))):
        columns = {"features": [[float(i), 1.0] for i in rows], "label": labels[list(rows)], "row": list(rows)}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    (folder / "splits.json").write_text(json.dumps(splits))


def two_splits(rows: int) -> dict[str, list[list[int]]]:
    orders = [np.random.default_rng(i).permutation(rows).tolist() for i in range(2)]
    return {"train": [order[5:] for order in orders], "test": [order[:5] for order in orders]}


def untimed(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in r.items() if not name.startswith("seconds")} for r in records]


def several(script: ModuleType, rates: list[float], penalties: list[float] | None = None) -> object:
    """Networks of 4 features and 7 hidden units, the same each time."""
    rng = np.random.Generator(np.random.SFC64(3))
    settings = script.Settings(hidden=7)
    return script.Networks(4, np.array(rates), np.array(penalties or [0.0] * len(rates)), settings, rng)


def rows_of(networks: int, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(networks, rows, 4, generator=rng), torch.randn(networks, rows, 1, generator=rng)


# A run


def test_each_split_has_a_record(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Each split has a record with error, log-likelihood and the best pair of the grid, and the table is printed."""
    records, out, screen = quick
    grid = [(p, tau) for p in script.Settings().rates for tau in script.DIABETES.precisions]
    assert [record["seed"] for record in records] == [0, 1, 2, 3]
    for record in records:
        assert 40 < record["rmse"] < 90 and -7 < record["log_likelihood"] < -5
        assert (record["rate"], record["precision"]) == grid[int(np.argmax(record["validation_log_likelihoods"]))]
    assert (out / "table.md").read_text() in screen and (out / "log_likelihood.png").stat().st_size > 5_000


def test_stopped_run_ends_like_another(script: ModuleType, quick: tuple[list[dict], Path, str], tmp_path: Path) -> None:
    """A run that was killed within a group of splits goes on, and its records are those of one that was not."""
    for path in quick[1].glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "diabetes-3.jsonl").write_bytes((tmp_path / "diabetes-3.jsonl").read_bytes()[:30])
    records, screen = shown(script, "--epochs", "10", "--output_dir", str(tmp_path))
    assert untimed(records) == untimed(quick[0])
    assert records[:3] == quick[0][:3]  # their times, too: they were not written again
    assert "split  0" not in screen and "split  3" in screen


def test_finished_runs_are_kept(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Started again, a finished run trains nothing."""
    records, screen = shown(script, "--epochs", "10", "--output_dir", str(quick[1]))
    assert records == quick[0] and "split" not in screen.partition("|")[0]


def test_other_settings_are_refused(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Runs are not gone on with under other settings."""
    with pytest.raises(SystemExit, match=r"other settings \(epochs, seed\)"):
        shown(script, "--epochs", "11", "--seed", "1", "--output_dir", str(quick[1]))


def test_files_of_a_folder(script: ModuleType, tmp_path: Path) -> None:
    """Data of a folder are run and compared with what was published, and are not mixed with others of that name."""
    labels = np.random.default_rng(0).normal(size=40)
    written(tmp_path / "uci_yacht", labels, two_splits(40))
    arguments = ["--data", str(tmp_path), "--datasets", "yacht", "--splits", "2", "--epochs", "2"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    records, screen = shown(script, *arguments)
    mean = np.mean([record["log_likelihood"] for record in records])
    assert f"-1.250 ± 0.015 |     {mean + 1.25:+.3f} |" in screen
    written(tmp_path / "uci_yacht", labels + 1, two_splits(40))
    with pytest.raises(SystemExit, match="other data that are named yacht"):
        shown(script, *arguments)


# Rows


def test_rows_are_found_by_number(script: ModuleType, tmp_path: Path) -> None:
    """Splits name rows by the number that the files give, in whatever order and file rows are."""
    labels = np.arange(40) / 7
    written(tmp_path / "uci_energy", labels, two_splits(40))
    (data,) = script.uci(tmp_path, ["energy"])
    assert data.features[:, 0].tolist() == list(range(40)) and np.allclose(data.labels, labels)
    assert data.train.tolist() == two_splits(40)["train"] and data.test.tolist() == two_splits(40)["test"]


def test_rows_are_normalised_by_those_trained_on(script: ModuleType) -> None:
    """Rows to train on have mean 0 and deviation 1 in each split; others follow them, and a constant column is 0."""
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.normal(5, 3, 30), np.full(30, 2.0)])
    split = np.stack([rng.permutation(30) for _ in range(2)])
    data = script.Regression("made", features, rng.normal(-4, 2, 30), split[:, :20], split[:, 20:])
    rows = script.Normalised(data, data.train, data.test)
    for values in (rows.inputs[..., 0], rows.targets[..., 0]):
        assert torch.allclose(values.mean(1), torch.zeros(2), atol=1e-6)
        assert torch.allclose(values.std(1, correction=0), torch.ones(2), atol=1e-6)
    assert not rows.inputs[..., 1].any() and not rows.other_inputs[..., 1].any()
    train = features[split[1, :20], 0]
    assert np.allclose(rows.other_inputs[1, :, 0], (features[split[1, 20:], 0] - train.mean()) / train.std(), atol=1e-6)


def test_diabetes_splits_are_disjoint(script: ModuleType) -> None:
    """Each split has each patient once, to train or to test on, and splits differ."""
    data = script.diabetes(3)
    for rows in np.concatenate([data.train, data.test], axis=1):
        assert np.array_equal(np.sort(rows), np.arange(442))
    assert not np.array_equal(data.test[0], data.test[1])


# Networks side by side


def test_gradients_are_autograds(script: ModuleType) -> None:
    """A step has the gradients that autograd finds for the loss of the docstring, under the same masks."""
    rates, penalties = [0.1, 0.5, 0.3], [0.1, 0.02, 0.0]
    inputs, targets = rows_of(3, 33)
    networks, twin = several(script, rates, penalties), several(script, rates, penalties)
    weights = [p.clone().requires_grad_() for p in networks.weights]
    biases = [p.clone().requires_grad_() for p in networks.biases]
    kept = [twin._kept(torch.empty(3, 33, size)) / twin.keep for size in (4, 7)]
    hidden = torch.relu((inputs * kept[0]) @ weights[0] + biases[0]) * kept[1]
    errors = ((hidden @ weights[1] + biases[1] - targets) ** 2).mean((1, 2))
    squares = sum((w**2).sum((1, 2)) for w in weights)
    (errors + torch.tensor(penalties) * squares).sum().backward()
    networks.step(inputs, targets)
    for mine, its in zip([*networks.weights, *networks.biases], [*weights, *biases], strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-5, atol=1e-6)


def test_networks_do_not_influence_one_another(script: ModuleType) -> None:
    """What one network is trained on changes nothing in the others."""
    results = []
    for seed in (0, 1):
        networks = several(script, [0.1, 0.2])
        inputs, targets = rows_of(2, 16)
        inputs[1], targets[1] = rows_of(1, 16, seed + 5)
        for _ in range(5):
            networks.step(inputs, targets)
        results.append(networks.weights[0].clone())
    assert torch.equal(results[0][0], results[1][0]) and not torch.equal(results[0][1], results[1][1])


def test_units_are_dropped_at_their_rates(script: ModuleType) -> None:
    """Each network drops units at its own rate, independently between rows and units."""
    kept = several(script, [0.005, 0.1, 0.5])._kept(torch.empty(3, 400, 500)).double()
    assert torch.allclose(1 - kept.mean((1, 2)), torch.tensor([0.005, 0.1, 0.5]).double(), atol=0.003)
    assert abs(float(torch.corrcoef(kept[2, :2])[0, 1])) < 0.15
    assert abs(float(torch.corrcoef(kept[2, :, :2].T)[0, 1])) < 0.15


def test_wrapper_draws_what_networks_do(script: ModuleType) -> None:
    """A network taken out has the same mean and spread under `ModelWrapper`'s draws as in the batch."""
    networks = several(script, [0.1, 0.4])
    inputs, targets = rows_of(2, 6)
    for _ in range(50):
        networks.step(inputs, targets)
    own = networks.draws(inputs, 1_000)  # [2, 6, T]
    for i in range(2):
        wrapper = ModelWrapper(networks.network(i), nn.MSELoss(), posterior=MCDropout(0))
        drawn = wrapper.predict_on_dataset(TensorDataset(inputs[i]), 6, 1_000, workers=0, verbose=False)[:, 0]
        assert np.allclose(drawn.mean(1), own[i].mean(1), atol=5 * float(own[i].std(1).max()) / 1_000**0.5 * 2**0.5)
        assert np.allclose(drawn.std(1), own[i].std(1), rtol=0.15)


def test_networks_learn(script: ModuleType) -> None:
    """Networks of two splits fit a straight line, and a strong penalty keeps them from it."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 1))
    split = np.stack([rng.permutation(60) for _ in range(2)])
    data = script.Regression("line", features, 3 * features[:, 0] + 10, split[:, :50], split[:, 50:])
    rows = script.Normalised(data, data.train, data.test)
    settings = replace(script.Settings(), epochs=200, batch_size=20, learning_rate=0.01)
    grid = np.array([[[0.005, 1.0], [0.005, 1e-8]]] * 2)  # a precision this low makes the penalty strong
    networks = script.trained(rows, grid, settings, np.random.Generator(np.random.SFC64(0)))
    assert networks.penalties.flatten().tolist() == pytest.approx([1e-4 * 0.995 / (2 * 50 * t) for t in (1, 1e-8)] * 2)
    draws = networks.draws(rows.other_inputs.repeat_interleave(2, 0), 100).mean(2).view(2, 2, 10)  # [S, G, R]
    errors = (draws.numpy() * rows.label_std[:, None] + rows.label_mean[:, None] - rows.other_labels[:, None]) ** 2
    assert (errors[:, 0].mean(1) < 0.1).all() and (errors[:, 1].mean(1) > 1).all()


# What is reported


def test_log_likelihood_is_the_mixtures(script: ModuleType) -> None:
    """The log-likelihood is that of a mixture of normal densities about the draws, a precision for each network."""
    rng = np.random.default_rng(0)
    labels, draws, precisions = rng.normal(size=(3, 5)), rng.normal(size=(3, 5, 40)), np.array([0.5, 2, 9])
    density = norm.pdf(labels[..., None], draws, precisions[:, None, None] ** -0.5).mean(-1)
    assert np.allclose(script.log_likelihood(labels, draws, precisions), np.log(density).mean(-1))
    alone = script.log_likelihood(labels[0], draws[0, :, :1], 4.0)
    assert alone == pytest.approx(norm.logpdf(labels[0], draws[0, :, 0], 0.5).mean())


def test_table_compares_in_published_errors(script: ModuleType) -> None:
    """Means have the standard error over splits, and differences are in published standard errors."""
    records = [
        {"heuristic": "energy", "seed": i, "rmse": rmse, "log_likelihood": value}
        for i, (rmse, value) in enumerate([(0.4, -1.2), (0.6, -1.26)])
    ]
    (row,) = script.table(records, script.UCI)
    assert row["RMSE"] == "0.50 ± 0.07" and row["log-likelihood"] == "-1.230 ± 0.021"
    assert row["difference"] == "-0.018" and row["in standard errors"] == "-3.60"


def test_settings_are_the_authors(script: ModuleType) -> None:
    """50 units, 4,000 epochs of batches of 128, 10,000 draws, 20 splits, four rates by three precisions."""
    settings = script.Settings()
    assert (settings.hidden, settings.epochs, settings.batch_size) == (50, 4_000, 128)
    assert (settings.draws, settings.splits, settings.rates) == (10_000, 20, (0.005, 0.01, 0.05, 0.1))
    assert all(len(known.precisions) == 3 for known in script.UCI.values())


# Bad input


def test_missing_files_are_named(script: ModuleType, tmp_path: Path) -> None:
    """Files that are missing are counted and the first ones named."""
    written(tmp_path / "uci_concrete", np.arange(12.0), two_splits(12))
    (tmp_path / "uci_concrete" / "splits.json").unlink()
    with pytest.raises(SystemExit, match=r"4 files are missing, .*uci_concrete/splits\.json, .*uci_yacht/train"):
        script.main(["--data", str(tmp_path), "--datasets", "concrete", "yacht"])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([[0, 1, 2], [3, 4]], [[3, 4, 5], [0, 1, 2, 5]], "as many rows"),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], [[4, 5], [3, 5]], "split 1 does not have each of the 6 rows once"),
        ([[0, 1, 2, 3]], [[4, 6]], "split 0 does not have each"),
    ],
)
def test_splits_that_do_not_fit(
    script: ModuleType, tmp_path: Path, train: list[list[int]], test: list[list[int]], message: str
) -> None:
    """Splits of several sizes, with a row twice, or with a row that is not there are refused."""
    written(tmp_path / "uci_yacht", np.arange(6.0), {"train": train, "test": test})
    with pytest.raises(SystemExit, match=message):
        script.uci(tmp_path, ["yacht"])


def test_more_splits_than_there_are(script: ModuleType, tmp_path: Path) -> None:
    """More splits than the files have are refused."""
    written(tmp_path / "uci_yacht", np.arange(12.0), two_splits(12))
    with pytest.raises(SystemExit, match="3 splits are asked for, and there are fewer: yacht 2"):
        script.main(["--data", str(tmp_path), "--datasets", "yacht", "--splits", "3", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "yacht"], "--datasets needs --data"),
        (["--data", ".", "--datasets", "boat"], "invalid choice: 'boat'"),
        (["--splits", "0"], "--splits needs a number from 1, got 0"),
        (["--epochs", "-1"], "--epochs needs a number from 1, got -1"),
    ],
)
def test_arguments_that_do_not_fit(
    script: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """A data set that is not known or has no folder, and no split or epoch at all, end with code 2."""
    with pytest.raises(SystemExit) as caught:
        script.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err
