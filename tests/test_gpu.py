"""The accelerator's side of the contract; needs CUDA."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import nn
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from baal_hf import (
    BALD,
    BaalTransformersTrainer,
    Deterministic,
    Ensemble,
    EnsembleModelWrapper,
    MCDropConnect,
    MCDropout,
    ModelWrapper,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def any_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps one precision for a process, and each test has its own; float32 is what it is on the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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


@pytest.mark.parametrize("setting", ["fp16_full_eval", "bf16_full_eval"])
def test_full_half_precision_finds_the_model(tmp_path: Path, setting: str) -> None:
    """Trainer leaves the model on the CPU until it evaluates; predicting does not need that."""
    machine = trainer(tmp_path, **{setting: True})
    assert np.isfinite(machine.predict_on_dataset(rows(8), iterations=2)).all()
    assert next(machine.model.parameters()).is_cuda


@pytest.mark.parametrize("kind", ["own", "added", "attention", "dropconnect", "ensemble"])
def test_draws_are_those_of_the_cpu(tmp_path: Path, kind: str) -> None:
    """Each draw is the same network on the accelerator as on the CPU."""
    dataset = rows(100)
    weights = trainer(tmp_path, use_cpu=True).model.state_dict()
    shifted = {name: weight + 0.01 for name, weight in weights.items()}
    posterior = {
        "own": MCDropout(),
        "added": MCDropout(p=0.2, where="last:2"),
        "attention": MCDropout(p=0.2, where="attention"),
        "dropconnect": MCDropConnect(),
        "ensemble": Ensemble([weights, shifted]),
    }[kind]
    predictions = []
    for use_cpu in (True, False):
        machine = trainer(tmp_path, use_cpu=use_cpu)
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
    for size in (3000, 30000):
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


def test_scores_are_those_of_predictions(tmp_path: Path) -> None:
    """Scores taken on the device, batch by batch, are those of the predictions of the CPU."""
    dataset = rows(100)
    scores = trainer(tmp_path).score_dataset(dataset, BALD(), iterations=5)
    predictions = trainer(tmp_path, use_cpu=True).predict_on_dataset(dataset, iterations=5)
    np.testing.assert_allclose(scores, BALD().get_uncertainties(predictions), rtol=0, atol=1e-4)


def test_out_of_memory_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where a batch does not fit on the device it is halved, it is said, and predictions are the same."""
    dataset = rows(64, longest=400)
    machine = trainer(tmp_path)
    machine.args.per_device_eval_batch_size = 64
    expected = machine.predict_on_dataset(dataset, iterations=2)
    torch.cuda.reset_peak_memory_stats()
    machine.predict_on_dataset(dataset, iterations=2)
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    room = (peak + torch.cuda.memory_reserved()) / 2
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        with caplog.at_level(logging.WARNING):
            less = machine.predict_on_dataset(dataset, iterations=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "going on with half as many" in caplog.text
    np.testing.assert_allclose(less, expected, rtol=0, atol=1e-5)


# ModelWrapper


def images(size: int = 200) -> TensorDataset:
    """Noise around one image for each of five classes."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(size) % 5
    centres = torch.randn(5, 1, 12, 12, generator=generator)
    return TensorDataset(centres[classes] + torch.randn(size, 1, 12, 12, generator=generator), classes)


def convolutional(p: float = 0.5) -> nn.Sequential:
    """[B, 1, 12, 12] to logits [B, 5]; the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(p), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 5 * 5, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 5)),
    )


@pytest.mark.parametrize("kind", ["dropout", "dropconnect", "ensemble"])
def test_modules_are_drawn_as_on_the_cpu(kind: str) -> None:
    """Each draw of any module is the same network on the accelerator as on the CPU."""
    predictions = []
    for use_cuda in (False, True):
        if kind == "ensemble":
            wrapper = EnsembleModelWrapper(convolutional(), nn.CrossEntropyLoss())
            for seed in range(4):
                torch.manual_seed(seed)
                wrapper.reset_all()
                wrapper.add_checkpoint()
        else:
            posterior = MCDropout() if kind == "dropout" else MCDropConnect()
            wrapper = ModelWrapper(convolutional(), nn.CrossEntropyLoss(), posterior=posterior)
        predictions.append(wrapper.predict_on_dataset(images(), 64, 4, use_cuda=use_cuda, workers=0, verbose=False))
    assert predictions[0].std(-1).max() > 0.01
    np.testing.assert_allclose(predictions[1], predictions[0], rtol=0, atol=1e-4)


def test_each_call_chooses_its_device() -> None:
    """Whoever says `use_cuda` has it so, whatever was said before; a criterion's weights go along."""
    wrapper = ModelWrapper(convolutional(), nn.CrossEntropyLoss(torch.ones(5)))
    optimizer = torch.optim.SGD(wrapper.model.parameters(), 0.05)
    for use_cuda in (False, True, None, False):
        wrapper.train_on_dataset(images(), optimizer, 50, 1, use_cuda=use_cuda, workers=0)
        wrapper.predict_on_dataset(images(), 50, 2, use_cuda=use_cuda, workers=0, verbose=False)
        assert next(wrapper.model.parameters()).is_cuda == (use_cuda is not False)


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-3), ("bf16", 0.05), ("fp16", 0.01)])
def test_modules_learn_as_on_the_cpu(precision: str, tolerance: float) -> None:
    """Training ends near where float32 ends on the CPU: a scaled gradient that steps would end elsewhere."""
    probs = []
    for use_cuda in (False, True):
        wrapper = ModelWrapper(
            convolutional(p=0.0),
            nn.CrossEntropyLoss(),
            posterior=Deterministic(),
            mixed_precision=precision if use_cuda else "no",
        )
        optimizer = torch.optim.SGD(wrapper.model.parameters(), 0.05)
        torch.manual_seed(1)
        wrapper.train_on_dataset(images(), optimizer, 50, 10, use_cuda=use_cuda, workers=0)
        probs.append(wrapper.predict_on_dataset(images(), 50, 1, use_cuda=use_cuda, workers=0, verbose=False))
        AcceleratorState._reset_state(reset_partial_state=True)
    assert probs[0].max(1).mean() > 0.4  # of five classes: it has learnt
    np.testing.assert_allclose(probs[1], probs[0], rtol=0, atol=tolerance)
