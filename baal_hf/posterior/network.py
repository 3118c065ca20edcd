"""A network during a draw: which module is running, and what mask each of its dropout calls is given."""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from baal_hf.posterior.answers import ANSWERS, times
from baal_hf.posterior.masks import attention_mask, feature_mask, fresh_mask, placed_attention_mask
from baal_hf.posterior.places import Moment, Rates, check_places, stacked_layers

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
# What is done to attention weights before their dropout.
_KEEPS = {
    *(Tensor.to, Tensor.type_as, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16),
    *(Tensor.masked_fill, torch.masked_fill),
}
_SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
# Attention to another sequence, by the name of its module.
_CROSS = re.compile(r"cross|enc(oder)?_?(dec|att)", re.IGNORECASE)
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}


@dataclass
class _Call:
    """A module that is running, and what it was given."""

    module: nn.Module
    arguments: tuple[Any, ...]
    in_layer: bool  # strictly inside of a layer


class DrawnNetwork(TorchFunctionMode):
    """Answers the dropout calls of one model in one thread with the masks of one draw.

    Args:
        model: The network.
        key: Names the draw; a mask's key goes on with the module's path and the call's ordinal within it.
        rates: The rate at each place.
        fresh: Where generators of independent masks come from; None for the masks that the key names.

    Attributes:
        passes: Forward passes begun.
        fired: Masks given.
    """

    def __init__(
        self, model: nn.Module, key: str, rates: Rates, fresh: Callable[[torch.device], torch.Generator] | None
    ) -> None:
        super().__init__()
        self.passes = 0
        self.fired = 0
        self._key = key
        self._rates = rates
        self._fresh = fresh
        self._thread = threading.get_ident()
        self._names = {id(module): name for name, module in model.named_modules()}
        layers = stacked_layers(model) if rates != Rates() else []
        check_places(model, rates, len(layers))
        self._layers = len(layers)
        self._layer_of = {id(module): index for index, layer in enumerate(layers) for module in layer}
        self._last = id(layers[-1][-1]) if layers else None
        self._layer = -1
        self._stack: list[_Call] = []
        self._calls: Counter[str] = Counter()
        self._weights: Tensor | None = None  # what the last softmax returned
        self._returned: Tensor | None = None  # what the last module returned
        self._branches: list[Tensor] = []  # what the parts of this layer, its norms apart, have returned

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

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread or id(module) not in self._names:
            return
        if not self._stack:
            self.passes += 1
            self._calls.clear()
            self._layer = -1
        if id(module) in self._layer_of:
            self._layer = self._layer_of[id(module)]
            self._branches.clear()
        in_layer = bool(self._stack) and (self._stack[-1].in_layer or id(self._stack[-1].module) in self._layer_of)
        self._stack.append(_Call(module, arguments, in_layer))

    def _leave(self, module: nn.Module, _: object, output: Any) -> Any:
        if threading.get_ident() != self._thread or id(module) not in self._names:
            return None
        first = output[0] if isinstance(output, tuple | list) and output else output
        added = self._rates.added("output", self._moment()) if isinstance(first, Tensor) else 0.0
        if added:
            first = times(first, self._mask(first, added, "output"))
            output = first if isinstance(output, Tensor) else (first, *output[1:])
        given = self._stack.pop().arguments
        if isinstance(first, Tensor) and self._rates.p is not None and not any(first is argument for argument in given):
            self._returned = first
            if self._stack and id(self._stack[-1].module) in self._layer_of and "norm" not in _kind(module):
                self._branches.append(first)
        if id(module) == self._last:
            self._layer = self._layers
        return output if added else None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(func)
        if answer is not None and (func is not Tensor.bernoulli_ or self._is_dropout()):
            return answer(self, *args, **(kwargs or {}))
        if self._rates.p is not None:
            args = self._with_added(func, args)
        output = func(*args, **(kwargs or {}))
        if func in _SOFTMAX or (func in _KEEPS and self._are_weights(args[0])):
            self._weights = output
        elif func in _PRODUCTS and self._returned is not None and self._is_scaled_branch(args):
            self._returned = output
        return output

    def _with_added(self, func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a call of torch with the dropout that `p` adds to them."""
        if func is F.linear and (rate := self._rates.added("head", self._moment())):
            return (times(args[0], self._mask(args[0], rate, "head")), *args[1:])
        if func in _SUMS and (rate := self._rates.added("residual", self._moment())):
            first, second = args[:2]
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                return (self._dropped(first, second, rate), self._dropped(second, first, rate), *args[2:])
        return args

    def _dropped(self, x: Tensor, other: Tensor, rate: float) -> Tensor:
        """`x` with dropout if it is a branch that is being added to the residual stream, else as it is."""
        if not self._is_branch(x, other):
            return x
        return times(x, self._mask(x, rate, "residual"))

    def _is_branch(self, x: Tensor, other: Tensor) -> bool:
        running = self._stack[-1] if self._stack else None
        if running is not None and running.in_layer:  # a sum inside a part: of its argument and what it just computed
            return x is self._returned and any(other is argument for argument in running.arguments)
        return x is self._returned or any(x is branch for branch in self._branches)

    def _is_scaled_branch(self, args: tuple[Any, ...]) -> bool:
        """Whether a product is of the last module's output and a plain number."""
        return any(part is self._returned for part in args) and any(isinstance(part, int | float) for part in args)

    def _are_weights(self, x: Tensor) -> bool:
        """Whether `x` is, or is a view of, what the last softmax returned."""
        weights = self._weights
        return weights is not None and x.untyped_storage().data_ptr() == weights.untyped_storage().data_ptr()

    def _heads(self) -> int:
        """Heads of the attention that is running; 1 where it does not say, and heads then share their mask."""
        for call in self._stack[:-3:-1]:  # itself, or the parent of an nn.Dropout
            for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
                if isinstance(getattr(call.module, name, None), int):
                    return int(getattr(call.module, name))
        return 1

    def _moment(self) -> Moment:
        path = self._names[id(self._stack[-1].module)] if self._stack else ""
        return Moment(path, self._layer, self._layers)

    def _site(self, kind: str = "") -> str:
        """Name of this dropout call: seed, draw, module path, ordinal of the call within the module."""
        path = self._moment().path + kind
        self._calls[path] += 1
        return f"{self._key}/{path}/{self._calls[path]}"

    def attention_rate(self, p: float) -> float:
        """The rate of attention dropout that is configured with `p`, here and now."""
        return self._rates.own(p, "attention", self._moment())

    def unit_mask(self, x: Tensor, p: float) -> Tensor | None:
        """Scaled keep mask for single units of `x`, broadcastable to it; None where nothing is dropped."""
        kind = "attention" if self._are_weights(x) or (x.ndim >= 4 and self._attends()) else "hidden"
        site = self._site()
        rate = self._rates.own(p, kind, self._moment())
        return self._unit_mask(x, rate, site) if rate > 0 else None

    def weight_mask(
        self, shape: Sequence[int], p: float, device: torch.device, attn_mask: Tensor | None
    ) -> Tensor | None:
        """Scaled keep mask for attention weights of `shape` [B, *H, L, S]; None where nothing is dropped."""
        site = self._site()
        rate = self.attention_rate(p)
        if rate == 0:
            return None
        if self._fresh is not None or attn_mask is None or len(shape) != 4:
            return self._weight_mask(shape, rate, site, device, None)
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
        return self._weight_mask(shape, rate, site, device, _seen_keys(allowed.expand(shape)))

    def channel_mask(self, x: Tensor, p: float, channels: int) -> Tensor | None:
        """Scaled keep mask for whole channels of `x`, which lie on axis `channels`; None where nothing is dropped."""
        site = self._site()
        rate = self._rates.own(p, "hidden", self._moment())
        if rate == 0:
            return None
        self.fired += 1
        trailing = (1,) * (x.ndim - channels - 1)
        if self._fresh is not None:
            return fresh_mask((*x.shape[: channels + 1], *trailing), rate, self._fresh(x.device))
        return feature_mask(site, x.shape[channels], rate, x.device).view(-1, *trailing)

    def _is_dropout(self) -> bool:
        return bool(self._stack) and "dropout" in _kind(self._stack[-1].module)

    def _attends(self) -> bool:
        return any("attention" in _kind(call.module) for call in self._stack[:-3:-1])

    def _mask(self, x: Tensor, rate: float, kind: str) -> Tensor:
        """The mask of dropout that the model itself does not have."""
        return self._unit_mask(x, rate, self._site(f"+{kind}"))

    def _unit_mask(self, x: Tensor, rate: float, site: str) -> Tensor:
        if x.ndim == 3 and self._are_weights(x):  # attention weights [B·H, L, S]
            heads = self._heads() if x.shape[0] % self._heads() == 0 else 1
            by_head = x.view(x.shape[0] // heads, heads, *x.shape[1:])
            mask = self._weight_mask(by_head.shape, rate, site, x.device, _seen_keys(by_head > 0))
            return mask.expand(by_head.shape).reshape(x.shape)
        if x.ndim >= 4:  # attention weights [B, H, L, S] or images [B, C, H, W]
            is_placed = self._fresh is None and x.ndim == 4 and self._are_weights(x)
            seen = _seen_keys(x > 0) if is_placed else None
            return self._weight_mask(x.shape, rate, site, x.device, seen)
        self.fired += 1
        if self._fresh is not None:
            return fresh_mask(x.shape, rate, self._fresh(x.device))
        return feature_mask(site, x.shape[-1] if x.ndim > 1 else 1, rate, x.device)  # [d]; one coin for [B]

    def _weight_mask(
        self, shape: Sequence[int], rate: float, site: str, device: torch.device, seen: Tensor | None
    ) -> Tensor:
        self.fired += 1
        if self._fresh is not None:
            return fresh_mask(shape, rate, self._fresh(device))
        queries, keys = shape[-2:]
        heads = math.prod(shape[1:-2])
        places = None if seen is None else _places(seen, queries, bool(_CROSS.search(self._moment().path)))
        if places is not None:
            return placed_attention_mask(site, heads, *places, rate)
        return attention_mask(site, heads, queries, keys, rate, device).view(1, *shape[1:])


def _seen_keys(allowed: Tensor) -> Tensor:
    """Which keys some query of some head sees, [B, S], of what is allowed, [B, H, L, S]."""
    return allowed.flatten(1, 2).any(1)


def _places(seen: Tensor, queries: int, is_cross: bool) -> tuple[Tensor, Tensor] | None:
    """Places of queries [B, L] and keys [B, S] in their rows without padding; None where distances are right as it is.

    They are unless padding stands between the keys of a row (where a model puts something before or behind its tokens),
    or before the keys of another sequence than the queries'.
    """
    ranks = seen.cumsum(-1) - 1  # [B, S]
    shifts = torch.arange(seen.shape[-1], device=seen.device) - ranks  # padding before each key, [B, S]
    first = shifts.gather(-1, seen.int().argmax(-1, keepdim=True))  # [B, 1]
    between = bool(((shifts != first) & seen).any())
    if not between and not (is_cross and first.any()):
        return None
    ranks = ranks.clamp(min=0)
    if is_cross or queries > ranks.shape[-1]:
        return torch.arange(queries, device=seen.device)[None], ranks
    return ranks[:, :queries], ranks


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()
