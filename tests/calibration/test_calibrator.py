"""Baal's calibrator: it fits on what the wrapper predicts, and its model answers what it calibrates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baal_hf.calibration import DirichletCalibrator, DirichletScaling
from baal_hf.modelwrapper import ModelWrapper


def rows(N: int, seed: int) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, 4, generator=generator)
    labels = torch.multinomial(inputs[:, :3].softmax(1), 1, generator=generator)[:, 0]
    return list(zip(inputs, labels.tolist(), strict=True))


@pytest.fixture
def wrapper() -> ModelWrapper:
    """A model with dropout that knows the rule of the labels and is four times too sure of it."""
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(4 * torch.eye(3, 4))
        layer.bias.zero_()
    return ModelWrapper(nn.Sequential(nn.Dropout(0.1), layer).eval(), nn.CrossEntropyLoss())


def test_it_is_dirichlet_scaling_of_the_wrappers_predictions(wrapper):
    """What it calibrates is what `DirichletScaling` does of the averaged draws, and it tells the NLL of other rows."""
    train, test = rows(300, seed=0), rows(200, seed=1)
    calibrator = DirichletCalibrator(wrapper, 3, lr=0.01, reg_factor=5, mu=2)
    history, _ = calibrator.calibrate(train, test, 16, 10, False, iterations=5, workers=0)
    draws, others = (wrapper.predict_on_dataset(each, 16, 5, False, workers=0) for each in (train, test))
    scaling = DirichletScaling(l2=5, mu=2).fit(draws, [label for _, label in train])
    others = others.mean(-1)
    np.testing.assert_array_equal(calibrator.calibrated(others), scaling.calibrated(others))
    true = np.array([label for _, label in test])
    for when, probs in (("before", others), ("after", scaling.calibrated(others))):
        assert history[when] == pytest.approx(-np.log(probs[np.arange(200), true]).mean(), rel=1e-5)
    assert history["after"] < 0.8 * history["before"]


def test_the_calibrated_model_answers_what_is_calibrated(wrapper):
    """The module's softmax is the calibrated probabilities; the wrapper's model is left as it was, and is shared."""
    train = rows(300, seed=0)
    before = {name: value.clone() for name, value in wrapper.model.state_dict().items()}
    calibrator = DirichletCalibrator(wrapper, 3, lr=0.01, reg_factor=1)
    _, weights = calibrator.calibrate(train, train, batch_size=16, epoch=10, use_cuda=False, double_fit=True, workers=0)
    model = calibrator.calibrated_model
    assert model[0] is wrapper.model and not model.training
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in wrapper.model.state_dict().items())
    inputs = torch.stack([row[0] for row in train])
    expected = calibrator.calibrated(wrapper.model(inputs).softmax(1))
    torch.testing.assert_close(model(inputs).softmax(1), expected, atol=1e-5, rtol=0)


def test_what_cannot_be_calibrated_is_refused(wrapper):
    """Other classes than were said, rows without label, and a model asked for too early raise an error that says so."""
    train = rows(30, seed=0)
    with pytest.raises(ValueError, match=r"needs C = 5 classes, got \[30, 3, 20\]"):
        DirichletCalibrator(wrapper, 5, 0.01, 1).calibrate(train, train, 16, 1, False, workers=0)
    calibrator = DirichletCalibrator(wrapper, 3, 0.01, 1)
    with pytest.raises(RuntimeError, match="call calibrate first"):
        _ = calibrator.calibrated_model
    with pytest.raises(ValueError, match=r"needs rows \(..., label\), got row 0 without a label"):
        calibrator.calibrate([(inputs,) for inputs, _ in train], train, 16, 1, False, workers=0)
    with pytest.raises(ValueError, match="needs a finite l2 >= 0"):
        DirichletCalibrator(wrapper, 3, 0.01, reg_factor=-1)
