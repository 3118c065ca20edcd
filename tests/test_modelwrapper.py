"""ModelWrapper: any torch module trained, tested and predicted; Baal's script as it stands."""

from __future__ import annotations

import gc
import json
import re
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Value
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from baal_hf import (
    BALD,
    ActiveLearningDataset,
    ActiveLearningLoop,
    Ensemble,
    EnsembleModelWrapper,
    MCDropConnect,
    MCDropout,
    MCDropoutConnectModule,
    MCDropoutModule,
    ModelWrapper,
    metrics,
    patch_module,
)

OPTIONS = {"use_cuda": False, "workers": 0}


def digits(size: int = 200) -> TensorDataset:
    """Images of digits as vectors, and their classes."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.from_numpy(images[:size] / 16).float(), torch.from_numpy(labels[:size]))


def network(p: float = 0.5) -> nn.Module:
    """A network with dropout, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 10))


def wrapper(**arguments: Any) -> ModelWrapper:
    """It, with cross-entropy."""
    return ModelWrapper(network(), nn.CrossEntropyLoss(), **arguments)


def expected(model: nn.Module, inputs: Tensor, draws: int) -> np.ndarray:
    """Probabilities of each row alone under each draw, [N, C, T]."""
    rows = []
    model.eval()
    with torch.no_grad():
        for t in range(draws):
            with MCDropout().draw(model, t):
                rows.append(torch.cat([model(row[None]).softmax(1) for row in inputs]))
    return torch.stack(rows, -1).numpy()


def test_the_readme_of_baal() -> None:
    """The script in Baal's README runs as it stands, with this package's names."""
    from baal_hf import ActiveLearningLoop, heuristics

    script = """
dataset = ActiveLearningDataset(your_dataset)
dataset.label_randomly(INITIAL_POOL)  # label some data
model = MCDropoutModule(your_model)
model = ModelWrapper(model, your_criterion)
active_loop = ActiveLearningLoop(dataset,
                                 get_probabilities=model.predict_on_dataset,
                                 heuristic=heuristics.BALD(shuffle_prop=0.1),
                                 query_size=NDATA_TO_LABEL)
for al_step in range(N_ALSTEP):
    model.train_on_dataset(dataset, optimizer, BATCH_SIZE, use_cuda=use_cuda)
    if not active_loop.step():
        # We're done!
        break
"""
    model = network()
    names = {
        "ActiveLearningDataset": ActiveLearningDataset,
        "ActiveLearningLoop": ActiveLearningLoop,
        "MCDropoutModule": MCDropoutModule,
        "ModelWrapper": ModelWrapper,
        "heuristics": heuristics,
        "your_dataset": digits(60),
        "your_model": model,
        "your_criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "INITIAL_POOL": 10,
        "NDATA_TO_LABEL": 20,
        "N_ALSTEP": 5,
        "BATCH_SIZE": 8,
        "use_cuda": False,
    }
    exec(script, names)
    assert [len(names["dataset"]), names["al_step"]] == [60, 3]


def test_training_learns() -> None:
    """Training lowers the loss each epoch counts once, and the model is in evaluation mode afterwards."""
    model = wrapper()
    optimizer = torch.optim.Adam(model.model.parameters(), 1e-2)
    losses = model.train_on_dataset(digits(), optimizer, 32, epoch=6, **OPTIONS)
    assert len(losses) == 6 and losses[-1] < losses[0] / 3
    assert model.get_metrics() == {"train_loss": losses[-1]}
    assert not model.model.training
    assert model.test_on_dataset(digits(), 32, **OPTIONS) < 0.5


def test_epochs_see_each_row_once() -> None:
    """An epoch gives the model each row once, in another order than the last."""
    seen: list[list[float]] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x[:, 0].tolist())
            return super().forward(x)

    model = ModelWrapper(Spy(1, 1), nn.MSELoss(), posterior=MCDropout())
    rows = TensorDataset(torch.arange(10.0)[:, None], torch.zeros(10, 1))
    model.train_on_dataset(rows, torch.optim.SGD(model.model.parameters(), 1e-6), 4, 2, **OPTIONS)
    first, second = ([row for batch in batches for row in batch] for batches in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_regularizer() -> None:
    """The regularizer's value is added to the loss and moves the weights."""
    model = wrapper()
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    rows = digits(8)
    plain = model.train_on_batch(*rows[:], torch.optim.SGD(model.model.parameters(), 0.0), cuda=False)
    assert plain > 0
    weight = model.model[0].weight
    before = weight.norm().item()
    model.train_on_dataset(rows, optimizer, 8, 1, **OPTIONS, regularizer=lambda: 0.5 * weight.norm() ** 2)
    assert weight.norm().item() < before


def test_loss_is_a_mean_over_rows() -> None:
    """The test loss weighs rows alike, whatever the size of the last batch, and metrics see each row once."""
    model, rows = wrapper(), digits(21)
    model.add_metric("accuracy", lambda: metrics.load("accuracy"))
    model.model.eval()
    logits = model.model(rows.tensors[0])
    loss = model.test_on_dataset(rows, 8, **OPTIONS)
    assert loss == pytest.approx(F.cross_entropy(logits, rows.tensors[1]).item(), rel=1e-5)
    found = model.get_metrics("test")
    assert found["test_loss"] == loss
    assert found["test_accuracy"] == pytest.approx((logits.argmax(1) == rows.tensors[1]).float().mean().item())
    assert model.test_on_batch(*rows[:], cuda=False).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), F.cross_entropy])
def test_average_predictions(criterion: Any) -> None:
    """The test loss of several draws is that of their mean probabilities."""
    model, rows = ModelWrapper(network(), criterion), digits(21)
    probs = torch.from_numpy(expected(model.model, rows.tensors[0], 4)).mean(-1)
    loss = model.test_on_dataset(rows, 8, **OPTIONS, average_predictions=4)
    assert loss == pytest.approx(F.nll_loss(probs.log(), rows.tensors[1]).item(), rel=1e-4)
    with pytest.raises(ValueError, match="average_predictions >= 1, got 0"):
        model.test_on_dataset(rows, 8, **OPTIONS, average_predictions=0)


class Counting(nn.Linear):
    """A layer that counts its calls."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs)


def test_tests_by_draws_share_work() -> None:
    """What comes before the first mask is computed once for a batch's draws, and once more in the first, to compare."""
    torch.manual_seed(0)
    first = Counting(64, 64)
    model = ModelWrapper(nn.Sequential(first, nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    rows = digits(21)
    shared = model.test_on_dataset(rows, 8, **OPTIONS, average_predictions=6)
    assert first.calls == 4
    probs = torch.from_numpy(expected(model.model, rows.tensors[0], 6)).mean(-1)
    assert shared == pytest.approx(F.nll_loss(probs.log(), rows.tensors[1]).item(), rel=1e-4)


class TwoWide(nn.Module):
    """Logits at each position and of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.head = nn.Dropout(), nn.Linear(1, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.dropout(inputs[..., None]))  # [B, L, 3]
        return logits.mT, logits.mean(1)


def test_batches_tested_by_draws_may_differ_in_shape() -> None:
    """Rows of several outputs are tested by draws though the last batch is shorter than the others."""
    torch.manual_seed(0)
    rows = [(torch.ones(length), torch.tensor(1)) for length in (5, 5, 2)]

    def loss(outputs: list[Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0].mean(-1), target) + F.cross_entropy(outputs[1], target)

    model = ModelWrapper(TwoWide(), loss, probabilities=["softmax", "softmax"])
    assert 0 < model.test_on_dataset(rows, 2, **OPTIONS, average_predictions=3) < 5


def test_best_weights_and_early_stopping() -> None:
    """Training stops after `patience` epochs without a lower test loss, and the best epoch's weights come back."""
    model = wrapper()
    tests = iter([3.0, 1.0, 2.0, 2.5, 0.5])
    weights: list[Tensor] = []

    def tested(*_: Any) -> float:
        weights.append(model.model[0].weight.detach().clone())
        model._values["test_loss"] = next(tests)
        return model._values["test_loss"]

    model.test_on_dataset = tested  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    history, best = model.train_and_test_on_datasets(
        digits(16), digits(16), optimizer, 8, 9, **OPTIONS, return_best_weights=True, patience=2
    )
    assert [record["test_loss"] for record in history] == [3, 1, 2, 2.5]
    torch.testing.assert_close(best["0.weight"], weights[1])


@pytest.mark.parametrize("half", [False, True])
def test_predictions(half: bool) -> None:
    """Each row comes back once and in order under each draw, with or without targets, whatever the batch size."""
    model, rows = wrapper(), digits(23)
    probs = expected(model.model, rows.tensors[0], 3)
    active = ActiveLearningDataset(rows)
    for dataset in (rows, active.pool, Subset(active.pool, range(23)), TensorDataset(rows.tensors[0])):
        for batch_size in (1, 7, 64):
            found = model.predict_on_dataset(dataset, batch_size, 3, **OPTIONS, half=half, verbose=False)
            assert found.dtype == (np.float16 if half else np.float32)
            np.testing.assert_allclose(found, probs, atol=1e-3 if half else 1e-6)
    parts = [*model.predict_on_dataset_generator(rows, 7, 3, **OPTIONS, verbose=False)]
    np.testing.assert_allclose(np.concatenate(parts), probs, atol=1e-6)
    np.testing.assert_allclose(model.predict_on_batch(rows.tensors[0], 3, cuda=False), probs, atol=1e-6)


class Dictionaries(Dataset):
    """Rows of two named inputs."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((2,), float(index)), "y": torch.ones(2), "label": index % 3}


class TwoInputs(nn.Module):
    """Adds two inputs, and returns one output or two."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.dropout, self.several = nn.Linear(2, 3), nn.Dropout(0.5), several

    def forward(self, x: Tensor, y: Tensor) -> Any:
        logits = self.head(self.dropout(x + y))
        return (logits, logits[:, :2, None].expand(-1, -1, 4)) if self.several else logits


def test_dictionaries_and_several_inputs() -> None:
    """Dictionaries reach the model as keywords, tuples of several inputs one by one."""
    named = Dictionaries()
    rows = [tuple(named[i].values()) for i in range(9)]
    model = ModelWrapper(TwoInputs(False), nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    assert model.train_on_dataset(named, optimizer, 4, 2, **OPTIONS)[-1] > 0
    one, other = (model.predict_on_dataset(data, 4, 5, **OPTIONS, verbose=False) for data in (named, rows))
    assert one.shape == (9, 3, 5)
    np.testing.assert_array_equal(one, other)
    pool = ActiveLearningDataset(rows).pool
    np.testing.assert_array_equal(model.predict_on_dataset(pool, 4, 5, **OPTIONS, verbose=False), one)


def test_several_outputs() -> None:
    """A model with several outputs gives an array for each, and the criterion sees all."""
    model = ModelWrapper(
        TwoInputs(True), lambda outputs, target: F.cross_entropy(outputs[0], target), probabilities="softmax"
    )
    model.train_on_dataset(Dictionaries(), torch.optim.SGD(model.model.parameters(), 0.1), 4, 1, **OPTIONS)
    first, second = model.predict_on_dataset(Dictionaries(), 4, 5, **OPTIONS, verbose=False)
    assert first.shape == (9, 3, 5) and second.shape == (9, 2, 4, 5)
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(second.sum(1), 1, atol=1e-6)
    assert [output.shape for output in model.predict_on_batch((torch.ones(2, 2), torch.ones(2, 2)), 3)] == [
        (2, 3, 3),
        (2, 2, 4, 3),
    ]


@pytest.mark.parametrize(
    ("criterion", "link"),
    [
        (nn.NLLLoss(), lambda x: x.exp()),
        (nn.BCEWithLogitsLoss(), torch.sigmoid),
        (nn.MSELoss(), lambda x: x),
        (F.l1_loss, lambda x: x),
    ],
)
def test_links(criterion: Any, link: Any) -> None:
    """Outputs become probabilities as the criterion reads them."""
    model = ModelWrapper(network(), criterion)
    rows = digits(5)
    with torch.no_grad(), MCDropout().draw(model.model, 0):
        outputs = model.model.eval()(rows.tensors[0])
    found = model.predict_on_dataset(rows, 5, 1, **OPTIONS, verbose=False)[..., 0]
    np.testing.assert_allclose(found, link(outputs), rtol=1e-5, atol=1e-6)


def test_ensemble() -> None:
    """Draws of an ensemble are its checkpoints, copies of the weights as they were."""
    model = EnsembleModelWrapper(network(0.0), nn.CrossEntropyLoss())
    rows = digits(11)
    with pytest.raises(ValueError, match="call add_checkpoint"):
        model.predict_on_dataset(rows, **OPTIONS)
    answers = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        model.reset_all()
        model.add_checkpoint()
        with torch.no_grad():
            answers.append(model.model.eval()(rows.tensors[0]).softmax(1))
    found = model.predict_on_dataset(rows, 4, **OPTIONS, verbose=False)
    np.testing.assert_allclose(found, torch.stack(answers, -1), atol=1e-6)
    np.testing.assert_allclose(model.predict_on_batch(rows.tensors[0]), found, atol=1e-6)
    assert model.predict_on_dataset(rows, 4, 2, **OPTIONS, verbose=False).shape[-1] == 2
    loss = F.nll_loss(torch.stack(answers, -1).mean(-1).log(), rows.tensors[1])
    assert model.test_on_dataset(rows, 4, **OPTIONS, average_predictions=3) == pytest.approx(loss.item(), rel=1e-5)
    model.clear_checkpoints()
    for answer in (model.predict_on_batch, lambda x: model.test_on_dataset(rows, **OPTIONS, average_predictions=2)):
        with pytest.raises(ValueError, match="call add_checkpoint"):
            answer(rows.tensors[0])
    for arguments in ({"posterior": MCDropConnect()}, {"model": MCDropoutModule(network())}):
        with pytest.raises(ValueError, match="are its members: give it a model that is not patched"):
            EnsembleModelWrapper(**{"model": network(), "criterion": nn.CrossEntropyLoss(), **arguments})


def test_patches_are_taken_over() -> None:
    """A patched model is tested deterministically, and predicts under the posterior of its patch."""
    model = ModelWrapper(MCDropoutModule(network()), nn.CrossEntropyLoss())
    rows = digits(12)
    assert len({model.test_on_dataset(rows, 4, **OPTIONS) for _ in range(3)}) == 1
    assert isinstance(model.posterior, MCDropout) and model.posterior.masks == "shared"
    assert model.predict_on_dataset(rows, 4, 3, **OPTIONS, verbose=False).std(-1).max() > 0.01


def test_the_posterior_of_a_module_outlives_its_first_wrapper() -> None:
    """A second wrapper draws from it, too, also after a first one that was refused; one that was unpatched has none."""
    module = MCDropoutConnectModule(network(), layers=["Linear"], weight_dropout=0.4)
    with pytest.raises(ValueError, match="cannot be told"):
        ModelWrapper(module, lambda outputs, target: outputs.mean())
    for _ in range(2):
        posterior = ModelWrapper(module, nn.CrossEntropyLoss()).posterior
        assert isinstance(posterior, MCDropConnect) and posterior.weight_dropout == 0.4
    module.unpatch()
    assert isinstance(ModelWrapper(module, nn.CrossEntropyLoss()).posterior, MCDropout)


class PerPosition(nn.Module):
    """Logits [B, 2, S] of rows [B, S]."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, -x], 1) * self.slope


def test_ignored_targets_count_for_nothing() -> None:
    """A loss is a mean over the targets that are not ignored, in batches of any size; a batch without any has none."""
    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    targets = torch.tensor([[0, 1, 1], [-100, -100, -100], [1, -100, -100], [-100, 0, 1]])
    rows, model = TensorDataset(inputs, targets), ModelWrapper(PerPosition(), nn.CrossEntropyLoss())
    expected = pytest.approx(F.cross_entropy(model.model(inputs), targets).item())
    still = torch.optim.SGD(model.model.parameters(), 0.0)
    for size in (1, 2, 4):
        assert model.test_on_dataset(rows, size, **OPTIONS) == expected
        assert model.train_on_dataset(rows, still, size, **OPTIONS) == [expected]
    nothing = TensorDataset(inputs[1:2], targets[1:2])
    with pytest.raises(ValueError, match="Testing needs targets, and the criterion ignores all"):
        model.test_on_dataset(nothing, 1, **OPTIONS)
    with pytest.raises(ValueError, match="Training needs targets, and the criterion ignores all"):
        model.train_on_dataset(nothing, still, 1, **OPTIONS)


def test_weights() -> None:
    """Weights are saved, loaded and drawn anew, the linear layers' or all."""
    model = wrapper()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_fcs()
    assert (model.state_dict()["0.weight"] != state["0.weight"]).any()
    model.load_state_dict(state)
    torch.testing.assert_close(model.state_dict()["0.weight"], state["0.weight"])
    convolution = ModelWrapper(nn.Conv1d(2, 2, 1), nn.MSELoss())
    before = convolution.model.weight.clone()
    convolution.reset_fcs()
    torch.testing.assert_close(convolution.model.weight, before)
    convolution.reset_all()
    assert (convolution.model.weight != before).any()
    attention = ModelWrapper(nn.MultiheadAttention(4, 2), nn.MSELoss())
    before = attention.model.in_proj_weight.clone()
    attention.reset_all()
    assert (attention.model.in_proj_weight != before).all()
    model.train()
    assert model.model.training
    model.eval()
    assert not model.model.training


def test_a_link_for_each_output() -> None:
    """Outputs of different kinds have links of their own."""
    model = ModelWrapper(TwoInputs(True), lambda *_: torch.tensor(0.0), probabilities=["softmax", "none"])
    first, second = model.predict_on_batch((torch.ones(2, 2), torch.ones(2, 2)), 3)
    torch.testing.assert_close(first.sum(1), torch.ones(2, 3))
    torch.testing.assert_close(second[:, :, 0].softmax(1) * (first[:, 0] + first[:, 1])[:, None], first[:, :2])
    for names, needs in ((["softmax"], "named for 1 outputs, the model has 2"), (["softmax", "tan"], "got .'tan'.")):
        with pytest.raises(ValueError, match=needs):
            ModelWrapper(TwoInputs(True), None, probabilities=names).predict_on_batch((torch.ones(2, 2),) * 2)
    with pytest.raises(ValueError, match="Softmax of one output"):
        ModelWrapper(nn.Sequential(nn.Dropout(), nn.Linear(2, 1)), nn.CrossEntropyLoss()).predict_on_batch(
            torch.ones(1, 2)
        )


@pytest.mark.parametrize(
    ("criterion", "outputs", "target", "name", "wanted"),
    [
        (nn.CrossEntropyLoss(), [[2.0, 0], [0, 2], [2, 0]], [0, 1, 1], "accuracy", 2 / 3),
        (nn.CrossEntropyLoss(), [[[2.0, 0], [0, 2]]] * 3, [[0, 1]] * 2 + [[1, 1]], "accuracy", 5 / 6),
        (nn.BCEWithLogitsLoss(), [[9.0], [-9], [9]], [[1.0], [0], [0]], "accuracy", 2 / 3),
        (nn.BCEWithLogitsLoss(), [[9.0, -9], [9, 9], [9, 9]], [[1.0, 0], [0, 1], [1, 1]], "accuracy", 5 / 6),
        (nn.CrossEntropyLoss(), [[0.0, 0], [0, 0], [0, 0]], [0, 1, 1], "nll", np.log(2)),
        (nn.CrossEntropyLoss(), [[0.0, 0], [0, 0], [0, 0]], [0, 1, 1], "brier_score", 0.5),
    ],
)
def test_metrics_of_evaluate(criterion: Any, outputs: Any, target: Any, name: str, wanted: float) -> None:
    """A module of evaluate is given classes or probabilities, whatever the criterion and the shape."""
    rows = TensorDataset(torch.tensor(outputs), torch.tensor(target))
    model = ModelWrapper(nn.Identity(), criterion)
    model.add_metric("called_otherwise", lambda: metrics.load(name))
    model.test_on_dataset(rows, 2, **OPTIONS)
    assert model.get_metrics("test_")["test_called_otherwise"] == pytest.approx(wanted)


class Area(evaluate.Metric):
    """A module that takes scores in place of predictions."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(prediction_scores=Value("float"), references=Value("int32"))
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, **values: Any) -> dict[str, float]:
        raise AssertionError("it is not reached")


def test_a_metric_that_takes_something_else() -> None:
    """A module of evaluate without predictions is refused, with what it takes."""
    model = wrapper()
    model.add_metric("area", Area)
    with pytest.raises(ValueError, match="takes prediction_scores, references"):
        model.test_on_dataset(digits(8), **OPTIONS)


def test_batches_of_different_width() -> None:
    """Positions that a row's batch does not have are NaN; several outputs need one width."""
    rows = [(torch.ones(width, 2), torch.zeros(width)) for width in (3, 3, 5, 5)]

    class PerToken(nn.Module):
        def __init__(self, several: bool) -> None:
            super().__init__()
            self.head, self.dropout, self.several = nn.Linear(2, 3), nn.Dropout(0.5), several

        def forward(self, x: Tensor) -> Any:
            logits = self.head(self.dropout(x)).transpose(1, 2)  # [B, 3, S]
            return (logits, logits) if self.several else logits

    one, several = (ModelWrapper(PerToken(flag), nn.CrossEntropyLoss()) for flag in (False, True))
    found = one.predict_on_dataset(rows, 2, 4, **OPTIONS, verbose=False)
    assert found.shape == (4, 3, 5, 4)
    assert np.isnan(found[:2, :, 3:]).all() and np.isfinite(found[2:]).all() and np.isfinite(found[:2, :, :3]).all()
    with pytest.raises(ValueError, match="the same shapes in each batch"):
        several.predict_on_dataset(rows, 2, 4, **OPTIONS, verbose=False)


def test_store(tmp_path: Path) -> None:
    """Predictions in a store are those in memory, and what is there is not done again, nor for other weights."""
    model, rows = wrapper(), digits(50)
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    expected_values = model.predict_on_dataset(rows, 8, 3, **OPTIONS, verbose=False)
    for _ in range(2):
        store = model.predict_on_dataset(rows, 8, 3, **OPTIONS, verbose=False, store=tmp_path / "store")
        np.testing.assert_array_equal(np.concatenate([*store]), expected_values)
        count = len(calls)
    model.predict_on_dataset(rows, 16, 3, **OPTIONS, verbose=False, store=tmp_path / "store")
    assert len(calls) == count
    model.reset_fcs()
    with pytest.raises(ValueError, match="weights"):
        model.predict_on_dataset(rows, 8, 3, **OPTIONS, verbose=False, store=tmp_path / "store")


def test_arrow_rows() -> None:
    """Tables with torch's format train, test, and are predicted and labelled in a loop."""
    x, y = (part[:40] for part in digits().tensors)
    table = datasets.Dataset.from_dict({"input": x.tolist(), "label": y.tolist()}).with_format("torch")
    active = ActiveLearningDataset(table)
    active.label_randomly(5)
    model = wrapper()
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    model.train_on_dataset(active, optimizer, 4, **OPTIONS)
    model.test_on_dataset(table, 4, **OPTIONS)
    loop = ActiveLearningLoop(active, model.predict_on_dataset, BALD(), 3, iterations=2, **OPTIONS, verbose=False)
    assert loop.step() and len(active) == 8


def test_half_precision_steps_in_full_scale() -> None:
    """The scale that float16 gives to a loss is not in the gradients that step."""
    ways = []
    for scale in (None, 2.0**16):
        model = wrapper()
        if scale:
            model.accelerator(False).scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
        torch.manual_seed(1)
        model.train_on_batch(*digits(8).tensors, optimizer, cuda=False)
        ways.append([weight.detach() for weight in model.model.parameters()])
    torch.testing.assert_close(*ways)


def test_nothing_else_changes() -> None:
    """Testing and predicting leave global randomness and the model's mode as they were."""
    model, rows = wrapper(), digits(20)
    model.train()
    state = torch.get_rng_state()
    model.test_on_dataset(rows, 8, **OPTIONS)
    model.predict_on_dataset(rows, 8, 2, **OPTIONS, verbose=False)
    model.predict_on_batch(rows.tensors[0], 2, False)
    assert model.model.training and torch.equal(torch.get_rng_state(), state)


def test_test_epochs() -> None:
    """`skip_epochs` tests after each so many epochs and after the last; numbers below 1 are refused."""
    model, rows = wrapper(), digits(20)
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    history = model.train_and_test_on_datasets(rows, rows, optimizer, 20, 5, **OPTIONS, skip_epochs=2)
    assert len(history) == 3
    with pytest.raises(ValueError, match="epoch >= 1, got 0"):
        model.train_on_dataset(rows, optimizer, epoch=0)
    for wrong in ({"patience": 0}, {"skip_epochs": 0}, {"epoch": 0}):
        with pytest.raises(ValueError, match="numbers >= 1"):
            model.train_and_test_on_datasets(rows, rows, optimizer, **wrong)


class Returning(nn.Module):
    """A network with dropout that returns something else than logits."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.layers, self.returned = network(), returned

    def forward(self, x: Tensor) -> Any:
        self.layers(x)
        return self.returned


def test_bad_input() -> None:
    """What cannot be told or done says who needs what, and what to do."""
    with pytest.raises(ValueError, match="cannot be told: pass ModelWrapper"):
        ModelWrapper(network(), lambda outputs, target: outputs.mean())
    with pytest.raises(ValueError, match=r"out of softmax, log_softmax, sigmoid, probability, none, or a function"):
        ModelWrapper(network(), nn.MSELoss(), probabilities="tanh")
    model = wrapper()
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    inputs = digits(8).tensors[0]
    with pytest.raises(ValueError, match="needs rows, and the dataset has none"):
        model.train_on_dataset(ActiveLearningDataset(digits(8)), optimizer, **OPTIONS)
    with pytest.raises(ValueError, match="need targets"):
        model.train_on_dataset(TensorDataset(inputs), optimizer, **OPTIONS)
    with pytest.raises(TypeError, match="got str: pass collate_fn"):
        model.train_on_dataset(digits(8), optimizer, **OPTIONS, collate_fn=lambda rows: "batch")
    broken = inputs.clone()
    broken[5] = torch.nan
    with pytest.raises(ValueError, match=r"Batch \d of epoch 1: the loss is nan"):
        model.train_on_dataset(TensorDataset(broken, digits(8).tensors[1]), optimizer, 2, **OPTIONS)
    with pytest.raises(ValueError, match="The batch: the loss is nan"):
        model.train_on_batch(broken, digits(8).tensors[1], optimizer, cuda=False)
    with pytest.raises(ValueError, match="Batch 2 of the test: the loss is nan"):
        model.test_on_dataset(TensorDataset(broken, digits(8).tensors[1]), 2, **OPTIONS)
    with pytest.raises(ValueError, match="one number, a mean over the batch, got"):
        ModelWrapper(network(), nn.CrossEntropyLoss(reduction="none")).test_on_dataset(digits(8), **OPTIONS)
    for returned in ({"first": inputs, "second": inputs}, (None, None), "words"):
        with pytest.raises(ValueError, match="needs a model"):
            ModelWrapper(Returning(returned), nn.CrossEntropyLoss()).predict_on_batch(inputs)
    with pytest.raises(ValueError, match="iterations >= 1"):
        model.predict_on_dataset(digits(8), 4, 0, **OPTIONS)
    with pytest.raises(ValueError, match="given None"):
        ModelWrapper(network(), None, probabilities="softmax").test_on_dataset(digits(8), **OPTIONS)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="use_cuda=True needs a GPU"):
            model.predict_on_dataset(digits(8), use_cuda=True)


def test_names_of_baal() -> None:
    """Methods have the arguments of Baal's, in its order."""
    import inspect

    wanted = {
        "train_on_dataset": "dataset optimizer batch_size epoch use_cuda workers collate_fn regularizer",
        "predict_on_dataset": "dataset batch_size iterations use_cuda workers collate_fn half verbose",
        "predict_on_batch": "data iterations",
    }
    for name, arguments in wanted.items():
        found = " ".join(inspect.signature(getattr(ModelWrapper, name)).parameters)
        assert re.match(f"self {arguments}", found)


def test_positions_that_the_criterion_ignores() -> None:
    """A module of evaluate sees no position whose target the criterion ignores."""
    target = torch.tensor([[0, 1, 255], [1, 255, 255]])  # a batch each
    outputs = 5 * F.one_hot(target % 254, 2).movedim(-1, 1).float()  # all right; anything at 255
    model = ModelWrapper(nn.Identity(), nn.CrossEntropyLoss(ignore_index=255))
    for name in ("accuracy", "nll"):
        model.add_metric(name, partial(metrics.load, name))
    model.test_on_dataset(TensorDataset(outputs, target), 1, **OPTIONS)
    found = model.get_metrics("test_")
    assert found["test_accuracy"] == 1 and found["test_nll"] == pytest.approx(np.log1p(np.exp(-5)), rel=1e-4)


def test_datasets_are_let_go() -> None:
    """What was trained on, tested and predicted is kept by nobody."""
    model, rows = wrapper(), digits(20)
    optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
    model.train_and_test_on_datasets(rows, rows, optimizer, 8, **OPTIONS)
    model.predict_on_dataset(rows, 8, 2, **OPTIONS, verbose=False)
    kept = weakref.ref(rows)
    del rows
    gc.collect()
    assert kept() is None


def test_batches_that_are_not_finite() -> None:
    """A batch of NaN is refused where it is trained, tested or predicted alone."""
    model, rows = wrapper(), digits(8)
    inputs, target = torch.full_like(rows.tensors[0], torch.nan), rows.tensors[1]
    with pytest.raises(ValueError, match="The batch: the loss is nan"):
        model.train_on_batch(inputs, target, torch.optim.SGD(model.model.parameters(), 0.1), cuda=False)
    with pytest.raises(ValueError, match="The batch: the loss is nan"):
        model.test_on_batch(inputs, target, cuda=False)
    with pytest.raises(ValueError, match="not finite"):
        model.predict_on_batch(inputs, 2, cuda=False)


def test_rows_need_an_axis_of_outputs() -> None:
    """A model that returns [B] is told what to return, before the pool is predicted."""
    model = ModelWrapper(nn.Sequential(nn.Dropout(), nn.Linear(4, 1), nn.Flatten(0)), nn.MSELoss())
    with pytest.raises(ValueError, match=r"let the model return \[B, 1\]"):
        model.predict_on_dataset(TensorDataset(torch.rand(5, 4)), **OPTIONS, verbose=False)


def test_weights_of_a_bayesian_module() -> None:
    """Weights that were saved from `MCDropoutModule` are loaded by the wrapper that was made of it."""
    module = MCDropoutModule(network())
    saved = {name: value + 1 for name, value in module.state_dict().items()}
    model = ModelWrapper(module, nn.CrossEntropyLoss())
    model.load_state_dict(saved)
    torch.testing.assert_close([*model.state_dict().values()], [*saved.values()])
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(saved | {"parent_module.other": torch.zeros(1)})


def test_a_collator_that_asks_for_labels() -> None:
    """Predicting tells a collator that needs what a pool hides what to do."""
    active = ActiveLearningDataset(digits(20))
    model = wrapper()
    with pytest.raises(ValueError, match="labels are hidden in a pool"):
        model.predict_on_dataset(
            active.pool, **OPTIONS, verbose=False, collate_fn=lambda rows: [torch.tensor([row[1] for row in rows])]
        )


def test_a_store_holds_one_output(tmp_path: Path) -> None:
    """Several outputs are refused for a store, before anything is written."""
    model = ModelWrapper(TwoInputs(True), None, probabilities="softmax")
    rows = TensorDataset(torch.ones(4, 2), torch.ones(4, 2), torch.zeros(4))
    assert len(model.predict_on_dataset(rows, 2, 3, **OPTIONS, verbose=False)) == 2
    with pytest.raises(ValueError, match="A store holds one output of a model, and this one has 2"):
        model.predict_on_dataset(rows, 2, 3, **OPTIONS, verbose=False, store=tmp_path / "store")


@pytest.mark.parametrize("criterion", [F.cross_entropy, F.nll_loss, partial(F.cross_entropy, ignore_index=7)])
def test_positions_that_a_function_ignores(criterion: Any) -> None:
    """A function leaves out the positions that its own default says."""
    ignored = 7 if isinstance(criterion, partial) else -100
    outputs, target = torch.tensor([[5.0, -5], [-5, 5], [-5, 5]]), torch.tensor([0, 1, ignored])
    model = ModelWrapper(nn.Identity(), criterion, probabilities="softmax")
    model.add_metric("accuracy", partial(metrics.load, "accuracy"))
    model.test_on_dataset(TensorDataset(outputs, torch.where(target == 1, 0, target)), 3, **OPTIONS)
    assert model.get_metrics("test_")["test_accuracy"] == 0.5


class Squares(evaluate.Metric):
    """Mean squared error."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(predictions=Value("float"), references=Value("float"))
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"squares": float(np.square(np.subtract(predictions, references)).mean())}


def test_values_that_a_function_gives() -> None:
    """Of one value that a function makes of the outputs there is no class to choose: it is the prediction."""
    outputs, target = torch.tensor([[1.0, 1], [2, 1], [3, 1]]), torch.tensor([1.0, 2, 6])
    model = ModelWrapper(
        nn.Identity(),
        lambda found, wanted: F.gaussian_nll_loss(found[:, 0], wanted, found[:, 1]),
        probabilities=lambda found: found[:, :1],
    )
    model.add_metric("squares", Squares)
    model.test_on_dataset(TensorDataset(outputs, target), 2, **OPTIONS)
    assert model.get_metrics("test_")["test_squares"] == 3


@pytest.mark.parametrize("made", [nn.BCELoss(), F.binary_cross_entropy])
def test_outputs_that_are_probabilities(made: Any) -> None:
    """Of a criterion of probabilities those above one half are classes."""
    rows = TensorDataset(torch.tensor([[0.9], [0.4], [0.6]]), torch.tensor([[1.0], [0], [0]]))
    model = ModelWrapper(nn.Identity(), made)
    model.add_metric("accuracy", partial(metrics.load, "accuracy"))
    model.test_on_dataset(rows, 2, **OPTIONS)
    assert model.get_metrics("test_")["test_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("made", [nn.MSELoss(), F.l1_loss, nn.BCEWithLogitsLoss()])
def test_a_target_is_compared_with_its_own_output(made: Any) -> None:
    """Targets [B] beside outputs [B, 1] are not compared with those of other rows, in training and tests."""
    outputs, target = torch.tensor([[1.0], [2], [3]]), torch.tensor([1.0, 0, 1])
    model = ModelWrapper(nn.Sequential(nn.Identity()), made)
    wanted = float(made(outputs[:, 0], target))
    assert model.test_on_dataset(TensorDataset(outputs, target), 3, **OPTIONS) == pytest.approx(wanted)
    assert model.test_on_batch(outputs, target).item() == pytest.approx(wanted)
    scaled = ModelWrapper(nn.Linear(1, 1), made)
    nn.init.ones_(scaled.model.weight), nn.init.zeros_(scaled.model.bias)
    optimizer = torch.optim.SGD(scaled.model.parameters(), 0.0)
    assert scaled.train_on_dataset(TensorDataset(outputs, target), optimizer, 3, **OPTIONS) == [pytest.approx(wanted)]


def test_settings_tell_criteria_apart() -> None:
    """What a criterion is set to is in the settings."""
    criteria = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(torch.ones(10))]
    assert len({json.dumps(ModelWrapper(network(), criterion).settings) for criterion in criteria}) == 3


def test_losses_that_are_sums_are_refused() -> None:
    """A sum over the batch would make the loss depend on the size of batches."""
    with pytest.raises(ValueError, match='reduction="mean"'):
        ModelWrapper(network(), nn.CrossEntropyLoss(reduction="sum"))


class OfParts(nn.Module):
    """A network whose input is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        return self.layer(parts["x"] + parts["y"])


def test_losses_are_means_over_rows() -> None:
    """Batches count by their rows, whatever the rows are: the last one is smaller."""
    x, y = torch.randn(9, 2), torch.arange(9) % 3
    rows = [({"x": row, "y": row}, label) for row, label in zip(x, y, strict=True)]
    model = ModelWrapper(OfParts(), nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.model.parameters(), 0.0)
    found = model.train_on_dataset(rows, optimizer, 8, **OPTIONS)
    assert found == [pytest.approx(model.test_on_dataset(rows, 8, **OPTIONS))]


def test_targets_of_any_kind_are_tested() -> None:
    """What a target is made of comes to the criterion whole, from the last batch, too."""
    rows = [(torch.ones(2), {"classes": torch.arange(6), "name": f"row {number}"}) for number in range(9)]
    seen: list[Any] = []

    def criterion(outputs: Tensor, target: Any) -> Tensor:
        seen.append((list(target["classes"].shape), target["name"]))
        return outputs.mean()

    ModelWrapper(nn.Identity(), criterion, probabilities="none").test_on_dataset(rows, 8, **OPTIONS)
    assert seen == [([8, 6], [f"row {number}" for number in range(8)]), ([1, 6], ["row 8"])]


def test_texts_are_refused() -> None:
    """Rows that are texts do not pass for several inputs of the model."""
    with pytest.raises(ValueError, match="rows that are texts: give collate_fn"):
        wrapper().predict_on_dataset(["one", "two"], **OPTIONS, verbose=False)


def test_all_layers_begin_as_new_ones() -> None:
    """What a layer makes of the weights of its parts is there after `reset_all`."""
    attention = ModelWrapper(nn.MultiheadAttention(4, 2), nn.MSELoss())
    nn.init.ones_(attention.model.out_proj.bias)
    attention.reset_all()
    assert (attention.model.out_proj.bias == 0).all()  # as in a new one, of which a new Linear's are not


def test_members_in_a_region_of_autocast() -> None:
    """Members differ where somebody has opened autocast, which keeps the weights that it has seen."""
    model, rows = EnsembleModelWrapper(network(0.0), nn.CrossEntropyLoss()), digits(8)
    for shift in (0.0, 3.0):
        model.model[-1].bias.data[0] += shift
        model.add_checkpoint()
    plain = model.predict_on_batch(rows.tensors[0])
    model.model[-1].bias.data[0] -= 6  # as no member has it
    with torch.autocast("cpu", torch.bfloat16):
        own = model.model(rows.tensors[0])
        found = model.predict_on_batch(rows.tensors[0])
        loss = model.test_on_dataset(rows, 8, **OPTIONS, average_predictions=2)
        torch.testing.assert_close(model.model(rows.tensors[0]), own)
    assert (plain[..., 0] - plain[..., 1]).abs().max() > 0.3
    torch.testing.assert_close(found, plain, atol=0.02, rtol=0)
    assert loss == pytest.approx(model.test_on_dataset(rows, 8, **OPTIONS, average_predictions=2), abs=0.02)


def test_a_patched_model_that_an_ensemble_refuses_stays_patched() -> None:
    """It is the caller's still."""
    patched = patch_module(network())
    with pytest.raises(ValueError, match="not patched"):
        EnsembleModelWrapper(patched, nn.CrossEntropyLoss())
    inputs = digits(4).tensors[0]
    assert (patched.eval()(inputs) != patched(inputs)).any()


def test_members_are_put_in_place_once_for_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a draw of an ensemble costs more than a batch, and is done for eight of them at once."""
    model, rows = EnsembleModelWrapper(network(), nn.CrossEntropyLoss()), digits(40)
    model.add_checkpoint()
    opened = []
    draw = Ensemble.draw
    monkeypatch.setattr(Ensemble, "draw", lambda *arguments: opened.append(1) or draw(*arguments))
    model.predict_on_dataset(rows, 4, **OPTIONS, verbose=False)
    assert len(opened) == 2  # of ten batches
