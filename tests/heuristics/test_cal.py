"""CAL against plain loops over neighbours and classes."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics.cal import CAL, cal
from tests.laws import few

module = import_module("baal_hf.heuristics.cal")  # the package gives that name to the function

Cases = dict[str, np.ndarray]


def probabilities(rng: np.random.Generator, N: int, C: int, T: int, scale: float) -> np.ndarray:
    """[N, C, T], from flat to one-hot."""
    return torch.from_numpy(scale * rng.standard_normal((N, C, T))).softmax(1).numpy()


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    """All arrays of CAL; features on a grid, where distances are often equal, or anywhere; exact zeros among probs."""
    N, L, C, d = draw(st.integers(1, 6)), draw(st.integers(1, 14)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1.0, 1000.0]))
    grid = draw(st.booleans())
    features, labelled = (rng.integers(0, 3, (n, d)) * 1.0 if grid else rng.standard_normal((n, d)) for n in (N, L))
    return {
        "probs": probabilities(rng, N, C, 3, scale),
        "features": features,
        "labelled_features": labelled,
        "labelled_predictions": probabilities(rng, L, C, 2, scale),
    }


def plain(case: Cases, neighbours: int) -> list[float]:
    """Mean divergence from the nearest labelled rows, term by term."""
    scores = []
    for probs, row in zip(case["probs"].mean(-1), case["features"], strict=True):
        distances = np.sqrt(((case["labelled_features"] - row) ** 2).sum(1)).astype(np.float32)
        near = np.argsort(distances, kind="stable")[:neighbours]
        total = 0.0
        for other in case["labelled_predictions"].mean(-1)[near]:
            pairs = zip(other, probs, strict=True)
            total += sum(p * math.log(p / max(q, np.finfo(np.float32).tiny)) for p, q in pairs if p > 0)
        scores.append(total / len(near))
    return scores


@few
@given(case=cases(), neighbours=st.sampled_from([1, 2, 10]))
def test_reference(case: Cases, neighbours: int) -> None:
    """Scores are those of the definition, finite at exact zeros, with the first of equally near rows, or all rows."""
    scores = cal(**case, neighbours=neighbours)
    assert (scores >= 0).all()
    assert (scores <= 88).all()
    np.testing.assert_allclose(scores, plain(case, neighbours), atol=1e-9)


@few
@given(case=cases(), seed=st.integers(0, 99))
def test_order_of_rows(case: Cases, seed: int) -> None:
    """Permuting rows permutes scores."""
    order = np.random.default_rng(seed).permutation(len(case["probs"]))
    permuted = {**case, "probs": case["probs"][order], "features": case["features"][order]}
    np.testing.assert_allclose(cal(**permuted), cal(**case)[order], atol=1e-12)


def test_direction() -> None:
    """The divergence is from the neighbour to the row: a row that excludes what its neighbour expects scores high."""
    arrays = {"features": np.zeros((1, 1)), "labelled_features": np.zeros((1, 1))}
    sure, unsure = np.array([[[1.0], [0.0]]]), np.array([[[0.5], [0.5]]])
    assert cal(unsure, labelled_predictions=sure, **arrays) == pytest.approx(math.log(2))
    assert cal(sure, labelled_predictions=unsure, **arrays) > 40
    assert cal(sure, labelled_predictions=sure, **arrays) == 0


def test_nearest_rows_count() -> None:
    """Only the labelled rows nearest to a row are compared with it."""
    probs = np.array([[[0.5], [0.5]], [[0.5], [0.5]]])
    labelled = np.array([[[1.0], [0.0]], [[0.5], [0.5]], [[0.5], [0.5]]])
    scores = cal(probs, np.array([[0.0], [9.0]]), np.array([[1.0], [8.0], [10.0]]), labelled, neighbours=1)
    np.testing.assert_allclose(scores, [math.log(2), 0])


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of one row at a time give what all of them give at once."""
    rng = np.random.default_rng(0)
    arrays = [probabilities(rng, 30, 3, 2, 1), rng.standard_normal((30, 4)), rng.standard_normal((20, 4))]
    arrays.append(probabilities(rng, 20, 3, 2, 1))
    whole = cal(*arrays)
    monkeypatch.setattr(module, "DISTANCES_AT_ONCE", 1)
    np.testing.assert_allclose(cal(*arrays), whole, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kinds_of_arrays(dtype: torch.dtype) -> None:
    """Half precision agrees with double within its rounding; tensors give tensors, NumPy gives NumPy."""
    rng = np.random.default_rng(0)
    doubles = {"features": rng.standard_normal((30, 8)), "labelled_features": rng.standard_normal((20, 8))}
    arrays = {name: torch.from_numpy(array).to(dtype) for name, array in doubles.items()}
    exact = {name: array.double().numpy() for name, array in arrays.items()}  # so that neighbours are the same
    for name, N in (("probs", 30), ("labelled_predictions", 20)):
        exact[name] = probabilities(rng, N, 3, 5, 1)
        arrays[name] = torch.from_numpy(exact[name]).to(dtype)
    scores = cal(**arrays)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert isinstance(cal(**exact), np.ndarray)
    np.testing.assert_allclose(scores.numpy(), cal(**exact), atol=32 * torch.finfo(dtype).eps)


def test_heuristic() -> None:
    """The class gives the function's scores, also batch by batch, and its number of neighbours can be set."""
    rng = np.random.default_rng(0)
    probs, features = probabilities(rng, 20, 3, 2, 1), rng.standard_normal((20, 4))
    labelled = {
        "labelled_features": rng.standard_normal((15, 4)),
        "labelled_predictions": probabilities(rng, 15, 3, 2, 1),
    }
    scores = CAL(neighbours=3).get_uncertainties(probs, features=features, **labelled)
    np.testing.assert_array_equal(scores, cal(probs, features, neighbours=3, **labelled))
    batches = CAL(neighbours=3).get_uncertainties([probs[:7], probs[7:]], features=features, **labelled)
    np.testing.assert_allclose(batches, scores, atol=1e-12)
    np.testing.assert_array_equal(
        CAL()(probs, 5, features=features, **labelled), np.argsort(-cal(probs, features, **labelled))[:5]
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"neighbours": 0}, ValueError, "CAL needs neighbours >= 1, got 0"),
        (
            {"labelled_features": np.zeros((0, 2)), "labelled_predictions": np.zeros((0, 2, 1))},
            ValueError,
            r"CAL needs labelled_features of 1 row or more, got \[0, 2\]",
        ),
        ({"labelled_features": np.zeros((3, 3))}, ValueError, r"labelled_features as wide .* d = 2, got \[3, 3\]"),
        ({"labelled_features": np.zeros((2, 2))}, ValueError, "as many labelled_predictions .* got 3 for 2"),
        ({"features": np.zeros((5, 2))}, ValueError, "as many predictions as features .* got 4 for 5"),
        ({"features": np.array([[0.0], [1], [np.nan], [np.inf]])}, ValueError, "got NaN or infinity in rows 2, 3"),
        ({"features": np.zeros((4, 2), int)}, TypeError, r"CAL \(features\) needs .* got int64"),
        ({"probs": np.full((4, 2, 3, 1), 0.5)}, ValueError, r"CAL needs one prediction a row .* got \[4, 2, 3, 1\]"),
        ({"probs": np.full((4, 2, 1), 0.7)}, ValueError, "CAL needs sums of 1 over classes"),
        (
            {"labelled_predictions": np.full((3, 2, 1), 0.7)},
            ValueError,
            r"CAL \(labelled_predictions\) needs sums of 1 over classes",
        ),
        ({"labelled_predictions": np.full((3, 4, 1), 0.25)}, ValueError, r"of the same classes, got \[3, 4, 1\] for"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    """What CAL cannot use is refused with what it needs, what came and where."""
    given = {
        "probs": np.full((4, 2, 1), 0.5),
        "features": np.zeros((4, 2)),
        "labelled_features": np.zeros((3, 2)),
        "labelled_predictions": np.full((3, 2, 1), 0.5),
    }
    with pytest.raises(error, match=message):
        cal(**{**given, **change})
