"""MC dropout: every dropout that the model trains with, switched on as one fixed network per draw."""

from __future__ import annotations

import inspect
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode

from baal_hf.posterior.masks import attention_mask, feature_mask
from baal_hf.posterior.switches import drawing_flags

# SELU's negative saturation, which alpha dropout puts in place of dropped units (Klambauer et al., 2017; 1706.02515).
_ALPHA = -1.7580993408473766
# Attention weights computed at a time: 1 MB on a processor, 1 GB on an accelerator, in float32.
_TILE_CPU, _TILE = 2**18, 2**28
# torch's own function without its first question, whether a mode overrides it: that would bring it back to us for ever.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
_MULTI_HEAD = inspect.signature(_multi_head_attention)

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
    position, attention weights [B, H, L, L] are kept or dropped by head and distance from query to key, images
    [B, C, H, W] likewise by channel and diagonal. Each unit is still dropped with probability p; noise no longer
    averages out over positions, so the spread of pooled outputs is somewhat larger than with independent masks.

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
        self._generators: dict[tuple[int, torch.device], torch.Generator] = {}

    @contextmanager
    def draw(self, model: nn.Module, t: int) -> Iterator[None]:
        """Make `model` the t-th network for the length of a `with` block.

        Raises:
            ValueError: `t` is negative, or the block ran the model and no dropout with p > 0 was met.
            TypeError: `model` is wrapped in `nn.DataParallel`, whose threads a draw does not reach.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        if t < 0:
            raise ValueError(f"A draw is numbered from 0, got t={t}.")
        if isinstance(model, DataParallel):
            raise TypeError("MCDropout cannot reach the replicas of nn.DataParallel: pass its `.module`.")
        if isinstance(model, DistributedDataParallel):
            model = model.module
        fresh = (lambda device: self._generator(t, device)) if self.masks == "fresh" else None
        network = _DrawnNetwork(model, f"{self.seed}/{t}", fresh)
        with _only_draw(model), drawing_flags(model), network.followed(), network:
            yield
        if network.passes and not network.fired:
            raise ValueError(
                f"MCDropout found no active dropout in {type(model).__name__}: all its rates are 0, or it has none, so "
                "every draw would be the same network. Load the model with a dropout rate above 0 in its configuration "
                "(for example `attention_dropout=0.1`), or use an ensemble."
            )

    def _generator(self, t: int, device: torch.device) -> torch.Generator:
        if (t, device) not in self._generators:
            self._generators[t, device] = torch.Generator(device).manual_seed(hash((self.seed, t)) & (2**63 - 1))
        return self._generators[t, device]


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
        self._stack: list[str] = []
        self._calls: Counter[str] = Counter()
        self._heads: int | None = None

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
        self._stack.append(self._names[id(module)])

    def _leave(self, module: nn.Module, _: object, __: object) -> None:
        if threading.get_ident() == self._thread and id(module) in self._names:
            self._stack.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = _ANSWERS.get(func)
        if answer is None:
            return func(*args, **(kwargs or {}))
        return answer(self, *args, **(kwargs or {}))

    def _site(self) -> str:
        """Name of this dropout call: seed, draw, module path, ordinal of the call within the module."""
        path = self._stack[-1] if self._stack else ""
        self._calls[path] += 1
        self.fired += 1
        return f"{self._key}/{path}/{self._calls[path]}"

    def unit_mask(self, x: Tensor, p: float) -> Tensor:
        """Scaled keep mask for single units of `x`, broadcastable to it."""
        if self._heads and x.ndim == 3:  # nn.MultiheadAttention's weights, [B·H, L, S]
            by_head = self.weight_mask((x.shape[0] // self._heads, self._heads, *x.shape[1:]), p, x.device)
            return by_head.expand(x.shape[0] // self._heads, -1, -1, -1).reshape(x.shape)
        if x.ndim >= 4:  # attention weights [B, H, L, S] or images [B, C, H, W]
            return self.weight_mask(x.shape, p, x.device)
        if self._fresh is not None:
            self.fired += 1
            return _fresh_mask(x.shape, p, self._fresh(x.device))
        return feature_mask(self._site(), x.shape[-1], p, x.device)  # [d]

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

    def multi_head_attention(self, *args: Any, **kwargs: Any) -> Any:
        """Torch's own attention, run with its dropout on and each of its dropout calls answered by this draw."""
        call = _MULTI_HEAD.bind(*args, **kwargs)
        call.arguments["training"] = True
        self._heads = call.arguments["num_heads"]
        try:
            with self:
                return _multi_head_attention(*call.args, **call.kwargs)
        finally:
            self._heads = None


def _fresh_mask(shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    mask = torch.empty(tuple(shape), device=generator.device)
    return mask.bernoulli_(1 - p, generator=generator).div_(1 - p)


def _times(x: Tensor, mask: Tensor, inplace: bool = False) -> Tensor:
    return x.mul_(mask) if inplace else (x * mask).to(x.dtype)


def _dropout(
    draw: _DrawnNetwork, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return _times(input, draw.unit_mask(input, p), inplace) if p > 0 else input


def _channel_dropout(unbatched_ndim: int | None) -> Callable[..., Tensor]:
    def answer(
        draw: _DrawnNetwork, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        channels = 0 if input.ndim == unbatched_ndim else 1
        return _times(input, draw.channel_mask(input, p, channels), inplace) if p > 0 else input

    return answer


def _alpha(x: Tensor, mask: Tensor, p: float) -> Tensor:
    kept = (mask > 0).to(x.dtype)
    scale = float((1 - p + _ALPHA**2 * p * (1 - p)) ** -0.5)
    return scale * (x * kept + _ALPHA * (1 - kept)) - scale * p * _ALPHA


def _alpha_dropout(
    draw: _DrawnNetwork, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(input, draw.unit_mask(input, p), p) if p > 0 else input


def _feature_alpha_dropout(
    draw: _DrawnNetwork, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(input, draw.channel_mask(input, p, 1), p) if p > 0 else input


def _attention(
    draw: _DrawnNetwork,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p == 0:
        attend = partial(F.scaled_dot_product_attention, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
        return attend(query, key, value, attn_mask)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    shape = (*query.shape[:-1], key.shape[-2])  # weights, [B, *H, L, S]
    keep = draw.weight_mask(shape, dropout_p, query.device).expand(shape)
    if is_causal:
        attn_mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
    allowed = None if attn_mask is None else attn_mask.expand(shape)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)

    def attended(rows: slice) -> Tensor:
        scores = query[rows] @ key[rows].transpose(-2, -1)  # [b, *H, L, S]
        if allowed is not None and allowed.dtype == torch.bool:
            scores = scores.masked_fill_(~allowed[rows], torch.finfo(scores.dtype).min)
        elif allowed is not None:
            scores = scores + allowed[rows]
        weights = scores.softmax(-1, dtype=torch.float32) * keep[rows]  # [b, *H, L, S]
        return weights.to(value.dtype) @ value[rows]  # [b, *H, L, E]

    # Weights of a few rows at a time: they stay in the processor's cache, which halves the time, and bound memory.
    size = max(1, (_TILE_CPU if query.device.type == "cpu" else _TILE) // math.prod(shape[1:]))
    return torch.cat([attended(slice(first, first + size)) for first in range(0, shape[0], size)])


_ANSWERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _channel_dropout(unbatched_ndim=2),
    F.dropout2d: _channel_dropout(unbatched_ndim=None),
    F.dropout3d: _channel_dropout(unbatched_ndim=4),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _DrawnNetwork.multi_head_attention,
}
