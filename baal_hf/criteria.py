"""What a criterion says of a model's outputs: how they become probabilities, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Link = Callable[[Tensor], Tensor]
"""Outputs [B, C, *S] of one kind to those of another."""

_SMALLEST = torch.finfo(torch.float32).tiny  # whose logarithm is finite


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)


def _log(probs: Tensor) -> Tensor:
    return probs.clamp(min=_SMALLEST).log()


def _logit(probs: Tensor) -> Tensor:
    return probs.clamp(_SMALLEST, 1 - torch.finfo(torch.float32).eps / 2).logit()


def _same(values: Tensor) -> Tensor:
    return values.float()


LINKS: dict[str, tuple[Link, Link]] = {
    "softmax": (_softmax, _log),
    "log_softmax": (lambda outputs: outputs.float().exp(), _log),
    "sigmoid": (lambda logits: logits.float().sigmoid(), _logit),
    "none": (_same, _same),
}
"""By name, what makes probabilities of outputs, and what makes outputs of probabilities; "none" is for regression."""

_LINK_OF: dict[Any, str] = {
    nn.CrossEntropyLoss: "softmax",
    F.cross_entropy: "softmax",
    nn.NLLLoss: "log_softmax",
    F.nll_loss: "log_softmax",
    nn.BCEWithLogitsLoss: "sigmoid",
    F.binary_cross_entropy_with_logits: "sigmoid",
    nn.MultiLabelSoftMarginLoss: "sigmoid",
    nn.BCELoss: "none",
    F.binary_cross_entropy: "none",
    nn.MSELoss: "none",
    F.mse_loss: "none",
    nn.L1Loss: "none",
    F.l1_loss: "none",
    nn.SmoothL1Loss: "none",
    F.smooth_l1_loss: "none",
    nn.HuberLoss: "none",
    F.huber_loss: "none",
}


def link_of(criterion: Any) -> str:
    """Name of the link by which a criterion reads a model's outputs.

    Raises:
        ValueError: It cannot be told.
    """
    kinds = [criterion] if isinstance(criterion, type(F.mse_loss)) else type(criterion).__mro__
    for kind in kinds:
        if kind in _LINK_OF:
            return _LINK_OF[kind]
    name = getattr(criterion, "__name__", type(criterion).__name__)
    raise ValueError(
        f"How the outputs for {name} become probabilities cannot be told: pass ModelWrapper(..., probabilities=...), "
        f"out of {', '.join(LINKS)}, or a function of the outputs [B, C, *S]."
    )
