"""The engine: a model, the rows of a dataset and T posterior draws become predictions, each row once and in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather, pad_across_processes
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from baal_hf.arrays import NumpyArray
from baal_hf.posterior import Posterior
from baal_hf.sampling.batches import (
    Lengths,
    Limits,
    Turn,
    indexed,
    loaded,
    streamed,
    token_budget,
    turns,
    vocabulary,
)
from baal_hf.sampling.joining import joined
from baal_hf.sampling.passes import Forward, Passes, is_sharded, keep_freed_memory

logger = logging.getLogger(__name__)

Value = Callable[[Tensor, NumpyArray], Tensor]
"""What is kept of a batch: (predictions [b, C, *S, T] on the device, positions of the rows [b]) -> [b, ...]."""

Progress = Callable[[int | None, int], AbstractContextManager[Callable[[int], None]]]
"""(rows or None, draws) -> a context to do them in, whose value is told of rows that are done."""

_CHUNK_ROWS = 2048  # rows that are grouped by length together, and come back together
_STORED_BATCHES = 64  # of rows without a length, in a chunk of a store
_SWAPPED_BATCHES = 8  # of such rows, in a chunk where opening a draw costs as much as running a batch
_NAMED = 10  # rows that an error names


@dataclass(frozen=True)
class Chunk:
    """What was kept of consecutive rows.

    Attributes:
        number: Of the chunk, from 0.
        rows: Their positions in the dataset.
        values: float32 on the CPU, [n, ...], in the order of the rows, the same on every process.
    """

    number: int
    rows: range
    values: Tensor


class Sampler:
    """Runs a model over the rows of any dataset, under draws of a posterior, on one process or many.

    Rows are taken in chunks. Those of a chunk are grouped by length, dealt to the processes of `accelerator`, and put
    back in order; every process is given all of them. Memory is bounded by a chunk of what is kept.

    Args:
        model: The network, not wrapped for data parallelism.
        posterior: What makes the t-th network.
        forward: Runs the network on a batch.
        accelerator: Device, mixed precision and processes.
        batch_size: Rows of a batch on one process where rows have no length.
        max_tokens: Tokens of a batch on one process, padding included, where rows have; None chooses by the device.
        lengths: Finds the tokens of rows; None if rows have no length.
        collate_fn: Makes a batch of rows.
        num_workers: Worker processes that load the rows of a map-style dataset.
        shares: Whether draws of a batch may share work; it changes no result.
        progress: Shows how far a run is.

    Raises:
        ValueError: `batch_size` or `max_tokens` < 1.
    """

    def __init__(
        self,
        model: nn.Module,
        posterior: Posterior,
        forward: Forward,
        accelerator: Accelerator,
        *,
        batch_size: int,
        max_tokens: int | None = None,
        lengths: Lengths | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        shares: bool = True,
        progress: Progress | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Predicting needs batch_size >= 1, got {batch_size}.")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"Predicting needs max_tokens >= 1, got {max_tokens}.")
        self._model = model
        self._posterior = posterior
        self._accelerator = accelerator
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self._lengths = lengths or (lambda rows, first_row: None)
        self._workers = num_workers
        self._loader = {
            "collate_fn": collate_fn,
            "pin_memory": accelerator.device.type == "cuda",
            "generator": torch.Generator(),  # a loader draws a seed for its workers, else from the global one
        }
        self._passes = Passes(model, posterior, forward, accelerator, shares)
        self._progress: Progress = progress or (lambda rows, draws: nullcontext(lambda more: None))

    def predictions(self, dataset: Any, iterations: int) -> Iterator[Tensor]:
        """Predictions of consecutive rows, float32 [n, C, *S, T] on the CPU; padding is NaN. As `chunks`."""
        check_iterations(iterations, self._posterior)
        return (chunk.values for chunk in self.chunks(dataset, range(iterations)))

    def chunks(
        self,
        dataset: Any,
        draws: Sequence[int],
        value: Value | None = None,
        chunk_rows: int | None = None,
        only: Container[int] | None = None,
    ) -> Iterator[Chunk]:
        """What is kept of each chunk, in the order of the dataset.

        Args:
            dataset: Has a length and rows, or is a stream of rows; no row needs a label.
            draws: Numbers of the draws, T of them.
            value: What is kept of a batch's predictions; None keeps them. Padding, where `attention_mask` of the batch
                is 0, is NaN in them.
            chunk_rows: Rows of a chunk. By default 2,048, but a batch of all processes where rows have no length (eight
                of them where draws swap weights), or where logits over a vocabulary are kept, or held for the draws of
                a posterior that swaps weights.
            only: Numbers of the chunks to do; None does all.

        Returns:
            An iterator of chunks.

        Raises:
            ValueError: An empty dataset, non-finite predictions (with their rows), a model that returns another number
                of rows.
            TypeError: The dataset has neither rows nor an order.
            RuntimeError: Not each row came back once, or a single row does not fit in memory.
        """
        if isinstance(dataset, Mapping) or not (hasattr(dataset, "__len__") or hasattr(dataset, "__iter__")):
            raise TypeError(f"Predicting needs a dataset of rows, got {type(dataset).__name__}.")
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise ValueError("Predicting needs at least one row, got an empty dataset.")
        if chunk_rows is None and (value is None or self._posterior.swaps_weights) and vocabulary(self._model):
            chunk_rows = self._batch_size * self._accelerator.num_processes
        return self._chunks(dataset, draws, value or (lambda predictions, rows: predictions), chunk_rows, only)

    def store_rows(self, dataset: Any, value: Value | None = None) -> int:
        """Rows of a chunk that a store is to have, on any number of processes."""
        if (value is None or self._posterior.swaps_weights) and vocabulary(self._model):
            return self._batch_size
        return _CHUNK_ROWS if self._lengths(dataset, 0) is not None else _STORED_BATCHES * self._batch_size

    def _token_budget(self, draws: int) -> int:
        """The tokens of a batch that every process has memory for."""
        device = self._accelerator.device
        tokens = torch.tensor([token_budget(self._model, device, draws)], device=device)
        return int(gather(tokens).min()) if self._accelerator.num_processes > 1 else int(tokens)

    def _chunks(
        self, dataset: Any, draws: Sequence[int], value: Value, chunk_rows: int | None, only: Container[int] | None
    ) -> Iterator[Chunk]:
        tokens = self._max_tokens or self._token_budget(len(draws))
        limits = Limits(self._batch_size, tokens)
        keep_freed_memory()
        rows, batches = self._batches(dataset, limits, chunk_rows, only)
        started, done = time.perf_counter(), 0
        parts: list[tuple[NumpyArray, Tensor]] = []
        broken: list[int] = []
        waiting: list[tuple[Turn, Any]] = []
        with self._progress(rows, len(draws)) as advance:
            for turn, batch in batches:
                waiting.append((turn, batch))
                if turn.is_last or not self._posterior.swaps_weights:  # else a draw is opened once for the whole chunk
                    parts += self._values(waiting, draws, value, limits, broken)
                    waiting = []
                done += turn.together
                advance(turn.together)
                if turn.is_last:
                    _refuse_broken(broken, self._accelerator)
                    yield Chunk(turn.source.number, turn.source.rows, self._in_order(parts, turn.source.rows))
                    parts = []
        seconds = time.perf_counter() - started
        logger.debug(
            "%d rows under %d draws in %.1f s: %.0f rows and %.0f row draws a second; passes of this process: %s.",
            *(done, len(draws), seconds, done / seconds, done * len(draws) / seconds),
            ", ".join(f"{count} {kind}" for kind, count in self._passes.counts.items()),
        )

    def _batches(
        self, dataset: Any, limits: Limits, chunk_rows: int | None, only: Container[int] | None
    ) -> tuple[int | None, Iterator[tuple[Turn, Any]]]:
        """How many rows there are, if that is known, and the batches of this process."""
        share = (self._accelerator.process_index, self._accelerator.num_processes)
        if not hasattr(dataset, "__len__") or isinstance(dataset, IterableDataset):
            sources = streamed(dataset, self._lengths, chunk_rows or _CHUNK_ROWS)
            return None, (
                loaded_turn
                for source in sources
                for loaded_turn in loaded(
                    source.dataset, turns(source, limits, *share), source.first_row, **self._loader
                )
            )
        lengths = self._lengths(dataset, 0)
        together = _SWAPPED_BATCHES if self._posterior.swaps_weights else 1
        size = chunk_rows or (_CHUNK_ROWS if lengths is not None else together * self._batch_size * share[1])
        chosen = [source for source in indexed(dataset, lengths, size) if only is None or source.number in only]
        planned = (turn for source in chosen for turn in turns(source, limits, *share))
        batches = loaded(dataset, planned, first_row=0, num_workers=self._workers, **self._loader)
        return sum(len(source.rows) for source in chosen), batches

    def _values(
        self, waiting: list[tuple[Turn, Any]], draws: Sequence[int], value: Value, limits: Limits, broken: list[int]
    ) -> list[tuple[NumpyArray, Tensor]]:
        """What is kept of these batches, with the positions of the rows, -1 for those that do not count."""
        kept = []
        for turn, batch, predictions in self._predicted(waiting, draws, limits):
            if len(predictions) != len(turn.rows):
                raise ValueError(f"The model returned {len(predictions)} outputs for a batch of {len(turn.rows)} rows.")
            hidden = _padding(batch, predictions)
            predictions, hidden = _from_the_first(predictions, hidden)
            finite = (predictions.isfinite() | hidden).flatten(1).all(1).cpu().numpy()  # [b]
            if finite.all():
                values = value(predictions.float().masked_fill(hidden, torch.nan), turn.rows)  # [b, ...]
                kept.append((turn.rows if turn.counts else np.full(len(turn.rows), -1), values.cpu()))
            broken += turn.rows[~finite].tolist()
        return kept

    def _predicted(
        self, waiting: list[tuple[Turn, Any]], draws: Sequence[int], limits: Limits
    ) -> Iterator[tuple[Turn, Any, Tensor]]:
        """Predictions of these batches, [b, C, *S, T]; of smaller ones where memory runs out."""
        stack = min(limits.rows(turn.width) // len(turn.rows) for turn, _ in waiting)
        try:
            predictions = self._passes([batch for _, batch in waiting], draws, stack)
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or is_sharded(self._model):
                raise
            largest = max(len(turn.rows) for turn, _ in waiting)
            if largest == 1 and stack <= 1:
                row = waiting[0][0].rows[0]
                raise RuntimeError(f"Memory is too small for a single row, row {row}: {error}") from error
            logger.warning("Out of memory with a batch of %d rows: going on with half as many.", largest)
        else:
            for (turn, batch), predicted in zip(waiting, predictions, strict=True):
                yield turn, batch, predicted
            return
        # Here the error is gone, and with it the tensors of the pass that failed.
        limits.lower(max((turn for turn, _ in waiting), key=lambda turn: len(turn.rows) * (turn.width or 1)), stack)
        again = [turn for turn, _ in waiting]
        waiting.clear()
        clear_device_cache(garbage_collection=True)
        for turn in again:
            for piece in turn.pieces(limits):
                batch = loaded(piece.source.dataset, iter([piece]), piece.source.first_row, **self._loader)
                yield from self._predicted(list(batch), draws, limits)

    def _in_order(self, parts: list[tuple[NumpyArray, Tensor]], rows: range) -> Tensor:
        """The values of a chunk in the order of its rows, once all processes have given theirs.

        Raises:
            RuntimeError: Not each row came back once.
        """
        ids = torch.from_numpy(np.concatenate([ids for ids, _ in parts]))  # [n]
        values = joined([values for _, values in parts])  # [n, ...]
        if self._accelerator.num_processes > 1:
            ids, values = ids.to(self._accelerator.device), values.to(self._accelerator.device)
            for axis in range(values.ndim):
                values = pad_across_processes(values, dim=axis, pad_index=torch.nan)
            ids = gather(pad_across_processes(ids, dim=0, pad_index=-1)).cpu()
            values = gather(values.contiguous()).cpu()
        places = ids.argsort(stable=True)[(ids < 0).sum() :]  # [n]
        if ids[places].tolist() != list(rows):
            raise RuntimeError(f"Of rows {rows.start} to {rows.stop - 1}, {ids[places].tolist()} came back.")
        return values[places]


def check_iterations(iterations: Any, posterior: Posterior) -> None:
    """Raise unless the posterior has that many draws.

    Raises:
        ValueError: T < 1 or beyond the posterior's size.
        TypeError: `iterations` is no whole number.
    """
    if not isinstance(iterations, int | np.integer):
        raise TypeError(f"Predicting needs a whole number of iterations, got {iterations!r}.")
    if iterations < 1:
        raise ValueError(f"Predicting needs iterations >= 1, got {iterations}.")
    if posterior.size is not None and iterations > posterior.size:
        raise ValueError(f"{type(posterior).__name__} has {posterior.size} draws, got iterations={iterations}.")


def check_length(dataset: Any, who: str) -> None:
    """Raise unless the dataset has rows whose number is known.

    Raises:
        ValueError: It is empty.
        TypeError: It is a stream.
    """
    if not hasattr(dataset, "__len__") or isinstance(dataset, IterableDataset):
        raise TypeError(f"{who} needs a dataset with a length, got {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise ValueError(f"{who} needs at least one row, got an empty dataset.")


def _padding(batch: Any, predictions: Tensor) -> Tensor:
    """Where predictions [B, C, S, T] belong to padding, as `attention_mask` [B, S] says; nowhere for other shapes."""
    given = batch if isinstance(batch, Mapping) else {}
    # Where there is a decoder, it is its positions that are predicted.
    mask: Tensor | None = given.get("decoder_attention_mask" if "decoder_input_ids" in given else "attention_mask")
    if mask is None or predictions.ndim != 4 or mask.shape != (predictions.shape[0], predictions.shape[2]):
        return torch.zeros((), dtype=torch.bool, device=predictions.device)
    return mask[:, None, :, None].to(predictions.device) == 0  # [B, 1, S, 1]


def _from_the_first(predictions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions [B, C, S, T] and padding [B, 1, S, 1], with padding before a row moved behind it.

    Where a row begins would else depend on the batch that it is in.
    """
    if hidden.ndim == 0 or not bool(hidden[:, 0, 0].any()):
        return predictions, hidden
    S = hidden.shape[2]
    before = hidden.long().cumprod(2).sum(2, keepdim=True)  # [B, 1, 1, 1], positions
    places = (torch.arange(S, device=hidden.device)[None, None, :, None] + before) % S  # [B, 1, S, 1]
    return predictions.gather(2, places.expand_as(predictions)), hidden.gather(2, places)


def _refuse_broken(broken: list[int], accelerator: Accelerator) -> None:
    """Raise on every process if predictions of rows of any process are not finite."""
    rows = torch.full((_NAMED,), -1, device=accelerator.device)
    rows[: len(broken)] = torch.tensor(broken[:_NAMED], dtype=rows.dtype, device=rows.device)
    if accelerator.num_processes > 1:
        rows = gather(rows)
    named = sorted({row for row in rows.tolist() if row >= 0})
    if named:
        raise ValueError(
            f"The model's outputs are NaN or infinite for rows {named[:_NAMED]} of the dataset passed. Look at their "
            "inputs, at a training that diverged, or at half precision that overflows."
        )
