"""Rows that have several labels at once: entropy and BALD of each label's probability, and CVIRS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, NumpyArray, checked_sigmoids, like, row_names, scored
from baal_hf.heuristics.base import FunctionHeuristic, Seed, whole
from baal_hf.heuristics.reductions import REDUCTIONS, Reduction, reduced

PAIRS = 2**16  # of label vectors that are compared at once, measured: they stay in the cache


def multi_label_entropy(probs: Array, over_labels: Reduction = "mean") -> Array:
    """Entropy in nats of each label's mean probability, then one number for all labels.

    H_c(x) = h(E_t[p_t(c|x)]), h(p) = -p log p - (1 - p) log(1 - p)    (binary uncertainty sampling, Lewis & Gale, 1994,
    label by label)

    Args:
        probs: Probability of each label (sigmoid of its logit) under T posterior draws, [N, C, *S, T], C labels.
        over_labels: Scores of the labels [n, C] to one score: 'mean', 'sum', 'max', 'min', `top_k(k)`, `quantile(q)`,
            or a function of the NumPy array.

    Returns:
        Scores in [0, log 2], with 'sum' in [0, C log 2], [N, *S]; higher is more informative, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, or outside [0, 1], or there is no such reduction.
        TypeError: `probs` is no array of floating-point numbers.

    Example:
        >>> multi_label_entropy(torch.tensor([[[0.5], [1.0]]]), "max")
        tensor([0.6931])
    """

    def score(values: Tensor) -> Tensor:
        return _over_labels(_binary_entropy(values.mean(-1)), over_labels)  # [n, *S]

    return scored(score, probs, "MultiLabelEntropy", check=checked_sigmoids)


def multi_label_bald(probs: Array, over_labels: Reduction = "mean") -> Array:
    """Mutual information in nats between each label and the network that the posterior draws, then one number for all.

    I_c(x) = h(E_t[p_t(c|x)]) - E_t[h(p_t(c|x))], h(p) = -p log p - (1 - p) log(1 - p)    (Houlsby et al., 2011,
    arXiv:1112.5745, label by label)

    Args:
        probs: Probability of each label (sigmoid of its logit) under T posterior draws, [N, C, *S, T], C labels, T > 1.
        over_labels: As for `multi_label_entropy`.

    Returns:
        Scores in [0, log 2], with 'sum' in [0, C log 2], [N, *S]; higher is more informative, 0 where all draws agree,
        NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or outside [0, 1], or there is no such
            reduction.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        information = _binary_entropy(values.mean(-1)) - _binary_entropy(values).mean(-1)  # [n, C, *S]
        return _over_labels(information.clamp_(min=0), over_labels)  # [n, *S]

    return scored(score, probs, "MultiLabelBALD", draws=2, check=checked_sigmoids)


def cvirs(probs: Array, labelled_labels: NumpyArray | Tensor) -> Array:
    """Category vector inconsistency and ranking of scores: unsure in many labels, and unlike the labelled rows.

    s(x) · v(x)    (Reyes, Morell & Ventura, 2018)
    s(x) = 1/C Σ_c (N - τ_c(x)) / (N - 1), τ_c(x) the place of x in the pool by |2 p̄_c - 1|, the least first
    v(x) = 1/L Σ_j d(ŷ(x), y_j), ŷ_c(x) = [p̄_c > ½], p̄ = E_t[p_t]
    d(y, z) = 2 - (H(y) + H(z)) / H(y, z), 1 where y and z differ in every label, 0 where in none

    H(y) is the entropy of a 0 or 1 drawn from the C entries of y, H(y, z) that of a pair drawn from one place of both:
    d is the distance of two clusterings of the labels, in which a mirrored one would be no other. Rows of equal margin
    share the mean of their places. Without labelled rows v is 1.

    Args:
        probs: Probability of each label (sigmoid of its logit) for the whole pool, [N, C, T]; the score of a row
            depends on the other rows.
        labelled_labels: Labels of the labelled rows, 0 or 1, [L, C]; L may be 0.

    Returns:
        Scores in [0, 1], [N]; higher is more informative.

    Raises:
        ValueError: `probs` are misshapen, not finite, or outside [0, 1]; the labels are of another number, or others
            than 0 and 1.
        TypeError: `probs` is no array of floating-point numbers, or the labels are no numbers.
    """
    shape = list(probs.shape) if isinstance(probs, np.ndarray | Tensor) else None
    if shape is not None and len(shape) > 3:
        raise ValueError(f"CVIRS needs probabilities [N, C, T], got {shape}. Score positions with MultiLabelBALD.")
    mean = torch.as_tensor(scored(lambda values: values.mean(-1), probs, "CVIRS", check=checked_sigmoids))  # [N, C]
    given = _checked_labels(labelled_labels, mean.shape[1]).to(mean.device)  # [L, C]
    return like(probs, _closeness((2 * mean - 1).abs()) * _inconsistency(mean > 0.5, given).to(mean.dtype))  # [N]


def _binary_entropy(probs: Tensor) -> Tensor:
    """Entropy of each probability and its complement, of the same shape."""
    tiny = torch.finfo(probs.dtype).tiny  # 0 log 0 = 0; several times faster than torch.xlogy
    terms = probs.clamp(min=tiny).log_().mul_(probs)
    complement = 1 - probs
    return terms.add_(complement.clamp(min=tiny).log_().mul_(complement)).neg_()


def _over_labels(scores: Tensor, over_labels: Reduction) -> Tensor:
    """Scores of labels [n, C, *S] to one a position [n, *S], NaN where it is padding."""
    table = scores.movedim(1, -1)  # [n, *S, C]
    real = ~table.isnan().all(-1)  # [n, *S]
    result = torch.full(table.shape[:-1], torch.nan, dtype=scores.dtype, device=scores.device)
    result[real] = reduced(table[real], over_labels).to(scores.dtype)  # [positions]
    return result


def _closeness(margins: Tensor) -> Tensor:
    """Mean over labels of a row's place in the pool by margin [N, C], 1 for the first and 0 for the last, [N]."""
    N = len(margins)
    if N == 1:
        return torch.ones_like(margins[:, 0])
    table = margins.T.contiguous()  # [C, N]
    ascending = table.sort(1).values
    less = torch.searchsorted(ascending, table)  # [C, N], rows before it
    not_more = torch.searchsorted(ascending, table, right=True)
    places = (less + not_more + 1).to(margins.dtype) / 2  # [C, N], from 1 to N
    return ((N - places) / (N - 1)).mean(0)  # [N]


def _inconsistency(predicted: Tensor, given: Tensor) -> Tensor:
    """Mean distance of predicted label vectors [N, C] from the given ones [L, C], both boolean, float64 [N]."""
    if not len(given):
        return torch.ones(len(predicted), dtype=torch.float64, device=predicted.device)
    # Most pools have few different label vectors: each pair of those is compared once.
    ours, place = torch.unique(predicted, dim=0, return_inverse=True)  # [n, C], [N]
    theirs, count = torch.unique(given, dim=0, return_counts=True)  # [m, C], [m]
    share = count.double() / len(given)  # [m]
    rows = max(1, PAIRS // len(theirs))
    means = [_entropy_distances(some, theirs).mul_(share).sum(1) for some in torch.split(ours, rows)]
    return torch.cat(means)[place]  # [N]


def _entropy_distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Normalised entropy distance of each pair of boolean label vectors [n, C] and [m, C], float64 [n, m]."""
    C = ours.shape[1]
    numbers = torch.arange(C + 1, dtype=torch.float64, device=ours.device)
    terms = torch.xlogy(numbers, numbers)  # [C + 1], k log k
    n_ours, n_theirs = ours.sum(1), theirs.sum(1)  # [n], [m]
    both = (ours.double() @ theirs.double().T).long()  # [n, m], labels in both
    only_ours, only_theirs = n_ours[:, None] - both, n_theirs - both  # [n, m] each
    neither = C - both - only_ours - only_theirs  # [n, m]
    joint = terms[C] - terms[both] - terms[only_ours] - terms[only_theirs] - terms[neither]  # [n, m], C H(y, z)
    alone = [terms[C] - terms[ones] - terms[C - ones] for ones in (n_ours, n_theirs)]  # [n] and [m], C H(y)
    differ = only_ours + only_theirs  # [n, m]
    distance = 2 - (alone[0][:, None] + alone[1]) / joint  # [n, m]
    return distance.masked_fill_(differ == C, 1).masked_fill_(differ == 0, 0)  # also where joint is 0


def _checked_labels(labels: NumpyArray | Tensor, C: int) -> Tensor:
    """Labels of the labelled rows as a boolean tensor [L, C]."""
    values = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if 0 in values.shape[:1]:
        return torch.zeros(0, C, dtype=torch.bool)
    if list(values.shape[1:]) != [C]:
        raise ValueError(f"CVIRS needs labels [L, {C}] for {C} predicted labels, got {list(values.shape)}.")
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biuf":
        raise TypeError(f"CVIRS needs labels in numbers, got {values.dtype}. Encode them as 0 and 1.")
    is_one = torch.as_tensor(values == 1)  # [L, C]
    other = ~(is_one | torch.as_tensor(values == 0)).all(1)  # [L]
    if other.any():
        raise ValueError(f"CVIRS needs labels of 0 and 1, got others in labelled {row_names(other)}.")
    return is_one


class _PerLabel(FunctionHeuristic):
    """What both scores of single labels share: the reduction over labels.

    Args:
        shuffle_prop: As for every heuristic.
        reduction: As for every heuristic, over positions.
        over_labels: Scores of the labels to one, before `reduction`: 'mean', 'sum', 'max', 'min', `top_k(k)`,
            `quantile(q)`, or a function of the NumPy array [n, C].
        seed: As for every heuristic.
    """

    def __init__(
        self,
        shuffle_prop: float = 0.0,
        reduction: Reduction = "none",
        *,
        over_labels: Reduction = "mean",
        seed: Seed = 0,
    ) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)
        if not isinstance(over_labels, str) and not callable(over_labels):
            raise TypeError(f"{self.name} needs a name or function as over_labels, got {type(over_labels).__name__}.")
        if isinstance(over_labels, str) and over_labels not in REDUCTIONS:
            known = ", ".join(REDUCTIONS)
            raise ValueError(f"{self.name} needs over_labels out of {known}, or a function, got {over_labels!r}.")
        self.over_labels = over_labels

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return super().compute_score(predictions, over_labels=self.over_labels)


class MultiLabelEntropy(_PerLabel):
    """Entropy of each label, `multi_label_entropy`, as a heuristic."""

    score = staticmethod(multi_label_entropy)


class MultiLabelBALD(_PerLabel):
    """BALD of each label, `multi_label_bald`, as a heuristic."""

    score = staticmethod(multi_label_bald)


class CVIRS(FunctionHeuristic):
    """Ranking by margin times inconsistency of label vectors, `cvirs`, as a heuristic.

    Rows are ranked against the pool: of batches it keeps the mean over draws, [N, C], and scores them together.
    """

    needs = ("predictions", "labelled_labels")
    rows_together = True
    score = staticmethod(cvirs)

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches, which are ranked together."""
        return self.get_uncertainties(whole(_means(batches), self.name), **arrays)


def _means(batches: Iterable[Any]) -> Iterable[Tensor]:
    """Each batch [n, C, T] averaged over draws, [n, C, 1]; errors count rows from the first batch."""
    start = 0
    for batch in batches:
        mean = checked_sigmoids(batch, "CVIRS", 1, start).mean(-1, keepdim=True)  # [n, C, 1]
        start += len(mean)
        yield mean
