"""Where a project stands: the numbers are the ledger's, and the next step follows from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset

from baal_hf import ActiveLearningDataset
from baal_hf.project.status import Status, agreements, lines, next_steps, status
from baal_hf.project.trained import TrainedModel


@pytest.fixture
def dataset() -> ActiveLearningDataset:
    """Ten rows: anna labelled 0 to 3, ben 0 to 1 and 4, of which one otherwise, and 9 is skipped."""
    dataset = ActiveLearningDataset(
        Dataset.from_dict({"text": ["text"] * 10}), label_feature=ClassLabel(names=["sport", "politics", "art"])
    )
    dataset.annotate([0, 1, 2, 3], ["sport", "sport", "sport", "politics"], annotator="anna")
    dataset.annotate([0, 1, 4], ["sport", "politics", "politics"], annotator="ben")
    dataset.skip([9])
    return dataset


def test_numbers(dataset: ActiveLearningDataset) -> None:
    """Rows are counted by class, annotator and step; every class is there, and labelled, pool and skipped add up."""
    now = status(dataset, [])
    assert now.by_class == {"sport": 2, "politics": 3, "art": 0}
    assert now.by_annotator == {"anna": 4, "ben": 3}
    assert now.by_step == {1: 4, 2: 1}
    assert (now.labelled, now.pool, now.skipped, now.several, now.alike) == (5, 4, 1, 2, 1)
    assert now.labelled + now.pool + now.skipped == now.rows


def test_kappa() -> None:
    """Of the textbook's 50 pairs, 20 and 15 of them alike, Cohen's kappa is 0.4."""
    pairs = [(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15
    (one,) = agreements([{"anna": first, "ben": second} for first, second in pairs])
    assert (one.rows, one.alike) == (50, 35) and one.kappa == pytest.approx(0.4)


def test_words(dataset: ActiveLearningDataset) -> None:
    """The lines say what is labelled, by whom, how they agree, how good the models are, and what is next."""
    model = TrainedModel("0001", 4, 4, 0, {"eval_accuracy": 0.75, "eval_loss": 0.5})
    assert lines(status(dataset, [model]), " --project x") == [
        "Labelled    5 of 10 rows (50.0%), 4 in the pool, 1 skipped",
        "  by class      sport 2, politics 3, art 0",
        "  by annotator  anna 4, ben 3",
        "  by step       1: 4, 2: 1",
        "Agreement   2 rows labelled by several annotators, 1 of them alike (50.0%)",
        "  anna and ben: 2 rows, 1 alike, Cohen's kappa 0.00",
        "Models      1",
        "  0001  labelled     4  accuracy 0.750  loss 0.500",
        "Next        baal-hf train --project x    (labels changed since model 0001)",
    ]


def test_long_projects_stay_short() -> None:
    """Of many steps, models and pairs of annotators the last or largest are told, and how many others there are."""
    models = [TrainedModel(f"{number:04d}", number, number, 0) for number in range(1, 31)]
    pairs = agreements([{f"annotator {number}": 0 for number in range(8)}])
    now = Status(1000, 0, 500, 30, {"a": 500}, {"anna": 500}, dict.fromkeys(range(1, 101), 5), 1, 1, pairs, models)
    told = lines(now)
    assert len(told) < 30
    assert any("92 earlier ones, 93: 5" in line for line in told)
    assert any("18 earlier ones are in curve.jsonl" in line for line in told)
    assert any("and 22 other pairs" in line for line in told)


def test_next() -> None:
    """Random rows first, then training on what is new, then a query, and at the end the labels."""
    model = TrainedModel("0001", 5, 5, 0)
    now = Status(rows=10, skipped=0, pool=10, events=0, by_class={"a": 0, "b": 0})
    assert "query --heuristic random" in next_steps(now)[0]
    now = replace(now, pool=5, events=5, by_class={"a": 3, "b": 2})
    assert next_steps(now) == ["baal-hf train    (no model is trained yet)"]
    now = replace(now, models=[model])
    assert "query --heuristic bald" in next_steps(now)[0]
    assert "train" in next_steps(replace(now, events=6))[0]
    assert "export" in next_steps(replace(now, pool=0))[0]
