"""EPIG against its definition, whatever the chunks, and what a target set may be."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics import EPIG, bald, epig
from tests.laws import few


def random_probs(N: int, C: int, T: int, seed: int, scale: float = 2.0) -> np.ndarray:
    """Probabilities [N, C, T] of draws that disagree."""
    logits = scale * np.random.default_rng(seed).standard_normal((N, C, T))
    return torch.from_numpy(logits).softmax(1).numpy()


def by_definition(row: np.ndarray, targets: np.ndarray) -> float:
    """Mean over targets of the divergence between the joint of both labels and the product of their marginals."""
    total = 0.0
    for target in targets:
        joint = np.mean([np.outer(row[:, t], target[:, t]) for t in range(row.shape[1])], axis=0)  # [C, C*]
        product = np.outer(joint.sum(1), joint.sum(0))
        total += sum(p * math.log(p / q) for p, q in zip(joint.flat, product.flat, strict=True) if p > 0)
    return total / len(targets)


@few
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(2, 4), st.integers(1, 5), st.integers(2, 4), st.integers(2, 6)),
    seed=st.integers(0, 9999),
    scale=st.sampled_from([0.1, 2.0, 50.0]),
)
def test_definition(shape: tuple[int, ...], seed: int, scale: float) -> None:
    """Scores are the expected mutual information of both labels, also where targets have other classes."""
    N, C, M, D, T = shape
    probs, targets = random_probs(N, C, T, seed, scale), random_probs(M, D, T, seed + 1, scale)
    expected = [by_definition(row, targets) for row in probs]
    np.testing.assert_allclose(epig(probs, targets), expected, atol=1e-9)


@pytest.mark.parametrize("numbers", [1, 7, 100, 10**9])
def test_chunks(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many joint probabilities are held at once changes no score."""
    probs, targets = random_probs(23, 3, 4, 0), random_probs(11, 3, 4, 1)
    expected = [by_definition(row, targets) for row in probs]
    monkeypatch.setattr(importlib.import_module("baal_hf.heuristics.epig"), "NUMBERS_AT_ONCE", numbers)
    np.testing.assert_allclose(epig(probs, targets), expected, atol=1e-9)


def test_range_and_order() -> None:
    """A row that tells the draws apart as the target does scores log 2, one on which draws agree 0."""
    target = np.array([[[1.0, 0.0], [0.0, 1.0]]])  # [1, C, T]
    rows = np.concatenate([np.full((1, 2, 2), 0.5), target])
    np.testing.assert_allclose(epig(rows, target), [0, math.log(2)], atol=1e-12)
    assert EPIG()(rows, target_predictions=target).tolist() == [1, 0]


def test_irrelevant_disagreement() -> None:
    """A row on which draws disagree, but not as they do on the targets, has BALD and no EPIG."""
    row = np.array([[[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]])
    target = np.array([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
    assert bald(row) == pytest.approx(math.log(2))
    assert epig(row, target) == pytest.approx(0, abs=1e-12)


def test_at_most_bald() -> None:
    """What a label says about another label is at most what it says about the network."""
    probs = random_probs(200, 4, 8, 0)
    assert (epig(probs, random_probs(20, 4, 8, 1)) <= bald(probs) + 1e-12).all()


def test_batches() -> None:
    """A generator of batches gives the scores of the whole array, in NumPy and from tensors alike."""
    probs, targets = random_probs(9, 3, 4, 0), random_probs(5, 3, 4, 1)
    whole = EPIG().get_uncertainties(probs, target_predictions=targets)
    chunked = EPIG().get_uncertainties((probs[i : i + 4] for i in (0, 4, 8)), target_predictions=targets)
    np.testing.assert_allclose(chunked, whole, atol=1e-12)
    tensors = epig(torch.from_numpy(probs), torch.from_numpy(targets))
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors.numpy(), whole, atol=1e-12)


@pytest.mark.parametrize(
    ("probs", "targets", "message"),
    [
        (random_probs(3, 2, 4, 0), random_probs(3, 2, 5, 0), "got 4 of the rows and 5 of the targets"),
        (random_probs(3, 2, 1, 0), random_probs(3, 2, 1, 0), r"EPIG's target set needs 2 posterior draws or more"),
        (random_probs(3, 2, 4, 0), random_probs(0, 2, 4, 0), r"EPIG's target set needs at least one row"),
        (random_probs(3, 2, 4, 0), 2 * random_probs(3, 2, 4, 0), "EPIG's target set needs sums of 1"),
        (np.full((2, 2, 3, 4), 0.5), random_probs(3, 2, 4, 0), r"predictions \[N, C, T\], got \[2, 2"),
        (random_probs(3, 2, 4, 0), np.full((2, 2, 3, 4), 0.5), r"targets \[N, C, T\], got \[2, 2"),
    ],
)  # fmt: skip
def test_bad_input(probs: np.ndarray, targets: np.ndarray, message: str) -> None:
    """Other draws, a single draw, no targets, positions and other than probabilities are refused."""
    with pytest.raises(ValueError, match=message):
        epig(probs, targets)


def test_targets_are_asked_for() -> None:
    """Without a target set there is no EPIG: the error says what to pass."""
    with pytest.raises(
        TypeError, match=r"EPIG needs predictions of the rows to be predicted well .* target_predictions"
    ):
        EPIG()(random_probs(3, 2, 4, 0))
