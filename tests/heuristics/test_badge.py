"""BADGE: k-means++ over gradients that are never built, equal to the same over gradients that are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import Badge
from sklearn.linear_model import LogisticRegression

from baal_hf.heuristics.badge import BADGE, badge
from tests.laws import few

Cases = tuple[np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    """Predictions [N, C, T] from flat to one-hot and features [N, d], some rows twice, some all zero."""
    N, C, T, d = draw(st.integers(1, 12)), draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1.0, 10.0, 1000.0]))
    probs = torch.from_numpy(scale * rng.standard_normal((N, C, T))).softmax(1).numpy()
    features = draw(st.sampled_from([1e-3, 1.0, 1e3])) * rng.standard_normal((N, d)) + draw(st.sampled_from([0, 5]))
    features[rng.random(N) < 0.1] = 0
    again = rng.integers(N, size=N) if draw(st.booleans()) else np.arange(N)
    return probs[again], features[again]


def gradients(probs: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Gradients of the last layer under the predicted class, [N, C·d]."""
    mean = probs.mean(-1)  # [N, C]
    residuals = mean - np.eye(mean.shape[1])[mean.argmax(1)]
    return (residuals[:, :, None] * features[:, None, :]).reshape(len(features), -1)


def explicit(probs: np.ndarray, features: np.ndarray, query_size: int, rng: np.random.Generator) -> list[int]:
    """BADGE as in the paper, over explicit gradients."""
    rows = gradients(probs, features)
    sizes = np.linalg.norm(rows, axis=1).astype(np.float32)
    picks = [int(sizes.argmax())]
    while len(picks) < query_size:
        squares = ((rows[:, None] - rows[picks]) ** 2).sum(-1)  # [N, k]
        scale = (rows**2).sum(1)[:, None] + (rows[picks] ** 2).sum(1)
        nearest = np.where(squares <= 1e-12 * scale, 0, squares).min(1)
        if not nearest.any():
            return picks + [row for row in np.argsort(-sizes, kind="stable").tolist() if row not in picks]
        picks.append(int(rng.choice(len(rows), p=nearest / nearest.sum())))
    return picks


@few
@given(case=cases(), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_reference(case: Cases, seed: int, share: float) -> None:
    """The picks are those over explicit gradients from the same generator, and scores are the gradients' norms."""
    query_size = max(1, round(share * len(case[0])))
    picks, scores = badge(*case, query_size, np.random.default_rng(seed))
    assert picks.tolist() == explicit(*case, query_size, np.random.default_rng(seed))[:query_size]
    np.testing.assert_allclose(scores, np.linalg.norm(gradients(*case), axis=1), rtol=1e-6, atol=1e-30)


@few
@given(case=cases(), seed=st.integers(0, 99))
def test_all_rows(case: Cases, seed: int) -> None:
    """K = N picks every row once, whatever is equal or zero, and the first has the highest score."""
    picks, scores = badge(*case, len(case[0]), np.random.default_rng(seed))
    assert sorted(picks.tolist()) == list(range(len(case[0])))
    assert picks[0] == scores.argmax()


def test_large_pool() -> None:
    """At a size that shows rounding in every distance, the picks are still those over explicit gradients."""
    rng = np.random.default_rng(0)
    probs = np.moveaxis(rng.dirichlet(np.ones(5), (300, 4)), -1, 1)  # [N, C, T]
    features = (rng.standard_normal((300, 64)) + 30).astype(np.float32)  # far from 0, so that products cancel
    picks, _ = badge(probs, features, 100, np.random.default_rng(1))
    assert picks.tolist() == explicit(probs, features.astype(np.float64), 100, np.random.default_rng(1))


def test_gradients_are_never_built() -> None:
    """Gradients of 16 GB are spread over in the memory of what they are made of."""
    probs = torch.rand(2000, 1000, 1, generator=torch.Generator().manual_seed(0))
    features = torch.rand(2000, 1000, generator=torch.Generator().manual_seed(1))
    assert len(badge(probs / probs.sum(1, keepdim=True), features, 3, np.random.default_rng(0))[0]) == 3


def test_chance_is_squared_distance() -> None:
    """The second pick falls on each row as often as its squared distance from the first says."""
    probs = np.repeat([[[0.6], [0.4]]], 4, 0)  # ‖p̄ − e_ŷ‖² = 0.32
    features = np.array([[10.0], [9.0], [8.0], [7.0]])
    rng = np.random.default_rng(0)
    seconds = [badge(probs, features, 2, rng)[0][1] for _ in range(3000)]
    np.testing.assert_allclose(np.bincount(seconds, minlength=4) / 3000, np.array([0, 1, 4, 9]) / 14, atol=0.03)


def test_equal_gradients_are_one_point() -> None:
    """Rows of equal gradient are drawn once until no others are left, then follow by size and row order."""
    probs = np.array([[[1.0], [0.0]], [[1.0], [0.0]], [[0.6], [0.4]], [[0.4], [0.6]], [[0.9], [0.1]], [[0.6], [0.4]]])
    features = np.array([[3.0], [4.0], [2.0], [-2.0], [1.0], [2.0]])  # the fourth is (−u) ⊗ (−h) of the third
    for seed in range(20):
        picks, _ = badge(probs, features, 6, np.random.default_rng(seed))
        assert picks[0] == 2
        assert set(picks[1:3].tolist()) in ({4, 0}, {4, 1})
        assert picks[3:].tolist() == [3, 5, 5 - picks[1:3].sum()]


def test_equal_rows_of_many_features() -> None:
    """Products of many features round, and still equal rows are one point."""
    rng = np.random.default_rng(0)
    again = np.repeat(np.arange(10), 3)
    probs = np.moveaxis(rng.dirichlet(np.ones(5), (10, 4)), -1, 1)[again]
    features = (rng.standard_normal((10, 301)) + 10)[again]
    for seed in range(5):
        picks, _ = badge(probs, features, 30, np.random.default_rng(seed))
        assert sorted(again[picks[:10]]) == list(range(10))
        assert sorted(picks.tolist()) == list(range(30))


def test_no_gradient_at_all() -> None:
    """Certain predictions have no gradients: rows are picked in their order."""
    picks, scores = badge(np.repeat([[[1.0], [0.0]]], 4, 0), np.ones((4, 3)), 3, np.random.default_rng(0))
    assert picks.tolist() == [0, 1, 2]
    assert not scores.any()


@few
@given(case=cases(), seed=st.integers(0, 99))
def test_order_of_rows(case: Cases, seed: int) -> None:
    """Permuting rows permutes scores."""
    order = np.random.default_rng(seed).permutation(len(case[0]))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(badge(case[0][order], case[1][order], 1, rng)[1], badge(*case, 1, rng)[1][order])


def test_scikit_activeml() -> None:
    """The first pick and the scores are scikit-activeml's, whose first utilities are squared norms over their sum."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 4)), np.full(60, np.nan)
    y[:12] = np.arange(12) % 3
    classifier = SklearnClassifier(LogisticRegression(), classes=[0, 1, 2]).fit(X, y)
    theirs, utilities = Badge(random_state=0).query(X, y, classifier, fit_clf=False, return_utilities=True)
    picks, scores = badge(classifier.predict_proba(X[12:])[..., None], X[12:], 1, rng)
    assert picks[0] + 12 == theirs[0]
    np.testing.assert_allclose(scores**2 / (scores**2).sum(), utilities[0, 12:], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kinds_of_arrays(dtype: torch.dtype) -> None:
    """Every precision is computed in double from the numbers as they are; tensors give tensors, NumPy gives NumPy."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(30, 3, 5, generator=generator).softmax(1).to(dtype)
    features = torch.randn(30, 8, generator=generator).to(dtype)
    picks, scores = badge(probs, features, 10, np.random.default_rng(0))
    assert (picks.dtype, scores.dtype) == (torch.int64, torch.float32)
    mean = probs.float() if dtype in (torch.float16, torch.bfloat16) else probs
    theirs, norms = badge(mean.mean(-1, keepdim=True).double().numpy(), features.double().numpy(), 10, _rng())
    assert picks.tolist() == theirs.tolist()
    np.testing.assert_allclose(scores.numpy(), norms, rtol=1e-6)
    assert isinstance(theirs, np.ndarray)
    assert theirs.dtype == np.int64


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_heuristic() -> None:
    """The class draws from its own seed, takes batches, and scores rows by the size of their gradients."""
    rng = np.random.default_rng(0)
    probs, features = np.moveaxis(rng.dirichlet(np.ones(3), (20, 2)), -1, 1), rng.standard_normal((20, 4))
    ranks, scores = BADGE(seed=3).get_ranks(probs, 5, features=features)
    expected, norms = badge(probs, features, 5, np.random.default_rng(3))
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_array_equal(scores, norms)
    np.testing.assert_array_equal(BADGE(5, seed=3)([probs[:7], probs[7:]], features=features), ranks)
    np.testing.assert_array_equal(BADGE(50).get_uncertainties(probs, features=features), norms)
    assert any((BADGE(seed=seed)(probs, 5, features=features) != ranks).any() for seed in range(4, 8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_size": 5}, ValueError, r"BADGE needs a query_size in 1 \.\. 4, the number of rows, got 5"),
        ({"query_size": 0}, ValueError, r"query_size in 1 \.\. 4"),
        (
            {"features": np.zeros((3, 2))},
            ValueError,
            "BADGE needs as many predictions as features .* 4 for 3",
        ),
        ({"features": np.zeros((4, 2, 2))}, ValueError, r"BADGE needs features \[N, d\], got \[4, 2, 2\]"),
        ({"features": np.zeros((4, 0))}, ValueError, r"BADGE needs features \[N, d\], got \[4, 0\]"),
        ({"features": np.array([[0.0], [1], [np.nan], [np.inf]])}, ValueError, "got NaN or infinity in rows 2, 3"),
        ({"features": np.zeros((4, 2), int)}, TypeError, r"BADGE \(features\) needs .* got int64"),
        ({"features": [[0.0]]}, TypeError, r"BADGE \(features\) needs a NumPy array or a torch tensor, got list"),
        ({"probs": np.full((4, 2), 0.5)}, ValueError, r"BADGE needs posterior draws"),
        ({"probs": np.full((4, 2, 3, 1), 0.5)}, ValueError, r"one prediction a row \[N, C, T\], got \[4, 2, 3, 1\]"),
        ({"probs": np.full((4, 2, 1), 0.7)}, ValueError, r"BADGE needs sums of 1 over classes, got 1\.4 in row"),
        ({"probs": np.full((4, 2, 1), np.nan)}, ValueError, "BADGE needs finite predictions"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """What BADGE cannot use is refused with what it needs, what came and where."""
    given = {"probs": np.full((4, 2, 1), 0.5), "features": np.zeros((4, 2)), "query_size": 1, "rng": _rng()}
    with pytest.raises(error, match=message):
        badge(**{**given, **change})


def test_missing_features() -> None:
    """Without features the heuristic says what to pass."""
    with pytest.raises(TypeError, match=r"BADGE needs a representation .* pass features="):
        BADGE()(np.full((4, 2, 1), 0.5), 1)
