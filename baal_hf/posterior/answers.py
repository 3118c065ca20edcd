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
# Attention weights computed at a time: 2 MB on a processor, 1 GB on an accelerator, in float32.
_TILE_CPU, _TILE = 2**19, 2**28
# torch's own function without its first question, whether a mode overrides it: that would bring it back to us for ever.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
_MULTI_HEAD = inspect.signature(_multi_head_attention)


class Masks(AbstractContextManager[Any], Protocol):
    """What answers ask of a draw: scaled keep masks; entering it again makes it answer the calls inside an answer.

    Each mask is None where nothing is to be dropped.
    """

    def unit_mask(self, x: Tensor, p: float) -> Tensor | None:
        """For single units of `x`, broadcastable to it."""
        ...

    def weight_mask(
        self, shape: Sequence[int], p: float, device: torch.device, attn_mask: Tensor | None
    ) -> Tensor | None:
        """For attention weights of `shape` [B, *H, L, S] that are seen through a mask, broadcastable to it."""
        ...

    def channel_mask(self, x: Tensor, p: float, channels: int) -> Tensor | None:
        """For whole channels of `x`, which lie on axis `channels`, broadcastable to it."""
        ...

    def attention_rate(self, p: float) -> float:
        """The rate of the attention that is configured with `p`."""
        ...


def times(x: Tensor, mask: Tensor | None, inplace: bool = False) -> Tensor:
    """`x` under a mask, in its own precision."""
    if mask is None:
        return x
    return x.mul_(mask) if inplace else (x * mask).to(x.dtype)


def _dropout(draw: Masks, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return times(input, draw.unit_mask(input, p), inplace)


def _channel_dropout(unbatched_ndim: int | None) -> Callable[..., Tensor]:
    def answer(draw: Masks, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        channels = 0 if input.ndim == unbatched_ndim else 1
        return times(input, draw.channel_mask(input, p, channels), inplace)

    return answer


def _alpha(x: Tensor, mask: Tensor | None, p: float) -> Tensor:
    if mask is None:
        return x
    kept = (mask > 0).to(x.dtype)
    scale = float((1 - p + _ALPHA**2 * p * (1 - p)) ** -0.5)
    return scale * (x * kept + _ALPHA * (1 - kept)) - scale * p * _ALPHA


def _torch_dropout(draw: Masks, input: Tensor, p: float, train: bool) -> Tensor:
    return times(input, draw.unit_mask(input, p))


def _alpha_dropout(draw: Masks, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    output = _alpha(input, draw.unit_mask(input, p), p)
    return input.copy_(output) if inplace else output


def _feature_alpha_dropout(
    draw: Masks, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    output = _alpha(input, draw.channel_mask(input, p, 1), p)
    return input.copy_(output) if inplace else output


def _coins(draw: Masks, x: Tensor, p: Any = 0.5, *, generator: object = None) -> Tensor:
    """Coins [*] that a module's own implementation of dropout throws: those of the draw."""
    mask = draw.unit_mask(x, 1 - p)
    return x.fill_(1) if mask is None else x.copy_((mask > 0).expand(x.shape))


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
    if query.ndim == 2:  # one row alone
        rest = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _attention(draw, query[None], key[None], value[None], *rest)[0]
    rows = max(query.shape[0], key.shape[0], value.shape[0])
    query, key, value = (x.expand(rows, *x.shape[1:]) if x.shape[0] == 1 else x for x in (query, key, value))
    shape = (*query.shape[:-1], key.shape[-2])  # weights, [B, *H, L, S]
    keep = draw.weight_mask(shape, dropout_p, query.device, attn_mask)
    if keep is None:
        attend = partial(F.scaled_dot_product_attention, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
        return attend(query, key, value, attn_mask)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if is_causal:
        attn_mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
    bias = None if attn_mask is None else _bias(attn_mask, query.dtype).expand(shape)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    keep = keep.expand(shape)

    def attended(rows: slice) -> Tensor:
        weights = query[rows] @ key[rows].transpose(-2, -1)  # [b, *H, L, S]
        if bias is not None:
            weights = weights.add_(bias[rows])
        weights = _softmax(weights.float())
        weights = weights * keep[rows] if weights.requires_grad else weights.mul_(keep[rows])
        return weights.to(value.dtype) @ value[rows]  # [b, *H, L, E]

    # Weights of a few rows at a time: they stay in the processor's cache, and bound memory.
    size = max(1, (_TILE_CPU if query.device.type == "cpu" else _TILE) // math.prod(shape[1:]))
    return torch.cat([attended(slice(first, first + size)) for first in range(0, max(shape[0], 1), size)])


def _softmax(scores: Tensor) -> Tensor:
    """Softmax of float32 scores [..., S] over the last axis; may be written over them."""
    # For fewer keys than a vector register holds, torch's own goes number by number on a processor: 5 times slower.
    if scores.shape[-1] >= 16 or scores.device.type != "cpu" or scores.requires_grad:
        return scores.softmax(-1)
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


def _bias(attn_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The attention mask as what is added to scores."""
    if attn_mask.dtype != torch.bool:
        return attn_mask
    # Half of the least number: a score added to it stays finite.
    return torch.zeros(attn_mask.shape, dtype=dtype, device=attn_mask.device).masked_fill_(
        ~attn_mask, torch.finfo(dtype).min / 2
    )


def _multi_head(draw: Masks, *args: Any, **kwargs: Any) -> Any:
    """Torch's own attention, run with its dropout on, so that its calls of dropout come to be answered."""
    call = _MULTI_HEAD.bind(*args, **kwargs)
    call.arguments["training"] = True
    call.arguments["dropout_p"] = draw.attention_rate(call.arguments["dropout_p"])
    with draw:
        return _multi_head_attention(*call.args, **call.kwargs)


def _recurrent(run: Callable[..., Any]) -> Callable[..., Any]:
    """Torch's LSTM, GRU or RNN, layer by layer, so that there is a place for the dropout between its layers."""

    def answer(draw: Masks, *args: Any) -> Any:
        at = next(place for place, argument in enumerate(args) if isinstance(argument, list))
        *given, states = args[:at]  # input, or data and batch sizes; then the states
        weights, biases, layers, p, training, *ways = args[at:]
        if layers == 1 or p == 0:
            return run(*args)
        both = isinstance(states, tuple)  # an LSTM has two kinds of states
        begun = [state.chunk(layers) for state in (states if both else (states,))]  # [ways, B, d] for each layer
        share = len(weights) // layers
        ended = []
        x = given[0]
        for layer in range(layers):
            first = tuple(state[layer] for state in begun)
            own = weights[layer * share : (layer + 1) * share]
            x, *last = run(x, *given[1:], first if both else first[0], own, biases, 1, 0.0, training, *ways)
            ended.append(last)
            if layer < layers - 1:
                x = times(x, draw.unit_mask(x, p))
        return (x, *(torch.cat(states) for states in zip(*ended, strict=True)))

    return answer


ANSWERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    F.dropout1d: _channel_dropout(unbatched_ndim=2),
    F.dropout2d: _channel_dropout(unbatched_ndim=None),
    F.dropout3d: _channel_dropout(unbatched_ndim=4),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
    **{run: _recurrent(run) for run in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
    Tensor.bernoulli_: _coins,
}
