"""K-means and TypiClust against Lloyd's algorithm elsewhere and plain loops over the same clusters."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import TypiClust as TheirTypiClust
from sklearn.cluster import KMeans as TheirKMeans

from baal_hf.heuristics import clustering
from baal_hf.heuristics import clusters as clusters_module
from baal_hf.heuristics.clustering import KMeans, TypiClust, kmeans, typicality, typiclust
from baal_hf.heuristics.clusters import clustered
from baal_hf.heuristics.uncertainty import Margin
from tests.laws import few


def rng(seed: int = 0) -> np.random.Generator:
    """A generator with that seed."""
    return np.random.default_rng(seed)


@st.composite
def points(draw: st.DrawFn) -> np.ndarray:
    """Features [N, d], on a grid, where many are equal, or anywhere."""
    N, d = draw(st.integers(1, 15)), draw(st.integers(1, 3))
    generator = rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.integers(0, 3, (N, d)) if draw(st.booleans()) else generator.standard_normal((N, d))
    return draw(st.sampled_from([1e-3, 1.0, 1e3])) * values + draw(st.sampled_from([0, 10]))


def blobs(sizes: list[int], spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 2] in groups of these sizes that no clustering could mistake, and the group of each row [N]."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    angle = 2 * np.pi * group / len(sizes)
    return 100 * np.stack([np.cos(angle), np.sin(angle)], 1) + spread * rng().standard_normal((len(group), 2)), group


def centred(features: np.ndarray) -> torch.Tensor:
    """As the functions hand features to `clustered`."""
    values = torch.from_numpy(features)
    return values - values.mean(0)


# Clusters


@few
@given(values=points(), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_lloyd_ends(values: np.ndarray, k: int, seed: int) -> None:
    """Without tolerance, each row ends in a cluster to whose mean it is nearest, at the distance that is said."""
    rows = centred(values)
    clusters, squares = clustered(rows, k, rng(seed), tolerance=0)
    means = torch.stack([rows[clusters == name].mean(0) for name in range(int(clusters.max()) + 1)])
    distances = ((rows[:, None] - means) ** 2).sum(-1)  # [N, k]
    slack = 1e-9 * float(rows.abs().max()) ** 2
    np.testing.assert_allclose(squares, distances[torch.arange(len(rows)), clusters], atol=slack)
    assert (squares <= distances.amin(1) + slack).all()


def test_lloyd() -> None:
    """Each row of a pool is in the cluster in which scikit-learn has it, from the same seeds."""
    rows = torch.from_numpy(rng().standard_normal((600, 5)))
    rows -= rows.mean(0)
    seeds = clusters_module._seeds(rows, 12, torch.ones(600).double(), rng(1)).numpy()
    theirs = TheirKMeans(12, init=seeds, n_init=1, tol=0, algorithm="lloyd").fit(rows.numpy())
    clusters, squares = clustered(rows, 12, rng(1), tolerance=0)
    np.testing.assert_array_equal(clusters, theirs.labels_)
    assert squares.sum() == pytest.approx(theirs.inertia_)


@few
@given(values=points(), k=st.integers(1, 8), seed=st.integers(0, 99))
def test_clusters_are_not_empty(values: np.ndarray, k: int, seed: int) -> None:
    """There are k clusters, or one for each different row if those are fewer; equal rows are in one."""
    clusters, _ = clustered(centred(values), k, rng(seed))
    different, which = np.unique(values, axis=0, return_inverse=True)
    assert len(np.unique(clusters)) == min(k, len(different))
    assert all(len(clusters[which == one].unique()) == 1 for one in range(len(different)))


def test_seeds() -> None:
    """Seeds fall on each row as often as its weight, and then its squared distance, says."""
    rows = torch.tensor([[0.0], [1.0], [3.0]]).double()
    generator, weights = rng(), torch.tensor([0.5, 0.5, 0.0]).double()
    firsts = [clusters_module._seeds(rows, 1, weights, generator).item() for _ in range(2000)]
    assert {0.0, 1.0} == set(firsts)
    assert abs(np.mean(firsts) - 0.5) < 0.05
    pairs = [clusters_module._seeds(rows, 2, torch.ones(3).double(), generator)[:, 0].tolist() for _ in range(3000)]
    seconds = [second for first, second in pairs if first == 0]
    assert np.mean(seconds) == pytest.approx((1 * 1 + 9 * 3) / 10, abs=0.1)
    weights = torch.tensor([1.0, 9.0, 1.0]).double()
    pairs = [clusters_module._seeds(rows, 2, weights, generator)[:, 0].tolist() for _ in range(6000)]
    seconds = [second for first, second in pairs if first == 0]
    assert np.mean(seconds) == pytest.approx((9 * 1 + 9 * 3) / 18, abs=0.15)


def test_empty_cluster_starts_anew() -> None:
    """A cluster that lost its rows, or has rows without weight only, moves to the row that costs most."""
    rows, clusters = torch.tensor([[0.0], [4.0], [1.0], [4.0], [9.0]]).double(), torch.tensor([0, 0, 0, 0, 3])
    weights = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0]).double()
    squares = torch.tensor([1.0, 9.0, 0.0, 9.0, 25.0]).double()
    centres = clusters_module._centres(rows, clusters, squares, weights, 4)
    assert centres[:, 0].tolist() == [
        2.0,
        4.0,
        0.0,
        0.0,
    ]  # the mean, then the costly ones, no point twice while any cost


def test_no_end_with_an_empty_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little the sum falls, the search goes on while a centre has no rows."""
    rows = torch.tensor([[-1.0], [1.0], [-1.5], [1.5]]).double()
    monkeypatch.setattr(clusters_module, "_seeds", lambda *_: torch.tensor([[0.0], [99.0]]).double())
    clusters, _ = clustered(rows, 2, rng(), tolerance=np.inf)
    assert len(clusters.unique()) == 2


# KMeans


def plain_kmeans(features: np.ndarray, query_size: int, seed: int, weights: np.ndarray) -> list[int]:
    """The row nearest to the centre of each cluster, the heaviest cluster's first."""
    found = clustered(centred(features), query_size, rng(seed), torch.from_numpy(weights))
    clusters, squares = (array.numpy() for array in found)
    rows = sorted(range(len(features)), key=lambda row: (-weights[clusters == clusters[row]].sum(), clusters[row]))
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: int(clusters[row]))]
    nearest = [min(group, key=lambda row: (float(squares[row]), row)) for group in groups]
    others = [sorted(group, key=lambda row: (float(squares[row]), row))[1:] for group in groups]
    return (nearest + [row for group in others for row in group])[:query_size]


@few
@given(values=points(), share=st.floats(0, 1), seed=st.integers(0, 99), weighted=st.booleans())
def test_kmeans(values: np.ndarray, share: float, seed: int, weighted: bool) -> None:
    """The picks are the rows nearest to their centres, in the order of their clusters' weight."""
    query_size = max(1, round(share * len(values)))
    weights = rng(seed).integers(1, 4, len(values)).astype(float) if weighted else np.ones(len(values))
    picks, scores = kmeans(values, query_size, rng(seed), weights if weighted else None)
    assert picks.tolist() == plain_kmeans(values, query_size, seed, weights)
    assert len(set(picks.tolist())) == query_size
    assert picks[0] == scores.argmax()
    assert sorted(scores) == list(range(len(values)))


def test_kmeans_finds_groups() -> None:
    """Of groups far apart each gives one row, the one nearest to its mean, and the largest group gives the first."""
    features, group = blobs([5, 20, 10, 15])
    means = np.stack([features[group == one].mean(0) for one in range(4)])
    off = np.linalg.norm(features - means[group], axis=1)
    expected = [int(np.where(group == one, off, np.inf).argmin()) for one in (1, 3, 2, 0)]
    for seed in range(5):
        assert kmeans(features, 4, rng(seed))[0].tolist() == expected
        order = rng(seed).permutation(len(features))
        np.testing.assert_array_equal(order[kmeans(features[order], 4, rng(seed))[0]], expected)


def test_weights_pull_centres() -> None:
    """A row of weight w counts as w rows, and one of weight 0 as none; weights that are all 0 do as none at all."""
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    assert kmeans(features, 1, rng(), np.array([1.0, 0, 0, 0, 9]))[0].tolist() == [3]  # the centre is 9.9
    assert kmeans(features, 1, rng(), np.array([1.0, 2, 0, 0, 0]))[0].tolist() == [1]
    assert kmeans(features, 2, rng(), np.array([0.1, 0.1, 0.1, 1, 1]))[0].tolist() == [3, 1]
    np.testing.assert_array_equal(kmeans(features, 2, rng(), np.zeros(5))[0], kmeans(features, 2, rng())[0])


def test_kmeans_by_uncertainty() -> None:
    """With a base heuristic, its scores are the weights and its arrays are needed too."""
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    sure = np.array([0.95, 1, 1, 1, 0.55])
    probs = np.stack([sure, 1 - sure], 1)[..., None]  # margins 0.1 and 0.9
    heuristic = KMeans(1, base_heuristic=Margin())
    assert tuple(heuristic.needs) == ("predictions", "features")
    assert heuristic(probs, features=features).tolist() == [3]
    assert heuristic([probs[:2], probs[2:]], features=features).tolist() == [3]
    assert KMeans(1)(features=features).tolist() == [2]
    assert tuple(KMeans.needs) == ("features",)
    with pytest.raises(TypeError, match="KMeans needs a heuristic as base_heuristic, got str"):
        KMeans(base_heuristic="margin")  # type: ignore[arg-type]


# TypiClust


def plain_typicality(rows: np.ndarray, clusters: np.ndarray) -> list[float]:
    """One over the mean distance to the 20 nearest rows of the cluster, row by row."""
    result = []
    for row, cluster in enumerate(clusters):
        others = [other for other in range(len(rows)) if clusters[other] == cluster and other != row]
        nearest = sorted(float(np.linalg.norm(rows[row] - rows[other])) for other in others)[:20]
        mean = sum(nearest) / len(nearest) if nearest else np.inf
        result.append(1 / max(mean, torch.finfo(torch.float32).tiny))
    return result


@few
@given(values=points(), seed=st.integers(0, 99), times=st.sampled_from([1, 4]))
def test_typicality(values: np.ndarray, seed: int, times: int) -> None:
    """Typicality is that of its definition, finite for lone and for equal rows."""
    rows = np.concatenate([values + 0.3 * shift for shift in range(times)])  # up to 60, more than 20 in a cluster
    clusters = rng(seed).integers(0, 2, len(rows))
    result = typicality(torch.from_numpy(rows), torch.from_numpy(clusters)).double().numpy()
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, plain_typicality(rows, clusters), rtol=1e-5)


def test_equal_rows_are_typical() -> None:
    """Rows at distance 0 from one another have a typicality that is high and finite, lone ones 0."""
    rows, clusters = torch.tensor([[1.0], [1.0], [1.0], [1.0], [3.0]]), torch.tensor([0, 0, 0, 1, 2])
    result = typicality(rows, clusters)
    assert result.isfinite().all()
    assert (result[:3] > 1e37).all()
    assert result[3:].tolist() == [0, 0]


def plain_typiclust(features: np.ndarray, labelled: np.ndarray, query_size: int, seed: int, most: int) -> list[int]:
    """Pick after pick: large clusters, fewest labels, most rows; then the most typical row."""
    rows, N = np.concatenate([features, labelled]), len(features)
    clusters = clustered(centred(rows), min(len(labelled) + query_size, most), rng(seed))[0].numpy()
    typical = typicality(torch.from_numpy(rows), torch.from_numpy(clusters)).numpy()
    labels = [clusters[row] for row in range(N, len(rows))]
    picks: list[int] = []
    while len(picks) < query_size:

        def place(cluster: int) -> tuple[bool, int, int, int]:
            size = int((clusters == cluster).sum())
            return size < 5, labels.count(cluster), -size, cluster

        left = [row for row in range(N) if row not in picks]
        cluster = min({int(clusters[row]) for row in left}, key=place)
        picks.append(max((row for row in left if clusters[row] == cluster), key=lambda row: (typical[row], -row)))
        labels.append(cluster)
    return picks


@few
@given(values=points(), L=st.integers(0, 4), share=st.floats(0, 1), most=st.sampled_from([1, 3, 500]))
def test_typiclust(values: np.ndarray, L: int, share: float, most: int) -> None:
    """The picks are those of plain loops over the same clusters, whatever is labelled, few or equal."""
    features, labelled = values[min(L, len(values) - 1) :], values[: min(L, len(values) - 1)]
    query_size = max(1, round(share * len(features)))
    picks, scores = typiclust(features, labelled, query_size, rng(1), most)
    assert picks.tolist() == plain_typiclust(features, labelled, query_size, 1, most)
    assert len(set(picks.tolist())) == query_size
    assert picks[0] == scores.argmax()
    assert sorted(scores) == list(range(len(features)))


def test_typiclust_scikit_activeml() -> None:
    """Where clusters are beyond doubt, the picks are scikit-activeml's: labelled clusters left out, largest first."""
    features, group = blobs([30, 7, 25, 12, 9])
    labelled = features[[np.flatnonzero(group == 2)[0], np.flatnonzero(group == 4)[0]]]
    X = np.concatenate([labelled, features[np.isin(features, labelled).all(1) == 0]])
    y = np.concatenate([[0, 1], np.full(len(X) - 2, np.nan)])
    theirs = TheirTypiClust(k=20, random_state=0).query(X, y, batch_size=3)
    assert (typiclust(X[2:], X[:2], 3, rng())[0] + 2).tolist() == theirs.tolist()


def test_small_clusters_come_last() -> None:
    """A group of 4 rows is used after all of a group of 5, one of which is labelled, while none of the 4 is."""
    features, group = blobs([6, 4, 4])
    picks, _ = typiclust(features, features[[0, 10]], 14, rng(), max_clusters=3)
    assert group[picks[:3]].tolist() == [0, 2, 0]
    assert (group[picks[10:]] == 1).all()
    assert sorted(picks.tolist()) == list(range(14))


def test_most_clusters() -> None:
    """With fewer clusters than picks, clusters take turns and each gives its next typical row."""
    features, group = blobs([20, 10])
    picks, _ = typiclust(features, features[:0], 6, rng(), max_clusters=2)
    assert group[picks].tolist() == [0, 1, 0, 1, 0, 1]
    typical = typicality(torch.from_numpy(features), torch.from_numpy(group)).numpy()
    assert picks[::2].tolist() == np.argsort(-typical[:20]).tolist()[:3]


# Both


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kinds_of_arrays(dtype: torch.dtype) -> None:
    """Every precision is computed from the numbers as they are; tensors give tensors, NumPy gives NumPy."""
    generator = torch.Generator().manual_seed(0)
    features, labelled = (torch.randn(n, 8, generator=generator).to(dtype) for n in (30, 3))
    for function, arrays in ((kmeans, [features]), (typiclust, [features, labelled])):
        ours = function(*arrays, 7, rng())
        theirs = function(*(array.double().numpy() for array in arrays), 7, rng())
        assert [(type(one), one.dtype) for one in ours] == [(torch.Tensor, torch.int64), (torch.Tensor, torch.float64)]
        assert [type(one) for one in theirs] == [np.ndarray, np.ndarray]
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances one row at a time give what all of them give at once."""
    features, labelled = rng().standard_normal((80, 3)), rng(1).standard_normal((5, 3))
    whole = (*kmeans(features, 9, rng()), *typiclust(features, labelled, 9, rng()))
    for part in (clustering, clusters_module):
        monkeypatch.setattr(part, "DISTANCES_AT_ONCE", 1)
    parts = (*kmeans(features, 9, rng()), *typiclust(features, labelled, 9, rng()))
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_seeded() -> None:
    """The same seed gives the same picks, another may give others; the classes draw from their own."""
    features, labelled = rng().standard_normal((60, 3)), rng(1).standard_normal((5, 3))
    for make, arrays in ((KMeans, {}), (TypiClust, {"labelled_features": labelled})):
        arrays["features"] = features
        first = make(8, seed=3)(**arrays)
        np.testing.assert_array_equal(first, make(seed=3)(query_size=8, **arrays))
        np.testing.assert_array_equal(first, make(8, seed=rng(3))(**arrays))
        assert any((make(8, seed=seed)(**arrays) != first).any() for seed in range(4, 8))
        assert make(8).get_uncertainties(**arrays).shape == (60,)
    np.testing.assert_array_equal(TypiClust(8, max_clusters=3)(**arrays), typiclust(features, labelled, 8, rng(), 3)[0])


FEATURES = [
    ({"query_size": 5}, ValueError, r"query_size in 1 \.\. 4, the number of rows, got 5"),
    ({"query_size": 0}, ValueError, r"query_size in 1 \.\. 4"),
    ({"features": np.zeros(4)}, ValueError, r"features \[N, d\], got \[4\]"),
    ({"features": np.array([[0.0], [1], [np.nan], [np.inf]])}, ValueError, "got NaN or infinity in rows 2, 3"),
    ({"features": np.zeros((4, 2), int)}, TypeError, r"\(features\) needs .* got int64"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *FEATURES,
        ({"weights": np.ones(3)}, ValueError, r"needs a weight of each row \[4\], got \[3\]"),
        ({"weights": np.ones((4, 1))}, ValueError, r"needs a weight of each row \[4\], got \[4, 1\]"),
        ({"weights": np.array([1, -1, 1, np.nan])}, ValueError, "needs weights >= 0, got others in rows 1, 3"),
        ({"weights": [1, 1, 1, 1]}, TypeError, r"\(weights\) needs a NumPy array or a torch tensor, got list"),
    ],
)
def test_bad_input_of_kmeans(change: dict, error: type[Exception], message: str) -> None:
    """What KMeans cannot use is refused with what it needs, what came and where."""
    with pytest.raises(error, match=f"^KMeans.*{message}"):
        kmeans(**{"features": np.zeros((4, 2)), "query_size": 1, "rng": rng(), **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *FEATURES,
        ({"labelled_features": np.zeros((3, 3))}, ValueError, r"labelled_features as wide .* d = 2, got \[3, 3\]"),
        ({"labelled_features": np.array([[0, np.inf]])}, ValueError, "finite labelled_features, .* in row 0"),
        ({"max_clusters": 0}, ValueError, "max_clusters >= 1, got 0"),
    ],
)
def test_bad_input_of_typiclust(change: dict, error: type[Exception], message: str) -> None:
    """What TypiClust cannot use is refused with what it needs, what came and where."""
    given = {"features": np.zeros((4, 2)), "labelled_features": np.zeros((3, 2)), "query_size": 1, "rng": rng()}
    with pytest.raises(error, match=f"^TypiClust.*{message}"):
        typiclust(**{**given, **change})
