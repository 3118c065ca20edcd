"""Logits to probabilities, and the checks on predictions."""

import numpy as np
import pytest
import torch

from baal_hf.arrays import PROBLEM_TYPES, as_numpy, checked_draws, checked_probabilities, probabilities

FLAT = np.full((4, 2, 3, 5), 0.5)  # [N, C, S, T]
CHECKS = [checked_draws, checked_probabilities]


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
    with pytest.raises(ValueError, match=r"x needs sums of 1 over classes, got 1\.1 in rows 1, 3\. Turn logits"):
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
