import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy import stats

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("run_records")


def record(name: str, seed: int, labelled: int, accuracy: float) -> dict:
    return {"heuristic": name, "seed": seed, "labelled": labelled, "accuracy": accuracy, "images": labelled - seed}


CURVES = {
    ("bald", 0): [0.80, 0.90, 0.94],
    ("bald", 1): [0.70, 0.96, 0.94],
    ("bald", 2): [0.70, 0.90, 0.95],
    ("random", 0): [0.80, 0.81, 0.82],
    ("random", 1): [0.72, 0.73, 0.95],
    ("random", 2): [0.70, 0.80, 0.90],
}


@pytest.fixture
def records() -> list[dict]:
    return [
        record(name, seed, labelled, value)
        for (name, seed), values in CURVES.items()
        for labelled, value in zip((20, 30, 40), values, strict=True)
    ]


def test_records_come_back(script: ModuleType, records: list[dict], tmp_path: Path) -> None:
    """What was added is there for another process, by heuristic and seed, in the order asked for."""
    kept = script.RunRecords(tmp_path / "new", {"labels": 40})
    for one in records:
        kept.add(one)
    again = script.RunRecords(tmp_path / "new", {"labels": 40})
    assert again.of("bald", 1) == records[3:6] and again.of("bald", 3) == []
    assert again.all(["random", "bald"], [0, 2]) == records[9:12] + records[15:] + records[:3] + records[6:9]


def test_record_that_was_cut_off_is_taken_away(script: ModuleType, records: list[dict], tmp_path: Path) -> None:
    """After a kill at any byte of the last line, the run has its whole records, and the next one fits behind them."""
    kept = script.RunRecords(tmp_path, {})
    for one in records[:2]:
        kept.add(one)
    path = tmp_path / "bald-0.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (1, first // 2, first - 1, first + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        done = records[: int(cut > first)]
        assert kept.of("bald", 0) == done
        kept.add(records[len(done)])
        assert kept.of("bald", 0) == records[: len(done) + 1]


def test_other_settings_are_refused(script: ModuleType, tmp_path: Path) -> None:
    """A folder with runs of other settings is refused, with the names of those that differ, and stays."""
    script.RunRecords(tmp_path, {"labels": 40, "draws": 5, "steps": [1, 2]})
    with pytest.raises(SystemExit, match=r"other settings \(draws, more\)\. Choose another --output_dir"):
        script.RunRecords(tmp_path, {"labels": 40, "draws": 6, "steps": (1, 2), "more": 1})
    assert json.loads((tmp_path / "settings.json").read_text())["draws"] == 5


def test_table(script: ModuleType, records: list[dict]) -> None:
    """Mean over the curve, last accuracy, labels to the target by seed with their median, and images."""
    bald, random = script.table(records, 0.95, against=["random"])
    assert list(bald)[:6] == ["heuristic", "seeds", "mean over the curve", "last", "labels to 95 %", "images"]
    means = [100 * np.mean(CURVES["bald", seed]) for seed in range(3)]
    half = stats.sem(means) * stats.t.ppf(0.975, 2)
    assert list(bald.values())[:4] == ["bald", "3", f"{np.mean(means):.2f} ± {half:.2f}", "94.33"]
    assert bald["labels to 95 %"] == "40 (30, 40, never)" and bald["images"] == "39"
    assert random["labels to 95 %"] == "never (40, never, never)" and random["minus random"] == ""


def test_gaps_are_paired_by_seed(script: ModuleType, records: list[dict]) -> None:
    """A gap is between the means over the curve of the seeds that both have, with its t-interval."""
    (bald, *_) = script.table(records[:15], 0.95, against=["random", "margin"])  # random's seed 2 is not there
    gaps = [100 * (np.mean(CURVES["bald", seed]) - np.mean(CURVES["random", seed])) for seed in (0, 1)]
    half = stats.sem(gaps) * stats.t.ppf(0.975, 1)
    assert bald["minus random"] == f"{np.mean(gaps):+.2f} ± {half:.2f}" and "minus margin" not in bald


def test_one_seed_has_no_interval(script: ModuleType, records: list[dict]) -> None:
    """Of a single run nothing is told of its spread."""
    (bald,) = script.table(records[:3], 0.95, against=())
    assert bald["mean over the curve"] == "88.00"


def test_table_and_picture_are_written(script: ModuleType, records: list[dict], tmp_path: Path) -> None:
    """The table that is returned is in table.md, and the picture shows something."""
    text = script.written(records, tmp_path, "A title", 0.95, against=["bald"])
    assert (tmp_path / "table.md").read_text() == text + "\n" and len(text.splitlines()) == 4
    assert len({len(line) for line in text.splitlines()}) == 1
    pixels = matplotlib.image.imread(tmp_path / "learning_curve.png")
    assert pixels.shape[0] > 200 and pixels.std() > 0.01


def test_accuracy_over_batches(script: ModuleType) -> None:
    """Accuracy is the share of all rows, whatever their batches."""
    outputs = torch.eye(3)[[0, 1, 2, 2, 1]]
    target = torch.tensor([0, 1, 1, 2, 0])
    metric = script.Accuracy()
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(outputs[part], target[part])
    assert metric.compute() == 0.6
