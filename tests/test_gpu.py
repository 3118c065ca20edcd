"""The accelerator's side of the contract; needs CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from baal_hf import BALD, BaalTransformersTrainer, Ensemble, MCDropConnect, MCDropout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def rows(size: int, longest: int = 40) -> Dataset:
    """Rows of 5 to `longest` tokens, padded to their own batch."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, longest + 1, size)
    ids = [np.pad(generator.integers(5, 99, n), (0, longest - n)).tolist() for n in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[int(i > 0) for i in row] for row in ids]})


def trainer(tmp_path: Path, layers: int = 4, **settings: object) -> BaalTransformersTrainer:
    """A random BERT of some width."""
    set_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=256, num_hidden_layers=layers, num_attention_heads=8, num_labels=5,
        intermediate_size=512, initializer_range=0.1,
    )  # fmt: skip
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=64, report_to="none", disable_tqdm=True, **settings
    )  # type: ignore[arg-type]
    return BaalTransformersTrainer(BertForSequenceClassification(config), arguments)


@pytest.mark.parametrize("kind", ["own", "added", "attention", "dropconnect", "ensemble"])
def test_draws_are_those_of_the_cpu(tmp_path: Path, kind: str) -> None:
    """Each draw is the same network on the accelerator as on the CPU."""
    dataset = rows(100)
    on_cpu, on_gpu = trainer(tmp_path, use_cpu=True), trainer(tmp_path)
    shifted = {name: weight.cpu() + 0.01 for name, weight in on_cpu.model.state_dict().items()}
    posterior = {
        "own": MCDropout(),
        "added": MCDropout(p=0.2, where="last:2"),
        "attention": MCDropout(p=0.2, where="attention"),
        "dropconnect": MCDropConnect(),
        "ensemble": Ensemble([on_cpu.model.state_dict(), shifted]),
    }[kind]
    predictions = []
    for machine in (on_cpu, on_gpu):
        machine.posterior = posterior
        predictions.append(machine.predict_on_dataset(dataset, iterations=2))
    np.testing.assert_allclose(predictions[1], predictions[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_ranks_alike(tmp_path: Path, precision: str) -> None:
    """Under autocast probabilities stay near their float32 selves, and BALD ranks the rows alike."""
    dataset = rows(500)
    exact = trainer(tmp_path).predict_on_dataset(dataset, iterations=10)
    rough = trainer(tmp_path, **{precision: True}).predict_on_dataset(dataset, iterations=10)
    np.testing.assert_allclose(rough, exact, atol=0.05)
    places = [np.argsort(BALD()(probs)) for probs in (exact, rough)]
    assert np.corrcoef(places)[0, 1] > 0.97


def test_memory_does_not_grow_with_the_pool(tmp_path: Path) -> None:
    """Streaming a pool ten times as large takes no more memory on the device."""
    machine = trainer(tmp_path)
    peaks = []
    for size in (500, 5000):
        torch.cuda.reset_peak_memory_stats()
        for _ in machine.predict_on_dataset_generator(rows(size), iterations=4):
            pass
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0]


def test_fresh_masks_differ_by_row(tmp_path: Path) -> None:
    """Fresh masks are drawn on the device, another for each row."""
    machine = trainer(tmp_path)
    machine.posterior = MCDropout(masks="fresh")
    same = Dataset.from_dict({name: [rows(1)[0][name]] * 8 for name in ("input_ids", "attention_mask")})
    probs = machine.predict_on_dataset(same, iterations=2)
    assert len(np.unique(probs[:, 0, 0])) == 8
