"""The posterior of a model that has none: one network, the trained one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Deterministic:
    """The model in evaluation mode as the one and only draw.

    Attributes:
        size: 1.
    """

    size: int | None = 1

    @contextmanager
    def draw(self, model: nn.Module, t: int) -> Iterator[None]:
        """Put `model` in evaluation mode for the length of a `with` block.

        Raises:
            ValueError: `t` is not 0.
        """
        if t != 0:
            raise ValueError(f"A deterministic model has one draw, t=0, got t={t}. Use MCDropout for iterations > 1.")
        before = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            yield
        finally:
            for module, training in before:
                module.training = training
