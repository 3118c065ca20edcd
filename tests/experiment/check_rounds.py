"""Experiments that are killed at random moments end as if they never were. `python check_rounds.py KILLS FOLDER`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from baal_hf import ActiveLearningDataset, ActiveLearningExperiment, BaalTransformersTrainer, KappaAverage

CLASSES = ClassLabel(names=["even", "odd"])


def rows(size: int, seed: int = 0) -> Dataset:
    """Rows of six tokens, whose class is that of the first."""
    ids = np.random.default_rng(seed).integers(5, 40, (size, 6))
    features = Features({"input_ids": List(Value("int64")), "label": CLASSES})
    return Dataset.from_dict({"input_ids": ids.tolist(), "label": (ids[:, 0] % 2).tolist()}, features=features)


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of rows whose class is right."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer(folder: Path, **settings: Any) -> BaalTransformersTrainer:
    """A tiny model, the same each time."""
    set_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    fixed = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    quiet = {"report_to": "none", "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder / "trainer"), use_cpu=True, **{**fixed, **quiet, **settings})
    return BaalTransformersTrainer(BertForSequenceClassification(config), arguments, compute_metrics=accuracy)


def experiment(
    folder: Path, place: Path | None, ledger: Path | None = None, **changes: Any
) -> ActiveLearningExperiment:
    """An experiment with something random in each part."""
    seed = changes.pop("seed", 0)
    dataset = ActiveLearningDataset(rows(40), random_state=seed, ledger=ledger)
    if dataset.n_labelled == 0:
        dataset.label_randomly(6)
    settings = {"query_size": 4, "iterations": 3, "pool_size": 20, "max_rounds": 4, "seed": seed, "folder": place}
    settings |= {"stop_set": rows(12, seed=2).remove_columns("label"), "criterion": KappaAverage(1.0, window=4)}
    return ActiveLearningExperiment(trainer(folder), dataset, rows(16, seed=1), "powerbald", **{**settings, **changes})


def told(heuristic_records: list[dict[str, Any]], run: ActiveLearningExperiment) -> str:
    """Records and labels, as text."""
    labels = [[event.row_id, event.action, event.label, event.step, event.score] for event in run.dataset.ledger]
    return json.dumps([heuristic_records, labels])


def main() -> None:
    """Kill as often as the first argument says; then compare each experiment with one that was never killed."""
    torch.set_num_threads(1)
    kills, folder = int(sys.argv[1]), Path(sys.argv[2])
    times, done, seed = random.Random(0), 0, 0
    expected = {}
    started = time.monotonic()
    uninterrupted = experiment(folder, None, seed=0)
    expected[0] = told(uninterrupted.start(), uninterrupted)
    whole = time.monotonic() - started
    while done < kills:
        place = folder / f"killed-{seed}"
        ledger = folder / f"labels-{seed}.db" if seed % 2 else None
        child = os.fork()
        if child == 0:
            run = experiment(folder, place, ledger, seed=seed)
            place.with_suffix(".json").write_text(told(run.start(), run))
            os._exit(0)
        limit = time.monotonic() + times.uniform(0, whole)
        while time.monotonic() < limit and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        except (ProcessLookupError, ChildProcessError):
            status = 0
        if os.WIFSIGNALED(status):
            done += 1
            continue
        if seed not in expected:
            uninterrupted = experiment(folder, None, seed=seed)
            expected[seed] = told(uninterrupted.start(), uninterrupted)
        assert place.with_suffix(".json").read_text() == expected[seed], f"experiment {seed} ended otherwise"
        seed += 1
    print(f"{done} kills, {seed} experiments ended, each as if it was never killed")


if __name__ == "__main__":
    main()
