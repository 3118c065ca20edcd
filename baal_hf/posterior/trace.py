"""What the first draw of a batch shows the draws after it: work that no mask touches, and what masks are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Part:
    """A module that ended before the first mask, and where the pass then was.

    Attributes:
        output: What it returned.
        sites: Paths of the dropout calls inside it, none of which dropped anything.
        layer: The layer that the pass was in.
        weights: What the last softmax had returned.
    """

    output: Any
    sites: Sequence[str]
    layer: int
    weights: Tensor | None

    def __post_init__(self) -> None:
        self.is_plain = all(isinstance(leaf, Tensor | int | float | str | None) for leaf in _leaves(self.output))
        self.sums = self._sums()

    def is_as_it_was(self) -> bool:
        """Whether the model has gone on without changing what the module returned."""
        now = self._sums()
        return len(now) == len(self.sums) and all(map(torch.equal, now, self.sums))

    def _sums(self) -> list[Tensor]:
        tensors = [leaf for leaf in _leaves(self.output) if isinstance(leaf, Tensor)]
        return [tensor.sum(-1) if tensor.ndim else tensor.clone() for tensor in tensors]


class Trace:
    """A record of one draw's pass of one batch. It holds for that batch and those weights, and for no other.

    Attributes:
        parts: The modules that ended before the first mask, by path; of modules inside one another the outermost.
        sizes: First axis of what was masked, by site.
        share: How much of the pass came before the first mask: the share of the modules that were run.
        is_recorded: Whether the pass is over.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.sizes: dict[str, int] = {}
        self.share = 0.0
        self.is_recorded = False
        self._entered: Counter[str] = Counter()
        self._before = 0
        self._open: list[int] = []

    def enter(self, path: str) -> None:
        """A module begins."""
        self._entered[path] += 1
        self._open.append(len(self.parts))

    def leave(self, path: str, part: Part | None) -> None:
        """A module ends; `part` is None once there was a mask. Outputs that are no tensors cannot be watched."""
        inside = self._open.pop()
        if part is None or not part.is_plain:
            return
        self._before += 1
        for inner in list(self.parts)[inside:]:
            del self.parts[inner]
        self.parts[path] = part

    def close(self, passes: int) -> None:
        """The draw ends. What cannot be used again is left out: modules run twice, several passes, changed outputs."""
        self.is_recorded = True
        self.share = self._before / max(1, self._entered.total())
        if passes != 1:
            self.sizes.clear()
        if passes != 1 or not all(part.is_as_it_was() for part in self.parts.values()):
            self.parts.clear()
        self.parts = {path: part for path, part in self.parts.items() if self._entered[path] == 1}


def _leaves(output: Any) -> Iterator[Any]:
    """What is in the containers that a module returned."""
    if isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _leaves(part)
    else:
        yield output


class UnstackableError(RuntimeError):
    """A mask is for something that has no axis of rows, so draws cannot be stacked along it."""
