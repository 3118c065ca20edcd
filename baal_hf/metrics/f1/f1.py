"""F1, as a module of `evaluate` that needs numpy only."""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

_DESCRIPTION = "Harmonic mean of precision and recall, of one class or averaged over the classes."

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): Predicted classes, [N].
    references (`list` of `int`): True classes, [N].
    average (`str`): `binary` (the default) scores the class `pos_label` alone; `macro` is the mean over the classes
        seen in predictions or references; `weighted` is that mean weighted by how often a class is the reference;
        `micro` counts over all classes, which for one class a row is the accuracy.
    pos_label (`int`): The class that `binary` scores, 1 unless given.

Returns:
    f1 (`float`): In [0, 1]; higher is better; 0 for a class that is never predicted rightly.

Examples:
    >>> f1.compute(predictions=[0, 0, 1, 1, 0], references=[0, 1, 0, 1, 0])
    {'f1': 0.5}
"""

AVERAGES = ("binary", "macro", "micro", "weighted")


class F1(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """F1 = 2 TP / (2 TP + FP + FN) of a class    (van Rijsbergen, 1979)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            # Not int64: that would cut a probability passed for a class down to 0, and say nothing.
            features=datasets.Features({column: datasets.Value("float64") for column in ("predictions", "references")}),
        )

    def _compute(
        self, predictions: Any, references: Any, average: str = "binary", pos_label: int = 1
    ) -> dict[str, float]:
        if len(references) == 0:
            raise ValueError("f1 needs at least one prediction and its reference, got none.")
        if average not in AVERAGES:
            raise ValueError(f"f1 knows average={', '.join(AVERAGES)}, got {average!r}.")
        predictions = _classes("predictions", predictions)  # [N]
        references = _classes("references", references)  # [N]
        classes, codes = np.unique(np.concatenate([predictions, references]), return_inverse=True)  # [C], [2·N]
        predicted, true = np.split(codes.ravel(), 2)  # [N], [N]
        if average == "binary":
            return {"f1": _of_one_class(predicted, true, classes, pos_label)}
        scores = f1_by_class(predicted, true, len(classes))  # [C]
        if average == "macro":
            return {"f1": float(scores.mean())}
        if average == "weighted":
            return {"f1": float(np.average(scores, weights=np.bincount(true, minlength=len(classes))))}
        # Over all classes together, each wrong row is one false positive and one false negative.
        return {"f1": float(np.mean(predicted == true))}


def f1_by_class(predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64], C: int) -> npt.NDArray[np.float64]:
    """F1 of each class 0..C-1 that is predicted or true somewhere, in [0, 1], [C]."""
    hits = np.bincount(true[predicted == true], minlength=C)  # [C]
    return 2 * hits / (np.bincount(predicted, minlength=C) + np.bincount(true, minlength=C))  # [C]


def _of_one_class(
    predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64], classes: npt.NDArray[np.int64], pos_label: int
) -> float:
    if len(classes) > 2:
        raise ValueError(
            f"f1 with average='binary' needs two classes, got {len(classes)} ({', '.join(map(str, classes))}). "
            "Pass average='macro', 'micro' or 'weighted'."
        )
    if pos_label not in classes:
        if len(classes) == 2:
            raise ValueError(
                f"f1 with average='binary' scores the class pos_label={pos_label}, but the classes are "
                f"{classes[0]} and {classes[1]}. Pass one of them as pos_label."
            )
        return 0.0  # neither predicted nor true anywhere
    return float(f1_by_class(predicted, true, len(classes))[classes == pos_label][0])


def _classes(column: str, values: Any) -> npt.NDArray[np.int64]:
    numbers = np.asarray(values, dtype=np.float64)  # [N]
    # Fractions, infinity, and the NaN that a None becomes.
    wrong = np.flatnonzero((numbers != np.floor(numbers)) | np.isinf(numbers))
    if wrong.size:
        raise ValueError(
            f"f1 needs whole numbers, one class a row, got {numbers[wrong[0]]} as {column}[{wrong[0]}]. "
            "Pass the argmax of the probabilities over the classes, and only rows that have a label."
        )
    return numbers.astype(np.int64)
