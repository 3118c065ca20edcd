"""What a project does with its model: train it, choose rows by it, and play rounds on known labels."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset
from filelock import FileLock, Timeout
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.heuristics import get_heuristic
from baal_hf.ledger import LabelLedger
from baal_hf.loop import ActiveLearningLoop
from baal_hf.project.project import Project
from baal_hf.project.settings import Settings
from baal_hf.project.trained import RECORD, TrainedModel, write_curve
from baal_hf.project.whole_file import put
from baal_hf.trainer import BaalTransformersTrainer

_CHUNK = 16_384  # texts of which tokens are held at a time
_TARGETS = 200  # rows that are to be predicted well, for heuristics that ask for them


def check_model(checkpoint: str) -> None:
    """Refuse a model that cannot be found.

    Raises:
        ValueError: There is none of this name.
    """
    try:
        AutoConfig.from_pretrained(checkpoint)
        AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {checkpoint} cannot be loaded: {error}") from error


def train(project: Project) -> TrainedModel | None:
    """Fine-tune a fresh copy of the project's model on the current labels, measure it and keep it.

    Returns:
        The model; None if the latest one was trained on just these labels.

    Raises:
        ValueError: Nothing is labelled.
        RuntimeError: Another process is training in this folder.
        OSError: The model cannot be read or written.
    """
    # Counted before the labels are read: what somebody adds in between is then news to this model.
    events = len(LabelLedger(project.folder / "labels.db"))
    dataset = project.dataset()
    if not dataset.n_labelled:
        raise ValueError("Training needs labels, and there are none: begin with baal-hf query --heuristic random.")
    with _training(project.folder / "models") as folder:
        models = project.models()
        if models and models[-1].events == events and (folder / models[-1].model).is_dir():
            write_curve(project.folder, models)  # an earlier run may have been killed before it did so
            return None
        name = f"{max([int(model.model) for model in models], default=0) + 1:04d}"
        part = folder / f"{name}.part"
        started = time.time()
        tokenizer = _tokenizer(project)
        classes = dataset.labelled.features["label"].names
        trainer = _fresh_trainer(project, tokenizer, classes, part)
        trainer.train_dataset = _encoded(project.settings, tokenizer, dataset.labelled, dataset.labels)
        trainer.train()
        metrics = _measured(project, trainer, tokenizer, classes)
        done = time.time()
        model = TrainedModel(
            name, dataset.n_labelled, events, project.settings.seed, metrics, round(done - started, 1), round(done, 1)
        )
        trainer.model.save_pretrained(part)  # type: ignore[operator] # PreTrainedModel's
        tokenizer.save_pretrained(part)
        put(part / RECORD, model.line().encode())
        part.rename(folder / name)
        write_curve(project.folder, [*models, model])
    return model


def query(
    project: Project, heuristic: str, query_size: int, *, iterations: int = 20, pool_size: int | None = None
) -> dict[str, list[Any]]:
    """The rows to label next, best first: the same for the same model, labels and arguments.

    Args:
        project: Whose pool is asked.
        heuristic: A name for `get_heuristic`.
        query_size: Number of rows, K; fewer if the pool has fewer.
        iterations: Posterior draws, T.
        pool_size: Score only that many random rows of the pool; None means all.

    Returns:
        Columns of a batch: `row_id`, the text, `score`, `heuristic`, `model` (empty if none was asked) and `label`
        (empty).

    Raises:
        ValueError: The pool is empty; the heuristic needs a model and there is none, or cannot rank these.
        OSError: The model cannot be read.
    """
    dataset = project.dataset()
    if not dataset.n_unlabelled:
        raise ValueError("The pool is empty: every row is labelled or skipped.")
    seed = project.settings.seed
    # The seed moves on with the labels: else a row would keep its luck as long as the rows before it stay.
    ranking = get_heuristic(heuristic, seed=np.random.default_rng([seed, len(dataset.ledger)]))
    name = _latest(project) if ranking.needs else None
    with tempfile.TemporaryDirectory() as folder:
        predictor = _Predictor(project, name, Path(folder)) if name is not None else None
        loop = ActiveLearningLoop(
            dataset,
            predictor.predictions if predictor else _none,
            ranking,
            query_size,
            pool_size or -1,
            get_features=predictor.features if predictor else None,
            targets=_targets(dataset, seed),
            seed=seed + len(dataset.ledger),
            iterations=iterations,
        )
        chosen = loop.next_query()
    row_ids = [int(row_id) for row_id in chosen.row_ids]
    column = project.settings.text_column
    return {
        "row_id": row_ids,
        column: [dataset.get_raw(row_id)[column] for row_id in row_ids],
        "score": [float(score) for score in chosen.scores],
        "heuristic": [heuristic] * len(row_ids),
        "model": [name or ""] * len(row_ids),
        "label": [""] * len(row_ids),
    }


def simulation(
    project: Project,
    name: str,
    heuristic: str,
    query_size: int,
    rounds: int,
    *,
    initial: int,
    iterations: int = 20,
    pool_size: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rounds on known labels, in `runs/NAME`; the same call goes on with those that were begun.

    Args:
        project: Whose data and model are taken; its labels are neither looked at nor changed.
        name: Of the run's folder.
        heuristic: A name for `get_heuristic`.
        query_size: Rows to label in a round, K.
        rounds: At most so many.
        initial: Rows labelled at random at first.
        iterations: Posterior draws, T.
        pool_size: Score only that many random rows of the pool; None means all.
        seed: Of the run.

    Yields:
        The record of each round.

    Raises:
        ValueError: There are no known labels or test rows, or the run was begun with other arguments.
        RuntimeError: Another process is at this run.
    """
    from baal_hf.experiment import ActiveLearningExperiment

    test = project.test_rows()
    if test is None:
        raise ValueError("A simulation needs test rows: make a project with --test.")
    known = project.known_rows()
    tokenizer = _tokenizer(project)
    classes = ClassLabel(names=list(project.settings.classes))
    encoded = _encoded(project.settings, tokenizer, known, known["label"]).cast_column("label", classes)
    dataset = ActiveLearningDataset(encoded, random_state=seed)
    if initial > len(encoded):
        raise ValueError(f"The first {initial} labels are more than the {len(encoded)} rows with known classes.")
    dataset.label_randomly(initial)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _fresh_trainer(project, tokenizer, classes.names, Path(folder), seed)
        experiment = ActiveLearningExperiment(
            trainer,
            dataset,
            _encoded(project.settings, tokenizer, test, test["label"]),
            heuristic,
            query_size,
            iterations,
            pool_size,
            folder=project.folder / "runs" / name,
            seed=seed,
            max_rounds=rounds,
            targets=_targets(dataset, seed),
        )
        yield from experiment.rounds()


class _Predictor:
    """A trained model of a project, and what it says of texts, a chunk of them at a time."""

    def __init__(self, project: Project, name: str, folder: Path) -> None:
        checkpoint = project.folder / "models" / name
        self._settings = project.settings
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
        # Of a training the bar would come with Trainer's own lines.
        self._trainer = _trainer(project.settings, model, self._tokenizer, folder, project.settings.seed, with_bar=True)

    def predictions(self, rows: Dataset, iterations: int) -> Iterator[np.ndarray]:
        """Predictions [n, C, T] of consecutive rows; draws are shared by chunks, as by all rows."""
        for chunk in self._chunks(rows):
            yield from self._trainer.predict_on_dataset_generator(chunk, iterations)

    def features(self, rows: Dataset) -> np.ndarray:
        """Representations [N, d]."""
        return np.concatenate([self._trainer.predict_features(chunk) for chunk in self._chunks(rows)])

    def _chunks(self, rows: Dataset) -> Iterator[Dataset]:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows.select(range(start, min(start + _CHUNK, len(rows))))
            yield _encoded(self._settings, self._tokenizer, chunk)


def _none(*_: Any, **__: Any) -> Any:
    raise ValueError("There is no model to predict with.")


def _latest(project: Project) -> str:
    """Name of the latest model whose files are there."""
    for model in reversed(project.models()):
        if (project.folder / "models" / model.model).is_dir():
            return model.model
    raise ValueError("No model is trained yet: only --heuristic random works. Label its rows, then baal-hf train.")


def _targets(dataset: ActiveLearningDataset, seed: int) -> Dataset:
    """Random rows, labelled or not, as they come."""
    size = min(_TARGETS, dataset.n_unlabelled)
    positions = np.random.default_rng(seed).choice(dataset.n_unlabelled, size, replace=False)
    return dataset.pool.select(np.sort(positions))


def _tokenizer(project: Project) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(_checkpoint(project))


def _checkpoint(project: Project) -> str:
    """Folder or hub id of the untrained model."""
    path = project.path(project.settings.model)
    return str(path) if path.is_dir() else project.settings.model


def _encoded(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, rows: Dataset, labels: Sequence[int] | None = None
) -> Dataset:
    """Tokens of texts, and labels beside them."""
    tokens = tokenizer(list(rows[settings.text_column]), truncation=True, max_length=settings.max_length)
    return datasets.Dataset.from_dict({**tokens} if labels is None else {**tokens, "label": list(labels)})


def _fresh_trainer(
    project: Project, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str], folder: Path, seed: int | None = None
) -> BaalTransformersTrainer:
    """A trainer of the untrained model, the same weights of its head for the same seed."""
    checkpoint = _checkpoint(project)
    seed = project.settings.seed if seed is None else seed
    set_seed(seed)
    names = dict(enumerate(classes))
    config = AutoConfig.from_pretrained(checkpoint, id2label=names, label2id={c: i for i, c in names.items()})
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint,
        config=config,
        ignore_mismatched_sizes=True,  # a head for other classes is made anew
    )
    return _trainer(project.settings, model, tokenizer, folder, seed)


def _trainer(
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    seed: int,
    *,
    with_bar: bool = False,
) -> BaalTransformersTrainer:
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=32,
        seed=seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=not (with_bar and sys.stderr.isatty()),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = BaalTransformersTrainer(model, args, processing_class=tokenizer, compute_metrics=_accuracy)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows whose class is right."""
    classes = np.asarray(prediction.predictions).argmax(-1)  # [N, C] to [N]
    return {"accuracy": float((classes == prediction.label_ids).mean())}


def _measured(
    project: Project, trainer: BaalTransformersTrainer, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]
) -> dict[str, float]:
    """Accuracy and loss on the test rows; nothing if there are none."""
    test = project.test_rows(classes)
    if test is None:
        return {}
    found = trainer.evaluate(_encoded(project.settings, tokenizer, test, test["label"]))
    return {name: found[name] for name in ("eval_accuracy", "eval_loss")}


@contextmanager
def _training(folder: Path) -> Iterator[Path]:
    """The folder of models, in which nobody else trains; what a killed training left is gone."""
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"Another process is training in {folder}: wait for it.") from None
    try:
        _remove_parts(folder)
        try:
            yield folder
        finally:
            _remove_parts(folder)
    finally:
        lock.release()


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("*.part"):
        shutil.rmtree(part, ignore_errors=True)
