"""When to stop labelling: criteria that look at the rounds so far and nothing else.

A criterion holds settings and no state, so an experiment that resumes stops where an uninterrupted one does. Arrays of
rounds before those that it reads may be gone; without rounds it does not stop. r is a round, R the last, N the rows of
the pool, S those of the stop set (the same in all rounds, without labels), y_r(i) the class that the model of round r
predicts for row i of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from statistics import fmean
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

# What a field may hold, in words and as a check that NaN fails; `StoppingCriterion` applies it.
COUNT = {"a whole number from 1": lambda value: isinstance(value, int | np.integer) and value >= 1}
POSITIVE = {"finite and above 0": lambda value: 0 < value < math.inf}
SHARE = {"above 0 and at most 1": lambda value: 0 < value <= 1}


@dataclass(frozen=True)
class Round:
    """One finished round, as a stopping criterion sees it."""

    number: int  # from 1
    labelled: int  # rows labelled when the model was trained
    metrics: Mapping[str, float]  # of the evaluation, such as "eval_accuracy"
    pool_scores: NDArray[Any] | None  # of the pool's rows under this round's model, [N], finite
    classes: NDArray[Any] | None  # predicted for the rows of the stop set, [S]; None without stop set
    seconds: float  # that the round took
    labels: int  # label events paid for so far, one for each annotator of a row


class StoppingCriterion(ABC):
    """Whether to stop after the rounds so far; `a | b` stops when either would, `a & b` when both would."""

    needs: frozenset[str] = frozenset()  # what it reads that costs predictions, of "pool_scores" and "classes"

    def __post_init__(self) -> None:
        for each in fields(cast(Any, self)):  # dataclasses only come here
            for what, is_met in each.metadata.items():
                value = getattr(self, each.name)
                _check(self, is_met(value), f"{each.name} to be {what}", repr(value))

    @abstractmethod
    def should_stop(self, rounds: Sequence[Round]) -> bool:
        """The answer after all rounds so far, oldest first; the same rounds give the same answer.

        Raises:
            ValueError: A round lacks what the criterion reads, or it is not finite or of another stop set.
        """

    def __or__(self, other: StoppingCriterion) -> AnyOf:
        return AnyOf(self, other)

    def __and__(self, other: StoppingCriterion) -> AllOf:
        return AllOf(self, other)


class _Combination(StoppingCriterion):
    decide: Callable[[Iterable[bool]], bool]

    def __init__(self, *criteria: StoppingCriterion) -> None:
        _check(self, len(criteria) > 0, "at least one criterion", "none")
        if others := [each for each in criteria if not isinstance(each, StoppingCriterion)]:
            raise TypeError(f"{type(self).__name__} needs stopping criteria, got {others}.")
        self.criteria = criteria
        self.needs = frozenset().union(*(criterion.needs for criterion in criteria))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.criteria))})"

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        # a list, so that every criterion is asked: what one lacks is an error in the first round, not in a later one
        return self.decide([criterion.should_stop(rounds) for criterion in self.criteria])


class AnyOf(_Combination):
    """Stops when at least one of the criteria would, `a | b`. ValueError for none, TypeError for anything else."""

    decide = staticmethod(any)


class AllOf(_Combination):
    """Stops when all criteria would in one and the same round, `a & b`. Raises as `AnyOf` does."""

    decide = staticmethod(all)


@dataclass(frozen=True)
class LabellingBudgetStoppingCriterion(StoppingCriterion):
    """Stops when the labels are spent: labels_R >= labelling_budget, which the last query may have gone beyond.

    Labels, not rows: three annotators of a row are three. Unlike Baal's, it counts those that one begins with, too.

    Raises:
        ValueError: `labelling_budget` is no whole number from 1.
    """

    labelling_budget: int = field(metadata=COUNT)

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        return bool(rounds and rounds[-1].labels >= self.labelling_budget)


@dataclass(frozen=True)
class CostBudget(StoppingCriterion):
    """Stops when the money is spent: labels_R · cost_per_label >= budget, which the last query may have gone beyond.

    Raises:
        ValueError: `budget` or `cost_per_label` is not finite or not above 0.
    """

    budget: float = field(metadata=POSITIVE)
    cost_per_label: float = field(default=1.0, metadata=POSITIVE)

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        spent = rounds[-1].labels * self.cost_per_label if rounds else 0.0
        return spent >= self.budget or math.isclose(spent, self.budget)  # 6 · 0.35 is just below 2.1


@dataclass(frozen=True)
class TimeBudget(StoppingCriterion):
    """Stops when the time is spent: Σ_r seconds_r >= seconds. Pauses between rounds cost nothing.

    Raises:
        ValueError: `seconds` is not finite or not above 0.
    """

    seconds: float = field(metadata=POSITIVE)

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        return math.fsum(each.seconds for each in rounds) >= self.seconds


@dataclass(frozen=True)
class EarlyStoppingCriterion(StoppingCriterion):
    """Stops when a metric m has not improved on its best for p rounds; Baal's stops only where it stands still.

    max_{r > R-p} s·m_r <= max_{r <= R-p} s·m_r + ε, s = ±1    (Goodfellow et al., 2016, algorithm 7.1, for ε = 0)

    Args:
        metric_name: A key of every round's metrics, such as "eval_accuracy".
        patience: p, from 1.
        epsilon: ε, in the metric's units; a smaller difference is no improvement.
        greater_is_better: Whether s = 1. None means yes unless the name has "loss" in it; say False for an error.

    Raises:
        ValueError: `patience` is no whole number from 1, or `epsilon` negative or not finite.
    """

    metric_name: str
    patience: int = field(default=10, metadata=COUNT)
    epsilon: float = field(default=1e-4, metadata={"finite and not below 0": lambda value: 0 <= value < math.inf})
    greater_is_better: bool | None = None

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        name, is_given = self.metric_name, self.greater_is_better is not None
        sign = 1 if (self.greater_is_better if is_given else "loss" not in name.lower()) else -1
        for each in rounds:
            came = f"{dict(each.metrics)} in round {each.number}"
            _check(self, not math.isnan(each.metrics.get(name, math.nan)), f"a number for {name!r}", came)
        merits = [sign * float(each.metrics[name]) for each in rounds]
        before, since = merits[: -self.patience], merits[-self.patience :]
        return bool(before) and max(since) <= max(before) + self.epsilon


@dataclass(frozen=True)
class OverallUncertainty(StoppingCriterion):
    """Stops when the last model is sure of the pool on average, or nothing is left of it.

    1/N Σ_x u_R(x) < θ    (Zhu et al., 2008, COLING, for the scores u of `Entropy`; Baal, for those of any heuristic)

    Raises:
        ValueError: `threshold`, which is θ in the units of the heuristic's scores, is not finite.
    """

    threshold: float = field(metadata={"finite": math.isfinite})
    needs = frozenset({"pool_scores"})

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        if not rounds:
            return False
        scores, where = rounds[-1].pool_scores, f"in round {rounds[-1].number}"
        if scores is None:
            raise ValueError(f"{type(self).__name__} needs pool_scores, got None {where}: score the whole pool.")
        strange = np.flatnonzero(~np.isfinite(scores))
        _check(self, not strange.size, "finite scores", f"others {where} at pool positions {strange[:10].tolist()}")
        return not scores.size or float(scores.mean(dtype=np.float64)) < self.threshold


class LowAverageUncertaintyStoppingCriterion(OverallUncertainty):
    """`OverallUncertainty`, the same rule, by the name that Baal gave it."""

    def __init__(self, avg_uncertainty_threshold: float) -> None:
        super().__init__(avg_uncertainty_threshold)


@dataclass(frozen=True)
class ClassificationChange(StoppingCriterion):
    """Stops when the last two models agree on the class of every row of the stop set, or of nearly every one.

    1/S Σ_i [y_R(i) ≠ y_{R-1}(i)] <= θ    (Zhu et al., 2008, COLING, for θ = 0, the stop set being the pool)

    Raises:
        ValueError: `threshold`, which is θ, lies outside [0, 1).
    """

    threshold: float = field(default=0.0, metadata={"in [0, 1)": lambda value: 0 <= value < 1})
    needs = frozenset({"classes"})

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        changes = [float((old != new).mean()) for old, new in _pairs(rounds, 1, self)]
        return len(changes) == 1 and changes[0] <= self.threshold


@dataclass(frozen=True)
class KappaAverage(StoppingCriterion):
    """Stops when the last k pairs of consecutive models agree on the stop set; it reads k + 1 rounds.

    1/k Σ_{r > R-k} κ(y_{r-1}, y_r) >= θ, κ as in `kappa`    (Bloodgood & Vijay-Shanker, 2009, arXiv:1409.5165)

    Raises:
        ValueError: `threshold`, which is θ, lies outside (0, 1], or `window`, which is k, is no whole number from 1.
    """

    threshold: float = field(default=0.99, metadata=SHARE)
    window: int = field(default=3, metadata=COUNT)
    needs = frozenset({"classes"})

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        kappas = [kappa(*pair) for pair in _pairs(rounds, self.window, self)]
        return len(kappas) == self.window and fmean(kappas) >= self.threshold


@dataclass(frozen=True)
class DeltaF(StoppingCriterion):
    """Stops when the F-measure hardly changes over the last k pairs of consecutive models; it reads k + 1 rounds.

    ΔF(y_{r-1}, y_r) < θ for all r > R-k, ΔF as in `delta_f`    (Altschuler & Bloodgood, 2019, arXiv:1901.09118)

    Raises:
        ValueError: `threshold`, which is θ, lies outside (0, 1], or `window`, which is k, is no whole number from 1.
    """

    threshold: float = field(default=0.05, metadata=SHARE)
    window: int = field(default=3, metadata=COUNT)
    positive_class: int = 1  # all others are one negative class
    needs = frozenset({"classes"})

    def should_stop(self, rounds: Sequence[Round]) -> bool:
        deltas = [delta_f(*pair, self.positive_class) for pair in _pairs(rounds, self.window, self)]
        return len(deltas) == self.window and max(deltas) < self.threshold


def kappa(earlier: NDArray[Any], later: NDArray[Any]) -> float:
    """Agreement of two models' classes [S] beyond chance, in [-1, 1].

    κ = (A - E) / (1 - E), A = 1/S Σ_i [y(i) = y'(i)], E = Σ_c n_c n'_c / S²; 1 where all is one class    (Cohen, 1960)
    """
    names, codes = np.unique(np.stack([earlier, later]), return_inverse=True)
    counts = [np.bincount(row, minlength=len(names)) for row in codes.reshape(2, -1)]  # [C] each
    rows, agreed, by_chance = len(earlier), int((earlier == later).sum()), int(counts[0] @ counts[1])  # S, S A, S² E
    return 1.0 if agreed == rows else (agreed * rows - by_chance) / (rows**2 - by_chance)


def delta_f(earlier: NDArray[Any], later: NDArray[Any], positive_class: int = 1) -> float:
    """Change of the F-measure, estimated by taking the later model's classes [S] for the truth, in [0, 1].

    ΔF = 1 - 2a / (2a + b + c), a rows positive to both, b and c to one; 0 for 0/0    (Altschuler & Bloodgood, 2019)
    """
    was, is_now = earlier == positive_class, later == positive_class  # [S] each
    positives = int(was.sum() + is_now.sum())  # 2a + b + c
    return 1 - 2 * int((was & is_now).sum()) / positives if positives else 0.0


def _pairs(rounds: Sequence[Round], window: int, who: StoppingCriterion) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """The classes of the last `window` pairs of consecutive models, [S] and [S]; fewer while there are fewer."""
    classes = []
    for each in rounds[-window - 1 :]:
        if each.classes is None:
            raise ValueError(f"{type(who).__name__} needs classes, got None in round {each.number}: pass stop_set=...")
        classes.append(each.classes)
    shapes = [each.shape for each in classes]
    is_one = all(len(shape) == 1 and shape[0] > 0 and shape == shapes[0] for shape in shapes)
    _check(who, is_one, "the classes [S] of one stop set in its last rounds", f"shapes {shapes}")
    return list(pairwise(classes))


def _check(criterion: StoppingCriterion, is_met: bool, what: str, came: str) -> None:
    if not is_met:
        raise ValueError(f"{type(criterion).__name__} needs {what}, got {came}.")
