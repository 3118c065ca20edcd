"""BatchBALD: the K rows whose labels together hold most information about the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, checked_probabilities, like
from baal_hf.heuristics.base import Seed, checked_size
from baal_hf.heuristics.batch import BatchHeuristic
from baal_hf.heuristics.disagreement import bald
from baal_hf.heuristics.draws import entropies
from baal_hf.heuristics.greedy import lazy_greedy

NUMBERS_AT_ONCE = 2**20  # probabilities that one step of a search holds, so that they stay in the cache
NOTHING_LEFT = 1e-3  # nats, of log T; less is not told apart from the error of the estimate


def batchbald(
    probs: Array, query_size: int, num_draw: int = 5_000, rng: np.random.Generator | None = None
) -> tuple[Array, Array]:
    """Rows whose labels together hold most information about the network, found greedily.

    I(y₁..y_K; θ | x₁..x_K) = Σ_k E_ŷ[H(Σ_t w_t(ŷ) p_t(·|x_k)) - Σ_t w_t(ŷ) H(p_t(·|x_k))],
    w_t(ŷ) ∝ Π_{j<k} p_t(ŷ_j|x_j)    (Kirsch et al., 2019, arXiv:1906.08158, by the chain rule)

    In words: what the k-th label adds is its BALD score under the posterior of the draws given the labels before it,
    averaged over what those labels may be. These label configurations ŷ are enumerated while there are at most
    `num_draw`; from then on that many are kept by systematic resampling, in proportion to their probability times what
    was still unknown before their last label, H(w), with importance weights. The weights w are normalised with each
    label, hence nothing underflows however many labels there are, and each term is at least 0.

    The information is at most log T. Once the picks leave nothing to know, or less than 0.001 nats by a sample, the
    other picks are the rows of highest BALD score, and add 0: predict with more iterations for large batches.

    Args:
        probs: Class probabilities under T posterior draws, [N, C, T], T > 1.
        query_size: Number of picks, K.
        num_draw: Label configurations to average over, at most.
        rng: Of the resampling; None is a generator seeded with 0.

    Returns:
        The picks in their order, int64 [K], and the information that each adds to those before it, in nats, [K]; their
        sum is the joint mutual information.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes; K
            is not in 1 .. N; `num_draw` < 1.
        TypeError: `probs` is no array of floating-point numbers.
    """
    values = checked_probabilities(probs, "BatchBALD", draws=2).detach()  # [N, C, T]
    if values.ndim != 3:
        raise ValueError(f"BatchBALD needs one prediction a row [N, C, T], got {list(values.shape)}.")
    checked_size(query_size, len(values), "BatchBALD")
    if num_draw < 1:
        raise ValueError(f"BatchBALD needs num_draw >= 1, got {num_draw}.")
    state = _Configurations(values, num_draw, np.random.default_rng(0) if rng is None else rng)
    picks, gains = lazy_greedy(torch.as_tensor(bald(probs)), state.gains, state.accept, query_size, block=64)
    return like(probs, picks), like(probs, gains)


class BatchBALD(BatchHeuristic):
    """The K rows that are most informative together, `batchbald`, as a heuristic; scores of rows are their BALD.

    Args:
        num_samples: Number of picks, K, where the call does not say.
        num_draw: Label configurations to average over, at most.
        shuffle_prop: As for every heuristic that picks rows together.
        seed: Of the resampling of configurations.
    """

    def __init__(
        self, num_samples: int | None = None, num_draw: int = 5_000, shuffle_prop: float = 0.0, *, seed: Seed = 0
    ) -> None:
        super().__init__(num_samples, shuffle_prop, seed=seed)
        if num_draw < 1:
            raise ValueError(f"BatchBALD needs num_draw >= 1, got {num_draw}.")
        self.num_draw = num_draw

    def pick(self, predictions: Array, query_size: int, *args: Any, **arrays: Any) -> tuple[Array, Array]:
        """Choose rows together, [N, C, T] to picks [K] and BALD scores [N]."""
        return batchbald(predictions, query_size, self.num_draw, self.rng)[0], bald(predictions)

    def compute_score(self, predictions: Array, *args: Any, **arrays: Any) -> Array:
        """BALD of each row, what it is worth as the first pick, [N, C, T] to [N]."""
        return bald(predictions)


class _Configurations:
    """Label configurations ŷ of the picks so far: their probabilities and the posterior of the draws under each."""

    def __init__(self, probs: Tensor, num_draw: int, rng: np.random.Generator) -> None:
        T = probs.shape[-1]
        self.probs = probs  # [N, C, T]
        self.num_draw = num_draw
        self.rng = rng
        self.probability = probs.new_ones(1)  # [M], importance weights once resampled
        self.posterior = probs.new_full((1, T), 1 / T)  # [M, T], w

    def gains(self, rows: Tensor) -> Tensor:
        """What the label of each of these rows adds, [n]."""
        n, C, T = len(rows), *self.probs.shape[1:]
        probs = self.probs[rows]  # [n, C, T]
        expected = self.probability @ self.posterior  # [T], about 1/T
        noise = entropies(probs, dim=1) @ expected  # [n]
        surprise = probs.new_zeros(n)
        size = max(1, NUMBERS_AT_ONCE // (n * C))
        for start in range(0, len(self.posterior), size):
            mixture = self.posterior[start : start + size] @ probs.reshape(n * C, T).T  # [m, n·C]
            surprise += self.probability[start : start + size] @ entropies(mixture.view(-1, n, C), dim=2)  # [n]
        return (surprise - noise).clamp_(min=0)

    def accept(self, row: int) -> bool:
        """Go on from each configuration with each label that the row may have, or with a sample of these.

        Returns:
            Whether something is left to know: H(θ|ŷ), which bounds what all further labels add together.
        """
        probs = self.probs[row]  # [C, T]
        C = len(probs)
        label = self.posterior @ probs.T  # [M, C], p(label | configuration)
        probability = (self.probability[:, None] * label).flatten()  # [M·C]
        enumerated = len(probability) <= self.num_draw
        if enumerated:
            children = (probability > torch.finfo(probability.dtype).tiny).nonzero().squeeze(1)  # [M']
            probability = probability[children]
        else:
            unknown = entropies(self.posterior, dim=1)  # [M]
            children, counts = self._resampled((unknown[:, None] * label * self.probability[:, None]).flatten())
            probability = counts * probability[children]
        parents, labels = children.div(C, rounding_mode="floor"), children % C  # [M']
        posterior = self.posterior[parents] * probs[labels]  # [M', T]
        self.posterior = posterior / posterior.sum(1, keepdim=True)
        self.probability = probability
        left = float(probability @ entropies(self.posterior, dim=1))
        return left > (torch.finfo(probability.dtype).eps if enumerated else NOTHING_LEFT)

    def _resampled(self, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Some entries of `importance` [M'], and how often each was drawn beside how often it was due [M']."""
        cumulated = importance.double().cumsum(0)
        total = float(cumulated[-1])
        places = (torch.arange(self.num_draw, device=importance.device) + self.rng.random()) * (total / self.num_draw)
        drawn = torch.searchsorted(cumulated, places.double(), right=True).clamp_(max=len(importance) - 1)
        children, times = torch.unique_consecutive(drawn, return_counts=True)
        due = importance[children] * (self.num_draw / total)  # [M']
        return children, times / due
