"""What a model returned: where the logits are, which tokens count, what turns logits into probabilities."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, nn


def token_mask(batch: Any) -> Tensor | None:
    """Which tokens, or patches of images of different size, are no padding, [B, S]; None where nothing says it."""
    given = batch if isinstance(batch, Mapping) else {}
    mask: Tensor | None = given.get("attention_mask", given.get("pixel_attention_mask"))
    return mask


def found_logits(outputs: Any, ignore_keys: Container[str]) -> Tensor:
    """The logits among a model's outputs: a tensor, the first of several, or the one that is called so.

    Raises:
        ValueError: There are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        if "logits" in outputs and "logits" not in ignore_keys:
            logits = outputs["logits"]
        else:
            named = [name for name, value in outputs.items() if isinstance(value, Tensor) and name not in ignore_keys]
            if len(named) != 1:
                raise ValueError(f"Predicting needs a model with `logits`, this one returns {list(outputs)}.")
            logits = outputs[named[0]]
    else:
        logits = outputs[0]
    if not isinstance(logits, Tensor):
        raise ValueError(f"Predicting needs logits in one tensor, got {type(logits).__name__}.")
    return logits


def problem_type(model: nn.Module) -> str:
    """The problem type as the model's configuration says it.

    Raises:
        ValueError: There is no configuration, or it says nothing of that.
    """
    kind = known_problem_type(model)
    if kind is None:
        raise ValueError(
            f"{type(model).__name__} has no config that says how its outputs become probabilities: override "
            "BaalTransformersTrainer.probabilities."
        )
    return kind


def known_problem_type(model: nn.Module) -> str | None:
    """The problem type as the model's configuration says it; None where nothing does."""
    config: Any = getattr(model, "config", None)
    kind, labels = (getattr(config, name, None) for name in ("problem_type", "num_labels"))
    if kind is None and labels is not None:
        kind = "regression" if labels == 1 else "single_label_classification"
    return kind
