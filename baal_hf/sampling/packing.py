"""Several outputs of a model go through the engine as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baal_hf.sampling.joining import concatenated


class Packing:
    """Puts what a model returns into one tensor, and takes it apart again.

    A single output stays as it is. Of several the first batch tells the shapes, which the others have to have as well.

    Attributes:
        is_single: Whether there is one output; known once a batch was packed.
    """

    def __init__(self) -> None:
        self._shapes: list[torch.Size] | None = None

    @property
    def is_single(self) -> bool:
        return self._shapes is None

    def packed(self, outputs: Tensor | list[Tensor]) -> Tensor:
        """One tensor as it is; several side by side, [B, n].

        Raises:
            ValueError: The shapes of several outputs are not those of the first batch.
        """
        if isinstance(outputs, Tensor):
            return outputs
        shapes = [output.shape[1:] for output in outputs]
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            raise ValueError(
                f"Several outputs need the same shapes in each batch, got {[list(s) for s in self._shapes]} and then "
                f"{[list(s) for s in shapes]}: pad all rows to one length."
            )
        return torch.cat([output.flatten(1) for output in outputs], 1)

    def unpacked(self, part: Tensor) -> list[Tensor]:
        """The tensors [n, C, *S, T] of some rows, one for each output."""
        if self._shapes is None:
            return [part]
        pieces = torch.split(part, [shape.numel() for shape in self._shapes], dim=1)
        shapes = zip(pieces, self._shapes, strict=True)
        return [piece.reshape(len(part), *shape, part.shape[-1]) for piece, shape in shapes]

    def arrays(self, part: Tensor) -> Any:
        """The array [n, C, *S, T] of some rows, or a list of one for each output."""
        arrays = [piece.numpy() for piece in self.unpacked(part)]
        return arrays[0] if self.is_single else arrays

    def joined(self, parts: Iterable[Tensor]) -> Any:
        """The array [N, C, *S, T] of consecutive parts, or a list of one for each output; shorter *S end with NaN."""
        if not (packed := list(parts)):
            return np.empty(0)
        if self.is_single:
            return concatenated(_given_away(packed))
        outputs = zip(*(self.unpacked(part) for part in packed), strict=True)
        return [concatenated(iter(pieces)) for pieces in outputs]


def _given_away(parts: list[Tensor]) -> Iterator[Tensor]:
    """The parts, which nobody else holds then: they are freed as they are copied."""
    parts.reverse()
    while parts:
        yield parts.pop()
