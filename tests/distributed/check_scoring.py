"""N processes score as one. An ordinary script: `accelerate launch tests/distributed/check_scoring.py answers 2 DIR`.

Each row begins with its number, in two tokens, so that it can be told which rows a process was given.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from check_trainer import collate, expected
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    TrainingArguments,
    set_seed,
)

from baal_hf import BALD, ActiveLearningDataset, BaalTransformersTrainer
from baal_hf.heuristics import MeanStd, PowerSampling, SelfConfidence

FIRST, BASE = 5, 90  # the lowest token of a row, and how many there are
CONFIG = BertConfig(
    vocab_size=99,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_labels=3,
    initializer_range=0.5,  # so that scores are far apart
)


class Faulty(BertForSequenceClassification):
    """Can be made to fail as a process fails: by NaN, by lack of memory, by a sudden end.

    Attributes:
        nan_rows: Numbers of the rows whose logits are NaN.
        most_rows: Rows of a batch that fit in memory.
        dies_from: Number of the first row that counts for `dies_after`.
        dies_after: Rows given to the model, from that one on, after which the process is killed.
        given: Rows given to the model.
    """

    nan_rows: Sequence[int] = ()
    most_rows = 2**60
    dies_from = 0
    dies_after = 2**60
    given = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """As BERT's, or not at all."""
        numbers = numbers_of(input_ids)  # [B]
        self.given += len(numbers)
        self.dies_after -= int((numbers >= self.dies_from).sum())
        if self.dies_after < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(numbers) > self.most_rows:
            torch.empty(2**55, dtype=torch.uint8)  # which no machine has
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        outputs.logits[torch.isin(numbers, torch.tensor(self.nan_rows, dtype=torch.int64))] = torch.nan
        return outputs


class Collator:
    """Pads on the right, and keeps the numbers of the rows that this process was given."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()

    def __call__(self, features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = collate(features)
        self.numbers |= set(numbers_of(batch["input_ids"]).tolist())
        return batch


class Images(TorchDataset[dict[str, list[int]]]):
    """Rows of four tokens whose length nobody can know, as that of images."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        return {"input_ids": [number // BASE + FIRST, number % BASE + FIRST, number % 7 + FIRST, 50]}


class Stream(IterableDataset[dict[str, list[int]]]):
    """The rows of a dataset, one after the other."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return iter(self.dataset)


def texts(size: int) -> Dataset:
    """Rows of 2 to 9 tokens."""
    generator = np.random.default_rng(0)
    rests = [generator.integers(FIRST, FIRST + BASE, length).tolist() for length in generator.integers(0, 8, size)]
    ids = [[number // BASE + FIRST, number % BASE + FIRST, *rest] for number, rest in enumerate(rests)]
    return Dataset.from_dict({"input_ids": ids, "label": [number % 3 for number in range(size)]})


def numbers_of(input_ids: torch.Tensor) -> torch.Tensor:
    """The numbers of rows [B, S], [B]."""
    return (input_ids[:, 0] - FIRST) * BASE + input_ids[:, 1] - FIRST


def made(kind: type = Faulty, batch_size: int = 2) -> BaalTransformersTrainer:
    """A trainer whose model is the same in each process."""
    set_seed(0)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_eval_batch_size=batch_size,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    return BaalTransformersTrainer(kind(CONFIG), arguments, data_collator=Collator())


def everyone(value: Any) -> Any:
    """The value, once all processes have the same."""
    values = gather_object([value])
    assert all(other == values[0] for other in values), values
    return value


def refusal(kind: type[Exception], act: Callable[[], Any]) -> str:
    """The message of the error that all processes raise."""
    try:
        act()
    except kind as error:
        return str(everyone(str(error)))
    raise AssertionError(f"this process did not raise {kind.__name__}")


def equal(scores: Any, others: Any) -> None:
    """They differ by rounding only, and are the same on all processes."""
    everyone(np.asarray(scores).tobytes())
    np.testing.assert_allclose(scores, others, rtol=0, atol=1e-5)


def check_scores(folder: Path) -> None:
    """Scores, ranking and streams, of pools smaller and larger than the number of processes."""
    for kind in (Faulty, BertForTokenClassification):
        trainer = made(kind)
        heuristic = BALD(reduction="mean")
        for size in (1, 2, 3, 7, 11):
            dataset = texts(size)
            scores = heuristic.get_uncertainties(expected(trainer, dataset, 3))
            best = heuristic.reorder_indices(scores)
            equal(trainer.score_dataset(dataset, heuristic, 3), scores)
            equal(trainer.score_dataset(Stream(dataset), heuristic, 3), scores)
            equal(trainer.score_dataset(list(dataset), heuristic, 3), scores)
            query = -(-size // 2)
            for rows, adaptive in ((dataset, False), (Stream(dataset), False), (dataset, True)):
                ranks, ranked = trainer.rank_dataset(rows, heuristic, 3, query, adaptive=adaptive)
                np.testing.assert_array_equal(everyone(ranks.tolist()), best[:query])
                equal(ranked, scores[best[:query]])
        assert scores.max() > 0.01, "rounding would hide what is wrong"


def check_adaptive(folder: Path) -> None:
    """Adaptive ranking spares draws and finds the rows that all draws would."""
    trainer, dataset, draws, query = made(), texts(24), 20, 2
    scores = MeanStd().get_uncertainties(expected(trainer, dataset, draws))
    best = MeanStd().reorder_indices(scores)[:query]
    given = []
    for adaptive in (False, True):
        trainer.model.given = 0
        ranks, ranked = trainer.rank_dataset(dataset, MeanStd(), draws, query, adaptive=adaptive)
        given.append(sum(gather_object([trainer.model.given])))
        np.testing.assert_array_equal(everyone(ranks.tolist()), best)
        equal(ranked, scores[best])
    assert given[1] < given[0], f"{given[1]} rows were given to the model, {given[0]} without"


def check_arrays(folder: Path) -> None:
    """An array with an entry for each row is dealt with the rows; a ranking that samples is the same everywhere."""
    trainer, dataset = made(), texts(11)
    predictions, labels = expected(trainer, dataset, 3), np.array(dataset["label"])
    scores = SelfConfidence().get_uncertainties(predictions, labels=labels)
    equal(trainer.score_dataset(dataset, SelfConfidence(), 3, labels=labels), scores)
    for sampling in (PowerSampling(BALD()), BALD(shuffle_prop=0.5)):
        everyone(trainer.rank_dataset(dataset, sampling, 3, 5)[0].tolist())
    active = ActiveLearningDataset(dataset)
    active.label_randomly(2)
    equal(trainer.score_dataset(active.pool, BALD(), 3), BALD().get_uncertainties(expected(trainer, active.pool, 3)))


def check_stores(folder: Path) -> None:
    """What is put on the disk, and given back, is the answer; a store of something else is refused by all."""
    trainer, dataset = made(), texts(7)
    predictions = expected(trainer, dataset, 3)
    store = trainer.predict_on_dataset(dataset, 3, store=folder / "predictions")
    equal(np.concatenate([*store]), predictions)
    scores = BALD().get_uncertainties(predictions)
    equal(trainer.score_dataset(dataset, BALD(), 3, store=folder / "scores"), scores)
    tokens = made(BertForTokenClassification)
    store = tokens.predict_on_dataset(dataset, 3, store=folder / "tokens", half=True)
    np.testing.assert_allclose(np.concatenate([*store]), expected(tokens, dataset, 3), rtol=0, atol=1e-3)

    message = refusal(ValueError, lambda: trainer.predict_on_dataset(dataset, 4, store=folder / "predictions"))
    assert "iterations=3, not 4" in message, message
    message = refusal(ValueError, lambda: trainer.score_dataset(dataset, MeanStd(), 3, store=folder / "scores"))
    assert "heuristic" in message, message
    (folder / "file").touch()
    refusal(OSError, lambda: trainer.score_dataset(dataset, BALD(), 3, store=folder / "file"))
    equal(trainer.score_dataset(dataset, BALD(), 3, store=folder / "scores"), scores)  # they are still in step


def check_broken_rows(folder: Path) -> None:
    """Rows that one process finds broken are named by all."""
    trainer = made()
    for size, broken in ((1, [0]), (11, [7]), (11, [2, 3]), (40, [*range(17, 40)])):
        for dataset in (texts(size), Stream(texts(size)), Images(size)):
            trainer.model.nan_rows = broken
            for act in (
                lambda dataset=dataset: trainer.score_dataset(dataset, BALD(), 3),
                lambda dataset=dataset: trainer.rank_dataset(dataset, BALD(), 3, 1),
            ):
                message = refusal(ValueError, act)
                if len(broken) <= 2:
                    assert f"rows {broken} of the dataset" in message, message
            trainer.model.nan_rows = ()
            assert len(trainer.score_dataset(dataset, BALD(), 3)) == size


def check_memory(folder: Path) -> None:
    """One process that runs out of memory goes on with smaller batches, and the answer is right."""
    for dataset, most_rows in ((texts(11), 3), (texts(120), 40), (Images(50), 8)):
        check_small_memory(dataset, most_rows)


def check_memory_of_chunks(folder: Path) -> None:
    """As before, where there is a chunk after the one in which memory ran out."""
    for size in (1120, 1160, 2500):  # whether batches end elsewhere then depends on the lengths
        check_small_memory(texts(size), 50)


def check_small_memory(dataset: Any, most_rows: int) -> None:
    """A dozen of the scores are right though the last process has memory for so few rows."""
    trainer = made(batch_size=20)
    chosen = range(0, len(dataset), max(1, len(dataset) // 12))
    rows = Dataset.from_list([dataset[number] for number in chosen])
    scores = BALD().get_uncertainties(expected(trainer, rows, 3))
    if trainer.accelerator.process_index == trainer.accelerator.num_processes - 1:
        trainer.model.most_rows = most_rows
    equal(trainer.score_dataset(dataset, BALD(), 3)[list(chosen)], scores)


def check_seeds(folder: Path) -> None:
    """A heuristic without a seed gives all processes the same query."""
    trainer, dataset = made(), texts(11)
    for heuristic in (BALD(1.0, seed=None), PowerSampling(BALD(), seed=None)):
        everyone(trainer.rank_dataset(dataset, heuristic, 3, 5)[0].tolist())


def write_stores(folder: Path, batch_size: int = 1) -> None:
    """Two stores of several chunks, or the one at which the process is to die; tells which rows it was given."""
    trainer = made(batch_size=batch_size)
    collator: Any = trainer.data_collator
    dies_at, done = sys.argv[4:], {}
    for name, dataset, dies_from, dies_after in (
        ("predictions", Images(200), 128, 40),  # chunks of 64 rows
        ("scores", texts(4600), 4096, 300),  # of 2,048 rows
    ):
        if dies_at and name not in dies_at:
            continue
        if dies_at:
            trainer.model.dies_from, trainer.model.dies_after = dies_from, dies_after
        collator.numbers = set()
        if name == "predictions":
            result = np.concatenate([*trainer.predict_on_dataset(dataset, 2, store=folder / name)])
        else:
            result = trainer.score_dataset(dataset, BALD(), 2, store=folder / name)
        done[name] = sorted(set().union(*gather_object([collator.numbers])))
        never_killed = trainer.predict_on_dataset(dataset, 2)
        equal(result, never_killed if name == "predictions" else BALD().get_uncertainties(never_killed))
    if trainer.accelerator.is_main_process:
        (folder / "done.json").write_text(json.dumps(done))


def check_death(folder: Path) -> None:
    """The last process is killed in the middle of a pass; the others must not wait for it."""
    trainer = made()
    if trainer.accelerator.process_index == trainer.accelerator.num_processes - 1:
        trainer.model.dies_after = 4
    trainer.score_dataset(texts(40), BALD(), 3)


def main() -> None:
    """Run what the first argument names, on every process."""
    name, processes, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    checks = {
        "answers": (check_scores, check_adaptive, check_arrays, check_stores, check_broken_rows, check_memory),
        "memory": (check_memory_of_chunks,),
        "seeds": (check_seeds,),
        "stores": (write_stores,),
        "larger": (lambda folder: write_stores(folder, batch_size=2),),
        "death": (check_death,),
    }
    assert made().accelerator.num_processes == processes
    for check in checks[name]:
        check(folder)
    print("the processes agree")


if __name__ == "__main__":
    main()
    gc.collect()  # the trainer goes first: what exchanges its gradients would wait for ever for gloo's threads to end
    PartialState().destroy_process_group()  # which, left running, abort one exit in five
