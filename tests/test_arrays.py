"""Logits to probabilities, the checks on predictions, masks, and scoring in chunks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.arrays import (
    PROBLEM_TYPES,
    as_numpy,
    checked_draws,
    checked_mask,
    checked_probabilities,
    checked_sigmoids,
    masked,
    probabilities,
    scored,
)
from baal_hf.heuristics import bald, entropy
from baal_hf.heuristics.draws import vote_shares
from tests.laws import few

FLAT = np.full((4, 2, 3, 5), 0.5)  # [N, C, S, T]
CHECKS = [checked_draws, checked_probabilities, checked_sigmoids]


def changed(place: tuple, value: float) -> np.ndarray:
    """FLAT with another value at some places."""
    values = FLAT.copy()
    values[place] = value
    return values


def test_softmax() -> None:
    """Single-label logits become a distribution over axis 1, whatever axes follow."""
    logits = np.log(np.array([[[1.0, 2.0], [3.0, 2.0]]]))  # [B, C, S]
    np.testing.assert_allclose(probabilities(logits, "single_label_classification"), [[[0.25, 0.5], [0.75, 0.5]]])


def test_sigmoid() -> None:
    """Multi-label logits become one probability a label, never a distribution over labels."""
    np.testing.assert_allclose(probabilities(np.zeros((2, 3)), "multi_label_classification"), 0.5)


def test_regression() -> None:
    """Regression outputs stay as they are."""
    outputs = torch.tensor([[-3.0], [7.0]])
    assert torch.equal(probabilities(outputs, "regression"), outputs)


def test_probabilities_in_the_unit_interval_are_logits_still() -> None:
    """Nothing is guessed: logits that look like probabilities are softmaxed when said to be logits."""
    logits = torch.tensor([[0.5, 0.5, 0.0]])
    assert not torch.equal(probabilities(logits, "single_label_classification"), logits)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_precision(problem_type: str, dtype: torch.dtype) -> None:
    """Half precision is computed in float32, double stays double, and the kind of array stays."""
    logits = torch.linspace(-4, 4, 12, dtype=dtype).reshape(3, 4)
    probs = probabilities(logits, problem_type)
    assert probs.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(probs.double(), probabilities(logits.double(), problem_type), atol=1e-6, rtol=1e-6)
    if dtype != torch.bfloat16:
        np.testing.assert_array_equal(probabilities(logits.numpy(), problem_type), probs.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_probabilities_pass_the_check(dtype: torch.dtype) -> None:
    """What `probabilities` makes of many classes, `checked_probabilities` takes, also rounded to half precision."""
    logits = 5 * torch.randn(8, 1000, 3, generator=torch.Generator().manual_seed(0))  # [B, C, T]
    probs = probabilities(logits, "single_label_classification").to(dtype)
    assert torch.equal(checked_probabilities(probs, "x"), probs.float())


def test_unknown_problem_type() -> None:
    """An unknown problem type is refused with the known ones."""
    with pytest.raises(
        ValueError, match="single_label_classification, multi_label_classification, regression, got None"
    ):
        probabilities(np.zeros((2, 3)), None)  # type: ignore[arg-type]


def test_bad_logits() -> None:
    """Logits without a class axis, softmax over one class, and integers are refused."""
    with pytest.raises(ValueError, match=r"needs logits \[B, C, \.\.\.\], got \[3\]"):
        probabilities(np.zeros(3), "regression")
    with pytest.raises(ValueError, match=r"needs 2 logits or more, got \[3, 1\].*regression"):
        probabilities(np.zeros((3, 1)), "single_label_classification")
    with pytest.raises(TypeError, match=r"probabilities needs float64, .*, got int64"):
        probabilities(np.zeros((3, 2), np.int64), "regression")


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_copied_or_changed(check) -> None:
    """A good array in full precision passes as the very same memory."""
    tensor = torch.from_numpy(FLAT)
    assert check(tensor, "x") is tensor
    assert check(FLAT, "x").data_ptr() == FLAT.ctypes.data


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_rank(check, shape: tuple[int, ...]) -> None:
    """Fewer than three axes are refused, saying how to add the axis of draws."""
    with pytest.raises(ValueError, match=r"x needs posterior draws \[N, C, \.\.\., T\], got .* probs\[\.\.\., None\]"):
        check(np.ones(shape), "x")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("shape", [(0, 2, 5), (4, 0, 5), (4, 2, 0, 5), (4, 2, 0)])
def test_empty(check, shape: tuple[int, ...]) -> None:
    """An empty axis is refused."""
    with pytest.raises(ValueError, match=r"at least one row, class, position and draw, got \[.*0"):
        check(np.ones(shape), "x")


@pytest.mark.parametrize("check", CHECKS)
def test_draws(check) -> None:
    """The number of draws asked for is the least that passes."""
    check(FLAT, "x", draws=5)
    with pytest.raises(ValueError, match=r"x needs 6 posterior draws or more, got \[4, 2, 3, 5\]"):
        check(FLAT, "x", draws=6)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(2, 0, 1, 3), (2, 0, 1), (2, slice(None), 1, 3)], ids=["value", "class", "draw"])
def test_not_finite(check, value: float, place: tuple) -> None:
    """NaN in some classes or draws of a position, and any infinity, raises and names the row."""
    with pytest.raises(ValueError, match=r"x needs finite predictions, got NaN or infinity in row 2\. .*padding"):
        check(changed(place, value), "x")


@pytest.mark.parametrize("check", CHECKS)
def test_infinite_position_is_no_padding(check) -> None:
    """Only NaN is padding: a position that is infinite throughout raises."""
    with pytest.raises(ValueError, match="NaN or infinity in row 1"):
        check(changed((1, slice(None), 2), np.inf), "x")


@pytest.mark.parametrize("check", CHECKS)
def test_padding(check) -> None:
    """A position that is NaN in every class and draw is padding and passes."""
    padded = changed((1, slice(None), slice(1, None)), np.nan)
    np.testing.assert_array_equal(check(padded, "x"), padded)


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_but_padding(check) -> None:
    """A row without a real position raises and is named."""
    with pytest.raises(ValueError, match=r"needs a real position a row, got only padding in rows 1, 3\."):
        check(changed(([1, 3],), np.nan), "x")


@pytest.mark.parametrize("check", CHECKS)
def test_no_padding_without_positions(check) -> None:
    """Without positions there is no padding: a row of NaN is a broken row, other rows or none."""
    with pytest.raises(ValueError, match=r"needs finite predictions, got NaN or infinity in row 3\."):
        check(changed((3,), np.nan)[:, :, 0], "x")


def test_padding_hides_no_other_error() -> None:
    """Real positions beside padding are checked as ever."""
    padded = changed((1, slice(None), 2), np.nan)
    padded[3, 0, 0, 0] = 0.9
    with pytest.raises(ValueError, match=r"got 1\.4 in row 3\."):
        checked_probabilities(padded, "x")


def test_negative() -> None:
    """Negative values are no probabilities, even where they sum to 1."""
    values = changed((2, 0, 0, 0), -0.5)
    values[2, 1, 0, 0] = 1.5
    with pytest.raises(ValueError, match=r"got negative values in row 2\. Turn logits into probabilities first"):
        checked_probabilities(values, "x")
    checked_draws(values, "x")


def test_sums() -> None:
    """Sums beyond rounding raise with the first row and its sum, and the others that are off."""
    values = changed((1, 0, 2, 4), 0.6)
    values[3] = 0.1
    with pytest.raises(
        ValueError, match=r"sums of 1 over classes, got 1\.1 in row 1 and others in row 3\. Rounding explains 0\.001 in"
    ):
        checked_probabilities(values, "x")
    checked_draws(values, "x")


@pytest.mark.parametrize(("dtype", "passes"), [(torch.float64, False), (torch.float32, False), (torch.bfloat16, True)])
def test_tolerance_goes_by_dtype(dtype: torch.dtype, passes: bool) -> None:
    """Thirds rounded to bfloat16 sum to 1.002: right for bfloat16, wrong for anything finer."""
    rounded = torch.full((1, 3, 2), 1 / 3).bfloat16().to(dtype)
    if passes:
        checked_probabilities(rounded, "x")
        return
    with pytest.raises(ValueError, match=r"got 1\.002 in row 0"):
        checked_probabilities(rounded, "x")


@pytest.mark.parametrize("values", [[[[0.5], [0.5]]], None, 3, "text"])
def test_wrong_kind(values) -> None:
    """Only NumPy arrays and tensors are arrays."""
    with pytest.raises(TypeError, match=r"x needs a NumPy array or a torch tensor, got (list|NoneType|int|str)"):
        checked_draws(values, "x")


@pytest.mark.parametrize("dtype", [bool, int, complex, object, np.longdouble])
def test_wrong_dtype(dtype) -> None:
    """Other numbers than floats of 16 to 64 bits are refused, not cast."""
    with pytest.raises(TypeError, match="x needs float64, float32, float16, bfloat16, got"):
        checked_draws(np.ones((2, 3, 4), dtype), "x")
    with pytest.raises(TypeError, match="got int32"):
        checked_draws(torch.ones(2, 3, 4, dtype=torch.int32), "x")


def test_as_numpy() -> None:
    """Tensors come to NumPy from any graph and from bfloat16."""
    tensor = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    assert as_numpy(tensor).tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_sigmoids(value: float) -> None:
    """Probabilities of labels lie in [0, 1], whatever they sum to, also beside padding."""
    values = changed((1, slice(None), 2), np.nan)
    values[0] = [[[0]], [[1]]]
    values[2] = 0.9
    np.testing.assert_array_equal(checked_sigmoids(values, "x"), values)
    values[3, 1, 2, 4] = value
    with pytest.raises(ValueError, match=r"x needs probabilities in \[0, 1\], got others in row 3\..*multi_label"):
        checked_sigmoids(values, "x")


def coins(rows: int) -> np.ndarray:
    """Probabilities [N, 2, 1000]; some 260 rows are a chunk."""
    heads = np.random.default_rng(0).random((rows, 1000), dtype=np.float32)
    return np.stack([heads, 1 - heads], axis=1)


def heads(values: torch.Tensor) -> torch.Tensor:
    """Mean over draws of the first class, [n]."""
    return values[:, 0].mean(-1)


LAYOUTS = {
    "array": lambda values: values,
    "tensor": torch.from_numpy,
    "transposed": lambda values: np.asfortranarray(values),
    "reversed": lambda values: values[::-1].copy()[::-1],
    "read-only": lambda values: np.broadcast_to(values, values.shape),
    "gradient": lambda values: torch.from_numpy(values).requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scored_in_chunks(layout: str) -> None:
    """Every row is scored once, in chunks, and gets the score that it has alone, whatever the layout."""
    values, sizes = coins(700), []

    def score(chunk: torch.Tensor) -> torch.Tensor:
        sizes.append(len(chunk))
        return heads(chunk)

    given = LAYOUTS[layout](values)
    scores = scored(score, given, "x")
    assert len(sizes) > 2
    assert sum(sizes) == 700
    assert type(scores) is type(given)
    alone = torch.cat([heads(torch.from_numpy(values[row : row + 1])) for row in range(700)])
    np.testing.assert_array_equal(scores, alone)  # a tensor with a graph would not be taken here


def test_scored_leaves_the_input_alone() -> None:
    """A memory map that cannot be written to is scored as it is."""
    values = coins(3)
    values.flags.writeable = False
    before = values.copy()
    bald(values)
    np.testing.assert_array_equal(values, before)


def test_scored_memory_map(tmp_path: Path) -> None:
    """A file that is read through a map gives the scores of the array in it."""
    np.save(tmp_path / "probs.npy", coins(600))
    np.testing.assert_array_equal(bald(np.load(tmp_path / "probs.npy", mmap_mode="r")), bald(coins(600)))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinity"), (-0.5, "negative"), (1.5, "sums of 1")])
def test_scored_errors_name_rows_of_all(value: float, message: str) -> None:
    """A row in a later chunk is named by its place in the whole array."""
    values = coins(700)
    values[[650, 699], 0, 3] = value
    with pytest.raises(ValueError, match=rf"{message}.* (rows 650, 699|row 650 and others in row 699)\."):
        scored(heads, values, "x")


def test_scored_with_other_check() -> None:
    """Another check and number of draws are asked for by name."""
    assert scored(heads, 3 * coins(2), "x", draws=1000, check=checked_draws).shape == (2,)
    with pytest.raises(ValueError, match="x needs 1001 posterior draws or more, got"):
        scored(heads, coins(2), "x", draws=1001)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_scored_beside(kind) -> None:
    """What lies beside the predictions is cut into the same rows, and comes in their precision."""
    weights = kind(np.arange(700.0))  # float64

    def score(chunk: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert weight.dtype == chunk.dtype == torch.float32
        return heads(chunk) * weight

    values = coins(700)
    expected = scored(heads, values, "x") * np.arange(700, dtype=np.float32)
    np.testing.assert_array_equal(scored(score, values, "x", beside=[weights]), expected)


@pytest.mark.parametrize("values", [None, [[[0.5], [0.5]]], np.ones((2, 3)), np.ones((0, 2, 3)), np.ones((2, 0, 3))])
def test_scored_nothing(values) -> None:
    """What has no rows, axes or numbers raises what the check says, instead of scoring nothing."""
    with pytest.raises((TypeError, ValueError), match="x needs"):
        scored(heads, values, "x")


@few
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 4))
def test_votes(seed: int, levels: int) -> None:
    """A draw votes for the first of its most probable classes; padding has no votes."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (6, 3, 2, 4)) / levels  # many are equal
    values[rng.random(6) < 0.5, :, 1] = np.nan
    shares = vote_shares(torch.from_numpy(values)).numpy()  # [N, C, S]
    for n, s in np.ndindex(6, 2):
        column = values[n, :, s]  # [C, T]
        if np.isnan(column).all():
            assert np.isnan(shares[n, :, s]).all()
            continue
        votes = [list(draw).index(max(draw)) for draw in column.T]
        assert shares[n, :, s].tolist() == [votes.count(c) / 4 for c in range(3)]


MASK = np.array([[True, True, False], [True, False, False], [False, True, True], [True, True, True]])  # [N, S]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_masked(dtype: torch.dtype) -> None:
    """Masking writes padding outside the mask into a copy of the same precision, and nothing else."""
    values = torch.from_numpy(FLAT).to(dtype)
    hidden = masked(values, MASK)
    assert hidden.dtype == dtype
    assert torch.equal(hidden.isnan()[:, 0, :, 0], torch.from_numpy(~MASK))
    assert torch.equal(hidden.nan_to_num(0.5), values)
    assert not values.isnan().any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("mask", [MASK, np.broadcast_to(MASK, MASK.shape), MASK[::-1].copy()[::-1], torch.tensor(MASK)])
def test_masked_array(dtype: type, mask) -> None:
    """NumPy stays NumPy, whatever holds the mask, and scores are those without the hidden positions."""
    values = FLAT.astype(dtype)
    hidden = masked(values, mask)
    assert type(hidden) is np.ndarray
    assert hidden.dtype == dtype
    np.testing.assert_array_equal(np.isnan(entropy(hidden)), ~MASK)
    np.testing.assert_allclose(entropy(hidden)[MASK], np.log(2), rtol=1e-3)


def test_masked_half_precision_is_still_checked_as_such() -> None:
    """Thirds in bfloat16, which sum to 1.002, pass after masking as before."""
    thirds = torch.full((1, 3, 2, 2), 1 / 3).bfloat16()
    checked_probabilities(masked(thirds, torch.tensor([[True, False]])), "x")


def test_mask_that_hides_a_row() -> None:
    """A row of which the mask leaves nothing raises and is named."""
    mask = MASK.copy()
    mask[[1, 3]] = False
    with pytest.raises(ValueError, match=r"masked needs a position of each row, the mask hides all of rows 1, 3\."):
        masked(FLAT, mask)


def test_mask_that_leaves_padding_only() -> None:
    """A row whose positions in the mask are all padding is refused where it is scored."""
    padded = changed((1, slice(None), 0), np.nan)
    with pytest.raises(ValueError, match=r"needs a real position a row, got only padding in row 1\."):
        entropy(masked(padded, MASK))


@pytest.mark.parametrize("shape", [(4,), (4, 2), (3, 3), (4, 3, 1), (4, 2, 3, 5)])
def test_mask_of_another_shape(shape: tuple[int, ...]) -> None:
    """A mask is [N, *S], never broadcast."""
    with pytest.raises(ValueError, match=r"masked needs a mask \[4, 3\], one entry a position, got \["):
        masked(FLAT, np.ones(shape, bool))


@pytest.mark.parametrize("mask", [MASK.astype(int), torch.tensor(MASK).float(), MASK.tolist(), None])
def test_mask_of_another_type(mask) -> None:
    """A mask is boolean: 0 and 1 may have been anything."""
    with pytest.raises(TypeError, match=r"masked needs a (boolean mask|mask as NumPy array or torch tensor), got"):
        masked(FLAT, mask)


def test_masked_bad_predictions() -> None:
    """Only predictions with positions, in floating-point numbers, can be masked."""
    with pytest.raises(ValueError, match=r"masked needs predictions \[N, C, \*S, T\] with positions, got \[4, 2, 3\]"):
        masked(FLAT[..., 0], MASK)
    with pytest.raises(TypeError, match="masked needs a NumPy array or a torch tensor, got list"):
        masked(FLAT.tolist(), MASK)
    with pytest.raises(TypeError, match=r"masked needs float64, .*, got int64"):
        masked(FLAT.astype(int), MASK)


def test_checked_mask() -> None:
    """A good mask comes back as the very same memory."""
    assert checked_mask(MASK, [4, 3], "x").data_ptr() == MASK.ctypes.data
