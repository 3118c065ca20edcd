"""`ActiveLearningLoop`: one step of the line from pool to labels."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.heuristics import ARRAYS, AbstractHeuristic, get_heuristic, whole
from baal_hf.rows import row_ids_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """Rows to label.

    Attributes:
        row_ids: Most informative first, int64 [K].
        scores: Of these rows, [K].
        pool_scores: Of all rows that were ranked, in the order of the pool, [N].
    """

    row_ids: np.ndarray
    scores: np.ndarray
    pool_scores: np.ndarray


class ActiveLearningLoop:
    """Predict the pool, rank it, label the first of the ranking.

    Args:
        dataset: What is labelled.
        get_probabilities: pool -> predictions [N, C, *S, T], or a generator of batches of them; for example
            `trainer.predict_on_dataset_generator`. Called for what the heuristic needs.
        heuristic: Ranks the predictions; a name for `get_heuristic`, or the heuristic. Random by default.
        query_size: Rows to label in a step, K.
        max_sample: Predict only that many random rows of the pool; -1 means all.
        uncertainty_folder: Write the scores of each step there, as `step=0003.npz` with `row_ids` and `scores`.
        get_features: rows -> representations [N, d], for heuristics that need them: `trainer.predict_features`.
        targets: Rows that are to be predicted well, without labels, for heuristics that ask for them (EPIG).
        seed: Of the random rows.
        **kwargs: Go to `get_probabilities`.

    Raises:
        ValueError: `query_size` < 1, `max_sample` neither -1 nor >= 1, no heuristic of that name, or one that needs
            what the loop does not have.
    """

    def __init__(
        self,
        dataset: ActiveLearningDataset,
        get_probabilities: Callable[..., Any],
        heuristic: AbstractHeuristic | str | None = None,
        query_size: int = 1,
        max_sample: int = -1,
        uncertainty_folder: str | Path | None = None,
        *,
        get_features: Callable[[Any], np.ndarray] | None = None,
        targets: Any = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if operator.index(query_size) < 1:
            raise ValueError(f"ActiveLearningLoop needs query_size >= 1, got {query_size}.")
        if max_sample != -1 and max_sample < 1:
            raise ValueError(f"ActiveLearningLoop needs max_sample >= 1, or -1 for the whole pool, got {max_sample}.")
        self.dataset = dataset
        self.get_probabilities = get_probabilities
        self.heuristic = heuristic if isinstance(heuristic, AbstractHeuristic) else get_heuristic(heuristic or "random")
        _check_needs(self.heuristic, get_features, targets)
        self.get_features = get_features
        self.targets = targets
        self.query_size = query_size
        self.max_sample = max_sample
        self.uncertainty_folder = Path(uncertainty_folder) if uncertainty_folder is not None else None
        self.kwargs = kwargs
        self._rng = np.random.default_rng(seed)

    def step(self, pool: Any = None) -> bool:
        """Label the next rows with the dataset's own labels.

        Args:
            pool: The part of `dataset.pool` to choose from: what `select`, `filter` or `shuffle` made of it, or a
                `torch.utils.data.Subset` of it. By default the whole, or `max_sample` random rows of it.

        Returns:
            Whether rows were labelled; False once the pool is empty.

        Raises:
            TypeError: The rows of `pool` cannot be found in the dataset.
        """
        if pool is None:
            pool = self._sample()
        if len(pool) == 0:
            return False
        label(self.dataset, self.next_query(pool), self.heuristic.name)
        return True

    def query(self, pool: Any) -> np.ndarray:
        """Row ids to label next, most informative first: int64, [min(K, len(pool))].

        Raises:
            ValueError: The heuristic was given predictions for another number of rows.
        """
        return self.next_query(pool).row_ids

    def next_query(self, pool: Any = None) -> Query:
        """The rows to label next, with their scores.

        Args:
            pool: As for `step`; it has at least one row.

        Raises:
            ValueError: The heuristic was given predictions for another number of rows.
        """
        pool = self._sample() if pool is None else pool
        row_ids = row_ids_of(pool)
        arrays = self._arrays(pool)
        ranks, scores = self.heuristic.get_ranks(
            arrays.pop("predictions", pool), min(self.query_size, len(row_ids)), **arrays
        )
        if len(scores) != len(row_ids):
            asked = "get_probabilities" if "predictions" in self.heuristic.needs else "get_features"
            raise ValueError(f"{asked} returned {len(scores)} rows for a pool of {len(row_ids)}.")
        if self.query_size > len(row_ids):
            which = "are left" if len(row_ids) == self.dataset.n_unlabelled else "were passed to choose from"
            rows = f"{len(row_ids)} rows {which}"
            logger.warning("query_size is %d but only %s: all are labelled.", self.query_size, rows)
        if self.uncertainty_folder is not None:
            _write(self.uncertainty_folder / f"step={self.dataset.current_al_step + 1:04d}.npz", row_ids, scores)
        return Query(row_ids[ranks], scores[ranks], scores)

    def _arrays(self, pool: Any) -> dict[str, Any]:
        """What the heuristic needs to know of the pool, of the labelled rows and of the targets, by name."""
        labelled = self.dataset.labelled
        sources: dict[str, Callable[[], Any]] = {
            "predictions": lambda: self._predictions(pool),
            "features": lambda: self._features(pool),
            "labelled_predictions": lambda: self._predictions(labelled),
            "labelled_features": lambda: self._features(labelled),
            "labelled_labels": lambda: np.asarray(self.dataset.labels),
            "target_predictions": lambda: self._predictions(self.targets),
        }
        arrays: dict[str, Any] = {}
        for name in sorted(self.heuristic.needs, key=list(sources).index):
            array = name.removeprefix("labelled_")
            if array != name and array in arrays and not len(labelled):  # none of as many numbers as the pool's have
                arrays[array] = whole(arrays[array], self.heuristic.name)
                arrays[name] = arrays[array][:0]
            else:
                arrays[name] = sources[name]() if name == "predictions" else whole(sources[name](), self.heuristic.name)
        return arrays

    def _predictions(self, rows: Any) -> Any:
        return self.get_probabilities(rows, **self.kwargs)

    def _features(self, rows: Any) -> Any:
        return self.get_features(rows)  # type: ignore[misc] # checked when the loop was made

    def _sample(self) -> Any:
        pool = self.dataset.pool
        if self.max_sample == -1 or self.max_sample >= len(pool):
            return pool
        positions = np.sort(self._rng.choice(len(pool), size=self.max_sample, replace=False))
        return pool.select(positions) if hasattr(pool, "select") else Subset(pool, positions.tolist())


def label(dataset: ActiveLearningDataset, query: Query, heuristic: str) -> None:
    """Label the rows of a query with the dataset's own labels; where processes share a ledger file, the first does."""
    shared = dataset.ledger.path is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if not shared or torch.distributed.get_rank() == 0:
        dataset.annotate(query.row_ids, heuristic=heuristic, scores=query.scores)
    if shared:
        torch.distributed.barrier()
        dataset.refresh()


def _check_needs(heuristic: AbstractHeuristic, get_features: Any, targets: Any) -> None:
    for name in heuristic.needs:
        if name not in ARRAYS:
            raise ValueError(f"{heuristic.name} needs {name!r}, which is none of {', '.join(ARRAYS)}.")
        if name.endswith("features") and get_features is None:
            raise ValueError(f"{heuristic.name} needs {ARRAYS[name]}: pass get_features=trainer.predict_features.")
        if name == "target_predictions" and targets is None:
            raise ValueError(f"{heuristic.name} needs {ARRAYS[name]}: pass targets=rows.")
        if name == "labels":
            raise ValueError(f"{heuristic.name} scores rows that have a label, and a pool has none: call it yourself.")


def _write(path: Path, row_ids: np.ndarray, scores: np.ndarray) -> None:
    """Put the file there whole: other processes write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    np.savez(part, row_ids=row_ids, scores=scores)
    part.replace(path)
