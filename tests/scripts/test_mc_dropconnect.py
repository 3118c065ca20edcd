import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("mc_dropconnect")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image files of ten classes, each a bright row of its own in noise: 200 to train on and 50 to test on."""
    root = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for i in range(250):
        pixels = rng.integers(0, 100, (14, 14), dtype=np.uint8)
        pixels[i % 10 + 2] = 255
        path = root / ("test" if i < 50 else "train") / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def data(script: ModuleType, folder: Path) -> object:
    return script.images(str(folder), 14, "L")


def shown(script: ModuleType, folder: Path, *arguments: str) -> tuple[list[dict], str]:
    """Records and screen of a quick run."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(
            ["--quick", "--runs", "dropout random", "dropconnect bald", "--data", str(folder), *arguments]
        )
    return records, screen.getvalue()


@pytest.fixture(scope="module")
def quick(script: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    out = tmp_path_factory.mktemp("quick")
    records, screen = shown(script, folder, "--output_dir", str(out))
    return records, out, screen


def untimed(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def small(script: ModuleType, **settings: object) -> object:
    return replace(script.Settings(hidden=16, labels=30, pool_sample=40, draws=3, steps=10), **settings)


# A run


def test_each_step_labels_new_rows(quick: tuple[list[dict], Path, str]) -> None:
    """Each step labels 10 rows more, none twice, and table and picture are written."""
    records, out, screen = quick
    for name in ("dropout random", "dropconnect bald"):
        own = [r for r in records if r["heuristic"] == name]
        assert [r["labelled"] for r in own] == [20, 30, 40]
        assert len({row for r in own for row in r["queried"]}) == 20
    assert (out / "table.md").read_text() in screen and (out / "learning_curve.png").stat().st_size > 5_000


def test_stopped_run_ends_like_another(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """A run that was killed within its second line goes on, and its records are those of one that was not."""
    for path in quick[1].glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first, second, _ = (tmp_path / "dropconnect bald-2.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "dropconnect bald-2.jsonl").write_bytes(first + second[:30])
    records, _ = shown(script, folder, "--output_dir", str(tmp_path))
    assert untimed(records) == untimed(quick[0])
    assert records[3] == json.loads(first)  # its time, too: it was not run again


def test_every_run_chooses(script: ModuleType, data: object) -> None:
    """Each of the six runs labels ten different rows of the pool and measures twice."""
    assert len(script.RUNS) == 6
    for name in script.RUNS:
        first, second = script.run(name, 0, small(script), data)
        assert len(set(first["queried"])) == 10 and not second["queried"]
        assert not set(first["queried"]) & set(script.first_labels(data.train_classes, 20, 0))


def test_both_posteriors_learn(script: ModuleType, data: object) -> None:
    """From 20 labels each network tells most classes apart."""
    for posterior in script.POSTERIORS:
        record = next(script.run(f"{posterior} random", 0, small(script, hidden=64, steps=60, draws=8), data))
        assert record["accuracy"] > 0.7


def test_runs_of_a_seed_are_paired(script: ModuleType, data: object) -> None:
    """On a seed both networks begin with the same weights, and both see the same random labels; on another, others."""
    settings = small(script)
    networks = []
    for seed, posterior in ((0, "dropout"), (0, "dropconnect"), (1, "dropconnect")):
        torch.manual_seed(seed)
        networks.append(script.POSTERIORS[posterior](10, settings, seed)[0].state_dict())
    one, same, other = networks
    assert list(one) == list(same) and all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["1.weight"], other["1.weight"])
    queried = [next(script.run(f"{p} random", s, settings, data))["queried"] for p, s in (("dropout", 0),) * 2]
    queried += [next(script.run("dropconnect random", s, settings, data))["queried"] for s in (0, 1)]
    assert queried[0] == queried[1] == queried[2] != queried[3]


# What is dropped


def test_weights_are_dropped_in_training_only(script: ModuleType) -> None:
    """In training a share of the weights is dropped and the others scaled, so that the mean stays; else none is."""
    torch.manual_seed(0)
    layer = script.DroppedLinear(200, 100, 0.3)
    ones = torch.eye(200)
    seen = (layer(ones) - layer.bias).T  # [100, 200], the weights that the layer used
    dropped = seen.abs() < 1e-7
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.allclose(seen[~dropped], layer.weight[~dropped] / 0.7, atol=1e-6)
    layer.eval()
    assert torch.equal(layer(ones), torch.nn.functional.linear(ones, layer.weight, layer.bias))


def test_draws_drop_weights_or_units(script: ModuleType) -> None:
    """A draw drops the share of the settings: of every layer's weights by MC DropConnect, of units by MC dropout."""
    settings = small(script, hidden=400, dropout=0.2, weight_dropout=0.7)
    inputs = torch.ones(1, 1, 14, 14)
    for name, share in (("dropout", 0.2), ("dropconnect", 0.0)):
        model, posterior = script.POSTERIORS[name](10, settings, 0)
        units = []
        model[3].register_forward_hook(lambda _, before, after, units=units: units.append((before[0], after)))
        model.eval()
        with torch.no_grad(), posterior.draw(model, 0):
            model(inputs)
        before, after = units[0]
        assert float((after[before > 0] == 0).float().mean()) == pytest.approx(share, abs=0.08)
    assert posterior.weight_dropout == 0.7 and len(posterior.chosen(model)) == 3


def test_draws_are_networks_of_their_own(script: ModuleType) -> None:
    """Two draws of either posterior differ, and a draw is the same again."""
    for make in script.POSTERIORS.values():
        torch.manual_seed(0)
        model, posterior = make(10, small(script), 0)
        model.eval()
        outputs = []
        for t in (0, 1, 0):
            with torch.no_grad(), posterior.draw(model, t):
                outputs.append(model(torch.ones(2, 1, 14, 14)))
        assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


# What came out


def test_likelihood_is_the_mean_over_the_curve(script: ModuleType) -> None:
    """Losses are averaged over each seed's curve, of runs with labels at random only."""
    records = [
        {"heuristic": f"{posterior} {name}", "seed": seed, "loss": loss}
        for posterior, name, seed, loss in [
            *(("dropout", "random", 0, 1.0), ("dropout", "random", 0, 2.0), ("dropout", "random", 1, 2.5)),
            *(("dropout", "bald", 0, 9.0), ("dropconnect", "bald", 0, 9.0)),
        ]
    ]
    assert script.likelihoods(records).startswith("dropout, random: negative log-likelihood over the curve 2.00 ± ")
    assert "dropconnect" not in script.likelihoods(records)


def test_settings_are_the_issues(script: ModuleType) -> None:
    """20 first labels, 10 a step up to 150, and 20 draws."""
    settings = script.Settings()
    assert settings.sizes == list(range(20, 151, 10)) and settings.draws == 20


# Bad input


def test_unknown_run_is_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is not in the list ends with code 2."""
    with pytest.raises(SystemExit) as caught:
        script.main(["--runs", "bald"])
    assert caught.value.code == 2 and "invalid choice: 'bald'" in capsys.readouterr().err


def test_too_few_images_are_refused(script: ModuleType, tmp_path: Path) -> None:
    """More labels than images are refused before anything is run."""
    for split in ("train", "test"):
        for i in range(20):
            path = tmp_path / split / str(i % 10) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (14, 14), i).save(path)
    with pytest.raises(SystemExit, match="the data have 10 classes, 20 images, of one class 2"):
        script.main(["--data", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused(script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str]) -> None:
    """Quick runs are not gone on with as runs in full."""
    with pytest.raises(SystemExit, match=r"other settings \(draws, hidden, labels, pool_sample, steps\)"):
        script.main(["--data", str(folder), "--output_dir", str(quick[1])])
