"""MC dropout: every dropout that the model trains with, switched on as one fixed network per draw."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parallel import DataParallel
from torch.overrides import TorchFunctionMode

from baal_hf.posterior.answers import ANSWERS
from baal_hf.posterior.masks import attention_mask, feature_mask
from baal_hf.posterior.switches import drawing_flags

_open_draws: dict[int, int] = {}  # id of the model -> id of the thread that has a draw of it open
_open_draws_lock = threading.Lock()


class MCDropout:
    """Monte-Carlo dropout (Gal & Ghahramani, 2016; 1506.02142) on any torch module.

    A draw answers every dropout call of the forward pass, in modules (`nn.Dropout`, 1d, 2d, 3d, alpha), in functions
    (`F.dropout` with a plain rate) and in attention (eager, `scaled_dot_product_attention`, `nn.MultiheadAttention`),
    at the rate the model was configured with. Weights, buffers, batch norm and everything else stay in evaluation mode.

    With `masks="shared"` (default) a draw is one network, the same for every row. A mask is named by (seed, t, site),
    a site by the module's path and the ordinal of the call within it. To make the output of a row independent of the
    batch and of padding, a mask is also shared by positions: hidden states [B, L, d] lose the same features at each
    position, attention weights [B, H, L, L] or [B·H, L, L] are kept or dropped by head and distance from query to key,
    images [B, C, H, W] likewise by channel and diagonal, and a vector [B] as a whole. Each unit is still dropped with
    probability p. Windowed attention [B, L, H, w] and cross attention know places, not only distances: there a row is
    independent of padding on the right alone. Noise no longer averages out over positions, so the spread of pooled
    outputs is of another size than with independent masks.

    With `masks="fresh"` every unit of every row and pass has its own coin, as in the textbook. Draws are then not
    functions: the same row gives another output in another batch.

    Args:
        seed: Names the sequence of draws.
        masks: "shared" or "fresh".

    Attributes:
        size: None: there are as many draws as one asks for.

    Raises:
        ValueError: `masks` is neither.
    """

    size: int | None = None

    def __init__(self, seed: int = 0, masks: Literal["shared", "fresh"] = "shared") -> None:
        if masks not in ("shared", "fresh"):
            raise ValueError(f"MCDropout needs masks='shared' or masks='fresh', got {masks!r}.")
        self.seed = seed
        self.masks = masks
        self._generators: dict[torch.device, torch.Generator] = {}

    @contextmanager
    def draw(self, model: nn.Module, t: int) -> Iterator[None]:
        """Make `model` the t-th network for the length of a `with` block.

        Raises:
            ValueError: `t` is negative, the block ran the model and no dropout with p > 0 was met, or the model has an
                `nn.LSTM`, `nn.GRU` or `nn.RNN` with dropout between its layers, which cannot be reached.
            TypeError: `model` is wrapped in `nn.DataParallel`, whose threads a draw does not reach.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        if t < 0:
            raise ValueError(f"A draw is numbered from 0, got t={t}.")
        if isinstance(model, DataParallel):
            raise TypeError("MCDropout cannot reach the replicas of nn.DataParallel: pass its `.module`.")
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        _refuse_unreachable(model)
        network = _DrawnNetwork(model, f"{self.seed}/{t}", self._generator if self.masks == "fresh" else None)
        with _only_draw(model), drawing_flags(model), network.followed(), network:
            yield
        if network.passes and not network.fired:
            raise ValueError(
                f"MCDropout found no active dropout in {type(model).__name__}: all its rates are 0, or it has none, so "
                "every draw would be the same network. Load the model with a dropout rate above 0 in its configuration "
                "(for example `attention_dropout=0.1`), or use an ensemble."
            )

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


def _refuse_unreachable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1:
            raise ValueError(
                f"MCDropout cannot reach the dropout between the layers of {name or 'the'} {type(module).__name__}: "
                "write it as layers of one with nn.Dropout between them, or set its dropout to 0."
            )


@contextmanager
def _only_draw(model: nn.Module) -> Iterator[None]:
    thread = threading.get_ident()
    with _open_draws_lock:
        if id(model) in _open_draws or thread in _open_draws.values():
            raise RuntimeError("A posterior draw is open already: close its `with` block before the next draw.")
        _open_draws[id(model)] = thread
    try:
        yield
    finally:
        with _open_draws_lock:
            del _open_draws[id(model)]


class _DrawnNetwork(TorchFunctionMode):
    """Answers the dropout calls of one model in one thread with the masks of one draw."""

    def __init__(self, model: nn.Module, key: str, fresh: Callable[[torch.device], torch.Generator] | None) -> None:
        super().__init__()
        self.passes = 0  # forward passes begun
        self.fired = 0  # dropout calls with p > 0
        self._key = key
        self._fresh = fresh
        self._thread = threading.get_ident()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[nn.Module] = []
        self._calls: Counter[str] = Counter()
        self._weights: Tensor | None = None  # what the last softmax returned

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Know at each moment which module of the model is running."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: object) -> None:
        if threading.get_ident() != self._thread or id(module) not in self._names:
            return
        if not self._stack:
            self.passes += 1
            self._calls.clear()
        self._stack.append(module)

    def _leave(self, module: nn.Module, _: object, __: object) -> None:
        if threading.get_ident() == self._thread and id(module) in self._names:
            self._stack.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(func)
        if answer is not None:
            return answer(self, *args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if func in _SOFTMAX or (func in _CASTS and self._are_weights(args[0])):
            self._weights = output
        return output

    def _are_weights(self, x: Tensor) -> bool:
        """Whether `x` is, or is a view of, what the last softmax returned."""
        weights = self._weights
        return weights is not None and x.untyped_storage().data_ptr() == weights.untyped_storage().data_ptr()

    def _heads(self) -> int:
        """Heads of the attention that is running; 1 where it does not say, and heads then share their mask."""
        for module in self._stack[:-3:-1]:  # itself, or the parent of an nn.Dropout
            for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
                if isinstance(getattr(module, name, None), int):
                    return int(getattr(module, name))
        return 1

    def _site(self) -> str:
        """Name of this dropout call: seed, draw, module path, ordinal of the call within the module."""
        path = self._names[id(self._stack[-1])] if self._stack else ""
        self._calls[path] += 1
        self.fired += 1
        return f"{self._key}/{path}/{self._calls[path]}"

    def unit_mask(self, x: Tensor, p: float) -> Tensor:
        """Scaled keep mask for single units of `x`, broadcastable to it."""
        if x.ndim == 3 and self._are_weights(x):  # attention weights [B·H, L, S]
            heads = self._heads() if x.shape[0] % self._heads() == 0 else 1
            by_head = self.weight_mask((x.shape[0] // heads, heads, *x.shape[1:]), p, x.device)
            return by_head.expand(x.shape[0] // heads, -1, -1, -1).reshape(x.shape)
        if x.ndim >= 4:  # attention weights [B, H, L, S] or images [B, C, H, W]
            return self.weight_mask(x.shape, p, x.device)
        if self._fresh is not None:
            self.fired += 1
            return _fresh_mask(x.shape, p, self._fresh(x.device))
        return feature_mask(self._site(), x.shape[-1] if x.ndim > 1 else 1, p, x.device)  # [d]; one coin for [B]

    def weight_mask(self, shape: Sequence[int], p: float, device: torch.device) -> Tensor:
        """Scaled keep mask for attention weights of `shape` [B, *H, L, S], broadcastable to it."""
        if self._fresh is not None:
            self.fired += 1
            return _fresh_mask(shape, p, self._fresh(device))
        queries, keys = shape[-2:]
        heads = math.prod(shape[1:-2])
        return attention_mask(self._site(), heads, queries, keys, p, device).view(1, *shape[1:])

    def channel_mask(self, x: Tensor, p: float, channels: int) -> Tensor:
        """Scaled keep mask for whole channels of `x`, which lie on axis `channels`; broadcastable to it."""
        trailing = (1,) * (x.ndim - channels - 1)
        if self._fresh is not None:
            self.fired += 1
            return _fresh_mask((*x.shape[: channels + 1], *trailing), p, self._fresh(x.device))
        return feature_mask(self._site(), x.shape[channels], p, x.device).view(-1, *trailing)


_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_CASTS = {Tensor.to, Tensor.type_as, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16}


def _fresh_mask(shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    mask = torch.empty(tuple(shape), device=generator.device)
    return mask.bernoulli_(1 - p, generator=generator).div_(max(1 - p, torch.finfo(mask.dtype).tiny))
