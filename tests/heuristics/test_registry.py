"""What every heuristic of the registry answers, given the arrays that it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from baal_hf.heuristics import ARRAYS, AbstractHeuristic, available_heuristics, get_heuristic

N, C, L, d = 24, 3, 6, 5
rng = np.random.default_rng(0)

GIVEN: dict[str, Any] = {
    "predictions": rng.dirichlet(np.ones(C), (N, 4)).transpose(0, 2, 1),  # [N, C, T]
    "features": rng.standard_normal((N, d)),
    "labels": rng.integers(0, C, N),
    "labelled_features": rng.standard_normal((L, d)),
    "labelled_predictions": rng.dirichlet(np.ones(C), (L, 4)).transpose(0, 2, 1),
    "labelled_labels": rng.integers(0, C, L),
    "target_predictions": rng.dirichlet(np.ones(C), (8, 4)).transpose(0, 2, 1),
}
MADE_WITH: dict[str, dict[str, Any]] = {
    "classbalanced": {"base_heuristic": "bald"},
    "combineheuristics": {"heuristics": ["bald", "margin"]},
    "gibbssampling": {"base_heuristic": "bald"},
    "powersampling": {"base_heuristic": "margin"},
    "prefiltered": {"base_heuristic": "batchbald", "by": "entropy"},
    "probcover": {"classes": C},
    "rankbasedsampling": {"base_heuristic": "entropy"},
    "withoutduplicates": {"base_heuristic": "bald"},
}
every = pytest.mark.parametrize("name", available_heuristics())


def made(name: str) -> AbstractHeuristic:
    """The heuristic, seeded."""
    return get_heuristic(name, seed=1, **MADE_WITH.get(name, {}))


def arrays_for(name: str, heuristic: AbstractHeuristic) -> tuple[Any, dict[str, Any]]:
    """Predictions, or what stands for them, and the other arrays."""
    arrays = {need: GIVEN[need] for need in heuristic.needs}
    if name == "cvirs":
        arrays["labelled_labels"] = np.eye(C, dtype=int)[GIVEN["labelled_labels"]]
    if name == "precomputed":
        arrays["predictions"] = np.arange(float(N))
    return arrays.pop("predictions", range(N)), arrays


@every
def test_k_rows(name: str) -> None:
    """K different rows come out, first pick first, with a finite score for each of the N rows."""
    heuristic = made(name)
    predictions, arrays = arrays_for(name, heuristic)
    ranks, scores = heuristic.get_ranks(predictions, 7, **arrays)
    assert (ranks.dtype, len(ranks), len(set(ranks.tolist()))) == (np.int64, 7, 7)
    assert set(ranks.tolist()) <= set(range(N))
    assert scores.shape == (N,)
    assert np.isfinite(scores).all()


@every
def test_seeded(name: str) -> None:
    """Two heuristics of one seed pick the same rows, whatever the global generators do."""
    heuristic = made(name)
    predictions, arrays = arrays_for(name, heuristic)
    first = heuristic(predictions, 7, **arrays)
    np.random.seed(3)
    torch.manual_seed(3)
    np.testing.assert_array_equal(first, made(name)(predictions, 7, **arrays))


@every
def test_all_rows(name: str) -> None:
    """With K = N every row is picked once; more are refused, and so is none."""
    heuristic = made(name)
    predictions, arrays = arrays_for(name, heuristic)
    assert sorted(heuristic(predictions, N, **arrays)) == list(range(N))
    for K in (0, N + 1):
        with pytest.raises(ValueError, match=rf"{heuristic.name} needs a query_size in 1 \.\. {N}, .* got {K}"):
            heuristic(predictions, K, **arrays)


@every
def test_tensors(name: str) -> None:
    """Tensors give the picks and scores that arrays give."""
    heuristic = made(name)
    predictions, arrays = arrays_for(name, heuristic)
    ranks, scores = heuristic.get_ranks(predictions, 5, **arrays)
    tensors = {need: torch.from_numpy(array) for need, array in arrays.items()}
    if isinstance(predictions, np.ndarray):
        predictions = torch.from_numpy(predictions)
    again, others = made(name).get_ranks(predictions, 5, **tensors)
    np.testing.assert_array_equal(again, ranks)
    np.testing.assert_allclose(others, scores, rtol=1e-6)


@every
def test_batches(name: str) -> None:
    """Predictions that a generator yields give the picks that the whole array gives."""
    heuristic = made(name)
    predictions, arrays = arrays_for(name, heuristic)
    if "predictions" not in heuristic.needs:
        return
    batches = (predictions[start : start + 10] for start in range(0, N, 10))
    np.testing.assert_array_equal(made(name)(batches, 5, **arrays), heuristic(predictions, 5, **arrays))


@every
def test_what_is_missing_is_named(name: str) -> None:
    """Without an array that it needs a heuristic says which, and one that it does not know is refused."""
    heuristic = made(name)
    predictions, arrays = arrays_for(name, heuristic)
    for need in arrays:
        fewer = {other: array for other, array in arrays.items() if other != need}
        with pytest.raises(TypeError, match=rf"{heuristic.name} needs .*: pass {need}="):
            heuristic(predictions, 5, **fewer)
    with pytest.raises(TypeError, match=r"takes .*, got something"):
        heuristic(predictions, 5, **arrays, something=1)


def test_arguments_by_place() -> None:
    """As in Baal, `shuffle_prop` and `reduction` may follow the name."""
    heuristic = get_heuristic("bald", 0.1, "mean")
    assert (heuristic.shuffle_prop, heuristic.reduction) == (0.1, "mean")


def test_every_array_is_needed_by_some() -> None:
    """The arrays that have a name are those that heuristics need."""
    assert set(ARRAYS) == {need for name in available_heuristics() for need in made(name).needs}
