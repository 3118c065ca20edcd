"""BatchBALD against enumeration of all labels, its golden case and scikit-activeml, and beyond enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import batch_bald

from baal_hf.heuristics import BALD, BatchBALD, bald, batchbald
from tests.laws import few


def random_probs(N: int, C: int, T: int, seed: int, scale: float = 2.0) -> np.ndarray:
    """Probabilities [N, C, T] of draws that disagree."""
    logits = scale * np.random.default_rng(seed).standard_normal((N, C, T))
    return torch.from_numpy(logits).softmax(1).numpy()


def joint_information(probs: np.ndarray) -> float:
    """Mutual information of the labels of all rows [K, C, T] together and the draw, by enumeration."""
    T = probs.shape[-1]
    information = 0.0
    for labels in itertools.product(range(probs.shape[1]), repeat=len(probs)):
        of_draw = [math.prod(row[c][t] for row, c in zip(probs, labels, strict=True)) for t in range(T)]
        mean = sum(of_draw) / T
        information += sum(p * math.log(p / mean) for p in of_draw if p > 0 < mean) / T
    return information


@few
@given(
    C=st.integers(2, 3),
    T=st.integers(2, 5),
    K=st.integers(1, 4),
    seed=st.integers(0, 9999),
    scale=st.sampled_from([0.3, 2.0, 300.0]),
)
def test_enumeration(C: int, T: int, K: int, seed: int, scale: float) -> None:
    """Each pick adds as much as any row could, and gains sum up to the joint information, as enumeration has them."""
    probs = random_probs(6, C, T, seed, scale)
    picks, gains = batchbald(probs, K)
    assert len(set(picks.tolist())) == K
    for k in range(K):
        before = joint_information(probs[picks[:k]])
        best = max(joint_information(probs[[*picks[:k], n]]) for n in range(6) if n not in picks[:k])
        assert gains[k] == pytest.approx(best - before, abs=1e-9)
        assert gains[: k + 1].sum() == pytest.approx(joint_information(probs[picks[: k + 1]]), abs=1e-9)


@few
@given(N=st.integers(4, 30), T=st.integers(2, 8), seed=st.integers(0, 9999))
def test_scikit_activeml(N: int, T: int, seed: int) -> None:
    """Picks and joint information are those of scikit-activeml where it enumerates, too."""
    probs = random_probs(N, 3, T, seed)
    utilities = batch_bald(probs.transpose(2, 0, 1), 4, n_MC_samples=100_000, random_state=0)  # [K, N]
    picks, gains = batchbald(probs, 4)
    # It takes probabilities below 1e-7 as 1e-7, hence the tolerance.
    np.testing.assert_allclose(gains.cumsum(), np.nanmax(utilities, 1), atol=1e-5)
    np.testing.assert_allclose(utilities[np.arange(4), picks], np.nanmax(utilities, 1), atol=1e-5)


def test_golden_case() -> None:
    """Of the four 4-class mixtures with T = 20 the joint information is that of batchbald_redux, in its order."""
    share = np.linspace(0, 1, 20)  # [T]
    first, second = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.3, 0.3, 0.2, 0.2])
    rows = [np.outer(np.roll(first, n), 1 - share) + np.outer(np.roll(second, n), share) for n in range(4)]
    picks, gains = batchbald(np.stack(rows), 4)
    np.testing.assert_allclose(gains.cumsum(), [0.0307156, 0.0596196, 0.0869107, 0.1127530], atol=1e-6)
    assert sorted(picks) == [0, 1, 2, 3]


def test_one_pick_is_balds() -> None:
    """With K = 1 the pick is BALD's top row, what it adds is its BALD, and scores are BALD's."""
    for seed in range(20):
        probs = random_probs(50, 4, 6, seed)
        picks, gains = batchbald(probs, 1)
        assert picks[0] == BALD()(probs)[0]
        assert gains[0] == pytest.approx(bald(probs).max(), abs=1e-12)
        ranks, scores = BatchBALD(1).get_ranks(probs)
        assert ranks.tolist() == picks.tolist()
        np.testing.assert_allclose(scores, bald(probs), atol=1e-12)


def test_first_pick_first() -> None:
    """The order is the greedy one: exactly K picks, of which fewer picks are the beginning."""
    probs = random_probs(40, 3, 8, seed=1)
    four = BatchBALD(4).get_ranks(probs)[0]
    assert four.dtype == np.int64
    assert len(four) == 4
    for K in (1, 2, 3):
        assert BatchBALD(K)(probs).tolist() == four[:K].tolist()
    assert BatchBALD(4)(probs, query_size=2).tolist() == four[:2].tolist()
    assert sorted(BatchBALD(40)(probs)) == list(range(40))


def test_copies_are_not_picked_again() -> None:
    """Where plain BALD takes copies of one row, BatchBALD takes a row that says something else."""
    copied, other = [0.99, 0.99, 0.01, 0.01], [0.98, 0.02, 0.98, 0.02]  # p(class 0) under each draw
    first = np.array([copied, copied, copied, other])  # [N, T]
    probs = np.stack([first, 1 - first], axis=1)  # [N, C, T]
    assert set(BALD()(probs)[:2]) <= {0, 1, 2}
    assert BatchBALD(2)(probs).tolist() == [0, 3]


def test_ties_keep_row_order() -> None:
    """Of rows that add the same the first is picked, also where each is looked at in another block."""
    row = random_probs(1, 3, 5, seed=0)
    probs = np.repeat(row, 300, axis=0).astype(np.float32)
    assert batchbald(probs, 5)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_draw", [20, 200, 2000])
def test_sampling_is_near_enumeration(num_draw: int) -> None:
    """With fewer configurations than there are, the gains of the same picks are right on average."""
    probs = random_probs(6, 3, 6, seed=3, scale=1.0)
    exact = joint_information(probs)
    sampled = [batchbald(probs, 6, num_draw, np.random.default_rng(seed))[1].sum() for seed in range(40)]
    assert np.mean(sampled) == pytest.approx(exact, abs=0.004 + 3 * np.std(sampled) / math.sqrt(40))
    assert np.std(sampled) < 1.5 / math.sqrt(num_draw)


def test_many_picks() -> None:
    """Large batches neither underflow nor repeat a row: gains are finite and sum to log T."""
    probs = random_probs(300, 10, 8, seed=0).astype(np.float32)
    picks, gains = batchbald(probs, 200)
    assert len(set(picks.tolist())) == 200
    assert np.isfinite(gains).all()
    assert (gains >= 0).all()
    assert gains.sum() == pytest.approx(math.log(8), abs=0.05)
    determined = int((gains > 0).sum())
    assert determined < 60
    rest = picks[determined:]
    assert (np.diff(bald(probs)[rest]) <= 0).all(), "the others follow by BALD"


def test_certain_draws() -> None:
    """Draws that are each certain, zeros and all, are told apart by as many rows as that takes."""
    codes = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]])  # [N, T], class that each draw is certain of
    probs = np.stack([1.0 - codes, codes], axis=1)  # [N, C, T]
    picks, gains = batchbald(probs, 3)
    assert picks.tolist() == [0, 1, 2]
    np.testing.assert_allclose(gains, [math.log(2), math.log(2), 0], atol=1e-12)


def test_seed() -> None:
    """The same seed gives the same picks, whatever was drawn elsewhere."""
    probs = random_probs(200, 5, 6, seed=0, scale=0.3)
    first = BatchBALD(12, num_draw=50, seed=1)(probs)
    np.random.seed(5)
    np.testing.assert_array_equal(first, BatchBALD(12, num_draw=50, seed=1)(probs))
    assert (first != BatchBALD(12, num_draw=50, seed=2)(probs)).any()


def test_kinds_of_arrays() -> None:
    """NumPy gives NumPy, a tensor a tensor; batches are put together; half precision picks what double picks."""
    probs = random_probs(20, 3, 5, seed=4)
    picks, gains = batchbald(torch.from_numpy(probs), 3)
    assert isinstance(picks, torch.Tensor)
    assert isinstance(gains, torch.Tensor)
    assert picks.tolist() == batchbald(probs, 3)[0].tolist()
    assert BatchBALD(3)(probs[start : start + 7] for start in (0, 7, 14)).tolist() == picks.tolist()
    assert batchbald(torch.from_numpy(probs).half(), 3)[0].tolist() == picks.tolist()


@pytest.mark.parametrize(
    ("probs", "query_size", "message"),
    [
        (random_probs(5, 3, 4, 0), 6, r"BatchBALD needs a query_size in 1 \.\. 5, the number of rows, got 6"),
        (random_probs(5, 3, 4, 0), 0, r"BatchBALD needs a query_size in 1 \.\. 5, the number of rows, got 0"),
        (random_probs(5, 3, 1, 0), 2, r"BatchBALD needs 2 posterior draws or more, got \[5, 3, 1\]"),
        (np.full((2, 3, 4, 5), 1 / 3), 1, r"BatchBALD needs one prediction a row \[N, C, T\], got \[2, 3, 4, 5\]"),
        (2 * random_probs(5, 3, 4, 0), 2, r"sums of 1 over classes, got 2 in row 0 and others in rows 1, 2"),
    ],
)
def test_bad_input(probs: np.ndarray, query_size: int, message: str) -> None:
    """More picks than rows, a single draw, positions and other than probabilities are refused by function and class."""
    with pytest.raises(ValueError, match=message):
        batchbald(probs, query_size)
    with pytest.raises(ValueError, match=message):
        BatchBALD()(probs, query_size)


def test_num_draw() -> None:
    """Without configurations there is nothing to average over."""
    with pytest.raises(ValueError, match="BatchBALD needs num_draw >= 1, got 0"):
        batchbald(random_probs(5, 3, 4, 0), 2, num_draw=0)
    with pytest.raises(ValueError, match="BatchBALD needs num_draw >= 1, got 0"):
        BatchBALD(2, 0)
    with pytest.raises(ValueError, match="BatchBALD needs a query_size of 1 or more, got -1"):
        BatchBALD(-1)


def test_gradients_do_not_get_in_the_way() -> None:
    """Predictions that still carry a graph are ranked without one, and without a warning."""
    probs = torch.from_numpy(random_probs(9, 3, 4, 0)).requires_grad_()
    assert not batchbald(probs, 3)[1].requires_grad
