"""Pseudo-labels: where the model is confident, its class is the label of a noisier pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baal_hf.posterior.switches import evaluation_flags
from baal_hf.semisupervised.base import Augment, Forward, SemiSupervisedMethod


def pseudo_labels(logits: Tensor, weak_logits: Tensor, threshold: float = 0.95) -> Tensor:
    """Cross-entropy to the class that the weak pass is confident of; rows that it is not confident of count as 0.

    L = 1/N Σ_i 1(max_c q_i(c) ≥ τ) (−log p_i(argmax_c q_i(c)))     (FixMatch; Sohn et al., 2020; 2001.07685)

    >>> weak = torch.tensor([[100.0, 0.0], [0.0, 0.0]])  # sure of the first class, and not sure
    >>> round(pseudo_labels(torch.zeros(2, 2), weak).item(), 4)  # log(2) / 2
    0.3466

    Args:
        logits: Of the strongly changed rows, p, [N, C, *S].
        weak_logits: Of the weakly changed rows, q, [N, C, *S]; no gradient goes through them.
        threshold: τ, in (0, 1).

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: The shapes differ, or `threshold` is not in (0, 1).
    """
    checked_threshold(threshold)
    if logits.shape != weak_logits.shape:
        raise ValueError(
            f"pseudo_labels needs two passes over the same rows, got {list(logits.shape)} and "
            f"{list(weak_logits.shape)}."
        )
    confidence, classes = weak_logits.detach().softmax(1).max(1)  # [N, *S], [N, *S]
    losses = nn.functional.cross_entropy(logits, classes, reduction="none")  # [N, *S]
    return torch.where(confidence >= threshold, losses, 0.0).mean()


def checked_threshold(threshold: float) -> float:
    """`threshold`.

    Raises:
        ValueError: It is not in (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"pseudo_labels needs a threshold in (0, 1), got {threshold}.")
    return threshold


class PseudoLabels(SemiSupervisedMethod):
    """FixMatch's rule (Sohn et al., 2020; 2001.07685).

    The class comes from a pass in evaluation mode, without noise and gradient; it is learned in a pass in training
    mode, with the model's own noise. FixMatch's weak and strong augmentation are given as functions: without them the
    model's noise is all that tells the passes apart.

    Args:
        threshold: Confidence from which on a class is learned, in (0, 1).
        weak: Changes a batch a little, for the class; None leaves it as it is.
        strong: Changes a batch, for learning; None leaves it as it is.

    Raises:
        ValueError: `threshold` is not in (0, 1).
    """

    def __init__(self, threshold: float = 0.95, weak: Augment | None = None, strong: Augment | None = None) -> None:
        self.threshold = checked_threshold(threshold)
        self.weak = weak
        self.strong = strong

    def loss(self, model: nn.Module, batch: Any, forward: Forward) -> Tensor:
        with torch.no_grad(), evaluation_flags(model):
            weak_logits = forward(model, self.weak(batch) if self.weak else batch)  # [N, C]
        logits = forward(model, self.strong(batch) if self.strong else batch)  # [N, C]
        return pseudo_labels(logits, weak_logits, self.threshold)
