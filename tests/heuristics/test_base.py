"""What all heuristics share: reductions, batches, ranking, shuffling, and their errors."""

import numpy as np
import pytest
import torch

from baal_hf.heuristics import (
    BALD,
    AbstractHeuristic,
    Certainty,
    Entropy,
    Margin,
    Random,
    Variance,
    available_heuristics,
    entropy,
    get_heuristic,
)

ALL = [BALD, Certainty, Entropy, Margin, Random, Variance]


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
    with pytest.raises(ValueError, match=r"Entropy needs a reduction of \[4, 3\] to \[4\], got \[3\]"):
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
    assert Peak.needs_predictions


def test_registry() -> None:
    """Every heuristic is found by its name in any case, with its arguments."""
    assert available_heuristics() == ["bald", "certainty", "entropy", "margin", "random", "variance"]
    for heuristic in ALL:
        assert type(get_heuristic(heuristic.__name__)) is heuristic
    made = get_heuristic("bald", shuffle_prop=0.5, reduction="max", seed=1)
    assert (made.shuffle_prop, made.reduction) == (0.5, "max")


def test_registry_errors() -> None:
    """An unknown name lists the known ones; another type is a TypeError."""
    with pytest.raises(ValueError, match="name out of bald, certainty, entropy, margin, random, variance, got 'bold'"):
        get_heuristic("bold")
    with pytest.raises(TypeError, match="get_heuristic needs a name, got int"):
        get_heuristic(3)  # type: ignore[arg-type]
