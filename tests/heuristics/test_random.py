"""Random: uniform scores, from its own seed, of anything with a length."""

import numpy as np
import pytest
import torch

from baal_hf.heuristics import Random


def test_needs_no_predictions() -> None:
    """Random ranks anything with a length and says that it needs no predictions."""
    assert not Random.needs
    for rows in (range(50), "x" * 50, np.zeros((50, 3, 2)), torch.zeros(50, 3, 2), [{"text": "a"}] * 50):
        ranks, scores = Random().get_ranks(rows)
        assert sorted(ranks.tolist()) == list(range(50))
        assert isinstance(scores, np.ndarray)
        assert ((scores >= 0) & (scores < 1)).all()


def test_seeds() -> None:
    """The same seed gives the same scores, another seed or a later call gives others."""
    first, again, other = Random(seed=1), Random(seed=1), Random(seed=2)
    scores = first.get_uncertainties(range(9))
    np.testing.assert_array_equal(scores, again.get_uncertainties(range(9)))
    assert (scores != other.get_uncertainties(range(9))).any()
    assert (scores != first.get_uncertainties(range(9))).any()


def test_no_seed() -> None:
    """With seed None each heuristic draws its own scores."""
    assert (Random(seed=None).get_uncertainties(range(9)) != Random(seed=None).get_uncertainties(range(9))).any()


def test_global_state_is_left_alone() -> None:
    """Neither NumPy's nor torch's global generator moves or matters."""
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    Random().get_ranks(range(100))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    assert torch.equal(torch_before, torch.get_rng_state())


def test_chunks() -> None:
    """Batches from a generator get the scores that the rows would get at once."""
    chunked = Random(seed=3).get_uncertainties(range(size) for size in (2, 5, 1))
    np.testing.assert_array_equal(chunked, Random(seed=3).get_uncertainties(range(8)))


def test_kind_of_array() -> None:
    """A tensor is answered with a tensor, everything else with NumPy."""
    assert isinstance(Random().compute_score(torch.zeros(3, 2, 1)), torch.Tensor)
    assert isinstance(Random().compute_score(np.zeros((3, 2, 1))), np.ndarray)


def test_uniform() -> None:
    """Scores spread evenly over [0, 1)."""
    counts, _ = np.histogram(Random().get_uncertainties(range(10_000)), bins=10, range=(0, 1))
    assert (abs(counts - 1000) < 150).all()


def test_empty_pool() -> None:
    """An empty pool is an error, not an empty ranking."""
    with pytest.raises(ValueError, match="Random needs at least one row, got none"):
        Random()([])


def test_ambiguous_list() -> None:
    """A list of arrays may hold rows or batches; Random does not guess."""
    with pytest.raises(TypeError, match=r"rows or batches.*get_uncertainties_generator"):
        Random()([np.zeros((3, 2, 1)), np.zeros((1, 2, 1))])


def test_no_length() -> None:
    """What has no length cannot be ranked."""
    with pytest.raises(TypeError, match=r"Random needs .* got int"):
        Random()(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Random needs rows with a length, got int"):
        Random().get_uncertainties_generator([7])
