"""Which tensors are outputs of sub-layers on their way into a sum with the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baal_hf.posterior.passes import Call, ForwardPass

SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}


class Branches:
    """What the modules of the running layer have returned, and what of it is a branch when it is summed.

    A sum joins a branch to the residual stream if one of its terms is what the module that ended last returned; in a
    layer itself, where attention and feed-forward may run in parallel, also if it is what another part of the layer
    returned. A norm's output is no such other part: there the residual stream goes on from it.

    Args:
        forward: The pass.
    """

    def __init__(self, forward: ForwardPass) -> None:
        self._forward = forward
        self._last: Tensor | None = None
        self._of_layer: list[Tensor] = []

    def begun(self, call: Call) -> None:
        """A module begins: what earlier layers returned is no branch of this one."""
        if self._forward.is_layer(call):
            self._of_layer.clear()

    def ended(self, call: Call, output: Tensor) -> None:
        """A module has returned something, and is not on the stack any more."""
        drops = "drop" in call.path.rpartition(".")[2]  # also where it returns what it was given
        if any(output is argument for argument in call.arguments) and not drops:
            return
        self._last = output
        if self._forward.depth == 0 and "norm" not in call.kind:
            self._of_layer.append(output)

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> None:
        """A branch times a plain number is the branch still."""
        is_scaling = func in _PRODUCTS and any(isinstance(part, int | float) for part in args)
        if is_scaling and any(part is self._last for part in args):
            self._last = output

    def among(self, x: Tensor, other: Tensor) -> bool:
        """Whether `x`, which is being added to `other`, is a branch."""
        if not self._forward.is_among_layers:
            return False
        if self._forward.depth > 0:  # in a part of a layer: what it just computed is added to what it was given
            return x is self._last and any(other is argument for argument in self._forward.stack[-1].arguments)
        return x is self._last or any(x is branch for branch in self._of_layer)
