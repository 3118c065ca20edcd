"""How much the posterior draws disagree: BALD, the information that a label holds about the network."""

import torch

from baal_hf.arrays import Array, checked_probabilities, like
from baal_hf.heuristics.base import AbstractHeuristic


def bald(probs: Array) -> Array:
    """Mutual information in nats between a row's label and the network that the posterior draws.

    I(y; θ|x) = H(E_t[p_t(·|x)]) - E_t[H(p_t(·|x))]    (Houlsby et al., 2011, arXiv:1112.5745)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1.

    Returns:
        Scores in [0, log min(C, T)], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """
    values = checked_probabilities(probs, "BALD", draws=2)  # [N, C, *S, T]
    mean = values.mean(-1)  # [N, C, *S]
    entropy_of_mean = -torch.xlogy(mean, mean).sum(1)  # [N, *S]
    mean_of_entropy = -torch.xlogy(values, values).sum(1).mean(-1)  # [N, *S]
    return like(probs, (entropy_of_mean - mean_of_entropy).clamp(min=0))


class BALD(AbstractHeuristic):
    """Bayesian active learning by disagreement, `bald`, as a heuristic."""

    def compute_score(self, predictions: Array) -> Array:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return bald(predictions)
