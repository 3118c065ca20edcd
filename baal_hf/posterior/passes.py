"""A forward pass as it goes: which modules are running, and which layer was entered last."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from torch import nn

from baal_hf.posterior.places import Moment


@dataclass(frozen=True)
class Call:
    """A module that is running, its name in the model, and what it was given."""

    module: nn.Module
    path: str
    arguments: tuple[Any, ...]

    @property
    def kind(self) -> str:
        """Name of the module's class, in small letters."""
        return type(self.module).__name__.lower()


class ForwardPass:
    """The calls of a model's modules that are under way.

    Args:
        model: The network.
        layers: Its layers, as `stacked_layers` has them.

    Attributes:
        count: Passes begun.
        stack: What is running, the innermost last.
        layer: Number of the layer entered last, as a `Moment` has it.
    """

    def __init__(self, model: nn.Module, layers: list[list[nn.Module]]) -> None:
        self.count = 0
        self.stack: list[Call] = []
        self._modules = list(model.named_modules())
        self._names = {id(module): name for name, module in self._modules}
        self._layers = layers
        self._layer_of = {id(module): index for index, layer in enumerate(layers) for module in layer}
        self.layer = -1

    def parts(self, paths: Container[str]) -> dict[str, nn.Module]:
        """The modules of these names."""
        return {path: module for path, module in self._modules if path in paths}

    def has(self, module: nn.Module) -> bool:
        """Whether the module is a part of the model."""
        return id(module) in self._names

    def enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A module begins."""
        if not self.stack:
            self.count += 1
            self.layer = -1
        self.layer = self._layer_of.get(id(module), self.layer)
        self.stack.append(Call(module, self._names[id(module)], arguments))

    def leave(self) -> Call:
        """The innermost module ends."""
        call = self.stack.pop()
        if self._layers and call.module is self._layers[-1][-1]:
            self.layer = len(self._layers)
        return call

    def is_layer(self, call: Call) -> bool:
        """Whether what is called is a layer, not a part of one."""
        return id(call.module) in self._layer_of

    @property
    def depth(self) -> int:
        """How many calls inside of a layer this is, 0 for the layer itself; −1 outside of layers."""
        for depth, call in enumerate(reversed(self.stack)):
            if self.is_layer(call):
                return depth
        return -1

    @property
    def is_among_layers(self) -> bool:
        """Whether this is in a layer, or in the model that runs layers which it keeps as parts side by side."""
        return self.depth >= 0 or any(len(layer) > 1 for layer in self._layers)

    @property
    def moment(self) -> Moment:
        """Where the pass is now."""
        return Moment(self.stack[-1].path if self.stack else "", self.layer, len(self._layers))
