"""Sequences: how unsure a model is of the whole of its labels or tokens, long and short ones on one scale."""

from __future__ import annotations

from torch import Tensor

from baal_hf.arrays import Array, scored
from baal_hf.heuristics.base import FunctionHeuristic, Seed
from baal_hf.heuristics.reductions import Reduction


def mnlp(probs: Array) -> Array:
    """Negative log probability in nats of each position's most probable class; its mean over a sequence is MNLP.

    u(x) = -1/S Σ_s log max_c p̄(c|x, s), p̄ = E_t[p_t]    (maximum normalised log-probability, Shen et al., 2017,
    arXiv:1707.05928, with the sign turned)

    This function gives the terms of the sum; `MNLP`, or reduction 'mean', takes the mean over real positions, so that
    long sequences do not win by their length. With one label a token that is the paper's score. For sequences that a
    model generates, classes are the vocabulary and positions the generated tokens of one greedy answer, which all draws
    are asked about: stack each step's probabilities given the tokens before it, [N, C, S, T], and hide with
    `baal_hf.arrays.masked` what comes after the end token.

    Args:
        probs: Class probabilities under T posterior draws, [N, C, *S, T].

    Returns:
        Scores in [0, log C], [N, *S]; higher is more informative, NaN at padding.

    Raises:
        ValueError: `probs` are misshapen, not finite, or no probabilities over two or more classes.
        TypeError: `probs` is no array of floating-point numbers.
    """

    def score(values: Tensor) -> Tensor:
        return values.mean(-1).amax(1).log_().neg_().clamp_(min=0)  # [n, *S]

    return scored(score, probs, "MNLP")


class MNLP(FunctionHeuristic):
    """Maximum normalised log-probability, `mnlp`, as a heuristic; the mean over positions by default."""

    score = staticmethod(mnlp)

    def __init__(self, shuffle_prop: float = 0.0, reduction: Reduction = "mean", *, seed: Seed = 0) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)
