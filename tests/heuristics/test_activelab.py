"""ActiveLab: equal to cleanlab's with labelled and unlabelled rows, one or several annotators, one or several draws."""

import math

import cleanlab.internal.multiannotator_utils as calibration
import numpy as np
import pytest
import torch
from cleanlab.multiannotator import get_active_learning_scores, get_active_learning_scores_ensemble
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics.activelab import ActiveLab, activelab
from tests.laws import few

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """cleanlab's calibration with each label counted at its class.

    With whole numbers cleanlab 2.9 does so itself. With the floats that it wants where labels are missing (NaN) it
    counts those of a row into the first classes, [3, 3, NaN] as twice class 0, and calibrates to that.
    """

    def value_counts(labels, *, num_classes: int) -> np.ndarray:
        return np.bincount(np.asarray(labels, dtype=int), minlength=num_classes)

    monkeypatch.setattr(calibration, "value_counts", value_counts)


def pool(seed: int, missing: bool = True, N: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [N, C, T] that know something of the classes, and labels [N, A] by annotators who do; -1 is none."""
    rng = np.random.default_rng(seed)
    C, A, T = rng.integers(2, 5), rng.integers(2, 5), rng.integers(1, 5)
    truth = rng.integers(0, C, N)
    logits = rng.choice([0.3, 1, 3]) * (rng.normal(size=(N, C, T)) + rng.choice([0, 1, 3]) * np.eye(C)[truth, :, None])
    right = rng.random((N, A)) < rng.uniform(0.3, 1, A)  # [N, A], annotators are good and bad
    labels = np.where(right, truth[:, None], rng.integers(0, C, (N, A)))
    if missing:
        labels[rng.random((N, A)) < rng.choice([0.3, 0.6])] = -1
        labels[-2:] = -1
    labels[:2] = truth[:2, None]  # each annotator labels some, and some rows have several labels
    return torch.from_numpy(logits).softmax(1).numpy(), labels


def cleanlab_scores(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One minus cleanlab's scores, of labelled and unlabelled rows in the order of the rows, [N]."""
    labelled = (labels >= 0).any(1)  # [N]
    some = labels[labelled]
    given_labels = some if (some >= 0).all() else np.where(some < 0, np.nan, some)
    scores = np.empty(len(values))
    members = np.moveaxis(values, -1, 0)  # [T, N, C]
    known, unknown = members[:, labelled].copy(), members[:, ~labelled].copy()
    arguments = (given_labels, known, unknown) if labelled.any() else (None, None, unknown)
    if labelled.all():
        arguments = arguments[:2]
    if len(members) > 1:
        scores[labelled], scores[~labelled] = get_active_learning_scores_ensemble(*arguments)
    else:
        single = [part if part is None or part.ndim < 3 else part[0] for part in arguments]
        scores[labelled], scores[~labelled] = get_active_learning_scores(*single)
    return 1 - scores


# Values


@few
@given(seed=seeds)
def test_equal_to_cleanlab_where_all_label_all(seed: int) -> None:
    """Scores are one minus cleanlab's where each annotator labelled each row."""
    values, labels = pool(seed, missing=False)
    np.testing.assert_allclose(activelab(values, labels), cleanlab_scores(values, labels), atol=1e-6)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("seed", range(30))
def test_equal_to_cleanlab_with_missing_labels(seed: int) -> None:
    """Scores are one minus cleanlab's where rows have none, one or several labels."""
    values, labels = pool(seed)
    assert (labels < 0).all(1).any() and ((labels >= 0).sum(1) > 1).any()
    np.testing.assert_allclose(activelab(values, labels), cleanlab_scores(values, labels), atol=1e-6)


@few
@given(seed=seeds, share=st.sampled_from([0.0, 0.5, 1.0]))
def test_equal_to_cleanlab_with_one_annotator(seed: int, share: float) -> None:
    """Scores are one minus cleanlab's where rows have one label or none, or none has any."""
    values, labels = pool(seed, missing=False)
    labels = labels[:, :1]
    labels[np.random.default_rng(seed).random(len(labels)) < share] = -1
    np.testing.assert_allclose(activelab(values, labels), cleanlab_scores(values, labels), atol=1e-6)
    np.testing.assert_array_equal(activelab(values, labels[:, 0]), activelab(values, labels))


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("seed", range(5))
def test_annotators_who_share_no_row(seed: int) -> None:
    """An annotator with no row in common with others is weighed as the others are on average, as in cleanlab."""
    values, labels = pool(seed)
    alone = np.full((len(labels), 1), -1)
    alone[(labels < 0).all(1)] = 1
    labels = np.hstack([labels, alone])
    np.testing.assert_allclose(activelab(values, labels), cleanlab_scores(values, labels), atol=1e-6)


def test_by_hand() -> None:
    """One label a row: the mean probability counts T + 1 times, T times without label, beside one prior 1/C."""
    values = np.array([[[0.9, 0.5], [0.1, 0.5]]] * 3)  # [N, C, T], the mean is 0.7, 0.3
    scores = activelab(values, [0, 1, -1])
    np.testing.assert_allclose(scores, 1 - np.array([(3 * 0.7 + 0.5) / 4, (3 * 0.3 + 0.5) / 4, (2 * 0.7 + 0.5) / 3]))


def test_two_annotators_by_hand() -> None:
    """Perfect annotators and a perfect model have weight 1 and √2, and the prior weight 1."""
    sure = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])[..., None]  # [N, C, T]
    scores = activelab(sure, [[0, 0], [1, 1], [0, 0], [-1, -1]])
    weight = np.array([2 + math.sqrt(2)] * 3 + [math.sqrt(2)])
    np.testing.assert_allclose(scores, 1 - (weight + 0.5) / (weight + 1), atol=1e-3)


# Laws


def test_label_of_a_bad_annotator_is_worth_checking() -> None:
    """Of two rows with the same prediction the one labelled by an annotator whom others contradict scores higher."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    labels = np.repeat(truth[:, None], 3, 1)  # [N, A]
    labels[:, 2] = np.where(rng.random(60) < 0.6, (truth + 1) % 3, truth)
    labels[0], labels[1] = [truth[0], -1, -1], [-1, -1, truth[0]]
    values = np.full((60, 3, 1), 0.2)
    values[np.arange(60), truth] = 0.6
    values[1] = values[0]
    scores = activelab(values, labels)
    assert scores[1] > scores[0] + 0.01


def test_disputed_rows_come_first() -> None:
    """Of rows with the same prediction disputed ones score above unlabelled ones, and agreed ones lowest."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    labels = np.repeat(truth[:, None], 2, 1)  # [N, A]
    labels[:8, 1] = (truth[:8] + 1) % 3
    labels[8:16] = -1
    values = np.full((60, 3, 2), 0.1)
    values[np.arange(60), truth] = 0.8
    scores = activelab(values, labels)
    assert scores[16:].max() < scores[:16].min()


@few
@given(seed=seeds)
def test_order(seed: int) -> None:
    """Permuting rows permutes scores; permuting classes, draws or annotators changes none."""
    values, labels = pool(seed)
    rng = np.random.default_rng(seed)
    scores = activelab(values, labels)
    rows, classes, draws = (rng.permutation(size) for size in values.shape)
    renamed = np.where(labels < 0, -1, classes.argsort()[labels])
    np.testing.assert_allclose(activelab(values[rows], labels[rows]), scores[rows], atol=1e-9)
    np.testing.assert_allclose(activelab(values[:, classes], renamed), scores, atol=1e-9)
    np.testing.assert_allclose(activelab(values[..., draws], labels[:, ::-1]), scores, atol=1e-9)


@few
@given(seed=seeds)
def test_annotator_without_labels(seed: int) -> None:
    """An annotator who labelled nothing changes nothing."""
    values, labels = pool(seed)
    nobody = np.full((len(labels), 1), -1)
    np.testing.assert_array_equal(activelab(values, np.hstack([nobody, labels])), activelab(values, labels))
    np.testing.assert_array_equal(activelab(values, nobody), activelab(values, np.hstack([nobody, nobody])))


@few
@given(seed=seeds)
def test_range(seed: int) -> None:
    """Scores are finite and in [0, 1), also where draws are certain and contradict each other."""
    values, labels = pool(seed)
    certain = np.eye(values.shape[1])[values.argmax(1)].swapaxes(1, 2)  # [N, C, T]
    for some in (values, certain, np.full_like(values, 1 / values.shape[1])):
        scores = activelab(some, labels)
        assert np.isfinite(scores).all() and (scores >= 0).all() and (scores < 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """Half precision is scored in float32 and differs from double by about its own rounding."""
    values, labels = pool(3)
    scores = activelab(torch.from_numpy(values).to(dtype), labels)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(
        scores.double().numpy(), activelab(values, labels), rtol=0, atol=64 * torch.finfo(dtype).eps
    )


def test_kinds() -> None:
    """NumPy gives NumPy and a tensor a tensor, from labels as list, array or tensor; the class gives the function."""
    values, labels = pool(0)
    expected = activelab(values, labels)
    assert isinstance(expected, np.ndarray) and isinstance(activelab(torch.from_numpy(values), labels), torch.Tensor)
    for some in (labels.tolist(), torch.from_numpy(labels), labels.astype(np.int8)):
        np.testing.assert_array_equal(activelab(values, some), expected)
        np.testing.assert_array_equal(ActiveLab().get_uncertainties(values, labels=some), expected)


def test_batches_are_one_pool() -> None:
    """Annotators are weighed by all rows: batches give the scores and ranks of the whole."""
    values, labels = pool(0)
    batches = (values[start : start + 7] for start in range(0, 30, 7))
    ranks, scores = ActiveLab().get_ranks(batches, labels=labels)
    np.testing.assert_array_equal(scores, activelab(values, labels))
    np.testing.assert_array_equal(ranks, np.argsort(-scores, kind="stable"))


def test_input_is_left_alone() -> None:
    """Scoring changes neither predictions nor labels."""
    values, labels = pool(0)
    before = values.copy(), labels.copy()
    activelab(values, labels)
    np.testing.assert_array_equal(values, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator to move to")
def test_device() -> None:
    """Tensors are scored where they lie, wherever the labels lie."""
    values, labels = pool(0)
    for some in (labels, torch.from_numpy(labels).cuda()):
        scores = activelab(torch.from_numpy(values).cuda(), some)
        assert scores.device.type == "cuda"
        np.testing.assert_allclose(scores.cpu().numpy(), activelab(values, labels), atol=1e-9)


# Bad input


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([[0, 1], [1, 7], [0, -1]], ValueError, r"needs labels in 0 \.\. 2, got 7 in row 1"),
        ([[0, 1], [1, -2], [0, -1]], ValueError, r"needs labels in 0 \.\. 2, got -2 in row 1"),
        ([[0, 1], [1, 1]], ValueError, r"for N = 3 rows, got \[2, 2\]"),
        ([[0, 1], [1], [0, 2]], ValueError, r"got rows of different length\. Fill up with -1"),
        ([[0, math.nan], [1, 1], [0, 2]], TypeError, r"needs whole numbers as labels, got float64 with none in row 0"),
        ([[0, None], [1, 1], [None, 2]], TypeError, r"got object with none in rows 0, 2\. .*write -1"),
    ],
)
def test_bad_labels(labels, kind: type[Exception], message: str) -> None:
    """Labels that are no classes of the rows are refused with the row and what to do; NaN is not taken for none."""
    with pytest.raises(kind, match=f"^ActiveLab .*{message}"):
        activelab(np.full((3, 3, 2), 1 / 3), labels)


def test_bad_predictions() -> None:
    """Predictions that are no probabilities, or have positions, are refused."""
    with pytest.raises(ValueError, match=r"ActiveLab needs sums of 1 over classes, got 1\.5 in row 0 and"):
        activelab(np.full((2, 3, 2), 0.5), [0, 1])
    with pytest.raises(ValueError, match=r"ActiveLab needs one prediction a row \[N, C, T\], got \[2, 3, 4, 2\]"):
        activelab(np.full((2, 3, 4, 2), 1 / 3), [0, 1])
