"""Accelerate, on the device that a call asks for, and what its processes have together."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import GradientState, PartialState
from accelerate.utils import (
    GradientAccumulationPlugin,
    broadcast,
    pad_across_processes,
    parse_flag_from_env,
    recursively_apply,
)
from torch import Tensor, nn

_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class DeviceAccelerator(Accelerator):  # type: ignore[misc]  # accelerate ships no types
    """An `Accelerator` on a device of its own, where Accelerate has one for the whole process.

    Without it, who asks for the CPU first would stay there for good, and who asks for it later could not have it. How
    many batches others accumulate stays as they have it.

    Args:
        use_cuda: Whether to use a GPU; None takes the device that Accelerate has for the process.
        **arguments: As `Accelerator`.

    Raises:
        ValueError: There is no GPU, or several processes that exchange over another kind of device; a precision that
            the device cannot have.
    """

    def __init__(self, use_cuda: bool | None = None, **arguments: Any) -> None:
        if use_cuda and not torch.cuda.is_available():
            raise ValueError("use_cuda=True needs a GPU that torch sees, and there is none.")
        # Processes that were launched together exchange over the kind of device that is asked for first.
        on_cpu = use_cuda is False and "LOCAL_RANK" in os.environ
        shared = PartialState(cpu=on_cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))
        kind = shared.device.type if use_cuda is None else "cuda" if use_cuda else "cpu"
        self._is_elsewhere = kind != shared.device.type
        if self._is_elsewhere and shared.num_processes > 1:
            raise ValueError(
                f"use_cuda={use_cuda} with {shared.num_processes} processes that exchange over {shared.device.type}: "
                "leave use_cuda out, and set ACCELERATE_USE_CPU=true for the CPU."
            )
        self._device = torch.device(kind) if self._is_elsewhere else shared.device
        if accumulated := GradientState().plugin_kwargs:  # of who made an accelerator before, and goes on with it
            arguments["gradient_accumulation_plugin"] = GradientAccumulationPlugin(**accumulated)
        super().__init__(**arguments)
        if self.mixed_precision == "fp16" and kind == "cpu":
            raise ValueError("fp16 needs a GPU, whose kernels have it: take bf16 on the CPU, or no mixed precision.")

    @property
    def device(self) -> torch.device:
        return self._device

    def autocast(self, *arguments: Any, **named: Any) -> AbstractContextManager[None]:
        """The precision's context, for this device."""
        if not self._is_elsewhere:
            context: AbstractContextManager[None] = super().autocast(*arguments, **named)
            return context
        precision = _PRECISIONS.get(self.mixed_precision)
        return torch.autocast(self._device.type, precision) if precision else nullcontext()


@torch.no_grad()
def agree_on_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers: each has seen other rows, and batch norm's statistics tell."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.clone()))


def gathered(outputs: Any, target: Any, ignored: int | None, accelerator: Accelerator) -> tuple[Any, Any]:
    """Outputs and target of all processes, no row twice; positions that one's rows are shorter by have no target.

    Raises:
        ValueError: Outputs of the processes have different shapes, and the criterion leaves out no position.
        TypeError: A target has parts that are no tensors, which processes do not exchange.
    """
    if accelerator.num_processes > 1:
        try:
            recursively_apply(lambda part: part, target, error_on_other_type=True)
        except TypeError as error:
            raise TypeError(f"Several processes test with targets that are tensors only: {error}") from None
        if isinstance(outputs, Tensor) and isinstance(target, Tensor):
            outputs, target = _as_long(outputs, target, ignored, accelerator)
        outputs, target = accelerator.gather_for_metrics((outputs, target))
    return outputs, target


def _as_long(outputs: Tensor, target: Tensor, ignored: int | None, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Outputs [B, C, *S] and target [B, *S], of the same *S on all processes."""
    shapes = accelerator.gather(torch.tensor([outputs.shape[1:]], device=outputs.device))
    if bool((shapes == shapes[0]).all()):
        return outputs, target
    if ignored is None or outputs.shape[2:] != target.shape[1:]:
        raise ValueError(
            f"Outputs of a row have shapes {shapes.unique(dim=0).tolist()} on the processes: pad all rows to one "
            "length, or give the criterion an ignore_index."
        )
    for axis in range(2, outputs.ndim):
        outputs = pad_across_processes(outputs, dim=axis)
        target = pad_across_processes(target, dim=axis - 1, pad_index=ignored)
    return outputs, target
