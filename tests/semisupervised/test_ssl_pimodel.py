"""The semi-supervised experiment: it runs, goes on, and unlabelled rows help."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

EXPERIMENTS = Path(__file__).parents[2] / "scripts" / "experiments"
METHODS = ["supervised", "pi_model", "mean_teacher", "mean_teacher, the teacher", "pseudo_labels"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("ssl_pimodel")


def test_a_run_that_goes_on_ends_as_if_it_never_stopped(script: ModuleType, tmp_path: Path) -> None:
    """A quick run has each method and seed; one killed within a line ends with the same, finished runs being kept."""
    arguments = ["--quick", "--loop", "modelwrapper", "--output_dir", str(tmp_path)]
    records = script.main(arguments)
    assert [(r["heuristic"], r["seed"]) for r in records] == [(name, seed) for name in METHODS for seed in (0, 1)]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == METHODS
    kept = tmp_path / "pi_model-0.jsonl"
    kept.write_text(json.dumps({**records[2], "mark": 1}) + "\n", encoding="utf-8")
    cut = tmp_path / "mean_teacher-1.jsonl"
    cut.write_bytes(cut.read_bytes()[:-30])
    again = script.main(arguments)
    assert again[2].pop("mark") == 1
    assert again == records
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000


def test_both_loops_are_one_training(script: ModuleType, tmp_path: Path) -> None:
    """Without noise Trainer's training and ModelWrapper's end with the same model, unlabelled rows included."""
    data, accuracies = script.loaded("digits", tmp_path), []
    settings = replace(script.Settings(), steps=40, ramp_up_steps=10, input_noise=0.0, dropout=0.0)
    for loop in script.LOOPS:
        accuracies.append(script.run("pseudo_labels", 0, 40, settings, data, loop, tmp_path)["accuracy"])
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.003) and accuracies[0] > 0.7  # one of 359 rows


def test_several_numbers_of_labels_make_a_curve(script: ModuleType, tmp_path: Path) -> None:
    """With two numbers of labels there is a picture, and gains are paired by seed and number of labels."""
    arguments = ["--quick", "--loop", "modelwrapper", "--labels", "20", "40", "--methods", "supervised"]
    arguments += ["--output_dir", str(tmp_path)]
    records = script.main(arguments)
    assert [r["labelled"] for r in records] == [20, 20, 40, 40]
    assert (tmp_path / "learning_curve.png").stat().st_size > 5_000
    others = [{**r, "heuristic": "other", "accuracy": r["accuracy"] + 0.01 * (1 + r["seed"])} for r in records]
    assert script.table(records + others).count("+1.50 ± 6.35") == 2


def test_methods_share_rows(script: ModuleType) -> None:
    """Labelled, unlabelled and test rows part the digits, four labels of each class, no label on unlabelled rows."""
    data = script.loaded("digits", Path("nowhere"))
    rows = script.split(data, 0, 40, script.Settings())
    assert [len(part) for part in rows] == [40, 1398, 359]
    assert sorted(int(row["labels"]) for row in rows.labelled) == sorted(4 * list(range(10)))
    assert all(list(row) == ["inputs"] for row in rows.unlabelled)
    again = script.split(data, 0, 40, script.Settings()).labelled
    assert all(one["inputs"].equal(two["inputs"]) for one, two in zip(rows.labelled, again, strict=True))


def test_texts_keep_their_test_rows(script: ModuleType, tmp_path: Path) -> None:
    """Of texts the test rows are those of the data, whatever the seed, and the others are labelled or unlabelled."""
    names = ["sport", "money"]
    for part, number in (("train", 12), ("test", 6)):
        rows = {"text": [f"{names[i % 2]} news, number {i}" for i in range(number)], "label": [0, 1] * (number // 2)}
        file = tmp_path / f"{part}.parquet"
        Dataset.from_dict(rows).cast_column("label", ClassLabel(names=names)).to_parquet(str(file))
    data = script.loaded(str(tmp_path), tmp_path / "features")
    for seed in (0, 1):
        rows = script.split(data, seed, 4, script.TEXTS)
        assert [len(part) for part in rows] == [4, 8, 6]
        assert torch.stack([row["inputs"] for row in rows.test]).equal(data.inputs[12:])
    settings = replace(script.TEXTS, steps=10)
    record = script.run("pseudo_labels", 0, 4, settings, data, "modelwrapper", tmp_path)
    assert record["accuracy"] >= 0.5
    with pytest.raises(SystemExit, match="multiples of 2, as many of each class, up to 10"):
        script.check(data, [12])


def test_other_data_are_refused(script: ModuleType, tmp_path: Path) -> None:
    """Runs are not gone on with on other data, by another loop, nor with other settings."""
    arguments = ["--output_dir", str(tmp_path), "--methods", "supervised", "--seeds", "0"]
    script.main(["--quick", *arguments])  # by Trainer
    with pytest.raises(SystemExit, match=r"other settings \(loop\)"):
        script.main(["--quick", "--loop", "modelwrapper", *arguments])
    with pytest.raises(SystemExit, match=r"other settings \(ramp_up_steps, steps\)"):
        script.main(arguments)
    digits = script.loaded("digits", tmp_path)
    assert digits.fingerprint != digits._replace(classes=np.roll(digits.classes, 1)).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trainer", "modelwrapper"])
@pytest.mark.parametrize("method", ["pi_model", "mean_teacher", "pseudo_labels"])
def test_unlabelled_rows_help(script: ModuleType, tmp_path: Path, method: str, loop: str) -> None:
    """With 40 labels, the mean accuracy over three seeds is above that of supervised training."""
    settings, data = replace(script.Settings(), steps=400), script.loaded("digits", tmp_path)
    accuracies = {
        name: fmean(script.run(name, seed, 40, settings, data, loop, tmp_path)["accuracy"] for seed in (200, 201, 202))
        for name in ("supervised", method)
    }
    assert accuracies[method] > accuracies["supervised"]


def test_bad_numbers_of_labels_are_refused(script: ModuleType, tmp_path: Path) -> None:
    """Labels are as many of each class."""
    with pytest.raises(SystemExit, match="multiples of 10, as many of each class"):
        script.main(["--labels", "45", "--output_dir", str(tmp_path)])
