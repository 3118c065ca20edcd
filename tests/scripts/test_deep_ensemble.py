import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pytest
import torch
from scipy import stats

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("deep_ensemble")


def shown(script: ModuleType, *arguments: str) -> tuple[dict[str, list[dict]], str]:
    """Records of each set and screen of a quick run."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(["--quick", *arguments])
    return records, screen.getvalue()


@pytest.fixture(scope="module")
def quick(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    """Records, folder and screen of a quick run on digits."""
    out = tmp_path_factory.mktemp("quick")
    records, screen = shown(script, "--sets", "digits", "--output_dir", str(out))
    return records["digits"], out, screen


def scored(quick: tuple[list[dict], Path, str], name: str, score: str) -> list[float]:
    return [record[score] for record in quick[0] if record["heuristic"] == name]


# A run


def test_table_has_every_predictor(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Each seed has a record for each row of the table, with scores of all rows that are left to test on."""
    assert [(r["heuristic"], r["seed"]) for r in quick[0]] == [(name, seed) for name in script.NAMES for seed in (0, 1)]
    assert {r["test_rows"] for r in quick[0]} == {1797 - 60 - 60}
    assert all(0.3 < r["accuracy"] < 1 and r["nll"] > 0 and 0 < r["ece"] < 1 for r in quick[0])


def test_temperatures_keep_accuracy(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """A temperature changes the NLL and not the accuracy; without one it is 1."""
    for name in script.PREDICTORS:
        assert scored(quick, name, "temperature") == [1, 1]
        scaled = f"{name} + temperature"
        assert scored(quick, name, "accuracy") == scored(quick, scaled, "accuracy")
        assert scored(quick, name, "nll") != scored(quick, scaled, "nll")


def test_mean_over_members_is_better_than_their_mean(script: ModuleType) -> None:
    """The NLL of the mean prediction is at most the mean NLL of the members, whose first is the one network."""
    settings, rows = replace(script.SETTINGS["digits"], members=3, epochs=4, draws=3), script.digits()
    _, test = script.predicted(0, settings, rows)
    alone = []
    _, _, tested_on = script.split(len(rows.classes), 0, settings)
    for member in range(3):
        torch.manual_seed(member)
        model = script.network(64, 10, settings)
        wrapper = script.ModelWrapper(model, torch.nn.CrossEntropyLoss())
        torch.manual_seed(member)
        wrapper.reset_all()
        optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
        trained_on = rows.of(script.split(len(rows.classes), 0, settings)[0])
        wrapper.train_on_dataset(trained_on, optimizer, settings.batch_size, settings.epochs, workers=0)
        with torch.no_grad():
            alone.append(model.eval()(rows.inputs[tested_on]).softmax(1).numpy())
    assert np.allclose(test["one network"], alone[0], atol=1e-5)
    assert np.allclose(test["ensemble"], np.mean(alone, 0), atol=1e-5)
    classes = rows.classes[tested_on].numpy()
    nll = [script.scores(probs, classes, 15)["nll"] for probs in (*alone, test["ensemble"])]
    assert nll[-1] < np.mean(nll[:-1])
    assert not np.allclose(test["MC dropout"], test["one network"], atol=1e-3)


def test_stopped_run_ends_like_another(
    script: ModuleType, quick: tuple[list[dict], Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run that was killed within a line, and before others, ends with the records of one that was not."""
    kept = tmp_path / "digits"
    kept.mkdir()
    for path in (quick[1] / "digits").iterdir():
        (kept / path.name).write_bytes(path.read_bytes())
    (kept / "ensemble + temperature-1.jsonl").unlink()
    line = (kept / "ensemble-1.jsonl").read_bytes()
    (kept / "ensemble-1.jsonl").write_bytes(line[:30])
    settings = script.quick(script.SETTINGS["digits"])
    assert script.run_set(script.digits(), settings, [0, 1], kept) == quick[0]
    assert (kept / "ensemble-1.jsonl").read_bytes() == line
    screen = capsys.readouterr().out
    assert "seed  1" in screen and "seed  0" not in screen


def test_finished_runs_are_kept(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Started again, a finished run trains nothing; table and picture are written again."""
    for name in ("table.md", "reliability.png"):
        (quick[1] / name).unlink()
    records, screen = shown(script, "--sets", "digits", "--output_dir", str(quick[1]))
    assert records["digits"] == quick[0] and "seed  " not in screen
    assert (quick[1] / "table.md").read_text() in screen
    assert (quick[1] / "reliability.png").stat().st_size > 20_000


def test_predictions_have_the_scores(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """The predictions that are kept have the scores of the records."""
    with np.load(quick[1] / "digits" / "predictions-1.npz") as kept:
        for name in script.NAMES:
            told = script.scores(kept[name], kept["classes"], 15)
            (record,) = (r for r in quick[0] if r["heuristic"] == name and r["seed"] == 1)
            assert told == {score: record[score] for score in told}


# The two sets


def test_split_has_each_row_once(script: ModuleType) -> None:
    """Rows to train on, held out and to test on are all rows, none twice, and others for another seed."""
    settings = script.SETTINGS["digits"]
    parts = script.split(1797, 0, settings)
    assert [len(part) for part in parts[:2]] == [settings.train_rows, settings.held_out_rows]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    assert set(parts[0]) != set(script.split(1797, 1, settings)[0])


def test_texts_of_a_folder(script: ModuleType, tmp_path: Path) -> None:
    """Texts in a folder's files are trained on and told apart; other settings of another text set are refused."""
    words = {0: "rain snow wind storm", 1: "goal match team player"}
    for split, number in (("train", 90), ("test", 30)):
        rows = [{"text": f"{words[i % 2]} {i}", "label": i % 2} for i in range(number)]
        (tmp_path / "weather").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "weather" / f"{split}.parquet")
    quick = ["--sets", "text", "--features_dir", str(tmp_path / "f"), "--output_dir", str(tmp_path), "--seeds", "3"]
    small = replace(script.SETTINGS["text"], train_rows=20, held_out_rows=40)
    rows = script.texts(str(tmp_path / "weather"), tmp_path / "f", None)
    assert rows.inputs.shape == (120, 384) and rows.number_of_classes == 2
    script.check("weather", rows, small)
    with pytest.raises(SystemExit, match="weather needs 80 rows of two classes or more"):
        script.check("weather", script.Rows(rows.inputs[:79], rows.classes[:79]), small)
    with pytest.raises(SystemExit, match="got 120 of 1"):
        script.check("weather", script.Rows(rows.inputs, torch.zeros(120).long()), small)
    with pytest.raises(SystemExit, match=r"text \(weather\) needs 180 rows"):
        shown(script, *quick, "--data", str(tmp_path / "weather"))


def test_other_settings_are_refused(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """A folder of quick runs takes no others."""
    with pytest.raises(SystemExit, match=r"other settings \(.*epochs.*\)"):
        script.main(["--sets", "digits", "--output_dir", str(quick[1])])
    assert json.loads((quick[1] / "digits" / "settings.json").read_text())["members"] == 5


@pytest.mark.parametrize("arguments", [["--sets", "images"], ["--seeds", "-1"], ["--seeds", "one"]])
def test_bad_arguments_are_refused(script: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    """An unknown set or a seed that is none ends the program with its name."""
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert arguments[0] in capsys.readouterr().err


# What is said


@pytest.mark.parametrize(
    ("shift", "told"), [(-2.0, "yes ("), (2.0, "no, higher ("), (0.1, "not told apart (")], ids=["lower", "higher", "0"]
)
def test_verdict_is_the_t_test(script: ModuleType, shift: float, told: str) -> None:
    """Below 0, above it, or not told apart: as the t-test at 5 % has it, with its interval."""
    gaps = np.random.default_rng(0).standard_normal(12) + shift
    test = stats.ttest_1samp(gaps, 0)
    low, high = test.confidence_interval(0.95)
    assert (test.pvalue < 0.05) == ("excludes 0" in script.verdict(gaps))
    assert script.verdict(gaps).startswith(told) and f"interval {low:+.2f} to {high:+.2f}" in script.verdict(gaps)


def test_one_seed_does_not_tell(script: ModuleType) -> None:
    """A single seed has no interval."""
    assert script.verdict(np.array([-3.0])) == "one seed does not tell."


def test_differences_are_paired(script: ModuleType) -> None:
    """Differences are taken seed by seed, times 100, and the claims stand below the tables."""
    levels = {"one network": [0.3, 0.5, 0.2], "ensemble": [0.2, 0.39, 0.11]}
    records = [
        {"heuristic": name, "seed": s, "test_rows": 9, "temperature": 1.0, **dict.fromkeys(script.SCORES, value)}
        for name in script.NAMES
        for s, value in enumerate(levels.get(name, [0.3, 0.4, 0.5]))
    ]
    assert script.gap(records, "ensemble", "one network", "nll") == pytest.approx([-10, -11, -9])
    text = script.report({"digits": records}, 15)
    assert "### digits: 3 seeds, 9 test rows" in text and "-10.00 ± 2.48" in text
    assert "- ensemble has a lower ECE than one network: yes (-10.00, interval -12.48 to -7.52, excludes 0)." in text
