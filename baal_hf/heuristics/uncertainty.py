"""How unsure the prediction is: certainty, margin and entropy of the mean over draws, and how far the draws spread."""

from torch import Tensor

from baal_hf.arrays import Array, checked_draws, scored
from baal_hf.heuristics.base import FunctionHeuristic, Seed
from baal_hf.heuristics.draws import entropies, vote_shares
from baal_hf.heuristics.reductions import Reduction


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

    def score(values: Tensor) -> Tensor:
        return (1 - values.mean(-1).amax(1)).clamp_(min=0)  # [n, *S]

    return scored(score, probs, "Certainty")


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

    def score(values: Tensor) -> Tensor:
        first, second = values.mean(-1).topk(2, dim=1).values.unbind(1)  # [n, *S] each
        return (1 - (first - second)).clamp_(min=0)

    return scored(score, probs, "Margin")


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

    def score(values: Tensor) -> Tensor:
        return entropies(values.mean(-1), 1).clamp_(min=0)  # [n, *S]

    return scored(score, probs, "Entropy")


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

    def score(values: Tensor) -> Tensor:
        return _spread(values).mean(1)  # [n, *S]

    return scored(score, predictions, "Variance", draws=2, check=checked_draws)


def variation_ratio(probs: Array) -> Array:
    """Share of the draws that do not vote for the class that most draws vote for.

    v(x) = 1 - max_c 1/T Σ_t [argmax p_t(·|x) = c]    (Freeman, 1965; Gal et al., 2017, arXiv:1703.02910)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1. The first of equal classes is voted
            for.

    Returns:
        Scores in [0, 1 - 1/min(C, T)], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        return 1 - vote_shares(values).amax(1)  # [n, *S]

    return scored(score, probs, "VariationRatio", draws=2)


def mean_std(probs: Array) -> Array:
    """Standard deviation of each class's probability over the draws, averaged over classes.

    σ(x) = 1/C Σ_c sqrt(E_t[p_t(c|x)²] - E_t[p_t(c|x)]²)    (Kampffmeyer et al., 2016; Gal et al., 2017)

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T], T > 1.

    Returns:
        Scores in [0, 1/2], [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, of a single draw, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        return _spread(values).sqrt_().mean(1)  # [n, *S]

    return scored(score, probs, "MeanStd", draws=2)


def _spread(values: Tensor) -> Tensor:
    """Variance over draws, [n, C, *S, T] to [n, C, *S]; about ten times faster than torch.var, as exact."""
    return (values - values.mean(-1, keepdim=True)).square_().mean(-1)


class Certainty(FunctionHeuristic):
    """Least confidence, `certainty`, as a heuristic."""

    score = staticmethod(certainty)


class Margin(FunctionHeuristic):
    """The lead of the most probable class, `margin`, as a heuristic."""

    score = staticmethod(margin)


class Entropy(FunctionHeuristic):
    """Predictive entropy, `entropy`, as a heuristic."""

    score = staticmethod(entropy)


class Variance(FunctionHeuristic):
    """Variance over draws, `variance`, as a heuristic; positions are averaged by default."""

    def __init__(self, shuffle_prop: float = 0.0, reduction: Reduction = "mean", *, seed: Seed = 0) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)

    score = staticmethod(variance)


class VariationRatio(FunctionHeuristic):
    """Share of draws outside the most voted class, `variation_ratio`, as a heuristic."""

    score = staticmethod(variation_ratio)


class MeanStd(FunctionHeuristic):
    """Standard deviation over draws, `mean_std`, as a heuristic."""

    score = staticmethod(mean_std)
