"""The semi-supervised experiment: it runs, goes on, and unlabelled rows help."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("ssl_pimodel")


def test_the_quick_run_writes_a_table_and_is_not_repeated(script: ModuleType, tmp_path: Path) -> None:
    """A quick run has a record for each method and seed; a second one finds them all, also after a cut-off line."""
    arguments = ["--quick", "--output_dir", str(tmp_path), "--labels", "20", "40"]
    records = script.main(arguments)
    assert len(records) == 2 * 2 * 5
    assert (tmp_path / "learning_curve.png").stat().st_size > 0
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("\n| 40 |") == 5
    path = tmp_path / "records.jsonl"
    written = path.read_text(encoding="utf-8")
    assert script.main(arguments) == records
    assert path.read_text(encoding="utf-8") == written
    path.write_text(written[:-30], encoding="utf-8")
    assert script.main(arguments) == records


def test_methods_share_rows(script: ModuleType) -> None:
    """Labelled, unlabelled and test rows part the digits, four labels of each class, no label on unlabelled rows."""
    labelled, unlabelled, test = script.digits(0, 40, script.Settings())
    assert [len(part) for part in (labelled, unlabelled, test)] == [40, 1398, 359]
    assert sorted(int(row["labels"]) for row in labelled) == sorted(4 * list(range(10)))
    assert all(list(row) == ["pixels"] for row in unlabelled)
    again = script.digits(0, 40, script.Settings())[0]
    assert all(one["pixels"].equal(two["pixels"]) for one, two in zip(labelled, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pi_model", "mean_teacher", "pseudo_labels"])
def test_unlabelled_rows_help(script: ModuleType, tmp_path: Path, method: str) -> None:
    """With 40 labels, the mean accuracy over three seeds is above that of supervised training."""
    settings = replace(script.Settings(), steps=400)
    accuracies = {
        name: fmean(script.run(name, seed, 40, settings, tmp_path)[0]["accuracy"] for seed in (200, 201, 202))
        for name in ("supervised", method)
    }
    assert accuracies[method] > accuracies["supervised"] + 0.005


def test_bad_numbers_of_labels_are_refused(script: ModuleType, tmp_path: Path, capsys) -> None:
    """Labels are as many of each class."""
    with pytest.raises(SystemExit):
        script.main(["--labels", "45", "--output_dir", str(tmp_path)])
    assert "multiples of 10" in capsys.readouterr().err
