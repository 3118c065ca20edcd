"""The posterior of a model that has none: one network, the trained one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from baal_hf.posterior.base import opened
from baal_hf.posterior.switches import evaluation_flags


class Deterministic:
    """The model in evaluation mode as the one and only draw.

    Attributes:
        size: 1.
        swaps_weights: False.
    """

    size: int | None = 1
    swaps_weights = False

    @contextmanager
    def draw(self, model: nn.Module, t: int) -> Iterator[None]:
        """Put `model` in evaluation mode for the length of a `with` block.

        Raises:
            ValueError: `t` is not 0.
            TypeError: `model` is wrapped in `nn.DataParallel`.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        with opened(self, model, t) as network, evaluation_flags(network):
            yield
