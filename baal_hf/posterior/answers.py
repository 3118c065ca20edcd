"""Answers to torch's dropout functions: what each returns when its coins are those of a draw."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import FunctionType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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


class Masks(AbstractContextManager[Any], Protocol):
    """What answers ask of a draw: scaled keep masks; entering it again makes it answer the calls inside an answer."""

    def unit_mask(self, x: Tensor, p: float) -> Tensor:
        """For single units of `x`, broadcastable to it."""
        ...

    def weight_mask(self, shape: Sequence[int], p: float, device: torch.device) -> Tensor:
        """For attention weights of `shape` [B, *H, L, S], broadcastable to it."""
        ...

    def channel_mask(self, x: Tensor, p: float, channels: int) -> Tensor:
        """For whole channels of `x`, which lie on axis `channels`, broadcastable to it."""
        ...


def _times(x: Tensor, mask: Tensor, inplace: bool = False) -> Tensor:
    return x.mul_(mask) if inplace else (x * mask).to(x.dtype)


def _dropout(draw: Masks, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _times(input, draw.unit_mask(input, p), inplace) if p > 0 else input


def _channel_dropout(unbatched_ndim: int | None) -> Callable[..., Tensor]:
    def answer(draw: Masks, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        channels = 0 if input.ndim == unbatched_ndim else 1
        return _times(input, draw.channel_mask(input, p, channels), inplace) if p > 0 else input

    return answer


def _alpha(x: Tensor, mask: Tensor, p: float) -> Tensor:
    kept = (mask > 0).to(x.dtype)
    scale = float((1 - p + _ALPHA**2 * p * (1 - p)) ** -0.5)
    return scale * (x * kept + _ALPHA * (1 - kept)) - scale * p * _ALPHA


def _alpha_dropout(draw: Masks, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    return _alpha(input, draw.unit_mask(input, p), p) if p > 0 else input


def _feature_alpha_dropout(
    draw: Masks, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(input, draw.channel_mask(input, p, 1), p) if p > 0 else input


def _attention(
    draw: Masks,
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
    if query.ndim == 2:  # one row alone
        rest = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _attention(draw, query[None], key[None], value[None], *rest)[0]
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

    # Weights of a few rows at a time: they stay in the processor's cache, and bound memory.
    size = max(1, (_TILE_CPU if query.device.type == "cpu" else _TILE) // math.prod(shape[1:]))
    return torch.cat([attended(slice(first, first + size)) for first in range(0, shape[0], size)])


def _multi_head(draw: Masks, *args: Any, **kwargs: Any) -> Any:
    """Torch's own attention, run with its dropout on, so that its calls of dropout come to be answered."""
    call = _MULTI_HEAD.bind(*args, **kwargs)
    call.arguments["training"] = True
    with draw:
        return _multi_head_attention(*call.args, **call.kwargs)


ANSWERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _channel_dropout(unbatched_ndim=2),
    F.dropout2d: _channel_dropout(unbatched_ndim=None),
    F.dropout3d: _channel_dropout(unbatched_ndim=4),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}
