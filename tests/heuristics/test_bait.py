"""BAIT against explicit Fisher matrices that are inverted anew for every row at every step."""

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics.bait import BAIT, bait
from tests.laws import few

module = import_module("baal_hf.heuristics.bait")  # the package gives that name to the function

Cases = dict[str, np.ndarray]


def probabilities(rng: np.random.Generator, N: int, C: int, T: int, scale: float) -> np.ndarray:
    """[N, C, T], from flat to one-hot."""
    return torch.from_numpy(scale * rng.standard_normal((N, C, T))).softmax(1).numpy()


def drawn(rng: np.random.Generator, N: int, L: int, C: int, d: int, scale: float = 1.0) -> Cases:
    """All arrays of BAIT."""
    return {
        "probs": probabilities(rng, N, C, 3, scale),
        "features": rng.standard_normal((N, d)),
        "labelled_features": rng.standard_normal((L, d)),
        "labelled_predictions": probabilities(rng, L, C, 2, scale),
    }


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    """A few rows, predictions from flat to one-hot, nothing or something labelled."""
    N, L, C, d = draw(st.integers(1, 7)), draw(st.integers(0, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return drawn(rng, N, L, C, d, draw(st.sampled_from([0.1, 1.0, 1000.0])))


def information(probs: np.ndarray, features: np.ndarray) -> np.ndarray:
    """E_y[∇ log p(y) ∇ log p(y)ᵀ] of the last layer for each row, class by class, [N, C·d, C·d]."""
    result = []
    for p, h in zip(probs.mean(-1), features, strict=True):
        gradients = [np.kron(np.eye(len(p))[y] - p, h) for y in range(len(p))]
        result.append(sum(p[y] * np.outer(gradient, gradient) for y, gradient in enumerate(gradients)))
    return np.array(result)


def plain(case: Cases, query_size: int, regularisation: float) -> tuple[list[int], np.ndarray]:
    """Forward 2K and backward K steps, each trace from an inverse of its own; and the gain of each row alone."""
    rows = information(case["probs"], case["features"])
    known = regularisation * np.eye(rows.shape[1])
    if len(case["labelled_features"]):
        known = known + information(case["labelled_predictions"], case["labelled_features"]).sum(0)

    def left(chosen: list[int]) -> float:
        return float(np.trace(np.linalg.inv(known + rows[chosen].sum(0)) @ rows.mean(0)))

    gains = np.array([left([]) - left([row]) for row in range(len(rows))])
    slack = 1e-10 * gains.max()
    picks: list[int] = []
    while len(picks) < min(2 * query_size, len(rows)):
        traces = {row: left([*picks, row]) for row in range(len(rows)) if row not in picks}
        picks.append(next(row for row, trace in traces.items() if trace <= min(traces.values()) + slack))
    while len(picks) > query_size:
        traces = {row: left([other for other in picks if other != row]) for row in picks}
        picks.remove([row for row, trace in traces.items() if trace <= min(traces.values()) + slack][-1])
    return picks, gains


@few
@given(case=cases(), share=st.floats(0, 1), regularisation=st.sampled_from([0.01, 1.0]))
def test_reference(case: Cases, share: float, regularisation: float) -> None:
    """Picks are those of the plain search, and scores are what each row brings the trace down by."""
    query_size = max(1, round(share * len(case["features"])))
    picks, scores = bait(**case, query_size=query_size, regularisation=regularisation)
    expected, gains = plain(case, query_size, regularisation)
    np.testing.assert_allclose(scores, gains, rtol=1e-6, atol=1e-9)
    assert picks.tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_many_steps(seed: int) -> None:
    """What is updated step by step does not drift from what is inverted anew, and dropping picks changes them."""
    case = drawn(np.random.default_rng(seed), 40, 5, 3, 4)
    picks = bait(**case, query_size=10, regularisation=0.01)[0].tolist()
    assert picks == plain(case, 10, 0.01)[0]
    assert picks != bait(**case, query_size=20, regularisation=0.01)[0].tolist()[:10]


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows one at a time give what all of them give at once."""
    case = drawn(np.random.default_rng(0), 20, 5, 3, 4)
    picks, scores = bait(**case, query_size=5)
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 1)
    one, other = bait(**case, query_size=5)
    np.testing.assert_array_equal(one, picks)
    np.testing.assert_allclose(other, scores)


def test_order_of_rows() -> None:
    """Permuting rows permutes scores and leaves the picks the same rows."""
    case, order = drawn(np.random.default_rng(0), 20, 5, 3, 4), np.random.default_rng(1).permutation(20)
    permuted = {**case, "probs": case["probs"][order], "features": case["features"][order]}
    picks, scores = bait(**case, query_size=5)
    theirs, other = bait(**permuted, query_size=5)
    np.testing.assert_array_equal(order[theirs], picks)
    np.testing.assert_allclose(other, scores[order])


def test_duplicates() -> None:
    """Equal rows are picked lowest first, and no row twice."""
    case = drawn(np.random.default_rng(0), 4, 0, 3, 2)
    twice = {**case, "probs": np.repeat(case["probs"], 2, 0), "features": np.repeat(case["features"], 2, 0)}
    picks, scores = bait(**twice, query_size=1)
    assert picks[0] % 2 == 0
    np.testing.assert_allclose(scores[::2], scores[1::2])
    assert sorted(bait(**twice, query_size=8)[0].tolist()) == list(range(8))
    for query_size in range(2, 8):
        assert bait(**twice, query_size=query_size)[0].tolist() == plain(twice, query_size, 1.0)[0]


def test_certain_rows_tell_nothing() -> None:
    """A row that is predicted with certainty has no information, and scores 0."""
    case = drawn(np.random.default_rng(0), 4, 2, 2, 2)
    case["probs"][1] = [[1.0], [0.0]]
    picks, scores = bait(**case, query_size=3)
    assert scores[1] == pytest.approx(0)
    assert 1 not in picks
    case["probs"][:] = [[1.0], [0.0]]
    assert bait(**case, query_size=3)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kinds_of_arrays(dtype: torch.dtype) -> None:
    """Half precision agrees with double within its rounding; tensors give tensors, NumPy gives NumPy."""
    case = drawn(np.random.default_rng(0), 20, 5, 3, 4)
    picks, scores = bait(**{name: torch.from_numpy(array).to(dtype) for name, array in case.items()}, query_size=5)
    assert (picks.dtype, scores.dtype) == (torch.int64, torch.float64)
    theirs, exact = bait(**case, query_size=5)
    assert isinstance(theirs, np.ndarray)
    np.testing.assert_allclose(scores.numpy(), exact, rtol=32 * torch.finfo(dtype).eps, atol=1e-12)


def test_rounded_probabilities() -> None:
    """Probabilities that sum to 1 but for rounding are taken in proportion."""
    case = drawn(np.random.default_rng(0), 20, 5, 3, 4)
    rounded = {name: torch.from_numpy(array).bfloat16() for name, array in case.items()}
    exact = {name: array.double().numpy() for name, array in rounded.items()}
    for name in ("probs", "labelled_predictions"):
        mean = exact[name].mean(-1, keepdims=True)
        exact[name] = mean / mean.sum(1, keepdims=True)
    np.testing.assert_allclose(bait(**rounded, query_size=5)[1].numpy(), bait(**exact, query_size=5)[1], rtol=1e-5)


def test_heuristic() -> None:
    """The class gives the function's picks and scores, from batches too, and its regularisation can be set."""
    case = drawn(np.random.default_rng(0), 20, 5, 3, 4)
    probs = case.pop("probs")
    ranks, scores = BAIT(5, regularisation=0.1).get_ranks([probs[:7], probs[7:]], **case)
    for one, other in zip((ranks, scores), bait(probs, **case, query_size=5, regularisation=0.1), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(BAIT(regularisation=0.1).get_uncertainties(probs, **case), scores)
    assert (BAIT().get_uncertainties(probs, **case) != scores).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_size": 5}, ValueError, r"BAIT needs a query_size in 1 \.\. 4, the number of rows, got 5"),
        ({"query_size": 0}, ValueError, r"query_size in 1 \.\. 4"),
        ({"regularisation": 0.0}, ValueError, "BAIT needs regularisation > 0, got 0"),
        ({"labelled_features": np.zeros((3, 3))}, ValueError, r"labelled_features as wide .* d = 2, got \[3, 3\]"),
        ({"labelled_features": np.zeros((2, 2))}, ValueError, "as many labelled_predictions .* got 3 for 2"),
        ({"features": np.zeros((5, 2))}, ValueError, "as many predictions as features .* got 4 for 5"),
        ({"features": np.array([[0.0], [1], [np.nan], [np.inf]])}, ValueError, "got NaN or infinity in rows 2, 3"),
        ({"features": np.zeros((4, 2), int)}, TypeError, r"BAIT \(features\) needs .* got int64"),
        ({"probs": np.full((4, 2, 3, 1), 0.5)}, ValueError, r"BAIT needs one prediction a row .* got \[4, 2, 3, 1\]"),
        ({"labelled_predictions": np.full((3, 2, 1), 0.7)}, ValueError, r"BAIT \(labelled_predictions\) needs sums"),
        ({"labelled_predictions": np.full((3, 4, 1), 0.25)}, ValueError, r"of the same classes, got \[3, 4, 1\] for"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """What BAIT cannot use is refused with what it needs, what came and where."""
    given = {
        "probs": np.full((4, 2, 1), 0.5),
        "features": np.zeros((4, 2)),
        "labelled_features": np.zeros((3, 2)),
        "labelled_predictions": np.full((3, 2, 1), 0.5),
        "query_size": 1,
    }
    with pytest.raises(error, match=message):
        bait(**{**given, **change})
