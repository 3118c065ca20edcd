"""Features: what a model knows of each row, [B, d], caught in one forward pass on its way to the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Run = Callable[[], Any]
"""Runs the model on a batch of B rows and returns its outputs."""

Logits = Callable[[Any], Tensor]
"""Finds the logits in the model's outputs."""

Representation = Callable[[nn.Module, Run, Logits, Tensor | None], Tensor]
"""(model, run, logits, attention mask [B, S]) -> features [B, d]."""

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def representation(name: str) -> Representation:
    """The representation of that name: `pooled`, `cls` or `mean`.

    Raises:
        ValueError: There is none of that name.
    """
    known: dict[str, Representation] = {"pooled": pooled, "cls": cls, "mean": mean}
    if name not in known:
        raise ValueError(f"Features need a representation out of {', '.join(map(repr, known))}, got {name!r}.")
    return known[name]


def pooled(model: nn.Module, run: Run, logits: Logits, mask: Tensor | None) -> Tensor:
    """What the last linear layer of the head receives: h(x), where the logits are W h(x) + b.

    Softmax, its logarithm or sigmoid may follow the layer. Where it runs on every token and the model then picks one,
    as decoders do, h is that token's.

    Raises:
        ValueError: The logits are not [B, C], or no linear layer gives them.
    """
    last: dict[int, tuple[Tensor, Tensor]] = {}  # by width; to keep every layer's would take the memory of training

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if _is_linear(module) and isinstance(given, Tensor) and isinstance(output, Tensor):
            last[output.shape[-1]] = given, output

    with _hooked(model, note):
        values = logits(run())  # [B, C]
    if values.ndim != 2:
        raise ValueError(
            f"'pooled' features need logits [B, C], {type(model).__name__} gives {list(values.shape)}: it has no head "
            "for whole rows. Choose the representation 'cls' or 'mean'."
        )
    if values.shape[1] in last:
        given, output = last[values.shape[1]]  # [B, d] and [B, C], or [B, S, d] and [B, S, C]
        values = values.to(output.device)  # a model spread over several devices
        if output.shape == values.shape and _ends_in(output, values):
            return given
        if output.ndim == 3 and output.shape[0] == values.shape[0]:
            is_picked = output.isclose(values[:, None].to(output), rtol=0, atol=0, equal_nan=True).all(-1)  # [B, S]
            if is_picked.any(1).all():
                return _at(given, _last(is_picked, mask))
    raise ValueError(
        f"'pooled' features need a linear layer that gives the logits, {type(model).__name__} has none. Choose the "
        "representation 'cls' or 'mean', or let the model end in nn.Linear."
    )


def cls(model: nn.Module, run: Run, logits: Logits, mask: Tensor | None) -> Tensor:
    """The last hidden state of the first token that the mask shows; in a decoder that token has seen no other.

    Raises:
        ValueError: No module returns a `last_hidden_state` [B, S, d], or the mask is of another length.
    """
    hidden = _last_hidden_state(model, run)  # [B, S, d]
    if hidden.ndim != 3:
        raise _no_states("cls", "[B, S, d]", model, hidden)
    return _at(hidden, _shown("cls", model, hidden, mask).int().argmax(1))


def mean(model: nn.Module, run: Run, logits: Logits, mask: Tensor | None) -> Tensor:
    """The mean of the last hidden state over the tokens that the mask shows; over all places of an image.

    Raises:
        ValueError: No module returns a `last_hidden_state` [B, S, d] or [B, d, H, W], or the mask is of another length.
    """
    hidden = _last_hidden_state(model, run).float()
    if hidden.ndim == 4:
        return hidden.mean((2, 3))  # [B, d, H, W] -> [B, d]
    if hidden.ndim != 3:
        raise _no_states("mean", "[B, S, d] or [B, d, H, W]", model, hidden)
    shown = _shown("mean", model, hidden, mask)[..., None]  # [B, S, 1]
    return hidden.masked_fill(~shown, 0).sum(1) / shown.sum(1)  # [B, d]


@contextmanager
def _hooked(model: nn.Module, hook: Hook) -> Iterator[None]:
    """The hook on the model and all its parts, for the length of a `with` block."""
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer; adapters around one, which are no nn.Linear, have its sizes."""
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return isinstance(module, Conv1D) or all(isinstance(size, int) for size in sizes)


def _ends_in(output: Tensor, values: Tensor) -> bool:
    """Whether `values` are the layer's output, or what may follow it."""
    output, tolerance = output.float(), 1e-4 if output.dtype in (torch.float32, torch.float64) else 1e-2
    ends = (output, output.softmax(-1), output.log_softmax(-1), output.sigmoid())
    return any(values.float().allclose(end, rtol=tolerance, atol=tolerance, equal_nan=True) for end in ends)


def _last(is_picked: Tensor, mask: Tensor | None) -> Tensor:
    """The token whose logits the model returns, [B]; among several, as with logits of few bits, the last that shows."""
    order = torch.arange(1, is_picked.shape[1] + 1, device=is_picked.device)  # [S]
    if mask is not None and mask.shape == is_picked.shape:
        order = order + len(order) * (mask.to(order.device) != 0)  # [B, S]
    return (is_picked * order).argmax(1)


def _at(states: Tensor, tokens: Tensor) -> Tensor:
    """Of states [B, S, d] those of one token [B] in each row, [B, d]."""
    return states.take_along_dim(tokens.to(states.device)[:, None, None], 1)[:, 0]


def _last_hidden_state(model: nn.Module, run: Run) -> Tensor:
    """The `last_hidden_state` of the outermost part that returns one, which is the last to; of two the encoder's."""
    last: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for name in ("encoder_last_hidden_state", "last_hidden_state"):
            if isinstance(output, Mapping) and isinstance(output.get(name), Tensor):
                last[:] = [output[name]]
                return

    with _hooked(model, note):
        run()
    if not last:
        raise ValueError(
            f"No part of {type(model).__name__} returns a `last_hidden_state`, which 'cls' and 'mean' features are. "
            "Choose the representation 'pooled'."
        )
    return last[0]


def _shown(name: str, model: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens count, [B, S]."""
    if mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise _no_states(name, f"that fit the attention mask {list(mask.shape)}", model, hidden)
    return mask.to(hidden.device) != 0


def _no_states(name: str, needed: str, model: nn.Module, hidden: Tensor) -> ValueError:
    others = "'mean' or 'pooled'" if hidden.ndim == 4 else "'pooled'"
    return ValueError(
        f"{name!r} features need hidden states {needed}, {type(model).__name__} has {list(hidden.shape)}. Choose the "
        f"representation {others}."
    )
