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
from sklearn.datasets import load_digits

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("mnist_batchbald")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's first 500 digits as image files, every fifth to test on."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for i, (pixels, name) in enumerate(zip(digits.images[:500], digits.target, strict=False)):
        path = root / ("test" if i % 5 == 0 else "train") / str(name) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)
    return root


def shown(script: ModuleType, *arguments: str) -> tuple[list[dict], str]:
    """Records and screen of a quick run."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(["--quick", *arguments])
    return records, screen.getvalue()


@pytest.fixture(scope="module")
def quick(script: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    """Records, folder and screen of a quick run on copies."""
    out = tmp_path_factory.mktemp("quick")
    records, screen = shown(script, "--data", str(folder), "--repeat", "2", "--output_dir", str(out))
    return records, out, screen


def untimed(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in r.items() if not name.startswith("seconds")} for r in records]


def small(script: ModuleType) -> object:
    return replace(script.Settings(), labels=30, pool_sample=30, draws=3, steps=((1e-3, 5),), test_rows=20)


# A run


def test_each_step_labels_new_rows(quick: tuple[list[dict], Path, str]) -> None:
    """Each step labels 10 rows more, none twice, and counts the different images among them."""
    for name in ("random", "batchbald"):
        records = [r for r in quick[0] if r["heuristic"] == name]
        assert [r["labelled"] for r in records] == [20, 30, 40]
        queried = [row for r in records for row in r["queried"]]
        assert len(set(queried)) == 20 and [len(r["queried"]) for r in records] == [10, 10, 0]
        assert records[0]["images"] == 20 and 30 <= records[2]["images"] <= 40


def test_heuristics_start_alike(quick: tuple[list[dict], Path, str]) -> None:
    """On one seed heuristics share the first accuracy, above chance, and then part."""
    random, batchbald = quick[0][0], quick[0][3]
    assert random["accuracy"] == batchbald["accuracy"] > 0.3
    assert set(random["queried"]) != set(batchbald["queried"])


def test_stopped_run_ends_like_another(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """A run that was killed within any line goes on, and its records are those of one that was not."""
    for path in quick[1].glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first, second, _ = (tmp_path / "random-2.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "random-2.jsonl").write_bytes(first + second[:30])
    batchbald = (tmp_path / "batchbald-2.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "batchbald-2.jsonl").write_bytes(batchbald[0])
    arguments = ["--data", str(folder), "--repeat", "2", "--output_dir", str(tmp_path)]
    records, _ = shown(script, *arguments)
    assert untimed(records) == untimed(quick[0])
    assert records[0] == json.loads(first)  # its times, too: it was not run again
    assert len((tmp_path / "random-2.jsonl").read_bytes().splitlines()) == 3


def test_fresh_weights_are_those_of_the_step(script: ModuleType, folder: Path) -> None:
    """A step begins with weights of its own, the same in a run that goes on; without, with those of the first step."""
    data = script.images(str(folder), 28, "L")
    untrained = replace(small(script), steps=((0.0, 1),))
    first, second = script.run("random", 2, untrained, data)
    assert first["loss"] == second["loss"]
    fresh = replace(untrained, fresh_weights=True)
    first, second = script.run("random", 2, fresh, data)
    assert first["loss"] != second["loss"]
    assert untimed(list(script.run("random", 2, fresh, data, [first]))) == untimed([second])


def test_l2_keeps_weights_small(script: ModuleType, folder: Path) -> None:
    """With a heavy penalty the outputs are near those of all classes alike, log 10."""
    data = script.images(str(folder), 28, "L")
    settings = replace(small(script), labels=20, steps=((1e-2, 100),))
    light, heavy = (next(script.run("random", 2, replace(settings, l2=l2), data)) for l2 in (0.0, 100.0))
    assert abs(heavy["loss"] - np.log(10)) < 0.1 < abs(light["loss"] - np.log(10))


def test_images_to_validate_on_are_never_labelled(script: ModuleType, folder: Path) -> None:
    """Images are held out, the same each time, and what is labelled is chosen of the others."""
    data = script.images(str(folder), 28, "L")
    rest, validation = script.split(data, 60)
    assert len(rest.train) == len(rest.train_classes) == 340 and len(validation) == 60
    inputs = {tuple(script.normalised(image).flatten().tolist()) for image in rest.train}
    assert inputs.isdisjoint(tuple(row.flatten().tolist()) for row in validation.tensors[0])
    settings = replace(small(script), validation=60, epochs=2, epoch_rows=40)
    first, second = script.run("bald", 2, settings, data)
    assert max(first["queried"]) < 340 and second["labelled"] == 30
    assert untimed(list(script.run("bald", 2, settings, data, [first]))) == untimed([second])
    assert first["loss"] != next(script.run("bald", 2, small(script), rest))["loss"]


def test_training_ends_with_the_best_weights(script: ModuleType, folder: Path) -> None:
    """Training stops once accuracy has not risen for `patience` epochs, and leaves the weights of the best."""
    data, validation = script.split(script.images(str(folder), 28, "L"), 60)
    accuracies = []

    class Watched(script.ModelWrapper):
        def test_on_dataset(self, *arguments: object, **options: object) -> float:
            loss = super().test_on_dataset(*arguments, **options)
            accuracies.append(self.get_metrics("test")["test_accuracy"])
            return loss

    torch.manual_seed(0)
    wrapper = Watched(script.network(10), torch.nn.CrossEntropyLoss())
    wrapper.add_metric("accuracy", script.Accuracy)
    labelled = script.ActiveLearningDataset(script.Copies(data.train, data.train_classes, 1, 0.0, 0))
    labelled.annotate(script.first_labels(data.train_classes, 40, 0))
    script.train_until_best(wrapper, labelled, validation, replace(script.Settings(), patience=3, epoch_rows=128))
    seen = accuracies.copy()
    assert len(seen) == int(np.argmax(seen)) + 4 and len(seen) > 5
    wrapper.test_on_dataset(validation, batch_size=250, workers=0)
    assert accuracies[-1] == max(seen) > seen[-1]


def test_finished_runs_are_kept(script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str]) -> None:
    """Started again, a finished run trains nothing, and the table is written again."""
    before = quick[0]
    records, screen = shown(script, "--data", str(folder), "--repeat", "2", "--output_dir", str(quick[1]))
    assert records == before and "labels  " not in screen
    assert (quick[1] / "table.md").read_text() in screen and (quick[1] / "learning_curve.png").stat().st_size > 5_000


def test_other_data_are_refused(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """Runs are not gone on with on other images, nor with other settings."""
    for split in ("train", "test"):
        for i in range(20):
            path = tmp_path / split / str(i % 10) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), i).save(path)
    for source, repeat, named in ((tmp_path, "20", "data, repeat"), (folder, "3", "repeat")):
        with pytest.raises(SystemExit, match=rf"other settings \({named}\)"):
            shown(script, "--data", str(source), "--repeat", repeat, "--output_dir", str(quick[1]))


def test_tests_do_not_change_labels(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """Tested by draws, a run labels the same rows; with the labels of the other it is the same, and queries nothing."""
    arguments = ["--data", str(folder), "--repeat", "2", "--heuristics", "batchbald", "--test_draws", "3"]
    before = [r for r in quick[0] if r["heuristic"] == "batchbald"]
    own, _ = shown(script, *arguments, "--output_dir", str(tmp_path / "own"))
    assert [r["queried"] for r in own] == [r["queried"] for r in before]
    assert all(r["loss"] != b["loss"] for r, b in zip(own, before, strict=True))
    taken = [*arguments, "--labels_of", str(quick[1]), "--output_dir", str(tmp_path / "taken")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "query", None)
        records, _ = shown(script, *taken)
        assert untimed(records) == untimed(own)
        path = tmp_path / "taken" / "batchbald-2.jsonl"
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        assert untimed(shown(script, *taken)[0]) == untimed(own)  # a run that goes on


def test_labels_of_another_run_are_refused(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """Labels are not taken from no run, from one on other rows, nor from one that has not ended."""
    arguments = ["--data", str(folder), "--output_dir", str(tmp_path / "out"), "--labels_of"]
    with pytest.raises(SystemExit, match="nowhere has no settings"):
        shown(script, *arguments, str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"other settings \(repeat\)"):
        shown(script, *arguments, str(quick[1]), "--repeat", "3")
    with pytest.raises(SystemExit, match="not all, of bald with seed 2, random with seed 4, bald with seed 4: let it"):
        shown(script, *arguments, str(quick[1]), "--repeat", "2", "--heuristics", "random", "bald", "--seeds", "2", "4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["batchbald", "bald", "powerbald", "margin", "random"])
def test_every_heuristic_chooses(script: ModuleType, folder: Path, name: str) -> None:
    """Every heuristic of the list labels ten different rows out of the sample of the pool."""
    assert list(script.HEURISTICS) == ["batchbald", "bald", "powerbald", "margin", "random"]
    data = script.images(str(folder), 28, "L")
    first, second = script.run(name, 0, small(script), data)
    assert len(set(first["queried"])) == 10 and second["labelled"] == 30 and not second["queried"]
    assert not set(first["queried"]) & set(script.first_labels(data.train_classes, 20, 0))


def test_another_seed_is_another_run(script: ModuleType, folder: Path) -> None:
    """Another seed starts from other rows, other noise and other weights."""
    data = script.images(str(folder), 28, "L")
    one, other = (next(script.run("random", seed, small(script), data)) for seed in (0, 1))
    assert one["queried"] != other["queried"] and one["loss"] != other["loss"]
    assert set(script.first_labels(data.train_classes, 20, 0)) != set(script.first_labels(data.train_classes, 20, 1))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_workers_equal_one(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """Two processes write the records of one."""
    arguments = ["--data", str(folder), "--repeat", "2", "--output_dir", str(tmp_path), "--workers", "2"]
    assert untimed(shown(script, *arguments)[0]) == untimed(quick[0])


@pytest.mark.slow
@pytest.mark.distributed
def test_bf16_rounds(script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path) -> None:
    """In bfloat16 the first losses are near those of float32, and a folder has runs of one precision."""
    arguments = ["--data", str(folder), "--repeat", "2", "--output_dir", str(tmp_path), "--workers", "2"]
    for rounded, exact in zip(shown(script, *arguments, "--bf16")[0], quick[0], strict=True):
        if exact["labelled"] == 20:
            assert rounded["loss"] != exact["loss"] and rounded["loss"] == pytest.approx(exact["loss"], rel=0.2)
    with pytest.raises(SystemExit, match="mixed_precision"):
        script.main(["--quick", *arguments])


# What the paper says


def test_network_is_the_papers(script: ModuleType) -> None:
    """Two convolutions of 32 and 64 filters of 5x5, 128 hidden units, and dropout 0.5 in three places."""
    parts = list(script.network(10))
    assert [p.weight.shape for p in parts if hasattr(p, "weight")] == [
        *((32, 1, 5, 5), (64, 32, 5, 5)),
        *((128, 1024), (10, 128)),
    ]
    assert [p.p for p in parts if "Dropout" in type(p).__name__] == [0.5] * 3
    inputs, network = torch.rand(4, 1, 28, 28), script.network(10)
    first, pool, relu, dropout, second, _, _, _, *rest = network
    papers = torch.nn.Sequential(first, dropout, pool, relu, second, dropout, pool, relu, *rest)
    torch.manual_seed(0)
    outputs = network(inputs)
    torch.manual_seed(0)
    torch.testing.assert_close(papers(inputs), outputs)
    assert outputs.shape == (4, 10)


def test_settings_are_the_issues(script: ModuleType) -> None:
    """20 first labels, 10 a step, 5,000 rows of the pool, 20 draws, PowerBALD at temperature 1/8."""
    settings = script.Settings()
    assert (settings.initial, settings.query_size, settings.pool_sample, settings.draws) == (20, 10, 5_000, 20)
    assert settings.sizes[0] == 20 and settings.sizes[-1] == 250 and len(settings.sizes) == 24
    assert script.HEURISTICS["powerbald"](0).temperature == 1 / 8


def test_first_labels_are_balanced(script: ModuleType) -> None:
    """The first rows are as many different images of each class."""
    classes = torch.arange(1000) % 10
    for seed in range(5):
        row_ids = script.first_labels(classes, 20, seed)
        assert len(set(row_ids)) == 20 and np.bincount(classes[row_ids]).tolist() == [2] * 10


def test_copies_have_noise_of_their_own(script: ModuleType) -> None:
    """Row i shows image i modulo N in noise of standard deviation 0.1, the same at each reading."""
    pixels = torch.randint(0, 255, (40, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = script.Copies(pixels, torch.arange(40), 4, 0.1, seed=3)
    assert len(rows) == 160
    inputs = torch.stack([row for row, _ in rows.__getitems__(list(range(160)))]).view(4, 40, 28, 28)
    noise = inputs - script.normalised(pixels)[:, 0]
    assert float(noise.std()) == pytest.approx(0.1, rel=0.01) and abs(float(noise.mean())) < 0.002
    pairs = np.corrcoef(noise.view(4, -1))
    assert np.abs(pairs - np.eye(4)).max() < 0.02
    assert torch.equal(rows[83][0][0], inputs[2, 3]) and rows[83][1] == 3
    assert not torch.equal(script.Copies(pixels, torch.arange(40), 4, 0.1, seed=4)[83][0], rows[83][0])


def test_without_copies_there_is_no_noise(script: ModuleType) -> None:
    """With one copy rows show the images as they are."""
    pixels = torch.randint(0, 255, (5, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = script.Copies(pixels, torch.arange(5), 1, 0.1, seed=3)
    assert all(torch.equal(rows[i][0], script.normalised(pixels[i])) for i in range(5))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heuristics", "bold"], "invalid choice: 'bold'"),
        (["--repeat", "0"], "--repeat needs a number from 1, got 0"),
        (["--draws", "0"], "--draws needs a number from 1, got 0"),
        (["--test_draws", "0"], "--test_draws needs a number from 1, got 0"),
        (["--validation", "-1"], "--validation needs a number from 0, got -1"),
        (["--l2", "-1"], "--l2 needs a number from 0, got -1"),
        (["--pool_sample", "3", "--repeat", "4"], "--pool_sample needs an image with all its copies, 4 rows, got 3"),
    ],
)
def test_arguments_that_do_not_fit(
    script: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """A heuristic that is not in the list, and no copy at all, end with code 2."""
    with pytest.raises(SystemExit) as caught:
        script.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_too_few_images_are_refused(script: ModuleType, folder: Path) -> None:
    """First labels that the classes do not divide or have, and more labels than rows, are refused at once."""
    data = script.images(str(folder), 28, "L")
    settings = script.Settings()
    with pytest.raises(SystemExit, match="the data have 10 classes"):
        script.check(data, replace(settings, initial=25))
    with pytest.raises(SystemExit, match="50 images of each"):
        script.check(data, replace(settings, initial=500))
    with pytest.raises(SystemExit, match="400 images to validate on leave none of 400"):
        script.check(data, replace(settings, validation=400))
    with pytest.raises(SystemExit, match="250 labels need as many rows, and there are 200 images"):
        script.check(data, replace(settings, validation=200))
    with pytest.raises(SystemExit, match="500 labels need as many rows, and there are 400 images"):
        script.check(data, replace(settings, labels=500))
    script.check(data, replace(settings, labels=500, repeat=2))
