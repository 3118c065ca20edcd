"""Criteria are pure functions of the rounds so far, and each says what its paper says."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score

from baal_hf.stopping import (
    AllOf,
    AnyOf,
    ClassificationChange,
    CostBudget,
    DeltaF,
    EarlyStoppingCriterion,
    KappaAverage,
    LabellingBudgetStoppingCriterion,
    LowAverageUncertaintyStoppingCriterion,
    OverallUncertainty,
    Round,
    StoppingCriterion,
    TimeBudget,
    delta_f,
    kappa,
)

BARE = Round(1, 10, {"eval_accuracy": 0.5}, pool_scores=None, classes=None, seconds=1.0, labels=10)
CRITERIA: list[StoppingCriterion] = [
    LabellingBudgetStoppingCriterion(25),
    CostBudget(7.5, 0.25),
    TimeBudget(4),
    EarlyStoppingCriterion("eval_accuracy", patience=2),
    EarlyStoppingCriterion("eval_loss", patience=1, epsilon=0.1),
    OverallUncertainty(0.4),
    LowAverageUncertaintyStoppingCriterion(0.6),
    ClassificationChange(0.25),
    KappaAverage(0.5, window=2),
    DeltaF(0.5, window=2),
    ClassificationChange(0.5) & OverallUncertainty(0.5) | TimeBudget(6),
]
LOOKS_BACK = {"pool_scores": 1, "classes": 3}  # rounds whose arrays the criteria above read

unhurried = settings(deadline=None)  # scikit-learn's first call is slow
by_name = pytest.mark.parametrize("criterion", CRITERIA, ids=repr)


def history(**columns: Sequence[Any]) -> list[Round]:
    """One round for each value of the columns, the rest as in `BARE`."""
    rows = zip(*columns.values(), strict=True)
    return [replace(BARE, number=n, **dict(zip(columns, row, strict=True))) for n, row in enumerate(rows, 1)]


def predicted(*answers: str) -> list[Round]:
    """One round for each string, whose digits are the classes of the stop set's rows."""
    return history(classes=[np.array([int(digit) for digit in answer]) for answer in answers])


def measured(name: str, values: Sequence[float]) -> list[Round]:
    return history(metrics=[{name: value} for value in values])


def decisions(criterion: StoppingCriterion, rounds: Sequence[Round]) -> list[bool]:
    """What the criterion says after each of the rounds."""
    return [criterion.should_stop(rounds[:seen]) for seen in range(1, len(rounds) + 1)]


def pairs_of(arrays: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(1, 12).flatmap(lambda size: st.tuples(*[st.lists(arrays, min_size=size, max_size=size)] * 2))


@st.composite
def histories(draw: st.DrawFn) -> list[Round]:
    """Rounds that have everything, of one stop set, in arrays that cannot be written to."""
    size = draw(st.integers(1, 4))
    unit = st.floats(0, 1)
    rounds, labels = [], 0
    for number in range(1, draw(st.integers(1, 7)) + 1):
        labels += draw(st.integers(1, 9))
        scores = np.array(draw(st.lists(unit, max_size=4)))
        classes = np.array(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
        scores.setflags(write=False)
        classes.setflags(write=False)
        metrics = {"eval_accuracy": draw(unit), "eval_loss": draw(unit)}
        rounds.append(Round(number, 5 * number, metrics, scores, classes, draw(st.floats(0, 3)), labels))
    return rounds


@by_name
@given(rounds=histories())
def test_the_past_decides_alone(criterion: StoppingCriterion, rounds: list[Round]) -> None:
    """Asked twice, in any order, or after later rounds, a criterion says the same about the same rounds."""
    asked_forwards = decisions(criterion, rounds)
    asked_backwards = [criterion.should_stop(tuple(rounds[:seen])) for seen in range(len(rounds), 0, -1)]
    assert asked_forwards == asked_backwards[::-1] == decisions(criterion, rounds)
    assert all(type(decision) is bool for decision in asked_forwards)


@by_name
@given(rounds=histories())
def test_old_arrays_may_be_dropped(criterion: StoppingCriterion, rounds: list[Round]) -> None:
    """A criterion reads the arrays that it needs, of the last rounds only, so that a resumed one needs no others."""
    kept = [
        replace(
            each,
            **{
                name: None
                for name, last in LOOKS_BACK.items()
                if name not in criterion.needs or each.number <= len(rounds) - last
            },
        )
        for each in rounds
    ]
    assert criterion.should_stop(kept) == criterion.should_stop(rounds)


@by_name
def test_nothing_stops_before_the_first_round(criterion: StoppingCriterion) -> None:
    """Without rounds there is no reason to stop."""
    assert criterion.should_stop([]) is False


@by_name
def test_settings_are_fixed_and_shown(criterion: StoppingCriterion) -> None:
    """A criterion's text names it and its settings, and is the same in every process."""
    assert repr(criterion).startswith(type(criterion).__name__ + "(")
    assert " at 0x" not in repr(criterion)


def test_labels_are_counted_and_not_rows() -> None:
    """The budget is spent by labels: three annotators of a row cost three."""
    rounds = history(labelled=[10, 20, 30], labels=[30, 60, 90])
    assert decisions(LabellingBudgetStoppingCriterion(60), rounds) == [False, True, True]
    rounds = history(labelled=[100, 200, 300], labels=[30, 59, 60])
    assert decisions(LabellingBudgetStoppingCriterion(60), rounds) == [False, False, True]


def test_money_is_labels_times_price() -> None:
    """Stops at the label that reaches the budget, whatever the price's binary digits; a label costs 1 by default."""
    assert decisions(CostBudget(2.1, 0.35), history(labels=[5, 6, 7])) == [False, True, True]  # 6 · 0.35 < 2.1
    assert decisions(CostBudget(6), history(labels=[5, 6, 7])) == [False, True, True]


def test_time_is_the_sum_of_the_rounds() -> None:
    """Seconds add up over rounds, exactly: ten times 0.1 are 1."""
    assert decisions(TimeBudget(6), history(seconds=[3.0, 2.5, 0.5, 9.0])) == [False, False, True, True]
    assert decisions(TimeBudget(1), history(seconds=[0.1] * 10)) == [False] * 9 + [True]


def test_early_stopping_waits_for_patience() -> None:
    """Stops after `patience` rounds that do not exceed the best before them by more than `epsilon`."""
    rounds = measured("eval_accuracy", [0.5, 0.7, 0.6, 0.705, 0.7, 0.69])
    assert decisions(EarlyStoppingCriterion("eval_accuracy", 3, 0.01), rounds) == [False] * 4 + [True] * 2
    assert decisions(EarlyStoppingCriterion("eval_accuracy", 3, 0.001), rounds) == [False] * 6


def test_small_steps_add_up_to_an_improvement() -> None:
    """What improves by less than `epsilon` a round still improves by more in `patience` rounds."""
    rounds = measured("eval_accuracy", [0.1 * step for step in range(9)])
    assert not any(decisions(EarlyStoppingCriterion("eval_accuracy", 3, 0.15), rounds))


def test_early_stopping_knows_the_direction() -> None:
    """A loss is to fall and all else to rise, unless one says otherwise."""
    falling, rising = [0.9, 0.7, 0.5, 0.3], [0.3, 0.5, 0.7, 0.9]
    for name, good, bad in [("eval_loss", falling, rising), ("Loss", falling, rising), ("eval_f1", rising, falling)]:
        assert decisions(EarlyStoppingCriterion(name, 2), measured(name, good)) == [False] * 4
        assert decisions(EarlyStoppingCriterion(name, 2), measured(name, bad)) == [False, False, True, True]
    for name, is_greater_better, good in [("eval_ece", False, falling), ("gloss_score", True, rising)]:
        criterion = EarlyStoppingCriterion(name, 2, greater_is_better=is_greater_better)
        assert decisions(criterion, measured(name, good)) == [False] * 4
        assert decisions(criterion, measured(name, good[::-1])) == [False, False, True, True]


def test_early_stopping_as_in_baal() -> None:
    """On a loss that falls and then stands still it stops where Baal's does."""
    rounds = measured("test_loss", [1 / (step + 1) for step in range(10)] + [0.1] * 5)
    assert decisions(EarlyStoppingCriterion("test_loss", patience=5), rounds) == [False] * 14 + [True]


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=12), st.integers(1, 4))
def test_early_stopping_is_the_textbooks(values: list[float], patience: int) -> None:
    """It first stops where a counter of rounds since the best one reaches the patience."""
    best, waited, first = -math.inf, 0, None
    for place, value in enumerate(values):
        best, waited = (value, 0) if value > best else (best, waited + 1)
        if waited == patience and first is None:
            first = place
    said = decisions(EarlyStoppingCriterion("f1", patience, epsilon=0), measured("f1", values))
    assert (said.index(True) if True in said else None) == first


def test_the_pool_is_certain_on_average() -> None:
    """The mean over the last round's pool decides, strictly below the threshold, in whatever precision."""
    scores = [np.array([0.5, 0.3]), np.array([0.0, 0.5], dtype=np.float16), np.array([0.0, 0.2, 0.4])]
    assert decisions(OverallUncertainty(0.25), history(pool_scores=scores)) == [False, False, True]
    assert OverallUncertainty(-1.0).should_stop(history(pool_scores=[np.array([-1.5, -1.0])]))
    assert OverallUncertainty(3.0).should_stop(history(pool_scores=[np.full(100_000, 2.0, dtype=np.float16)]))


def test_an_empty_pool_has_nothing_uncertain() -> None:
    """When every row is labelled the criterion stops."""
    assert OverallUncertainty(0.1).should_stop(history(pool_scores=[np.zeros(0)]))


@given(histories(), st.floats(0, 1))
def test_baals_name_is_the_same_rule(rounds: list[Round], threshold: float) -> None:
    """Baal's low average uncertainty and the overall uncertainty of Zhu et al. decide alike."""
    baals = LowAverageUncertaintyStoppingCriterion(avg_uncertainty_threshold=threshold)
    assert decisions(baals, rounds) == decisions(OverallUncertainty(threshold), rounds)


def test_classes_change_no_more() -> None:
    """Compares the last two models: one of four rows changed is a quarter."""
    rounds = predicted("0120", "0121", "0121", "1021")
    assert decisions(ClassificationChange(), rounds) == [False, False, True, False]
    assert decisions(ClassificationChange(0.25), rounds) == [False, True, True, False]
    assert decisions(ClassificationChange(0.24), rounds) == [False, False, True, False]
    assert decisions(ClassificationChange(0.5), rounds) == [False, True, True, True]


def test_kappa_by_hand() -> None:
    """Three of four agree where half would by chance: κ is a half; all against all is -1; chance is 0."""
    assert kappa(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])) == 0.5
    assert kappa(np.array([0, 1]), np.array([1, 0])) == -1
    assert kappa(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == 0


def test_one_class_for_all_rows_is_agreement() -> None:
    """Models that both predict a single class agree perfectly if it is the same one, else no better than by chance."""
    assert kappa(np.array([2, 2, 2]), np.array([2, 2, 2])) == 1
    assert kappa(np.array([0, 0, 0]), np.array([2, 2, 2])) == 0
    assert kappa(np.array([2, 2, 2]), np.array([2, 2, 0])) == 0


@unhurried
@given(pairs_of(st.sampled_from([-100, 0, 1, 7])))
def test_kappa_is_scikit_learns(pair: tuple[list[int], list[int]]) -> None:
    """Where scikit-learn's κ is defined ours is the same, for any class ids; and it is symmetric."""
    assume(len({*pair[0], *pair[1]}) > 1)
    earlier, later = map(np.array, pair)
    assert kappa(earlier, later) == pytest.approx(cohen_kappa_score(earlier, later), abs=1e-12)
    assert kappa(earlier, later) == kappa(later, earlier)


def test_kappa_is_averaged_over_the_window() -> None:
    """The mean of the last k values decides, once there are k of them."""
    rounds = predicted("0011", "0010", "0010", "0010", "0010")  # κ: 0.5, 1, 1, 1
    assert decisions(KappaAverage(), rounds) == [False, False, False, False, True]
    assert decisions(KappaAverage(0.83, window=3), rounds) == [False, False, False, True, True]  # (0.5 + 1 + 1) / 3
    assert decisions(KappaAverage(0.5, window=1), rounds) == [False, True, True, True, True]
    assert decisions(KappaAverage(1.0, window=2), rounds) == [False, False, False, True, True]


def test_delta_f_by_hand() -> None:
    """One row positive to both and two to one of them: ΔF = 1 - 2/4; other classes count as negative."""
    assert delta_f(np.array([1, 1, 1, 0]), np.array([0, 0, 1, 0])) == 0.5
    assert delta_f(np.array([1, 1, 1, 2]), np.array([0, 2, 1, 0])) == 0.5
    assert delta_f(np.array([3, 3, 3, 2]), np.array([1, 2, 3, 1]), positive_class=3) == 0.5
    assert delta_f(np.array([1, 0]), np.array([0, 1])) == 1


def test_no_positive_row_is_no_change() -> None:
    """If neither model finds a positive row, the F-measure has not changed."""
    assert delta_f(np.array([0, 2]), np.array([2, 0])) == 0


@unhurried
@given(pairs_of(st.integers(0, 2)), st.integers(0, 3))
def test_delta_f_is_scikit_learns(pair: tuple[list[int], list[int]], positive: int) -> None:
    """It is what the earlier model's F1 lacks to 1 if the later one's classes are the truth."""
    earlier, later = map(np.array, pair)
    reference = 1 - f1_score(later == positive, earlier == positive, zero_division=1.0)
    assert delta_f(earlier, later, positive) == pytest.approx(reference, abs=1e-12)


def test_delta_f_is_small_all_over_the_window() -> None:
    """Every one of the last k values has to lie strictly below the threshold."""
    rounds = predicted("1110", "1111", "1111", "1111", "1100")  # ΔF: 1/7, 0, 0, 1/3
    assert decisions(DeltaF(), rounds) == [False] * 5
    assert decisions(DeltaF(0.2), rounds) == [False, False, False, True, False]
    assert decisions(DeltaF(0.1, window=2), rounds) == [False, False, False, True, False]
    assert decisions(DeltaF(1 / 3, window=1), rounds) == [False, True, True, True, False]
    assert decisions(DeltaF(0.1, window=2, positive_class=2), rounds) == [False, False, True, True, True]


@unhurried
@given(histories(), st.sampled_from([0.23, 0.51, 0.77]), st.integers(1, 3))
def test_stability_is_its_equation(rounds: list[Round], threshold: float, window: int) -> None:
    """The three criteria of the stop set decide as the papers' sums, written out, do."""
    for seen in range(1, len(rounds) + 1):
        classes = [list(each.classes) for each in rounds[:seen]]
        pairs = list(pairwise(classes))[-window:]
        changed = [fmean(a != b for a, b in zip(*pair, strict=True)) for pair in pairs]
        kappas = [1.0 if old == new else cohen_kappa_score(old, new) for old, new in pairs]
        positive = [(np.array(old) == 1, np.array(new) == 1) for old, new in pairs]
        deltas = [1 - f1_score(new, old, zero_division=1.0) for old, new in positive]
        is_full = len(pairs) == window
        now = rounds[:seen]
        assert ClassificationChange(threshold).should_stop(now) == (bool(pairs) and changed[-1] <= threshold)
        assert KappaAverage(threshold, window).should_stop(now) == (is_full and fmean(kappas) >= threshold)
        assert DeltaF(threshold, window).should_stop(now) == (is_full and max(deltas) < threshold)


@given(histories(), st.permutations([0, 1, 2]))
def test_names_of_classes_do_not_matter(rounds: list[Round], names: list[int]) -> None:
    """Renaming classes changes no decision."""
    renamed = [replace(each, classes=np.array(names)[each.classes]) for each in rounds]
    for criterion in (ClassificationChange(0.3), KappaAverage(0.5, 2)):
        assert decisions(criterion, renamed) == decisions(criterion, rounds)
    assert decisions(DeltaF(0.5, 2, names[1]), renamed) == decisions(DeltaF(0.5, 2, 1), rounds)


def test_any_and_all() -> None:
    """`|` stops when either would, `&` when both would in the same round, and they nest."""
    rounds = history(labels=[5, 10, 15], seconds=[2.0, 2.0, 2.0])
    early, late = LabellingBudgetStoppingCriterion(10), TimeBudget(6)
    assert decisions(early | late, rounds) == [False, True, True]
    assert decisions(early & late, rounds) == [False, False, True]
    assert decisions(late & early | early, rounds) == [False, True, True]
    assert decisions(AnyOf(late), rounds) == decisions(AllOf(late), rounds) == decisions(late, rounds)
    assert repr(early | late) == ("AnyOf(LabellingBudgetStoppingCriterion(labelling_budget=10), TimeBudget(seconds=6))")


@given(histories(), st.sampled_from(CRITERIA), st.sampled_from(CRITERIA))
def test_combinations_are_boolean(rounds: list[Round], one: StoppingCriterion, other: StoppingCriterion) -> None:
    """Any two criteria combine as their answers do."""
    answers = list(zip(decisions(one, rounds), decisions(other, rounds), strict=True))
    assert decisions(one | other, rounds) == [any(pair) for pair in answers]
    assert decisions(one & other, rounds) == [all(pair) for pair in answers]


def test_needs_are_those_of_all() -> None:
    """Budgets need no predictions; a combination needs what any of its criteria does."""
    assert TimeBudget(1).needs == CostBudget(1).needs == EarlyStoppingCriterion("f1").needs == frozenset()
    assert OverallUncertainty(1).needs == LowAverageUncertaintyStoppingCriterion(1).needs == {"pool_scores"}
    assert ClassificationChange().needs == KappaAverage().needs == DeltaF().needs == {"classes"}
    assert (OverallUncertainty(1) & TimeBudget(1) | KappaAverage()).needs == {"pool_scores", "classes"}
    assert (TimeBudget(1) | CostBudget(1)).needs == frozenset()


def test_own_criteria_combine() -> None:
    """A criterion of a user's own needs one method, and combines as ours do."""

    class SecondRound(StoppingCriterion):
        def should_stop(self, rounds: Sequence[Round]) -> bool:
            return len(rounds) >= 2

    assert decisions(SecondRound() | TimeBudget(100), history(labels=[1, 2, 3])) == [False, True, True]


@pytest.mark.parametrize(
    ("criterion", "settings", "what"),
    [
        (LabellingBudgetStoppingCriterion, {"labelling_budget": 0}, "labelling_budget to be a whole number from 1"),
        (LabellingBudgetStoppingCriterion, {"labelling_budget": 1.5}, "whole number from 1, got 1.5"),
        (CostBudget, {"budget": 0}, "budget to be finite and above 0, got 0"),
        (CostBudget, {"budget": math.inf}, "budget to be finite and above 0, got inf"),
        (CostBudget, {"budget": 1, "cost_per_label": -1}, "cost_per_label to be finite and above 0, got -1"),
        (TimeBudget, {"seconds": math.nan}, "seconds to be finite and above 0, got nan"),
        (EarlyStoppingCriterion, {"metric_name": "f1", "patience": 0}, "patience to be a whole number from 1"),
        (EarlyStoppingCriterion, {"metric_name": "f1", "epsilon": -1}, "epsilon to be finite and not below 0, got -1"),
        (OverallUncertainty, {"threshold": math.nan}, "threshold to be finite, got nan"),
        (LowAverageUncertaintyStoppingCriterion, {"avg_uncertainty_threshold": math.inf}, "to be finite, got inf"),
        (ClassificationChange, {"threshold": 1}, r"threshold to be in \[0, 1\), got 1"),
        (ClassificationChange, {"threshold": -0.1}, r"threshold to be in \[0, 1\), got -0.1"),
        (KappaAverage, {"threshold": 0}, "threshold to be above 0 and at most 1, got 0"),
        (KappaAverage, {"window": 2.0}, "window to be a whole number from 1, got 2.0"),
        (DeltaF, {"threshold": 1.1}, "threshold to be above 0 and at most 1, got 1.1"),
        (DeltaF, {"window": 0}, "window to be a whole number from 1, got 0"),
        (AnyOf, {}, "at least one criterion, got none"),
        (AllOf, {}, "at least one criterion, got none"),
    ],
)
def test_bad_settings_are_refused(criterion: Any, settings: dict[str, Any], what: str) -> None:
    """A setting out of its range is an error that names the criterion, the setting and what came."""
    with pytest.raises(ValueError, match=f"^{criterion.__name__} needs .*{what}"):
        criterion(**settings)


def test_strangers_do_not_combine() -> None:
    """Only criteria can be combined."""
    with pytest.raises(TypeError, match="AnyOf needs stopping criteria, got \\[3\\]"):
        TimeBudget(1) | 3  # type: ignore[operator]
    with pytest.raises(TypeError, match="AllOf needs stopping criteria"):
        AllOf(TimeBudget(1), lambda rounds: True)  # type: ignore[arg-type]


@pytest.mark.parametrize("criterion", [ClassificationChange(), KappaAverage(), DeltaF()], ids=repr)
def test_a_missing_stop_set_is_named_in_the_first_round(criterion: StoppingCriterion) -> None:
    """Without predicted classes the error comes at once and says what to pass, also in a combination."""
    who = type(criterion).__name__
    for asked in (criterion, TimeBudget(0.5) | criterion, TimeBudget(99) & criterion):
        with pytest.raises(ValueError, match=f"{who} needs classes, got None in round 1: pass stop_set=..."):
            asked.should_stop([BARE])


@pytest.mark.parametrize("criterion", [ClassificationChange(), KappaAverage(), DeltaF()], ids=repr)
def test_the_stop_set_stays_the_same(criterion: StoppingCriterion) -> None:
    """A stop set of another size, of none or of several positions is an error."""
    with pytest.raises(ValueError, match=r"classes \[S\] of one stop set in its last rounds, got .*\(3,\), \(2,\)"):
        criterion.should_stop(predicted("010", "01"))
    with pytest.raises(ValueError, match=r"one stop set in its last rounds, got shapes \[\(0,\)\]"):
        criterion.should_stop(predicted(""))
    with pytest.raises(ValueError, match=r"one stop set in its last rounds, got shapes \[\(2, 2\)\]"):
        criterion.should_stop(history(classes=[np.zeros((2, 2), dtype=np.int64)]))


@pytest.mark.parametrize("criterion", [OverallUncertainty(1), LowAverageUncertaintyStoppingCriterion(1)], ids=repr)
def test_scores_are_there_and_finite(criterion: StoppingCriterion) -> None:
    """Missing scores and scores that are no numbers are errors that name the round and the pool positions."""
    who = type(criterion).__name__
    with pytest.raises(ValueError, match=f"{who} needs pool_scores, got None in round 1: score the whole pool"):
        criterion.should_stop([BARE])
    strange = history(pool_scores=[np.array([0.5]), np.array([math.nan, 0.5, -math.inf])])
    with pytest.raises(ValueError, match=rf"{who} needs finite scores, got others in round 2 at .* \[0, 2\]"):
        criterion.should_stop(strange)


def test_metrics_are_there_and_numbers() -> None:
    """A metric that a round does not have, or that is NaN, is an error that shows what the round has."""
    with pytest.raises(ValueError, match=r"needs a number for 'f1', got \{'eval_accuracy': 0.5\} in round 1"):
        EarlyStoppingCriterion("f1").should_stop([BARE])
    with pytest.raises(ValueError, match=r"needs a number for 'f1', got \{'f1': nan\} in round 2"):
        EarlyStoppingCriterion("f1").should_stop(measured("f1", [0.5, math.nan]))
