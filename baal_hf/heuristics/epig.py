"""EPIG: the information that a row's label holds about the labels of the rows that are to be predicted well."""

from __future__ import annotations

from torch import Tensor

from baal_hf.arrays import Array, NumpyArray, as_tensor, checked_probabilities, scored
from baal_hf.heuristics.base import FunctionHeuristic, whole
from baal_hf.heuristics.draws import entropies

NUMBERS_AT_ONCE = 2**20  # joint probabilities that one step holds, so that they stay in the cache


def epig(probs: Array, target_predictions: NumpyArray | Tensor) -> Array:
    """Expected information in nats that a row's label gives about the label of a target row.

    EPIG(x) = E_x*[I(y; y* | x, x*)] = H(y) + E_x*[H(y*) - H(y, y*)],
    p(y, y*) = E_t[p_t(y|x) p_t(y*|x*)]    (Bickford Smith et al., 2023, arXiv:2304.08151)

    Args:
        probs: Class probabilities of the rows under T posterior draws, [N, C, T], T > 1.
        target_predictions: Class probabilities of the rows that are to be predicted well, a sample of what the model
            is for, under the same draws, [N*, C*, T].

    Returns:
        Scores in [0, log min(C, C*, T)], [N]; higher is more informative, 0 where the label says nothing about any
        target.

    Raises:
        ValueError: Either is misshapen, not finite, of a single draw, or holds no probabilities over two or more
            classes; the numbers of draws differ.
        TypeError: Either is no array of floating-point numbers.
    """
    target_predictions = whole(target_predictions, "EPIG's target set")
    targets = checked_probabilities(target_predictions, "EPIG's target set", draws=2)  # [N*, C*, T]
    as_tensor(probs, "EPIG")
    for name, array in (("predictions", probs), ("targets", targets)):
        if array.ndim != 3:
            raise ValueError(f"EPIG needs one prediction a row, {name} [N, C, T], got {list(array.shape)}.")
    if probs.shape[-1] != targets.shape[-1]:
        came = f"{probs.shape[-1]} of the rows and {targets.shape[-1]} of the targets"
        raise ValueError(f"EPIG needs the same draws of rows and targets, got {came}. Predict both with one posterior.")

    def score(values: Tensor) -> Tensor:
        here = targets.to(values)  # [N*, C*, T]
        joint = _expected_joint_entropy(values, here)  # [n]
        of_target = entropies(here.mean(-1), 1).mean()
        return (entropies(values.mean(-1), 1) + of_target - joint).clamp_(min=0)  # [n]

    return scored(score, probs, "EPIG", draws=2)


def _expected_joint_entropy(values: Tensor, targets: Tensor) -> Tensor:
    """H(y, y*) averaged over targets, [n, C, T] and [N*, C*, T] to [n]."""
    n, C, T = values.shape
    total = values.new_zeros(n)
    size = max(1, NUMBERS_AT_ONCE // (C * targets.shape[1]))  # pairs of a row and a target
    for first in range(0, len(targets), size):
        some = targets[first : first + size]  # [m, C*, T]
        flat = some.reshape(-1, T).T / T  # [T, m·C*]
        rows = max(1, size // len(some))
        for start in range(0, n, rows):
            joint = values[start : start + rows].reshape(-1, T) @ flat  # [r·C, m·C*]
            total[start : start + rows] += entropies(joint.view(-1, C * flat.shape[1]), 1)  # [r]
    return total / len(targets)


class EPIG(FunctionHeuristic):
    """Expected predictive information gain, `epig`, as a heuristic; needs the predictions of a target set."""

    needs = ("predictions", "target_predictions")
    score = staticmethod(epig)
