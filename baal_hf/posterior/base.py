"""What every posterior promises."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Posterior(Protocol):
    """A distribution over networks from which the t-th draw can be taken, again and again.

    A draw is a fixed function: within `draw(model, t)` the output for a row depends on that row alone, not on the other
    rows, the batch size, the padding, the order, the process or the day. All rows of a pool therefore see the same T
    networks, which joint quantities (BatchBALD, EPIG) need and which makes scores repeatable.

    Attributes:
        size: Number of different draws there are; None means no limit.
    """

    size: int | None

    def draw(self, model: nn.Module, t: int) -> AbstractContextManager[None]:
        """Turn `model` into the t-th network for the length of a `with` block, and back again.

        Raises:
            ValueError: `t` is negative or beyond `size`.
            RuntimeError: A draw is open already.
        """
        ...
