"""Pi-model: two passes with other noise agree."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baal_hf.posterior import dropout_report
from baal_hf.semisupervised.base import Augment, Forward, SemiSupervisedMethod


def pi_model(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Mean squared difference of the probabilities of two stochastic passes over the same rows.

    L = 1/(C N) Σ_i ‖softmax(z_i) − softmax(z̃_i)‖²     (Laine & Aila, 2017; 1610.02242)

    >>> pi_model(torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])).item()  # (.5, .5) and (1, 0)
    0.25

    Args:
        logits: Of one pass, [N, C, *S].
        other_logits: Of the other, [N, C, *S]; it has a gradient as well.

    Returns:
        Scalar in [0, 2/C], 0 where the passes agree.

    Raises:
        ValueError: The shapes differ.
    """
    if logits.shape != other_logits.shape:
        raise ValueError(
            f"pi_model needs two passes over the same rows, got {list(logits.shape)} and {list(other_logits.shape)}."
        )
    difference = logits.softmax(1) - other_logits.softmax(1)  # [N, C, *S]
    return difference.square().mean()


class PiModel(SemiSupervisedMethod):
    """The Pi-model (Laine & Aila, 2017; 1610.02242): two passes, each with the model's own noise, agree.

    The noise is the dropout that the model trains with, and `augment`. In the paper the loss is of labelled rows, too:
    put them among the unlabelled ones for that.

    Args:
        augment: Changes a batch at random, anew for each pass; None leaves it as it is.

    Warns:
        UserWarning: The two passes over the first batch of a training are equal: there is no noise.
    """

    def __init__(self, augment: Augment | None = None) -> None:
        self.augment = augment
        self._seen = False  # a batch, in this training

    def start(self, model: nn.Module, checkpoint: Path | None = None) -> None:
        self._seen = False

    def loss(self, model: nn.Module, batch: Any, forward: Forward) -> Tensor:
        first, second = (self.augment(batch) if self.augment else batch for _ in range(2))
        # One pass over the rows twice: two passes before one backward pass are more than torch's DDP takes.
        one, other = forward(model, stacked(first, second)).chunk(2)  # [N, C] each
        if not self._seen and torch.allclose(one, other, rtol=1e-5, atol=1e-6):
            warnings.warn(
                "PiModel's two passes over a batch were equal, and teach nothing: give it augment=..., or train a "
                f"model with dropout. {dropout_report(model)}",
                stacklevel=2,
            )
        self._seen = True
        return pi_model(one, other)


def stacked(first: Any, second: Any) -> Any:
    """The rows of two batches as one batch; what is no tensor is taken from the first."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Mapping):
        return {name: stacked(first[name], second[name]) for name in first}
    if isinstance(first, tuple | list):
        return tuple(stacked(*parts) for parts in zip(first, second, strict=True))
    return first
