"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable

from baal_hf.semisupervised.base import SemiSupervisedMethod
from baal_hf.semisupervised.mean_teacher import MeanTeacher
from baal_hf.semisupervised.pi_model import PiModel
from baal_hf.semisupervised.pseudo_labels import PseudoLabels

METHODS: dict[str, Callable[[], SemiSupervisedMethod]] = {
    "pi_model": PiModel,
    "mean_teacher": MeanTeacher,
    "pseudo_labels": PseudoLabels,
}
"""Each with its defaults."""


def semi_supervised_method(method: str | SemiSupervisedMethod) -> SemiSupervisedMethod:
    """The method of this name, with its defaults, or the method itself.

    Raises:
        ValueError: No method has this name.
        TypeError: It is neither a name nor has what a method has.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"Semi-supervised learning knows {', '.join(METHODS)}, got {method!r}.")
        return METHODS[method]()
    missing = [name for name in ("start", "loss", "step", "save") if not callable(getattr(method, name, None))]
    if isinstance(method, type) or missing:
        raise TypeError(
            f"Semi-supervised learning needs a name ({', '.join(METHODS)}) or a SemiSupervisedMethod, got {method!r}."
        )
    return method
