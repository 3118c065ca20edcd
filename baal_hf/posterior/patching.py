"""Baal's interface to MC dropout: models whose every forward pass in evaluation mode is a new draw."""

from __future__ import annotations

import copy
import itertools
import warnings
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import dropout as kinds

from baal_hf.posterior.base import Posterior
from baal_hf.posterior.dropout import MCDropout

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_DROPOUTS = (
    kinds.Dropout,
    kinds.Dropout1d,
    kinds.Dropout2d,
    kinds.Dropout3d,
    kinds.AlphaDropout,
    kinds.FeatureAlphaDropout,
)


class _Patch:
    """Opens a draw of the posterior around each forward pass of a module in evaluation mode."""

    def __init__(self, module: nn.Module, posterior: Posterior) -> None:
        self.posterior = posterior
        self._passes = itertools.count()
        self._open: AbstractContextManager[None] | None = None
        self._handles = [
            module.register_forward_pre_hook(self._before, prepend=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, module: nn.Module, _: Any) -> None:
        if not module.training:
            self._open = self.posterior.draw(module, next(self._passes))
            self._open.__enter__()

    def _after(self, module: nn.Module, _: Any, __: Any) -> None:
        if self._open is not None:
            draw, self._open = self._open, None
            draw.__exit__(None, None, None)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


_patches: WeakKeyDictionary[nn.Module, _Patch] = WeakKeyDictionary()


def patch_module(module: ModuleT, inplace: bool = True, posterior: Posterior | None = None) -> ModuleT:
    """Make every forward pass of a module in evaluation mode a new draw from its dropout.

    No layer is replaced: parameters, state dict keys and training mode stay as they were.

    Args:
        module: Any module with dropout.
        inplace: Patch this module, or a deep copy of it.
        posterior: What to draw from; by default `MCDropout(masks="fresh")`, the textbook's noise.

    Returns:
        The patched module.

    Raises:
        ValueError: The module is patched already.
    """
    if is_patched(module):
        raise ValueError(f"This {type(module).__name__} is patched already; unpatch_module undoes it.")
    if not _has_dropout(module):
        warnings.warn(
            f"patch_module found no dropout with a rate above 0 in {type(module).__name__}: its passes would all be "
            "equal. Load it with a dropout rate in its configuration.",
            UserWarning,
            stacklevel=2,
        )
    module = module if inplace else copy.deepcopy(module)
    _patches[module] = _Patch(module, posterior or MCDropout(masks="fresh"))
    return module


def unpatch_module(module: ModuleT, inplace: bool = True) -> ModuleT:
    """Undo `patch_module`; evaluation is deterministic again. A module that is not patched is left as it is."""
    if not inplace:
        posterior = patched_posterior(module)
        unpatched = copy.deepcopy(unpatch_module(module))
        if posterior is not None:
            patch_module(module, posterior=posterior)
        return unpatched
    if is_patched(module):
        _patches.pop(module).remove()
    return module


def is_patched(module: nn.Module) -> bool:
    """Whether `patch_module` is in force on this module."""
    return module in _patches


def patched_posterior(module: nn.Module) -> Posterior | None:
    """What the module's passes are drawn from, or None when it is not patched."""
    return _patches[module].posterior if is_patched(module) else None


class MCDropoutModule(nn.Module):
    """A module wrapped so that each forward pass in evaluation mode is a new draw from its dropout.

    Attributes that the wrapper lacks are the module's. As a context manager it unpatches the module on leaving.

    Args:
        module: Any module with dropout; patched in place.

    Attributes:
        parent_module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.parent_module = patch_module(module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A pass of the module."""
        return self.parent_module(*args, **kwargs)

    def unpatch(self) -> nn.Module:
        """The module as it was before."""
        return unpatch_module(self.parent_module)

    def __enter__(self) -> MCDropoutModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.unpatch()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("parent_module"), name)


def _has_dropout(module: nn.Module) -> bool:
    return any(
        part.p > 0 if isinstance(part, _DROPOUTS) else any(_is_rate(*entry) for entry in vars(part).items())
        for part in module.modules()
    )


def _is_rate(name: str, value: object) -> bool:
    return "drop" in name and isinstance(value, float) and 0 < value < 1
