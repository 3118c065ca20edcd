"""Fewer draws where they cannot matter: rows that will not be among the K best are given no further draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from baal_hf.arrays import NumpyArray
from baal_hf.heuristics import AbstractHeuristic
from baal_hf.heuristics.base import Ranks, checked_size, descending
from baal_hf.sampling.engine import Sampler, check_length
from baal_hf.sampling.joining import joined

Score = Callable[[Tensor], Tensor]
"""Predictions [n, C, *S, t] -> scores [n]."""

_FIRST_LOOK, _NEXT_LOOK = 4, 1.4  # draws before the first look at the scores, and how many times more before the next
_HELD = 8192  # rows from which on those that are out already are let go during the first look
_RIVALS = 256  # half of the rows at most that each row is compared with
_NUMBERS_AT_ONCE = 2**22


def adaptive_top_rows(
    sampler: Sampler, dataset: Any, heuristic: AbstractHeuristic, iterations: int, query_size: int, error_rate: float
) -> tuple[Ranks, NumpyArray]:
    """The K best rows under T draws, of which the other rows are given only some.

    After 4 draws, and again each time there are 1.4 times as many, rows are dropped that `can_be_best` says are out.
    Rows that stay have all T draws in the end: their scores are exactly those of a run that gives them to every row.

    Args:
        sampler: Predicts.
        dataset: Has a length and rows.
        heuristic: Scores rows one by one, from predictions alone.
        iterations: Number of draws, T.
        query_size: Number of rows, K.
        error_rate: As for `can_be_best`; of one test, not of the whole. How many of the K best are lost depends on the
            pool: `scripts/bench_scoring.py adaptive` counts them.

    Returns:
        Positions, most informative first, int64 [K], and their scores [K].

    Raises:
        ValueError: K is not in 1 .. N, or the error rate not in (0, 1/2).
        TypeError: The dataset has no length.
    """
    check_length(dataset, "Adaptive scoring")
    checked_size(query_size, len(dataset), heuristic.name)
    if not 0 < error_rate < 0.5:
        raise ValueError(f"Adaptive scoring needs an error_rate between 0 and 1/2, got {error_rate}.")

    def score(predictions: Tensor) -> Tensor:
        return torch.as_tensor(heuristic.get_uncertainties(predictions))

    rows = np.arange(len(dataset))  # [n]
    predictions: Tensor | None = None  # [n, C, *S, t]
    begin = 0
    for end in _looks(iterations):
        parts, ids, most = [], [], max(_HELD, 4 * query_size)
        for chunk in sampler.chunks(_select(dataset, rows), range(begin, end)):
            here = slice(chunk.rows.start, chunk.rows.stop)
            parts.append(chunk.values if predictions is None else _more_draws(predictions[here], chunk.values))
            ids.append(rows[here])
            if sum(map(len, ids)) > most and end < iterations:
                parts, ids = _kept(parts, ids, score, query_size, iterations, error_rate)
                most = max(most, 2 * len(ids[0]))  # so that all looks take no longer than a few at all rows
        if end < iterations:
            parts, ids = _kept(parts, ids, score, query_size, iterations, error_rate)
        rows, predictions = np.concatenate(ids), joined(parts)
        begin = end
    assert predictions is not None
    scores = score(predictions).numpy()  # [n]
    best = descending(scores, heuristic.name)[:query_size]
    return rows[best], scores[best]


def can_be_best(predictions: Tensor, score: Score, query_size: int, iterations: int, error_rate: float) -> NumpyArray:
    """Which rows may be among the K best once all T draws are there, by the t draws that are.

    All rows share the draws, so their differences are surer than their scores. A row is out when K of the 2K rows that
    are ahead now (for a large K, half of some of them) are above it, by a one-sided t-test of the paired differences of
    jackknife pseudo-values
    P_ij = t s_i - (t - 1) s_i(without draw j)    (Tukey, 1958),
    whose mean over the t draws, a sample of T, has the variance σ²/t (1 - t/T).

    Args:
        predictions: [n, C, *S, t], t > 2.
        score: Of predictions.
        query_size: K.
        iterations: T.
        error_rate: Probability that one such test calls a row out that is not, where the differences are normal.

    Returns:
        bool [n], true for at least K rows.
    """
    t = predictions.shape[-1]
    if len(predictions) <= query_size or t < 3:
        return np.ones(len(predictions), dtype=bool)
    scores = score(predictions).double()  # [n]
    others = [score(predictions[..., [i for i in range(t) if i != j]]).double() for j in range(t)]
    pseudo = t * scores[:, None] - (t - 1) * torch.stack(others, 1)  # [n, t]
    best = torch.from_numpy(descending(scores, "Adaptive scoring"))  # [n]
    rivals = best[: 2 * query_size : -(-query_size // _RIVALS)]
    ahead = pseudo[rivals]  # [2K, t]
    enough = len(rivals) * query_size / len(best[: 2 * query_size])  # K of 2K
    bound = student_quantile(1 - error_rate, t - 1) * ((1 - t / iterations) / t) ** 0.5
    size = max(1, _NUMBERS_AT_ONCE // ahead.numel())
    out = []
    for part in torch.split(pseudo, size):
        lead = ahead - part[:, None]  # [m, 2K, t]
        out.append((lead.mean(-1) > bound * lead.std(-1)).sum(1) >= enough)
    may: NumpyArray = ~torch.cat(out).numpy()  # [n]
    may[best[:query_size].numpy()] = True
    return may


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t (Abramowitz & Stegun, 1964, 26.7.5).

    For a probability up to .998 and 3 degrees of freedom or more to within 2 %; beyond, it is too small.

    >>> round(student_quantile(0.95, 10), 2)
    1.81
    """
    z: float = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + float(sum(term / freedom**power for power, term in enumerate(terms, 1)))


def _kept(
    parts: list[Tensor], ids: list[NumpyArray], score: Score, query_size: int, iterations: int, error_rate: float
) -> tuple[list[Tensor], list[NumpyArray]]:
    """The rows that may still be among the best."""
    predictions, rows = joined(parts), np.concatenate(ids)
    may = can_be_best(predictions, score, query_size, iterations, error_rate)
    return [predictions[torch.from_numpy(may)]], [rows[may]]


def _more_draws(before: Tensor, values: Tensor) -> Tensor:
    """Predictions with those of further draws behind them, [n, C, *S, t]; the wider *S of the two, padded with NaN."""
    shape = [max(sizes) for sizes in zip(before.shape[1:-1], values.shape[1:-1], strict=True)]
    wide = before.new_full((len(before), *shape, before.shape[-1] + values.shape[-1]), torch.nan)
    for part, end in ((before, before.shape[-1]), (values, wide.shape[-1])):
        own = (slice(None), *map(slice, part.shape[1:-1]), slice(end - part.shape[-1], end))
        wide[own] = part
    return wide


def _looks(iterations: int) -> Iterator[int]:
    """Numbers of draws after which to look."""
    draws = _FIRST_LOOK
    while draws < iterations:
        yield draws
        draws = max(draws + 1, round(draws * _NEXT_LOOK))
    yield iterations


def _select(dataset: Any, rows: NumpyArray) -> Any:
    if len(rows) == len(dataset):
        return dataset
    if isinstance(dataset, list):
        return [dataset[row] for row in rows.tolist()]
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows.tolist())
