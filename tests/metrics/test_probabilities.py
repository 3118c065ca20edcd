"""The metrics of probabilities: against their equations by brute force, scikit-learn and values found by hand."""

import math

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from baal_hf import metrics
from baal_hf.metrics.bins import equal_mass
from baal_hf.metrics.predictions import checked

NAMES = ["adaptive_ece", "brier_score", "classwise_ece", "ece", "nll"]
ERRORS = ["adaptive_ece", "classwise_ece", "ece"]
LOADED = {name: metrics.load(name) for name in NAMES}

few = settings(max_examples=25, deadline=None)


def score(name: str, probs: object, labels: object, **options: object) -> float:
    return LOADED[name].compute(predictions=probs, references=labels, **options)[name]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, C] with ties, zeros and values on the borders of bins, and labels [N]."""
    C = draw(st.integers(2, 4))
    weights = st.lists(st.integers(0, 5), min_size=C, max_size=C).filter(any)
    rows = draw(st.lists(weights, min_size=1, max_size=30))
    labels = draw(st.lists(st.integers(0, C - 1), min_size=len(rows), max_size=len(rows)))
    probs = np.array(rows, float)
    return probs / probs.sum(1, keepdims=True), np.array(labels)


def gap(members: list[tuple[float, bool]], N: int) -> float:
    """A bin's share of the N predictions times the distance of their mean probability from how often they are true."""
    if not members:
        return 0.0
    conf = sum(p for p, _ in members) / len(members)
    freq = sum(hit for _, hit in members) / len(members)
    return len(members) / N * abs(freq - conf)


def plain_equal_width(pairs: list[tuple[float, bool]], R: int) -> float:
    total = 0.0
    for b in range(R):
        members = [(p, hit) for p, hit in pairs if (b / R < p <= (b + 1) / R) or (b == 0 and p == 0)]
        total += gap(members, len(pairs))
    return total


def plain_equal_mass(pairs: list[tuple[float, bool]], R: int) -> float:
    """Sorted, cut in R; a tie belongs to the range of the first of the equal values."""
    total = 0.0
    values = sorted(p for p, _ in pairs)
    for r in range(R):
        members = [(p, hit) for p, hit in pairs if values.index(p) * R // len(pairs) == r]
        total += gap(members, len(pairs))
    return total


def plain(name: str, probs: np.ndarray, labels: np.ndarray, R: int) -> float:
    if name == "ece":
        tops = [row.index(max(row)) for row in probs.tolist()]
        return plain_equal_width([(row[t], t == y) for row, t, y in zip(probs.tolist(), tops, labels, strict=True)], R)
    by_class = plain_equal_width if name == "classwise_ece" else plain_equal_mass
    C = probs.shape[1]
    return (
        sum(by_class([(row[c], y == c) for row, y in zip(probs.tolist(), labels, strict=True)], R) for c in range(C))
        / C
    )


@pytest.mark.parametrize("name", ERRORS)
@few
@given(given_rows=predictions(), n_bins=st.integers(1, 20))
def test_errors_follow_their_equations(name, given_rows, n_bins):
    """Each calibration error is its equation's value, counted bin by bin in plain Python, borders and ties included."""
    probs, labels = given_rows
    assert score(name, probs, labels, n_bins=n_bins) == pytest.approx(plain(name, probs, labels, n_bins), abs=1e-12)


@few
@given(predictions())
def test_brier_score_and_nll_are_sklearns(given_rows):
    """The Brier score is scikit-learn's summed over classes, and the NLL its log loss, zeros included."""
    probs, labels = given_rows
    classes = list(range(probs.shape[1]))
    sum_over_classes = {"scale_by_half": False} if len(classes) == 2 else {}
    truth = labels == 1 if len(classes) == 2 else labels
    given_probs = probs[:, 1] if len(classes) == 2 else probs
    names = [False, True] if len(classes) == 2 else classes
    theirs = brier_score_loss(truth, given_probs, labels=names, **sum_over_classes)
    assert score("brier_score", probs, labels) == pytest.approx(theirs, abs=1e-12)
    assert score("nll", probs, labels) == pytest.approx(log_loss(labels, probs, labels=classes), abs=1e-9)


def test_values_found_by_hand():
    """Four rows have the scores that one finds with a pencil."""
    probs, labels = [[0.25, 0.75], [0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], [1, 0, 0, 0]
    assert score("brier_score", probs, labels) == pytest.approx((0.125 + 1.125 + 0.0 + 0.5) / 4)
    assert score("nll", probs, labels) == pytest.approx(-(math.log(0.75) + math.log(0.25) + 0 + math.log(0.5)) / 4)
    # The last row is alone up to 1/2 and right; above are three of confidences .75, .75, 1, of which two are right.
    assert score("ece", probs, labels, n_bins=2) == pytest.approx(1 / 4 * (1 - 0.5) + 3 / 4 * (2.5 / 3 - 2 / 3))
    # Class 0: .25, .25, .5, once true in three; 1.0, true. Class 1: .75, .75, once true in two; 0.0, .5, not true.
    of_each = [3 / 4 * (2 / 3 - 1 / 3) + 0, 2 / 4 * (0.75 - 1 / 2) + 2 / 4 * (0.25 - 0)]
    assert score("classwise_ece", probs, labels, n_bins=2) == pytest.approx(sum(of_each) / 2)


def test_adaptive_bins_hold_equally_many():
    """Where equal widths put all in one bin and see no error, bins of equal number find it."""
    probs = np.array([[p, 1 - p] for p in (0.61, 0.62, 0.63, 0.64, 0.65, 0.66)])
    labels = np.array([0, 0, 0, 0, 1, 1])  # two thirds right on the whole, but all of the low and none of the high
    assert score("classwise_ece", probs, labels, n_bins=5) < 0.05
    assert score("adaptive_ece", probs, labels, n_bins=3) == pytest.approx((0.385 + 0.365 + 0.655) / 3)


@few
@given(N=st.integers(1, 60), R=st.integers(1, 20), seed=st.integers(0, 99))
def test_ranges_of_equal_number_differ_by_one_row(N: int, R: int, seed: int) -> None:
    """Probabilities without ties are cut, in their order, into ranges whose lengths differ by no more than one row."""
    probs = np.random.default_rng(seed).random(N)
    numbers = equal_mass(probs, R)
    counts = np.bincount(numbers, minlength=R)
    assert (np.diff(numbers[probs.argsort()]) >= 0).all()
    assert len(counts) == R and counts.max() - counts.min() <= 1


def test_adaptive_error_is_that_of_equal_parts() -> None:
    """Where the number of ranges divides that of rows it is the paper's 1/(R C) ΣΣ; elsewhere other cuts are near."""
    rng = np.random.default_rng(0)
    for N in (990, 1000):
        probs = rng.dirichlet(np.ones(3), N)
        labels = rng.integers(0, 3, N)
        gaps = [
            abs(column[part].mean() - (labels[part] == c).mean())
            for c, column in enumerate(probs.T)
            for part in np.array_split(column.argsort(), 15)
        ]
        tolerance = 1e-12 if N % 15 == 0 else 5e-3
        assert score("adaptive_ece", probs, labels) == pytest.approx(np.mean(gaps), abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
@few
@given(given_rows=predictions(), seed=st.integers(0, 99))
def test_order_of_rows_and_classes_changes_nothing(name, given_rows, seed):
    """Rows in another order score the same, and so do classes in another order, but for ties of the predicted class."""
    probs, labels = given_rows
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(len(probs)), rng.permutation(probs.shape[1])
    before = score(name, probs, labels)
    assert score(name, probs[rows], labels[rows]) == pytest.approx(before, abs=1e-12)
    top = np.sort(probs, 1)
    if name != "ece" or (top[:, -1] > top[:, -2]).all():
        assert score(name, probs[:, classes], np.argsort(classes)[labels]) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@few
@given(given_rows=predictions())
def test_scores_lie_in_their_range(name, given_rows):
    """No score leaves the range that its description states."""
    upper = {"brier_score": 2.0, "nll": 52 * math.log(2)}.get(name, 1.0)
    assert 0 <= score(name, *given_rows) <= upper + 1e-12


@pytest.mark.parametrize("name", ERRORS)
def test_calibrated_probabilities_have_no_error_and_sharpened_ones_do(name):
    """Labels drawn from the probabilities give an error near 0; the same labels and sharper ones give a large one."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50_000, 3))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probs.cumsum(1) > rng.random((len(probs), 1))).argmax(1)
    sharper = probs**3 / (probs**3).sum(1, keepdims=True)
    assert score(name, probs, labels) < 0.01
    assert score(name, sharper, labels) > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [np.ndarray.tolist, torch.tensor, lambda rows: rows.astype(np.float32)])
def test_lists_tensors_and_batches_score_like_arrays(name, kind):
    """A metric gives the same for lists, tensors, single precision and rows added in two batches."""
    probs, labels = np.array([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]), np.array([1, 1, 0])
    whole = score(name, probs, labels)
    assert score(name, kind(probs), labels) == pytest.approx(whole, abs=1e-6)
    for rows in (slice(0, 1), slice(1, 3)):
        LOADED[name].add_batch(predictions=kind(probs[rows]), references=labels[rows])
    assert LOADED[name].compute()[name] == pytest.approx(whole, abs=1e-6)


def test_features_tell_probabilities_from_classes() -> None:
    """Metrics of probabilities ask for a list of numbers a row, all others for one, so that a caller can tell."""
    for name in metrics.available_metrics():
        predictions = metrics.load(name).features["predictions"]
        if name in NAMES:
            assert isinstance(predictions, datasets.List) and predictions.feature == datasets.Value("float64")
        else:
            assert isinstance(predictions, datasets.Value)


GOOD = [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([], [], "needs at least one prediction"),
        (GOOD, [0], r"Mismatch in the number of predictions \(2\) and references \(1\)"),
        ([[1.0], [1.0]], [0, 0], r"needs 2 classes or more, got C = 1"),
        ([[0.5, 0.5], [1.0]], [0, 0], "rows of different length"),
        ([[0.5, 0.5], [math.nan, 1.0]], [0, 0], r"needs finite probabilities, got \[nan, 1.0\] in row 1"),
        ([[0.5, None], [0.5, 0.5]], [0, 0], r"needs finite probabilities, .* in row 0"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 0], r"not negative, got \[1.5, -0.5\] in row 1"),
        ([[2.0, 3.0], [0.5, 0.5]], [0, 0], r"sum to 1 within 0.01, got \[2.0, 3.0\] in row 0. Turn logits"),
        (GOOD, [0, 2], r"whole numbers in 0 .. 1, got 2.0 as references\[1\]. Pass only rows that have a label"),
        (GOOD, [-1, 0], r"whole numbers in 0 .. 1, got -1.0 as references\[0\]"),
        (GOOD, [0, 0.5], r"whole numbers in 0 .. 1, got 0.5 as references\[1\]"),
        (GOOD, [0, None], r"whole numbers in 0 .. 1, got nan as references\[1\]"),
    ],
)
def test_bad_input_is_named_and_leaves_the_metric_usable(name, probs, labels, message):
    """Input that is no probabilities or labels raises an error that names it, and the next input scores as ever."""
    with pytest.raises(ValueError, match=message):
        score(name, probs, labels)
    assert score(name, [[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("n_bins", [0, -1, 2.5, True, None])
def test_bins_that_are_no_number_from_1_are_refused(name, n_bins):
    """A number of bins that is no whole number from 1 raises an error that says what came."""
    with pytest.raises(ValueError, match=f"needs a whole number from 1 as n_bins, got {n_bins!r}"):
        score(name, GOOD, [0, 1], n_bins=n_bins)


def test_arrays_of_other_axes_say_what_to_do():
    """Draws passed for probabilities are refused with the advice to average them, labels with positions as such."""
    with pytest.raises(ValueError, match=r"needs probabilities \[N, C\], got \[2, 2, 3\]. Average draws"):
        checked(np.full((2, 2, 3), 0.5), [0, 1], "ece")
    with pytest.raises(ValueError, match=r"one true class a row, \[N\], got \[2, 1\]"):
        checked(GOOD, [[0], [1]], "ece")
    with pytest.raises(ValueError, match="needs a reference a row, got 1 for 2"):
        checked(GOOD, [0], "ece")
