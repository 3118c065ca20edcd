"""CoreSet: farthest first from labelled rows and picks, and the distances that it goes by."""

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import CoreSet as TheirCoreSet

from baal_hf.heuristics.coreset import CoreSet, coreset
from baal_hf.heuristics.distances import distances_to
from tests.laws import few

module = import_module("baal_hf.heuristics.coreset")  # the package gives that name to the function

Cases = tuple[np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    """Features [N, d] and [L, d], L from 0: on a grid, where distances are often equal, or anywhere."""
    N, L, d = draw(st.integers(1, 12)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = rng.integers(0, 3, (N + L, d)) if draw(st.booleans()) else rng.standard_normal((N + L, d))
    points = points * draw(st.sampled_from([1.0, 1024.0])) + draw(st.sampled_from([0, 64]))
    return points[:N], points[N:]


def between(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distances [n, m], by their definition."""
    return np.sqrt(((rows[:, None] - others[None]) ** 2).sum(-1)).astype(np.float32)


def plain(features: np.ndarray, labelled: np.ndarray, query_size: int) -> list[int]:
    """K-center greedy, every distance anew for every pick."""
    picks = [] if len(labelled) else [int(between(features, features.mean(0, keepdims=True))[:, 0].argmin())]
    while len(picks) < query_size:
        nearest = between(features, np.concatenate([labelled, features[picks]])).min(1)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    return picks


@few
@given(case=cases(), share=st.floats(0, 1))
def test_reference(case: Cases, share: float) -> None:
    """The picks are those of plain k-center greedy, also among equal distances and where nothing is labelled."""
    query_size = max(1, round(share * len(case[0])))
    picks, scores = coreset(*case, query_size)
    assert picks.tolist() == plain(*case, query_size)
    assert picks[0] == scores.argmax()


@few
@given(case=cases(), seed=st.integers(0, 99))
def test_scores(case: Cases, seed: int) -> None:
    """Scores are distances to the nearest labelled row, or nearness to the mean, and permute with the rows."""
    features, labelled = case
    scores = coreset(*case, 1)[1]
    if len(labelled):
        np.testing.assert_allclose(scores, between(features, labelled).min(1), rtol=1e-6)
    else:
        off_centre = between(features, features.mean(0, keepdims=True))[:, 0]
        np.testing.assert_allclose(scores, off_centre.max() - off_centre, rtol=1e-5, atol=1e-3)
    order = np.random.default_rng(seed).permutation(len(features))
    np.testing.assert_array_equal(coreset(features[order], labelled, 1)[1], scores[order])


def test_order_of_rows() -> None:
    """Permuting rows leaves the picks the same rows where no distances are equal."""
    rng = np.random.default_rng(0)
    features, labelled, order = rng.standard_normal((40, 3)), rng.standard_normal((5, 3)), rng.permutation(40)
    np.testing.assert_array_equal(order[coreset(features[order], labelled, 9)[0]], coreset(features, labelled, 9)[0])


def test_scikit_activeml() -> None:
    """Picks and scores are scikit-activeml's."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 4)), np.full(50, np.nan)
    y[:6] = 0
    theirs, utilities = TheirCoreSet(random_state=0).query(X, y, batch_size=10, return_utilities=True)
    picks, scores = coreset(X[6:], X[:6], 10)
    assert (picks + 6).tolist() == list(theirs)
    np.testing.assert_allclose(scores, utilities[0, 6:], rtol=1e-6)


def test_duplicates() -> None:
    """Rows equal to a labelled or picked one score 0 exactly and come last, in their order."""
    rng = np.random.default_rng(0)
    points = 100 + rng.standard_normal((3, 50)).astype(np.float32)
    picks, scores = coreset(points[[0, 1, 0, 1, 2]], points[[2]], 5)
    assert scores[4] == 0
    assert set(picks[:2].tolist()) == {0, 1}
    assert picks[2:].tolist() == [2, 3, 4]


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled rows one at a time give what all of them give at once."""
    rng = np.random.default_rng(0)
    features, labelled = rng.standard_normal((40, 3)), rng.standard_normal((17, 3))
    whole = coreset(features, labelled, 9)
    monkeypatch.setattr(module, "DISTANCES_AT_ONCE", 1)
    for one, other in zip(coreset(features, labelled, 9), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("L", [0, 4])
def test_kinds_of_arrays(dtype: torch.dtype, L: int) -> None:
    """Every precision is computed from the numbers as they are; tensors give tensors, NumPy gives NumPy."""
    generator = torch.Generator().manual_seed(0)
    features, labelled = (torch.randn(n, 8, generator=generator).to(dtype) for n in (30, L))
    picks, scores = coreset(features, labelled, 10)
    assert (picks.dtype, scores.dtype) == (torch.int64, torch.float32)
    theirs, distances = coreset(features.double().numpy(), labelled.double().numpy(), 10)
    assert isinstance(theirs, np.ndarray)
    np.testing.assert_array_equal(picks.numpy(), theirs)
    np.testing.assert_array_equal(scores.numpy(), distances)


def test_heuristic() -> None:
    """The class needs no predictions, and gives the function's picks and scores."""
    rng = np.random.default_rng(0)
    features, labelled = rng.standard_normal((20, 3)), rng.standard_normal((4, 3))
    ranks, scores = CoreSet(6).get_ranks(features=features, labelled_features=labelled)
    for one, other in zip((ranks, scores), coreset(features, labelled, 6), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(CoreSet(50).get_uncertainties(features=features, labelled_features=labelled), scores)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_size": 5}, ValueError, r"CoreSet needs a query_size in 1 \.\. 4, the number of rows, got 5"),
        ({"query_size": 0}, ValueError, r"query_size in 1 \.\. 4"),
        ({"features": np.zeros(4)}, ValueError, r"CoreSet needs features \[N, d\], got \[4\]"),
        ({"features": np.zeros((0, 2))}, ValueError, r"features of 1 row or more, got \[0, 2\]"),
        ({"labelled_features": np.zeros((3, 3))}, ValueError, r"labelled_features as wide .* d = 2, got \[3, 3\]"),
        ({"labelled_features": np.zeros(0)}, ValueError, r"CoreSet needs labelled_features \[N, d\], got \[0\]"),
        ({"labelled_features": np.array([[0, np.inf]])}, ValueError, "finite labelled_features, .* in row 0"),
        ({"features": np.zeros((4, 2), np.int64)}, TypeError, r"CoreSet \(features\) needs .* got int64"),
        ({"labelled_features": None}, TypeError, r"CoreSet \(labelled_features\) needs .* got NoneType"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """What CoreSet cannot use is refused with what it needs, what came and where."""
    given = {"features": np.zeros((4, 2)), "labelled_features": np.zeros((3, 2)), "query_size": 1}
    with pytest.raises(error, match=message):
        coreset(**{**given, **change})


@few
@given(case=cases(), offset=st.sampled_from([0, 1000]), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_distances(case: Cases, offset: int, dtype: torch.dtype) -> None:
    """Distances are those of their definition, also far from the origin, and 0 exactly between equal rows."""
    rows, points = (torch.from_numpy(part + offset).to(dtype) for part in (np.concatenate(case), case[0]))
    distances = distances_to(points)(rows)
    np.testing.assert_allclose(distances, between(rows.double().numpy(), points.double().numpy()), rtol=2e-5)
    assert not distances[: len(points)].diagonal().any()


def test_distances_of_equal_rows() -> None:
    """Equal rows are at distance 0, and as far as one another from others, however products round."""
    points = torch.randn(40, 301, generator=torch.Generator().manual_seed(0)).repeat(3, 1) + 10
    distances = distances_to(points)(points[:40])  # [40, 120]
    assert not distances.view(40, 3, 40).diagonal(dim1=0, dim2=2).any()
    assert torch.equal(distances[:, :40], distances[:, 40:80])
    assert torch.equal(distances[:, :40], distances[:, :40].T)
