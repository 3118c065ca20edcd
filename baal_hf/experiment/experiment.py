"""`ActiveLearningExperiment`: rounds of train, evaluate, score, stop and label, from the same weights each time."""

from __future__ import annotations

import operator
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.experiment.folder import ExperimentFolder
from baal_hf.experiment.learner import Learner, TrainerLearner
from baal_hf.heuristics import AbstractHeuristic, get_heuristic
from baal_hf.loop import ActiveLearningLoop, Query, label
from baal_hf.sampling import described, rows_digest
from baal_hf.stopping import Round, StoppingCriterion
from baal_hf.trainer import BaalTransformersTrainer

T = TypeVar("T")


class ActiveLearningExperiment:
    """A simulation: rounds of training on what is labelled, and of labelling more with the dataset's own labels.

    In each round the first weights are trained on the labelled rows, the model is evaluated, the pool is scored and
    ranked, and the first of the ranking are labelled, until a criterion says stop or no row is left.

    With a folder it can be killed at any moment: the same call in a new process goes on from the last part of a round
    that was done, and ends with the same records. Everything random follows from `seed` and the number of the round.

    Args:
        trainer: A `BaalTransformersTrainer`, or another `Learner`, such as `WrapperLearner(ModelWrapper(...), ...)`.
            Its present weights are those that each round begins with; where the folder has the first weights of an
            earlier start, those.
        al_dataset: Some of its rows are labelled. On going on it may have been made anew with the same rows labelled,
            or stand on the ledger file that it had.
        eval_dataset: Labelled rows to evaluate on.
        heuristic: Ranks the pool; a name for `get_heuristic`, or the heuristic.
        query_size: Rows to label in a round, K.
        iterations: Posterior draws, T.
        pool_size: Score only that many random rows of the pool in each round; None means all.
        criterion: Says after each round whether to stop; None never does.
        folder: Where the parts of each round are kept; None keeps nothing.
        seed: Of training, of the rows that are scored, and of heuristics that draw.
        max_rounds: Rounds at most; None means until the pool is empty.
        stop_set: Rows without labels that criteria look at the classes of.
        targets: Rows that are to be predicted well, for heuristics that ask for them.

    Attributes:
        seconds: What the parts of the round took in this process, as its record comes: score, train, evaluate.

    Raises:
        ValueError: A number below 1, an unknown heuristic, a criterion that needs a stop set without one.
    """

    def __init__(
        self,
        trainer: BaalTransformersTrainer | Learner,
        al_dataset: ActiveLearningDataset,
        eval_dataset: Any,
        heuristic: AbstractHeuristic | str,
        query_size: int = 100,
        iterations: int = 20,
        pool_size: int | None = None,
        criterion: StoppingCriterion | None = None,
        *,
        folder: str | Path | None = None,
        seed: int = 0,
        max_rounds: int | None = None,
        stop_set: Any = None,
        targets: Any = None,
    ) -> None:
        numbers = {"query_size": query_size, "iterations": iterations, "pool_size": pool_size, "max_rounds": max_rounds}
        for name, number in numbers.items():
            if number is not None and operator.index(number) < 1:
                raise ValueError(f"ActiveLearningExperiment needs {name} >= 1, got {number}.")
        if criterion is not None and "classes" in criterion.needs and stop_set is None:
            raise ValueError(f"{type(criterion).__name__} needs the classes of a stop set: pass stop_set=rows.")
        self.learner: Learner = TrainerLearner(trainer) if isinstance(trainer, BaalTransformersTrainer) else trainer
        self.dataset = al_dataset
        self.eval_dataset = eval_dataset
        self.heuristic = heuristic if isinstance(heuristic, AbstractHeuristic) else get_heuristic(heuristic)
        self.name = heuristic if isinstance(heuristic, str) else heuristic.name
        self.query_size = query_size
        self.iterations = iterations
        self.pool_size = pool_size
        self.criterion = criterion
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.max_rounds = max_rounds
        self.stop_set = stop_set
        self.targets = targets
        self.seconds: dict[str, float] = {}
        self._trained: int | None = None  # the round whose weights the model has

    def start(self) -> list[dict[str, Any]]:
        """Run all rounds that are left.

        Returns:
            A record for each round, those of an earlier start included: "heuristic", "seed", "round" (from 1),
            "labelled" (rows trained on), and the metrics of the evaluation. The model is that of the last round.

        Raises:
            ValueError: Nothing is labelled; the folder has another experiment, as the message says.
            RuntimeError: Another experiment is running in the folder, or the dataset was labelled by somebody else.
        """
        return list(self.rounds())

    def rounds(self) -> Iterator[dict[str, Any]]:
        """The records of `start`, each when its round is evaluated."""
        with ExitStack() as stack:
            place = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))  # each process has its own
            folder = stack.enter_context(ExperimentFolder(place, self.folder is None or self.learner.is_main))
            settings = folder.settings(self._settings())
            first_step = settings["first_step"]
            if self._initial(first_step) != settings["initial"]:
                raise ValueError(f"The experiment in {place} was begun with other rows labelled. Take another folder.")
            folder.write_records()  # which a killed process may have left one short
            self._trained = None
            if not folder.weights(0).exists():
                folder.save_weights(0, self.learner.save)
            self.learner.wait()
            yield from self._rounds(folder, first_step)

    def _rounds(self, folder: ExperimentFolder, first_step: int) -> Iterator[dict[str, Any]]:
        past: list[Round] = []
        for number in count(1):
            finished = self._finished(folder, number, first_step)
            yield folder.round(number)["record"]  # type: ignore[index] # just done
            if self._is_last(folder, number, [*past, finished]):
                break
            self.seconds = {}
            query = folder.query(number) or self._queried(folder, number, first_step)
            past.append(replace(finished, pool_scores=query.pool_scores))
            if self._stops(past, scored=True):
                break
            self._label(query, first_step + number)
        self._have_trained(folder, number, first_step)

    def _finished(self, folder: ExperimentFolder, number: int, first_step: int) -> Round:
        """The round, trained and evaluated if it was not."""
        found = folder.round(number)
        if found is None:
            self._have_trained(folder, number, first_step)
            metrics = self._timed("evaluate", lambda: self.learner.evaluate(self.eval_dataset))
            classes = None if self.stop_set is None else self.learner.classes(self.stop_set).tolist()
            labelled = len(self.dataset.labelled)
            record = {"heuristic": self.name, "seed": self.seed, "round": number, "labelled": labelled}
            labels = sum(
                len(self.dataset.votes(row_id)) for row_id in np.flatnonzero(self.dataset.labelled_map).tolist()
            )
            found = {
                "record": record | metrics,
                "labels": labels,
                "classes": classes,
                "seconds": sum(self.seconds.values()),
            }
            folder.save_round(number, found)
            self.learner.wait()
        record, classes = found["record"], found["classes"]
        metrics = {
            name: value for name, value in record.items() if name not in ("heuristic", "seed", "round", "labelled")
        }
        seen = None if classes is None else np.array(classes, dtype=np.int64)
        return Round(number, record["labelled"], metrics, None, seen, found["seconds"], found["labels"])

    def _have_trained(self, folder: ExperimentFolder, number: int, first_step: int) -> None:
        """Have the weights of a round, from its file or by training."""
        if self._trained == number:
            return
        if folder.weights(number).exists():
            self.learner.load(folder.weights(number))
        else:
            if self.dataset.current_al_step > first_step + number - 1:
                raise RuntimeError(
                    f"Round {number} cannot be trained again: more was labelled since, and its model is gone."
                )
            self.learner.load(folder.weights(0))
            seed = _seed_of(self.seed, number)
            self._timed("train", lambda: self.learner.train(self.dataset.labelled, seed))
            if self.folder is not None:
                folder.save_weights(number, self.learner.save)
        self.learner.wait()
        self._trained = number

    def _is_last(self, folder: ExperimentFolder, number: int, rounds: list[Round]) -> bool:
        """Whether no rows are to be chosen after this round."""
        if number == self.max_rounds or (folder.query(number) is None and self.dataset.n_unlabelled == 0):
            return True
        return self._stops(rounds, scored=False)

    def _stops(self, rounds: list[Round], scored: bool) -> bool:
        """Whether the criterion says stop, asked once it knows what it needs: before or after the pool is scored."""
        criterion = self.criterion
        if criterion is None or ("pool_scores" in criterion.needs) != scored:
            return False
        return criterion.should_stop(rounds)

    def _queried(self, folder: ExperimentFolder, number: int, first_step: int) -> Query:
        """The rows to label after a round, under its model."""
        self._have_trained(folder, number, first_step)
        seed = _seed_of(self.seed, number)
        _seed(self.heuristic, seed)
        loop = ActiveLearningLoop(
            self.dataset,
            lambda rows: self.learner.predictions(rows, self.iterations),
            self.heuristic,
            self.query_size,
            self.pool_size or -1,
            get_features=self.learner.features,
            targets=self.targets,
            seed=seed,
        )
        with self.learner.seeded(seed):
            query: Query = self._timed("score", loop.next_query)
        folder.save_query(number, query)
        self.learner.wait()
        return query

    def _label(self, query: Query, step: int) -> None:
        """Label the rows of a query as that step, unless they were before this process was started."""
        if self.dataset.current_al_step == step - 1:
            label(self.dataset, query, self.name)
        if not (self.dataset.labelled_map[query.row_ids] == step).all():
            raise RuntimeError(f"The rows of step {step} were labelled by somebody else: the dataset is not as it was.")

    def _settings(self) -> dict[str, Any]:
        """What the records depend on, as far as it can be told."""
        if self.dataset.n_labelled == 0:
            raise ValueError("An experiment needs labelled rows to begin with: call al_dataset.label_randomly(n).")
        return {
            "heuristic": [self.name, described(self.heuristic)],
            "query_size": self.query_size,
            "iterations": self.iterations,
            "pool_size": self.pool_size,
            "seed": self.seed,
            "rows": len(self.dataset.labelled_map),
            "eval_rows": rows_digest(self.eval_dataset) if _are_fixed(self.eval_dataset) else len(self.eval_dataset),
            **self.learner.settings,
            "first_step": self.dataset.current_al_step,
            "initial": self._initial(self.dataset.current_al_step),
        }

    def _initial(self, step: int) -> str:
        """Tells which rows were labelled up to a step."""
        steps = self.dataset.labelled_map
        return blake2b(np.flatnonzero((steps > 0) & (steps <= step)).tobytes(), digest_size=16).hexdigest()

    def _timed(self, part: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self.seconds[part] = time.perf_counter() - started
        return result


def _are_fixed(rows: Any) -> bool:
    """Whether rows are the same each time they are read, which no transform is known to make them."""
    return isinstance(rows, datasets.Dataset) and rows.format["type"] != "custom"


def _seed_of(seed: int, number: int) -> int:
    """Of a round."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _seed(heuristic: AbstractHeuristic, seed: int) -> None:
    """Begin anew what a heuristic, and those that it is made of, draw from."""
    heuristic.rng = np.random.default_rng(seed)
    for part in vars(heuristic).values():
        for inner in part if isinstance(part, list | tuple) else [part]:
            if isinstance(inner, AbstractHeuristic):
                _seed(inner, seed)
