"""The unlabelled rows beside the labelled ones of a training loop: what is asked for, and their batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.semisupervised.batches import EndlessBatches


def check_unlabelled_part(asking: str, dataset: Any, weight: float, ratio: float, ramp_up_steps: int) -> None:
    """Refuse what cannot be trained on.

    Args:
        asking: Name of the class that was given the others.
        dataset: Unlabelled rows.
        weight: λ, of their loss.
        ratio: Share of a step's rows that are unlabelled.
        ramp_up_steps: Steps until the weight is λ.

    Raises:
        ValueError: There are no unlabelled rows, `ratio` is not in (0, 1), a negative weight or number of steps.
        TypeError: Nobody knows how many unlabelled rows there are.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"{asking} needs a ratio, the share of unlabelled rows, in (0, 1): {ratio}.")
    if not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"{asking} needs unlabelled_weight >= 0, got {weight}.")
    if ramp_up_steps < 0:
        raise ValueError(f"{asking} needs ramp_up_steps >= 0, got {ramp_up_steps}.")
    unlabelled_rows(asking, dataset)


def unlabelled_rows(asking: str, dataset: Any) -> Any:
    """The rows to learn from without labels; of an `ActiveLearningDataset` its pool of the moment.

    Raises:
        ValueError: There are none.
        TypeError: Nobody knows how many there are.
    """
    rows = dataset.pool if isinstance(dataset, ActiveLearningDataset) else dataset
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise TypeError(f"{asking} reads unlabelled rows in any order, which {type(rows).__name__} has not.")
    if len(rows) == 0:
        raise ValueError(f"{asking} needs unlabelled rows, there are none: train without it.")
    return rows


def unlabelled_batches(
    rows: Any,
    labelled: int,
    ratio: float,
    seed: int,
    first: int,
    accelerator: Accelerator,
    collate_fn: Callable[[list[Any]], Any] | None,
    workers: int,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Batches without end, pass after pass, other ones on each process.

    Args:
        rows: To read.
        labelled: Rows of a labelled batch.
        ratio: Share of a step's rows that are unlabelled, in (0, 1); there is at least one.
        seed: Names the orders.
        first: Batches to leave out at the start.
        accelerator: Knows the processes.
        collate_fn: Makes a batch of rows.
        workers: Processes that read rows.
        pin_memory: As for `DataLoader`.
    """
    batch_size = max(1, round(labelled * ratio / (1 - ratio)))
    processes, process = accelerator.num_processes, accelerator.process_index
    worker_seed = np.random.SeedSequence((seed, first, process)).generate_state(1)[0]
    return DataLoader(
        rows,
        batch_sampler=EndlessBatches(len(rows), batch_size, seed, first, processes, process),
        collate_fn=collate_fn,
        num_workers=workers,
        pin_memory=pin_memory,
        # Its own: the global one is what dropout is drawn from. Worker processes take their seeds from it.
        generator=torch.Generator().manual_seed(int(worker_seed)),
    )
