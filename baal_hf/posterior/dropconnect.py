"""MC DropConnect: draws that drop weights instead of units."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from baal_hf.posterior.base import opened
from baal_hf.posterior.masks import kept
from baal_hf.posterior.switches import evaluation_flags

_KINDS: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Conv1D": Conv1D,  # transformers' linear layer with a transposed weight
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
}
# What these layers call with their weights. An embedding that shares its weight with a layer calls another function.
_CALLS = {F.linear, F.conv1d, F.conv2d, torch.addmm, torch.lstm, torch.gru, F.multi_head_attention_forward}


class MCDropConnect:
    """Monte-Carlo DropConnect (Mobiny et al., 2019; 1906.04569) on the trained weights.

    In a draw each weight of the chosen layers is dropped with probability `weight_dropout`, and the others are scaled
    by 1/(1 − weight_dropout), so that the mean over draws of a layer's output is the trained layer's. Biases are kept.
    The masks are named by (seed, t, parameter): a draw is one network for all rows, and a weight that two layers share
    has one mask. Layers are given masked weights for the length of a call; the model's own are not touched, so a draw
    needs memory for one more copy of the chosen weights.

    Args:
        layers: Which layers, by class: "Linear", "Conv1d", "Conv2d", "Conv1D" (of transformers), "LSTM", "GRU".
            Subclasses are included.
        weight_dropout: Probability that a weight is dropped, in (0, 1).
        seed: Names the sequence of draws.

    Attributes:
        size: None: there are as many draws as one asks for.
        swaps_weights: True.

    Raises:
        ValueError: `layers` is empty or names an unknown class, or `weight_dropout` is not in (0, 1).
    """

    size: int | None = None
    swaps_weights = True

    def __init__(self, layers: Sequence[str] = ("Linear",), weight_dropout: float = 0.2, seed: int = 0) -> None:
        layers = (layers,) if isinstance(layers, str) else tuple(layers)
        unknown = [name for name in layers if name not in _KINDS]
        if unknown or not layers:
            raise ValueError(f"MCDropConnect needs layers out of {', '.join(_KINDS)}, got {unknown or 'none'}.")
        if not 0 < weight_dropout < 1:
            raise ValueError(f"MCDropConnect needs weight_dropout between 0 and 1, got {weight_dropout}.")
        self.layers = layers
        self.weight_dropout = weight_dropout
        self.seed = seed

    @contextmanager
    def draw(self, model: nn.Module, t: int) -> Iterator[None]:
        """Make `model` the t-th network for the length of a `with` block; weights that it cannot reach are warned of.

        Raises:
            ValueError: `t` is negative, the model has none of the layers, all of them use their weights in their own
                way, or these are parametrized.
            TypeError: `model` is wrapped in `nn.DataParallel`.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        with opened(self, model, t) as bare, evaluation_flags(bare):
            connected = _Connected(self._masked(bare, t))
            with connected:
                yield
        kept_whole = {place: func for place, func in connected.missed.items() if place not in connected.exchanged}
        if kept_whole:
            names = [name for name, weight in bare.named_parameters() if id(weight) in kept_whole]
            ways = ", ".join(dict.fromkeys(kept_whole.values()))
            told = (
                f"MCDropConnect cannot reach {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} in "
                f"{type(model).__name__}, which the model uses in its own way ({ways})"
            )
            if not connected.exchanged:
                raise ValueError(f"{told}: every draw would be the same.")
            warnings.warn(f"{told}: nothing of it is dropped.", UserWarning, stacklevel=3)

    def chosen(self, model: nn.Module) -> list[nn.Parameter]:
        """The weights of the model that draws drop from.

        Raises:
            ValueError: Some are parametrized, so made of others for each pass.
        """
        kinds = tuple(_KINDS[name] for name in self.layers)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        made = [name for name, module in layers.items() if is_parametrized(module)]
        if made:
            raise ValueError(
                f"MCDropConnect cannot drop the weights of {made[0]}, which are made anew for each pass: "
                "torch.nn.utils.parametrize.remove_parametrizations ends that."
            )
        return [weight for module in layers.values() for weight in _weights(module)]

    def _masked(self, model: nn.Module, t: int) -> dict[int, Tensor]:
        """The masked weights of the draw, by the identity of the trained ones."""
        chosen = {id(weight) for weight in self.chosen(model)}
        if not chosen:
            raise ValueError(f"MCDropConnect found no {' or '.join(self.layers)} in {type(model).__name__}.")
        masked = {}
        for name, weight in model.named_parameters():
            if id(weight) in chosen:
                coins = kept(f"{self.seed}/{t}/{name}", weight.numel(), self.weight_dropout)
                mask = torch.from_numpy(coins).view(weight.shape).to(weight.device)
                masked[id(weight)] = weight * mask / (1 - self.weight_dropout)
        return masked


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    return (weight for name, weight in module.named_parameters(recurse=False) if name.startswith("weight"))


class _Connected(TorchFunctionMode):
    """Gives layers their masked weights in place of the trained ones."""

    def __init__(self, masked: dict[int, Tensor]) -> None:
        super().__init__()
        self.exchanged = set[int]()  # weights, by their identity
        self.missed: dict[int, str] = {}  # weights, and what made a tensor of them that is no layer's call
        self._masked = masked

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CALLS:
            args = tuple(self._exchanged(argument) for argument in args)
            kwargs = {name: self._exchanged(argument) for name, argument in kwargs.items()}
        came = func(*args, **kwargs)
        if func not in _CALLS and func is not F.embedding and isinstance(came, Tensor):
            self.missed |= {id(argument): func.__name__ for argument in args if id(argument) in self._masked}
        return came

    def _exchanged(self, argument: Any) -> Any:
        if isinstance(argument, list):  # the weights of a recurrent layer
            return [self._exchanged(part) for part in argument]
        if id(argument) not in self._masked:
            return argument
        self.exchanged.add(id(argument))
        return self._masked[id(argument)]
