"""N processes give ModelWrapper's answer of one: `accelerate launch tests/distributed/check_modelwrapper.py`."""

from __future__ import annotations

import gc
import sys
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from baal_hf import BALD, ActiveLearningDataset, ActiveLearningLoop, MCDropout, ModelWrapper, metrics

OPTIONS = {"workers": 0}


def rows(size: int) -> TensorDataset:
    """Vectors whose class is that of the largest of three entries."""
    inputs = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def wrapper() -> ModelWrapper:
    """The same in each process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    return ModelWrapper(model, nn.CrossEntropyLoss())


class Parts(nn.Module):
    """A network with batch norm, a frozen layer, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.dropout = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.last, self.unused = nn.Linear(16, 3), nn.Linear(2, 2)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(x)).relu()))


def check_parts(processes: int) -> None:
    """Layers that are frozen and thawed, unused or batch norm do not make the processes differ; NaN stops all."""
    model, dataset = ModelWrapper(Parts(), nn.CrossEntropyLoss()), rows(64)
    optimizer = torch.optim.SGD(model.model.parameters(), 1e-1)
    for trained in (False, True, False):
        model.model.first.requires_grad_(trained)
        model.train_on_dataset(dataset, optimizer, 8, 2, **OPTIONS)
        state = [value.double().sum().item() for value in model.state_dict().values()]
        assert gather_object([state]) == [state] * processes, "each process has weights or statistics of its own"
    same = TensorDataset(torch.ones(4, 8), torch.zeros(4, dtype=torch.long))
    probs = model.predict_on_dataset(same, 1, 2, **OPTIONS, verbose=False)
    np.testing.assert_allclose(probs, probs[:1].repeat(4, 0), atol=1e-6)
    for weight in model.model.parameters():
        weight.requires_grad_(False)
    model.test_on_dataset(dataset, 8, **OPTIONS)
    inputs, target = dataset.tensors
    broken = TensorDataset(torch.where(torch.arange(64)[:, None] == 5, torch.nan, inputs), target)
    model.model.requires_grad_(True)
    try:
        model.train_on_dataset(broken, optimizer, 8, **OPTIONS)
    except ValueError as error:
        assert "of epoch 1: the loss is" in str(error)
    else:
        raise AssertionError("a loss that is NaN passed")


class PerPosition(nn.Module):
    """Logits [B, 2, S] of rows [B, S]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, -x], 1)


def check_widths() -> None:
    """Rows of different width on the processes are tested as on one; without a target to leave out they are refused."""
    rows = [(torch.full((size,), 0.1 * size), torch.arange(size) % 2) for size in (2, 5)]
    model = ModelWrapper(PerPosition(), nn.CrossEntropyLoss())
    model.add_metric("accuracy", partial(metrics.load, "accuracy"))
    inputs, targets = (torch.cat(parts)[None] for parts in zip(*rows, strict=True))
    alone = cross_entropy(PerPosition()(inputs), targets).item()  # of all positions
    np.testing.assert_allclose(model.test_on_dataset(rows, 1, **OPTIONS), alone, rtol=1e-5)
    np.testing.assert_allclose(model.get_metrics("test_")["test_accuracy"], 4 / 7)
    refusing = ModelWrapper(PerPosition(), lambda outputs, target: outputs.mean(), probabilities="softmax")
    try:
        refusing.test_on_dataset(rows, 1, **OPTIONS)
    except ValueError as error:
        assert "pad all rows to one length" in str(error)
    else:
        raise AssertionError("rows of different width passed")


def check_targets() -> None:
    """Targets of several parts are tested if they are tensors; text is refused."""
    inputs, classes = rows(6).tensors
    model = ModelWrapper(nn.Linear(8, 3), lambda out, target: cross_entropy(out, target["class"]), probabilities="none")
    told = [(x, {"class": y, "weight": 1.0}) for x, y in zip(inputs, classes, strict=True)]
    with torch.no_grad():
        alone = cross_entropy(model.model(inputs), classes).item()
    np.testing.assert_allclose(model.test_on_dataset(told, 2, **OPTIONS), alone, rtol=1e-5)
    try:
        model.test_on_dataset([(x, {**target, "name": "a"}) for x, target in told], 2, **OPTIONS)
    except TypeError as error:
        assert "targets that are tensors only" in str(error)
    else:
        raise AssertionError("a target with text passed")


def main() -> None:
    """Pools smaller and larger than the number of processes; then training and a loop."""
    for size in (1, 2, 3, 7, 11):
        model, dataset = wrapper(), rows(size)
        probs = model.predict_on_dataset(dataset, 2, 3, **OPTIONS, verbose=False)
        with torch.no_grad():
            for t in range(3):
                with MCDropout().draw(model.model, t):
                    alone = model.model(dataset.tensors[0]).softmax(1)
                np.testing.assert_allclose(probs[..., t], alone, rtol=0, atol=1e-5)
            loss = cross_entropy(model.model.eval()(dataset.tensors[0]), dataset.tensors[1]).item()
        np.testing.assert_allclose(model.test_on_dataset(dataset, 2, **OPTIONS), loss, rtol=1e-5)
    assert model.accelerator(None).num_processes == int(sys.argv[1])

    model, dataset = wrapper(), rows(64)
    optimizer = torch.optim.Adam(model.model.parameters(), 1e-2)
    losses = model.train_on_dataset(dataset, optimizer, 8, 10, **OPTIONS)
    assert losses[-1] < losses[0]
    weights = [value.sum().item() for value in model.model.parameters()]
    assert gather_object([weights]) == [weights] * int(sys.argv[1]), "each process has weights of its own"
    assert gather_object([losses]) == [losses] * int(sys.argv[1])

    check_parts(int(sys.argv[1]))
    if int(sys.argv[1]) == 2:
        check_widths()
        check_targets()

    active = ActiveLearningDataset(dataset)
    active.label_randomly(4)
    loop = ActiveLearningLoop(active, model.predict_on_dataset, BALD(), 20, iterations=3, workers=0, verbose=False)
    while loop.step():
        labelled = active.labelled_map.tolist()
        assert gather_object([labelled]) == [labelled] * int(sys.argv[1]), "the processes label different rows"
    if PartialState().is_main_process:
        print("the processes agree")


if __name__ == "__main__":
    main()
    gc.collect()  # the trainer goes first: what exchanges its gradients would wait for ever for gloo's threads to end
    PartialState().destroy_process_group()  # which, left running, abort one exit in five
