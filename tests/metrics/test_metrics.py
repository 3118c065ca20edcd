"""The metric modules: scikit-learn's values, no network, and errors that say what is wrong with the input."""

import os
import socket
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from baal_hf import metrics

ACCURACY = metrics.load("accuracy")
F1 = metrics.load("f1")


def pairs(classes: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Predicted and true class of each row."""
    return st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=40)


def sklearn_f1(references: list[int], predictions: list[int], **options: object) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a class never predicted; its value is 0, as ours
        return sklearn_metrics.f1_score(references, predictions, **options)


@given(pairs(classes=5))
def test_accuracy_is_sklearns(rows):
    """Accuracy is the share of rows that scikit-learn counts."""
    predictions, references = (list(column) for column in zip(*rows, strict=True))
    ours = ACCURACY.compute(predictions=predictions, references=references)
    assert ours == {"accuracy": pytest.approx(sklearn_metrics.accuracy_score(references, predictions))}


@given(pairs(classes=5), st.sampled_from(["macro", "micro", "weighted"]))
def test_averaged_f1_is_sklearns(rows, average):
    """F1 averaged over classes is scikit-learn's, also for classes that are never predicted or never true."""
    predictions, references = (list(column) for column in zip(*rows, strict=True))
    ours = F1.compute(predictions=predictions, references=references, average=average)
    assert ours == {"f1": pytest.approx(sklearn_f1(references, predictions, average=average))}


@given(pairs(classes=2))
def test_binary_f1_is_sklearns(rows):
    """F1 of one class of two is scikit-learn's, and is what a caller who names no average gets."""
    predictions, references = (list(column) for column in zip(*rows, strict=True))
    ours = F1.compute(predictions=predictions, references=references)
    assert ours == {"f1": pytest.approx(sklearn_f1(references, predictions))}


def test_pos_label_names_the_scored_class():
    """`pos_label` chooses which of the two classes binary F1 scores."""
    predictions, references = [0, 0, 7, 7, 0], [0, 7, 0, 7, 0]
    for pos_label in (0, 7):
        ours = F1.compute(predictions=predictions, references=references, pos_label=pos_label)
        assert ours == {"f1": pytest.approx(sklearn_f1(references, predictions, pos_label=pos_label))}


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, lambda rows: np.array(rows, dtype=bool)])
def test_arrays_and_tensors_score_like_lists(kind):
    """A metric gives the same for lists, tuples, arrays, booleans and tensors."""
    predictions, references = [0, 1, 1, 1], [0, 1, 0, 1]
    for metric in (ACCURACY, F1):
        from_lists = metric.compute(predictions=predictions, references=references)
        assert metric.compute(predictions=kind(predictions), references=kind(references)) == from_lists


def test_large_classes_are_told_apart():
    """Two classes that half or single precision would round to one are two."""
    assert ACCURACY.compute(predictions=[2**24 + 1, 1], references=[2**24, 1]) == {"accuracy": 0.5}


def test_batches_score_like_the_whole():
    """What is added batch by batch scores like the whole at once."""
    for metric in (ACCURACY, F1):
        metric.add_batch(predictions=[0, 1], references=[0, 0])
        metric.add_batch(predictions=[1], references=[1])
        in_batches = metric.compute()
        assert in_batches == metric.compute(predictions=[0, 1, 1], references=[0, 0, 1])


@pytest.mark.parametrize("metric", [ACCURACY, F1], ids=lambda metric: metric.name)
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0, 1], [0], r"Mismatch in the number of predictions \(2\) and references \(1\)"),
        ([], [], "needs at least one prediction"),
        ([0.2, 0.9], [0, 1], r"whole numbers, one class a row, got 0\.2 as predictions\[0\]"),
        ([np.inf, 1], [0, 1], r"got inf as predictions\[0\]"),
        ([0, 1], [0, None], r"got nan as references\[1\]. Pass the argmax .* only rows that have a label"),
    ],
    ids=["lengths", "empty", "probabilities", "infinite", "unlabelled"],
)
def test_bad_input_is_named_and_leaves_the_metric_usable(metric, predictions, references, message):
    """Input that cannot be scored raises an error that names it, and the metric scores the next input as ever."""
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=[0, 1], references=[0, 1]) == {metric.name: 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "samples"}, "f1 knows average=binary, macro, micro, weighted, got 'samples'"),
        ({}, r"needs two classes, got 3 \(0, 1, 2\). Pass average='macro'"),
    ],
    ids=["unknown average", "binary of three classes"],
)
def test_f1_that_is_not_defined_says_what_to_pass(options, message):
    """F1 with an average that it does not know, or that the classes do not allow, raises and lists what to pass."""
    with pytest.raises(ValueError, match=message):
        F1.compute(predictions=[0, 1, 2], references=[0, 1, 1], **options)


def test_binary_f1_of_an_absent_class_raises():
    """Binary F1 of a class that is not among the two raises and names the two."""
    with pytest.raises(ValueError, match="pos_label=1, but the classes are 0 and 7"):
        F1.compute(predictions=[0, 7], references=[0, 7])


def test_unknown_metric_lists_the_known_ones():
    """An unknown metric's name raises an error that lists the known ones."""
    for lookup in (metrics.load, metrics.path):
        with pytest.raises(ValueError, match=r"no metric 'rouge': it has accuracy, .*f1"):
            lookup("rouge")


@pytest.mark.parametrize("name", metrics.available_metrics())
def test_every_metric_loads_with_no_network(name, monkeypatch):
    """Each metric that is listed loads from its folder through `evaluate` and scores without opening a connection."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    predictions, score = ([0, 1], 1.0) if name in ("accuracy", "f1") else ([[1.0, 0.0], [0.0, 1.0]], 0.0)
    for metric in (metrics.load(name), evaluate.load(str(metrics.path(name)))):
        assert metric.compute(predictions=predictions, references=[0, 1]) == {name: score}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no variable", "HF_HUB_OFFLINE"])
def test_two_processes_at_once_score_alike(tmp_path, variables):
    """Two processes that load and use the metrics at once, from an empty cache, get what one gets, and no warning."""
    program = textwrap.dedent(
        """
        import evaluate
        from baal_hf import metrics
        for name in metrics.available_metrics():
            of_classes = name in ("accuracy", "f1")
            predictions = [0, 1, 1, 0] if of_classes else [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
            for metric in (metrics.load(name), evaluate.load(str(metrics.path(name)))):
                for _ in range(20):
                    found = metric.compute(predictions=predictions, references=[0, 1, 1, 0])
                    assert found == {name: float(of_classes)}
        """
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "PYTHONWARNINGS": "error", **variables}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=Path(metrics.__file__).parents[2],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
