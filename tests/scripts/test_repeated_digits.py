import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"
NAMES = [
    *("Random", "BALD", "PowerBALD", "SoftmaxBALD", "RankBALD", "Margin", "Entropy", "BatchBALD", "EPIG", "BADGE"),
    *("CoreSet", "KMeans", "TypiClust", "ProbCover", "CAL"),
]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("repeated_digits")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quick(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    """Records, folder and screen of a quick run."""
    folder = tmp_path_factory.mktemp("quick")
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(["--quick", "--output_dir", str(folder)])
    return records, folder, screen.getvalue()


def untimed(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in r.items() if not name.startswith("seconds")} for r in records]


def small(script: ModuleType) -> object:
    return replace(script.Settings(), copies=2, labels=30, draws=3, targets=10, steps=20)


# A run


def test_each_step_labels_new_rows(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Each step labels 10 rows more, none of them twice or among the first, and counts the different images."""
    data = script.digits(0, script.Settings(copies=2, targets=10))
    first = data.first
    for name in ("Random", "BALD"):
        records = [r for r in quick[0] if r["heuristic"] == name]
        assert [r["labelled"] for r in records] == [20, 30, 40]
        queried = [row for r in records for row in r["queried"]]
        assert len(set(queried) | set(first)) == 40 and len(queried) == 20
        assert [r["images"] for r in records] == [
            len({row % data.images for row in [*first, *queried[:n]]}) for n in (0, 10, 20)
        ]
        assert records[2]["images"] < 40  # there are copies among them, which would otherwise count twice


def test_heuristics_start_alike(quick: tuple[list[dict], Path, str]) -> None:
    """On one seed heuristics share the first accuracy, hence data, labels, weights and noise; then they part."""
    random, bald = quick[0][0], quick[0][3]
    assert random["accuracy"] == bald["accuracy"] > 0.3
    assert set(random["queried"]) != set(bald["queried"])


def test_same_seed_same_run(script: ModuleType, quick: tuple[list[dict], Path, str], tmp_path: Path) -> None:
    """A second run of the same seeds gives the same records."""
    assert untimed(script.main(["--quick", "--output_dir", str(tmp_path)])) == untimed(quick[0])


def test_another_seed_is_another_run(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Another seed starts from other rows and queries others."""
    other = next(script.run("BALD", 1, small(script)))
    assert other["queried"] != quick[0][3]["queried"]
    assert set(script.digits(1, small(script)).first) != set(script.digits(0, small(script)).first)


def test_list_is_whole(script: ModuleType) -> None:
    """The experiment has all heuristics that the issue names, and expects only what is in it."""
    assert list(script.HEURISTICS) == NAMES
    assert {name for pair in script.EXPECTED for name in pair} | set(script.DRAWN) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_heuristic_chooses(script: ModuleType, name: str) -> None:
    """Every heuristic of the list labels ten different rows of the pool in its first round."""
    settings = small(script)
    first, second = script.run(name, 0, settings)
    queried = set(first["queried"])
    assert len(queried) == 10 and not queried & set(script.digits(0, settings).first)
    assert second["labelled"] == 30 and not second["queried"] and 0.3 < second["accuracy"] <= 1


@pytest.mark.parametrize("name", ["PowerBALD", "SoftmaxBALD"])
def test_coldness_is_eight(script: ModuleType, name: str) -> None:
    """PowerBALD and SoftmaxBALD sample at temperature 1/8."""
    assert script.HEURISTICS[name](0).temperature == 1 / 8


def test_training_starts_anew(script: ModuleType) -> None:
    """Training twice on the same labels gives the same network: nothing of the last round remains."""
    settings = small(script)
    data, classifier = script.digits(0, settings), script.Classifier(0, settings)
    dataset = script.ActiveLearningDataset(data.rows)
    dataset.annotate(data.first)
    classifier.fit(dataset)
    once = classifier.probabilities(data.targets, 2)
    classifier.fit(dataset)
    assert torch.equal(classifier.probabilities(data.targets, 2), once)


# Data


def test_pool_holds_noisy_copies(script: ModuleType) -> None:
    """Row i shows image i modulo the number of images, with noise of its own of standard deviation 0.1."""
    data = script.digits(0, script.Settings())
    inputs, classes = data.rows.tensors
    assert len(inputs) == 4 * data.images == 4 * (1797 - len(data.test_inputs)) == 4 * 1438
    copies = inputs.view(4, data.images, 64)
    assert (classes.view(4, -1) == classes[: data.images]).all()
    assert float((copies[1] - copies[0]).std()) == pytest.approx(0.1 * 2**0.5, rel=0.01)
    originals = torch.from_numpy(load_digits().data / 16).float()
    nearest = torch.cdist(copies.mean(0), originals).argmin(1)
    assert (torch.from_numpy(load_digits().target)[nearest] == classes[: data.images]).all()


def test_test_images_have_no_copy_in_the_pool(script: ModuleType) -> None:
    """Each image is either in the pool or tested on, as it is."""
    data = script.digits(0, replace(script.Settings(), noise=0.0, copies=1))
    both = torch.cat([data.rows.tensors[0], data.test_inputs]).numpy()
    assert sorted(map(tuple, both)) == sorted(map(tuple, (load_digits().data / 16).astype(np.float32)))


def test_first_labels_are_balanced(script: ModuleType) -> None:
    """The first 20 rows are two different images of each class."""
    for seed in range(6):
        data = script.digits(seed, script.Settings())
        assert np.bincount(data.rows.tensors[1][data.first]).tolist() == [2] * 10
        assert len(set(data.first % data.images)) == 20


# What is written


def test_table_is_printed_and_written(quick: tuple[list[dict], Path, str]) -> None:
    """The screen shows what table.md has: a row for each heuristic with the numbers of its records."""
    records, folder, screen = quick
    written = (folder / "table.md").read_text()
    assert written in screen
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows] == ["heuristic", "---------", "Random", "BALD"]
    for row in rows[2:]:
        accuracies = [100 * r["accuracy"] for r in records if r["heuristic"] == row[0]]
        assert row[1:3] == [f"{np.mean(accuracies):.2f}", f"{accuracies[-1]:.2f}"]
    assert "BALD and Random: " in written and "± inf, not told apart" in written


def test_files_hold_what_is_returned(quick: tuple[list[dict], Path, str]) -> None:
    """records.jsonl has the records, and the picture shows something."""
    records, folder, _ = quick
    assert [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()] == records
    pixels = matplotlib.image.imread(folder / "learning_curve.png")
    assert pixels.shape[0] > 200 and pixels.std() > 0.01


def test_finished_runs_are_kept(script: ModuleType, quick: tuple[list[dict], Path, str], tmp_path: Path) -> None:
    """Runs that are in the folder are not repeated, and others are put beside them."""
    for name in ("records.jsonl", "settings.json"):
        (tmp_path / name).write_bytes((quick[1] / name).read_bytes())
    arguments = ["--quick", "--output_dir", str(tmp_path), "--heuristics", "Margin", "BALD"]
    records = script.main(arguments)
    assert records[3:] == quick[0][3:]  # the times, too
    assert [r["heuristic"] for r in records] == ["Margin"] * 3 + ["BALD"] * 3
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 9


def test_other_settings_are_refused(script: ModuleType, quick: tuple[list[dict], Path, str]) -> None:
    """Runs with other settings in the folder end the run before it starts, and stay."""
    before = (quick[1] / "records.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="holds runs with other settings"):
        script.main(["--output_dir", str(quick[1])])
    assert (quick[1] / "records.jsonl").read_bytes() == before


def test_unknown_heuristic_ends_with_code_2(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is not in the list is refused, with the list."""
    with pytest.raises(SystemExit) as caught:
        script.main(["--heuristics", "BOLD"])
    assert caught.value.code == 2
    assert "invalid choice: 'BOLD'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_workers_equal_one(script: ModuleType) -> None:
    """Two processes give the records of one."""
    jobs = [(name, 0, small(script)) for name in ("Random", "BALD")]
    together = {records[0]["heuristic"]: untimed(records) for records in script.results(jobs, 2)}
    assert together == {records[0]["heuristic"]: untimed(records) for records in script.results(jobs, 1)}


# What is told


def test_gaps_are_paired_by_seed(script: ModuleType) -> None:
    """A gap is that of the seeds' mean accuracies, with the t-interval of their differences."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 10, 7))  # [seeds, sizes] each
    curves = {"PowerBALD": script.Curves(first, np.ones(10)), "BALD": script.Curves(second, np.ones(10))}
    differences = [a.sum() / 7 - b.sum() / 7 for a, b in zip(first, second, strict=True)]
    low, high = stats.t.interval(0.95, 9, loc=np.mean(differences), scale=stats.sem(differences))
    mean, half = script.gap(curves, "PowerBALD", "BALD")
    assert (mean - half, mean + half) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("shift", "told"), [(2.0, "+2.00 ± 1.24, ahead"), (-2.0, "-2.00 ± 1.24, behind"), (0.5, "+0.50 ± 1.24, not told")]
)
def test_verdict_needs_a_gap_above_its_interval(script: ModuleType, shift: float, told: str) -> None:
    """Who is ahead or behind is told where the gap is larger than its interval, and only there."""
    noise = np.array([[-1.0], [0.0], [1.0]]) / 2  # [3, 1], whose 95 % interval is 4.303 · 0.5 / √3
    other = script.Curves(np.full((3, 2), 80.0), np.ones(3))
    curves = {"Margin": script.Curves(80 + shift + noise + np.zeros((3, 2)), np.ones(3)), "BALD": other}
    assert told in script.verdicts(curves)[0]


def test_table_from_curves(script: ModuleType) -> None:
    """Means, the first number of labels at 90 and 95 %, and the images are those of the mean curve over seeds."""
    settings = replace(script.Settings(), labels=40)
    curves = {
        "BALD": script.Curves(np.array([[80.0, 88.0, 94.0], [82.0, 94.0, 98.0]]), np.array([30, 33])),
        "CAL": script.Curves(np.array([[80.0, 80.0, 80.0], [82.0, 82.0, 82.0]]), np.array([20, 21])),
    }
    bald, cal = script.table(curves, settings)
    assert list(bald.values()) == ["BALD", "89.33", "96.00", "30", "40", "32", ""]
    assert list(cal.values())[:6] == ["CAL", "81.00", "81.00", "-", "-", "20"]
    assert cal["minus BALD"].startswith("-8.33 ± ")
