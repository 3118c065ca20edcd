"""Training, querying and simulating: each can be repeated, and what was killed is taken up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from baal_hf.project import Project, Settings, training
from tests.project import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(tmp_path: Path, checkpoint: Path) -> Callable[..., Project]:
    """Makes a project of 60 rows with known classes and 20 test rows."""

    def make(**settings: object) -> Project:
        for name, count, seed in (("rows", 60, 0), ("test", 20, 1)):
            texts, labels = tiny.texts(count, seed)
            tiny.write_csv(tmp_path / f"{name}.csv", {"text": texts, "label": labels})
        standard = {
            "data": "../rows.csv",
            "text_column": "text",
            "classes": tuple(tiny.CLASSES),
            "model": str(checkpoint),
            "label_column": "label",
            "test": "../test.csv",
            "max_length": 16,
            "epochs": 5,
            "learning_rate": 1e-2,
            "batch_size": 8,
        }
        return Project.create(tmp_path / "project", Settings(**{**standard, **settings}))[0]  # type: ignore[arg-type]

    return make


@pytest.fixture
def project(make: Callable[..., Project]) -> Project:
    return make()


def label(project: Project, row_ids: list[int]) -> None:
    known = project.known_rows()["label"]
    project.dataset().annotate(row_ids, [known[row_id] for row_id in row_ids], annotator="anna")


def test_train(make: Callable[..., Project]) -> None:
    """A training keeps a checkpoint with the classes, what was measured, and nothing else; it learns from labels."""
    project = make(epochs=15)
    label(project, list(range(30)))
    model = training.train(project)
    assert model is not None and model.model == "0001" and model.labelled == 30 and model.events == 30
    assert model.metrics["eval_accuracy"] > 0.8
    folder = project.folder / "models"
    assert {path.name for path in folder.iterdir()} <= {"0001", "lock"}
    config = json.loads((folder / "0001" / "config.json").read_text())
    assert config["id2label"] == {"0": "sport", "1": "politics"}
    assert (folder / "0001" / "tokenizer.json").exists() and not list(folder.glob("*/training_args.bin"))
    assert [json.loads(line)["model"] for line in (project.folder / "curve.jsonl").read_text().splitlines()] == ["0001"]


def test_nothing_new(project: Project) -> None:
    """Without new events nothing is trained; a new label, or a deleted model, is trained again."""
    label(project, [0, 1, 2])
    assert training.train(project) is not None
    assert training.train(project) is None
    label(project, [3])
    second = training.train(project)
    assert second is not None and second.model == "0002" and [m.labelled for m in project.models()] == [3, 4]
    (project.folder / "models" / "0002").rename(project.folder / "elsewhere")
    third = training.train(project)
    assert third is not None and third.model == "0003"


def test_same_labels_same_model(project: Project) -> None:
    """A training is repeated exactly: the same labels give the same weights."""
    label(project, list(range(8)))
    training.train(project)
    weights = project.folder / "models" / "0001" / "model.safetensors"
    first = weights.read_bytes()
    (project.folder / "curve.jsonl").unlink()
    (project.folder / "models").rename(project.folder / "old")
    training.train(project)
    assert weights.read_bytes() == first


def test_killed_before_the_curve(project: Project) -> None:
    """A model that was kept just before its process was killed counts, and comes into the curve the next time."""
    label(project, [0, 1, 2])
    training.train(project)
    curve = project.folder / "curve.jsonl"
    before = curve.read_text()
    curve.unlink()
    assert [model.model for model in project.models()] == ["0001"]
    assert training.train(project) is None
    assert curve.read_text() == before


def test_killed_while_saving(project: Project) -> None:
    """What a killed training left is no model, and goes with the next one."""
    label(project, [0, 1, 2])
    part = project.folder / "models" / "0001.part"
    part.mkdir(parents=True)
    (part / "record.json").write_text("{")
    assert project.models() == []
    training.train(project)
    assert not part.exists() and [model.model for model in project.models()] == ["0001"]


def test_one_at_a_time(project: Project) -> None:
    """While one process trains another one is refused and writes nothing."""
    label(project, [0, 1, 2])
    (project.folder / "models").mkdir()
    with FileLock(project.folder / "models" / "lock"), pytest.raises(RuntimeError, match="Another process is training"):
        training.train(project)
    assert project.models() == []


def test_failed_training(project: Project, tmp_path: Path) -> None:
    """A training that fails at its last step leaves no model, and the next one is made."""
    label(project, [0, 1, 2])
    (tmp_path / "test.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(FileNotFoundError, match=r"test\.csv"):
        training.train(project)
    assert project.models() == [] and not list((project.folder / "models").glob("0*"))
    (tmp_path / "elsewhere.csv").rename(tmp_path / "test.csv")
    assert training.train(project) is not None


def test_no_labels(project: Project) -> None:
    """Training without labels says how to begin."""
    with pytest.raises(ValueError, match="query --heuristic random"):
        training.train(project)


def test_query(project: Project) -> None:
    """The same model, labels and arguments give the same batch: rows of the pool, best first, with what chose them."""
    label(project, list(range(8)))
    training.train(project)
    batch = training.query(project, "bald", 5, iterations=4)
    assert batch == training.query(project, "bald", 5, iterations=4)
    assert list(batch) == ["row_id", "text", "score", "heuristic", "model", "label"]
    assert len(set(batch["row_id"])) == 5 and not set(batch["row_id"]) & set(range(8))
    assert batch["score"] == sorted(batch["score"], reverse=True)
    assert batch["text"] == [project.known_rows()[row_id]["text"] for row_id in batch["row_id"]]
    assert set(batch["heuristic"]) == {"bald"} and set(batch["model"]) == {"0001"} and set(batch["label"]) == {""}
    label(project, [batch["row_id"][0]])
    assert batch["row_id"][0] not in training.query(project, "bald", 5, iterations=4)["row_id"]


@pytest.mark.parametrize("heuristic", ["bald", "batchbald", "epig", "badge", "coreset", "random"])
def test_chunks_equal_the_whole(make: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, heuristic: str) -> None:
    """Every kind of heuristic chooses the same rows whether the pool's tokens are there at once or in parts."""
    project = make(epochs=15)  # of a model that has learned little, scores differ by rounding only
    label(project, list(range(16)))
    training.train(project)
    whole = training.query(project, heuristic, 4, iterations=4)
    monkeypatch.setattr(training, "_CHUNK", 7)
    parts = training.query(project, heuristic, 4, iterations=4)
    assert whole["row_id"] == parts["row_id"]
    np.testing.assert_allclose(whole["score"], parts["score"], atol=1e-5)


def test_query_without_model(project: Project) -> None:
    """Without a model random rows can be had, others after new labels, and nothing else."""
    batch = training.query(project, "random", 5)
    assert batch == training.query(project, "random", 5) and set(batch["model"]) == {""}
    label(project, [batch["row_id"][0]])
    after = training.query(project, "random", 5)
    assert len(set(after["row_id"]) & set(batch["row_id"])) < 4
    with pytest.raises(ValueError, match="only --heuristic random works"):
        training.query(project, "bald", 5)


def test_small_pool(project: Project) -> None:
    """The last query has what is left, and then there is none."""
    label(project, list(range(57)))
    assert sorted(training.query(project, "random", 5)["row_id"]) == [57, 58, 59]
    label(project, [57, 58, 59])
    with pytest.raises(ValueError, match="The pool is empty"):
        training.query(project, "random", 5)


def test_part_of_the_pool(project: Project) -> None:
    """With a pool size the batch comes from so many rows, the same each time."""
    batches = [training.query(project, "random", 5, pool_size=5) for _ in range(2)]
    assert batches[0] == batches[1] and len(set(batches[0]["row_id"])) == 5


def test_simulation(project: Project) -> None:
    """A simulation labels so many rows a round, resumes to the same records, and leaves the project's labels alone."""

    def records(rounds: int, name: str = "a") -> list[dict[str, object]]:
        return list(training.simulation(project, name, "bald", 6, rounds, initial=6, iterations=3))

    first = records(2)
    assert [record["labelled"] for record in first] == [6, 12]
    longer = records(3)
    assert longer[:2] == first and longer[2]["labelled"] == 18
    assert records(3, "b") == longer
    assert len(project.dataset().ledger) == 0
    with pytest.raises(ValueError, match="query_size"):
        list(training.simulation(project, "a", "bald", 7, 3, initial=6, iterations=3))


def test_simulation_needs_rows(project: Project) -> None:
    """A simulation whose first labels are more than there are says so."""
    with pytest.raises(ValueError, match="The first 61 labels are more than the 60 rows"):
        list(training.simulation(project, "a", "random", 5, 1, initial=61))


@pytest.mark.parametrize(("missing", "message"), [("label_column", "--label-column"), ("test", "--test")])
def test_simulation_needs(make: Callable[..., Project], missing: str, message: str) -> None:
    """A simulation without known classes or test rows says how to have them."""
    project = make(**{missing: None})
    with pytest.raises(ValueError, match=message):
        list(training.simulation(project, "a", "random", 5, 1, initial=5))


def test_partly_known(make: Callable[..., Project], tmp_path: Path) -> None:
    """A simulation takes the rows whose class is known."""
    project = make()
    texts, labels = tiny.texts(60, 0)
    tiny.write_csv(tmp_path / "rows.csv", {"text": texts, "label": [*labels[:10], *[""] * 50]})
    assert len(project.known_rows()) == 10


def test_without_test_rows(make: Callable[..., Project]) -> None:
    """Without test rows a model is trained and nothing is measured."""
    project = make(test=None)
    label(project, [0, 1, 2])
    model = training.train(project)
    assert model is not None and model.metrics == {}


def test_other_rows(project: Project, tmp_path: Path) -> None:
    """Once the rows are others than those that were labelled, nothing goes on."""
    label(project, [0])
    texts, labels = tiny.texts(60, 0)
    tiny.write_csv(tmp_path / "rows.csv", {"text": texts[::-1], "label": labels})
    with pytest.raises(ValueError, match="belongs to another dataset"):
        project.dataset()


def test_more_classes(project: Project) -> None:
    """Classes that were added through the library are trained and evaluated, too."""
    dataset = project.dataset()
    dataset.add_classes(["art"])
    dataset.annotate([0, 1, 2], ["sport", "politics", "art"])
    assert training.train(project) is not None
    config = json.loads((project.folder / "models" / "0001" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["sport", "politics", "art"]
