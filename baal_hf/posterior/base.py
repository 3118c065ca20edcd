"""What every posterior promises, and the guard that they share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.nn.parallel import DataParallel

from baal_hf.posterior.trace import Trace

_open_draws: dict[int, set[int]] = {}  # id of the thread -> ids of the modules of which it has a draw open
_open_draws_lock = threading.Lock()


@runtime_checkable
class Posterior(Protocol):
    """A distribution over networks from which the t-th draw can be taken, again and again.

    A draw is a fixed function: within `draw(model, t)` the output for a row depends on that row alone, not on the other
    rows, the batch size, the padding, the order, the process or the day. All rows of a pool therefore see the same T
    networks, which joint quantities (BatchBALD, EPIG) need and which makes scores repeatable.

    Attributes:
        size: Number of different draws there are; None means no limit.
        swaps_weights: Whether opening a draw costs as much as running batches: many are then run in one opening.
    """

    size: int | None
    swaps_weights: bool

    def draw(self, model: nn.Module, t: int) -> AbstractContextManager[None]:
        """Turn `model` into the t-th network for the length of a `with` block, and back again.

        Raises:
            ValueError: `t` is negative or beyond `size`.
            TypeError: `model` is wrapped in `nn.DataParallel`.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        ...


@runtime_checkable
class TracedPosterior(Posterior, Protocol):
    """A posterior that knows where in a pass its draws begin to differ, so that the draws of a batch can share work."""

    def traced(self, model: nn.Module, draws: Sequence[int], trace: Trace | None) -> AbstractContextManager[None]:
        """`draw` for one pass of one batch, which fills an empty trace, or is spared work by a full one.

        With several draws the pass is given the rows of the batch that many times: all for the first, all for the
        second, ... A trace that stays empty says that nothing can be shared.

        Raises:
            UnstackableError: The draws cannot be told apart by rows.
        """
        ...


@contextmanager
def opened(posterior: Posterior, model: nn.Module, t: int) -> Iterator[nn.Module]:
    """The bare model inside `model`, for the one draw that may be open of it and in this thread.

    Raises:
        ValueError: `t` is negative or beyond the posterior's size.
        TypeError: `model` is wrapped in `nn.DataParallel`, whose replicas a draw does not reach.
        RuntimeError: A draw of this model, or another draw in this thread, is open already.
    """
    if t < 0:
        raise ValueError(f"A draw is numbered from 0, got t={t}.")
    if posterior.size is not None and t >= posterior.size:
        draws = f"{posterior.size} draw{'s' if posterior.size > 1 else ''}, numbered from 0"
        raise ValueError(f"{type(posterior).__name__} has {draws}, got t={t}. MCDropout has any number.")
    whole = list(model.modules())
    if any(isinstance(part, DataParallel) for part in whole):
        raise TypeError(f"{type(posterior).__name__} cannot reach the replicas of nn.DataParallel: pass its `.module`.")
    bare = unwrapped(model)
    thread, parts = threading.get_ident(), {id(part) for part in (whole if bare is model else bare.modules())}
    with _open_draws_lock:
        if thread in _open_draws or any(parts & others for others in _open_draws.values()):
            raise RuntimeError("A posterior draw is open already: close its `with` block before the next draw.")
        _open_draws[thread] = parts
    try:
        with _uncompiled():
            yield bare
    finally:
        with _open_draws_lock:
            del _open_draws[thread]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that others are wrapped around: for training on many devices, or compiled."""
    if not hasattr(model, "module") and not hasattr(model, "_orig_mod"):  # to look at each part takes a millisecond
        return model
    bare: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return bare


def _uncompiled() -> AbstractContextManager[object]:
    """Run compiled modules as they were written: compiled code has no calls left to answer."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
