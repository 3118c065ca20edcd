"""SemiSupervisedModelWrapper: ModelWrapper's training, and the gradient of unlabelled rows added to it."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baal_hf import ActiveLearningDataset, MCDropoutModule, ModelWrapper, SemiSupervisedModelWrapper
from baal_hf.semisupervised import MeanTeacher, PiModel, PseudoLabels, SemiSupervisedMethod, ramp_up

METHODS = ["pi_model", "mean_teacher", "pseudo_labels"]
OPTIONS = {"use_cuda": False, "workers": 0}


def rows(size: int, seed: int = 0) -> TensorDataset:
    """Vectors whose first entry is their number and whose class is that of the largest of the next three."""
    inputs = torch.randn(size, 5, generator=torch.Generator().manual_seed(seed))
    inputs[:, 0] = torch.arange(size)
    return TensorDataset(inputs, inputs[:, 1:4].argmax(1))


def network(p: float = 0.5) -> nn.Module:
    """A network with dropout, the same each time, and the same noise in training."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))


def wrapper(model: nn.Module | None = None, criterion: Any = None, **settings: Any) -> SemiSupervisedModelWrapper:
    """One of a network, with thirty unlabelled rows unless there are others."""
    own = {"unlabelled_dataset": rows(30, seed=1), **settings}
    return SemiSupervisedModelWrapper(model or network(), criterion or nn.CrossEntropyLoss(), **own)


def trained(model: ModelWrapper, epochs: int = 3, rate: float = 1e-3, train: Any = None, **settings: Any) -> Tensor:
    """All weights in a row after epochs of five steps of four rows, the last of two."""
    optimizer = torch.optim.SGD(model.model.parameters(), rate)
    model.train_on_dataset(rows(18) if train is None else train, optimizer, 4, epochs, **{**OPTIONS, **settings})
    return weights(model.model)


def weights(model: nn.Module) -> Tensor:
    """All of them in a row, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


class Seen(SemiSupervisedMethod):
    """Remembers the numbers of the rows it is given, and has a loss that is the mean logit of the first class."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.calls: list[Any] = []

    def start(self, model, checkpoint=None):
        self.calls.append("start")

    def loss(self, model, batch, forward):
        assert model.training
        (inputs,) = batch.values() if isinstance(batch, dict) else batch
        self.batches.append(inputs.flatten(1)[:, 0].int().tolist())
        return forward(model, batch)[:, 0].mean()

    def step(self, model, steps):
        self.calls.append(steps)


@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_plain_training(method: str) -> None:
    """With weight 0 all weights equal those of ModelWrapper after each step, bit by bit, and so do losses."""
    histories: list[list[Tensor]] = []
    results = []
    for made in (
        lambda model: ModelWrapper(model, nn.CrossEntropyLoss()),
        lambda model: wrapper(model, method=method, unlabelled_weight=0),
    ):
        model, history = network(), []
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        optimizer.register_step_post_hook(lambda *_, model=model, history=history: history.append(weights(model)))
        results.append(made(model).train_and_test_on_datasets(rows(18), rows(9), optimizer, 4, 3, **OPTIONS))
        histories.append(history)
    assert results[0] == results[1]
    assert len(histories[0]) == len(histories[1]) == 15
    assert all(map(torch.equal, *histories))


@pytest.mark.parametrize("method", ["pi_model", "mean_teacher", PseudoLabels(0.4)])
def test_unlabelled_rows_change_what_is_learned(method: Any) -> None:
    """With a weight above 0 each method moves the weights elsewhere, and its loss is told beside that of both."""
    plain, both = wrapper(unlabelled_weight=0), wrapper(method=method, unlabelled_weight=10)
    assert not torch.equal(trained(plain), trained(both))
    assert both.get_metrics("train")["train_unlabelled_loss"] > 0
    assert list(plain.get_metrics()) == ["train_loss"]


def test_the_gradient_is_that_of_both_parts() -> None:
    """A step's gradient is ModelWrapper's, its regularizer's too, plus weight and ramp times that of the method."""
    gradients: dict[float, list[Tensor]] = {0.0: [], 0.5: []}
    for weight, found in gradients.items():
        model = network(0)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)  # the same weights in each step
        optimizer.register_step_pre_hook(
            lambda *_, model=model, found=found: found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        )
        settings = {"method": Seen(), "unlabelled_weight": weight, "ramp_up_steps": 3, "unlabelled_dataset": rows(1)}
        wrapped = wrapper(model, **settings)
        wrapped.train_on_dataset(
            rows(4), optimizer, 4, 5, **OPTIONS, regularizer=lambda model=model: model[0].weight.norm()
        )
    model = network(0)
    model(rows(1).tensors[0])[:, 0].mean().backward()
    by_hand = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    assert by_hand.abs().sum() > 0
    for t, (both, labelled) in enumerate(zip(gradients[0.5], gradients[0.0], strict=True)):
        torch.testing.assert_close(both - labelled, 0.5 * ramp_up(t, 3) * by_hand, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("ratio", "size"), [(0.5, 4), (0.2, 1), (0.75, 12), (7 / 8, 28), (0.01, 1)])
def test_the_ratio_is_the_share_of_unlabelled_rows(ratio: float, size: int) -> None:
    """Beside four labelled rows come 4 r / (1 - r) unlabelled ones, at least one."""
    method = Seen()
    trained(wrapper(method=method, ratio=ratio))
    assert [len(batch) for batch in method.batches] == [size] * 15


def test_rows_are_reshuffled() -> None:
    """An epoch has each labelled row once, a pass each unlabelled row, in orders that differ, named by the seed."""
    came: list[int] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(0)

        def forward(self, inputs: Tensor) -> Tensor:
            came.extend(inputs[:, 0].int().tolist())
            return self.inner(inputs)

    methods = [Seen(), Seen(), Seen()]
    for method, seed in zip(methods, (0, 0, 1), strict=True):
        came.clear()
        trained(wrapper(Spy(), method=method, seed=seed), epochs=12)
    unlabelled = [number for batch in methods[0].batches for number in batch]
    passes = [unlabelled[i : i + 30] for i in range(0, len(unlabelled), 30)]
    assert len(passes) == 8 and all(sorted(one) == list(range(30)) for one in passes)
    assert len(set(map(tuple, passes))) == 8
    assert methods[0].batches == methods[1].batches != methods[2].batches

    labelled, place = [], 0  # in each step labelled rows come first
    for number in range(12):
        epoch = []
        for step in range(5):
            size = 4 if step < 4 else 2
            epoch += came[place : place + size]
            place += size + len(methods[2].batches[5 * number + step])
        labelled.append(epoch)
    assert all(sorted(epoch) == list(range(18)) for epoch in labelled)
    assert len(set(map(tuple, labelled))) == 12


def test_each_training_is_its_own() -> None:
    """A training starts the method once, counts its steps over epochs from 1, and takes up other rows."""
    method = Seen()
    model = wrapper(method=method)
    trained(model, 2)
    model.unlabelled_dataset = rows(1)
    optimizer = torch.optim.SGD(model.model.parameters(), 1e-3)
    model.train_and_test_on_datasets(rows(18), rows(3), optimizer, 4, 2, **OPTIONS)
    assert method.calls == 2 * ["start", *range(1, 11)]
    assert method.batches[10:] == 10 * [4 * [0]]


def test_the_pool_of_the_moment_is_unlabelled() -> None:
    """An ActiveLearningDataset means its pool at the time that training starts; an empty one stops training."""
    dataset = ActiveLearningDataset(rows(12))
    dataset.label_randomly(4)
    method = Seen()
    model = wrapper(method=method, unlabelled_dataset=dataset)
    for left in (8, 1):
        method.batches.clear()
        trained(model, 8, train=dataset)
        assert {number for batch in method.batches for number in batch} == set(dataset.pool_ids.tolist())
        assert len(dataset.pool_ids) == left
        dataset.label_randomly(len(dataset.pool_ids) - 1)
    dataset.label_randomly(1)
    with pytest.raises(ValueError, match="needs unlabelled rows, there are none"):
        trained(model, train=dataset)


def test_dictionaries_and_positions() -> None:
    """Rows are dictionaries as well, whose labels are hidden, and outputs have positions, of which padding is none."""
    sizes = []

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(1, 3, 1)

        def forward(self, values: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(values[:, None])  # [B, C, S]

    class Sizes(PseudoLabels):
        def loss(self, model, batch, forward):
            assert set(batch) == {"values", "attention_mask"}
            sizes.append((forward(model, batch).shape, int(batch["attention_mask"].sum())))
            return super().loss(model, batch, forward)

    table = {
        "values": [[1.0, 2.0, 0.0]] * 6,
        "attention_mask": [[1, 1, 0], [1, 0, 0]] * 3,
        "labels": [[0, 1, -100]] * 6,
    }
    dataset = Dataset.from_dict(table).with_format("torch")
    trained(wrapper(Tokens(), method=Sizes(), unlabelled_dataset=dataset), train=dataset)
    assert all(shape == (tokens, 3) for shape, tokens in sizes)


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_as_before(method: str) -> None:
    """Tests are deterministic, of a patched model too, and draws equal those of a plain wrapper of the same weights."""
    for module in (network(), MCDropoutModule(network())):
        model = wrapper(module, method=method)
        trained(model)
        assert not model.model.training
        plain = ModelWrapper(model.model, nn.CrossEntropyLoss())
        assert model.test_on_dataset(rows(9), **OPTIONS) == plain.test_on_dataset(rows(9), **OPTIONS)
        probs = model.predict_on_dataset(rows(9), iterations=3, **OPTIONS, verbose=False)
        assert abs(probs[..., 0] - probs[..., 1]).max() > 0
        if module is model.model:
            assert (probs == plain.predict_on_dataset(rows(9), iterations=3, **OPTIONS, verbose=False)).all()


def test_the_teacher_is_tested_in_the_models_place() -> None:
    """Inside the block tests are of the teacher, an average over this training's steps; afterwards of the model."""
    model = wrapper(method=MeanTeacher(0.9))
    trained(model, rate=0.1)
    loss = model.test_on_dataset(rows(9), **OPTIONS)
    with model.method.swapped_into(model.model):
        assert model.test_on_dataset(rows(9), **OPTIONS) != loss
    assert model.test_on_dataset(rows(9), **OPTIONS) == loss


def test_workers_read_the_same() -> None:
    """With worker processes the unlabelled batches are those without."""
    methods = [Seen(), Seen()]
    for workers, method in enumerate(methods):
        trained(wrapper(method=method), epochs=2, workers=workers)
    assert methods[0].batches == methods[1].batches


class Noisy(torch.utils.data.Dataset):
    """Rows that are random anew each time they are read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(5)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_rows_are_other_ones_in_each_epoch(workers: int) -> None:
    """Augmentations of unlabelled rows do not come again with the next epoch, in worker processes either."""
    seen: list[float] = []

    class First(Seen):
        def loss(self, model, batch, forward):
            seen.extend(batch[0][:, 0].tolist())
            return forward(model, batch).mean()

    trained(wrapper(method=First(), unlabelled_dataset=Noisy()), epochs=3, workers=workers)
    assert len(seen) == len(set(seen)) == 60


def test_no_batch_is_kept() -> None:
    """Batches of unlabelled rows die once they are learned from."""
    alive, references = [], []

    class Watching(SemiSupervisedMethod):
        def loss(self, model, batch, forward):
            alive.append(sum(reference() is not None for reference in references))
            references.append(weakref.ref(batch[0]))
            return forward(model, batch).mean()

    trained(wrapper(method=Watching()))
    assert len(references) == 15 and max(alive) <= 1


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """A loss of NaN, of either part, stops training; the message names the batch and the part."""
    poisoned = rows(18)
    poisoned.tensors[0][:] = math.nan
    with pytest.raises(ValueError, match=r"Batch 0 of epoch 1: the loss of the unlabelled rows beside it is nan"):
        trained(wrapper(unlabelled_dataset=poisoned))
    with pytest.raises(ValueError, match=r"Batch 0 of epoch 1: the loss is nan"):
        trained(wrapper(), train=poisoned)

    class Failing(Seen):
        def loss(self, model, batch, forward):
            return super().loss(model, batch, forward) * (math.inf if len(self.batches) == 8 else 1)

    with pytest.raises(ValueError, match=r"Batch 2 of epoch 2: .* unlabelled rows beside it is -?inf"):
        trained(wrapper(method=Failing()))


def test_single_batches_have_no_unlabelled_rows() -> None:
    """train_on_batch learns from a batch with weight 0 only: outside of an epoch there are no unlabelled batches."""
    for weight in (0, 1):
        model = wrapper(unlabelled_weight=weight)
        optimizer = torch.optim.SGD(model.model.parameters(), 0.1)
        if weight == 0:
            assert model.train_on_batch(*rows(4).tensors, optimizer, cuda=False) > 0
        else:
            with pytest.raises(RuntimeError, match="train_on_dataset and train_and_test_on_datasets only"):
                model.train_on_batch(*rows(4).tensors, optimizer, cuda=False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"unlabelled_dataset": []}, ValueError, "SemiSupervisedModelWrapper needs unlabelled rows, there are none"),
        ({"unlabelled_dataset": iter([])}, TypeError, "in any order"),
        ({"ratio": 0}, ValueError, r"ratio, the share of unlabelled rows, in \(0, 1\)"),
        ({"ratio": 1}, ValueError, r"ratio, the share of unlabelled rows, in \(0, 1\)"),
        ({"ratio": math.nan}, ValueError, r"ratio, the share of unlabelled rows, in \(0, 1\)"),
        ({"unlabelled_weight": -1}, ValueError, "unlabelled_weight >= 0"),
        ({"unlabelled_weight": math.inf}, ValueError, "unlabelled_weight >= 0"),
        ({"ramp_up_steps": -1}, ValueError, "ramp_up_steps >= 0"),
        ({"method": "fixmatch"}, ValueError, "pi_model, mean_teacher, pseudo_labels, got 'fixmatch'"),
        ({"method": PiModel}, TypeError, "SemiSupervisedMethod"),
        ({"criterion": nn.MSELoss()}, ValueError, "classes that exclude each other"),
        ({"probabilities": "sigmoid"}, ValueError, "classes that exclude each other"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each bad argument is refused before training, with what is needed."""
    with pytest.raises(error, match=message):
        wrapper(**settings)


def test_log_softmax_is_taken() -> None:
    """A model of log-probabilities learns as one of logits."""
    logits = wrapper(unlabelled_weight=5)
    probs = wrapper(nn.Sequential(network(), nn.LogSoftmax(1)), nn.NLLLoss(), unlabelled_weight=5)
    torch.manual_seed(1)
    expected = trained(logits)
    torch.manual_seed(1)
    torch.testing.assert_close(trained(probs), expected)


def test_unlabelled_rows_may_have_no_label() -> None:
    """Labels of unlabelled rows are not looked at, whatever they are, and a collator is told that there are none."""
    vectors = rows(30, seed=1).tensors[0]
    expected = trained(wrapper())
    torch.testing.assert_close(trained(wrapper(unlabelled_dataset=[(x, None) for x in vectors])), expected)
    named = [{"input": x, "label": None} for x in vectors]

    class Named(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    labelled = [{"input": x, "label": y} for x, y in rows(18)]
    torch.testing.assert_close(trained(wrapper(Named(*network()), unlabelled_dataset=named), train=labelled), expected)
    active = ActiveLearningDataset(rows(30, seed=1))
    active.label_randomly(5)

    def stacked(batch: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([row[0] for row in batch]), torch.stack([row[1] for row in batch])

    with pytest.raises(ValueError, match="labels are hidden in a pool"):
        trained(wrapper(unlabelled_dataset=active), collate_fn=stacked)


def test_settings_tell_what_training_depends_on() -> None:
    """Settings differ by criterion, method and weight, and are the same before and after training."""
    model = wrapper(method="mean_teacher")
    before = model.settings
    trained(model)
    assert model.settings == before
    others = [
        wrapper(),
        wrapper(method="mean_teacher", unlabelled_weight=2.0),
        wrapper(method=MeanTeacher(0.9)),
        wrapper(criterion=nn.CrossEntropyLoss(label_smoothing=0.3), method="mean_teacher"),
        ModelWrapper(network(), nn.CrossEntropyLoss()),
    ]
    assert all(other.settings != before for other in others)
