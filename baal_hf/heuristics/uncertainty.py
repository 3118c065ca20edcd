"""How unsure the prediction is: certainty, margin and entropy of the mean over draws; variance over draws."""

import torch

from baal_hf.arrays import Array, checked_draws, checked_probabilities, like
from baal_hf.heuristics.base import AbstractHeuristic, Reduction, Seed


def certainty(probs: Array) -> Array:
    """Probability that the most probable class is not the true one; least confidence.

    u(x) = 1 - max_c E_t[p_t(c|x)]    (Lewis & Gale, 1994; Culotta & McCallum, 2005)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T].

    Returns:
        Scores in [0, 1 - 1/C], [N, *S]; higher is more informative, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """
    mean = checked_probabilities(probs, "Certainty").mean(-1)  # [N, C, *S]
    return like(probs, (1 - mean.amax(1)).clamp(min=0))


def margin(probs: Array) -> Array:
    """How little the most probable class leads the second.

    u(x) = 1 - (p̄(c₁|x) - p̄(c₂|x)), p̄ = E_t[p_t], c₁ and c₂ its two most probable classes    (Scheffer et al., 2001)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T].

    Returns:
        Scores in [0, 1], [N, *S]; higher is more informative, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """
    mean = checked_probabilities(probs, "Margin").mean(-1)  # [N, C, *S]
    first, second = mean.topk(2, dim=1).values.unbind(1)  # [N, *S] each
    return like(probs, (1 - (first - second)).clamp(min=0))


def entropy(probs: Array) -> Array:
    """Entropy in nats of the mean probabilities, not the mean of the draws' entropies.

    H(x) = -Σ_c p̄(c|x) log p̄(c|x), p̄ = E_t[p_t], 0 log 0 = 0    (Shannon, 1948; Settles, 2009)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T].

    Returns:
        Scores in [0, log C], [N, *S]; higher is more informative, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """
    mean = checked_probabilities(probs, "Entropy").mean(-1)  # [N, C, *S]
    return like(probs, -torch.xlogy(mean, mean).sum(1).clamp(max=0))


def variance(predictions: Array) -> Array:
    """Variance over the draws, averaged over classes; for any finite numbers, regression and multi-label included.

    σ²(x) = 1/C Σ_c (E_t[f_t(c|x)²] - E_t[f_t(c|x)]²)    (Gal & Ghahramani, 2016, arXiv:1506.02142)

    Args:
        predictions: Outputs under T posterior draws, [N, C, *S, T], T > 1.

    Returns:
        Scores >= 0, at most 1/4 for probabilities, [N, *S]; higher is more informative, NaN at padding.

    Raises:
        ValueError: `predictions` are misshapen, not finite, or of a single draw.
        TypeError: `predictions` is no array of floating-point numbers.
    """
    values = checked_draws(predictions, "Variance", draws=2)  # [N, C, *S, T]
    return like(predictions, values.var(-1, correction=0).mean(1))


class Certainty(AbstractHeuristic):
    """Least confidence, `certainty`, as a heuristic."""

    def compute_score(self, predictions: Array) -> Array:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return certainty(predictions)


class Margin(AbstractHeuristic):
    """The lead of the most probable class, `margin`, as a heuristic."""

    def compute_score(self, predictions: Array) -> Array:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return margin(predictions)


class Entropy(AbstractHeuristic):
    """Predictive entropy, `entropy`, as a heuristic."""

    def compute_score(self, predictions: Array) -> Array:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return entropy(predictions)


class Variance(AbstractHeuristic):
    """Variance over draws, `variance`, as a heuristic; positions are averaged by default."""

    def __init__(self, shuffle_prop: float = 0.0, reduction: Reduction = "mean", *, seed: Seed = 0) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)

    def compute_score(self, predictions: Array) -> Array:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return variance(predictions)
