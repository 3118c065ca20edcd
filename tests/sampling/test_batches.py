"""Rows become batches: each row once, alike in length, within the budget, whatever the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from baal_hf.sampling.batches import (
    Limits,
    Turn,
    cuts,
    indexed,
    loaded,
    streamed,
    token_budget,
    token_lengths,
    turns,
)

# Left to itself, hypothesis makes lists of six or so.
row_lengths = st.integers(1, 60).flatmap(lambda size: st.lists(st.integers(0, 40), min_size=size, max_size=size))


def all_turns(
    lengths: list[int] | None, size: int, chunk_rows: int, batch_size: int, tokens: int, processes: int
) -> list[list[Turn]]:
    """The turns of each process over all chunks."""
    known = None if lengths is None else np.array(lengths)
    sources = indexed(range(size), known, chunk_rows)
    return [
        [turn for source in sources for turn in turns(source, Limits(batch_size, tokens), process, processes)]
        for process in range(processes)
    ]


@given(
    lengths=row_lengths,
    has_lengths=st.booleans(),
    chunk_rows=st.integers(1, 70),
    batch_size=st.integers(1, 9),
    tokens=st.integers(1, 600),
    processes=st.integers(1, 5),
)
@settings(max_examples=200, deadline=None)
def test_each_row_once_in_step(
    lengths: list[int], has_lengths: bool, chunk_rows: int, batch_size: int, tokens: int, processes: int
) -> None:
    """Each row is one process's once, and all processes have equally many turns, as wide and with the same ends."""
    known = lengths if has_lengths else None
    each = all_turns(known, len(lengths), chunk_rows, batch_size, tokens, processes)
    counted = [row for own in each for turn in own if turn.counts for row in turn.rows.tolist()]
    assert sorted(counted) == list(range(len(lengths)))
    for same in zip(*each, strict=True):
        assert len({(turn.source.number, turn.width, turn.together, turn.is_last) for turn in same}) == 1
        assert sum(len(turn.rows) for turn in same if turn.counts) == same[0].together
        assert all(len(turn.rows) == 1 for turn in same if not turn.counts)
        assert all(row in turn.source.rows for turn in same for row in turn.rows)
    numbers = [turn.source.number for turn in each[0] if turn.is_last]
    assert numbers == list(range(-(-len(lengths) // chunk_rows)))


@given(lengths=row_lengths, tokens=st.integers(1, 600), processes=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_the_budget_holds(lengths: list[int], tokens: int, processes: int) -> None:
    """A batch has at most the budget of tokens, padding included, unless it is a single row; the longest come first."""
    for own in all_turns(lengths, len(lengths), len(lengths), 4, tokens, processes):
        for turn in own:
            longest = max(lengths[row] for row in turn.rows)
            assert turn.width is not None and longest <= turn.width
            assert len(turn.rows) * longest <= tokens or len(turn.rows) == 1
        widths = [turn.width for turn in own]
        assert widths == sorted(widths, reverse=True)
        assert widths[0] == max(lengths)


@given(size=st.integers(1, 40), batch_size=st.integers(1, 9), processes=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_batches_without_lengths(size: int, batch_size: int, processes: int) -> None:
    """Rows without length make batches of the batch size, and keep their order on one process."""
    each = all_turns(None, size, size, batch_size, 1, processes)
    assert all(len(turn.rows) <= batch_size for own in each for turn in own)
    assert len(each[0]) == -(-size // (batch_size * processes))
    if processes == 1:
        assert np.concatenate([turn.rows for turn in each[0]]).tolist() == list(range(size))


def test_limits_that_fall_on_one_process_lose_no_row() -> None:
    """A process that ran out of memory goes on with smaller batches while the others do not: each row is still once."""
    source = indexed(range(30), np.arange(30, 0, -1), 30)[0]
    each = [turns(source, Limits(4, 64), 0, 2), turns(source, Limits(4, 32), 1, 2)]
    counted = [row for own in each for turn in own if turn.counts for row in turn.rows.tolist()]
    assert sorted(counted) == list(range(30))


def cost(lengths: list[int], ends: tuple[int, ...], tokens: int) -> float:
    """Of batches that end there, as `cuts` says; infinite where one has too many tokens."""
    total, start = 0.0, 0
    for end in ends:
        padded = max(1, lengths[start]) * (end - start)
        total += padded + tokens / 16 if padded <= tokens or end - start == 1 else np.inf
        start = end
    return total


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=9), tokens=st.integers(1, 120))
@settings(max_examples=200, deadline=None)
def test_cuts_cost_least(lengths: list[int], tokens: int) -> None:
    """No other way to cut rows into batches costs less."""
    falling, n = sorted(lengths, reverse=True), len(lengths)
    ends = cuts(np.array(falling), tokens)
    assert ends == sorted(set(ends)) and ends[-1] == n and ends[0] > 0
    others = [(*inner, n) for size in range(n) for inner in combinations(range(1, n), size)]
    best = min(cost(falling, other, tokens) for other in others)
    assert cost(falling, tuple(ends), tokens) == pytest.approx(best)


def test_pieces_and_limits() -> None:
    """A turn's pieces are its rows, as many as limits allow at the time; limits never fall below one row."""
    turn = next(turns(indexed(range(5), None, 5)[0], Limits(5, 1), 0, 1))
    pieces, falling = [], Limits(3, 20)
    for piece in turn.pieces(falling):
        pieces.append(piece.rows.tolist())
        falling.lower(piece, stack=1)
    assert pieces == [[0, 1, 2], [3], [4]]
    limits = Limits(3, 20)
    assert (limits.rows(None), limits.rows(6), limits.rows(0), limits.rows(99)) == (3, 3, 20, 1)
    limits.lower(turn, stack=1)
    assert (limits.rows(None), limits.rows(6)) == (2, 3)
    limits.lower(turn, stack=1)
    assert (limits.rows(None), limits.rows(6)) == (2, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_turns_stay_with_their_batches(workers: int) -> None:
    """Each turn comes with the batch of its rows, with loader processes, too, and rows may begin anywhere."""
    source = indexed(range(100, 120), np.arange(20) % 7, 20)[0]
    planned = turns(source, Limits(4, 10), 0, 1)
    for turn, batch in loaded(source.dataset, planned, 0, num_workers=workers):
        assert batch.tolist() == (turn.rows + 100).tolist()
    for part in streamed(iter(range(100, 120)), lambda rows, first_row: None, 7):
        for turn, batch in loaded(part.dataset, turns(part, Limits(4, 10), 0, 1), part.first_row):
            assert batch.tolist() == (turn.rows + 100).tolist()


def test_a_stream_is_read_when_it_is_asked_for() -> None:
    """Of a stream no more than the chunk that is asked for is read."""
    read = []

    def stream() -> Iterator[int]:
        for row in range(10):
            read.append(row)
            yield row

    sources = streamed(stream(), lambda rows, first_row: np.array(rows), 4)
    first = next(sources)
    assert read == [0, 1, 2, 3] and first.rows == range(4)
    assert first.lengths is not None and first.lengths.tolist() == read
    assert [source.rows for source in sources] == [range(4, 8), range(8, 10)]


def joined(dataset: Dataset) -> Dataset:
    """A dataset whose table is in several pieces."""
    return datasets.concatenate_datasets([dataset.select(range(9)), dataset.select(range(5, 20))])


# Ways in which a dataset's rows are a part of its table.
VIEWS: dict[str, Callable[[Dataset], Dataset]] = {
    "whole": lambda rows: rows,
    "slice": lambda rows: rows.select(range(4, 15)),
    "selection": lambda rows: rows.select([7, 3, 3, 20]),
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "filtered": lambda rows: rows.filter(lambda row: row["label"] != 1),
    "pieces": joined,
    "part of pieces": lambda rows: joined(rows).select(range(7, 12)),
    "shard": lambda rows: rows.shard(3, 1),
    "torch": lambda rows: rows.with_format("torch"),
    "some columns": lambda rows: rows.with_format("numpy", columns=["label"]),
    "none": lambda rows: rows.select([]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_lengths_of_views(rows: Dataset, name: str) -> None:
    """The lengths of any view are those of its rows, in its order."""
    view = VIEWS[name](rows)
    expected = [len(ids) for ids in view.with_format(None)["input_ids"]]
    lengths = token_lengths(view)
    assert lengths is not None and lengths.dtype == np.int64
    assert lengths.tolist() == expected


@pytest.mark.parametrize("feature", [List(Value("int32")), LargeList(Value("int64")), List(Value("int64"), length=2)])
def test_lengths_of_kinds_of_lists(feature: Any) -> None:
    """Lists of any kind have lengths, a list that is null none, and slices are not mistaken for their tables."""
    values = [[1, 2], [3, 4], None, [5, 6]]
    dataset = Dataset.from_dict({"input_ids": values}, features=Features(input_ids=feature))
    lengths = token_lengths(dataset)
    part = token_lengths(dataset.select(range(1, 3)))
    assert lengths is not None and part is not None
    assert (lengths.tolist(), part.tolist()) == ([2, 2, 0, 2], [2, 0])


def test_lengths_of_lists_of_rows(rows: Dataset) -> None:
    """A list of rows, of lists or of tensors, has the lengths of its rows."""
    expected = [len(ids) for ids in rows["input_ids"]]
    for listed in (list(rows), list(rows.with_format("torch"))):
        lengths = token_lengths(listed)
        assert lengths is not None and lengths.tolist() == expected


def test_what_has_no_lengths(rows: Dataset) -> None:
    """Rows that a transform makes, other columns, torch datasets, streams and other rows have no lengths."""
    for dataset in (
        rows.with_transform(lambda batch: batch),
        rows.remove_columns("input_ids"),
        Dataset.from_dict({"input_ids": [1, 2]}),
        Dataset.from_dict({"input_ids": [[[1]], [[2]]]}),
        torch.utils.data.Subset(rows, [1]),
        rows.to_iterable_dataset(),
        [{"label": 1}],
        [{"input_ids": 1}],
        [{"input_ids": [[1, 2], [3]]}],
        [[1, 2]],
        [torch.ones(3)],
    ):
        assert token_lengths(dataset) is None


def test_the_budget_of_tokens(model: PreTrainedModel) -> None:
    """The budget is positive, grows with threads on a processor, and falls with the memory that a token needs."""
    cpu = torch.device("cpu")
    assert token_budget(model, cpu, 20) == 1024 * torch.get_num_threads()
    assert token_budget(nn.Identity(), cpu, 1) == 1024 * torch.get_num_threads()
    wide = nn.Linear(1, 2**20)
    assert 1 <= token_budget(wide, cpu, 1) < token_budget(model, cpu, 1)

    class Vocabulary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2**17)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    few, many = (token_budget(Vocabulary(), cpu, draws) for draws in (1, 10_000))
    assert 1 <= many < few
