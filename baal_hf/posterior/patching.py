"""Baal's interface: models whose every forward pass in evaluation mode is a draw."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from baal_hf.posterior.base import Posterior
from baal_hf.posterior.dropconnect import MCDropConnect
from baal_hf.posterior.dropout import MCDropout
from baal_hf.posterior.report import dropout_report

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Patched(nn.Module):
    """What a patched module's class gains: a draw of the posterior around each call in evaluation mode.

    It is the class that is exchanged, so that weights, hooks and state dict keys stay, and copies are patched too.
    """

    patch: _Patch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            return super().__call__(*args, **kwargs)
        t = self.patch.next_draw
        if not self.patch.consistent:
            self.patch.next_draw += 1
        with self.patch.posterior.draw(self, t):
            return super().__call__(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new_patched, (self.patch.unpatched,), self.__dict__

    def train(self, mode: bool = True) -> Any:
        if self.patch.consistent and not mode:
            self.patch.next_draw += 1
        return super().train(mode)


@dataclass
class _Patch:
    posterior: Posterior
    for_trainers: Posterior  # whose draws are to be networks
    unpatched: type[nn.Module]
    consistent: bool
    next_draw: int = 0


def patch_module(
    module: ModuleT, inplace: bool = True, posterior: Posterior | None = None, consistent: bool = False
) -> ModuleT:
    """Make the forward passes of a module in evaluation mode draws from its dropout.

    No layer is replaced: parameters, state dict keys and training mode stay as they were.

    Args:
        module: Any module with dropout.
        inplace: Patch this module, or a deep copy of it.
        posterior: What to draw from; by default `MCDropout(masks="fresh")`, the textbook's noise, or `MCDropout()` if
            consistent. A trainer, or `ModelWrapper`, that takes the module over draws from `MCDropout()` by default:
            scores that look at several rows, such as BatchBALD and EPIG, need draws that are one network for all.
        consistent: Stay with one draw until `eval()` is called again, instead of drawing at each pass.

    Returns:
        The patched module.

    Raises:
        ValueError: The module, or a part of it, is patched already.
    """
    if is_patched(module):
        part = "" if isinstance(module, _Patched) else "a part of "
        raise ValueError(f"{part}this {type(module).__name__} is patched already; unpatch_module undoes it.")
    for_trainers = posterior or MCDropout()
    if posterior is None:
        posterior = MCDropout(masks="shared" if consistent else "fresh")
        report = dropout_report(module)
        if not report.fires:
            warnings.warn(
                f"patch_module found no dropout with a rate above 0 in {type(module).__name__}: its passes would all "
                "be equal. Load it with a dropout rate in its configuration, or give "
                f"posterior=MCDropout(p=0.1).\n{report}",
                UserWarning,
                stacklevel=2,
            )
    module = module if inplace else copy.deepcopy(module)
    module.patch = _Patch(posterior, for_trainers, type(module), consistent)  # type: ignore[assignment]
    module.__class__ = _patched(type(module))
    return module


def _patched(kind: type[nn.Module]) -> type[Any]:
    return type(kind.__name__, (_Patched, kind), {"__module__": kind.__module__})


def _new_patched(kind: type[nn.Module]) -> Any:
    """A module without its state, which pickle and copy give it."""
    module = kind.__new__(kind)
    module.__class__ = _patched(kind)
    return module


def unpatch_module(module: ModuleT, inplace: bool = True) -> ModuleT:
    """Undo `patch_module`; evaluation is deterministic again. A module that is not patched is left as it is."""
    module = module if inplace else copy.deepcopy(module)
    if isinstance(module, _Patched):
        module.__class__ = module.patch.unpatched  # type: ignore[assignment]
        del module.patch
    return module


def is_patched(model: nn.Module) -> bool:
    """Whether the passes of a model, or of a part of it, are draws."""
    return any(isinstance(part, _Patched) for part in model.modules())


def unpatched(model: nn.Module) -> tuple[nn.Module, Posterior | None]:
    """The model without the patches of it or its parts, and what a trainer is to draw from; None without a patch."""
    posterior = None
    if isinstance(model, BayesianModule):
        posterior, model = model._for_trainers, model.parent_module
    for part in model.modules():
        posterior = part.patch.for_trainers if isinstance(part, _Patched) else posterior
        unpatch_module(part)
    return model, posterior


class BayesianModule(nn.Module):
    """A module wrapped so that its forward passes in evaluation mode are draws from a posterior.

    Attributes that the wrapper lacks are the module's. As a context manager it unpatches the module on leaving.

    Args:
        module: Any module; patched in place.
        posterior: What to draw from; as for `patch_module`.
        consistent: Stay with one draw until `eval()` is called again.

    Attributes:
        parent_module: The module.

    Raises:
        ValueError: The module is patched already.
    """

    def __init__(self, module: nn.Module, posterior: Posterior | None = None, consistent: bool = False) -> None:
        super().__init__()
        self.parent_module = patch_module(module, posterior=posterior, consistent=consistent)
        # Still known once a trainer has unpatched the module.
        self._for_trainers: Any = self.parent_module.patch.for_trainers  # type: ignore[union-attr]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A pass of the module."""
        return self.parent_module(*args, **kwargs)

    def unpatch(self) -> nn.Module:
        """The module as it was before."""
        self._for_trainers = None
        return unpatch_module(self.parent_module)

    def __enter__(self) -> BayesianModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.unpatch()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("parent_module"), name)


class MCDropoutModule(BayesianModule):
    """A module whose every pass in evaluation mode drops out anew: independent masks for each row and unit.

    Args:
        module: Any module with dropout; patched in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)


class MCConsistentDropoutModule(BayesianModule):
    """A module that is one network drawn from its dropout, for all rows, until `eval()` draws the next.

    Args:
        module: Any module with dropout; patched in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, consistent=True)


class MCDropoutConnectModule(BayesianModule):
    """A module whose every pass in evaluation mode drops some of the trained weights (Mobiny et al., 2019; 1906.04569).

    Args:
        module: Any module; patched in place, its weights untouched.
        layers: Which layers, by class; as for `MCDropConnect`.
        weight_dropout: Probability that a weight is dropped, in (0, 1).

    Raises:
        ValueError: `layers` names an unknown class, or `weight_dropout` is not in (0, 1).
    """

    def __init__(self, module: nn.Module, layers: Sequence[str] = ("Linear",), weight_dropout: float = 0.2) -> None:
        posterior = MCDropConnect(layers, weight_dropout)
        if not posterior.chosen(module):
            warnings.warn(
                f"MCDropoutConnectModule found no {' or '.join(posterior.layers)} in {type(module).__name__}: there is "
                "nothing to drop. Name other layers.",
                UserWarning,
                stacklevel=2,
            )
        super().__init__(module, posterior=posterior)
