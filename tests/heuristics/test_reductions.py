"""Scores of positions to one score a row, under padding and masks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics import BALD, Entropy, Variance, quantile, reduced, top_k
from tests.laws import few

NAMED = ["max", "min", "mean", "sum"]
SCORES = np.array([[3.0, 1.0, 2.0], [5.0, np.nan, 4.0], [7.0, np.nan, np.nan]])  # [N, S]

# Of the positions that count in one row.
PLAIN = {
    "max": max,
    "min": min,
    "mean": lambda row: sum(row) / len(row),
    "sum": sum,
    "top_k(1)": max,
    "top_k(2)": lambda row: float(np.mean(sorted(row)[-2:])),
    "top_k(99)": lambda row: sum(row) / len(row),
    "quantile(0)": min,
    "quantile(1)": max,
    "quantile(0.3)": lambda row: float(np.quantile(row, 0.3)),
}
REDUCTIONS = {
    **{name: name for name in NAMED},
    **{f"top_k({k})": top_k(k) for k in (1, 2, 99)},
    **{f"quantile({q})": quantile(q) for q in (0, 1, 0.3)},
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@few
@given(seed=st.integers(0, 2**32 - 1), axes=st.integers(1, 2))
def test_reference(name: str, kind, seed: int, axes: int) -> None:
    """A reduction is that of the positions which are neither padding nor masked, in plain Python, row by row."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 9, (4, *rng.integers(1, 6, axes))) / 2
    padding, mask = rng.random(scores.shape) < 0.3, rng.random(scores.shape) < 0.7
    first = (slice(None), *[0] * axes)
    padding[first], mask[first] = False, True  # a position that counts in each row
    expected = [PLAIN[name](row[seen].tolist()) for row, seen in zip(scores, mask & ~padding, strict=True)]
    scores[padding] = np.nan
    result = reduced(kind(scores), REDUCTIONS[name], kind(mask))
    assert type(result) is type(kind([0.0]))
    np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("max", [3, 5, 7]),
        ("min", [1, 4, 7]),
        ("mean", [2, 4.5, 7]),
        ("sum", [6, 9, 7]),
        (top_k(2), [2.5, 4.5, 7]),
        (quantile(0.5), [2, 4.5, 7]),
        (quantile(0.25), [1.5, 4.25, 7]),
    ],
)
def test_by_hand(reduction, expected: list[float]) -> None:
    """Padding counts in no reduction: not as a score, and not in the number of positions."""
    assert reduced(SCORES, reduction).tolist() == expected
    with_mask = np.array([[True, True, True], [False, True, True], [True, False, True]])
    assert reduced(SCORES, reduction, with_mask).tolist() == [expected[0], 4, 7]


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_precision(reduction, dtype: torch.dtype) -> None:
    """Half precision is reduced in float32, and a tensor stays one, also through a function of NumPy arrays."""
    scores = torch.from_numpy(SCORES).to(dtype)
    result = reduced(scores, reduction)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    np.testing.assert_allclose(result, reduced(SCORES, reduction), rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_input_is_left_alone(reduction) -> None:
    """Neither scores nor mask are changed; a tensor with a graph and a read-only array are taken."""
    scores, mask = SCORES.copy(), np.ones_like(SCORES, bool)
    scores.flags.writeable = mask.flags.writeable = False
    expected = reduced(scores, reduction, mask)
    np.testing.assert_array_equal(scores, SCORES)
    graph = torch.tensor(SCORES, requires_grad=True)
    np.testing.assert_allclose(reduced(graph, reduction).detach(), expected)


def test_function() -> None:
    """A function gets the scores as they are, padding as NaN, and its answer is the row's, in a list or an array."""
    assert reduced(SCORES, lambda scores: scores[:, 0]).tolist() == [3, 5, 7]
    assert reduced(torch.from_numpy(SCORES), lambda scores: np.isnan(scores).sum(1).tolist()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("function", [lambda scores: scores.mean(0)[:2], lambda scores: scores, lambda scores: 1.0])
def test_function_of_wrong_shape(function) -> None:
    """A function that does not return one score a row is refused."""
    with pytest.raises(ValueError, match=r"A reduction of \[3, 3\] needs to give \[3\], got \["):
        reduced(SCORES, function)


def test_function_that_does_not_know_padding() -> None:
    """NaN that a function makes of padding is no score: ranks are refused, and nothing is put in its place."""
    probs = np.full((2, 2, 2, 2), 0.5)
    probs[1, :, 1] = np.nan
    with pytest.raises(ValueError, match="Entropy needs finite scores, got NaN or infinity in row 1"):
        Entropy(reduction=lambda scores: scores.max(1))(probs)


def test_rows_without_positions() -> None:
    """Scores that have no positions stay as they are."""
    scores = np.array([2.0, 1.0])
    for reduction in REDUCTIONS.values():
        assert reduced(scores, reduction) is scores


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_nothing_left(reduction) -> None:
    """A row of padding only, or of which the mask leaves only padding or nothing, raises and is named."""
    with pytest.raises(ValueError, match=r"A reduction needs a position of each row, got only padding in row 1\."):
        reduced(np.array([[1.0], [np.nan]]), reduction)
    mask = np.array([[True, True, True], [False, True, False], [True, True, True]])
    with pytest.raises(ValueError, match=r"got only padding in row 1\."):
        reduced(SCORES, reduction, mask)
    mask[0] = False
    with pytest.raises(ValueError, match=r"A reduction needs a position of each row, the mask hides all of row 0\."):
        reduced(SCORES, reduction, mask)


def test_bad_masks() -> None:
    """A mask is boolean and has one entry a position."""
    with pytest.raises(ValueError, match=r"A reduction needs a mask \[3, 3\], one entry a position, got \[3, 2\]"):
        reduced(SCORES, "max", np.ones((3, 2), bool))
    with pytest.raises(TypeError, match="A reduction needs a boolean mask, got int64"):
        reduced(SCORES, "max", np.ones((3, 3), int))


def test_bad_scores() -> None:
    """Scores are floating-point numbers in an array or a tensor."""
    with pytest.raises(TypeError, match="A reduction needs a NumPy array or a torch tensor, got list"):
        reduced(SCORES.tolist(), "max")
    with pytest.raises(TypeError, match=r"A reduction needs float64, .*, got int64"):
        reduced(np.ones((2, 2), int), "max")


@pytest.mark.parametrize("name", ["median", "none", "MAX"])
def test_unknown_name(name: str) -> None:
    """An unknown reduction is refused with the known ones."""
    with pytest.raises(ValueError, match=rf"A reduction is one of max, min, mean, sum, .* or a function, got '{name}'"):
        reduced(SCORES, name)


@pytest.mark.parametrize("reduction", [*NAMED, top_k(2)])
def test_infinity_stays(reduction) -> None:
    """A score that overflowed makes a row's score infinite, never large and finite, and no rank."""
    scores = np.array([[np.inf, np.inf, np.nan], [1.0, 1.0, 1.0]])
    assert np.isinf(reduced(scores, reduction)[0])
    huge = np.zeros((2, 1, 2, 2), np.float32)
    huge[1, 0, :, 0] = 1e30
    with pytest.raises(ValueError, match="Variance needs finite scores, got NaN or infinity in row 1"):
        Variance(reduction=reduction)(huge)


def test_errors_of_arguments() -> None:
    """`top_k` takes a whole number from 1 on, `quantile` a share."""
    with pytest.raises(ValueError, match="top_k needs k >= 1, got 0"):
        top_k(0)
    with pytest.raises(TypeError):
        top_k(1.5)  # type: ignore[arg-type]
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"quantile needs q in \[0, 1\], got"):
            quantile(q)


@pytest.mark.parametrize("reduction", [top_k(2), quantile(0.9)])
def test_as_argument_of_a_heuristic(reduction) -> None:
    """`top_k` and `quantile` are reductions of every heuristic, over tokens and pixels, in batches of any width."""
    rng = np.random.default_rng(0)
    probs = np.moveaxis(rng.dirichlet(np.ones(3), (5, 2, 4, 6)), -1, 1)  # [N, C, 2, 4, T]
    heuristic = BALD(reduction=reduction)
    expected = reduced(BALD().get_uncertainties(probs), reduction)
    np.testing.assert_allclose(heuristic.get_uncertainties(probs), expected)
    narrow = probs[:, :, :, :2]
    batched = heuristic.get_uncertainties([narrow, probs])
    np.testing.assert_allclose(batched, np.concatenate([heuristic.get_uncertainties(narrow), expected]))
