"""Baal's interface to MC dropout: models whose every forward pass in evaluation mode is a new draw."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, TypeVar

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


class _Patched(nn.Module):
    """What a patched module's class gains: a draw of the posterior around each call in evaluation mode.

    It is the class that is exchanged, so that weights, hooks and state dict keys stay, and copies are patched too.
    """

    patch: _Patch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            return super().__call__(*args, **kwargs)
        self.patch.passes += 1
        with self.patch.posterior.draw(self, self.patch.passes - 1):
            return super().__call__(*args, **kwargs)


@dataclass
class _Patch:
    posterior: Posterior
    unpatched: type[nn.Module]
    passes: int = 0


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
    if isinstance(module, _Patched):
        raise ValueError(f"This {type(module).__name__} is patched already; unpatch_module undoes it.")
    if not _has_dropout(module):
        warnings.warn(
            f"patch_module found no dropout with a rate above 0 in {type(module).__name__}: its passes would all be "
            "equal. Load it with a dropout rate in its configuration.",
            UserWarning,
            stacklevel=2,
        )
    module = module if inplace else copy.deepcopy(module)
    kind = type(module)
    module.patch = _Patch(posterior or MCDropout(masks="fresh"), kind)  # type: ignore[assignment]
    module.__class__ = type(kind.__name__, (_Patched, kind), {"__module__": kind.__module__})
    return module


def unpatch_module(module: ModuleT, inplace: bool = True) -> ModuleT:
    """Undo `patch_module`; evaluation is deterministic again. A module that is not patched is left as it is."""
    module = module if inplace else copy.deepcopy(module)
    if isinstance(module, _Patched):
        module.__class__ = module.patch.unpatched  # type: ignore[assignment]
        del module.patch
    return module


def patched_posterior(module: nn.Module) -> Posterior | None:
    """What a patched module's passes are drawn from; None for a module that is not patched."""
    return module.patch.posterior if isinstance(module, _Patched) else None


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
