"""The relabelling experiment: what it flips, what it counts, and what it writes."""

from __future__ import annotations

import csv
import importlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXPERIMENTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("relabelling_digits")


@pytest.fixture(scope="module")
def quick(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path]:
    """Rows and folder of a quick run."""
    folder = tmp_path_factory.mktemp("quick")
    return script.main(["--quick", "--output_dir", str(folder)]), folder


def test_scores_find_flipped_labels_and_entropy_does_not(quick: tuple[list[dict], Path]) -> None:
    """Scores that see the label find most flipped ones; Entropy and BALD do no better than chance, a fifth."""
    rows = quick[0]
    assert len(rows) == 2 * (9 + 11 + 2)
    for row in rows:
        low, high = (0.1, 0.35) if row["kind"] == "blind" else (0.5, 1)
        assert low < row["precision"] < high, row


def test_equal_formulas_give_equal_rows(quick: tuple[list[dict], Path]) -> None:
    """Where ours is cleanlab's formula, precision and corrected accuracy are the same."""
    at = {(row["noise"], row["score"]): row for row in quick[0]}
    pairs = {
        "SelfConfidence": "self_confidence",
        "SelfConfidence, adjusted": "self_confidence, adjusted",
        "NormalizedMargin": "normalized_margin",
        "NormalizedMargin, adjusted": "normalized_margin, adjusted",
        "ConfidenceWeightedEntropy": "confidence_weighted_entropy",
        "ActiveLab": "ActiveLab (draws)",
    }
    for noise in ("uniform", "runner-up"):
        for ours, theirs in pairs.items():
            for what in ("precision", "after"):
                assert at[noise, ours][what] == pytest.approx(at[noise, theirs][what], abs=2e-3)


def test_tables(quick: tuple[list[dict], Path]) -> None:
    """table.csv has the rows that are returned, and table.md each of them in both of its tables."""
    rows, folder = quick
    with open(folder / "table.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [float(row["precision"]) for row in read] == [row["precision"] for row in rows]
    text = (folder / "table.md").read_text(encoding="utf-8")
    for row in rows:
        found = [line for line in text.splitlines() if line.startswith(f"| {row['kind']} | {row['score']} |")]
        assert len(found) == 2
        assert f"{100 * row['precision']:.2f}" in found[0] and f"{100 * row['after']:.2f}" in found[1]
    assert text.count("the lead") == 2


def test_flipped(script: ModuleType) -> None:
    """As many labels are wrong as are asked for, in the same rows for both noises, one of which takes the runner-up."""
    labels = np.random.default_rng(0).integers(0, 10, 200)
    second = (labels + 3) % 10
    uniform, harder = (script.flipped(labels, second, noise, 0.1, seed=1) for noise in ("uniform", "runner-up"))
    wrong = uniform != labels
    assert wrong.sum() == 20 and (wrong == (harder != labels)).all()
    assert (harder[wrong] == second[wrong]).all() and len(set((uniform - labels)[wrong] % 10)) > 3
    assert (script.flipped(labels, second, "uniform", 0.1, seed=2) != uniform).any()


def test_runner_up_is_wrong_but_likely(script: ModuleType) -> None:
    """The runner-up is never the row's class, and often the one that looks like it."""
    images, labels = script.load_digits(return_X_y=True)
    second = script.runner_up(torch.from_numpy(images[:500] / 16).float(), labels[:500])
    assert (second != labels[:500]).all()
    eights = second[labels[:500] == 8]
    assert np.isin(eights, [1, 3, 5, 9]).mean() > 0.5  # by chance 4/9


def test_out_of_fold(script: ModuleType) -> None:
    """A row's probabilities do not depend on its own label beyond its fold, add up to 1, and differ between draws."""
    images, labels = script.load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images[:120] / 16).float(), labels[:120]
    settings = script.Settings(folds=3, draws=4, epochs=3)
    probs = script.out_of_fold(images, labels, settings, seed=0)
    assert probs.shape == (120, 10, 4)
    np.testing.assert_allclose(probs.sum(1), 1)
    assert probs.std(-1).max() > 0.01
    np.testing.assert_array_equal(probs, script.out_of_fold(images, labels, settings, seed=0))


def test_interval(script: ModuleType) -> None:
    """Of 1, 2, 3 the 95 % t-interval is 2 ± 2.484; a single seed has none."""
    assert script.interval([1.0, 2.0, 3.0]) == pytest.approx((2, 4.3027 / 3**0.5), abs=1e-4)
    mean, half = script.interval([0.5])
    assert mean == 0.5 and np.isnan(half)
    assert script.cell(0.5, half) == "50.00" and script.cell(0.5, 0.01) == "50.00 ± 1.00"


def test_bad_seeds(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """No seeds is an error that says what came."""
    with pytest.raises(SystemExit, match="2"):
        script.main(["--seeds", "0"])
    assert "--seeds needs to be at least 1, got 0" in capsys.readouterr().err


def test_without_cleanlab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cleanlab is missing the script ends with the command that installs it."""
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(SystemExit, match=r'pip install "cleanlab>=2\.9"'):
        runpy.run_path(str(EXPERIMENTS / "relabelling_digits.py"))
