"""A network during a draw: what mask each of its dropout calls is given.

The file is long: which mask a call is given, for which of several draws, is one question with one state.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from baal_hf.posterior.answers import ANSWERS, times
from baal_hf.posterior.branches import SUMS, Branches
from baal_hf.posterior.masks import attention_mask, feature_mask, fresh_mask, placed_attention_mask
from baal_hf.posterior.passes import ForwardPass
from baal_hf.posterior.places import Rates, check_places, stacked_layers
from baal_hf.posterior.trace import Part, Trace, UnstackableError

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
# What is done to attention weights before their dropout.
_KEEPS = {
    *(Tensor.to, Tensor.type_as, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16),
    *(Tensor.masked_fill, torch.masked_fill),
}
# Attention to another sequence, by the name of its module.
_CROSS = re.compile(r"cross|enc(oder)?_?(dec|att)", re.IGNORECASE)


class DrawnNetwork(TorchFunctionMode):
    """Answers the dropout calls of one model in one thread with the masks of one draw, or of several at once.

    Args:
        model: The network.
        keys: Name the draws; a mask's key goes on with the module's path and the call's ordinal within it. With more
            than one, the rows of a batch are stacked: first all rows for the first draw, then all for the second, ...
        rates: The rate at each place.
        fresh: Where generators of independent masks come from; None for the masks that the keys name.
        trace: Is filled by the first pass of a batch, or has been and spares this one the work before the first mask.

    Attributes:
        forward: The pass that is under way.
        fired: Masks given.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: Sequence[str],
        rates: Rates,
        fresh: Callable[[torch.device], torch.Generator] | None,
        trace: Trace | None = None,
    ) -> None:
        super().__init__()
        layers = stacked_layers(model) if rates != Rates() else []
        check_places(model, rates, len(layers))
        self.forward = ForwardPass(model, layers)
        self.fired = 0
        self._keys = keys
        self._rates = rates
        self._fresh = fresh
        self._thread = threading.get_ident()
        self._generates = bool(getattr(model, "can_generate", bool)())
        self._branches = Branches(self.forward) if rates.p is not None else None
        self._trace = trace
        self._records = trace is not None and not trace.is_recorded
        self._calls: Counter[str] = Counter()
        self._sites: list[str] = []  # paths of the dropout calls so far
        self._begun: list[int] = []  # how many there were when each running module began
        self._weights: Tensor | None = None  # what the last softmax returned

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Know at each moment which module of the model is running."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        reused = self._trace.parts if self._trace is not None and not self._records and len(self._keys) == 1 else {}
        modules = self.forward.parts(reused) if reused else {}
        own: dict[str, Any] = {path: vars(module).get("forward") for path, module in modules.items()}
        try:
            for path, module in modules.items():
                module.forward = partial(self._resumed, reused[path])
            yield
        finally:
            for path, module in modules.items():
                vars(module).pop("forward", None)
                if own[path] is not None:  # libraries that move weights between devices put one there
                    module.forward = own[path]
            for handle in handles:
                handle.remove()
            if self._trace is not None and self._records:
                self._trace.close(self.forward.count)

    def _resumed(self, part: Part, *_: object, **__: object) -> Any:
        """What a module returned in the first draw; the pass goes on as if it had been run."""
        self._calls.update(part.sites)
        self.forward.layer = part.layer
        self._weights = part.weights
        return part.output

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread or not self.forward.has(module):
            return
        if not self.forward.stack:
            self._calls.clear()
        self.forward.enter(module, arguments)
        if self._branches is not None:
            self._branches.begun(self.forward.stack[-1])
        if self._trace is not None and self._records:
            self._trace.enter(self.forward.stack[-1].path)
            self._begun.append(len(self._sites))

    def _leave(self, module: nn.Module, _: object, output: Any) -> Any:
        if threading.get_ident() != self._thread or not self.forward.has(module):
            return None
        first = output[0] if isinstance(output, tuple | list) and output else output
        rate = self._rates.added("output", self.forward.moment) if isinstance(first, Tensor) else 0.0
        if rate:
            first = times(first, self._mask(first, rate, "output"))
        call = self.forward.leave()
        if self._branches is not None and isinstance(first, Tensor):
            self._branches.ended(call, first)
        if self._trace is not None and self._records:
            sites = self._sites[self._begun.pop() :]
            part = None if self.fired else Part(output, sites, self.forward.layer, self._weights)
            self._trace.leave(call.path, part)
        return _with_first(output, first) if rate else None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = ANSWERS.get(func)
        if answer is not None and (func is not Tensor.bernoulli_ or self._drops_by_itself()):
            return answer(self, *args, **kwargs)
        if self._branches is not None:
            args = self._with_added(func, args, self._branches)
        output = func(*args, **kwargs)
        if func in _SOFTMAX or (func in _KEEPS and self._are_weights(args[0])):
            self._weights = output
        if self._branches is not None:
            self._branches.follow(func, args, output)
        return output

    def _with_added(self, func: Callable[..., Any], args: tuple[Any, ...], branches: Branches) -> tuple[Any, ...]:
        """The arguments of a call of torch with the dropout that `p` adds to them."""
        if func is F.linear and args and (rate := self._rates.added("head", self.forward.moment)):
            return (times(args[0], self._mask(args[0], rate, "head")), *args[1:])
        if func not in SUMS or len(args) < 2 or not (rate := self._rates.added("residual", self.forward.moment)):
            return args
        first, second, *rest = args
        if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
            return args
        of_first, of_second = (
            self._mask(x, rate, "residual") if branches.among(x, other) else None
            for x, other in ((first, second), (second, first))
        )
        inplace = func in (Tensor.add_, Tensor.__iadd__)  # the sum is written where the first term is
        return (times(first, of_first, inplace), times(second, of_second), *rest)

    def _are_weights(self, x: Tensor) -> bool:
        """Whether `x` is, or is a view of, what the last softmax returned."""
        if self._weights is None or x.device != self._weights.device:
            return False
        try:
            return x.untyped_storage().data_ptr() == self._weights.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # sparse tensors, and those of torch.func, have no storage
            return False

    def _heads(self) -> int:
        """Heads of the attention that is running; 1 where it does not say, and heads then share their mask."""
        for call in self.forward.stack[:-3:-1]:  # itself, or the parent of an nn.Dropout
            for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
                if isinstance(getattr(call.module, name, None), int):
                    return int(getattr(call.module, name))
        return 1

    def _site(self, kind: str = "") -> str:
        """Name of this dropout call: module path, ordinal of the call within the module."""
        path = self.forward.moment.path + kind
        self._calls[path] += 1
        self._sites.append(path)
        return f"{path}/{self._calls[path]}"

    def _by_draw(self, site: str, rows: int, mask: Callable[[str], Tensor]) -> Tensor:
        """The mask of each draw at a site, [1, ...], or of several stacked draws, one for each row, [rows, ...].

        Raises:
            UnstackableError: These are not the rows of stacked draws.
        """
        self._note(site, rows)
        masks = [mask(f"{key}/{site}") for key in self._keys]
        if len(masks) == 1:
            return masks[0][None]
        return torch.stack(masks).repeat_interleave(rows // len(masks), 0)

    def _note(self, site: str, rows: int) -> None:
        """How many rows a mask is for: in stacked draws as many times more as there are draws."""
        self.fired += 1
        if self._trace is not None and self._records:
            self._trace.sizes[site] = rows
        elif (
            self._trace is not None
            and len(self._keys) > 1
            and rows != len(self._keys) * self._trace.sizes.get(site, -1)
        ):
            raise UnstackableError(f"The dropout {site} is for something that has no axis of rows.")

    def attention_rate(self, p: float) -> float:
        """The rate of attention dropout that is configured with `p`, here and now."""
        return self._rates.own(p, "attention", self.forward.moment)

    def unit_mask(self, x: Tensor, p: float) -> Tensor | None:
        """Scaled keep mask for single units of `x`, broadcastable to it; None where nothing is dropped."""
        attends = self._are_weights(x) or (x.ndim >= 4 and any("attention" in call.kind for call in self._innermost()))
        site = self._site()
        rate = self._rates.own(p, "attention" if attends else "hidden", self.forward.moment)
        return self._unit_mask(x, rate, site) if rate > 0 else None

    def weight_mask(
        self, shape: Sequence[int], p: float, device: torch.device, attn_mask: Tensor | None
    ) -> Tensor | None:
        """Scaled keep mask for attention weights of `shape` [B, *H, L, S]; None where nothing is dropped."""
        site = self._site()
        rate = self.attention_rate(p)
        if rate == 0:
            return None
        if attn_mask is None or len(shape) != 4:
            return self._weight_mask(shape, rate, site, device, None)
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
        return self._weight_mask(shape, rate, site, device, allowed)

    def channel_mask(self, x: Tensor, p: float, channels: int) -> Tensor | None:
        """Scaled keep mask for whole channels of `x`, which lie on axis `channels`; None where nothing is dropped."""
        site = self._site()
        rate = self._rates.own(p, "hidden", self.forward.moment)
        if rate == 0:
            return None
        trailing = (1,) * (x.ndim - channels - 1)
        if self._fresh is not None:
            self.fired += 1
            return fresh_mask((*x.shape[: channels + 1], *trailing), rate, self._fresh(x.device))
        size, rows = x.shape[channels], x.shape[0]
        masks = self._by_draw(site, rows, lambda key: feature_mask(key, size, rate, x.device))  # [1 or B, channels]
        return masks.view(*masks.shape[: channels + 1], *trailing) if channels else masks.view(-1, *trailing)

    def _innermost(self) -> list[Any]:
        """What is running, and what called it: where attention has an nn.Dropout, the second is the attention."""
        return self.forward.stack[:-3:-1]

    def _drops_by_itself(self) -> bool:
        return bool(self.forward.stack) and "dropout" in self.forward.stack[-1].kind

    def _mask(self, x: Tensor, rate: float, kind: str) -> Tensor:
        """The mask of dropout that the model itself does not have."""
        return self._unit_mask(x, rate, self._site(f"+{kind}"))

    def _unit_mask(self, x: Tensor, rate: float, site: str) -> Tensor:
        if x.ndim == 3 and self._are_weights(x):  # attention weights [B·H, L, S]
            heads = self._heads() if x.shape[0] % self._heads() == 0 else 1
            by_head = x.view(x.shape[0] // heads, heads, *x.shape[1:])
            mask = self._weight_mask(by_head.shape, rate, site, x.device, by_head > 0)
            return mask.expand(by_head.shape).reshape(x.shape)
        if x.ndim >= 4:  # attention weights [B, H, L, S] or images [B, C, H, W]
            if any(hasattr(call.module, "one_sided_attn_window_size") for call in self._innermost()):
                return self._window_mask(x.shape, rate, site, x.device)  # attention weights [B, L, H, window]
            allowed = x > 0 if x.ndim == 4 and self._are_weights(x) else None
            return self._weight_mask(x.shape, rate, site, x.device, allowed)
        if self._fresh is not None:
            self.fired += 1
            return fresh_mask(x.shape, rate, self._fresh(x.device))
        size = x.shape[-1] if x.ndim > 1 else 1  # one coin for each row of [B]
        masks = self._by_draw(site, x.shape[0], lambda key: feature_mask(key, size, rate, x.device))  # [1 or B, d]
        return masks.view(-1, *(1,) * (x.ndim - 2), size) if x.ndim > 1 else masks.squeeze(1)

    def _window_mask(self, shape: Sequence[int], rate: float, site: str, device: torch.device) -> Tensor:
        if self._fresh is not None:
            self.fired += 1
            return fresh_mask(shape, rate, self._fresh(device))
        # Counted from the window's end: columns for global tokens, of which batches have different numbers, come first.
        return self._weight_mask((shape[0], shape[2], 1, shape[3]), rate, site, device, None).transpose(1, 2).flip(-1)

    def _weight_mask(
        self, shape: Sequence[int], rate: float, site: str, device: torch.device, allowed: Tensor | None
    ) -> Tensor:
        """The mask for weights [B, *H, L, S], of which those that are allowed, [B, H, L, S] or fewer, are not 0."""
        if self._fresh is not None:
            self.fired += 1
            return fresh_mask(shape, rate, self._fresh(device))
        queries, keys = shape[-2:]
        heads = math.prod(shape[1:-2])
        is_cross = bool(_CROSS.search(".".join(self.forward.moment.path.split(".")[-2:])))
        is_last = queries == 1 < keys and self._generates and not is_cross  # after keys of earlier calls
        places = _places(allowed, queries, keys, is_cross, is_last, device)
        if places is not None:
            return self._placed_mask(site, shape[0], heads, *places, rate)
        masks = self._by_draw(  # [1 or B, heads, L, S]
            site, shape[0], lambda key: attention_mask(key, heads, 1 if is_cross else queries, keys, rate, device)
        )
        return masks.view(-1, *shape[1:-2], masks.shape[-2], keys)

    def _placed_mask(self, site: str, rows: int, heads: int, queries: Tensor, keys: Tensor, rate: float) -> Tensor:
        """The mask of weights whose queries [B or 1, L] and keys [B or 1, S] stand at places of their own."""
        self._note(site, rows)
        draws, each = len(self._keys), rows // len(self._keys)
        masks = []
        for draw, key in enumerate(self._keys):
            here = slice(draw * each, (draw + 1) * each)
            own = (queries if len(queries) == 1 else queries[here], keys if len(keys) == 1 else keys[here])
            masks.append(placed_attention_mask(f"{key}/{site}", heads, *own, rate))  # [B/k or 1, heads, L, S]
        return masks[0] if draws == 1 else torch.cat([mask.expand(each, -1, -1, -1) for mask in masks])


def _places(
    allowed: Tensor | None, queries: int, keys: int, is_cross: bool, is_last: bool, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Places of queries [B, L] and keys [B, S] in their rows without padding; None where indices do.

    They do unless padding stands between the keys of a row (where a model puts something before or behind its tokens),
    or before the keys of another sequence than the queries', or a single query is the last of its row. In cross
    attention, where a query's place among the keys means nothing, all queries stand at 0.
    """
    index = torch.arange(keys, device=device)[None]  # [1, S]
    ranks = index
    if allowed is not None:
        seen = allowed.expand(*allowed.shape[:-1], keys).flatten(1, -2).any(1)  # [B, S]
        shifts = index - seen.cumsum(-1) + 1  # padding before each key, [B, S]
        first = shifts.gather(-1, seen.int().argmax(-1, keepdim=True))  # [B, 1]
        if ((shifts != first) & seen).any() or (is_cross and first.any()):
            ranks = (index - shifts).clamp(min=0)  # [B, S]
    if ranks is index and not is_last:
        return None
    if is_cross or queries > keys:
        return torch.arange(queries, device=device)[None] * (not is_cross), ranks
    return (ranks[:, -1:] if is_last else ranks[:, :queries]), ranks


def _with_first(output: Any, first: Tensor) -> Any:
    """A module's output with another first tensor."""
    if isinstance(output, Tensor):
        return first
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: first})
    return type(output)([first, *output[1:]])
