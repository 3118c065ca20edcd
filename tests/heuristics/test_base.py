"""What all heuristics share: arrays, reductions, batches, ranking, picking, shuffling, and their errors."""

import importlib
import pkgutil

import numpy as np
import pytest
import torch

from baal_hf import heuristics
from baal_hf.heuristics import (
    ARRAYS,
    BALD,
    AbstractHeuristic,
    BatchHeuristic,
    Certainty,
    Entropy,
    Margin,
    MaxKL,
    Random,
    Variance,
    available_heuristics,
    entropy,
    get_heuristic,
    whole,
)
from baal_hf.heuristics.base import FunctionHeuristic, descending, finite

ALL = [BALD, Certainty, Entropy, Margin, MaxKL, Random, Variance]


def token_probs(N: int = 4, S: int = 3, seed: int = 0) -> np.ndarray:
    """Token predictions [N, 3, S, 5]."""
    return np.moveaxis(np.random.default_rng(seed).dirichlet(np.ones(3), (N, S, 5)), -1, 1)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("max", np.max), ("min", np.min), ("mean", np.mean), ("sum", np.sum)]
)
def test_reductions(reduction: str, expected) -> None:
    """A reduction turns the positions' scores [N, *S] into one score a row."""
    probs = np.stack([token_probs(seed=seed) for seed in (0, 1)], axis=2)  # [N, C, 2, S, T]
    scores = Entropy(reduction=reduction).get_uncertainties(probs)
    np.testing.assert_allclose(scores, expected(entropy(probs), axis=(1, 2)))


def test_callable_reduction() -> None:
    """A function of the scores [N, *S] serves as reduction."""
    probs = token_probs()
    scores = Entropy(reduction=lambda scores: scores[:, 0]).get_uncertainties(probs)
    np.testing.assert_allclose(scores, entropy(probs)[:, 0])


def test_callable_reduction_of_wrong_shape() -> None:
    """A function that does not return one score a row is refused."""
    with pytest.raises(ValueError, match=r"Entropy: A reduction of \[4, 3\] needs to give \[4\], got \[3\]"):
        Entropy(reduction=lambda scores: scores.mean(0)).get_uncertainties(token_probs())


@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum", "none", np.max])
def test_reduction_of_rows_without_positions(reduction) -> None:
    """Scores that have no positions pass every reduction unchanged."""
    probs = token_probs()[:, :, 0]  # [N, C, T]
    np.testing.assert_array_equal(Entropy(reduction=reduction).get_uncertainties(probs), entropy(probs))


def test_ranks_need_one_score_a_row() -> None:
    """With positions and reduction 'none' there are scores, but no ranks."""
    heuristic = Entropy()
    assert heuristic.get_uncertainties(token_probs()).shape == (4, 3)
    with pytest.raises(ValueError, match=r"Entropy ranks one score a row, got scores \[4, 3\]\. Choose a reduction"):
        heuristic.get_ranks(token_probs())


@pytest.mark.parametrize("kind", ["list", "generator", "method"])
def test_batches_of_different_width(kind: str) -> None:
    """Batches padded to different widths are scored as one pool, each row by its own positions."""
    batches = [token_probs(2, 3, seed=1), token_probs(3, 7, seed=2)]
    heuristic = BALD(reduction="mean")
    expected = np.concatenate([heuristic.get_uncertainties(batch) for batch in batches])
    if kind == "method":
        scores = heuristic.get_uncertainties_generator(iter(batches))
    else:
        scores = heuristic.get_uncertainties(batches if kind == "list" else (batch for batch in batches))
    np.testing.assert_array_equal(scores, expected)


def test_batches_of_different_width_without_reduction() -> None:
    """Widths that differ cannot be stacked, so a reduction is asked for."""
    with pytest.raises(ValueError, match=r"Entropy needs batches of one width .* Choose another reduction"):
        Entropy().get_uncertainties([token_probs(S=3), token_probs(S=7)])


def test_one_batch_at_a_time() -> None:
    """A generator is read batch by batch, never gathered first."""
    alive: list[int] = []

    class Spy(Entropy):
        def compute_score(self, predictions):
            assert alive == [1]
            alive.clear()
            return super().compute_score(predictions)

    def batches():
        for _ in range(3):
            alive.append(1)
            yield token_probs()[:, :, 0]

    assert len(Spy().get_uncertainties(batches())) == 12


def test_errors_in_batches_name_the_row() -> None:
    """An error in a later batch says which, and where that batch starts."""
    bad = token_probs(2)
    bad[1, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"In batch 1, whose row 0 is row 4 of all: BALD needs finite .* in row 1\."):
        BALD().get_uncertainties([token_probs(), bad])


def test_errors_of_the_generator_pass() -> None:
    """What the user's generator raises is the user's, and comes out unchanged."""

    def failing():
        yield token_probs()
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        BALD().get_uncertainties(failing())


@pytest.mark.parametrize("heuristic", ALL)
def test_empty_generator(heuristic) -> None:
    """No batches, no scores: an error."""
    with pytest.raises(ValueError, match="needs at least one batch of predictions, got none"):
        heuristic().get_uncertainties(batch for batch in ())


@pytest.mark.parametrize("predictions", [7, None, [1.0, 2.0], [[[0.5], [0.5]]], "text", np.ones((2, 3, 4), int)])
def test_wrong_types(predictions) -> None:
    """What is no array of floating-point numbers is a TypeError that says what came."""
    with pytest.raises(TypeError, match=r"Entropy needs .*, got (int|NoneType|float|list|str|int64)\b"):
        Entropy().get_uncertainties(predictions)


def test_ranks_are_descending() -> None:
    """The first rank is the highest score; ranks are int64 and come with the scores in row order."""
    probs = token_probs(20)[:, :, 0]
    ranks, scores = BALD().get_ranks(probs)
    assert ranks.dtype == np.int64
    assert (np.diff(scores[ranks]) <= 0).all()
    np.testing.assert_array_equal(scores, BALD().get_uncertainties(probs))
    np.testing.assert_array_equal(BALD()(probs), ranks)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda s: torch.tensor(s).bfloat16(), np.uint8])
def test_ties_keep_row_order(kind) -> None:
    """Equal scores rank by ascending row, whatever holds the scores."""
    assert BALD().reorder_indices(kind([1, 2, 1, 2, 0])).tolist() == [1, 3, 0, 2, 4]


def test_many_ties_keep_row_order() -> None:
    """Ties keep the order of rows in long rankings too, where a sort that is not stable would show."""
    scores = np.random.default_rng(0).integers(0, 3, 1000)
    expected = sorted(range(1000), key=lambda row: -scores[row])
    assert BALD().reorder_indices(scores).tolist() == expected


def test_non_finite_scores_name_their_rows() -> None:
    """NaN and infinite scores raise with the first rows; none is turned into a number."""
    scores = np.zeros(20)
    scores[3:10] = np.nan
    scores[12] = -np.inf
    with pytest.raises(ValueError, match="got NaN or infinity in rows 3, 4, 5, 6, 7 and 3 more"):
        BALD().reorder_indices(scores)


def test_overflow_is_not_ranked() -> None:
    """A score that overflows raises when ranks are asked for."""
    with pytest.raises(ValueError, match="Variance needs finite scores, got NaN or infinity in row 0"):
        Variance()(np.array([[[-1e30, 1e30]], [[0, 1]]], dtype=np.float32))


def test_no_scores() -> None:
    """There is no ranking of nothing."""
    with pytest.raises(ValueError, match=r"got scores \[0\]"):
        BALD().reorder_indices([])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_shuffle_prop(share: float) -> None:
    """The share of places is shuffled, no other place moves, and the ranks stay a permutation."""
    descending = np.arange(1000)
    ranks = BALD(share).reorder_indices(-descending)
    assert sorted(ranks) == list(range(1000))
    moved = (ranks != descending).sum()
    assert share * 1000 - 20 <= moved <= share * 1000
    assert moved == 0 or (ranks != descending)[-100:].any()


def test_shuffle_is_seeded() -> None:
    """The shuffle depends on the heuristic's own seed or generator alone, and differs from call to call."""
    scores = np.arange(100)
    one = BALD(1.0, seed=5)
    first = one.reorder_indices(scores)
    np.random.seed(0)  # the global generator must not matter
    np.testing.assert_array_equal(first, BALD(1.0, seed=5).reorder_indices(scores))
    np.testing.assert_array_equal(first, BALD(1.0, seed=np.random.default_rng(5)).reorder_indices(scores))
    assert (first != one.reorder_indices(scores)).any()
    assert (first != BALD(1.0, seed=6).reorder_indices(scores)).any()


def test_shuffle_leaves_scores_alone() -> None:
    """Shuffling is of the ranking; the scores that come with it are true and in row order."""
    probs = token_probs(20)[:, :, 0]
    np.testing.assert_array_equal(BALD(1.0).get_ranks(probs)[1], BALD().get_uncertainties(probs))


@pytest.mark.parametrize("heuristic", ALL)
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shuffle_prop_out_of_range(heuristic, share: float) -> None:
    """A share outside [0, 1] is refused."""
    with pytest.raises(ValueError, match=r"needs shuffle_prop in \[0, 1\], got"):
        heuristic(shuffle_prop=share)


@pytest.mark.parametrize("heuristic", ALL)
def test_unknown_reduction(heuristic) -> None:
    """An unknown reduction is refused where it is given, with the known ones."""
    with pytest.raises(ValueError, match="reduction out of max, min, mean, sum, none, or a function, got 'median'"):
        heuristic(reduction="median")


def test_arguments_of_wrong_type() -> None:
    """Arguments of another type are TypeErrors; the seed is a keyword only."""
    with pytest.raises(TypeError, match="needs a number as shuffle_prop, got str"):
        BALD("0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs a name or a function as reduction, got int"):
        BALD(reduction=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        BALD(0.0, "none", 3)  # type: ignore[misc]


def test_own_heuristic() -> None:
    """A heuristic of one's own says how to score; ranking, batches and reductions come with it."""

    class Peak(AbstractHeuristic):
        def compute_score(self, predictions):
            return predictions.max(axis=(1, -1))

    probs = token_probs(6)
    ranks, scores = Peak(reduction="max").get_ranks([probs[:2], probs[2:]])
    np.testing.assert_array_equal(scores, probs.max(axis=(1, 2, 3)))
    assert ranks[0] == scores.argmax()
    assert Peak.needs == ("predictions",)


def test_registry() -> None:
    """Every heuristic that can be made is found by its name, in any case, and made with its arguments."""
    for module in pkgutil.iter_modules(heuristics.__path__, "baal_hf.heuristics."):
        for name, value in vars(importlib.import_module(module.name)).items():
            is_heuristic = isinstance(value, type) and issubclass(value, AbstractHeuristic)
            if is_heuristic and not name.startswith("_") and value is not FunctionHeuristic:
                assert (name.lower() in available_heuristics()) != bool(value.__abstractmethods__), name
    for heuristic in ALL:
        assert type(get_heuristic(heuristic.__name__)) is heuristic
        assert type(get_heuristic(heuristic.__name__.upper())) is heuristic
    made = get_heuristic("bald", shuffle_prop=0.5, reduction="max", seed=1)
    assert (made.shuffle_prop, made.reduction) == (0.5, "max")
    assert available_heuristics() == sorted(available_heuristics())


def test_registry_errors() -> None:
    """An unknown name lists the known ones; another type, and arguments that are none, are TypeErrors."""
    with pytest.raises(ValueError, match=r"name out of .*bald, .*random, .*variance.*, got 'bold'"):
        get_heuristic("bold")
    with pytest.raises(TypeError, match="get_heuristic needs a name, got int"):
        get_heuristic(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        get_heuristic("bald", color="red")


@pytest.mark.parametrize("kind", ["array", "list", "generator"])
def test_query_size(kind: str) -> None:
    """A query size cuts the ranking off after K; scores are of all rows."""
    probs = token_probs(10)[:, :, 0]
    batches = [probs[:4], probs[4:]]
    given = {"array": probs, "list": batches, "generator": iter(batches)}[kind]
    every, expected = BALD().get_ranks(probs)
    ranks, scores = BALD().get_ranks(given, 3)
    np.testing.assert_array_equal(ranks, every[:3])
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(BALD()(probs, query_size=np.int64(10)), every)


@pytest.mark.parametrize("size", [11, 0, -1])
def test_query_size_out_of_range(size: int) -> None:
    """More rows than there are, or none, cannot be asked for."""
    with pytest.raises(ValueError, match=rf"BALD needs a query_size in 1 \.\. 10, the number of rows, got {size}\."):
        BALD()(token_probs(10)[:, :, 0], size)


def test_query_size_is_a_whole_number() -> None:
    """Half a row cannot be labelled."""
    with pytest.raises(TypeError):
        BALD()(token_probs(10)[:, :, 0], 2.5)  # type: ignore[arg-type]


def nearness(predictions, features, labelled_features):
    """Least Manhattan distance to a labelled row, times the spread of the predictions, [N]."""
    distance = np.abs(features[:, None] - labelled_features[None]).sum(2).min(1)
    return distance * predictions.std(axis=(1, 2))


class Nearness(FunctionHeuristic):
    """A heuristic of predictions and features."""

    needs = ("predictions", "features", "labelled_features")
    score = staticmethod(nearness)


class Seniority(AbstractHeuristic):
    """A heuristic that needs no predictions."""

    needs = ("features", "labels")

    def compute_score(self, predictions, *args, **arrays):
        return arrays["features"][:, 0] + arrays["labels"]


PROBS = token_probs(7)[:, :, 0]  # [N, C, T]
FEATURES = np.random.default_rng(1).random((7, 2))
LABELLED = np.random.default_rng(2).random((5, 2))


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5]])
def test_arrays_by_name(sizes: list[int]) -> None:
    """A function gets the arrays that it needs by name: of rows those of the batch, whole sets as they are."""
    batches = np.split(PROBS, np.cumsum(sizes)[:-1])
    ranks, scores = Nearness().get_ranks(iter(batches), features=FEATURES, labelled_features=LABELLED)
    np.testing.assert_allclose(scores, nearness(PROBS, FEATURES, LABELLED))
    np.testing.assert_array_equal(ranks, np.argsort(-scores))
    np.testing.assert_array_equal(Nearness()(PROBS, 2, features=FEATURES, labelled_features=LABELLED), ranks[:2])


@pytest.mark.parametrize("given", [PROBS, [PROBS], iter([PROBS])])
@pytest.mark.parametrize("arrays", [{"labelled_features": LABELLED}, {"features": None, "labelled_features": LABELLED}])
def test_missing_array(given, arrays) -> None:
    """A missing array is asked for with what it is and how to pass it."""
    with pytest.raises(TypeError, match=r"Nearness needs a representation of each row .*: pass features=\.\.\."):
        Nearness()(given, **arrays)


@pytest.mark.parametrize("given", [PROBS, [PROBS], iter([PROBS])])
def test_unknown_array(given) -> None:
    """An array that a heuristic does not look at is refused with those that it does; so is a misspelt one."""
    with pytest.raises(TypeError, match="BALD takes predictions, got features"):
        BALD()(given, features=FEATURES)
    with pytest.raises(TypeError, match="Nearness takes predictions, features, labelled_features, got feature"):
        Nearness()(given, features=FEATURES, labelled_features=LABELLED, feature=FEATURES)


@pytest.mark.parametrize("sizes", [None, [7], [3, 4]])
@pytest.mark.parametrize("rows", [1, 3, 6, 8, 14])
def test_lengths_differ(sizes: list[int] | None, rows: int) -> None:
    """Features of another number of rows than the predictions are refused, however the predictions come."""
    given = PROBS if sizes is None else (batch for batch in np.split(PROBS, np.cumsum(sizes)[:-1]))
    features = np.zeros((rows, 2))
    with pytest.raises(
        ValueError, match=r"Nearness needs a representation .*, got \d+ features for \d rows of predictions"
    ):
        Nearness()(given, features=features, labelled_features=LABELLED)


def test_lengths_without_predictions() -> None:
    """Arrays of rows are of one length where no predictions are needed, too."""
    assert Seniority()(features=FEATURES, labels=np.arange(7)).tolist() == [6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match=r"Seniority needs the label .*, got 6 labels for 7 rows of features"):
        Seniority()(features=FEATURES, labels=np.arange(6))
    with pytest.raises(TypeError, match=r"Seniority needs the label that each row has now .*: pass labels="):
        Seniority()(features=FEATURES)


def test_every_need_has_a_description() -> None:
    """Heuristics need arrays with a name that the message about a missing one can explain."""
    for value in vars(heuristics).values():
        if isinstance(value, type) and issubclass(value, AbstractHeuristic) and not isinstance(value.needs, property):
            assert set(value.needs) <= set(ARRAYS), value


class Spread(BatchHeuristic):
    """The row of the highest spread, then those of the lowest: an order that scores do not tell."""

    def pick(self, predictions, query_size, *args, **arrays):
        worth = predictions.std(axis=(1, 2)) if isinstance(predictions, np.ndarray) else predictions.numpy().std((1, 2))
        order = np.argsort(worth)  # [N]
        picks = np.concatenate([order[-1:], order[:-1]])[:query_size]
        return picks if isinstance(predictions, np.ndarray) else torch.from_numpy(picks), worth


class FirstFeatures(BatchHeuristic):
    """Rows in the order of a feature; needs no predictions."""

    needs = ("features",)

    def pick(self, predictions, query_size, *args, **arrays):
        worth = arrays["features"][:, 0]
        return np.argsort(-worth)[:query_size], worth


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "generator"])
def test_picks(kind: str) -> None:
    """Ranks are the K picks in their order, and scores those of all rows; batches are put together first."""
    parts = np.split(PROBS, [2, 3])
    tensor = torch.from_numpy(PROBS)
    given = {"array": PROBS, "tensor": tensor, "list": parts, "generator": iter(parts)}[kind]
    expected, worth = Spread().pick(PROBS, 4)
    ranks, scores = Spread().get_ranks(given, 4)
    assert ranks.dtype == np.int64
    assert isinstance(scores, np.ndarray)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_array_equal(scores, worth)
    assert (np.diff(scores[ranks[1:]]) > 0).all()


def test_scores_of_picks() -> None:
    """Without a query, scores are what each row is worth as the first pick, whole or in batches."""
    worth = Spread().pick(PROBS, 1)[1]
    np.testing.assert_array_equal(Spread().get_uncertainties(PROBS), worth)
    np.testing.assert_array_equal(Spread().get_uncertainties([PROBS[:3], PROBS[3:]]), worth)
    np.testing.assert_array_equal(Spread().get_uncertainties_generator(iter([PROBS[:3], PROBS[3:]])), worth)


def test_own_query_size() -> None:
    """A heuristic's own K holds where the call does not say; without either it is asked for."""
    np.testing.assert_array_equal(Spread(3)(PROBS), Spread()(PROBS, 3))
    np.testing.assert_array_equal(Spread(3)(PROBS, 2), Spread()(PROBS, 2))
    with pytest.raises(ValueError, match=r"Spread picks rows together: say how many, query_size=\.\.\."):
        Spread()(PROBS)


@pytest.mark.parametrize("size", [8, 0, -1])
def test_picks_out_of_range(size: int) -> None:
    """More picks than rows, or none, are refused, in the call and in the heuristic, which scores nothing then."""
    message = rf"Spread needs a query_size in 1 \.\. 7, the number of rows, got {size}\."
    with pytest.raises(ValueError, match=message):
        Spread()(PROBS, size)
    if size < 1:
        with pytest.raises(ValueError, match=f"Spread needs a query_size of 1 or more, got {size}"):
            Spread(size)
        return
    with pytest.raises(ValueError, match=message):
        Spread(size)([PROBS[:3], PROBS[3:]])
    with pytest.raises(ValueError, match=message):
        Spread(size).get_uncertainties(PROBS)


def test_picks_by_features() -> None:
    """Rows may be picked by their features alone; the pool that comes in place of predictions is not looked at."""
    ranks, scores = FirstFeatures().get_ranks("not looked at", 3, features=FEATURES)
    np.testing.assert_array_equal(ranks, np.argsort(-FEATURES[:, 0])[:3])
    np.testing.assert_array_equal(scores, FEATURES[:, 0])
    with pytest.raises(ValueError, match=r"FirstFeatures needs a query_size in 1 \.\. 7, the number of rows, got 8"):
        FirstFeatures()(None, 8, features=FEATURES)


def test_picks_do_not_come_from_scores() -> None:
    """Scores alone do not say which rows go together."""
    with pytest.raises(TypeError, match="Spread picks rows together, which scores do not tell: call get_ranks"):
        Spread().reorder_indices([1.0, 2.0])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_shuffled_picks(share: float) -> None:
    """Shuffling mixes the other rows in among K picks, all different, by the seed."""
    probs = token_probs(40)[:, :, 0]
    ranks = Spread(10, share, seed=3)(probs)
    assert len(set(ranks.tolist())) == 10
    assert set(ranks.tolist()) != set(Spread(10)(probs).tolist())
    np.testing.assert_array_equal(ranks, Spread(10, share, seed=3)(probs))
    assert (ranks != Spread(10, share, seed=4)(probs)).any()


def test_whole() -> None:
    """Batches become one array or tensor, in their order; one that is whole already is not copied."""
    assert whole(PROBS, "x") is PROBS
    np.testing.assert_array_equal(whole(iter([PROBS[:2], PROBS[2:]]), "x"), PROBS)
    tensor = torch.from_numpy(PROBS)
    assert torch.equal(whole((tensor[:2], tensor[2:]), "x"), tensor)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_whole_of_different_shapes(kind) -> None:
    """Batches that differ in more than rows are refused with both shapes, whatever holds them."""
    batches = [kind(token_probs(2, 3)), kind(token_probs(3, 7))]
    with pytest.raises(ValueError, match=r"x looks at all rows .* got \[n, 3, 3, 5\] and \[n, 3, 7, 5\]\."):
        whole(batches, "x")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "x needs at least one batch of predictions, got none"),
        (None, TypeError, "x needs an array, a tensor or an iterable of such batches, got NoneType"),
        ([1.0, 2.0], TypeError, "x needs batches that are all arrays or all tensors, got float"),
        ([np.ones(3), torch.ones(3)], TypeError, "all arrays or all tensors, got Tensor, ndarray"),
    ],
)
def test_whole_of_nothing(batches, error: type[Exception], message: str) -> None:
    """No batches, and things that are none, are refused."""
    with pytest.raises(error, match=message):
        whole(batches, "x")


def test_descending() -> None:
    """Ranking is by the numbers that were given, in double, so that large whole numbers keep their order."""
    assert descending([2**53 - 1, 2**53, 2**53 - 2], "x").tolist() == [1, 0, 2]
    assert finite(torch.tensor([1.5], requires_grad=True), "x").tolist() == [1.5]
