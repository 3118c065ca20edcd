"""Mean teacher: the model agrees with the average of its own weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from baal_hf.devices import agree_on_buffers
from baal_hf.posterior.base import unwrapped
from baal_hf.semisupervised.base import Augment, Forward, SemiSupervisedMethod

_NAME = "teacher.safetensors"


def mean_teacher(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of the probabilities of model and teacher.

    L = 1/(C N) Σ_i ‖softmax(f(x_i; θ, η)) − softmax(f(x_i; θ′, η′))‖²     (Tarvainen & Valpola, 2017; 1703.01780)

    >>> mean_teacher(torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])).item()  # (.5, .5) and (1, 0)
    0.25

    Args:
        logits: Of the model, [N, C, *S].
        teacher_logits: Of the teacher, [N, C, *S]; no gradient goes through them.

    Returns:
        Scalar in [0, 2/C], 0 where the two agree.

    Raises:
        ValueError: The shapes differ.
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"mean_teacher needs two passes over the same rows, got {list(logits.shape)} and "
            f"{list(teacher_logits.shape)}."
        )
    difference = logits.softmax(1) - teacher_logits.detach().softmax(1)  # [N, C, *S]
    return difference.square().mean()


@torch.no_grad()
def update_teacher(teacher: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the teacher's parameters towards the model's.

    θ′ ← α θ′ + (1 − α) θ

    Args:
        teacher: A copy of the model, changed in place. Its buffers, such as those of batch norm, stay its own.
        model: What is trained.
        decay: α, in [0, 1].
    """
    for average, parameter in zip(teacher.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, 1 - decay)


class MeanTeacher(SemiSupervisedMethod):
    """Mean teacher (Tarvainen & Valpola, 2017; 1703.01780): agree with an average of the model over its steps.

    After step t the decay is min(α, 1 − 1/(t + 1)), as in the authors' code: at first the teacher is the plain mean of
    the weights so far, and those of the start are soon forgotten. Both make their passes in training mode, with noise
    of their own.

    The teacher's weights are evaluated, predicted with or saved in the model's place:

        with trainer.method.swapped_into(trainer.model):
            trainer.evaluate()

    Args:
        decay: α, in (0, 1).
        augment: Changes a batch at random, anew for each pass; None leaves it as it is.

    Attributes:
        teacher: The averaged model, in training mode; None before training.

    Raises:
        ValueError: `decay` is not in (0, 1).
    """

    def __init__(self, decay: float = 0.99, augment: Augment | None = None) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"MeanTeacher needs a decay in (0, 1), got {decay}.")
        self.decay = decay
        self.augment = augment
        self.teacher: nn.Module | None = None
        self._swapped = False

    def start(self, model: nn.Module, checkpoint: Path | None = None) -> None:
        """Make the teacher a copy of the model, or what a checkpoint holds.

        Raises:
            ValueError: The checkpoint has no teacher, or what is trained has 16 bits, in which the average of steps
                does not move.
        """
        halves = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.itemsize < 4]
        if halves:
            raise ValueError(
                f"MeanTeacher averages small steps, which 16 bits lose, and {halves[0]} has no more: train weights of "
                "float32, under autocast (bf16=True, or mixed_precision)."
            )
        self.teacher = deepcopy(unwrapped(model)).requires_grad_(False).train()
        if checkpoint is not None:
            if not (checkpoint / _NAME).is_file():
                raise ValueError(f"{checkpoint} holds no {_NAME}: it was saved without MeanTeacher. Train anew.")
            load_model(self.teacher, checkpoint / _NAME)

    def loss(self, model: nn.Module, batch: Any, forward: Forward) -> Tensor:
        with torch.no_grad():
            teacher_logits = forward(self._started(), self.augment(batch) if self.augment else batch)  # [N, C]
        logits = forward(model, self.augment(batch) if self.augment else batch)  # [N, C]
        return mean_teacher(logits, teacher_logits)

    def step(self, model: nn.Module, steps: int) -> None:
        update_teacher(self._started(), unwrapped(model), min(self.decay, 1 - 1 / (steps + 1)))

    def end(self, accelerator: Accelerator) -> None:
        agree_on_buffers(self._started(), accelerator)

    def save(self, folder: Path) -> None:
        if self.teacher is not None and not self._swapped:  # the teacher's weights are then saved as the model's
            save_model(self.teacher, str(folder / _NAME))

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """The model has the teacher's weights and buffers for the length of a `with` block.

        Args:
            model: What was trained.

        Raises:
            ValueError: There is no teacher yet.
            RuntimeError: The teacher is swapped in already.
        """
        teacher, bare = self._started(), unwrapped(model)
        if self._swapped:
            raise RuntimeError("The teacher's weights are in the model already.")
        self._swapped = True
        _swap(teacher, bare)
        try:
            yield
        finally:
            _swap(teacher, bare)
            self._swapped = False

    def _started(self) -> nn.Module:
        if self.teacher is None:
            raise ValueError("MeanTeacher has no teacher before training: call start(model), or train().")
        return self.teacher


def _swap(teacher: nn.Module, model: nn.Module) -> None:
    """Exchange the values of all parameters and buffers; the tensors stay, for those who hold them."""
    pairs = zip(chain(teacher.parameters(), teacher.buffers()), chain(model.parameters(), model.buffers()), strict=True)
    for one, other in pairs:
        one.data, other.data = other.data, one.data
    torch.clear_autocast_cache()  # of weights that were there before, in an autocast region that somebody has opened
