"""Where in a network a draw drops out: the places that users name, and the layers that they count from."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

WHERE = ("residual", "attention", "head")


@dataclass(frozen=True)
class Moment:
    """Where a forward pass is.

    Attributes:
        path: Name of the running module.
        layer: Number of the layer entered last; −1 before the first, `layers` after the last.
        layers: How many layers the model has.
    """

    path: str
    layer: int
    layers: int

    @property
    def in_layers(self) -> bool:
        """Whether some layer has begun and the last has not ended."""
        return 0 <= self.layer < self.layers

    @property
    def in_head(self) -> bool:
        """Whether the last layer has ended."""
        return self.layer == self.layers > 0


@dataclass(frozen=True)
class Rates:
    """The dropout rate of a draw at each moment of a pass.

    Without `p` it is the model's own, at the places that `where` covers and 0 elsewhere. With `p` the model's own
    dropout is off, and `p` is the rate of what is added at those places.

    Attributes:
        p: None, or a rate in [0, 1).
        where: None for everywhere, or "residual", "attention", "head", "last:k" or a pattern of module names.
    """

    p: float | None = None
    where: str | None = None

    def own(self, p: float, kind: str, now: Moment) -> float:
        """The rate of a dropout that the model has, configured with `p`; `kind` is "attention" or "hidden"."""
        if self.p is not None:
            return self.p if kind == self.where == "attention" else 0.0
        return p if self._covers(kind, now) else 0.0

    def added(self, place: str, now: Moment) -> float:
        """The rate of what is added on a "residual" branch, before the "head"'s matrices, or to a module's "output"."""
        if self.p is None:
            return 0.0
        if place == "output":
            return self.p if self.is_pattern and fnmatchcase(now.path, self.where or "") else 0.0
        if place == "residual" and now.in_layers:
            return self.p if self.where == "residual" or now.layer >= now.layers - self.last else 0.0
        return self.p if place == "head" and now.in_head and (self.where == "head" or self.last) else 0.0

    @property
    def last(self) -> int:
        """K of "last:k", else 0."""
        return int(self.where[5:]) if self.where and re.fullmatch(r"last:\d+", self.where) else 0

    @property
    def is_pattern(self) -> bool:
        """Whether `where` names modules."""
        return self.where is not None and self.where not in WHERE and not self.last

    def _covers(self, kind: str, now: Moment) -> bool:
        if self.where is None:
            return True
        if self.where == "attention":
            return kind == "attention"
        if self.where == "residual":
            return kind == "hidden" and now.in_layers
        if self.where == "head":
            return now.in_head
        if self.last:
            return now.layer >= now.layers - self.last
        parts = now.path.split(".")
        return any(fnmatchcase(".".join(parts[: end + 1]), self.where) for end in range(len(parts)))


def stacked_layers(model: nn.Module) -> list[list[nn.Module]]:
    """The model's layers: the elements of its outermost module lists, in the order in which it has them.

    A stage of a hierarchical model, which has a list of blocks of one kind itself, is not one layer but these. Lists of
    one length side by side, as some models keep their attentions and their norms, are one stack, whose layer i is the
    i-th of each.
    """
    layers = []
    stacks: dict[int, list[list[nn.Module]]] = defaultdict(list)
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            stack = _flat(child)
            if not stacks[len(stack)]:
                stacks[len(stack)] = [[] for _ in stack]
                layers += stacks[len(stack)]
            for layer, module in zip(stacks[len(stack)], stack, strict=True):
                layer.append(module)
        else:
            layers += stacked_layers(child)
    return layers


def _flat(modules: nn.ModuleList) -> list[nn.Module]:
    return [part for child in modules for part in _parts(child)]


def _parts(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.ModuleList):
        return _flat(module)
    blocks = getattr(module, "blocks", None) or getattr(module, "layers", None)
    if isinstance(blocks, nn.ModuleList) and len({type(block) for block in blocks}) == 1:
        return _flat(blocks)
    return [module]


def checked_where(where: str | None) -> None:
    """Raise a ValueError for a `where` that no model could have."""
    if where is not None and (not where or re.fullmatch(r"last:(0+|\D.*|)", where)):
        raise ValueError(f"{_choices('k')}, got {where!r}.")


def check_places(model: nn.Module, rates: Rates, layers: int) -> None:
    """Raise a ValueError that lists what there is, unless the model has the places that are asked for."""
    if rates.is_pattern:
        paths = [path for path, _ in model.named_modules() if path]
        if any(fnmatchcase(path, rates.where or "") for path in paths):
            return
        names = sorted({re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path) for path in paths})
        shown = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
        raise ValueError(f"{_choices(layers)}, got {rates.where!r}. Names in {type(model).__name__}: {shown}.")
    if rates.last > layers or (layers == 0 and rates.where in ("residual", "head")):
        raise ValueError(
            f"where={rates.where!r} counts layers, the elements of a ModuleList, of which {type(model).__name__} has "
            f"{layers}. A pattern of module names works on any module."
        )


def _choices(layers: int | str) -> str:
    last = f'"last:1" to "last:{layers}"' if layers else '"last:k" where there are layers'
    return f'MCDropout needs where="residual", "attention", "head", {last}, or a pattern of module names'
