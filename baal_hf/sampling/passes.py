"""The forward passes of a batch under T draws, and what these can share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from baal_hf.posterior import Posterior
from baal_hf.posterior.base import TracedPosterior
from baal_hf.posterior.trace import Trace, UnstackableError

logger = logging.getLogger(__name__)

Forward = Callable[[nn.Module, Any], Tensor]
"""One pass: (model, batch) -> predictions [B, C, *S], probabilities or regressed values."""

# Share of a pass before the first mask from which on it is worth keeping.
_WORTH_KEEPING = 0.1
_KEPT, _STACKED = "keep what comes before the first mask", "are stacked"
_TOLERANCE = 1e-4  # of probabilities, between a pass that was spared some work and one that was not


class Passes:
    """Runs a model on batches under draws of a posterior.

    The draws of a batch share what comes before the first mask, or are stacked into one pass where the batch is small.
    Either is compared once with a pass that shares nothing, and given up if the model does not allow it.

    Args:
        model: The network.
        posterior: What makes the t-th network.
        forward: Runs the network on a batch.
        accelerator: Device and mixed precision.
        shares: Whether draws may share work.

    Attributes:
        counts: Passes run, by kind: whole, reused (what comes before the first mask was not computed again), stacked.
    """

    def __init__(
        self, model: nn.Module, posterior: Posterior, forward: Forward, accelerator: Accelerator, shares: bool = True
    ) -> None:
        self.counts = {"whole": 0, "reused": 0, "stacked": 0}
        self._model = model
        self._posterior = posterior
        self._forward = forward
        self._accelerator = accelerator
        self._shares = isinstance(posterior, TracedPosterior) and shares and not is_sharded(model)
        self._reuses: bool | None = None  # None: not tried yet
        self._stacks: bool | None = None

    def __call__(self, batches: Sequence[Any], draws: Sequence[int], stack: int = 1) -> list[Tensor]:
        """Predictions of each batch under each draw, [B, C, *S, T], on the device.

        Args:
            batches: As the collator made them.
            draws: Numbers of the draws, T.
            stack: So many times a batch's rows make a pass that is not too large.
        """
        batches = send_to_device(list(batches), self._accelerator.device)
        with torch.no_grad(), self._accelerator.autocast():
            if self._shares and len(draws) > 1 and not self._posterior.swaps_weights:
                return [torch.cat(list(self._sharing(batch, draws, stack)), -1) for batch in batches]
            return self._one_by_one(batches, draws)

    def _one_by_one(self, batches: Sequence[Any], draws: Sequence[int]) -> list[Tensor]:
        """Each draw is opened once for all batches."""
        passes: list[list[Tensor]] = [[] for _ in batches]
        for t in draws:
            with self._posterior.draw(self._model, t), _inference_mode(t != draws[0]):
                for batch, drawn in zip(batches, passes, strict=True):
                    self.counts["whole"] += 1
                    drawn.append(self._forward(self._model, batch))  # [B, C, *S]
        return [torch.stack(drawn, dim=-1) for drawn in passes]  # [B, C, *S, T] each

    def _sharing(self, batch: Any, draws: Sequence[int], stack: int) -> Iterator[Tensor]:
        """The draws of a batch, [B, C, *S, t] at a time."""
        trace = Trace()
        first, rest = draws[0], draws[1:]
        yield self._traced(batch, [first], trace, "whole")
        if trace.parts and trace.share >= _WORTH_KEEPING and self._reuses is not False:
            parts = [self._traced(batch, [t], trace, "reused") for t in rest]
            self._reuses = self._reuses or self._agrees(_KEPT, batch, rest[-1], parts[-1])
            if self._reuses:
                yield from parts
                return
        elif trace.sizes and stack > 1 and self._stacks is not False:
            stacked = self._stacked(batch, rest, trace, stack)
            if stacked is not None:
                yield from stacked
                return
        with _inference_mode(True):
            (later,) = self._one_by_one([batch], rest)
        yield later

    def _traced(self, batch: Any, draws: Sequence[int], trace: Trace, kind: str) -> Tensor:
        """One pass, [B, C, *S, t]; t = 1 unless `batch` is stacked."""
        assert isinstance(self._posterior, TracedPosterior)
        self.counts[kind] += 1
        with self._posterior.traced(self._model, draws, trace), _inference_mode(kind == "reused"):
            predictions = self._forward(self._model, batch)  # [t·B, C, *S]
        if len(predictions) % len(draws):
            raise UnstackableError(f"The model returned {len(predictions)} rows for {len(draws)} draws.")
        return predictions.view(len(draws), -1, *predictions.shape[1:]).movedim(0, -1)  # [B, C, *S, t]

    def _stacked(self, batch: Any, draws: Sequence[int], trace: Trace, stack: int) -> list[Tensor] | None:
        """The draws, several in one pass; None where the model or the batch is not made for it."""
        parts = []
        for start in range(0, len(draws), stack):
            here = draws[start : start + stack]
            repeated = _repeated(batch, len(here))
            if repeated is None:
                return None
            try:
                parts.append(self._traced(repeated, here, trace, "stacked"))
                if self._stacks is None:
                    with torch.autocast(self._accelerator.device.type, enabled=False):  # rounding must not hide masks
                        whole = self._traced(repeated, here, trace, "stacked")
                        self._stacks = self._agrees(_STACKED, batch, here[-1], whole[..., -1:])
            except UnstackableError as error:
                logger.debug("Draws are not stacked: %s", error)
                self._stacks = False
            if not self._stacks:
                return None
        return parts

    def _agrees(self, how: str, batch: Any, t: int, shared: Tensor) -> bool:
        """Whether the pass of one draw gives the same when it shares nothing."""
        alone = self._one_by_one([batch], [t])[0]  # [B, C, *S, 1]
        same = alone.shape == shared.shape and bool(
            alone.isclose(shared, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True).all()
        )
        if not same:
            logger.info("%s does not give the same when draws %s: they are run alone.", type(self._model).__name__, how)
        return same


def _inference_mode(is_later: bool) -> AbstractContextManager[object]:
    """Inference mode for a pass that is not the first of its batch.

    What a model caches in the first, for rows of this width, is no inference tensor then, and training can use it.
    """
    return torch.inference_mode() if is_later else nullcontext()


def _repeated(batch: Any, times: int) -> Any:
    """A batch whose rows come that many times, [rows, rows, ...]; None where its parts do not have equally many."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else list(batch) if _is_sequence(batch) else [batch]
    if not parts or not all(isinstance(part, Tensor) and part.ndim > 0 for part in parts):
        return None
    if len({len(part) for part in parts}) > 1:
        return None
    repeated = [part.repeat(times, *(1,) * (part.ndim - 1)) for part in parts]
    if isinstance(batch, Mapping):
        return dict(zip(batch, repeated, strict=True))
    return repeated if _is_sequence(batch) else repeated[0]


def _is_sequence(batch: Any) -> bool:
    return isinstance(batch, list | tuple)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a part of the weights, so that all have to run the same passes at the same time."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def keep_freed_memory() -> None:
    """Let the C library hold on to the memory of large tensors that are freed, up to 64 MB.

    Otherwise each pass on a processor gets it anew from the system, page by page, which takes its time. glibc
    keeps blocks of up to the size of the largest that was freed, if that is less than 32 MB (mallopt(3),
    M_MMAP_THRESHOLD); others do so anyway. The memory is never touched, and so takes no room.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
