"""ActiveLab: what one more label of a row is worth, whether it has none, one, or those of several annotators so far."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, NumpyArray, checked_probabilities, like
from baal_hf.heuristics.base import FunctionHeuristic, whole
from baal_hf.heuristics.labels import Labels, checked_labels

LEAST = 1e-6  # of a weight or an error rate, so that no sum of weights is 0
SMALLEST = 1e-30  # of a probability under a logarithm
TEMPERATURES = (0.1, 0.2, 0.5, 0.8, 1.0, 2.0, 3.0, 5.0, 8.0)


def activelab(probs: Array, labels: Labels) -> Array:
    """One minus the trust in the best guess of a row's class, by draws and annotators weighed together.

    s_i = 1 - [W_i p̂_i(ŷ_i) + w̄/C] / (W_i + w̄), W_i = Σ_t w_t + Σ_{j∈J_i} w_j    (Goh & Mueller, 2023,
    arXiv:2301.11856)
    p̂_i(c) = [Σ_t w_t p_t(c|x_i) + Σ_{j∈J_i} w_j ℓ(c|y_ij)] / W_i    (Goh et al., 2022, arXiv:2210.06812)

    The draws are the ensemble: their weights add up, so that T of them count as T models. J_i are the annotators of
    row i; ℓ(c|y) = P for c = y and (1 - P)/(C - 1) otherwise. From the rows with several labels come P, the annotators'
    mean agreement with the consensus, and w_j = 1 - e_j/e, w_t = (1 - e_t/e) √(mean number of labels of a row): e_j is
    the share of the others' labels that annotator j contradicts, e_t the share of consensus labels that draw t does, e
    the share that always saying the most frequent class does. w̄ is the mean of the w_j. The consensus ŷ_i is the
    majority's in a first round and the maximum of that round's p̂_i in a second; an unlabelled row's is the draws'
    majority. Before all, each draw is put at the temperature that fits the annotators' labels best.

    Where no row has several labels there is nothing to weigh: each w is 1, temperatures are too, ŷ_i is the row's label
    and p̂_i the mean over draws. An unlabelled row then scores above a labelled one that is as sure.

    Args:
        probs: Class probabilities under T posterior draws that did not learn from `labels`, [N, C, T].
        labels: Classes as whole numbers, [N, A] for A annotators or [N] for one, -1 where one gave none; a row of -1 is
            unlabelled. Weights are of all rows: give them at once.

    Returns:
        Scores in [0, 1), [N]; higher is more worth a label.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes; `labels` have
            another shape or are no classes.
        TypeError: `probs` is no array of floating-point numbers, or `labels` are no whole numbers.

    Example:
        >>> activelab(torch.tensor([[[0.75], [0.25]], [[0.75], [0.25]]]), [0, -1])
        tensor([0.3333, 0.3750])
    """
    values = checked_probabilities(probs, "ActiveLab")  # [N, C, T]
    if values.ndim != 3:
        advice = "Score tokens or pixels as rows of their own."
        raise ValueError(f"ActiveLab needs one prediction a row [N, C, T], got {list(values.shape)}. {advice}")
    given = checked_labels(labels, "ActiveLab", len(values), values.shape[1], values.device)  # [N, A]
    given = given[:, (given >= 0).any(0)]  # [N, A], annotators who gave no label have no say in a mean
    count = (given >= 0).sum(1)  # [N]
    if (count > 1).any():
        return like(probs, _several(values, given, count))
    return like(probs, _at_most_one(values, given, count))


def _at_most_one(values: Tensor, given: Tensor, count: Tensor) -> Tensor:
    """Scores [N] where no row has two labels: all weights are 1."""
    C, T = values.shape[1:]
    mean = values.mean(-1)  # [N, C]
    label = given.amax(1) if given.shape[1] else count  # [N]
    consensus = torch.where(count > 0, label, _majority(_counts(values.argmax(1), C, mean.dtype), mean))  # [N]
    return _score(_at(mean, consensus), T + count.to(mean.dtype), 1.0, C)


def _several(values: Tensor, given: Tensor, count: Tensor) -> Tensor:
    """Scores [N] where some rows have several labels."""
    C, dtype, labelled = values.shape[1], values.dtype, count > 0  # [N]
    votes = _counts(given, C, dtype)  # [N, C]
    values = _calibrated(values, votes[labelled], labelled)  # [N, C, T]
    mean, best = values.mean(-1), values.argmax(1)  # [N, C], [N, T]
    first, _, _ = _fused(values, best, given, votes, _majority(votes, mean))  # [N, C]
    consensus = torch.where(labelled, first.argmax(1), _majority(_counts(best, C, dtype), mean))  # [N]
    fused, weight, prior = _fused(values, best, given, votes, consensus)  # [N, C], [N]
    return _score(_at(fused, consensus), weight, prior, C)


def _score(trust: Tensor, weight: Tensor, prior: float, C: int) -> Tensor:
    """One minus the trust [N], which has that weight, drawn towards 1/C, which has the prior's."""
    return (1 - (weight * trust + prior / C) / (weight + prior)).clamp_(min=0)


def _fused(
    values: Tensor, best: Tensor, given: Tensor, votes: Tensor, consensus: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Probabilities by draws and annotators [N, C], the weight behind them [N], and the mean annotator's."""
    agreement, of_draw, of_annotator = _weights(best, given, votes, consensus)  # [T], [A]
    C, rest = values.shape[1], (1 - agreement) / (values.shape[1] - 1)
    answered = (given >= 0) * of_annotator  # [N, A]
    weight = of_draw.sum() + answered.sum(1)  # [N]
    said = _counts(given, C, values.dtype, answered)  # [N, C], the weight behind each class
    likely = rest * answered.sum(1, keepdim=True) + (agreement - rest) * said  # [N, C]
    return (values @ of_draw + likely) / weight.unsqueeze(1), weight, float(of_annotator.mean())


def _weights(best: Tensor, given: Tensor, votes: Tensor, consensus: Tensor) -> tuple[float, Tensor, Tensor]:
    """The annotators' agreement P, the weights of the draws [T], and of the annotators [A]."""
    count = votes.sum(1)  # [N]
    several = count > 1  # [N]
    agreed = consensus[several]  # [M]
    agreement = float((_at(votes, consensus) / count)[several].mean())
    most = torch.bincount(agreed, minlength=votes.shape[1]).argmax()
    error = ((agreed != most).to(votes.dtype).mean()).clamp(min=LEAST)
    wrong = (best[several] != agreed.unsqueeze(1)).to(votes.dtype).mean(0)  # [T]
    of_draw = (1 - wrong / error).clamp(min=LEAST) * count[count > 0].mean().sqrt()  # [T]
    return agreement, of_draw, (1 - _contradicted(given, votes) / error).clamp(min=LEAST)


def _contradicted(given: Tensor, votes: Tensor) -> Tensor:
    """Share of the others' labels of an annotator's rows that are not the annotator's, [A]; the mean where none are."""
    answered = given >= 0  # [N, A]
    others = torch.where(answered, votes.sum(1, keepdim=True) - 1, 0)  # [N, A]
    alike = torch.where(answered, votes.gather(1, given.clamp(min=0)) - 1, 0)  # [N, A]
    share = 1 - alike.sum(0) / others.sum(0)  # [A], NaN for an annotator who shares no row
    return torch.where(share.isnan(), share.nanmean(), share)


def _calibrated(values: Tensor, votes: Tensor, labelled: Tensor) -> Tensor:
    """Each draw at the temperature that fits the labelled rows' votes best, [N, C, T]."""
    share = votes / votes.sum(1, keepdim=True)  # [L, C]
    result = torch.empty_like(values)  # [N, C, T]
    for t in range(values.shape[-1]):
        probs = values[..., t]  # [N, C]
        temperature = _temperature(probs[labelled].log(), share)
        result[..., t] = (probs.clamp(min=SMALLEST).log() / temperature).softmax(1)
    return result


def _temperature(logs: Tensor, share: Tensor) -> float:
    """The temperature of least cross entropy to the labels' shares [L, C]: the best of the grid, then around it."""

    def cross_entropy(temperature: float) -> float:
        return -float((share * (logs / temperature).softmax(1).clamp(min=SMALLEST).log()).sum(1).mean())

    place = int(np.argmin([cross_entropy(temperature) for temperature in TEMPERATURES]))
    near = TEMPERATURES[max(place - 1, 0) : place + 2]
    fine = np.concatenate([np.linspace(*pair, 4, endpoint=False) for pair in pairwise(near)])
    if near[-1] != TEMPERATURES[place]:  # at the end of the grid it is left out, as in cleanlab
        fine = np.append(fine, near[-1])
    return float(fine[np.argmin([cross_entropy(float(temperature)) for temperature in fine])])


def _majority(votes: Tensor, probs: Tensor) -> Tensor:
    """The class of most votes [N], of those with equally many the most probable one; votes and probs are [N, C]."""
    return torch.where(votes == votes.amax(1, keepdim=True), probs, -1).argmax(1)


def _counts(classes: Tensor, C: int, dtype: torch.dtype, weights: Tensor | None = None) -> Tensor:
    """How often, or with what weight, each class stands in a row: [N, A] in 0 .. C-1, -1 left out, to [N, C]."""
    amounts = torch.ones_like(classes, dtype=dtype) if weights is None else weights
    return amounts.new_zeros(len(classes), C + 1).scatter_add_(1, classes + 1, amounts)[:, 1:]


def _at(table: Tensor, classes: Tensor) -> Tensor:
    """The entry of each row's class, [N, C] and [N] to [N]."""
    return table.gather(1, classes.unsqueeze(1))[:, 0]


class ActiveLab(FunctionHeuristic):
    """What one more label of a row is worth, labelled or not, `activelab`, as a heuristic."""

    needs = ("predictions", "labels")
    rows_together = True
    score = staticmethod(activelab)

    def get_uncertainties_generator(self, batches: Iterable[Any], **arrays: Any) -> NumpyArray:
        """Score each row of consecutive batches, which are put together first: all labels weigh the annotators."""
        return self.get_uncertainties(whole(batches, self.name), **arrays)
