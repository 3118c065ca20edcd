"""Every law of tests/laws.py over every heuristic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import laws
from tests.laws import CASES, Case, coarse_probs, few, probs

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
drawing = pytest.mark.parametrize("case", [case for case in CASES if case.needs_draws], ids=lambda case: case.name)


@every
@few
@given(values=probs())
def test_range(case: Case, values: np.ndarray) -> None:
    """Scores are finite and within the range of the docstring, also at certainty and at exact zeros."""
    laws.within_range(case, values)


@every
@few
@given(values=probs())
def test_reference(case: Case, values: np.ndarray) -> None:
    """Scores agree with the textbook formula in plain Python."""
    laws.agrees_with_reference(case, values)


@every
@few
@given(values=probs(), seed=st.integers(0, 99))
def test_rows(case: Case, values: np.ndarray, seed: int) -> None:
    """Permuting rows permutes scores."""
    laws.rows_are_independent(case, values, np.random.default_rng(seed).permutation(len(values)))


@every
@pytest.mark.parametrize("axis", [1, -1], ids=["classes", "draws"])
@few
@given(values=probs())
def test_order_of_classes_and_draws(case: Case, axis: int, values: np.ndarray) -> None:
    """Permuting classes or draws changes nothing."""
    laws.axis_is_a_set(case, values, axis)


@every
@few
@given(values=probs())
def test_repeated_draws(case: Case, values: np.ndarray) -> None:
    """Scores are averages over draws: having each draw twice changes nothing."""
    laws.repeating_draws_changes_nothing(case, values)


@drawing
@few
@given(values=probs())
def test_identical_draws(case: Case, values: np.ndarray) -> None:
    """Identical draws give zero disagreement."""
    same = np.repeat(values[..., :1], 7, -1)
    np.testing.assert_allclose(case.score(same), 0, atol=1e-12)


@every
@few
@given(values=probs(), size=st.integers(1, 5))
def test_chunks(case: Case, values: np.ndarray, size: int) -> None:
    """A generator of batches gives the scores and ranks of the whole array."""
    laws.chunked_equals_whole(case, values, size)


@every
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "float16"])
def test_chunks_within(case: Case, layout: str) -> None:
    """A row's score is the same to the last bit in a large array, scored in chunks, and alone."""
    values = torch.rand(4000, 4, 40, generator=torch.Generator().manual_seed(0)).softmax(1)  # more than 2**19 numbers
    if layout == "transposed":
        values = values.mT.contiguous().mT
    values = values.half() if layout == "float16" else values
    scores = case.score(values)
    for row in [*range(20), *range(3265, 3285), 3999]:
        assert scores[row] == case.score(values[row : row + 1])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@few
@given(values=coarse_probs())
def test_exact_half_precision(case: Case, dtype: torch.dtype, values: np.ndarray) -> None:
    """The same numbers have the same score in every precision, also exact zeros and equal classes."""
    laws.same_numbers_same_scores(case, values, dtype)


@pytest.mark.parametrize("case", [case for case in CASES if case.smooth], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@few
@given(values=probs())
def test_half_precision(case: Case, dtype: torch.dtype, values: np.ndarray) -> None:
    """Half-precision probabilities are taken as such, never softmaxed again, and scored as double within rounding."""
    laws.half_agrees_with_double(case, values, dtype)


@every
@few
@given(values=probs(positions=1), width=st.integers(1, 3))
def test_padding(case: Case, values: np.ndarray, width: int) -> None:
    """Padded positions score NaN and do not count in any reduction."""
    laws.padding_is_ignored(case, values, width)


@every
def test_kind_of_array(case: Case) -> None:
    """NumPy gives NumPy and a tensor gives a tensor, with equal scores, from function and class alike."""
    values = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    for score in (case.score, case.make().compute_score):
        assert isinstance(score(values), torch.Tensor)
        assert isinstance(score(values.numpy()), np.ndarray)
        np.testing.assert_array_equal(score(values).numpy(), score(values.numpy()))
    assert isinstance(case.make().get_uncertainties(values), np.ndarray)


@every
def test_input_is_left_alone(case: Case) -> None:
    """Scoring changes no user's array, and takes views, foreign byte order and read-only memory."""
    values = np.random.default_rng(0).dirichlet(np.ones(3), (4, 6)).transpose(0, 2, 1)  # [N, C, T]
    before = values.copy()
    expected = case.score(before)
    frozen = before.copy()
    for array in (values, frozen):
        array.flags.writeable = False
    for view in (values, frozen, values.astype(">f8"), values[::-1][::-1]):
        np.testing.assert_allclose(case.score(view), expected, atol=1e-12)
    np.testing.assert_array_equal(values, before)


@every
def test_gradients_do_not_get_in_the_way(case: Case) -> None:
    """Predictions that still carry a graph are scored to plain NumPy."""
    values = torch.rand(4, 3, 5, requires_grad=True).softmax(1)
    assert isinstance(case.make().get_uncertainties(values), np.ndarray)


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator to move to")
def test_device(case: Case) -> None:
    """Tensors are scored where they lie; rows of scores come to the host as NumPy."""
    values = torch.rand(4, 3, 5).softmax(1)
    assert case.score(values.cuda()).device.type == "cuda"
    np.testing.assert_allclose(case.make().get_uncertainties(values.cuda()), case.score(values.numpy()), atol=1e-6)
