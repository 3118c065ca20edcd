"""Baal's calibrator: it fits on what the wrapper predicts, and its model answers what it calibrates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from baal_hf import ActiveLearningDataset, Deterministic
from baal_hf.calibration import DirichletCalibrator, DirichletScaling
from baal_hf.calibration.calibrator import SUSPECT, _excess
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


def softmax_loss(outputs: Tensor, target: Tensor) -> Tensor:
    return nn.functional.nll_loss(outputs.log(), target)


@pytest.mark.parametrize(
    ("last", "criterion", "probabilities"),
    [
        (nn.Identity(), nn.CrossEntropyLoss(), None),
        (nn.LogSoftmax(1), nn.NLLLoss(), None),
        (nn.Softmax(1), softmax_loss, "none"),
        (nn.Identity(), None, lambda outputs: (outputs / 7).softmax(1)),
    ],
    ids=["logits", "log-probabilities", "probabilities", "a function"],
)
def test_the_calibrated_model_reads_outputs_as_the_wrapper_does(
    wrapper: ModelWrapper, last: nn.Module, criterion: Callable | None, probabilities: str | Callable | None
) -> None:
    """Whatever the outputs are, also those of probability 0, it answers `calibrated` of the wrapper's probabilities."""
    model = nn.Sequential(wrapper.model, last).eval()
    made = ModelWrapper(model, criterion, probabilities=probabilities, posterior=Deterministic())
    calibrator, train = DirichletCalibrator(made, 3, 0.01, reg_factor=0.1), rows(200, seed=0)
    calibrator.calibrate(train, rows(50, seed=1), 16, 1, False, iterations=1, workers=0, verbose=False)
    inputs = torch.stack([row[0] for row in train]) * torch.tensor([[1.0]] * 100 + [[40.0]] * 100)
    probs = made.predict_on_dataset(TensorDataset(inputs, torch.zeros(200)), 16, 1, workers=0, verbose=False)[..., 0]
    assert probs.min() < 2.0**-52 or callable(probabilities)
    answered = calibrator.calibrated_model(inputs).softmax(1).detach().numpy()
    np.testing.assert_allclose(answered, calibrator.calibrated(probs), atol=1e-5)


@pytest.mark.parametrize("returned", [lambda logits: (logits,), lambda logits: {"out": logits}], ids=["tuple", "name"])
def test_the_calibrated_model_finds_the_logits(wrapper: ModelWrapper, returned: Callable) -> None:
    """What the wrapper takes for logits, the calibrated model takes, too."""

    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wrapper.model

        def forward(self, inputs: Tensor) -> object:
            return returned(self.inner(inputs))

    made = ModelWrapper(Returning().eval(), nn.CrossEntropyLoss(), posterior=Deterministic())
    calibrator, train = DirichletCalibrator(made, 3, 0.01, reg_factor=0.1), rows(200, seed=0)
    calibrator.calibrate(train, rows(50, seed=1), 16, 1, False, workers=0, verbose=False)
    inputs = torch.stack([row[0] for row in train])
    expected = calibrator.calibrated(wrapper.model(inputs).softmax(1))
    torch.testing.assert_close(calibrator.calibrated_model(inputs).softmax(1), expected, atol=1e-5, rtol=0)


def test_the_calibrated_model_is_called_as_the_model_is() -> None:
    """A model of transformers, which takes keywords and returns a dictionary, is calibrated and answers, as before."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).eval()
    texts = [{"input_ids": torch.arange(1, 5) + i, "attention_mask": torch.ones(4), "labels": i % 3} for i in range(40)]
    calibrator = DirichletCalibrator(ModelWrapper(model, nn.CrossEntropyLoss()), 3, 0.01, reg_factor=0.1)
    calibrator.calibrate(texts, texts, 16, 1, False, iterations=3, workers=0, verbose=False)
    inputs = {name: torch.stack([text[name] for text in texts]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        answered = calibrator.calibrated_model(**inputs).softmax(1)
        probs = model(**inputs).logits.softmax(1)
    torch.testing.assert_close(answered, calibrator.calibrated(probs), atol=1e-5, rtol=0)


# Rows that the model was trained on


@pytest.mark.parametrize("noise", [0.3, 0.1])
def test_rows_trained_on_are_noticed_and_others_are_not(noise: float) -> None:
    """Rows that a model learnt by heart are warned of when it is calibrated on them, others of their kind are not."""
    torch.manual_seed(0)
    inputs, flipped = torch.randn(600, 4), torch.rand(600) < noise
    labels = ((inputs[:, 0] > 0) ^ flipped).long()
    trained, held_out, test = (TensorDataset(inputs[at::3], labels[at::3]) for at in range(3))
    model = nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 2))
    wrapper = ModelWrapper(model, nn.CrossEntropyLoss())
    wrapper.train_on_dataset(trained, torch.optim.Adam(model.parameters(), 0.01), 50, 60, workers=0)

    def calibrate(train_set: TensorDataset) -> None:
        calibrator = DirichletCalibrator(wrapper, 2, 0.01, reg_factor=1.0)
        calibrator.calibrate(train_set, test, 50, 1, False, iterations=5, workers=0, verbose=False)

    with pytest.warns(UserWarning, match=r"predicted better .* Was the model trained on them\?") as caught:
        calibrate(trained)
    assert caught[0].filename == __file__
    calibrate(held_out)


@pytest.mark.parametrize(("N", "M"), [(5, 1000), (1000, 5), (200, 200)])
def test_chance_alone_is_hardly_ever_suspected(N: int, M: int) -> None:
    """Of NLLs of one kind, most of them tiny and few large, about one in a thousand splits is suspected."""
    rng = np.random.default_rng(0)
    nlls = -np.log1p(-(rng.random((3_000, N + M)) ** 8))  # half of them below .004, one in a hundred above 2.5
    suspected = sum(_excess(each[:N], each[N:]) > SUSPECT for each in nlls)
    assert suspected <= 9


few_values = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(few_values, few_values)
def test_excess_is_scipys(values: list[float], others: list[float]) -> None:
    """Its normal tail is that of SciPy's Mann-Whitney test, ties included; equal values all have none."""
    excess = _excess(np.array(values), np.array(others))
    if len({*values, *others}) == 1:
        assert excess == 0
    else:
        theirs = mannwhitneyu(values, others, alternative="greater", method="asymptotic", use_continuity=False)
        tail = torch.special.ndtr(torch.tensor(-excess, dtype=torch.float64))
        assert float(tail) == pytest.approx(theirs.pvalue, rel=1e-9)


# Bad input


@pytest.mark.parametrize("which", ["train_set", "test_set"])
@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (-1, ValueError, r"{}.* needs labels in 0 .. 2, got -1 in row 3. Leave rows without a label out"),
        (7, ValueError, r"{}.* needs labels in 0 .. 2, got 7 in row 3"),
        (0.5, TypeError, r"{}.* needs whole numbers as labels, got float64"),
        (None, ValueError, "got row 3 without a label"),
        ([0, 1], ValueError, r"needs one class a row, got a label of shape \[2\] in row 3"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    wrapper: ModelWrapper, which: str, label: object, error: type[Exception], message: str
) -> None:
    """A label that is no class is refused, with its set, before the model has predicted anything."""
    sets: dict[str, list] = {"train_set": rows(30, seed=0), "test_set": rows(30, seed=1)}
    sets[which][3] = (sets[which][3][0], label)
    calibrator = DirichletCalibrator(wrapper, 3, 0.01, 1)
    with pytest.raises(error, match=message.format(which)):
        calibrator.calibrate(**sets, batch_size=16, epoch=1, use_cuda=False, workers=0)
    assert not hasattr(calibrator.scaling, "weights")


def test_rows_without_labels_are_refused(wrapper: ModelWrapper) -> None:
    """Rows of a pool, the last of whose inputs is no label, and sets without rows are refused."""
    train, calibrator = rows(30, seed=0), DirichletCalibrator(wrapper, 3, 0.01, 1)
    pool = ActiveLearningDataset(TensorDataset(torch.zeros(9, 4), torch.zeros(9).long(), torch.zeros(9).long())).pool
    with pytest.raises(ValueError, match="got row 0 without a label"):
        calibrator.calibrate(pool, train, 16, 1, False, workers=0)
    for sets in (([], train), (train, [])):
        with pytest.raises(ValueError, match="needs held-out rows to fit, and others to measure on, got none"):
            calibrator.calibrate(*sets, 16, 1, False, workers=0)


def test_several_outputs_are_refused() -> None:
    """A model with two outputs is refused: it cannot be told which is to be calibrated."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3))

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(inputs), self.layer(inputs)

    train = rows(30, seed=0)
    calibrator = DirichletCalibrator(ModelWrapper(Two(), nn.CrossEntropyLoss()), 3, 0.01, 1)
    with pytest.raises(TypeError, match="needs a model with one output, got 2"):
        calibrator.calibrate(train, train, 16, 1, False, iterations=2, workers=0, verbose=False)


def test_what_cannot_be_calibrated_is_refused(wrapper):
    """Other classes than were said, rows without label, and a model asked for too early raise an error that says so."""
    train = rows(30, seed=0)
    with pytest.raises(ValueError, match=r"needs C = 5 classes, got \[30, 3, 20\]"):
        DirichletCalibrator(wrapper, 5, 0.01, 1).calibrate(train, train, 16, 1, False, workers=0)
    calibrator = DirichletCalibrator(wrapper, 3, 0.01, 1)
    with pytest.raises(ValueError, match="leave store out"):
        calibrator.calibrate(train, train, 16, 1, False, store="folder")
    with pytest.raises(RuntimeError, match="call calibrate first"):
        _ = calibrator.calibrated_model
    with pytest.raises(ValueError, match=r"needs rows \(..., label\), got row 0 without a label"):
        calibrator.calibrate([(inputs,) for inputs, _ in train], train, 16, 1, False, workers=0)
    with pytest.raises(ValueError, match="needs a finite l2 >= 0"):
        DirichletCalibrator(wrapper, 3, 0.01, reg_factor=-1)
