"""Accuracy, as a module of `evaluate` that needs numpy only."""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

_DESCRIPTION = "Share of the rows whose predicted class is the reference class."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): Predicted classes, [N].
    references (`list` of `int`): True classes, [N].

Returns:
    accuracy (`float`): In [0, 1]; higher is better.

Examples:
    >>> accuracy.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'accuracy': 0.75}
"""


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """accuracy = 1/N Σ_i [prediction_i = reference_i]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            # Not int64: that would cut a probability passed for a class down to 0, and say nothing.
            features=datasets.Features({column: datasets.Value("float64") for column in ("predictions", "references")}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        if len(references) == 0:
            raise ValueError("accuracy needs at least one prediction and its reference, got none.")
        predictions = _classes("predictions", predictions)  # [N]
        references = _classes("references", references)  # [N]
        return {"accuracy": float(np.mean(predictions == references))}


def _classes(column: str, values: Any) -> npt.NDArray[np.int64]:
    numbers = np.asarray(values, dtype=np.float64)  # [N]
    # Fractions, infinity, and the NaN that a None becomes.
    wrong = np.flatnonzero((numbers != np.floor(numbers)) | np.isinf(numbers))
    if wrong.size:
        raise ValueError(
            f"accuracy needs whole numbers, one class a row, got {numbers[wrong[0]]} as {column}[{wrong[0]}]. "
            "Pass the argmax of the probabilities over the classes, and only rows that have a label."
        )
    return numbers.astype(np.int64)
