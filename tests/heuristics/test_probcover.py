"""ProbCover: greedy cover by balls against plain loops over the whole graph, and the radius that keeps balls pure."""

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import ProbCover as TheirProbCover

from baal_hf.heuristics import clusters as clusters_module
from baal_hf.heuristics.clusters import clustered
from baal_hf.heuristics.probcover import ProbCover, probcover, pure_radius
from tests.laws import few

module = import_module("baal_hf.heuristics.probcover")  # the package gives that name to the function

Cases = tuple[np.ndarray, np.ndarray]


def rng(seed: int = 0) -> np.random.Generator:
    """A generator with that seed."""
    return np.random.default_rng(seed)


def centred(features: torch.Tensor) -> torch.Tensor:
    """As `pure_radius` hands features to `clustered`."""
    return features.double() - features.double().mean(0)


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    """Features [N, d] and [L, d], L from 0: on a grid, where many distances are the radius itself, or anywhere."""
    N, L, d = draw(st.integers(1, 15)), draw(st.integers(0, 3)), draw(st.integers(1, 3))
    generator = rng(draw(st.integers(0, 2**32 - 1)))
    points = generator.integers(0, 5, (N + L, d)) if draw(st.booleans()) else 2 * generator.standard_normal((N + L, d))
    return points[:N].astype(float), points[N:].astype(float)


def between(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distances [n, m], by their definition."""
    return np.sqrt(((rows[:, None] - others[None]) ** 2).sum(-1)).astype(np.float32)


def plain(features: np.ndarray, labelled: np.ndarray, query_size: int, delta: float) -> list[int]:
    """Count anew for every pick; once all is covered, farthest first."""
    picks: list[int] = []
    around = between(features, features) <= np.float32(delta)  # [N, N]
    while len(picks) < query_size:
        centres = np.concatenate([labelled, features[picks]])
        nearest = between(features, centres).min(1, initial=np.inf)
        gains = (around & ~(nearest <= np.float32(delta))).sum(1)
        worth = gains.astype(float) if gains.any() else nearest
        worth[picks] = -1
        picks.append(int(worth.argmax()))
    return picks


@few
@given(case=cases(), share=st.floats(0, 1), delta=st.sampled_from([0.0, 0.1, 1.0, 2.0, 100.0]))
def test_reference(case: Cases, share: float, delta: float) -> None:
    """The picks are those of plain greedy cover, also at the radius itself and once all is covered."""
    query_size = max(1, round(share * len(case[0])))
    picks, scores = probcover(*case, query_size, delta)
    assert picks.tolist() == plain(*case, query_size, delta)
    assert picks[0] == scores.argmax()


@few
@given(case=cases(), delta=st.sampled_from([0.0, 1.0, 2.0]), seed=st.integers(0, 99))
def test_scores(case: Cases, delta: float, seed: int) -> None:
    """Scores count the rows that each would cover, or are distances where all are, and permute with the rows."""
    features, labelled = case
    nearest = between(features, labelled).min(1, initial=np.inf)
    counts = ((between(features, features) <= delta) & (nearest > delta)).sum(1)
    scores = probcover(features, labelled, 1, delta)[1]
    np.testing.assert_allclose(scores, counts if counts.any() else nearest, rtol=1e-6)
    order = rng(seed).permutation(len(features))
    np.testing.assert_array_equal(probcover(features[order], labelled, 1, delta)[1], scores[order])


def test_large_pool() -> None:
    """At a size where many rows are covered by many, the picks are still those of plain greedy cover."""
    features, labelled = rng().standard_normal((400, 4)), rng(1).standard_normal((20, 4))
    assert probcover(features, labelled, 60, 1.0)[0].tolist() == plain(features, labelled, 60, 1.0)


def test_scikit_activeml() -> None:
    """Scores are scikit-activeml's counts."""
    X, y = rng().standard_normal((80, 2)), np.full(80, np.nan)
    y[:4] = 0
    with pytest.warns(UserWarning, match="maximum purity"):  # a single radius is not judged
        _, utilities = TheirProbCover(deltas=[0.5], random_state=0).query(X, y, return_utilities=True)
    _, scores = probcover(X[4:], X[:4], 1, 0.5)
    np.testing.assert_array_equal(scores, utilities[0, 4:])


def test_duplicates() -> None:
    """Equal rows cover one another at radius 0: the most frequent one is first, and none is picked twice."""
    picks, scores = probcover(np.array([[0.1], [0.2], [0.2], [0.3], [0.3], [0.3]]), np.array([[0.2]]), 6, 0.0)
    assert scores.tolist() == [1, 0, 0, 3, 3, 3]
    assert picks.tolist() == [3, 0, 1, 2, 4, 5]


# The radius


@few
@given(case=cases(), classes=st.integers(2, 4), purity=st.sampled_from([0.5, 0.8, 0.95, 1.0]), seed=st.integers(0, 9))
def test_radius_is_the_largest(case: Cases, classes: int, purity: float, seed: int) -> None:
    """At the radius that share of balls is pure, and at the next larger one it is not."""
    features = case[0]
    clusters = clustered(centred(torch.from_numpy(features)), classes, rng(seed))[0].numpy()
    delta = pure_radius(features, classes, rng(seed), purity)

    def share(radius: float) -> float:
        around = between(features, features) <= np.float32(radius)
        return (~(around & (clusters[:, None] != clusters)).any(1)).mean()

    if len(np.unique(features, axis=0)) == 1:
        assert delta == 0
    else:
        assert share(delta) >= purity > share(float(np.nextafter(np.float32(delta), np.float32(np.inf))))


def test_radius_of_groups() -> None:
    """Between groups 10 apart the radius ends just below the gap."""
    features = np.concatenate([rng().uniform(0, 1, (20, 1)), rng(1).uniform(11, 12, (20, 1))])
    gap = features[20:].min() - features[:20].max()
    assert pure_radius(features, 2, rng(), purity=1.0) == pytest.approx(gap)
    assert gap < pure_radius(features, 2, rng(), purity=0.9) < 12


@few
@given(case=cases(), k=st.integers(2, 5), seed=st.integers(0, 9))
def test_pseudo_classes(case: Cases, k: int, seed: int) -> None:
    """Clusters of a pool are at most k, and each row is in the one whose mean is nearest."""
    features = torch.from_numpy(case[0])
    clusters = clustered(centred(features), k, rng(seed))[0]
    names = clusters.unique()
    assert len(names) == min(k, len(features.unique(dim=0)))
    means = torch.stack([features[clusters == name].mean(0) for name in names])
    distances = torch.cdist(features, means)
    own = distances[torch.arange(len(features)), torch.searchsorted(names, clusters)]
    assert (own <= distances.amin(1) + 1e-5).all()


# The rest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("L", [0, 4])
def test_kinds_of_arrays(dtype: torch.dtype, L: int) -> None:
    """Every precision is computed from the numbers as they are; tensors give tensors, NumPy gives NumPy."""
    generator = torch.Generator().manual_seed(0)
    features, labelled = (torch.randn(n, 4, generator=generator).to(dtype) for n in (30, L))
    picks, scores = probcover(features, labelled, 10, 1.5)
    assert (picks.dtype, scores.dtype) == (torch.int64, torch.float64)
    theirs, counts = probcover(features.double().numpy(), labelled.double().numpy(), 10, 1.5)
    assert isinstance(theirs, np.ndarray)
    np.testing.assert_array_equal(picks.numpy(), theirs)
    np.testing.assert_array_equal(scores.numpy(), counts)
    assert pure_radius(features, 3, rng()) == pure_radius(features.double().numpy(), 3, rng())


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances one row at a time give what all of them give at once."""
    features, labelled = rng().standard_normal((60, 3)), rng(1).standard_normal((5, 3))
    whole = (pure_radius(features, 3, rng()), *probcover(features, labelled, 9, 0.7))
    for part in (module, clusters_module):
        monkeypatch.setattr(part, "DISTANCES_AT_ONCE", 1)
    for one, other in zip(
        (pure_radius(features, 3, rng()), *probcover(features, labelled, 9, 0.7)), whole, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_heuristic() -> None:
    """The class takes a radius, or estimates it from pool and labelled rows with its own seed."""
    features, labelled = rng().standard_normal((40, 3)), rng(1).standard_normal((5, 3))
    arrays = {"features": features, "labelled_features": labelled}
    ranks, scores = ProbCover(6, delta=0.7).get_ranks(**arrays)
    for one, other in zip((ranks, scores), probcover(features, labelled, 6, 0.7), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(ProbCover(99, delta=0.7).get_uncertainties(**arrays), scores)
    delta = pure_radius(np.concatenate([features, labelled]), 4, rng(3))
    ranks = ProbCover(6, classes=4, seed=3)(**arrays)
    np.testing.assert_array_equal(ranks, probcover(features, labelled, 6, delta)[0])
    np.testing.assert_array_equal(ranks, ProbCover(6, classes=4, seed=3)(**arrays))
    with pytest.raises(ValueError, match="ProbCover needs delta, or classes to estimate it, got neither"):
        ProbCover(6)(**arrays)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_size": 5}, ValueError, r"ProbCover needs a query_size in 1 \.\. 4, the number of rows, got 5"),
        ({"query_size": 0}, ValueError, r"query_size in 1 \.\. 4"),
        ({"delta": -1.0}, ValueError, "ProbCover needs a finite delta >= 0, got -1"),
        ({"delta": np.nan}, ValueError, "finite delta >= 0, got nan"),
        ({"delta": np.inf}, ValueError, "finite delta >= 0, got inf"),
        ({"features": np.zeros(4)}, ValueError, r"ProbCover needs features \[N, d\], got \[4\]"),
        ({"labelled_features": np.zeros((3, 3))}, ValueError, r"labelled_features as wide .* d = 2, got \[3, 3\]"),
        ({"features": np.array([[0.0], [1], [np.nan], [np.inf]])}, ValueError, "got NaN or infinity in rows 2, 3"),
        ({"features": np.zeros((4, 2), int)}, TypeError, r"ProbCover \(features\) needs .* got int64"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """What ProbCover cannot use is refused with what it needs, what came and where."""
    given = {"features": np.zeros((4, 2)), "labelled_features": np.zeros((3, 2)), "query_size": 1, "delta": 1.0}
    with pytest.raises(error, match=message):
        probcover(**{**given, **change})


@pytest.mark.parametrize(
    ("classes", "purity", "message"), [(1, 0.95, "classes >= 2, got 1"), (2, 0.0, "purity in"), (2, 1.1, "purity in")]
)
def test_bad_input_of_radius(classes: int, purity: float, message: str) -> None:
    """A radius needs two pseudo-classes and a share of rows."""
    with pytest.raises(ValueError, match=f"ProbCover needs .*{message}"):
        pure_radius(np.zeros((4, 2)), classes, rng(), purity)
