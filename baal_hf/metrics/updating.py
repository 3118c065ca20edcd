"""What a test tells a metric of a batch, as the metric asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Features, Value
from torch import Tensor, nn


def update(
    metric: Any, outputs: Any, probabilities: Any, target: Any, link: str | None, ignored: int | None = None
) -> None:
    """Add a batch to a metric.

    A module of `evaluate` is given what its features ask for: a number for each prediction is its class, or the value
    of a regression; a list of whole numbers says which classes it has, above one half; a list of others is its
    probabilities. Axes behind the classes are rows and, where a number is asked for, so are classes that do not exclude
    each other. Any other metric is one of torchmetrics, and is given the outputs.

    Args:
        metric: Of `evaluate`, or with `update(outputs, target)`.
        outputs: Of the model, [B, C, *S].
        probabilities: Of the outputs, [B, C, *S].
        target: [B, *S], or as `outputs`.
        link: Name of what made the probabilities.
        ignored: Target of positions that are left out where a target is a class; None leaves none out.

    Raises:
        ValueError: A module of `evaluate` and a model with several outputs, or one that takes something else.
    """
    if not hasattr(metric, "add_batch"):
        metric.update(outputs, target)
        return
    if not isinstance(probabilities, Tensor) or not isinstance(target, Tensor):
        raise ValueError(f"The metric {metric.name} needs one output and one target, the model has several.")
    predictions, references = _features(metric)
    takes_numbers = isinstance(predictions, Value)
    takes_classes = "int" in (predictions if takes_numbers else predictions.feature).dtype
    is_one = link is None and probabilities.shape[1] == 1  # made by a function: a probability, or a regression's value
    as_they_are = link == "none" or (not takes_classes and (is_one or not takes_numbers))
    values = probabilities if as_they_are else _classes(probabilities, is_one or link in ("sigmoid", "probability"))
    shaped = _shaped(values, predictions), _shaped(target, references)
    if ignored is not None and isinstance(references, Value) and not target.is_floating_point():
        shaped = tuple(column[shaped[1] != ignored] for column in shaped)
    metric.add_batch(predictions=shaped[0], references=shaped[1])


def alone_on(device: torch.device, metric: Any) -> Any:
    """A metric of torchmetrics on the device of what it will be given, which is what all processes have together."""
    if not isinstance(metric, nn.Module):
        return metric
    for part in metric.modules():  # of a collection each
        if hasattr(part, "distributed_available_fn"):
            part.distributed_available_fn = _nobody_else  # type: ignore[assignment]
    return metric.to(device)


def result(metric: Any, name: str) -> Any:
    """The value of a metric: of several that a module of `evaluate` returns that of its name, if it has it."""
    value = metric.compute()
    if isinstance(value, Mapping):
        value = next(iter(value.values())) if len(value) == 1 else value.get(name, value)
    return value.item() if isinstance(value, Tensor | np.generic) and value.ndim == 0 else value


def _features(metric: Any) -> tuple[Any, Any]:
    """What a module of `evaluate` takes as predictions and as references."""
    features = metric.features if isinstance(metric.features, Features) else metric.features[0]
    if not {"predictions", "references"} <= set(features):
        raise ValueError(
            f"A metric is given predictions and references, and {metric.name} takes {', '.join(features)}."
        )
    return features["predictions"], features["references"]


def _classes(probabilities: Tensor, each_alone: bool) -> Tensor:
    """The class of each row [B, *S], or which classes it has, [B, C, *S]."""
    return (probabilities > 0.5).long() if each_alone else probabilities.argmax(1)


def _shaped(values: Tensor, feature: Any) -> np.ndarray:
    """[n] where the metric takes a number for each row; otherwise [n, C], rows being all axes but that of classes."""
    if isinstance(feature, Value):
        return values.flatten().cpu().numpy()
    return values.movedim(1, -1).flatten(0, -2).cpu().numpy()


def _nobody_else() -> bool:
    return False
