"""Axis letters, logits to probabilities, and the checks on arrays that users pass.

N rows at hand, B rows of a batch, C classes (axis 1), *S further positions (tokens; height, width), T posterior draws
(last axis). Predictions are [N, C, *S, T], a NumPy array or a torch tensor; what comes out is of the kind that came in.

Padding: rows of different length are padded to one width. A position (n, s) whose values are NaN for every class and
every draw is padding. The engine writes it so after it has checked that the real positions are finite, hence such NaN
cannot hide a model that diverged. Padding exists only where *S does, scores there are NaN, and a row that is nothing
but padding is refused, as is every other NaN or infinite value.
"""

import math
from collections.abc import Callable, Sequence
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
    _refuse_kind(values, who)
    values = _in_torch(values)
    return values if values.dtype == torch.float64 else values.float()


def _refuse_kind(values: Any, who: str) -> None:
    """Raise unless this is an array of floating-point numbers."""
    if not isinstance(values, np.ndarray | Tensor):
        raise TypeError(f"{who} needs a NumPy array or a torch tensor, got {type(values).__name__}.")
    if dtype_name(values) not in TOLERANCES:
        raise TypeError(f"{who} needs {', '.join(TOLERANCES)}, got {dtype_name(values)}. Convert the array first.")


def _in_torch(values: NumpyArray | Tensor) -> Tensor:
    """A tensor of the same numbers; shares memory where torch takes it."""
    if isinstance(values, Tensor):
        return values
    # torch refuses negative strides and foreign byte order, and warns of read-only memory
    return torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))


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


def checked_draws(predictions: NumpyArray | Tensor, who: str, draws: int = 1, first_row: int = 0) -> Tensor:
    """`predictions` as a tensor [N, C, *S, T] of finite numbers, padding apart, with at least that many draws.

    Messages count rows from `first_row`, for predictions that are a part of more.

    Raises:
        ValueError: Axes or draws are missing, nothing is there, or real positions are not finite.
        TypeError: `predictions` is no array of floating-point numbers.
    """
    values = _checked_axes(predictions, who, draws)  # [N, C, *S, T]
    if not values.sum().isfinite():  # NaN and infinity stay in a sum; one that overflows is looked at closely
        _refuse_infinite(values, who, first_row)
    return values


def checked_probabilities(predictions: NumpyArray | Tensor, who: str, draws: int = 1, first_row: int = 0) -> Tensor:
    """As `checked_draws`, for class probabilities: C > 1, none negative, sums over C of 1 within `TOLERANCES`.

    Raises:
        ValueError: As `checked_draws`, or these are no probabilities of two or more exclusive classes.
        TypeError: `predictions` is no array of floating-point numbers.
    """
    values = _checked_axes(predictions, who, draws)  # [N, C, *S, T]
    tolerance = TOLERANCES[dtype_name(predictions)]
    error = values.sum(1).sub_(1).abs_()  # [N, *S, T]
    if values.shape[1] > 1 and values.amin() >= 0 and error.amax() <= tolerance:  # NaN and infinity fail this, too
        return values
    _refuse_infinite(values, who, first_row)
    if values.shape[1] == 1:
        advice = "Stack a binary probability p as [1 - p, p] on axis 1; for regression use Variance."
        raise ValueError(f"{who} needs 2 classes or more, got C = 1 in {list(values.shape)}. {advice}")
    advice = "Turn logits into probabilities first: baal_hf.arrays.probabilities; multi-label goes with MultiLabelBALD."
    negative = (values < 0).flatten(1).any(1)  # [N]
    if negative.any():
        rows = row_names(negative, first_row)
        raise ValueError(f"{who} needs probabilities, got negative values in {rows}. {advice}")
    off = error > tolerance  # [N, *S, T], false at padding
    if off.any():
        bad = off.flatten(1).any(1)  # [N]
        came = float(values.sum(1)[off][0])  # of the first of them
        first = int(bad.nonzero()[0])
        bad[first] = False
        where = f"row {first_row + first}" + (f" and others in {row_names(bad, first_row)}" if bad.any() else "")
        limit = f"Rounding explains {tolerance:g} in {dtype_name(predictions)}."
        raise ValueError(f"{who} needs sums of 1 over classes, got {came:.5g} in {where}. {limit} {advice}")
    return values


def checked_sigmoids(predictions: NumpyArray | Tensor, who: str, draws: int = 1, first_row: int = 0) -> Tensor:
    """As `checked_draws`, for probabilities of labels that do not exclude each other: all in [0, 1].

    Raises:
        ValueError: As `checked_draws`, or some are negative or above 1.
        TypeError: `predictions` is no array of floating-point numbers.
    """
    values = _checked_axes(predictions, who, draws)  # [N, C, *S, T]
    if values.amin() >= 0 and values.amax() <= 1:  # NaN and infinity fail this, too
        return values
    _refuse_infinite(values, who, first_row)
    outside = ((values < 0) | (values > 1)).flatten(1).any(1)  # [N]
    if outside.any():
        rows = row_names(outside, first_row)
        advice = 'Turn logits into probabilities first: probabilities(logits, "multi_label_classification").'
        raise ValueError(f"{who} needs probabilities in [0, 1], got others in {rows}. {advice}")
    return values


def _checked_axes(predictions: NumpyArray | Tensor, who: str, draws: int) -> Tensor:
    """`predictions` as a tensor that has all axes, with something on each."""
    values = as_tensor(predictions, who)  # [N, C, *S, T]
    shape = list(values.shape)
    if len(shape) < 3:
        advice = "Predict with iterations > 1." if draws > 1 else "Give a single draw its axis: probs[..., None]."
        raise ValueError(f"{who} needs posterior draws [N, C, ..., T], got {shape}. {advice}")
    if 0 in shape:
        raise ValueError(f"{who} needs at least one row, class, position and draw, got {shape}. Is the pool empty?")
    if shape[-1] < draws:
        raise ValueError(f"{who} needs {draws} posterior draws or more, got {shape}. Predict with iterations > 1.")
    return values


def _refuse_infinite(values: Tensor, who: str, first_row: int) -> None:
    """Raise where values [N, C, *S, T] are not finite and no padding either, or a row is padding only."""
    finite = values.isfinite().all(-1).all(1)  # [N, *S]
    padding = values.isnan().all(-1).all(1) if values.ndim > 3 else torch.zeros_like(finite)  # [N, *S]
    broken = ~(finite | padding).reshape(len(values), -1).all(1)  # [N]
    if broken.any():
        advice = "Check the model; padding is NaN in every class and draw of a position [N, C, S, T]."
        rows = row_names(broken, first_row)
        raise ValueError(f"{who} needs finite predictions, got NaN or infinity in {rows}. {advice}")
    empty = padding.reshape(len(values), -1).all(1)  # [N]
    if empty.any():
        rows = row_names(empty, first_row)
        raise ValueError(f"{who} needs a real position a row, got only padding in {rows}. Drop those.")


@torch.no_grad()
def scored(
    score: Callable[..., Tensor],
    predictions: Array,
    who: str,
    draws: int = 1,
    check: Callable[[NumpyArray | Tensor, str, int, int], Tensor] = checked_probabilities,
    beside: Sequence[NumpyArray | Tensor] = (),
) -> Array:
    """Check and score predictions chunk after chunk of rows: what is computed on the way stays in the cache.

    Args:
        score: Checked predictions [n, C, *S, T], and the same rows of what is `beside` them, to scores [n, *S].
        predictions: [N, C, *S, T].
        who: Named in errors.
        draws: The least number of draws.
        check: Refuses bad predictions; `checked_draws`, `checked_probabilities` or `checked_sigmoids`.
        beside: Checked arrays with an entry for each row, that `score` needs, too.

    Returns:
        Scores [N, *S], of the kind and on the device of `predictions`, without gradients; the same whatever the chunks.
    """
    if not isinstance(predictions, np.ndarray | Tensor) or predictions.ndim < 3 or 0 in predictions.shape:
        check(predictions, who, draws, 0)  # raises, and says why
    on_host = isinstance(predictions, np.ndarray) or predictions.device.type == "cpu"
    numbers = 2**19 if on_host else 2**26  # of a chunk, measured
    rows = max(1, numbers // math.prod(predictions.shape[1:]))
    parts = []
    for start in range(0, len(predictions), rows):
        here = slice(start, start + rows)
        values = check(predictions[here], who, draws, start)  # [n, C, *S, T]
        parts.append(score(values, *(as_tensor(one[here], who).to(values) for one in beside)))  # [n, *S]
    return like(predictions, torch.cat(parts))


def checked_mask(mask: NumpyArray | Tensor, shape: Sequence[int], who: str) -> Tensor:
    """`mask` as a boolean tensor of that shape [N, *S].

    Raises:
        ValueError: The mask is of another shape, or hides a whole row.
        TypeError: The mask is no boolean array.
    """
    if not isinstance(mask, np.ndarray | Tensor):
        raise TypeError(f"{who} needs a mask as NumPy array or torch tensor, got {type(mask).__name__}.")
    if dtype_name(mask) != "bool":
        raise TypeError(f"{who} needs a boolean mask, got {dtype_name(mask)}. Compare it: mask == 1.")
    if list(mask.shape) != list(shape):
        raise ValueError(f"{who} needs a mask {list(shape)}, one entry a position, got {list(mask.shape)}.")
    seen = _in_torch(mask)  # [N, *S]
    hidden = ~seen.reshape(len(seen), -1).any(1)  # [N]
    if hidden.any():
        raise ValueError(f"{who} needs a position of each row, the mask hides all of {row_names(hidden)}. Drop those.")
    return seen


def masked(predictions: Array, mask: NumpyArray | Tensor) -> Array:
    """A copy of `predictions` in which positions outside `mask` are padding, which no heuristic looks at.

    Args:
        predictions: [N, C, *S, T].
        mask: Positions that count, bool [N, *S]: real tokens, first sub-words, the foreground.

    Returns:
        [N, C, *S, T], NaN outside the mask; of the kind, precision and device of `predictions`.

    Raises:
        ValueError: The mask is of another shape, or hides a whole row; or there are no positions.
        TypeError: The mask is no boolean array, or `predictions` is no array of floating-point numbers.
    """
    _refuse_kind(predictions, "masked")
    if predictions.ndim < 4:
        raise ValueError(f"masked needs predictions [N, C, *S, T] with positions, got {list(predictions.shape)}.")
    values = _in_torch(predictions)  # [N, C, *S, T]
    seen = checked_mask(mask, values.shape[:1] + values.shape[2:-1], "masked").to(values.device)  # [N, *S]
    hidden = ~seen.unsqueeze(1).unsqueeze(-1)  # [N, 1, *S, 1]
    result = values.masked_fill(hidden, torch.nan)
    return result if isinstance(predictions, Tensor) else np.asarray(result.numpy())


def row_names(bad: Tensor, first_row: int = 0) -> str:
    """The first few rows where the mask [N] is true, counted from `first_row`, for a message.

    >>> row_names(torch.tensor([False, True, True]))
    'rows 1, 2'
    """
    rows = [first_row + int(row) for row in bad.nonzero()]
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{more}"
