"""What a training loop asks of a method that learns from rows without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Tensor]
"""A pass of a model over a batch: logits [N, C] of each position that is no padding, N = B where rows have one."""

Augment = Callable[[Any], Any]
"""A batch, changed at random so that its classes stay the same; positions that are padding stay so."""


class SemiSupervisedMethod:
    """A loss on unlabelled rows, and what it keeps between steps.

    A training loop calls `start` once the model is where it is trained, `loss` in each step, `step` after each step of
    the optimizer, and `end`. The model is in training mode, and `loss` leaves it so.
    """

    def start(self, model: nn.Module, checkpoint: Path | None = None) -> None:
        """Training begins, or goes on from a checkpoint's folder.

        Args:
            model: What is trained, not wrapped for several processes.
            checkpoint: Folder that `save` was given; None for new training.
        """

    def loss(self, model: nn.Module, batch: Any, forward: Forward) -> Tensor:
        """The loss of a batch of unlabelled rows, a scalar with a gradient.

        Args:
            model: What is trained, also wrapped for several processes.
            batch: Inputs of the model, without labels.
            forward: Gives the logits [N, C] of a model for a batch.
        """
        raise NotImplementedError

    def step(self, model: nn.Module, steps: int) -> None:
        """The optimizer has made its step number `steps`, counted from 1 over the whole training."""

    def end(self, accelerator: Accelerator) -> None:
        """Training, or an epoch of it, is over; with several processes, each has made its passes over other rows."""

    def save(self, folder: Path) -> None:
        """Write what is kept between steps into a checkpoint's folder, which exists."""
