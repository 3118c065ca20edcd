"""How the weight of the unlabelled rows grows while predictions are still poor."""

from __future__ import annotations

import math


def ramp_up(step: int, steps: int) -> float:
    """Share of the full weight at a step of training.

    w(t) = exp(−5 (1 − t)²), t = min(1, step / steps)     (Laine & Aila, 2017; 1610.02242)

    >>> [round(ramp_up(step, 10), 3) for step in (0, 5, 10, 20)]
    [0.007, 0.287, 1.0, 1.0]

    Args:
        step: Steps of the optimizer that are done.
        steps: Length of the ramp; 0 for none.

    Returns:
        In [exp(−5), 1].

    Raises:
        ValueError: `step` or `steps` is negative.
    """
    if step < 0 or steps < 0:
        raise ValueError(f"ramp_up needs numbers of steps >= 0, got step {step} of {steps}.")
    t = min(1.0, step / steps) if steps else 1.0
    return math.exp(-5 * (1 - t) ** 2)
