"""Labelled and unlabelled batches in one sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.semisupervised.batches import PassBatches


class DrawnBatch(NamedTuple):
    """A batch, and which of the two it is."""

    batch: Any
    is_labelled: bool


class AlternateIterator:
    """Batches of two kinds in one sequence, of which a share p is labelled.

    The two are spread evenly, labelled first: of the first n batches, ⌈p n⌉ are labelled. (Baal tosses a coin for each
    batch, or alternates where `p` is None.) Each of the two is read again from its start when it ends, and goes on
    from one iteration to the next where it was; no batch is kept.

    Args:
        labelled: Batches that can be read again and again, such as a `DataLoader`.
        unlabelled: The same.
        num_steps: Batches of an iteration; None means as many as show all labelled batches once.
        p: Share of batches that are labelled, in (0, 1); None means one of two.

    Attributes:
        num_steps: As above, known.

    Raises:
        ValueError: One of the two is empty, `num_steps` < 1, or `p` is not in (0, 1) or so large that an iteration has
            no unlabelled batch.
        TypeError: One of the two can be read only once, or `labelled` has no length and `num_steps` is None.
    """

    def __init__(
        self, labelled: Iterable[Any], unlabelled: Iterable[Any], num_steps: int | None = None, p: float | None = None
    ) -> None:
        share = checked_share(p)
        for name, batches in (("labelled", labelled), ("unlabelled", unlabelled)):
            if isinstance(batches, Iterator):
                raise TypeError(f"{type(self).__name__} reads {name} batches again and again: pass a DataLoader.")
            if _length(batches) == 0:
                raise ValueError(f"{type(self).__name__} needs {name} batches, there are none.")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"{type(self).__name__} needs num_steps >= 1, got {num_steps}.")
        self._labelled = labelled
        self._share = share
        self._whole = num_steps is None
        if num_steps is None:
            length = _length(labelled)
            if length is None:
                raise TypeError(f"{type(self).__name__} needs num_steps where labelled batches have no length.")
            num_steps = math.floor(length / share)
        if math.ceil(num_steps * share) == num_steps:
            raise ValueError(
                f"{type(self).__name__} has no unlabelled batch in an iteration of {num_steps}, of which "
                f"p={float(share):g} are labelled: take a smaller p, smaller batches or more steps."
            )
        self.num_steps = num_steps
        self._labelled_batches = _endless(labelled)
        self._unlabelled_batches = _endless(unlabelled)

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[DrawnBatch]:
        if self._whole:  # from the start, also where the last iteration was left early
            self._labelled_batches = _endless(self._labelled)
        for step in range(self.num_steps):
            if math.ceil((step + 1) * self._share) > math.ceil(step * self._share):
                yield DrawnBatch(next(self._labelled_batches), True)
            else:
                yield DrawnBatch(next(self._unlabelled_batches), False)


class SemiSupervisedIterator(AlternateIterator):
    """Batches of the labelled rows and of the pool in one sequence, both reshuffled in each pass.

    What is labelled is read once: make another iterator after labelling. With `num_steps=None` an iteration has every
    labelled row once, and goes on through the pool where the last one stopped.

    Args:
        al_dataset: Whose labelled rows and pool to read.
        batch_size: Rows of a batch, of either kind; the last one of a pass may have fewer.
        num_steps: Batches of an iteration; None means as many as show every labelled row once.
        p: Share of batches that are labelled, in (0, 1); None means one of two.
        seed: Names the orders of the rows.
        collate_fn: Makes a batch of rows; None means torch's own.
        num_workers: Processes that read rows.

    Raises:
        ValueError: Nothing is labelled, or the pool is empty; another argument does not fit.

    Example:
        for batch, is_labelled in SemiSupervisedIterator(dataset, batch_size=16, p=0.25):
            loss = supervised(batch) if is_labelled else unsupervised(batch)
    """

    def __init__(
        self,
        al_dataset: ActiveLearningDataset,
        batch_size: int,
        num_steps: int | None = None,
        p: float | None = None,
        *,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"SemiSupervisedIterator needs batch_size >= 1, got {batch_size}.")
        if len(al_dataset) == 0:
            raise ValueError("SemiSupervisedIterator needs labelled rows: call dataset.label_randomly(n) first.")
        if al_dataset.n_unlabelled == 0:
            raise ValueError("SemiSupervisedIterator needs unlabelled rows, and the pool is empty.")

        def loader(rows: Any, seed: int) -> DataLoader[Any]:
            return DataLoader(
                rows,
                batch_sampler=PassBatches(len(rows), batch_size, seed),
                collate_fn=collate_fn,
                num_workers=num_workers,
                generator=torch.Generator().manual_seed(seed),  # else workers' seeds come from the global one
            )

        super().__init__(loader(al_dataset.labelled, seed), loader(al_dataset.pool, seed), num_steps, p)


def checked_share(p: float | None) -> Fraction:
    """`p` as a fraction, so that a share of .3 of ten is three.

    Raises:
        ValueError: It is not in (0, 1).
    """
    if p is not None and not 0 < p < 1:
        raise ValueError(f"p is the share of labelled batches, in (0, 1), got {p}.")
    return Fraction(1, 2) if p is None else Fraction(str(float(p)))


def _length(batches: Iterable[Any]) -> int | None:
    """How many there are, if that is known; it is not of a DataLoader over a stream."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, again and again."""
    while True:
        number = 0
        for batch in batches:
            number += 1
            yield batch
            del batch  # else it lives until the next one is made
        if not number:
            raise ValueError("AlternateIterator needs batches, and an iteration over them had none.")
