"""Rows become batches: in chunks, alike in length, under a budget of tokens, dealt to the processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from baal_hf.arrays import NumpyArray

Lengths = Callable[[Any, int], NumpyArray | None]
"""(rows, number of the first) -> tokens of each row, int64 [N]; None where rows have no length."""

# Tokens of a batch. A processor is as fast as it gets with few; an accelerator is not busy with fewer.
_TOKENS_A_THREAD, _TOKENS_ON_ACCELERATOR = 1024, 2**16
_LENGTHS_AT_ONCE = 10_000


class Limits:
    """How many rows a batch of one process may have.

    Args:
        batch_size: Rows, where rows have no length.
        tokens: Tokens, padding included, where they have.
    """

    def __init__(self, batch_size: int, tokens: int) -> None:
        self.batch_size = batch_size
        self.tokens = tokens

    def rows(self, width: int | None) -> int:
        """Rows whose longest has `width` tokens."""
        return self.batch_size if width is None else max(1, self.tokens // max(1, width))

    def lower(self, turn: Turn, stack: int) -> None:
        """Go on with batches of half the size of one that was too large, under so many draws at once."""
        rows = len(turn.rows) * max(1, stack)
        self.batch_size = min(self.batch_size, max(1, rows // 2))
        if turn.width is not None:
            self.tokens = min(self.tokens, max(1, rows * turn.width // 2))


@dataclass(frozen=True)
class Source:
    """Where the rows of a chunk are found.

    Attributes:
        number: Of the chunk, from 0.
        rows: Positions of its rows in the whole.
        dataset: Holds them, position 0 being row `first_row`.
        first_row: As above.
        lengths: Tokens of each of the rows, int64 [n]; None where they have no length.
    """

    number: int
    rows: range
    dataset: Any
    first_row: int
    lengths: NumpyArray | None


@dataclass(frozen=True)
class Turn:
    """A batch of one process, while the others have theirs.

    Attributes:
        source: Where its rows are.
        rows: Their positions in the whole, int64 [b].
        width: Tokens of the longest; None where rows have no length.
        counts: False where there is nothing left to do for this process, and it repeats a row to keep in step.
        together: Rows of all processes.
        is_last: Whether the chunk ends here.
    """

    source: Source
    rows: NumpyArray
    width: int | None
    counts: bool
    together: int
    is_last: bool

    def pieces(self, limits: Limits) -> Iterator[Turn]:
        """The same rows in turns of as many as the limits allow when they are asked for."""
        start = 0
        while start < len(self.rows):
            rows = self.rows[start : start + limits.rows(self.width)]
            yield replace(self, rows=rows)
            start += len(rows)


def indexed(dataset: Any, lengths: NumpyArray | None, chunk_rows: int) -> list[Source]:
    """The chunks of a map-style dataset."""
    sources = []
    for number, start in enumerate(range(0, len(dataset), chunk_rows)):
        rows = range(start, min(start + chunk_rows, len(dataset)))
        here = None if lengths is None else lengths[rows.start : rows.stop]
        sources.append(Source(number, rows, dataset, 0, here))
    return sources


def streamed(stream: Any, lengths: Lengths, chunk_rows: int) -> Iterator[Source]:
    """The chunks of a stream, each read when it is asked for.

    Raises:
        ValueError: It has no rows.
    """
    rows, start = iter(stream), 0
    for number in count():
        taken = list(islice(rows, chunk_rows))
        if not taken and start == 0:
            raise ValueError("Predicting needs at least one row, got an empty stream.")
        if not taken:
            return
        yield Source(number, range(start, start + len(taken)), taken, start, lengths(taken, start))
        start += len(taken)


def turns(source: Source, limits: Limits, process: int, processes: int) -> Iterator[Turn]:
    """The batches of one process for a chunk of rows; each process has equally many, of rows equally long.

    The longest rows come first, so that memory runs out at once or not at all.
    """
    lengths, first = source.lengths, source.rows.start
    order = np.arange(len(source.rows)) if lengths is None else np.argsort(-lengths, kind="stable")
    ends = [len(order)] if lengths is None else cuts(lengths[order], limits.tokens * processes)
    start = 0
    while start < len(order):
        width = None if lengths is None else int(lengths[order[start]])
        end = min(start + limits.rows(width) * processes, next(end for end in ends if end > start))
        # Dealt by place in the chunk, so that a process that went on with smaller batches still has its own rows.
        mine = first + order[start + (process - start) % processes : end : processes]
        counts = len(mine) > 0
        rows = mine if counts else first + order[start : start + 1]
        yield Turn(source, rows, width, counts, end - start, end == len(order))
        start = end


def cuts(lengths: NumpyArray, tokens: int) -> list[int]:
    """Where to end batches of rows whose lengths fall, so that padding and the number of batches together cost least.

    A batch that begins at row i and has m rows costs m times length i, all its tokens with padding, which are at most
    `tokens`, and a sixteenth of `tokens` for its own sake. The least of the sums is found exactly, row by row.

    Args:
        lengths: Of each row, the longest first, int64 [n].
        tokens: Of a batch at most, unless a single row has more.

    Returns:
        The end of each batch, the last being n.

    >>> cuts(np.array([100, 100, 10, 10, 10]), 1000)
    [2, 5]
    """
    n = len(lengths)
    costs = np.full(n + 1, np.inf)  # of the rows before each place
    costs[0] = 0
    begins = np.zeros(n + 1, dtype=np.int64)  # of the batch that ends there
    for row, width in enumerate(np.maximum(lengths, 1).tolist()):
        rows = np.arange(1, min(n - row, max(1, tokens // width)) + 1)
        ahead = costs[row] + tokens / 16 + width * rows
        better = ahead < costs[row + 1 : row + 1 + len(rows)]
        costs[row + 1 : row + 1 + len(rows)][better] = ahead[better]
        begins[row + 1 : row + 1 + len(rows)][better] = row
    ends = [n]
    while begins[ends[-1]] > 0:
        ends.append(int(begins[ends[-1]]))
    return ends[::-1]


def loaded(dataset: Any, planned: Iterator[Turn], first_row: int, **loader: Any) -> Iterator[tuple[Turn, Any]]:
    """Each turn with its batch.

    Args:
        dataset: Map-style; its position 0 is row `first_row`.
        planned: The turns; they are asked for as the loader gets to them.
        first_row: As above.
        **loader: For the DataLoader.
    """
    waiting: deque[Turn] = deque()

    def positions() -> Iterator[list[int]]:
        for turn in planned:
            waiting.append(turn)
            yield (turn.rows - first_row).tolist()

    # The loader is the engine's own: no sampler, cache or setting of another can drop, repeat or move a row.
    for batch in DataLoader(dataset, batch_sampler=positions(), **loader):
        yield waiting.popleft(), batch


def token_lengths(dataset: Any, column: str = "input_ids") -> NumpyArray | None:
    """Tokens of each row, int64 [N], from a column of lists; None where it cannot be known without making the rows.

    Args:
        dataset: A `datasets.Dataset`, of which only the lengths are read, or a list of rows.
        column: Holds the tokens.
    """
    if isinstance(dataset, list):
        return _lengths_of_rows(dataset, column)
    feature = dataset.features.get(column) if isinstance(dataset, datasets.Dataset) else None
    is_list = isinstance(feature, datasets.List | datasets.LargeList) and isinstance(feature.feature, datasets.Value)
    if not is_list or dataset.format["type"] == "custom":
        return None
    import pyarrow.compute as pc

    parts = dataset.select_columns([column]).with_format("arrow").iter(_LENGTHS_AT_ONCE)
    lengths = [pc.fill_null(pc.list_value_length(part.column(column)), 0).to_numpy() for part in parts]
    return np.concatenate(lengths).astype(np.int64) if lengths else np.zeros(0, dtype=np.int64)


def _lengths_of_rows(rows: Sequence[Any], column: str) -> NumpyArray | None:
    try:
        if any(len(row[column]) and np.ndim(row[column][0]) for row in rows):
            return None  # of several sequences, such as the choices of a question
        return np.array([len(row[column]) for row in rows], dtype=np.int64)
    except (TypeError, KeyError, IndexError):
        return None


def token_budget(model: nn.Module, device: torch.device, draws: int) -> int:
    """Tokens of a batch that keep the device busy and fit in a quarter of its free memory, by a rough estimate.

    A token needs some 16 numbers for each output of the model's widest layer, and where it is given logits over a
    vocabulary, these for each draw.
    """
    if device.type == "cpu":
        tokens, free = _TOKENS_A_THREAD * torch.get_num_threads(), 2**31
    else:
        tokens = _TOKENS_ON_ACCELERATOR
        free = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**31
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    numbers = 16 * max(widths, default=1) + 2 * draws * vocabulary(model)
    return max(1, min(tokens, free // (4 * numbers)))


def vocabulary(model: nn.Module) -> int:
    """For how many words the model gives each token a logit; 0 for models that do not predict words."""
    words = getattr(model, "get_output_embeddings", lambda: None)()
    return len(words.weight) if words is not None else 0
