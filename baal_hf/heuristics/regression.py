"""Regression: the information that a measurement holds about the network; how far draws spread is `Variance`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from baal_hf.arrays import Array, NumpyArray, as_tensor, checked_draws, row_names, scored
from baal_hf.heuristics.base import AbstractHeuristic, Seed
from baal_hf.heuristics.reductions import Reduction

Noise: TypeAlias = float | NumpyArray | Tensor


def gaussian_bald(means: Array, noise_variance: Noise = 1.0) -> Array:
    """Mutual information in nats between a row's measured outputs and the network that the posterior draws.

    I(y; θ|x) = ½ [log det(Cov_t[f_t(x)] + diag(E_t[σ_t²(x)])) - Σ_c E_t[log σ_tc²(x)]], which is
    ½ log det(I + Cov_t[f_t(x)] / σ²) where the noise σ² is one number    (MacKay, 1992; Houlsby et al., 2011,
    arXiv:1112.5745)

    f_t(x) are the C outputs of draw t, measured with independent Gaussian noise; the mixture over draws counts as the
    Gaussian of its mean and covariance. It is exact where the draws are Gaussian and of one noise, and else an upper
    bound.

    Args:
        means: Outputs under T posterior draws, [N, C, *S, T], T > 1.
        noise_variance: Variance of the noise, > 0, in the outputs' unit squared: a number, one for each output [C], or
            that of each row and draw, [N, C, *S, T] like `means`, as a network that predicts its noise gives it.

    Returns:
        Scores >= 0, [N, *S]; higher is more informative, 0 where all draws agree, NaN at padding.

    Raises:
        ValueError: `means` are misshapen, not finite, or of a single draw; the noise is of another shape or not
            positive and finite.
        TypeError: `means` are no array of floating-point numbers, or the noise is none.

    Example:
        >>> gaussian_bald(torch.tensor([[[-1.0, 1.0]]]), noise_variance=1.0)  # ½ log 2
        tensor([0.3466])
    """
    noise = _checked_noise(noise_variance, means)  # [], [C] or [N, C, *S, T]
    if noise.ndim > 1:
        return scored(_information, means, "GaussianBALD", 2, checked_draws, beside=[noise])

    def score(values: Tensor) -> Tensor:
        return _information(values, noise.to(values).reshape(1, -1, *[1] * (values.ndim - 2)))  # [n, *S]

    return scored(score, means, "GaussianBALD", 2, checked_draws)


def _information(means: Tensor, noise: Tensor) -> Tensor:
    """Outputs [n, C, *S, T] and the variance of their noise, of a shape that fits, to scores [n, *S]."""
    T = means.shape[-1]
    average = noise.mean(-1, keepdim=True)  # [n, C, *S, 1]
    deviations = (means - means.mean(-1, keepdim=True)) / (average * T).sqrt()  # [n, C, *S, T], in units of the noise
    rows = deviations.movedim(1, -2)  # [n, *S, C, T]
    # det(I + D Dᵀ) = det(I + Dᵀ D): the smaller of both.
    product = rows @ rows.mT if rows.shape[-2] <= T else rows.mT @ rows  # [n, *S, k, k]
    information = _log_det(product)  # [n, *S]
    return (information + (average.squeeze(-1).log() - noise.log().mean(-1)).sum(1)).clamp_(min=0) / 2


def _log_det(product: Tensor) -> Tensor:
    """The log determinant of I + G for positive semi-definite G, [..., k, k] to [...]; NaN where G is."""
    if product.shape[-1] == 1:
        return product[..., 0, 0].log1p()
    wide = product.double()  # 1 + g keeps what float32 would round away of a small g
    information: Tensor = torch.linalg.slogdet(wide + torch.eye(wide.shape[-1]).to(wide)).logabsdet
    return information.to(product)


def _as_noise(noise_variance: Noise) -> Tensor:
    """The variance as a tensor; a number, or one for each output, is positive and finite."""
    if isinstance(noise_variance, int | float | np.number):
        noise_variance = np.array(noise_variance, dtype=np.float64)  # []
    noise = as_tensor(noise_variance, "GaussianBALD's noise_variance")
    if noise.ndim < 2 and not (noise.isfinite() & (noise > 0)).all():
        raise ValueError(f"GaussianBALD needs a noise_variance that is positive and finite, got {noise.tolist()}.")
    return noise


def _checked_noise(noise_variance: Noise, means: NumpyArray | Tensor) -> Tensor:
    """The variance as a tensor [], [C], or [N, C, *S, T]; positive and finite but where `means` are padding."""
    noise = _as_noise(noise_variance)
    shape = list(means.shape) if isinstance(means, np.ndarray | Tensor) else []
    if list(noise.shape) not in ([], shape[1:2], shape):
        wanted = f"one number, {shape[1:2]} (one for each output) or {shape} (like means)"
        raise ValueError(f"GaussianBALD needs as noise_variance {wanted}, got {list(noise.shape)}.")
    broken = ~(noise.isfinite() & (noise > 0))  # of the shape of noise
    if broken.any():
        wrong = broken & ~as_tensor(means, "GaussianBALD").to(noise.device).isnan()  # [N, C, *S, T]
        if wrong.any():
            rows = row_names(wrong.flatten(1).any(1))
            raise ValueError(f"GaussianBALD needs a noise_variance that is positive and finite, got others in {rows}.")
    return noise


class GaussianBALD(AbstractHeuristic):
    """Information about the network in a regression's outputs, `gaussian_bald`, as a heuristic.

    Args:
        noise_variance: Variance of the measurements' noise, > 0: a number, or one for each output [C].
        shuffle_prop: As for every heuristic.
        reduction: As for every heuristic.
        seed: As for every heuristic.

    Raises:
        ValueError: The noise is not positive and finite, or that of each row, which only `gaussian_bald` can take.
    """

    def __init__(
        self, noise_variance: Noise = 1.0, shuffle_prop: float = 0.0, reduction: Reduction = "none", *, seed: Seed = 0
    ) -> None:
        super().__init__(shuffle_prop, reduction, seed=seed)
        if _as_noise(noise_variance).ndim > 1:
            shape = list(_as_noise(noise_variance).shape)
            raise ValueError(f"GaussianBALD needs one noise_variance or one for each output, got {shape}.")
        self.noise_variance = noise_variance

    def compute_score(self, predictions: Any, *args: Any, **arrays: Any) -> Any:
        """Score each position, [N, C, *S, T] to [N, *S]."""
        return gaussian_bald(predictions, self.noise_variance)
