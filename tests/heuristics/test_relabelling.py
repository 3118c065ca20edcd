"""Relabelling scores: equal to cleanlab's where cleanlab has them, and to the formulas in plain Python."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import pytest
import torch
from cleanlab.rank import get_label_quality_scores
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics.base import AbstractHeuristic
from baal_hf.heuristics.relabelling import (
    ActiveLabelCleaning,
    ConfidenceWeightedEntropy,
    NormalizedMargin,
    SelfConfidence,
    active_label_cleaning,
    adjusted_probs,
    confidence_weighted_entropy,
    normalized_margin,
    self_confidence,
)
from tests.laws import few, mean_probs, plain_entropy, probs

TINY = float(np.finfo(np.float64).tiny)


def plain_self_confidence(draws: list[list[float]], label: int) -> float:
    """One minus the mean probability of the label."""
    return 1 - mean_probs(draws)[label]


def plain_normalized_margin(draws: list[list[float]], label: int) -> float:
    """From 0 to 1, how far another class leads."""
    mean = mean_probs(draws)
    return (1 - mean[label] + max(p for c, p in enumerate(mean) if c != label)) / 2


def plain_confidence_weighted_entropy(draws: list[list[float]], label: int) -> float:
    """One minus log(1 + r) / r of the ratio r of normalised entropy and self-confidence, with its limits."""
    mean = mean_probs(draws)
    if mean[label] == 0:
        return 1.0
    ratio = plain_entropy(mean) / math.log(len(mean)) / mean[label]
    return 1 - math.log1p(ratio) / ratio if ratio > 1e-300 else 0.0


def plain_active_label_cleaning(draws: list[list[float]], label: int) -> float:
    """Cross entropy of the label minus the prediction's entropy."""
    mean = mean_probs(draws)
    return -math.log(max(mean[label], TINY)) - plain_entropy(mean)


SCORES: dict[type[AbstractHeuristic], tuple[Callable, Callable]] = {
    SelfConfidence: (self_confidence, plain_self_confidence),
    NormalizedMargin: (normalized_margin, plain_normalized_margin),
    ConfidenceWeightedEntropy: (confidence_weighted_entropy, plain_confidence_weighted_entropy),
    ActiveLabelCleaning: (active_label_cleaning, plain_active_label_cleaning),
}
CLEANLAB = {
    "self_confidence": self_confidence,
    "normalized_margin": normalized_margin,
    "confidence_weighted_entropy": confidence_weighted_entropy,
}

every = pytest.mark.parametrize("heuristic", SCORES, ids=lambda heuristic: heuristic.__name__)
functions = pytest.mark.parametrize("score", [score for score, _ in SCORES.values()], ids=lambda score: score.__name__)


def labels_of(values: np.ndarray, seed: int) -> np.ndarray:
    """A random label for each row, [N]."""
    return np.random.default_rng(seed).integers(0, values.shape[1], len(values))


def dirichlet(N: int, C: int, T: int, seed: int) -> np.ndarray:
    """Random probabilities without zeros, [N, C, T]."""
    return np.moveaxis(np.random.default_rng(seed).dirichlet(np.ones(C), (N, T)), -1, 1)


# Values


@every
@few
@given(values=probs(positions=0), seed=st.integers(0, 99))
def test_reference(heuristic, values: np.ndarray, seed: int) -> None:
    """Scores are the formula in plain Python, also at certainty and at exact zeros."""
    score, plain = SCORES[heuristic]
    labels = labels_of(values, seed)
    values = np.where(values < 1e-300, 0, values)  # what double cannot hold whole, plain Python does not divide by
    expected = [plain(row.tolist(), label) for row, label in zip(values, labels, strict=True)]
    np.testing.assert_allclose(score(values, labels), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", CLEANLAB)
@few
@given(st.integers(1, 30), st.integers(2, 8), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_equal_to_cleanlab(method: str, N: int, C: int, T: int, seed: int) -> None:
    """Scores are one minus cleanlab's label quality of the mean over draws."""
    values = dirichlet(N, C, T, seed)
    labels = labels_of(values, seed)
    quality = get_label_quality_scores(labels, values.mean(-1), method=method)
    np.testing.assert_allclose(CLEANLAB[method](values, labels), 1 - quality, atol=1e-9)


@pytest.mark.parametrize("method", ["self_confidence", "normalized_margin"])
@few
@given(st.integers(1, 30), st.integers(2, 8), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_adjusted_equal_to_cleanlab(method: str, N: int, C: int, T: int, seed: int) -> None:
    """Scores of adjusted probabilities are cleanlab's with adjust_pred_probs, also where a class is no row's label."""
    values = dirichlet(N, C, T, seed)
    labels = labels_of(values, seed)
    quality = get_label_quality_scores(labels, values.mean(-1), method=method, adjust_pred_probs=True)
    np.testing.assert_allclose(CLEANLAB[method](adjusted_probs(values, labels), labels), 1 - quality, atol=1e-9)


def test_adjusted_by_hand() -> None:
    """Thresholds 0.8 and 0.4 raise the second class by 0.4, and all is divided by 1.4."""
    values = np.array([[0.8, 0.2], [0.6, 0.4]])[..., None]  # [N, C, T]
    np.testing.assert_allclose(adjusted_probs(values, [0, 1])[..., 0], np.array([[0.8, 0.6], [0.6, 0.8]]) / 1.4)


@few
@given(values=probs(positions=0), seed=st.integers(0, 99))
def test_adjusted_draws_are_probabilities(values: np.ndarray, seed: int) -> None:
    """Each draw is adjusted to probabilities, and their mean is the adjusted mean."""
    labels = labels_of(values, seed)
    result = adjusted_probs(values, labels)
    assert result.shape == values.shape and (result >= 0).all()
    np.testing.assert_allclose(result.sum(1), 1)
    mean = adjusted_probs(values.mean(-1, keepdims=True), labels)
    np.testing.assert_allclose(result.mean(-1, keepdims=True), mean, atol=1e-12)


@few
@given(values=probs(positions=0), annotators=st.integers(1, 4), seed=st.integers(0, 99))
def test_several_annotators(values: np.ndarray, annotators: int, seed: int) -> None:
    """Active label cleaning of several labels is its mean over the labels that there are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, values.shape[1], (len(values), annotators))  # [N, A]
    labels[:, rng.integers(annotators)] = labels_of(values, seed)
    scores = active_label_cleaning(values, labels)
    for row, score, given_labels in zip(values.tolist(), scores, labels, strict=True):
        each = [plain_active_label_cleaning(row, label) for label in given_labels if label >= 0]
        assert score == pytest.approx(fmean(each), abs=1e-9)


def test_ends_of_confidence_weighted_entropy() -> None:
    """A prediction certain of the label scores 0 and one that excludes it 1, where cleanlab's clipping turns them."""
    values = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.5, 0.5]])[..., None]
    np.testing.assert_array_equal(confidence_weighted_entropy(values, [0, 0, 0]), [0, 1, 1])


def test_noise_is_not_ambiguity() -> None:
    """Active label cleaning ranks a label that surprises a sure prediction above one of a row that is hard itself."""
    values = np.array([[0.98, 0.01, 0.01], [0.34, 0.33, 0.33], [0.98, 0.01, 0.01]])[..., None]
    assert active_label_cleaning(values, [1, 1, 0]).argsort().tolist() == [2, 1, 0]
    np.testing.assert_allclose(active_label_cleaning(np.full((1, 4, 1), 0.25), [2]), 0, atol=1e-12)


# Laws


@functions
@few
@given(values=probs(positions=0), seed=st.integers(0, 99))
def test_range(score, values: np.ndarray, seed: int) -> None:
    """Scores are finite, one a row, and within the docstring's range."""
    scores = score(values, labels_of(values, seed))
    low, high = {active_label_cleaning: (-math.log(values.shape[1]), 800)}.get(score, (0, 1))
    assert scores.shape == values.shape[:1] and np.isfinite(scores).all()
    assert (scores >= low - 1e-12).all() and (scores <= high).all()


@functions
@few
@given(values=probs(positions=0), seed=st.integers(0, 99))
def test_label_of_the_best_class_is_trusted_most(score, values: np.ndarray, seed: int) -> None:
    """No label of a row scores below that of the class that the draws take for most probable."""
    best = values.mean(-1).argmax(1)
    assert (score(values, best) <= score(values, labels_of(values, seed)) + 1e-9).all()


@functions
@few
@given(values=probs(positions=0), seed=st.integers(0, 99))
def test_order(score, values: np.ndarray, seed: int) -> None:
    """Permuting rows permutes scores; permuting classes with the labels, permuting or repeating draws changes none."""
    rng = np.random.default_rng(seed)
    labels = labels_of(values, seed)
    scores = score(values, labels)
    rows, classes, draws = (rng.permutation(size) for size in values.shape)
    np.testing.assert_allclose(score(values[rows], labels[rows]), scores[rows], atol=1e-9)
    np.testing.assert_allclose(score(values[:, classes], classes.argsort()[labels]), scores, atol=1e-9)
    np.testing.assert_allclose(score(values[..., [*draws, *draws]], labels), scores, atol=1e-9)


@every
def test_kinds(heuristic) -> None:
    """NumPy gives NumPy and a tensor a tensor; labels may be a list, an array of any whole numbers, or a tensor."""
    values = dirichlet(5, 3, 4, seed=0)
    labels = labels_of(values, seed=0)
    score = SCORES[heuristic][0]
    expected = score(values, labels)
    assert isinstance(expected, np.ndarray)
    for kind in (list, np.ndarray.tolist, torch.from_numpy, lambda given: given.astype(np.uint8), lambda g: g[:, None]):
        np.testing.assert_array_equal(score(values, kind(labels)), expected)
        np.testing.assert_array_equal(heuristic().get_uncertainties(values, labels=kind(labels)), expected)
    given_tensor = score(torch.from_numpy(values), labels)
    assert isinstance(given_tensor, torch.Tensor)
    np.testing.assert_array_equal(given_tensor.numpy(), expected)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_precision(heuristic, dtype: torch.dtype) -> None:
    """Half precision is scored in float32 and differs from double by no more than its own rounding."""
    values = torch.from_numpy(dirichlet(50, 3, 4, seed=0)).clamp(min=0.02)
    values /= values.sum(1, keepdim=True)
    labels = labels_of(values.numpy(), seed=0)
    score = SCORES[heuristic][0]
    scores = score(values.to(dtype), labels)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), score(values, labels), rtol=0, atol=64 * torch.finfo(dtype).eps)


@every
@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_batches(heuristic, kind) -> None:
    """A generator of batches takes each batch's labels, and gives the scores and ranks of the whole."""
    values = dirichlet(7, 3, 4, seed=0)
    labels = kind(labels_of(values, seed=0).tolist())
    batches = (values[start : start + 3] for start in (0, 3, 6))
    ranks, scores = heuristic().get_ranks(batches, labels=labels)
    np.testing.assert_array_equal(scores, heuristic().get_uncertainties(values, labels=labels))
    np.testing.assert_array_equal(ranks, np.argsort(-scores, kind="stable"))


@functions
def test_input_is_left_alone(score) -> None:
    """Scoring changes neither predictions nor labels."""
    values = dirichlet(5, 3, 4, seed=0)
    labels = labels_of(values, seed=0)
    before = values.copy(), labels.copy()
    score(values, labels)
    adjusted_probs(values, labels)
    np.testing.assert_array_equal(values, before[0])
    np.testing.assert_array_equal(labels, before[1])


@functions
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator to move to")
def test_device(score) -> None:
    """Tensors are scored where they lie, wherever the labels lie."""
    values = torch.from_numpy(dirichlet(5, 3, 4, seed=0))
    labels = torch.from_numpy(labels_of(values.numpy(), seed=0))
    for some in (labels, labels.cuda(), labels.tolist()):
        scores = score(values.cuda(), some)
        assert scores.device.type == "cuda"
        torch.testing.assert_close(scores.cpu(), score(values, labels))


# Bad input

BAD_LABELS: list[tuple[Sequence, type[Exception], str]] = [
    ([0, 1, 3], ValueError, r"needs labels in 0 \.\. 2, got 3 in row 2\. The predictions have C = 3 classes"),
    ([0, -2, 1], ValueError, r"needs labels in 0 \.\. 2, got -2 in row 1"),
    ([0, 1], ValueError, r"needs labels \[N\] or \[N, A\] for N = 3 rows, got \[2\]"),
    ([[[0]], [[1]], [[2]]], ValueError, r"needs labels \[N\] or \[N, A\] for N = 3 rows, got \[3, 1, 1\]"),
    (np.empty((3, 0), int), ValueError, r"for N = 3 rows, got \[3, 0\]"),
    (2, ValueError, r"for N = 3 rows, got \[\]"),
    ([[0], [1, 1], [2]], ValueError, r"got rows of different length\. Fill up with -1"),
    ([0.0, 1.0, 2.0], TypeError, r"needs whole numbers as labels, got float64\. Convert them"),
    ([0.0, math.nan, 2.0], TypeError, r"got float64 with none in row 1\. Convert them.*write -1"),
    ([0, 1, None], TypeError, r"got object with none in row 2"),
    (["a", "b", "c"], TypeError, r"needs whole numbers as labels, got <U1\."),
    (torch.tensor([0.0, math.nan, 1.0]), TypeError, r"got float32 with none in row 1"),
    ([True, False, True], TypeError, r"got bool"),
]


@functions
@pytest.mark.parametrize(("labels", "kind", "message"), BAD_LABELS, ids=[message for *_, message in BAD_LABELS])
def test_bad_labels(score, labels, kind: type[Exception], message: str) -> None:
    """Labels that are no classes of the rows are refused with the row and what to do."""
    values = dirichlet(3, 3, 2, seed=0)
    name = next(heuristic.__name__ for heuristic, pair in SCORES.items() if pair[0] is score)
    with pytest.raises(kind, match=f"^{name} {message}" if message.startswith("needs") else f"^{name} .*{message}"):
        score(values, labels)


@pytest.mark.parametrize("score", [*CLEANLAB.values(), adjusted_probs], ids=lambda score: score.__name__)
def test_one_label_a_row(score) -> None:
    """Scores of one label refuse rows with none and several annotators, and say where those belong."""
    values = dirichlet(3, 3, 2, seed=0)
    with pytest.raises(ValueError, match=r"needs a label of each row, got -1 in row 1\. Drop those, or use ActiveLab"):
        score(values, [0, -1, 1])
    with pytest.raises(
        ValueError, match=r"needs one label a row \[N\], got \[3, 2\]\. For several annotators there are"
    ):
        score(values, [[0, 0], [1, 1], [2, 2]])


def test_row_without_label() -> None:
    """Active label cleaning refuses rows that no annotator labelled."""
    with pytest.raises(ValueError, match=r"ActiveLabelCleaning needs a label of each row, got none in rows 0, 2"):
        active_label_cleaning(dirichlet(3, 3, 2, seed=0), [[-1, -1], [-1, 2], [-1, -1]])


@functions
def test_bad_predictions(score) -> None:
    """Predictions that are no probabilities of rows are refused: NaN, other sums, positions, no axis of draws."""
    values = dirichlet(3, 3, 2, seed=0)
    broken, unscaled = values.copy(), values.copy()
    broken[1, 0, 0], unscaled[2] = math.nan, 0.5
    for bad, message in (
        (broken, "got NaN or infinity in row 1"),
        (unscaled, "needs sums of 1 over classes, got 1.5 in row 2"),
        (values[..., 0], r"Give a single draw its axis"),
        (values[:, :, None], r"needs one prediction a row \[N, C, T\], got \[3, 3, 1, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            score(bad, [0, 1, 2])


@every
def test_labels_are_asked_for(heuristic) -> None:
    """Without labels, or with too few, the heuristic says so."""
    values = dirichlet(3, 3, 2, seed=0)
    assert heuristic.needs == ("predictions", "labels")
    with pytest.raises(TypeError, match=f"{heuristic.__name__} needs the label that each row has now"):
        heuristic()(values)
    with pytest.raises(ValueError, match="got 2 labels for 3 rows of predictions"):
        heuristic()(values, labels=[0, 1])
