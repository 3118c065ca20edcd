"""Queries in which classes are in balance, or no two rows are near-duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baal_hf.heuristics import (
    BALD,
    EPIG,
    BatchBALD,
    ClassBalanced,
    Entropy,
    PowerBALD,
    Prefiltered,
    Random,
    WithoutDuplicates,
    bald,
)


def probs_of(first: list[float]) -> np.ndarray:
    """Two classes; each row's probability of class 0 under one draw, [N, 2, 1]."""
    return np.stack([first, 1 - np.array(first)], axis=1)[..., None]


def random_probs(N: int, C: int = 3, T: int = 5, seed: int = 0) -> np.ndarray:
    """Probabilities [N, C, T]."""
    return np.random.default_rng(seed).dirichlet(np.ones(C), (N, T)).transpose(0, 2, 1)


def test_balance() -> None:
    """Picks come from the class with fewest rows, labelled ones counted, each time the row that ranks highest."""
    probs = probs_of([0.51, 0.6, 0.7, 0.45, 0.3, 0.2])  # rows 0, 1, 2 are of class 0, from unsure to sure; 3, 4, 5 of 1
    wrapped = ClassBalanced(Entropy())
    assert wrapped(probs, 4, labelled_labels=[]).tolist() == [0, 3, 1, 4]
    assert wrapped(probs, 4, labelled_labels=np.array([0, 0, 0])).tolist() == [3, 4, 5, 0]
    assert wrapped(probs, 6, labelled_labels=torch.tensor([1])).tolist() == [0, 3, 1, 2, 4, 5]


def test_balance_of_many() -> None:
    """Whatever the ranking, a query has each class equally often while there are rows of it; scores are the base's."""
    probs = random_probs(300)
    ranks, scores = ClassBalanced(PowerBALD(), query_size=30).get_ranks(probs, labelled_labels=[0, 1, 2])
    assert np.bincount(probs.mean(-1).argmax(1)[ranks]).tolist() == [10, 10, 10]
    np.testing.assert_allclose(scores, bald(probs))


def test_balance_over_a_short_ranking() -> None:
    """A base that would rank only a few rows by itself is asked for all of them."""
    probs = random_probs(30)
    assert len(ClassBalanced(PowerBALD(5))(probs, 9, labelled_labels=[])) == 9


@pytest.mark.parametrize("labels", [[3], [-1], [0.5], ["a"], [[0, 1, 1], [1, 0, 0]]])
def test_unknown_labels(labels: list) -> None:
    """Labels of labelled rows that are no classes of the predictions are refused."""
    with pytest.raises(ValueError, match=r"ClassBalanced needs labels of labelled rows \[L\] in 0 \.\. 2, got"):
        ClassBalanced(BALD())(random_probs(9), 3, labelled_labels=labels)


def test_distinct() -> None:
    """Rows alike one that was picked are passed over; the ranking decides which of them is picked."""
    features = np.array([[1.0, 0.0], [2.0, 0.01], [0.0, 1.0], [-1.0, 0.0], [0.0, 3.0]])
    probs = probs_of([0.8, 0.6, 0.7, 0.9, 0.55])  # by entropy: 4, 1, 2, 0, 3
    ranks, scores = WithoutDuplicates(Entropy(), 3).get_ranks(probs, features=features)
    assert ranks.tolist() == [4, 1, 3]
    np.testing.assert_allclose(scores, Entropy().get_uncertainties(probs))
    assert WithoutDuplicates(Entropy(), 5)(probs, features=features).tolist() == [4, 1, 3, 2, 0], "the rest fills up"
    assert WithoutDuplicates(Entropy(), 3, threshold=1.0)(probs, features=features).tolist() == [4, 1, 0]


@pytest.mark.parametrize("base", [BALD(), BatchBALD(), PowerBALD(), Random()])
def test_copies(base) -> None:
    """Over every kind of base, K distinct rows are found among many copies."""
    rng = np.random.default_rng(0)
    distinct = random_probs(12)
    copies = np.repeat(np.arange(12), 10)
    features = rng.standard_normal((12, 8)).astype(np.float32)[copies]
    ranks = WithoutDuplicates(base, 12)(distinct[copies], features=features)
    assert sorted(copies[ranks]) == list(range(12))


def test_over_a_prefilter() -> None:
    """No more rows are asked of a base than it ranks; where those have too few distinct ones, others fill the query."""
    probs, features = random_probs(40), np.eye(40)
    base = Prefiltered(BatchBALD(), candidates=15)
    assert WithoutDuplicates(base, 10)(probs, features=features).tolist() == base(probs, 10).tolist()
    alike = np.ones((40, 2))
    ranks = WithoutDuplicates(base, 10)(probs, features=alike)
    assert len(set(ranks.tolist())) == 10 and set(ranks.tolist()) <= set(base(probs, 15).tolist())
    with pytest.raises(ValueError, match=r"query_size in 1 \.\. 15"):
        WithoutDuplicates(base, 16)(probs, features=features)


@pytest.mark.parametrize("features", [np.full((8, 2), np.nan), np.ones(8), np.ones((8, 2, 2))])
def test_bad_features(features: np.ndarray) -> None:
    """Features that are not finite or not [N, d] are refused, where no duplicate would be found."""
    with pytest.raises(ValueError, match=r"WithoutDuplicates needs (finite )?features"):
        WithoutDuplicates(BALD(), 3)(random_probs(8), features=features)


def test_needs() -> None:
    """A wrapper needs what its base needs and its own arrays, and gives each its part."""
    probs, targets = random_probs(8), random_probs(4, seed=1)
    wrapped = WithoutDuplicates(EPIG(), 2)
    assert wrapped.needs == ["predictions", "target_predictions", "features"]
    ranks = wrapped(probs, features=np.eye(8), target_predictions=targets)
    assert ranks.tolist() == EPIG()(probs, 2, target_predictions=targets).tolist()
    with pytest.raises(ValueError, match=r"WithoutDuplicates needs .* got 7 features for 8 rows of predictions"):
        wrapped(probs, features=np.eye(7), target_predictions=targets)


def test_bad_arguments() -> None:
    """What is no heuristic, a base that picks together, a threshold out of range and too large a query are refused."""
    with pytest.raises(TypeError, match="WithoutDuplicates needs a heuristic to rank by, got str"):
        WithoutDuplicates("bald")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ClassBalanced needs a heuristic that ranks all rows, got BatchBALD"):
        ClassBalanced(BatchBALD())
    with pytest.raises(ValueError, match=r"WithoutDuplicates needs a threshold in \(-1, 1\], got 2"):
        WithoutDuplicates(BALD(), threshold=2)
    with pytest.raises(
        ValueError, match=r"WithoutDuplicates needs a query_size in 1 \.\. 4, the number of rows, got 5"
    ):
        WithoutDuplicates(BALD(), 5)(random_probs(4), features=np.eye(4))
    with pytest.raises(ValueError, match="ClassBalanced picks rows together: say how many, query_size="):
        ClassBalanced(BALD())(random_probs(4), labelled_labels=[])
