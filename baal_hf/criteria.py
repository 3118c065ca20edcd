"""What a criterion says of a model's outputs: how they become probabilities, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Link = Callable[[Tensor], Tensor]
"""Outputs [B, C, *S] of one kind to those of another."""

_SMALLEST = torch.finfo(torch.float32).tiny  # whose logarithm is finite


def _softmax(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        raise ValueError("Softmax of one output is always 1: two classes need two of them, or BCEWithLogitsLoss.")
    return logits.float().softmax(1)


def _log(probs: Tensor) -> Tensor:
    return probs.clamp(min=_SMALLEST).log()


def _logit(probs: Tensor) -> Tensor:
    return probs.clamp(_SMALLEST, 1 - torch.finfo(torch.float32).eps / 2).logit()


def _same(values: Tensor) -> Tensor:
    return values.float()


LINKS: dict[str, tuple[Link, Link]] = {
    "softmax": (_softmax, _log),
    "log_softmax": (lambda outputs: outputs.float().exp(), _log),
    "sigmoid": (lambda logits: logits.float().sigmoid(), _logit),
    "probability": (_same, _same),
    "none": (_same, _same),
}
"""By name, what makes probabilities of outputs, and what makes outputs of probabilities.

Outputs of "probability" are those of classes that do not exclude each other; "none" is for regression.
"""

_LINK_OF: dict[Any, str] = {
    nn.CrossEntropyLoss: "softmax",
    F.cross_entropy: "softmax",
    nn.NLLLoss: "log_softmax",
    F.nll_loss: "log_softmax",
    nn.BCEWithLogitsLoss: "sigmoid",
    F.binary_cross_entropy_with_logits: "sigmoid",
    nn.MultiLabelSoftMarginLoss: "sigmoid",
    nn.BCELoss: "probability",
    F.binary_cross_entropy: "probability",
    nn.MSELoss: "none",
    F.mse_loss: "none",
    nn.L1Loss: "none",
    F.l1_loss: "none",
    nn.SmoothL1Loss: "none",
    F.smooth_l1_loss: "none",
    nn.HuberLoss: "none",
    F.huber_loss: "none",
}


def link_of(criterion: Any) -> str:
    """Name of the link by which a criterion reads a model's outputs.

    Raises:
        ValueError: It cannot be told.
    """
    link = _known_link(criterion)
    if link is not None:
        return link
    name = getattr(criterion, "__name__", type(criterion).__name__)
    raise ValueError(
        f"How the outputs for {name} become probabilities cannot be told: pass ModelWrapper(..., probabilities=...), "
        f"out of {', '.join(LINKS)}, or a function of the outputs [B, C, *S]."
    )


def ignored_target(criterion: Any) -> int | None:
    """The target of positions that a criterion leaves out; None if it leaves out none."""
    if isinstance(criterion, nn.Module) or not callable(criterion):
        return getattr(criterion, "ignore_index", None)
    try:
        parameter = inspect.signature(criterion).parameters.get("ignore_index")
    except ValueError:  # of a function that is not written in Python
        return None
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def targets_in(target: Any, ignored: int | None, rows: int) -> int:
    """What a criterion's mean is over: the positions of a target whose class it does not leave out, or the rows."""
    if ignored is None or not isinstance(target, Tensor) or target.is_floating_point():  # of probabilities none is left
        return rows
    return int((target != ignored).sum())


def aligned_target(target: Any, outputs: Any, criterion: Any) -> Any:
    """A target [B] as [B, 1] where a criterion compares it with outputs [B, 1] value by value, else as it is.

    As it is, it would be compared with each of the outputs.
    """
    tensors = isinstance(target, Tensor) and isinstance(outputs, Tensor)
    if not tensors or target.ndim != 1 or outputs.shape != (len(target), 1):
        return target
    return target[:, None] if _known_link(criterion) in ("sigmoid", "probability", "none") else target


def _known_link(criterion: Any) -> str | None:
    kinds = [criterion] if isinstance(criterion, type(F.mse_loss)) else type(criterion).__mro__
    return next((_LINK_OF[kind] for kind in kinds if kind in _LINK_OF), None)


class Links:
    """What makes probabilities of all that a model returns, and outputs of probabilities.

    Args:
        probabilities: Name of a link, a function of the outputs [B, C, *S], or one of these for each output; None asks
            the criterion.
        criterion: (outputs, target) -> loss.

    Attributes:
        names: Of the links, for each output or for all; None for functions.

    Raises:
        ValueError: There is no link of that name, or the criterion's cannot be told.
    """

    def __init__(self, probabilities: str | Link | Sequence[str | Link] | None, criterion: Any) -> None:
        if probabilities is None:
            probabilities = link_of(criterion)
        self._each = isinstance(probabilities, list | tuple)
        given: list[Any] = list(probabilities) if isinstance(probabilities, list | tuple) else [probabilities]
        unknown = [link for link in given if isinstance(link, str) and link not in LINKS]
        if unknown or not given:
            raise ValueError(
                f"ModelWrapper needs probabilities out of {', '.join(LINKS)}, or a function, got {unknown or given}."
            )
        self.names = [link if isinstance(link, str) else None for link in given]
        self._links = [LINKS[link] if isinstance(link, str) else (link, None) for link in given]

    def to_probabilities(self, outputs: Any) -> Any:
        """Probabilities of a tensor, or of each of a list of tensors.

        Raises:
            ValueError: There are not as many outputs as links.
        """
        return self._applied(outputs, [to_probs for to_probs, _ in self._links])

    def to_outputs(self, probabilities: Any) -> Any:
        """What the criterion reads as these probabilities.

        Raises:
            ValueError: A link is a function, which knows one direction only.
        """
        back = [to_outputs for _, to_outputs in self._links]
        if None in back:
            raise ValueError("Averaging needs outputs of probabilities: give probabilities by name, not as a function.")
        return self._applied(probabilities, back)

    def _applied(self, values: Any, functions: list[Any]) -> Any:
        given = values if isinstance(values, list) else [values]
        functions = functions if self._each else functions * len(given)
        if len(functions) != len(given):
            raise ValueError(f"Probabilities were named for {len(functions)} outputs, the model has {len(given)}.")
        applied = [function(value) for function, value in zip(functions, given, strict=True)]
        return applied if isinstance(values, list) else applied[0]
