"""How likely the label that a row already has is wrong: what to look at again, rather than what to label next.

The draws must not have learnt from the label that they judge: predict out of fold, or on rows held out. `activelab`
asks the same of rows with several annotators' labels and of unlabelled rows, on one scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, like, row_names, scored
from baal_hf.heuristics.base import FunctionHeuristic
from baal_hf.heuristics.draws import mean_probs
from baal_hf.heuristics.labels import Labels, checked_labels


def self_confidence(probs: Array, labels: Labels) -> Array:
    """Probability that the label is wrong, by the mean over draws.

    s(x, y) = 1 - p̄(y|x), p̄ = E_t[p_t]    (Northcutt et al., 2021, arXiv:1911.00068)

    Args:
        probs: Class probabilities under T posterior draws that did not learn from `labels`, [N, C, T].
        labels: The class of each row as a whole number, [N].

    Returns:
        Scores in [0, 1], [N]; higher is more likely wrong.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes; `labels` have
            another shape or are no classes.
        TypeError: `probs` is no array of floating-point numbers, or `labels` are no whole numbers.

    Example:
        >>> self_confidence(torch.tensor([[[0.75], [0.25]]]), [1])
        tensor([0.7500])
    """
    mean = mean_probs(probs, "SelfConfidence")  # [N, C]
    return like(probs, (1 - _of_label(mean, labels, "SelfConfidence")).clamp_(min=0))


def normalized_margin(probs: Array, labels: Labels) -> Array:
    """How far the label stays behind the most probable other class, from 0 (certain of the label) to 1 (of another).

    s(x, y) = (1 - (p̄(y|x) - max_{c≠y} p̄(c|x))) / 2, p̄ = E_t[p_t]    (Northcutt et al., 2021, arXiv:1911.00068)

    Args:
        probs: Class probabilities under T posterior draws that did not learn from `labels`, [N, C, T].
        labels: The class of each row as a whole number, [N].

    Returns:
        Scores in [0, 1], [N]; higher is more likely wrong, above 1/2 where another class is more probable.

    Raises:
        ValueError: As `self_confidence`.
        TypeError: As `self_confidence`.

    Example:
        >>> normalized_margin(torch.tensor([[[0.75], [0.25]]]), [1])
        tensor([0.7500])
    """
    mean = mean_probs(probs, "NormalizedMargin")  # [N, C]
    given = _single(labels, mean, "NormalizedMargin")  # [N, 1]
    other = mean.scatter(1, given, -1).amax(1)  # [N]
    return like(probs, ((1 - (mean.gather(1, given)[:, 0] - other)) / 2).clamp_(0, 1))


def confidence_weighted_entropy(probs: Array, labels: Labels) -> Array:
    """Self-confidence over entropy: of two rows that trust their label alike, the one with more doubt is suspected.

    s(x, y) = 1 - log(1 + r) / r, r = H(p̄) / (log C · p̄(y|x)), p̄ = E_t[p_t]    (Northcutt et al., 2021; Kuan & Mueller,
    2022)

    At the ends the limits hold: 0 where the prediction is certain of the label, 1 where it excludes the label.

    Args:
        probs: Class probabilities under T posterior draws that did not learn from `labels`, [N, C, T].
        labels: The class of each row as a whole number, [N].

    Returns:
        Scores in [0, 1], [N]; higher is more likely wrong.

    Raises:
        ValueError: As `self_confidence`.
        TypeError: As `self_confidence`.
    """
    mean = mean_probs(probs, "ConfidenceWeightedEntropy")  # [N, C]
    confidence = _of_label(mean, labels, "ConfidenceWeightedEntropy")  # [N]
    tiny = torch.finfo(mean.dtype).tiny
    doubt = -torch.xlogy(mean, mean).sum(1) / np.log(mean.shape[1])  # [N], the entropy in units of its maximum
    ratio = (doubt / confidence.clamp(min=tiny)).clamp_(min=tiny)
    scores = (1 - ratio.log1p() / ratio).clamp_(0, 1)
    return like(probs, scores.masked_fill_(confidence <= 0, 1))


def active_label_cleaning(probs: Array, labels: Labels) -> Array:
    """Noise minus ambiguity in nats: how much the label surprises, beyond what the prediction finds hard by itself.

    s(x, y) = -Σ_c q(c) log p̄(c|x) - H(p̄(·|x)), p̄ = E_t[p_t], q(c) = share of the annotators who say c    (Bernhardt et
    al., 2022, arXiv:2109.00574)

    A probability of 0 counts as the smallest positive one.

    Args:
        probs: Class probabilities under T posterior draws that did not learn from `labels`, [N, C, T].
        labels: The class of each row as a whole number, [N], or by each of A annotators, [N, A], -1 where one gave
            none.

    Returns:
        Scores above -log C, [N]; higher is more likely wrong.

    Raises:
        ValueError: As `self_confidence`, or a row has no label.
        TypeError: As `self_confidence`.
    """
    who = "ActiveLabelCleaning"
    mean = mean_probs(probs, who)  # [N, C]
    given = checked_labels(labels, who, len(mean), mean.shape[1], mean.device)  # [N, A]
    empty = (given < 0).all(1)  # [N]
    if empty.any():
        raise ValueError(f"{who} needs a label of each row, got none in {row_names(empty)}. Drop those, or ActiveLab.")
    counts = mean.new_zeros(len(mean), mean.shape[1] + 1)
    counts = counts.scatter_add_(1, given + 1, torch.ones_like(given, dtype=mean.dtype))[:, 1:]  # [N, C], -1 left out
    share = counts / counts.sum(1, keepdim=True)
    return like(probs, ((mean - share) * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum(1))


def adjusted_probs(probs: Array, labels: Labels) -> Array:
    """Probabilities as they would be were the model equally sure of all classes; any score of this file takes them.

    p̃_t(c|x) = (p_t(c|x) + δ_c) / (1 + Σ_k δ_k), δ_c = max_k θ_k - θ_c, θ_c = E[p̄(c|x) | y = c]    (Northcutt et al.,
    2021, arXiv:1911.00068: the thresholds θ of confident learning)

    A class that is no row's label has no threshold; it counts as 2, above all, so that no row is thought to be of it.

    Args:
        probs: Class probabilities under T posterior draws that did not learn from `labels`, [N, C, T].
        labels: The class of each row as a whole number, [N]. Thresholds are those of all rows: give them at once.

    Returns:
        Probabilities, [N, C, T], in at least float32.

    Raises:
        ValueError: As `self_confidence`.
        TypeError: As `self_confidence`.
    """
    mean = mean_probs(probs, "adjusted_probs")  # [N, C]
    given = _single(labels, mean, "adjusted_probs")  # [N, 1]
    chosen = torch.zeros_like(mean).scatter_(1, given, 1)  # [N, C]
    counts = chosen.sum(0)  # [C]
    threshold = torch.where(counts > 0, (chosen * mean).sum(0) / counts.clamp(min=1), 2)  # [C]
    shift = (threshold.max() - threshold).unsqueeze(-1)  # [C, 1]

    def shifted(values: Tensor) -> Tensor:
        raised = values + shift  # [n, C, T]
        return raised / raised.sum(1, keepdim=True)

    return scored(shifted, probs, "adjusted_probs")


def _single(labels: Labels, mean: Tensor, who: str) -> Tensor:
    """The only label of each row, [N, 1]."""
    given = checked_labels(labels, who, len(mean), mean.shape[1], mean.device)  # [N, A]
    if given.shape[1] > 1:
        advice = "For several annotators there are ActiveLab and ActiveLabelCleaning."
        raise ValueError(f"{who} needs one label a row [N], got {list(given.shape)}. {advice}")
    if (given < 0).any():
        rows = row_names(given[:, 0] < 0)
        raise ValueError(f"{who} needs a label of each row, got -1 in {rows}. Drop those, or use ActiveLab.")
    return given


def _of_label(mean: Tensor, labels: Labels, who: str) -> Tensor:
    """Probability of each row's label, [N, C] to [N]."""
    return mean.gather(1, _single(labels, mean, who))[:, 0]


class SelfConfidence(FunctionHeuristic):
    """Probability that the label is wrong, `self_confidence`, as a heuristic."""

    needs = ("predictions", "labels")
    score = staticmethod(self_confidence)


class NormalizedMargin(FunctionHeuristic):
    """The lead of the best other class over the label, `normalized_margin`, as a heuristic."""

    needs = ("predictions", "labels")
    score = staticmethod(normalized_margin)


class ConfidenceWeightedEntropy(FunctionHeuristic):
    """Self-confidence over entropy, `confidence_weighted_entropy`, as a heuristic."""

    needs = ("predictions", "labels")
    score = staticmethod(confidence_weighted_entropy)


class ActiveLabelCleaning(FunctionHeuristic):
    """Noise minus ambiguity, `active_label_cleaning`, as a heuristic."""

    needs = ("predictions", "labels")
    score = staticmethod(active_label_cleaning)
