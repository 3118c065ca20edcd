"""Features of rows, and how far they are from one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from baal_hf.arrays import NumpyArray, as_tensor, row_names


def checked_features(
    features: NumpyArray | Tensor, who: str, name: str = "features", rows: int = 1, width: int | None = None
) -> Tensor:
    """`features` as a tensor [N, d] of finite numbers in at least float32, with at least that many rows.

    Args:
        features: A representation of each row, [N, d].
        who: Named in errors.
        name: Of the array, named in errors.
        rows: The least number of rows; 0 where there may be none, [0, d].
        width: What d must be, that of the features it is compared with; None means any.

    Raises:
        ValueError: These are not [N, d], rows are missing, d is another, or a row holds NaN or infinity.
        TypeError: `features` is no array of floating-point numbers.
    """
    values = as_tensor(features, f"{who} ({name})")  # [N, d]
    shape = list(values.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{who} needs {name} [N, d], got {shape}. Pool positions into one vector a row.")
    if shape[0] < rows:
        raise ValueError(f"{who} needs {name} of {rows} row{'s' if rows > 1 else ''} or more, got {shape}.")
    if width is not None and shape[1] != width:
        raise ValueError(f"{who} needs {name} as wide as features, d = {width}, got {shape}. Take both from one layer.")
    if not values.sum().isfinite():  # as NaN and infinity stay in a sum; one that overflows is looked at closely
        broken = ~values.isfinite().all(1)  # [N]
        if broken.any():
            raise ValueError(f"{who} needs finite {name}, got NaN or infinity in {row_names(broken)}. Check the model.")
    return values


DISTANCES_AT_ONCE = 2**21  # how many `distances_to` is best asked for together, measured: they stay in the cache


def distances_to(points: Tensor) -> Callable[[Tensor], Tensor]:
    """Euclidean distances to `points` [M, d], M > 0: a function of rows [n, d] to [n, M].

    ‖x − p‖² = ‖x‖² + ‖p‖² − 2 x·p, both from the mean of the points. In double, and then rounded to float32, so that
    equal rows have equal distances in whatever order a product is summed; 0 where x and p agree in all but the last of
    float32's digits: ‖x − p‖² ≤ 10⁻¹² (‖x‖² + ‖p‖²).
    """
    centre = points.double().mean(0)  # [d]
    points = points.double() - centre
    sizes = points.square().sum(1)  # [M]

    def distances(rows: Tensor) -> Tensor:
        rows = rows.to(points) - centre
        both = rows.square().sum(1, keepdim=True) + sizes  # [n, M]
        squares = torch.addmm(both, rows, points.T, alpha=-2)  # [n, M]
        return squares.masked_fill_(squares <= both.mul_(1e-12), 0).sqrt_().float()

    return distances
