"""How much the posterior draws disagree: BALD, the information that a label holds about the network, and its kin."""

from __future__ import annotations

import torch
from torch import Tensor

from baal_hf.arrays import Array, scored
from baal_hf.heuristics.base import FunctionHeuristic
from baal_hf.heuristics.draws import entropies, vote_shares

SMALLEST = 1e-10
"""What a smaller probability counts as where a logarithm of it would be infinite; the same in every precision."""


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

    def score(values: Tensor) -> Tensor:
        expected = entropies(values, (1, -1)) / values.shape[-1]  # [n, *S]
        return (entropies(values.mean(-1), 1) - expected).clamp_(min=0)

    return scored(score, probs, "BALD", draws=2)


def expected_kl(probs: Array) -> Array:
    """Expected pairwise Kullback-Leibler divergence in nats between the predictions of two draws.

    K(x) = E_t E_s[KL(p_t(·|x) ‖ p_s(·|x))] = Σ_c Cov_t(p_t(c|x), log p_t(c|x))    (Malinin & Gales, 2021,
    arXiv:2002.07650)

    In the logarithm, less than 1e-10 counts as 1e-10: a draw that excludes what another expects costs much and not
    infinitely much.

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1.

    Returns:
        Scores in [0, 10 log 10], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding. `bald`
        and `reverse_mutual_information` together.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        logs = values.clamp(min=SMALLEST).log_()  # [n, C, *S, T]
        return logs.mul_(values - values.mean(-1, keepdim=True)).mean(-1).sum(1).clamp_(min=0)  # [n, *S]

    return scored(score, probs, "ExpectedKL", draws=2)


def reverse_mutual_information(probs: Array) -> Array:
    """Expected Kullback-Leibler divergence in nats from the mean prediction to a draw's: expected KL without BALD.

    M(x) = E_t[KL(p̄(·|x) ‖ p_t(·|x))] = -Σ_c p̄(c) E_t[log p_t(c)] - H(p̄)    (Malinin & Gales, 2021, arXiv:2002.07650)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1; less than 1e-10 counts as in
            `expected_kl`.

    Returns:
        Scores in [0, 10 log 10], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        mean = values.mean(-1)  # [n, C, *S]
        lead = mean.clamp(min=SMALLEST).log_() - values.clamp(min=SMALLEST).log_().mean(-1)  # [n, C, *S]
        return lead.mul_(mean).sum(1).clamp_(min=0)  # [n, *S]

    return scored(score, probs, "ReverseMutualInformation", draws=2)


def vote_entropy(probs: Array) -> Array:
    """Entropy in nats of the draws' votes, each draw voting for its most probable class.

    H(x) = -Σ_c v_c log v_c, v_c = 1/T Σ_t [argmax p_t(·|x) = c]    (Engelson & Dagan, 1996, arXiv:cmp-lg/9606030)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1. The first of equal classes is voted
            for.

    Returns:
        Scores in [0, log min(C, T)], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        return entropies(vote_shares(values), 1).clamp_(min=0)  # [n, *S]

    return scored(score, probs, "VoteEntropy", draws=2)


def max_kl(probs: Array) -> Array:
    """Kullback-Leibler divergence in nats of the draw that is furthest from the mean prediction.

    K(x) = max_t KL(p_t(·|x) ‖ p̄(·|x)), p̄ = E_t[p_t]    (after McCallum & Nigam, 1998, who average over t: that is BALD)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1.

    Returns:
        Scores in [0, log T], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding. At least
        `bald`.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        divergence = _log(values).sub_(_log(values.mean(-1, keepdim=True))).mul_(values).sum(1)  # [n, *S, T]
        return divergence.amax(-1).clamp_(min=0)  # [n, *S]

    return scored(score, probs, "MaxKL", draws=2)


def _log(values: Tensor) -> Tensor:
    """Logarithm with 0 log 0 = 0 in mind; several times faster than torch.xlogy."""
    return values.clamp(min=torch.finfo(values.dtype).tiny).log_()


class BALD(FunctionHeuristic):
    """Bayesian active learning by disagreement, `bald`, as a heuristic."""

    score = staticmethod(bald)


class ExpectedKL(FunctionHeuristic):
    """Expected pairwise divergence of the draws, `expected_kl`, as a heuristic."""

    score = staticmethod(expected_kl)


class ReverseMutualInformation(FunctionHeuristic):
    """Expected divergence of the mean from the draws, `reverse_mutual_information`, as a heuristic."""

    score = staticmethod(reverse_mutual_information)


class VoteEntropy(FunctionHeuristic):
    """Entropy of the draws' votes, `vote_entropy`, as a heuristic."""

    score = staticmethod(vote_entropy)


class MaxKL(FunctionHeuristic):
    """The largest divergence of a draw from the mean, `max_kl`, as a heuristic."""

    score = staticmethod(max_kl)
