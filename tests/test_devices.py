"""`DeviceAccelerator`: each call on the device that it asks for, and nobody else's accumulation touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.utils.data import TensorDataset

from baal_hf import Deterministic, ModelWrapper
from baal_hf.devices import DeviceAccelerator

ROWS = TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What Accelerate keeps for a process begins and ends with the test."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def process_on(device: str) -> Iterator[None]:
    """As if Accelerate had another device for this process."""
    PartialState().device = torch.device(device)
    yield


def wrapper(**arguments: object) -> ModelWrapper:
    torch.manual_seed(0)
    return ModelWrapper(nn.Linear(4, 2), nn.CrossEntropyLoss(), posterior=Deterministic(), **arguments)


def stepped(model: ModelWrapper, use_cuda: bool | None = None) -> torch.Tensor:
    """The weights after one step."""
    optimizer = torch.optim.SGD(model.model.parameters(), 1.0)
    model.train_on_dataset(ROWS, optimizer, batch_size=8, use_cuda=use_cuda, workers=0)
    return model.model.weight.detach().clone()


def test_the_cpu_where_the_process_is_elsewhere() -> None:
    """`use_cuda=False` trains, tests and predicts on the CPU whatever device Accelerate has."""
    expected = stepped(wrapper())
    _forget()
    with process_on("meta"):
        model = wrapper()
        assert model.accelerator(None).device.type == "meta"
        torch.testing.assert_close(stepped(model, use_cuda=False), expected)
        model.test_on_dataset(ROWS, use_cuda=False, workers=0)
        probs = model.predict_on_dataset(ROWS, iterations=1, use_cuda=False, workers=0, verbose=False)
        assert probs.shape == (8, 2, 1)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_precision_is_the_devices(elsewhere: bool) -> None:
    """bf16 is the CPU's, too; fp16 is not, and where none is asked for a surrounding one stays."""
    with process_on("meta" if elsewhere else "cpu"):
        seen: list[torch.dtype] = []
        model = wrapper(mixed_precision="bf16")
        model.model.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        model.predict_on_batch(ROWS.tensors[0], 1, cuda=False)
        AcceleratorState._reset_state()
        with pytest.raises(ValueError, match="fp16 needs a GPU"):
            DeviceAccelerator(False, mixed_precision="fp16")
        AcceleratorState._reset_state()
        plain = DeviceAccelerator(False, mixed_precision="no")
        with torch.autocast("cpu", torch.bfloat16), plain.autocast():
            seen.append(nn.Linear(4, 2)(ROWS.tensors[0]).dtype)
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_processes_exchange_over_one_kind_of_device() -> None:
    """With several processes on GPUs nobody can be on the CPU."""
    with process_on("meta"):
        PartialState().num_processes = 2
        with pytest.raises(ValueError, match=r"2 processes that exchange over meta: .*ACCELERATE_USE_CPU=true"):
            DeviceAccelerator(False)


def test_what_others_accumulate_is_theirs() -> None:
    """Gradients are whole where somebody accumulates batches, who goes on with as many."""
    expected = stepped(wrapper())
    _forget()
    theirs = Accelerator(gradient_accumulation_steps=4, cpu=True)
    torch.testing.assert_close(stepped(wrapper()), expected)
    assert theirs.gradient_accumulation_steps == 4


def test_accumulation_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are whole also where `accelerate launch` was told to accumulate."""
    expected = stepped(wrapper())
    _forget()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    torch.testing.assert_close(stepped(wrapper()), expected)
