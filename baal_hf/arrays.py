"""Axis letters, logits to probabilities, and the checks on arrays that users pass.

N rows at hand, B rows of a batch, C classes (axis 1), *S further positions (tokens; height, width), T posterior draws
(last axis). Predictions are [N, C, *S, T], a NumPy array or a torch tensor; what comes out is of the kind that came in.

Padding: rows of different length are padded to one width. A position (n, s) whose values are NaN for every class and
every draw is padding. The engine writes it so after it has checked that the real positions are finite, hence such NaN
cannot hide a model that diverged. Padding exists only where *S does, scores there are NaN, and a row that is nothing
but padding is refused, as is every other NaN or infinite value.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

NumpyArray = np.typing.NDArray[Any]
Array = TypeVar("Array", NumpyArray, Tensor)

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2}  # of a sum of rounded probabilities


def dtype_name(values: NumpyArray | Tensor) -> str:
    """The name that NumPy and torch share, such as 'float32'."""
    return str(values.dtype).removeprefix("torch.") if isinstance(values, Tensor) else values.dtype.name


def as_tensor(values: NumpyArray | Tensor, who: str) -> Tensor:
    """`values` as a tensor in at least float32, on its own device; shares memory where it can.

    Raises:
        TypeError: `values` is no NumPy array or torch tensor, or does not hold floating-point numbers.
    """
    if not isinstance(values, np.ndarray | Tensor):
        raise TypeError(f"{who} needs a NumPy array or a torch tensor, got {type(values).__name__}.")
    if dtype_name(values) not in TOLERANCES:
        raise TypeError(f"{who} needs {', '.join(TOLERANCES)}, got {dtype_name(values)}. Convert the array first.")
    if isinstance(values, np.ndarray):  # torch refuses negative strides and foreign byte order, warns of read-only
        values = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))
    return values if values.dtype == torch.float64 else values.float()


def as_numpy(values: NumpyArray | Tensor) -> NumpyArray:
    """`values` as a NumPy array on the host; bfloat16, which NumPy does not know, as float32."""
    if isinstance(values, np.ndarray):
        return values
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy())


def like(given: Array, scores: Tensor) -> Array:
    """`scores` as the kind of array that was `given`."""
    return scores if isinstance(given, Tensor) else as_numpy(scores)


def probabilities(logits: Array, problem_type: str) -> Array:
    """Turn a model's raw outputs into what the heuristics take; called once, where the problem type is known.

    Softmax over classes for single-label, sigmoid for multi-label classification, unchanged for regression.

    Args:
        logits: Raw outputs, [B, C, *S]; a trailing axis of draws may follow.
        problem_type: As in `model.config.problem_type` of transformers.

    Returns:
        Probabilities in [0, 1] (regression: any number), [B, C, *S], in at least float32.

    Raises:
        ValueError: The problem type is unknown, there is no class axis, or softmax has a single class to choose from.
        TypeError: `logits` is no array of floating-point numbers.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"probabilities needs a problem type out of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}.")
    values = as_tensor(logits, "probabilities")  # [B, C, *S]
    if values.ndim < 2:
        raise ValueError(f"probabilities needs logits [B, C, ...], got {list(values.shape)}. Put classes on axis 1.")
    if problem_type == "multi_label_classification":
        return like(logits, values.sigmoid())
    if problem_type == "regression":
        return like(logits, values)
    if values.shape[1] == 1:
        advice = "Softmax would say 1: stack a binary logit z as [0, z], or say regression."
        raise ValueError(f"single_label_classification needs 2 logits or more, got {list(values.shape)}. {advice}")
    return like(logits, values.softmax(1))


def checked_draws(predictions: NumpyArray | Tensor, who: str, draws: int = 1) -> Tensor:
    """`predictions` as a tensor [N, C, *S, T] of finite numbers, padding apart, with at least that many draws.

    Raises:
        ValueError: Axes or draws are missing, nothing is there, or real positions are not finite.
        TypeError: `predictions` is no array of floating-point numbers.
    """
    values = as_tensor(predictions, who)  # [N, C, *S, T]
    shape = list(values.shape)
    if len(shape) < 3:
        advice = "Predict with iterations > 1." if draws > 1 else "Give a single draw its axis: probs[..., None]."
        raise ValueError(f"{who} needs posterior draws [N, C, ..., T], got {shape}. {advice}")
    if 0 in shape:
        raise ValueError(f"{who} needs at least one row, class, position and draw, got {shape}. Is the pool empty?")
    if shape[-1] < draws:
        raise ValueError(f"{who} needs {draws} posterior draws or more, got {shape}. Predict with iterations > 1.")
    finite = values.isfinite().all(-1).all(1)  # [N, *S]
    if finite.all():
        return values
    padding = values.isnan().all(-1).all(1) if len(shape) > 3 else torch.zeros_like(finite)  # [N, *S]
    broken = ~(finite | padding).reshape(len(values), -1).all(1)  # [N]
    if broken.any():
        advice = "Check the model; padding is NaN in every class and draw of a position [N, C, S, T]."
        raise ValueError(f"{who} needs finite predictions, got NaN or infinity in {row_names(broken)}. {advice}")
    empty = padding.flatten(1).all(1)  # [N]
    if empty.any():
        raise ValueError(f"{who} needs a real position a row, got only padding in {row_names(empty)}. Drop those.")
    return values


def checked_probabilities(predictions: NumpyArray | Tensor, who: str, draws: int = 1) -> Tensor:
    """As `checked_draws`, for class probabilities: C > 1, none negative, sums over C of 1 within `TOLERANCES`.

    Raises:
        ValueError: As `checked_draws`, or these are no probabilities of two or more exclusive classes.
        TypeError: `predictions` is no array of floating-point numbers.
    """
    values = checked_draws(predictions, who, draws)  # [N, C, *S, T]
    if values.shape[1] == 1:
        advice = "Stack a binary probability p as [1 - p, p] on axis 1; for regression use Variance."
        raise ValueError(f"{who} needs 2 classes or more, got C = 1 in {list(values.shape)}. {advice}")
    advice = "Turn logits into probabilities first: baal_hf.arrays.probabilities; multi-label goes with Variance."
    negative = (values < 0).flatten(1).any(1)  # [N]
    if negative.any():
        raise ValueError(f"{who} needs probabilities, got negative values in {row_names(negative)}. {advice}")
    sums = values.sum(1)  # [N, *S, T]
    off = (sums - 1).abs() > TOLERANCES[dtype_name(predictions)]  # [N, *S, T]
    if off.any():
        rows = row_names(off.flatten(1).any(1))
        raise ValueError(f"{who} needs sums of 1 over classes, got {sums[off][0]:.4g} in {rows}. {advice}")
    return values


def row_names(bad: Tensor) -> str:
    """The first few rows where the mask [N] is true, for a message.

    >>> row_names(torch.tensor([False, True, True]))
    'rows 1, 2'
    """
    rows = [int(row) for row in bad.nonzero()]
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{more}"
