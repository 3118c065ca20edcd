"""The engine: a model, the rows of a dataset and T posterior draws become predictions, each row once and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather, pad_across_processes, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from baal_hf.posterior import Posterior

Forward = Callable[[nn.Module, Any], Tensor]
"""One pass: (model, batch) -> predictions [B, C, *S], probabilities or regressed values."""

# Batches for which the weights of a draw are put in place once.
_BATCHES_A_SWAP = 16


def sample_predictions(
    model: nn.Module,
    dataset: Any,
    posterior: Posterior,
    iterations: int,
    forward: Forward,
    accelerator: Accelerator,
    *,
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Predictions under T draws of the posterior, batch after batch in the order of the dataset.

    The loader is the engine's own: no sampler, cache or setting of another loader can drop, repeat or move a row.
    Batches are dealt to the processes of `accelerator` in turn; every process is given all predictions.

    Args:
        model: The network, not wrapped for data parallelism.
        dataset: Has a length and rows; no row needs a label.
        posterior: What makes the t-th network.
        iterations: Number of draws, T.
        forward: Runs the network on a batch.
        accelerator: Device, mixed precision and processes.
        batch_size: Rows of a batch on one process, B.
        collate_fn: Makes a batch of rows.
        num_workers: Worker processes that load rows.

    Returns:
        An iterator of float32 on the CPU, [rows, C, *S, T], with at most B rows for each process. Padding, where
        `attention_mask` of the batch is 0, is NaN.

    Raises:
        ValueError: T < 1 or beyond the posterior's size, an empty dataset, non-finite predictions (with their rows).
        TypeError: The dataset has no length, or `iterations` is no whole number.
        RuntimeError: Not each row came back once and in order.
    """
    _check_request(dataset, posterior, iterations, batch_size)
    batches = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    mine = _turns(batches, accelerator.num_processes, accelerator.process_index)
    loader = DataLoader(
        dataset,
        batch_sampler=[list(rows) for rows, _ in mine],
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )

    def passed(network: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), accelerator.autocast():  # inference mode would spoil what a model caches for training
            return forward(network, send_to_device(batch, accelerator.device))

    def rounds() -> Iterator[tuple[Tensor, Any, range, bool]]:
        turns = zip(loader, mine, strict=True)
        while chunk := list(islice(turns, _BATCHES_A_SWAP if posterior.swaps_weights else 1)):
            predictions = _draws(model, [batch for batch, _ in chunk], posterior, iterations, passed)
            for predicted, (batch, (rows, is_turn)) in zip(predictions, chunk, strict=True):
                yield predicted, batch, rows, is_turn

    return _in_order(rounds(), len(dataset), accelerator)


def _in_order(
    rounds: Iterator[tuple[Tensor, Any, range, bool]], size: int, accelerator: Accelerator
) -> Iterator[Tensor]:
    """The predictions of all processes, round after round, once it is sure that they are those of the next rows."""
    seen = 0
    for predictions, batch, rows, is_turn in rounds:
        if len(predictions) != len(rows):
            raise ValueError(f"The model returned {len(predictions)} outputs for a batch of {len(rows)} rows.")
        hidden = _padding(batch, predictions)
        finite = (predictions.isfinite() | hidden).flatten(1).all(1)  # [B]
        row_ids = torch.tensor(rows if is_turn else [-1] * len(rows), device=accelerator.device)  # [B]
        predictions = predictions.float().masked_fill(hidden, torch.nan)
        row_ids, finite, predictions = _gathered(row_ids, finite, predictions, accelerator)
        if not finite.all():
            raise ValueError(
                f"The model's outputs are NaN or infinite for rows {row_ids[~finite].tolist()[:10]} of the dataset "
                "passed. Look at their inputs, at a training that diverged, or at half precision that overflows."
            )
        if row_ids.tolist() != list(range(seen, seen + len(row_ids))):
            raise RuntimeError(f"Rows came back as {row_ids.tolist()}, expected them to go on from {seen}.")
        seen += len(row_ids)
        yield predictions
    if seen != size:
        raise RuntimeError(f"Predictions came back for {seen} of {size} rows.")


def concatenated(batches: Iterator[Tensor], rows: int) -> np.ndarray:
    """One array of all batches, [N, C, *S, T]; shorter *S are padded with NaN. Batches are freed as they are copied."""
    parts = [batch.numpy() for batch in batches]
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    whole = np.empty((rows, *shape), dtype=parts[0].dtype)
    end = rows
    while parts:
        part = parts.pop()
        target = whole[end - len(part) : end]
        if part.shape[1:] != tuple(shape):
            target[...] = np.nan
        target[tuple(slice(size) for size in part.shape)] = part
        end -= len(part)
    return whole


def _check_request(dataset: Any, posterior: Posterior, iterations: Any, batch_size: int) -> None:
    if isinstance(dataset, IterableDataset | Mapping) or not hasattr(dataset, "__len__"):
        raise TypeError(f"Predicting needs a dataset with a length and rows, got {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise ValueError("Predicting needs at least one row, got an empty dataset.")
    if not isinstance(iterations, int | np.integer):
        raise TypeError(f"Predicting needs a whole number of iterations, got {iterations!r}.")
    if iterations < 1:
        raise ValueError(f"Predicting needs iterations >= 1, got {iterations}.")
    if posterior.size is not None and iterations > posterior.size:
        raise ValueError(f"{type(posterior).__name__} has {posterior.size} draws, got iterations={iterations}.")
    if batch_size < 1:
        raise ValueError(f"Predicting needs batch_size >= 1, got {batch_size}.")


def _turns(batches: list[range], processes: int, process: int) -> list[tuple[range, bool]]:
    """The batches of one process, and whether it is its turn; in the last round some repeat the last batch, unused."""
    rounds = -(-len(batches) // processes)
    indices = [turn * processes + process for turn in range(rounds)]
    return [(batches[min(index, len(batches) - 1)], index < len(batches)) for index in indices]


def _draws(
    model: nn.Module, batches: list[Any], posterior: Posterior, iterations: int, forward: Forward
) -> list[Tensor]:
    """Predictions for each of the batches, whose draws are opened once for all of them."""
    passes: list[list[Tensor]] = [[] for _ in batches]
    for t in range(iterations):
        with posterior.draw(model, t):
            for batch, drawn in zip(batches, passes, strict=True):
                drawn.append(forward(model, batch))  # [B, C, *S]
    return [torch.stack(drawn, dim=-1) for drawn in passes]  # [B, C, *S, T] each


def _padding(batch: Any, predictions: Tensor) -> Tensor:
    """Where predictions [B, C, S, T] belong to padding, as `attention_mask` [B, S] says; nowhere for other shapes."""
    mask: Tensor | None = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or predictions.ndim != 4 or mask.shape != (predictions.shape[0], predictions.shape[2]):
        return torch.zeros((), dtype=torch.bool, device=predictions.device)
    return mask[:, None, :, None].to(predictions.device) == 0  # [B, 1, S, 1]


def _gathered(
    row_ids: Tensor, finite: Tensor, predictions: Tensor, accelerator: Accelerator
) -> tuple[Tensor, Tensor, Tensor]:
    """What all processes have, on the CPU, in row order; rows called -1 are left out."""
    if accelerator.num_processes > 1:
        for axis in range(predictions.ndim):
            predictions = pad_across_processes(predictions, dim=axis, pad_index=torch.nan)
        row_ids = gather(pad_across_processes(row_ids, dim=0, pad_index=-1))
        finite = gather(pad_across_processes(finite.int(), dim=0, pad_index=1)).bool()
        predictions = gather(predictions.contiguous())
    row_ids, finite, predictions = row_ids.cpu(), finite.cpu(), predictions.cpu()
    wanted = row_ids >= 0
    return (row_ids, finite, predictions) if wanted.all() else (row_ids[wanted], finite[wanted], predictions[wanted])
