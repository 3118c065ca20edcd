"""Every dropout of a model: where it is, at which rate, and whether a draw switches it on."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter

from torch import nn
from torch.nn.modules import dropout as kinds

from baal_hf.posterior.switches import own_methods, syntax

_DROPOUTS = (
    kinds.Dropout,
    kinds.Dropout1d,
    kinds.Dropout2d,
    kinds.Dropout3d,
    kinds.AlphaDropout,
    kinds.FeatureAlphaDropout,
)
_OTHER_NOISE = {
    "layer": "skips whole layers (LayerDrop), which a draw leaves off",
    "path": "skips whole branches (stochastic depth), which a draw leaves off",
}
_REACHED_KERNELS = {None, "eager", "sdpa"}


@dataclass(frozen=True)
class DropoutSite:
    """A dropout that a model has.

    Attributes:
        where: Path of the module.
        kind: What drops out: a module's class, or the name of the rate in the code of its forward pass.
        p: The rate.
        fires: Whether a draw of `MCDropout()` switches it on, once a forward pass gets there.
        why_not: Why it does not fire; "" if it does.
    """

    where: str
    kind: str
    p: float
    fires: bool
    why_not: str = ""


@dataclass(frozen=True)
class DropoutReport:
    """All dropout of a model; prints as a table in which layers of one kind are a single line.

    Attributes:
        model: The model's class.
        sites: In the order of the model's modules.
    """

    model: str
    sites: tuple[DropoutSite, ...]

    @property
    def fires(self) -> bool:
        """Whether anything does."""
        return any(site.fires for site in self.sites)

    def __str__(self) -> str:
        if not self.sites:
            return f"{self.model} has no dropout at all."
        alike = Counter(replace(site, where=_starred(site.where)) for site in self.sites)
        lines = [("where", "kind", "p", "fires", "sites")]
        for site, count in alike.items():
            fires = "yes" if site.fires else f"no: {site.why_not}"
            lines.append((site.where or "(the model)", site.kind, f"{site.p:g}", fires, str(count)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([f"Dropout of {self.model}:", *(line.rstrip() for line in table)])


def dropout_report(model: nn.Module) -> DropoutReport:
    """What dropout a model has, and whether a draw of `MCDropout()` switches it on.

    Read from the modules and from the source of their forward passes; nothing is run. `print` shows a table.

    Args:
        model: Any torch module.

    Returns:
        The sites: every dropout module, every rate that the code of a module reads (`F.dropout`, attention), also those
        of 0, and noise that is called dropout and stays off (LayerDrop, stochastic depth).
    """
    kernel = foreign_kernel(model)
    sites = [site for path, module in model.named_modules() for site in _sites(path, module, kernel)]
    return DropoutReport(type(model).__name__, tuple(sites))


def foreign_kernel(model: nn.Module) -> str | None:
    """The attention kernel of a model if it is one that masks do not reach: it drops out by itself, or not at all."""
    configurations = {id(config): config for module in model.modules() if (config := vars(module).get("config"))}
    kernels = (getattr(config, "_attn_implementation", None) for config in configurations.values())
    return next((str(kernel) for kernel in kernels if kernel not in _REACHED_KERNELS), None)


def _sites(path: str, module: nn.Module, kernel: str | None) -> Iterator[DropoutSite]:
    for kind, p in _rates(module):
        other = (why for name, why in _OTHER_NOISE.items() if re.search(f"drop_?{name}|{name}_?drop", kind.lower()))
        why_not = next(other, "p = 0" if p == 0 else "")
        if kernel is not None and "att" in kind.lower() and not why_not:
            why_not = f"masks do not reach the kernel {kernel!r}"
        yield DropoutSite(path, kind, p, not why_not, why_not)


def _rates(module: nn.Module) -> Iterator[tuple[str, float]]:
    """(kind, rate) of each dropout that belongs to this module and not to its parts."""
    if isinstance(module, _DROPOUTS):
        yield type(module).__name__, float(module.p)
    elif isinstance(module, nn.MultiheadAttention):
        yield "MultiheadAttention", float(module.dropout)
    elif isinstance(module, nn.RNNBase):
        if module.num_layers > 1:
            yield f"{type(module).__name__} between layers", float(module.dropout)
    else:
        for name in _rate_names(type(module)):  # type: ignore[arg-type]
            value = _value(module, name)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
                kind = type(module).__name__
                yield (f"{kind}.{name}" if "drop" in kind.lower() else name), float(value)


@cache
def _rate_names(kind: type[nn.Module]) -> tuple[str, ...]:
    """Attributes of `self` with "drop" in their name that the methods read, such as "config.attention_dropout"."""
    names: dict[str, None] = {}
    for method in own_methods(kind):
        tree = syntax(method)
        if tree is None:
            names |= dict.fromkeys(name for name in method.__code__.co_names if "drop" in name)
        for node in ast.walk(tree) if tree is not None and method.__name__ != "__init__" else ():
            if isinstance(node, ast.Attribute) and ("drop" in node.attr or node.attr in ("p", "prob")):
                root, *path = ast.unparse(node).split(".")
                if root == "self" and ("drop" in node.attr or "drop" in kind.__name__.lower()):
                    names[".".join(path)] = None
    return tuple(names)


def _value(module: nn.Module, name: str) -> object:
    try:
        return attrgetter(name)(module)
    except (AttributeError, TypeError):
        return None


def _starred(path: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path)
