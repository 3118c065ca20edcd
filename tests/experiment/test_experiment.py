"""Whole rounds: what they record, that they go on where they were left, and that they refuse what is not theirs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Subset, TensorDataset
from transformers import TrainerCallback

from baal_hf import (
    ActiveLearningCallback,
    ActiveLearningDataset,
    ActiveLearningExperiment,
    ClassificationChange,
    EnsembleModelWrapper,
    KappaAverage,
    LabellingBudgetStoppingCriterion,
    MCDropout,
    ModelWrapper,
    OverallUncertainty,
    get_heuristic,
    metrics,
)
from baal_hf.experiment import TrainerLearner, WrapperLearner, compare
from baal_hf.experiment.folder import ExperimentFolder
from tests.experiment.check_rounds import experiment, rows, told, trainer

PARTS = ("save", "train", "evaluate", "classes", "predictions")


class Interrupted(Exception):
    """Where a process ended."""


class Failing(TrainerLearner):
    """Ends the run before or after the n-th call of one of its parts."""

    def __init__(self, trainer: Any, part: str, call: int, after: bool) -> None:
        super().__init__(trainer)
        whole, calls = getattr(self, part), iter(range(call))

        def failing(*args: Any) -> Any:
            last = next(calls, None) is None
            if last and not after:
                raise Interrupted
            result = whole(*args)
            if last:
                raise Interrupted
            return result

        setattr(self, part, failing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Records and labels of a run that is never interrupted."""
    run = experiment(tmp_path_factory.mktemp("whole"), None)
    return told(run.start(), run)


def test_records(tmp_path: Path) -> None:
    """There is a record for each round, with how many rows were labelled then; labels know where they came from."""
    run = experiment(tmp_path, None)
    records = run.start()
    assert [record["round"] for record in records] == [1, 2, 3, 4]
    assert [record["labelled"] for record in records] == [6, 10, 14, 18]
    assert {record["heuristic"] for record in records} == {"powerbald"}
    assert all(0 <= record["eval_accuracy"] <= 1 for record in records)
    assert set(records[0]) == {"heuristic", "seed", "round", "labelled", "eval_loss", "eval_accuracy"}
    assert set(run.seconds) == {"score", "train", "evaluate"}
    given = [event for event in run.dataset.ledger if event.step > 1]
    assert len(given) == 12
    assert all(event.heuristic == "powerbald" and event.score is not None for event in given)
    assert all(event.label == run.dataset.get_raw(event.row_id)["label"] for event in given)


def test_everything_follows_from_the_seed(tmp_path: Path, whole: str) -> None:
    """A second run gives the same records and labels, another seed others."""
    run = experiment(tmp_path, None)
    np.random.default_rng().random()
    assert told(run.start(), run) == whole
    other = experiment(tmp_path, None, seed=1)
    assert told(other.start(), other) != whole


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_interrupted_runs_end_as_if_they_were_not(part: str, ledger: bool, tmp_path: Path, whole: str) -> None:
    """A run that is interrupted before or after any part of any round goes on, and ends with the same records."""
    place, labels = tmp_path / "run", tmp_path / "labels.db" if ledger else None
    interruptions = 0
    for after in (False, True):
        for call in (0, 1, 2):
            run = experiment(tmp_path, place, labels)
            run.learner = Failing(run.learner.trainer, part, call, after)
            try:
                run.start()
            except Interrupted:
                interruptions += 1
    assert interruptions >= 2
    run = experiment(tmp_path, place, labels)
    assert told(run.start(), run) == whole
    again = experiment(tmp_path, place, labels)
    assert told(again.start(), again) == whole
    lines = (place / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(whole)[0]


def test_done_parts_are_not_done_again(tmp_path: Path) -> None:
    """A run that goes on trains only the rounds that were not trained, and holds the last round's model in the end."""
    first = experiment(tmp_path, tmp_path / "run", max_rounds=3)
    first.start()
    weights = {name: value.clone() for name, value in first.learner.trainer.model.state_dict().items()}
    run = experiment(tmp_path, tmp_path / "run", max_rounds=3)
    run.learner = Failing(run.learner.trainer, "train", 0, after=False)
    run.start()
    for name, value in run.learner.trainer.model.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])
    run.max_rounds = 4
    with pytest.raises(Interrupted):
        run.start()


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_end_as_if_they_were_not(kills: int, tmp_path: Path) -> None:
    """Runs that are killed at random moments end with the records and labels of runs that never were."""
    command = [sys.executable, str(Path(__file__).with_name("check_rounds.py")), str(kills), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{kills} kills" in done.stdout
    print(done.stdout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_size": 5}, "query_size: 4, not 5"),
        ({"iterations": 4}, "iterations: 3, not 4"),
        ({"pool_size": None}, "pool_size: 20, not None"),
    ],
)
def test_other_settings(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A folder in which another experiment was begun is refused, with the difference."""
    experiment(tmp_path, tmp_path / "run", max_rounds=1).start()
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, tmp_path / "run", **change).start()


def test_other_rows_labelled(tmp_path: Path) -> None:
    """An experiment that goes on needs the rows labelled that it was begun with, and no others."""
    experiment(tmp_path, tmp_path / "run", max_rounds=2).start()
    run = experiment(tmp_path, tmp_path / "run")
    run.dataset.reset_labelled()
    run.dataset.label(range(6))
    with pytest.raises(ValueError, match="begun with other rows labelled"):
        run.start()
    run = experiment(tmp_path, tmp_path / "run")
    run.dataset.label([0])
    with pytest.raises(RuntimeError, match="labelled by somebody else"):
        run.start()
    run.dataset.reset_labelled()
    with pytest.raises(ValueError, match="needs labelled rows to begin with"):
        run.start()


def test_two_experiments_in_one_folder(tmp_path: Path) -> None:
    """A folder is one running experiment's; another is refused until it ends."""
    run = experiment(tmp_path, tmp_path / "run", max_rounds=1)
    with ExperimentFolder(tmp_path / "run"), pytest.raises(RuntimeError, match="Another experiment is running"):
        run.start()
    assert len(run.start()) == 1


def test_bad_arguments(tmp_path: Path) -> None:
    """Numbers below 1, an unknown heuristic and a criterion without its stop set are refused at once."""
    for name in ("query_size", "iterations", "pool_size", "max_rounds"):
        with pytest.raises(ValueError, match=f"{name} >= 1, got 0"):
            experiment(tmp_path, None, **{name: 0})
    with pytest.raises(ValueError, match="KappaAverage needs the classes of a stop set"):
        experiment(tmp_path, None, stop_set=None)
    dataset = ActiveLearningDataset(rows(4))
    with pytest.raises(ValueError, match="nonsense"):
        ActiveLearningExperiment(trainer(tmp_path), dataset, rows(4), "nonsense")


def test_until_the_pool_is_empty(tmp_path: Path) -> None:
    """Without limits rounds go on until all rows are labelled, the last query being what is left."""
    run = experiment(tmp_path, tmp_path / "run", max_rounds=None, criterion=None, query_size=15, pool_size=None)
    assert [record["labelled"] for record in run.start()] == [6, 21, 36, 40]
    assert run.dataset.n_unlabelled == 0
    again = experiment(tmp_path, tmp_path / "run", max_rounds=None, criterion=None, query_size=15, pool_size=None)
    assert [record["labelled"] for record in again.start()] == [6, 21, 36, 40]


def wrapped(place: Path | None) -> ActiveLearningExperiment:
    """An experiment with a ModelWrapper on digits."""
    images, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.from_numpy(images / 16).float(), torch.from_numpy(labels))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    wrapper = ModelWrapper(model, nn.CrossEntropyLoss())
    wrapper.add_metric("accuracy", lambda: metrics.load("accuracy"))
    learner = WrapperLearner(wrapper, partial(torch.optim.Adam, lr=1e-2), 16, 5, use_cuda=False, workers=0)
    dataset = ActiveLearningDataset(Subset(digits, range(200)))
    dataset.label_randomly(20)
    others = Subset(digits, range(200, 300))
    limits = {"query_size": 20, "iterations": 5, "max_rounds": 4, "folder": place}
    return ActiveLearningExperiment(
        learner, dataset, others, "bald", criterion=KappaAverage(1.0), stop_set=others, **limits
    )


def test_an_ensemble_of_wrappers_is_refused() -> None:
    """A round trains one network: members that nobody trains would choose the rows."""
    wrapper = EnsembleModelWrapper(nn.Linear(2, 2), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="trains one network a round"):
        WrapperLearner(wrapper, partial(torch.optim.Adam, lr=1e-2))


def test_with_a_model_wrapper(tmp_path: Path) -> None:
    """An experiment with a ModelWrapper learns, is resumed, and refuses heuristics that need features."""
    records = wrapped(None).start()
    assert [record["labelled"] for record in records] == [20, 40, 60, 80]
    assert records[-1]["eval_accuracy"] > records[0]["eval_accuracy"]
    rounds = wrapped(tmp_path / "run").rounds()
    assert [next(rounds), next(rounds)] == records[:2]
    rounds.close()
    assert wrapped(tmp_path / "run").start() == records
    run = wrapped(None)
    run.heuristic = get_heuristic("badge")
    with pytest.raises(ValueError, match="take another heuristic"):
        run.start()


def test_fresh_masks_are_seeded(tmp_path: Path) -> None:
    """A run under fresh masks that goes on after a query ends as one that was not interrupted."""

    def begun(name: str) -> Any:
        run = experiment(tmp_path, tmp_path / name)
        run.learner.trainer.posterior = MCDropout(masks="fresh")
        return run

    whole = begun("whole")
    expected = told(whole.start(), whole)
    stopped = begun("stopped")
    stopped.learner = Failing(stopped.learner.trainer, "train", 1, after=False)
    with pytest.raises(Interrupted):
        stopped.start()
    run = begun("stopped")
    assert told(run.start(), run) == expected
    assert len(whole.start()) == len(run.start()) == 4  # once more: all is there


def test_fresh_masks_keep_their_settings(tmp_path: Path) -> None:
    """Fresh masks that are seeded have the rate and the place that were asked for; the trainer keeps its own."""
    run = experiment(tmp_path, None, max_rounds=2)
    given = MCDropout(masks="fresh", p=0.2, where="head")
    drawn = []
    run.learner.trainer.posterior = given
    predictions = run.learner.predictions

    def noted(*arguments: Any) -> Any:
        drawn.append(run.learner.trainer.posterior)
        return predictions(*arguments)

    run.learner.predictions = noted  # type: ignore[method-assign]
    run.start()
    assert [(posterior.p, posterior.where, posterior.masks) for posterior in drawn] == [(0.2, "head", "fresh")]
    assert drawn[0].seed != 0 and run.learner.trainer.posterior is given and given.seed == 0


def test_other_training(tmp_path: Path) -> None:
    """Another posterior, learning rate or evaluation set is refused, with the difference."""
    experiment(tmp_path, tmp_path / "run", max_rounds=1).start()
    run = experiment(tmp_path, tmp_path / "run")
    run.learner.trainer.args.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"training: .*learning_rate"):
        run.start()
    run = experiment(tmp_path, tmp_path / "run")
    run.learner.trainer.posterior = MCDropout(seed=5)
    with pytest.raises(ValueError, match="posterior"):
        run.start()
    run = experiment(tmp_path, tmp_path / "run")
    run.eval_dataset = rows(16, seed=9)
    with pytest.raises(ValueError, match="eval_rows"):
        run.start()


def test_a_model_that_is_gone_is_not_made_up(tmp_path: Path) -> None:
    """With fewer rounds than were run on a ledger file, the last round's model is not trained on later rows."""
    ledger = tmp_path / "labels.db"
    experiment(tmp_path, tmp_path / "run", ledger, max_rounds=3).start()
    with pytest.raises(RuntimeError, match="Round 1 cannot be trained again"):
        experiment(tmp_path, tmp_path / "run", ledger, max_rounds=1).start()


def test_a_record_that_was_not_written(tmp_path: Path) -> None:
    """A process that was killed between a round's file and the file of all records leaves nothing out."""
    run = experiment(tmp_path, tmp_path / "run", max_rounds=2)
    records = run.start()
    (tmp_path / "run" / "records.jsonl").write_text(json.dumps(records[0]) + "\n")
    experiment(tmp_path, tmp_path / "run", max_rounds=2).start()
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_criteria(tmp_path: Path) -> None:
    """Criteria see labels, scores of the pool and classes of the stop set, and end the rounds, also when resumed."""
    budget = LabellingBudgetStoppingCriterion(10)
    assert len(experiment(tmp_path, None, criterion=budget).start()) == 2
    certain = OverallUncertainty(1e9)
    for _ in range(2):
        run = experiment(tmp_path, tmp_path / "scores", criterion=certain)
        assert len(run.start()) == 1
        assert run.dataset.n_labelled == 6  # the rows of the query are not labelled
    change = ClassificationChange(0.99)
    assert len(experiment(tmp_path, None, criterion=change).start()) == 2
    assert len(experiment(tmp_path, None, criterion=change & LabellingBudgetStoppingCriterion(14)).start()) == 3


def test_checkpoints_hold_what_is_labelled(tmp_path: Path) -> None:
    """Training that is resumed from a checkpoint has the labelled rows of then, and ends with the same weights."""

    def begun(epochs: int) -> tuple[Any, ActiveLearningDataset]:
        training = trainer(tmp_path, save_strategy="epoch", num_train_epochs=epochs, lr_scheduler_type="constant")
        dataset = ActiveLearningDataset(rows(40))
        training.add_callback(ActiveLearningCallback(dataset))
        return training, dataset

    training, dataset = begun(3)
    dataset.label(range(0, 24, 2))
    training.train_dataset = dataset.labelled
    training.train()
    weights = {name: value.clone() for name, value in training.model.state_dict().items()}

    resumed, fresh = begun(3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-6"))
    assert fresh.labelled_ids.tolist() == dataset.labelled_ids.tolist()
    for name, value in resumed.model.state_dict().items():
        np.testing.assert_allclose(value, weights[name], atol=1e-6)
    again, fresh = begun(3)
    again.train(resume_from_checkpoint=True)
    assert fresh.n_labelled == 12


def test_training_that_was_interrupted_is_over(tmp_path: Path) -> None:
    """Checkpoints of a training hold its own rows, whatever the one before it ended with."""

    class Stopped(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise Interrupted

    training = trainer(tmp_path, save_strategy="epoch", num_train_epochs=1)
    dataset = ActiveLearningDataset(rows(40))
    dataset.label(range(4))
    training.train_dataset = dataset.labelled
    training.add_callback(ActiveLearningCallback(dataset))
    training.add_callback(Stopped)
    with pytest.raises(Interrupted):
        training.train()
    training.remove_callback(Stopped)
    dataset.label(range(8))
    training.train_dataset = dataset.labelled
    training.train()
    later = ActiveLearningDataset(rows(40))
    checkpoint = tmp_path / "trainer" / "checkpoint-3"
    assert len(ActiveLearningCallback(later).restore(checkpoint)) == later.n_labelled == 12


def test_metrics_that_are_arrays(tmp_path: Path) -> None:
    """An array among the metrics is in the records, as a list."""
    run = experiment(tmp_path, tmp_path / "run", max_rounds=2)
    run.learner.trainer.compute_metrics = lambda prediction: {"each": np.array([0.25, 0.5]), "one": np.float32(0.5)}
    records = run.start()
    assert len(records) == 2 and records[1]["eval_each"] == [0.25, 0.5] and records[1]["eval_one"] == 0.5


def test_labels_that_come_later(tmp_path: Path) -> None:
    """Training goes on with the rows that it began with, though the ledger file has more by then."""
    ledger = tmp_path / "labels.db"
    training = trainer(tmp_path, save_strategy="epoch", num_train_epochs=2)
    dataset = ActiveLearningDataset(rows(40), ledger=ledger)
    dataset.label(range(8))
    training.add_callback(ActiveLearningCallback(dataset))
    training.train_dataset = dataset.labelled
    training.train()
    dataset.label(range(6))
    resumed = trainer(tmp_path, save_strategy="epoch", num_train_epochs=2)
    later = ActiveLearningDataset(rows(40), ledger=ledger)
    resumed.train_dataset = later.labelled
    resumed.add_callback(ActiveLearningCallback(later))
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    assert (len(resumed.train_dataset), later.n_labelled) == (8, 14)
    resumed.train_dataset = later.labelled.select(range(3))
    with pytest.raises(ValueError, match=r"other rows than dataset\.labelled"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))


def test_checkpoints_without_state(tmp_path: Path) -> None:
    """A checkpoint that does not hold what was labelled is refused."""
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="does not hold what was labelled"):
        ActiveLearningCallback(ActiveLearningDataset(rows(4))).restore(tmp_path / "checkpoint-1")


def test_compare(tmp_path: Path) -> None:
    """Heuristics are compared over seeds in a table, a file, a summary and a picture; a second call gives the same."""

    def made(heuristic: str, seed: int, folder: Path) -> ActiveLearningExperiment:
        dataset = ActiveLearningDataset(rows(40), random_state=seed)
        dataset.label_randomly(6)
        limits = {"query_size": 6, "iterations": 2, "max_rounds": 3}
        return ActiveLearningExperiment(
            trainer(tmp_path), dataset, rows(16, seed=1), heuristic, folder=folder, seed=seed, **limits
        )

    table = compare(made, ["bald", "random"], [0, 1], tmp_path / "compared")
    assert len(table) == 2 * 2 * 3
    with open(tmp_path / "compared" / "records.csv", newline="") as file:
        assert [row["heuristic"] for row in csv.DictReader(file)] == table["heuristic"][:]
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    assert {line["heuristic"] for line in summary} == {"bald", "random"}
    assert (tmp_path / "compared" / "learning_curve.png").stat().st_size > 1000
    assert compare(made, ["bald", "random"], [0, 1], tmp_path / "compared")[:] == table[:]
    shared = made("bald", 0, tmp_path / "shared")
    with pytest.raises(ValueError, match="a trainer of its own"):
        compare(lambda *_: shared, ["bald", "random"], [0], tmp_path / "shared")
    with pytest.raises(ValueError, match="needs the metric 'f1'"):
        compare(made, ["bald"], [0], tmp_path / "lacking", metric="f1")
    assert len((tmp_path / "lacking" / "bald-0" / "records.jsonl").read_text().splitlines()) == 1  # not all rounds
    with pytest.raises(ValueError, match="at least one heuristic"):
        compare(made, [], [0], tmp_path / "compared")
