"""Iterators of labelled and unlabelled batches: what comes, in which order, and what is kept."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from baal_hf import ActiveLearningDataset
from baal_hf.semisupervised import AlternateIterator, SemiSupervisedIterator
from baal_hf.semisupervised.batches import EndlessBatches

M, LABELLED = 40, 11


def active(kind: str = "torch") -> ActiveLearningDataset:
    """Forty rows that hold their row id and a class, eleven of them labelled."""
    ids, classes = torch.arange(M), torch.arange(M) % 3
    if kind == "torch":
        dataset = ActiveLearningDataset(TensorDataset(ids, classes))
    else:
        dataset = ActiveLearningDataset(datasets.Dataset.from_dict({"x": ids.tolist(), "label": classes.tolist()}))
    dataset.label_randomly(LABELLED)
    return dataset


def ids_of(batch) -> list[int]:
    """The row ids in a batch."""
    return (batch["x"] if isinstance(batch, dict) else batch[0]).tolist()


def drawn(iterator) -> tuple[list[int], list[int]]:
    """Row ids of labelled and of unlabelled batches in an iteration, in order."""
    both: tuple[list[int], list[int]] = ([], [])
    for batch, is_labelled in iterator:
        both[not is_labelled].extend(ids_of(batch))
    return both


@pytest.mark.parametrize("kind", ["torch", "datasets"])
@pytest.mark.parametrize("p", [None, 0.3, 0.5, 0.8])
def test_every_labelled_row_once(kind, p):
    """An iteration has every labelled row once, unlabelled rows beside them, and says which is which."""
    dataset = active(kind)
    iterator = SemiSupervisedIterator(dataset, batch_size=2, p=p)
    for _ in range(3):
        labelled, unlabelled = drawn(iterator)
        assert sorted(labelled) == dataset.labelled_ids.tolist()
        assert set(unlabelled) <= set(dataset.pool_ids.tolist())
        assert unlabelled


@pytest.mark.parametrize("kind", ["torch", "datasets"])
def test_unlabelled_batches_show_no_label(kind):
    """Labelled batches have labels, unlabelled ones none."""
    for batch, is_labelled in SemiSupervisedIterator(active(kind), batch_size=4):
        assert (("label" in batch) if kind == "datasets" else (len(batch) == 2)) == is_labelled


@pytest.mark.parametrize("p", [0.1, 0.25, 0.3, 1 / 3, 0.5, 0.9])
def test_the_share_is_exact(p):
    """Of the first n batches ⌈p n⌉ are labelled, for each n."""
    iterator = SemiSupervisedIterator(active(), batch_size=2, num_steps=60, p=p)
    kinds = [is_labelled for _, is_labelled in iterator]
    assert len(kinds) == len(iterator) == 60
    for n in range(1, 61):
        assert sum(kinds[:n]) == math.ceil(round(p * n, 9))


def test_batches_alternate_by_default():
    """Without p, labelled and unlabelled batches take turns, labelled first."""
    assert [is_labelled for _, is_labelled in SemiSupervisedIterator(active(), 4)] == [True, False] * 3


def test_rows_are_reshuffled():
    """Each iteration has another order; the seed names the orders."""
    first, again, other = (SemiSupervisedIterator(active(), batch_size=2, seed=seed) for seed in (0, 0, 1))
    orders = [drawn(first)[0] for _ in range(3)]
    assert len(set(map(tuple, orders))) == 3
    assert [drawn(again)[0] for _ in range(3)] == orders
    assert drawn(other)[0] != orders[0]


def test_the_pool_is_gone_through_evenly():
    """Iterations go on through the pool where the last one stopped: after many, rows came equally often."""
    dataset = active()
    iterator = SemiSupervisedIterator(dataset, batch_size=3)
    counts = Counter(row_id for _ in range(29) for row_id in drawn(iterator)[1])
    assert set(counts) == set(dataset.pool_ids.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_an_iteration_that_was_left_early_is_none():
    """After an iteration that was left early, the next has every labelled row once."""
    dataset = active()
    iterator = SemiSupervisedIterator(dataset, batch_size=2)
    next(iter(iterator))
    assert sorted(drawn(iterator)[0]) == dataset.labelled_ids.tolist()


def test_num_steps_goes_on():
    """With fewer steps than batches, the next iteration goes on with the labelled rows that are left."""
    dataset = active()
    iterator = SemiSupervisedIterator(dataset, batch_size=1, num_steps=2, p=0.5)
    labelled = [row_id for _ in range(LABELLED) for row_id in drawn(iterator)[0]]
    assert sorted(labelled) == dataset.labelled_ids.tolist()


def test_the_global_random_state_is_left_alone():
    """Iterating draws nothing from torch's or NumPy's global generator."""
    torch.manual_seed(3)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    drawn(SemiSupervisedIterator(active(), batch_size=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


def test_no_batch_is_kept():
    """A batch that its reader lets go is gone, before the next one is made."""
    alive: list[int] = []
    references: list[weakref.ref] = []

    def collate(rows):
        alive.append(sum(reference() is not None for reference in references))
        batch = torch.tensor([row[0] for row in rows])
        references.append(weakref.ref(batch))
        return batch

    iterator = SemiSupervisedIterator(active(), batch_size=2, collate_fn=collate, num_steps=200)
    for drawn_batch in iterator:
        del drawn_batch
    assert len(references) == 200
    assert max(alive) <= 1  # the generator's frame holds the last one until it is asked again


def test_workers_read_the_same():
    """With worker processes the batches are those without."""
    alone, helped = (SemiSupervisedIterator(active(), batch_size=4, num_workers=n) for n in (0, 1))
    assert drawn(alone) == drawn(helped)


def test_any_batches_alternate():
    """AlternateIterator takes whatever can be read again, also loaders of different length."""
    labelled = DataLoader(list(range(5)), batch_size=1)
    iterator = AlternateIterator(labelled, [["a"], ["b"]], p=0.25)
    batches = [batch.item() if is_labelled else batch[0] for batch, is_labelled in iterator]
    assert batches == [0, "a", "b", "a", 1, "b", "a", "b", 2, "a", "b", "a", 3, "b", "a", "b", 4, "a", "b", "a"]


def test_unlabelled_batches_of_a_stream():
    """A loader over a stream has no length, and needs none where it is not asked for."""

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    iterator = AlternateIterator(["a"], DataLoader(Stream(), batch_size=1), num_steps=4, p=0.25)
    assert [batch[0] for batch, _ in iterator] == ["a", 0, 1, 2]
    with pytest.raises(TypeError, match="no length"):
        AlternateIterator(DataLoader(Stream(), batch_size=1), ["a"])


def test_a_tiny_share():
    """One labelled batch comes first, then as many others as its share asks for."""
    iterator = AlternateIterator(["a"], ["b"], num_steps=3, p=1e-9)
    assert [batch for batch, _ in iterator] == ["a", "b", "b"]
    assert len(AlternateIterator(["a"], ["b"], p=1e-9)) == 10**9


@pytest.mark.parametrize("p", [0, 1, -1, 1.5, math.nan])
def test_shares_outside_are_refused(p):
    """p is in (0, 1)."""
    with pytest.raises(ValueError, match="share of labelled batches"):
        SemiSupervisedIterator(active(), 2, p=p)


def test_what_cannot_alternate_is_refused():
    """Nothing labelled, nothing unlabelled, no batches, and what is read only once, are refused."""
    nothing = ActiveLearningDataset(TensorDataset(torch.arange(4), torch.arange(4)))
    with pytest.raises(ValueError, match="needs labelled rows"):
        SemiSupervisedIterator(nothing, 2)
    nothing.label_randomly(4)
    with pytest.raises(ValueError, match="the pool is empty"):
        SemiSupervisedIterator(nothing, 2)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        SemiSupervisedIterator(active(), 0)
    with pytest.raises(ValueError, match="num_steps >= 1"):
        SemiSupervisedIterator(active(), 2, num_steps=0)
    with pytest.raises(ValueError, match=r"no unlabelled batch in an iteration of 4, of which p=0\.9"):
        SemiSupervisedIterator(active(), batch_size=math.ceil(len(active()) / 4), p=0.9)
    with pytest.raises(ValueError, match="needs unlabelled batches"):
        AlternateIterator([1], [])
    with pytest.raises(TypeError, match="again and again"):
        AlternateIterator(iter([1]), [2])

    class Unsized:
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match="no length"):
        AlternateIterator(Unsized(), [2])
    with pytest.raises(ValueError, match="had none"):
        list(AlternateIterator(Unsized(), [2], num_steps=3))


# Endless batches


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (3, 10), (7, 7), (1, 2)])
def test_endless_batches_are_passes(rows, size):
    """All batches have one size, and of their sequence each pass has every row once, in orders that differ."""
    flat = list(itertools.chain.from_iterable(itertools.islice(EndlessBatches(rows, size, seed=0), 40 * rows)))
    assert len(flat) == 40 * rows * size
    passes = [flat[i : i + rows] for i in range(0, len(flat) - rows, rows)]
    assert all(sorted(one) == list(range(rows)) for one in passes)
    assert rows == 1 or len(set(map(tuple, passes))) > 1


def test_endless_batches_go_on():
    """Batches from number n on are those that come after n others."""
    whole = list(itertools.islice(EndlessBatches(10, 3, seed=4), 20))
    assert list(itertools.islice(EndlessBatches(10, 3, seed=4, first=7), 13)) == whole[7:]


def test_processes_share_a_pass():
    """Batches of two processes, put together, are those of one process of twice the size."""
    one = list(itertools.islice(EndlessBatches(11, 4, seed=0), 9))
    two = [list(itertools.islice(EndlessBatches(11, 2, 0, processes=2, process=i), 9)) for i in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one
    later = list(itertools.islice(EndlessBatches(11, 2, 0, first=4, processes=2, process=1), 5))
    assert later == two[1][4:]
