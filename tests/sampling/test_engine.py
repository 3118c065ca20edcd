"""The engine's contract: each row once, in order, bounded, and an error where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset

from baal_hf import Deterministic, MCDropout
from baal_hf.sampling import Sampler, concatenated


class Numbers(Dataset[Tensor]):
    """Row i is the number i, three times."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3,), float(index))


class Broken(nn.Module):
    """Gives NaN for row 5."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x == 5, torch.nan, x)


def predict(dataset: Any, model: nn.Module | None = None, **kwargs: Any) -> list[Tensor]:
    """All batches of the engine's answer."""
    settings = {"posterior": MCDropout(), "batch_size": 4, "accelerator": Accelerator(cpu=True), **kwargs}
    iterations = settings.pop("iterations", 2)
    forward = lambda model, batch: model(batch)  # noqa: E731
    return list(Sampler(model or nn.Dropout(0.5), forward=forward, **settings).predictions(dataset, iterations))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_row_once_in_order(size: int, workers: int) -> None:
    """Rows come back in order whatever the batch size and the number of workers, a short last batch included."""
    batches = predict(Numbers(size), posterior=Deterministic(), iterations=1, num_workers=workers)
    assert [len(batch) for batch in batches] == [4] * (size // 4) + ([size % 4] if size % 4 else [])
    assert torch.cat(batches)[:, 0, 0].tolist() == list(range(size))


def test_draws_are_on_the_last_axis() -> None:
    """Predictions are [N, C, T] in float32; draw t is the same network for every batch."""
    whole = torch.cat(predict(Numbers(9), iterations=6))
    assert whole.shape == (9, 3, 6)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[1:] > 0, (whole[1:2] > 0).expand(8, 3, 6))
    assert not torch.equal(whole[1, :, 0], whole[1, :, 5]) or not torch.equal(whole[1, :, 1], whole[1, :, 2])


def test_weights_that_change_between_chunks_are_seen() -> None:
    """What autocast keeps of the weights ends with a chunk: whoever takes it may change them before the next."""
    model = nn.Linear(3, 2, bias=False)
    nn.init.ones_(model.weight)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    sampler = Sampler(model, Deterministic(), forward, Accelerator(cpu=True), batch_size=2)
    chunks = sampler.predictions(Numbers(4), 1)
    assert next(chunks)[:, 0, 0].tolist() == [0, 3]
    assert not torch.is_autocast_enabled("cpu")
    nn.init.constant_(model.weight, 2.0)
    assert next(chunks)[:, 0, 0].tolist() == [12, 18]


def test_images_keep_their_axes() -> None:
    """Outputs [B, C, H, W] become [N, C, H, W, T]."""

    class Image(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2, None, None].expand(-1, 2, 5, 7)

    whole = torch.cat(predict(Numbers(5), Image(), posterior=Deterministic(), iterations=1))
    assert whole.shape == (5, 2, 5, 7, 1)


def test_ragged_rows_are_padded_with_nan() -> None:
    """Batches of different length become one array; what a row does not have is NaN."""
    parts = [torch.ones(2, 3, 4, 5), torch.ones(1, 3, 6, 5)]
    whole = concatenated(iter(parts))
    assert whole.shape == (3, 3, 6, 5)
    assert np.isnan(whole[:2, :, 4:]).all()
    assert np.isfinite(whole[:2, :, :4]).all() and np.isfinite(whole[2]).all()


class Tokens(Dataset[dict[str, Tensor]]):
    """Rows of one to five tokens, numbered from the row's first."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": 10 * index + torch.arange(index + 1.0), "attention_mask": torch.ones(index + 1)}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_counted_from_the_rows_first(side: str, batch_size: int) -> None:
    """Where a token stands in the answer depends neither on the side that is padded nor on the batch."""

    def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: pad_sequence([row[name] for row in rows], True, padding_side=side) for name in rows[0]}

    class Echo(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["x"][:, None].expand(-1, 2, -1)  # [B, C, S]

    parts = predict(Tokens(), Echo(), posterior=Deterministic(), iterations=1, collate_fn=padded, batch_size=batch_size)
    whole = concatenated(iter(parts))
    assert whole.shape == (5, 2, 5, 1)
    for row in range(5):
        assert whole[row, 1, : row + 1, 0].tolist() == [10 * row + token for token in range(row + 1)]
        assert np.isnan(whole[row, :, row + 1 :]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": 0}, "iterations >= 1, got 0"),
        ({"posterior": Deterministic(), "iterations": 2}, "Deterministic has 1 draws, got iterations=2"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"dataset": Numbers(0)}, "at least one row"),
        ({"model": Broken(), "posterior": Deterministic(), "iterations": 1}, r"rows \[5\]"),
        ({"model": nn.Identity()}, "no active dropout"),
    ],
)
def test_bad_requests(arguments: dict[str, Any], message: str) -> None:
    """What cannot be answered raises and says why."""
    with pytest.raises(ValueError, match=message):
        predict(**{"dataset": Numbers(7), **arguments})


def test_streams_come_in_their_order() -> None:
    """A stream gives the predictions of a list of its rows, some at a time; an empty one raises."""

    class Stream(IterableDataset[Tensor]):
        def __init__(self, size: int) -> None:
            self.size = size

        def __iter__(self) -> Iterator[Tensor]:
            return iter(Numbers(self.size)[i] for i in range(self.size))

    assert torch.equal(torch.cat(predict(Stream(11))), torch.cat(predict(Numbers(11))))
    with pytest.raises(ValueError, match="empty stream"):
        predict(Stream(0))


@pytest.mark.parametrize("dataset", [{"a": [1]}, 3])
def test_what_has_no_rows_is_refused(dataset: Any) -> None:
    """A mapping of columns and a number are no dataset."""
    with pytest.raises(TypeError, match="a dataset of rows"):
        predict(dataset)
