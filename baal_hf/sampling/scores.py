"""Scores in place of predictions: computed batch by batch on the device, so that a pool of any size fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from baal_hf.arrays import NumpyArray
from baal_hf.heuristics import AbstractHeuristic
from baal_hf.heuristics.base import ROW_ARRAYS, Ranks, checked_size, descending
from baal_hf.sampling.engine import Chunk, Value


def scoring(heuristic: AbstractHeuristic, arrays: Mapping[str, Any], rows: int | None = None) -> Value:
    """What an engine keeps of predictions: their scores.

    Args:
        heuristic: Scores rows one by one.
        arrays: The other arrays that it needs, by name; of those with an entry for each row of the dataset a batch is
            given its own.
        rows: Of the dataset, N; None where that is not known.

    Returns:
        (predictions [b, C, *S, T], positions of the rows [b]) -> scores [b].

    Raises:
        ValueError: The heuristic looks at all rows together, or an array has an entry for more or fewer rows.
    """
    if heuristic.rows_together:
        raise ValueError(
            f"{heuristic.name} looks at all rows together and cannot score them batch by batch. Rank predictions with "
            f"it, or for a large pool the best rows by a first score: Prefiltered({heuristic.name}(...))."
        )

    if rows is not None:
        check_row_arrays(heuristic.name, arrays, rows)

    def scores(predictions: Tensor, ids: NumpyArray) -> Tensor:
        here = {name: _entries(array, ids) if name in ROW_ARRAYS else array for name, array in arrays.items()}
        try:
            values = torch.as_tensor(heuristic.get_uncertainties(predictions, **here)).float()  # [b]
        except ValueError as error:
            raise ValueError(f"{error} Rows are counted in a batch of the rows {ids.tolist()}.") from error
        if values.ndim != 1:
            raise ValueError(
                f"{heuristic.name} gives a score to each position, {list(values.shape)}: choose a reduction, such as "
                "reduction='mean'."
            )
        if not values.isfinite().all():
            broken = ids[~values.isfinite().cpu().numpy()]
            raise ValueError(f"{heuristic.name} gave rows {broken[:10].tolist()} scores that are NaN or infinite.")
        return values

    return scores


def check_row_arrays(who: str, arrays: Mapping[str, Any], rows: int) -> None:
    """Raise unless arrays with an entry for each row have as many as there are rows.

    Raises:
        ValueError: One has more or fewer.
    """
    for name in ROW_ARRAYS:
        if arrays.get(name) is not None and len(arrays[name]) != rows:
            raise ValueError(f"{who} got {len(arrays[name])} {name} for {rows} rows.")


def _entries(array: Any, rows: NumpyArray) -> Any:
    return array[torch.from_numpy(rows)] if isinstance(array, Tensor) else np.asarray(array)[rows]


def top_rows(chunks: Iterable[Chunk], query_size: int, who: str, arrays: Mapping[str, Any]) -> tuple[Ranks, NumpyArray]:
    """The K highest scores of a stream of any length, ties in the order of the rows; only K are held.

    Args:
        chunks: Scores.
        query_size: K.
        who: Ranks the rows, by name.
        arrays: What it was given beside predictions.

    Returns:
        Positions, most informative first, int64 [K], and their scores [K].

    Raises:
        ValueError: There are fewer rows, or an array is not about them; or scores are not finite.
    """
    rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    seen = 0
    for chunk in chunks:
        seen += len(chunk.rows)
        rows = np.concatenate([rows, np.asarray(chunk.rows)])
        scores = np.concatenate([scores, chunk.values.numpy()])
        best = descending(scores, who)[:query_size]
        rows, scores = rows[best], scores[best]
    check_row_arrays(who, arrays, seen)
    checked_size(query_size, seen, who)
    return rows, scores


def check_ranking(heuristic: AbstractHeuristic, adaptive: bool) -> None:
    """Raise unless the K best rows can be told without the scores of all: by score, with no shuffling or sampling.

    Raises:
        ValueError: They cannot; or `adaptive` scores need more than predictions.
    """
    own = type(heuristic).reorder_indices
    unchanged: Callable[..., Any] = AbstractHeuristic.reorder_indices
    if own is not unchanged or heuristic.shuffle_prop or heuristic.rows_together:
        raise ValueError(f"{heuristic.name} does not rank by scores alone: give a dataset with a length, not adaptive.")
    if adaptive and tuple(heuristic.needs) != ("predictions",):
        raise ValueError(
            f"Adaptive scoring knows predictions only, {heuristic.name} needs {', '.join(heuristic.needs)}."
        )


def agreed(ranks: Ranks, scores: NumpyArray, accelerator: Accelerator) -> tuple[Ranks, NumpyArray]:
    """The main process's ranking on every process: a heuristic without a seed draws another on each."""
    both = [ranks, scores]
    if accelerator.num_processes > 1:
        broadcast_object_list(both)
    return both[0], both[1]
