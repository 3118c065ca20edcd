"""Labels that rows already have: one each, or those of several annotators."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baal_hf.arrays import as_numpy, row_names

Labels: TypeAlias = npt.ArrayLike | Tensor


def checked_labels(labels: Labels, who: str, rows: int, classes: int, device: torch.device) -> Tensor:
    """`labels` [N] or [N, A] as int64 [N, A] in 0 .. C-1 on that device, -1 where an annotator gave none.

    Raises:
        ValueError: They have another shape, or are neither classes nor -1.
        TypeError: They are no whole numbers.
    """
    try:
        values = as_numpy(labels) if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"{who} needs labels [N] or [N, A], got rows of different length. Fill up with -1.") from error
    if values.ndim not in (1, 2) or len(values) != rows or 0 in values.shape:
        raise ValueError(f"{who} needs labels [N] or [N, A] for N = {rows} rows, got {list(values.shape)}.")
    values = values.reshape(rows, -1)  # [N, A]
    if not np.issubdtype(values.dtype, np.integer):
        missing = torch.tensor([any(one is None or one != one for one in row) for row in values])  # [N], None or NaN
        where = f" with none in {row_names(missing)}" if missing.any() else ""
        advice = "Convert them: labels.astype(int); where an annotator gave none, write -1."
        raise TypeError(f"{who} needs whole numbers as labels, got {values.dtype}{where}. {advice}")
    wrong = (values < -1) | (values >= classes)  # [N, A]
    if wrong.any():
        rows_wrong, came = row_names(torch.from_numpy(wrong.any(1))), values[wrong][0]
        advice = f"The predictions have C = {classes} classes; is the label's number another's?"
        raise ValueError(f"{who} needs labels in 0 .. {classes - 1}, got {came} in {rows_wrong}. {advice}")
    return torch.from_numpy(values.astype(np.int64)).to(device)
