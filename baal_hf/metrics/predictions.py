"""What metrics of probabilities take: a distribution over the classes for each row, and the row's true class."""

from typing import Any

import numpy as np
import numpy.typing as npt

Probs = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

TOLERANCE = 1e-2  # of a sum of rounded probabilities; the precision that they had before is not known here


def checked(predictions: Any, references: Any, who: str) -> tuple[Probs, Labels]:
    """Class probabilities [N, C] as float64 and true classes [N] as int64.

    Args:
        predictions: Class probabilities, [N, C]; an array, or a list of rows.
        references: True classes in 0 .. C-1, [N].
        who: Named in errors.

    Raises:
        ValueError: There are no rows; predictions are misshapen, not finite, negative, or do not sum to 1 over two or
            more classes; references are of another length, or no classes of the predictions.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{who} needs a reference a row, got {len(references)} for {len(predictions)} predictions.")
    if len(references) == 0:
        raise ValueError(f"{who} needs at least one prediction and its reference, got none.")
    try:
        probs = np.asarray(predictions, dtype=np.float64)  # [N, C]
    except ValueError as error:
        raise ValueError(f"{who} needs probabilities [N, C], got rows of different length.") from error
    if probs.ndim != 2:
        advice = "Average draws [N, C, T] first: probs.mean(-1)."
        raise ValueError(f"{who} needs probabilities [N, C], got {list(probs.shape)}. {advice}")
    _refuse_no_probabilities(probs, who)
    return probs, _classes(references, probs.shape[1], who)


def checked_bins(n_bins: Any, who: str) -> int:
    """`n_bins`, once it is a whole number from 1.

    Raises:
        ValueError: It is not.
    """
    if isinstance(n_bins, bool) or not isinstance(n_bins, int | np.integer) or n_bins < 1:
        raise ValueError(f"{who} needs a whole number from 1 as n_bins, got {n_bins!r}.")
    return int(n_bins)


def _refuse_no_probabilities(probs: Probs, who: str) -> None:
    C = probs.shape[1]
    if C < 2:
        raise ValueError(f"{who} needs 2 classes or more, got C = {C}. Pass a binary probability p as [1 - p, p].")
    advice = "Turn logits into probabilities first: baal_hf.arrays.probabilities."
    for wrong, what in (
        (~np.isfinite(probs).all(1), "finite probabilities"),
        ((probs < 0).any(1), "probabilities that are not negative"),
        (~(np.abs(probs.sum(1) - 1) <= TOLERANCE), f"probabilities that sum to 1 within {TOLERANCE:g}"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{who} needs {what}, got {probs[row].round(4).tolist()} in row {row}. {advice}")


def _classes(references: Any, C: int, who: str) -> Labels:
    numbers = np.asarray(references, dtype=np.float64)  # [N]
    if numbers.ndim != 1:
        raise ValueError(f"{who} needs one true class a row, [N], got {list(numbers.shape)}.")
    wrong = ~((numbers >= 0) & (numbers < C) & (numbers == np.floor(numbers)))  # also the NaN that a None becomes
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        advice = "Pass only rows that have a label, numbered as the columns of the predictions."
        raise ValueError(
            f"{who} needs whole numbers in 0 .. {C - 1}, got {numbers[row]} as references[{row}]. {advice}"
        )
    return numbers.astype(np.int64)
