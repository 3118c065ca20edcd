"""Entropy and BALD label by label against those of two classes, and CVIRS against its definition."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from baal_hf.heuristics import (
    CVIRS,
    MultiLabelBALD,
    MultiLabelEntropy,
    bald,
    cvirs,
    entropy,
    multi_label_bald,
    multi_label_entropy,
    quantile,
    reduced,
    top_k,
)
from tests.laws import few

OVER_LABELS = ["mean", "sum", "max", "min", top_k(2), quantile(0.5)]
NAMES = ["mean", "sum", "max", "min", "top_k", "quantile"]
BOTH = [(multi_label_entropy, entropy, MultiLabelEntropy), (multi_label_bald, bald, MultiLabelBALD)]


def sigmoids(*shape: int, seed: int = 0) -> np.ndarray:
    """Probabilities of labels of that shape, exact 0 and 1 among them."""
    logits = 4 * np.random.default_rng(seed).standard_normal(shape)
    return np.where(np.abs(logits) > 9, logits > 0, 1 / (1 + np.exp(-logits)))


def two_classes(probs: np.ndarray) -> np.ndarray:
    """Each label's probability [N, C, *S, T] as that of two classes, [N·C, 2, *S, T]."""
    return np.stack([1 - probs, probs], axis=2).reshape(-1, 2, *probs.shape[2:])


@pytest.mark.parametrize(("score", "of_classes", "heuristic"), BOTH)
@pytest.mark.parametrize("over_labels", OVER_LABELS, ids=NAMES)
@few
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(), (3,), (2, 3)]))
def test_labels_are_pairs_of_classes(score, of_classes, heuristic, over_labels, seed: int, shape) -> None:
    """The score is the reduction, over labels, of each label's score as a choice of two classes."""
    probs = sigmoids(4, 3, *shape, 5, seed=seed)  # [N, C, *S, T]
    scores = score(probs, over_labels)
    assert scores.shape == (4, *shape)
    single = of_classes(two_classes(probs)).reshape(4, 3, *shape)  # [N, C, *S]
    for place in np.ndindex(scores.shape):
        row = np.moveaxis(single, 1, -1)[place]  # [C]
        assert scores[place] == pytest.approx(reduced(row[None], over_labels)[0], abs=1e-12)
    np.testing.assert_array_equal(heuristic(over_labels=over_labels).compute_score(probs), scores)


def test_by_hand() -> None:
    """Of a coin toss that draws agree on and one that they contradict each other about, BALD sees the second alone."""
    probs = np.array([[[0.5, 0.5], [1.0, 0.0]]])  # [N, C, T]
    for over_labels, share in (("sum", 2), ("mean", 1), ("max", 1), ("min", 1)):
        assert multi_label_entropy(probs, over_labels) == pytest.approx(share * math.log(2))
    for over_labels, share in (("sum", 1), ("mean", 0.5), ("max", 1), ("min", 0)):
        assert multi_label_bald(probs, over_labels) == pytest.approx(share * math.log(2))


def test_one_label() -> None:
    """One label is a choice of two classes: a single logit's sigmoid needs no stacking."""
    probs = sigmoids(6, 1, 5)
    np.testing.assert_allclose(multi_label_bald(probs), bald(two_classes(probs)), atol=1e-12)


@pytest.mark.parametrize("score", [multi_label_entropy, multi_label_bald])
@pytest.mark.parametrize("over_labels", OVER_LABELS, ids=NAMES)
def test_padding(score, over_labels) -> None:
    """Padded positions score NaN, whatever the reduction over labels, and leave the other positions alone."""
    probs = sigmoids(4, 3, 2, 5)
    padded = np.concatenate([probs, np.full((4, 3, 1, 5), np.nan)], axis=2)
    scores = score(padded, over_labels)
    np.testing.assert_array_equal(scores[:, :2], score(probs, over_labels))
    assert np.isnan(scores[:, 2]).all()


@pytest.mark.parametrize("heuristic", [MultiLabelEntropy, MultiLabelBALD])
def test_labels_first_then_positions(heuristic) -> None:
    """Labels are reduced at each position, then positions: two reductions that do not mix."""
    probs = sigmoids(4, 3, 2, 5)
    scores = heuristic(reduction="mean", over_labels="max").get_uncertainties(probs)
    expected = heuristic(over_labels="max").get_uncertainties(probs).mean(1)
    np.testing.assert_allclose(scores, expected)
    assert (np.abs(scores - heuristic(reduction="max", over_labels="mean").get_uncertainties(probs)) > 1e-3).any()


@pytest.mark.parametrize(
    ("score", "name"), [(multi_label_entropy, "MultiLabelEntropy"), (multi_label_bald, "MultiLabelBALD")]
)
def test_bad_predictions(score, name: str) -> None:
    """Logits are refused, with the row; sums are anything."""
    probs = sigmoids(4, 3, 5)
    probs[2, 1, 0] = 1.5
    with pytest.raises(ValueError, match=rf"{name} needs probabilities in \[0, 1\], got others in row 2\."):
        score(probs)


def test_missing_draws() -> None:
    """BALD of labels needs two draws, their entropy one."""
    assert multi_label_entropy(sigmoids(4, 3, 1)).shape == (4,)
    with pytest.raises(ValueError, match="MultiLabelBALD needs 2 posterior draws or more"):
        multi_label_bald(sigmoids(4, 3, 1))


@pytest.mark.parametrize("heuristic", [MultiLabelEntropy, MultiLabelBALD])
def test_bad_over_labels(heuristic) -> None:
    """An unknown reduction over labels is refused where it is given, and so is a function of wrong shape."""
    with pytest.raises(ValueError, match="needs over_labels out of max, min, mean, sum, or a function, got 'none'"):
        heuristic(over_labels="none")
    with pytest.raises(TypeError, match="needs a name or function as over_labels, got int"):
        heuristic(over_labels=3)
    with pytest.raises(ValueError, match=r"A reduction of \[4, 3\] needs to give \[4\], got \[3\]"):
        heuristic(over_labels=lambda scores: scores.mean(0))(sigmoids(4, 3, 5))
    with pytest.raises(ValueError, match=r"A reduction is one of max, min, mean, sum, .* or a function, got 'median'"):
        multi_label_entropy(sigmoids(4, 3, 5), "median")


# CVIRS

POOL = np.array([[0.5, 0.6], [0.9, 0.5], [0.8, 0.9]])[..., None]  # [N, C, T]
LABELLED = np.array([[0, 1], [1, 1]])  # [L, C]


def plain_entropy(things: list) -> float:
    """Entropy of a thing drawn from the list."""
    return -sum(n / len(things) * math.log(n / len(things)) for n in Counter(things).values())


def plain_distance(ours: list[int], theirs: list[int]) -> float:
    """Normalised entropy distance of two vectors of 0 and 1; 1 where they differ throughout."""
    differ = sum(a != b for a, b in zip(ours, theirs, strict=True))
    if differ in (0, len(ours)):
        return float(differ > 0)
    return 2 - (plain_entropy(ours) + plain_entropy(theirs)) / plain_entropy(list(zip(ours, theirs, strict=True)))


def plain_cvirs(probs: np.ndarray, labelled: np.ndarray) -> list[float]:
    """The paper's formulas, loop by loop."""
    mean, scores = probs.mean(-1), []  # [N, C]
    N, C = mean.shape
    places = [rankdata(np.abs(2 * mean[:, c] - 1)) for c in range(C)]
    for n in range(N):
        near = sum(N - places[c][n] for c in range(C)) / (C * (N - 1))
        ours = [int(p > 0.5) for p in mean[n]]
        scores.append(near * float(np.mean([plain_distance(ours, list(theirs)) for theirs in labelled])))
    return scores


def test_cvirs_by_hand() -> None:
    """Places ¾, ½ and ¼ times inconsistencies ½, 1 and ½, of three rows, two labels and two labelled rows."""
    np.testing.assert_allclose(cvirs(POOL, LABELLED), [3 / 8, 1 / 2, 1 / 8])
    assert CVIRS()(POOL, labelled_labels=LABELLED).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 1, 0, 0], 0),
        ([0, 0, 1, 1], 1),  # the other way round: no distance of clusterings, but of labels
        ([1, 0, 1, 0], 1),  # independent
        ([1, 0, 0, 0], 2 - (1 + 0.811278) / 1.5),  # entropies in bits: 1, h(¼), and of ¼, ¼, ½
        ([1, 1, 1, 1], 1),
    ],
)
def test_inconsistency_by_hand(labels: list[int], expected: float) -> None:
    """The one row of a pool comes first in it, so its score is the distance of 1100 from the labelled vector."""
    probs = np.array([0.9, 0.8, 0.1, 0.3])[None, :, None]
    assert cvirs(probs, np.array([labels])) == pytest.approx(expected, abs=1e-6)


@few
@given(seed=st.integers(0, 2**32 - 1), C=st.integers(1, 5), L=st.integers(1, 6), coarse=st.booleans())
def test_cvirs_reference(seed: int, C: int, L: int, coarse: bool) -> None:
    """Scores are those of the definition, also with equal margins, repeated vectors and constant ones."""
    rng = np.random.default_rng(seed)
    probs = rng.integers(0, 5, (7, C, 2)) / 4 if coarse else rng.random((7, C, 2))
    labelled = rng.integers(0, 2, (L, C))
    scores = cvirs(probs, labelled)
    np.testing.assert_allclose(scores, plain_cvirs(probs, labelled), atol=1e-12)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_cvirs_compares_in_parts(monkeypatch) -> None:
    """However few label vectors are compared at once, the scores are the same."""
    rng = np.random.default_rng(0)
    probs, labelled = rng.random((50, 8, 2)), rng.integers(0, 2, (30, 8))
    expected = cvirs(probs, labelled)
    monkeypatch.setattr("baal_hf.heuristics.multilabel.PAIRS", 1)
    np.testing.assert_array_equal(cvirs(probs, labelled), expected)
    np.testing.assert_allclose(expected, plain_cvirs(probs, labelled), atol=1e-12)


def test_cvirs_rows_and_draws() -> None:
    """Permuting rows permutes scores; permuting draws, labels of all, or labelled rows changes nothing."""
    rng = np.random.default_rng(1)
    probs, labelled = rng.random((9, 4, 3)), rng.integers(0, 2, (5, 4))
    expected = cvirs(probs, labelled)
    np.testing.assert_allclose(cvirs(probs[::-1], labelled), expected[::-1])
    np.testing.assert_allclose(cvirs(probs[..., ::-1], labelled), expected)
    np.testing.assert_allclose(cvirs(probs[:, ::-1], labelled[:, ::-1]), expected)
    np.testing.assert_allclose(cvirs(probs, labelled[::-1]), expected)


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda values: torch.from_numpy(values).half()])
def test_cvirs_batches_are_ranked_together(size: int, kind) -> None:
    """Batches from a generator get the scores of the whole pool, in which they are ranked."""
    probs, labelled = kind(sigmoids(10, 3, 4)), np.random.default_rng(0).integers(0, 2, (5, 3))
    batches = (probs[start : start + size] for start in range(0, 10, size))
    ranks, scores = CVIRS().get_ranks(batches, 4, labelled_labels=labelled)
    expected_ranks, expected = CVIRS().get_ranks(probs, 4, labelled_labels=labelled)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(ranks, expected_ranks)


def test_cvirs_errors_in_batches_name_the_row() -> None:
    """A bad row in a later batch is named by its place in the pool; no batches are an error."""
    bad = POOL.copy()
    bad[1] = -1
    with pytest.raises(ValueError, match=r"CVIRS needs probabilities in \[0, 1\], got others in row 4\."):
        CVIRS().get_ranks([POOL, bad], labelled_labels=LABELLED)
    with pytest.raises(ValueError, match="CVIRS needs at least one batch of predictions, got none"):
        CVIRS().get_ranks(iter([]), labelled_labels=LABELLED)


@pytest.mark.parametrize(
    "labels", [LABELLED, LABELLED.astype(float), LABELLED.astype(bool), torch.from_numpy(LABELLED), LABELLED.tolist()]
)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_cvirs_kinds(labels, kind) -> None:
    """Labels come as numbers, truth values, array, tensor or list; scores are of the kind of the predictions."""
    scores = cvirs(kind(POOL), labels)
    assert type(scores) is type(kind(POOL))
    np.testing.assert_allclose(scores, [3 / 8, 1 / 2, 1 / 8])


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 2)), np.zeros((0, 2), bool), torch.zeros(0, 2)])
def test_cvirs_without_labelled_rows(nothing) -> None:
    """Before anything is labelled, the places alone count."""
    np.testing.assert_allclose(cvirs(POOL, nothing), [3 / 4, 1 / 2, 1 / 4])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([[0, 1, 1]], ValueError, r"CVIRS needs labels \[L, 2\] for 2 predicted labels, got \[1, 3\]"),
        ([0, 1], ValueError, r"CVIRS needs labels \[L, 2\] for 2 predicted labels, got \[2\]"),
        ([[0, 1], [0, 2], [np.nan, 1]], ValueError, "CVIRS needs labels of 0 and 1, got others in labelled rows 1, 2"),
        (torch.tensor([[0.5, 0.0]]), ValueError, "CVIRS needs labels of 0 and 1, got others in labelled row 0"),
        ([["yes", "no"]], TypeError, r"CVIRS needs labels in numbers, got <U3\. Encode them as 0 and 1"),
        ([[None, 1]], TypeError, "CVIRS needs labels in numbers, got object"),
    ],
)
def test_cvirs_bad_labels(labels, error: type[Exception], message: str) -> None:
    """Labels of another number or other values than 0 and 1 are refused."""
    with pytest.raises(error, match=message):
        cvirs(POOL, labels)


def test_cvirs_bad_arrays() -> None:
    """Labels are asked for by name, and predictions of positions are not of one label vector a row."""
    with pytest.raises(TypeError, match=r"CVIRS needs labels of the labelled rows .*: pass labelled_labels=\.\.\."):
        CVIRS()(POOL)
    with pytest.raises(ValueError, match=r"CVIRS needs probabilities \[N, C, T\], got \[3, 2, 1, 1\]\."):
        cvirs(POOL[..., None], LABELLED)
    with pytest.raises(ValueError, match=r"CVIRS needs probabilities in \[0, 1\]"):
        cvirs(POOL + 1, LABELLED)


def test_cvirs_of_a_large_pool() -> None:
    """A hundred thousand rows against ten thousand labelled ones need no matrix of all pairs."""
    rng = np.random.default_rng(0)
    probs, labelled = rng.random((100_000, 8, 1), dtype=np.float32), rng.integers(0, 2, (10_000, 8))
    assert CVIRS()(probs, 3, labelled_labels=labelled).shape == (3,)
