"""Learning curves in numbers: areas, labels to a target, and comparisons with a baseline."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.curves import aligned, labels_to_reach, learning_curve_area, runs, summary, tidy


def run(heuristic: str, seed: int, labelled: list[int], values: list[float], metric: str = "eval_accuracy") -> list:
    """Records of one run."""
    return [
        {"heuristic": heuristic, "seed": seed, "round": number, "labelled": rows, metric: value}
        for number, (rows, value) in enumerate(zip(labelled, values, strict=True), 1)
    ]


ROWS = [10, 20, 30]
RECORDS = [
    *run("random", 0, ROWS, [0.2, 0.4, 0.6]),
    *run("random", 1, ROWS, [0.2, 0.4, 0.8]),
    *run("bald", 0, ROWS, [0.2, 0.8, 0.8]),
    *run("bald", 1, ROWS, [0.2, 0.6, 0.8]),
]

points = st.lists(
    st.tuples(st.integers(0, 1000), st.floats(-10, 10)), min_size=2, max_size=8, unique_by=lambda point: point[0]
).map(sorted)


def rows_of(records: list[dict[str, Any]], **how: Any) -> dict[str, dict[str, Any]]:
    return {row["heuristic"]: row for row in summary(records, **how)}


@given(points)
def test_area_is_the_mean_of_the_curve(curve: list[tuple[int, float]]) -> None:
    """The area is the mean of the values, read off finely at the middle of equal steps between the points."""
    rows, values = zip(*curve, strict=True)
    middles = np.arange(rows[0], rows[-1]) + 0.5
    area = learning_curve_area(rows, values)
    assert area == pytest.approx(np.interp(middles, rows, values).mean(), abs=1e-9)
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9


def test_area_of_a_point_and_of_a_level() -> None:
    """A single point gives its value, a level curve its level, however its points lie."""
    assert learning_curve_area([7], [0.4]) == 0.4
    assert learning_curve_area([0, 1, 50], [0.3, 0.3, 0.3]) == pytest.approx(0.3)


def test_rounds_of_relabelling_enclose_nothing() -> None:
    """A step at one number of labelled rows adds no area, and its two sides have the value before and after."""
    assert learning_curve_area([10, 20, 20, 30], [0.0, 0.0, 1.0, 1.0]) == 0.5


@pytest.mark.parametrize(
    ("labelled", "values", "told"),
    [
        ([], [], "a value for each number"),
        ([1, 2], [0.5], r"got \(2,\) and \(1,\)"),
        ([[1, 2]], [[0.5, 0.6]], "a value for each number"),
        ([2, 1], [0.5, 0.6], r"ascending whole numbers of labelled rows, got \[2.0, 1.0\]"),
        ([-1, 1], [0.5, 0.6], "ascending whole numbers"),
        ([1, 1.5], [0.5, 0.6], "ascending whole numbers"),
        ([1, float("nan")], [0.5, 0.6], "ascending whole numbers"),
        ([1, 2], [0.5, float("nan")], "finite values"),
        ([1, 2], [0.5, float("inf")], "finite values"),
    ],
)
@pytest.mark.parametrize("function", [learning_curve_area, lambda *curve: labels_to_reach(*curve, 0.5)])
def test_what_is_no_curve_is_refused(function: Any, labelled: list, values: list, told: str) -> None:
    """Values that do not belong to ascending numbers of rows, or are not finite, are an error that shows them."""
    with pytest.raises(ValueError, match=told):
        function(labelled, values)


def test_area_needs_a_range() -> None:
    """Several points at one number of labelled rows have no mean height."""
    with pytest.raises(ValueError, match="two numbers of labelled rows, got 2, all at 10"):
        learning_curve_area([10, 10], [0.4, 0.6])


def test_labels_to_reach_is_the_first_round_that_was_seen() -> None:
    """The target counts as reached at the first round at or above it, not between rounds, and for good."""
    curve = ROWS, [0.5, 0.8, 0.6]
    assert labels_to_reach(*curve, 0.5) == 10
    assert labels_to_reach(*curve, 0.51) == 20
    assert labels_to_reach(*curve, 0.8) == 20
    assert labels_to_reach(*curve, 0.81) is None
    assert isinstance(labels_to_reach(*curve, 0.5), int)


@given(points, st.floats(-10, 10))
def test_a_loss_is_a_metric_upside_down(curve: list[tuple[int, float]], target: float) -> None:
    """A loss reaches a target where its negative reaches the target's."""
    rows, values = zip(*curve, strict=True)
    mirrored = labels_to_reach(rows, [-value for value in values], -target)
    assert labels_to_reach(rows, values, target, greater_is_better=False) == mirrored


def test_runs_are_the_curves_of_heuristics_and_seeds() -> None:
    """Records in any order give the curve of each heuristic and seed, by labelled rows and then by rounds."""
    records = run("bald", 3, [10, 20, 20], [0.1, 0.2, 0.3])
    curves = runs([records[2], *run("random", 3, [5], [0.5]), records[0], records[1]], "eval_accuracy")
    assert list(curves) == ["bald", "random"]
    labelled, values = curves["bald"][3]
    assert labelled.tolist() == [10, 20, 20] and values.tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("missing", ["heuristic", "seed", "labelled", "eval_accuracy"])
def test_runs_need_complete_records(missing: str) -> None:
    """A record that lacks what a curve is made of is an error that names it and what there is."""
    records = [{key: value for key, value in record.items() if key != missing} for record in RECORDS]
    with pytest.raises(ValueError, match=f"of eval_accuracy needs {missing} in every record, got one with .*round"):
        runs(records, "eval_accuracy")


def test_a_round_twice_is_refused() -> None:
    """Two runs with one heuristic and seed are an error, not one curve with twice the points."""
    with pytest.raises(ValueError, match="two of random with seed 0 at 10 labelled rows"):
        runs([*RECORDS, *RECORDS], "eval_accuracy")


def test_aligned_curves_are_read_between_their_points_only() -> None:
    """At each number that one curve has, the others are interpolated, and NaN where they do not reach."""
    rows, values = aligned([(np.array([10.0, 30]), np.array([0.0, 1])), (np.array([20.0, 40]), np.array([5.0, 7]))])
    assert rows.tolist() == [10, 20, 30, 40]
    np.testing.assert_array_equal(values, [[0, 0.5, 1, np.nan], [np.nan, 5, 6, 7]])


def test_aligned_curves_have_the_last_of_several_points() -> None:
    """After relabelling at one number of rows, the value is the last one; before it, the line leads to the first."""
    step = np.array([10.0, 20, 20, 30]), np.array([0.0, 0, 1, 1])
    rows, values = aligned([step, (np.array([15.0]), np.array([9.0]))])
    assert rows.tolist() == [10, 15, 20, 30]
    assert values[0].tolist() == [0, 0, 1, 1]


def test_summary_by_hand() -> None:
    """Every number of a small summary is the one that a person finds."""
    random, bald = summary(RECORDS)
    assert random == {
        "heuristic": "random",
        "seeds": 2,
        "area_mean": pytest.approx(0.425),  # of 0.4 and 0.45
        "area_std": pytest.approx(0.05 / 2**0.5),
        "last_mean": pytest.approx(0.7),
        "last_std": pytest.approx(0.2 / 2**0.5),
        "target": pytest.approx(0.7),
        "reached": 1,
        "labels": None,  # of 30 and never
        "pairs": 2,
        "gain_mean": 0,
        "gain_std": 0,
        "labels_saved": 0,
    }
    assert bald == {
        "heuristic": "bald",
        "seeds": 2,
        "area_mean": pytest.approx(0.6),  # of 0.65 and 0.55
        "area_std": pytest.approx(0.1 / 2**0.5),
        "last_mean": pytest.approx(0.8),
        "last_std": pytest.approx(0),
        "target": pytest.approx(0.7),
        "reached": 2,
        "labels": 25,  # of 20 and 30
        "pairs": 2,
        "gain_mean": pytest.approx(0.175),  # of 0.25 and 0.1
        "gain_std": pytest.approx(0.15 / 2**0.5),
        "labels_saved": pytest.approx(1 - 20 / 30),  # mean curves: 0.7 at 20, and 0.7 at 30
    }


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_baseline_reaches_its_own_target(lasts: list[float]) -> None:
    """The mean curve of the baseline always reaches the mean of its last values, so what is saved is defined."""
    records = [record for seed, last in enumerate(lasts) for record in run("random", seed, [10, 20], [-1.0, last])]
    (row,) = summary(records)
    assert row["labels_saved"] == 0


def test_order_of_records_changes_no_number() -> None:
    """Records backwards give the same rows, heuristics in the order met."""
    assert rows_of(RECORDS[::-1]) == rows_of(RECORDS)
    assert [row["heuristic"] for row in summary(RECORDS[::-1])] == ["bald", "random"]


def test_a_target_that_is_named_is_used() -> None:
    """The target of the caller goes before that of the baseline, and needs none."""
    rows = rows_of(RECORDS, target=0.4)
    assert rows["random"]["labels"] == 20 and rows["bald"]["target"] == 0.4
    (alone,) = summary(RECORDS[6:], target=0.4)
    assert alone["labels"] == 20 and alone["reached"] == 2


def test_without_baseline_nothing_is_compared() -> None:
    """Where the baseline was not run, what leans on it is None and the rest stands."""
    row = rows_of(RECORDS[6:])["bald"]
    assert row["area_mean"] == pytest.approx(0.6) and row["pairs"] == 0
    assert {name for name, value in row.items() if value is None} == {
        *("target", "reached", "labels"),
        *("gain_mean", "gain_std", "labels_saved"),
    }


def test_baseline_may_have_another_name() -> None:
    """Any heuristic can be the baseline."""
    rows = rows_of(RECORDS, baseline="bald")
    assert rows["random"]["gain_mean"] == pytest.approx(-0.175)
    assert rows["random"]["target"] == pytest.approx(0.8)
    assert rows["random"]["labels_saved"] is None


def test_only_shared_seeds_are_compared() -> None:
    """A seed that the baseline lacks counts for the heuristic alone; a single pair has no deviation."""
    row = rows_of([*RECORDS[:3], *RECORDS[6:]])["bald"]
    assert row["seeds"] == 2 and row["pairs"] == 1
    assert row["gain_mean"] == pytest.approx(0.25) and row["gain_std"] is None


def test_only_the_shared_range_is_compared() -> None:
    """Two straight lines one above the other are as far apart when one of them stops early or starts late."""
    base = run("random", 0, [10, 50], [0.1, 0.5])
    for labelled in ([10, 30], [20, 40], [30, 60], [25, 25, 35]):
        (row,) = summary([*base, *run("bald", 0, labelled, [rows / 100 + 0.2 for rows in labelled])])[1:]
        assert row["gain_mean"] == pytest.approx(0.2)


def test_ranges_that_meet_in_a_point_or_not() -> None:
    """Curves that share one number of rows are compared there, those that share none not at all."""
    base = run("random", 0, [10, 20], [0.1, 0.2])
    assert summary([*base, *run("bald", 0, [20, 30], [0.5, 0.9])])[1]["gain_mean"] == pytest.approx(0.3)
    assert summary([*base, *run("bald", 0, [25, 30], [0.5, 0.9])])[1]["gain_mean"] is None


def test_more_labels_than_the_baseline_is_below_zero() -> None:
    """A heuristic that needs twice the labels saves −1 of them; one that never arrives saves what nobody knows."""
    records = [
        *run("random", 0, ROWS, [0.5, 0.5, 0.5]),
        *run("late", 0, ROWS, [0.1, 0.6, 0.6]),
        *run("never", 0, ROWS, [0.1, 0.1, 0.1]),
    ]
    rows = rows_of(records)
    assert rows["late"]["labels_saved"] == -1
    assert rows["never"]["labels_saved"] is None and rows["never"]["reached"] == 0


def test_a_baseline_that_needs_no_label_leaves_nothing_to_save() -> None:
    """Where the baseline reaches the target with 0 labelled rows, the share that is saved is None; turned round, 1."""
    records = [*run("random", 0, [0, 10], [0.5, 0.5]), *run("bald", 0, [0, 10], [0.4, 0.6])]
    assert rows_of(records)["bald"]["labels_saved"] is None
    assert rows_of(records, baseline="bald", target=0.5)["random"]["labels_saved"] == 1


def test_summary_of_a_loss_is_that_of_its_negative() -> None:
    """A loss has the labels of the mirrored metric, and areas and gains of the other sign."""
    losses = [{**record, "eval_loss": -record["eval_accuracy"]} for record in RECORDS]
    for row, mirrored in zip(summary(losses, "eval_loss", greater_is_better=False), summary(RECORDS), strict=True):
        for name in ("area_mean", "last_mean", "target", "gain_mean"):
            assert row.pop(name) == -mirrored.pop(name)
        assert row == mirrored


def test_summary_of_nothing_is_empty() -> None:
    """No records, no rows."""
    assert summary([]) == []


def test_tidy_has_every_column_and_record() -> None:
    """Each record is a row in the order of heuristic, seed and round; a column that it lacks is None there."""
    records = [{**record, "queried": [1, 2]} if record["round"] < 3 else {**record, "why": "end"} for record in RECORDS]
    table = tidy(reversed(records))
    assert table.column_names == ["heuristic", "seed", "round", "labelled", "eval_accuracy", "queried", "why"]
    expected = sorted(records, key=lambda record: (record["heuristic"], record["seed"], record["round"]))
    assert [{key: value for key, value in row.items() if value is not None} for row in table] == expected


def test_tidy_of_nothing_has_the_first_columns() -> None:
    """No records give a table without rows."""
    table = tidy([])
    assert len(table) == 0 and table.column_names == ["heuristic", "seed", "round", "labelled"]


@pytest.mark.parametrize("missing", ["heuristic", "seed", "round"])
def test_tidy_needs_what_it_sorts_by(missing: str) -> None:
    """A record without heuristic, seed or round is an error that names it."""
    record = {key: value for key, value in RECORDS[0].items() if key != missing}
    with pytest.raises(ValueError, match=f"tidy needs {missing} in every record, got one with .*labelled"):
        tidy([record])
