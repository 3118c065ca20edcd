"""What draws come to: their mean, its entropy, their votes."""

from __future__ import annotations

import torch
from torch import Tensor

from baal_hf.arrays import Array, as_tensor, scored


def mean_probs(probs: Array, who: str, name: str = "predictions", rows: int | None = None) -> Tensor:
    """Mean over draws of checked probabilities of whole rows, [N, C, T] to [N, C].

    Args:
        probs: Class probabilities under T posterior draws, [N, C, T].
        who: Named in errors.
        name: Of the array, named in errors.
        rows: How many there must be, those that have features; None means any number.

    Raises:
        ValueError: `probs` are misshapen, not finite, no probabilities over two or more classes, or of other rows.
        TypeError: `probs` is no array of floating-point numbers.
    """
    asker = who if name == "predictions" else f"{who} ({name})"
    mean = as_tensor(scored(lambda values: values.mean(-1), probs, asker), asker)  # [N, C]
    if mean.ndim != 2:
        advice = "Score tokens or pixels as rows of their own."
        raise ValueError(f"{asker} needs one prediction a row [N, C, T], got {list(probs.shape)}. {advice}")
    if rows is not None and len(mean) != rows:
        raise ValueError(f"{who} needs as many {name} as features of the same rows, got {len(mean)} for {rows}.")
    return mean


def entropies(probs: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Entropy in nats along an axis, or its sum over several, 0 log 0 = 0; much faster than with `torch.xlogy`."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log_().mul_(probs).sum(dim).neg_()


def vote_shares(probs: Tensor) -> Tensor:
    """Share of the draws that vote for each class, their most probable one; the first of equal ones.

    Args:
        probs: Checked probabilities, [N, C, *S, T].

    Returns:
        In [0, 1], sums of 1 over classes, [N, C, *S]; NaN at padding.
    """
    T = probs.shape[-1]
    padding = probs[:, 0, ..., 0].isnan()  # [N, *S]
    counts = (probs == probs.amax(1, keepdim=True)).sum(-1)  # [N, C, *S]; several times faster than argmax
    equal = (counts.sum(1) > T).reshape(len(probs), -1).any(1)  # [N], rows in which a draw has several best classes
    if equal.any():
        some = probs[equal]  # [n, C, *S, T]
        votes = torch.zeros_like(some, dtype=torch.bool).scatter_(1, some.argmax(1, keepdim=True), True)
        counts[equal] = votes.sum(-1)  # [n, C, *S]
    return (counts.to(probs.dtype) / T).masked_fill_(padding.unsqueeze(1), torch.nan)
