"""Two stages: the best rows by one heuristic, and the picks of another among them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baal_hf.heuristics import (
    BADGE,
    BALD,
    EPIG,
    AbstractHeuristic,
    ActiveLab,
    BatchBALD,
    ClassBalanced,
    CombineHeuristics,
    CoreSet,
    Entropy,
    KMeans,
    PowerBALD,
    Random,
    SelfConfidence,
    WithoutDuplicates,
    bald,
    batchbald,
    entropy,
)
from baal_hf.heuristics.prefiltered import Prefiltered
from tests.laws import few

N = 60
rng = np.random.default_rng(0)
GIVEN: dict[str, Any] = {
    "features": rng.standard_normal((N, 5)),
    "labels": rng.integers(0, 3, N),
    "labelled_features": rng.standard_normal((7, 5)),
    "labelled_labels": rng.integers(0, 3, 7),
    "target_predictions": rng.dirichlet(np.ones(3), (8, 4)).transpose(0, 2, 1),  # [N*, C, T]
}
BASES = {
    "BatchBALD": lambda: BatchBALD(),
    "BADGE": lambda: BADGE(),
    "CoreSet": lambda: CoreSet(),
    "ClassBalanced": lambda: ClassBalanced(BALD()),
    "WithoutDuplicates": lambda: WithoutDuplicates(BatchBALD()),
    "KMeans": lambda: KMeans(base_heuristic=Entropy()),
    "EPIG": lambda: EPIG(),
    "PowerBALD": lambda: PowerBALD(),
    "Random": lambda: Random(),
    "CombineHeuristics": lambda: CombineHeuristics([BALD(), Entropy()], normalisation="rank"),
    "SelfConfidence": lambda: SelfConfidence(),
}
every = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def random_probs(rows: int = N, C: int = 3, T: int = 4, seed: int = 1) -> np.ndarray:
    """Probabilities [N, C, T]."""
    return np.random.default_rng(seed).dirichlet(np.ones(C), (rows, T)).transpose(0, 2, 1)


def token_probs(rows: int, S: int, seed: int = 0) -> np.ndarray:
    """Token predictions [N, 3, S, 4]."""
    return np.moveaxis(np.random.default_rng(seed).dirichlet(np.ones(3), (rows, S, 4)), -1, 1)


def linear_pool(rows: int, C: int, T: int, seed: int = 0) -> torch.Tensor:
    """Class probabilities under consistent draws, those of a Bayesian linear classifier, float32 [N, C, T]."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(16, C, 1, generator=generator) + 0.5 * torch.randn(16, C, T, generator=generator)
    inputs = torch.randn(rows, 16, generator=generator)
    return (torch.tensordot(inputs, weights, dims=1) / 2).softmax(1)


def in_batches(values: Any, size: int) -> Iterator[Any]:
    """Consecutive batches of at most `size` rows."""
    return (values[start : start + size] for start in range(0, len(values), size))


def arrays_for(heuristic: AbstractHeuristic) -> dict[str, Any]:
    """What the heuristic needs beside predictions."""
    return {name: GIVEN[name] for name in heuristic.needs if name != "predictions"}


def by_hand(base: AbstractHeuristic, probs: Any, scores: np.ndarray, candidates: int, K: int) -> list[int]:
    """The picks of `base` from the rows of highest score, found by sorting pairs in plain Python."""
    rows = sorted(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:candidates])
    arrays = arrays_for(base)
    for name in {"features", "labels"} & set(arrays):
        arrays[name] = arrays[name][rows]
    return [rows[pick] for pick in base(probs[rows], K, **arrays)]


@every
@pytest.mark.parametrize("candidates", [N, N + 1, 1000])
def test_enough_candidates(base, candidates: int) -> None:
    """With as many candidates as rows, or more, the picks are those of the base on the whole pool."""
    probs = random_probs()
    heuristic = Prefiltered(base(), candidates=candidates)
    expected = base()(probs, 9, **arrays_for(base())).tolist()
    arrays = arrays_for(heuristic)
    assert heuristic(probs, 9, **arrays).tolist() == expected
    assert Prefiltered(base(), candidates=candidates)(in_batches(probs, 7), 9, **arrays).tolist() == expected


@every
@pytest.mark.parametrize("size", [1, 7, 25, 100])
def test_by_hand(base, size: int) -> None:
    """Picks are those of the base from the best rows, whatever the kind and the size of batches; scores are all."""
    probs = random_probs()
    expected = by_hand(base(), probs, entropy(probs), 20, 9)
    arrays = arrays_for(Prefiltered(base()))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    several = [
        (probs, arrays),
        (torch.from_numpy(probs), tensors),
        (in_batches(probs, size), arrays),
        (list(in_batches(probs, size)), arrays),
        (in_batches(torch.from_numpy(probs), size), tensors),
    ]
    for predictions, others in several:
        ranks, scores = Prefiltered(base(), 9, 20, Entropy()).get_ranks(predictions, **others)
        assert ranks.dtype == np.int64
        assert ranks.tolist() == expected
        np.testing.assert_array_equal(scores, entropy(probs))


@few
@given(
    distinct=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    size=st.integers(1, 10),
    candidates=st.integers(1, 12),
)
def test_ties(distinct: list[int], size: int, candidates: int) -> None:
    """Of rows with equal scores the earlier ones are candidates, however late in the pool they are cut off."""
    probs = random_probs(5)[distinct]
    K = min(candidates, len(probs))
    expected = by_hand(Random(), probs, bald(probs), candidates, K)
    for predictions in (probs, in_batches(probs, size)):
        assert Prefiltered(Random(), candidates=candidates)(predictions, K).tolist() == expected


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_sorted_pools(order: str) -> None:
    """In a pool whose rows get better and better, and in one where the first are best, the best are candidates."""
    probs = random_probs(500)
    ascending = np.argsort(bald(probs), kind="stable")
    probs = probs[ascending if order == "ascending" else ascending[::-1]]
    ranks = Prefiltered(BALD(), candidates=10)(in_batches(probs, 8), 10)
    assert ranks.tolist() == (list(range(499, 489, -1)) if order == "ascending" else list(range(10)))


@few
@given(seed=st.integers(0, 99))
def test_order_of_rows(seed: int) -> None:
    """Permuting rows permutes picks and scores."""
    probs = random_probs(seed=seed)
    order = np.random.default_rng(seed).permutation(N)
    ranks, scores = Prefiltered(BatchBALD(), 5, 20).get_ranks(in_batches(probs, 8))
    again, others = Prefiltered(BatchBALD(), 5, 20).get_ranks(in_batches(probs[order], 8))
    np.testing.assert_array_equal(order[again], ranks)
    np.testing.assert_array_equal(others, scores[order])


@pytest.mark.parametrize(("C", "T"), [(10, 20), (10, 50), (3, 50)])
@pytest.mark.parametrize("seed", range(2))
def test_exact_picks(C: int, T: int, seed: int) -> None:
    """On a pool of consistent draws, BatchBALD's picks are those of the whole pool with a fiftieth of its rows."""
    probs = linear_pool(5000, C, T, seed)
    ranks, scores = Prefiltered(BatchBALD(), 10, 100).get_ranks(in_batches(probs, 256))
    assert ranks.tolist() == BatchBALD()(probs, 10).tolist()
    np.testing.assert_array_equal(scores, bald(probs).numpy())


@few
@given(seed=st.integers(0, 999), K=st.integers(1, 4))
def test_certificate(seed: int, K: int) -> None:
    """Picks are exact where no row left out has a higher BALD score than the smallest gain."""
    probs = linear_pool(300, 3, 50, seed)
    scores = np.sort(bald(probs).numpy())[::-1]
    smallest = float(batchbald(probs, K)[1].min())
    enough = int((scores >= smallest - 1e-5).sum())
    assert Prefiltered(BatchBALD(), K, max(K, enough))(probs).tolist() == BatchBALD()(probs, K).tolist()


@pytest.mark.parametrize("order", ["random", "ascending"])
@pytest.mark.parametrize("base", [BatchBALD, CoreSet])
def test_bounded_memory(base, order: str) -> None:
    """Of a long pool no more is held than some batches and the candidates, also where each row beats those before."""
    candidates, size, batches = 50, 50, 200
    C, T = 3, 400
    features = np.random.default_rng(0).standard_normal((size * batches, 2))
    arrays = {"features": features, "labelled_features": features[:3]} if base is CoreSet else {}

    def pool() -> Iterator[np.ndarray]:
        for number in range(batches):
            spread = 1 + number if order == "ascending" else 1
            logits = torch.from_numpy(np.random.default_rng(number).standard_normal((size, C, T)) * spread)
            yield logits.softmax(1).numpy()

    row = C * T * 8  # bytes
    tracemalloc.start()
    try:
        ranks, scores = Prefiltered(base(), 2, candidates).get_ranks(pool(), **arrays)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(scores) == size * batches
    assert len(ranks) == 2
    assert peak < (4 * candidates + 2 * size) * row < size * batches * row / 30


def test_bounded_memory_of_tensors() -> None:
    """What is kept of tensors holds neither a graph nor the batch that it is of."""
    seen: list[torch.Tensor] = []

    class Spy(BatchBALD):
        def pick(self, predictions, query_size, **arrays):
            seen.append(predictions)
            return super().pick(predictions, query_size, **arrays)

    logits = torch.randn(90, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ranks = Prefiltered(Spy(), 2, 10)(logits[start : start + 30].softmax(1) for start in range(0, 90, 30))
    assert (len(ranks), len(seen)) == (2, 1)
    assert (tuple(seen[0].shape), seen[0].requires_grad) == ((10, 3, 5), False)


def test_reused_buffer() -> None:
    """A generator may write each batch over the one before."""
    probs = random_probs()
    buffer = np.empty((10, 3, 4))

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, N, 10):
            buffer[:] = probs[start : start + 10]
            yield buffer

    for candidates in (20, 1000):
        expected = Prefiltered(BatchBALD(), 5, candidates)(probs)
        np.testing.assert_array_equal(Prefiltered(BatchBALD(), 5, candidates)(batches()), expected)


def test_folder_of_arrays(tmp_path: Path) -> None:
    """Memory-mapped files are a pool, one after another, or one by itself."""
    probs = random_probs()
    for number, batch in enumerate(in_batches(probs, 25)):
        np.save(tmp_path / f"{number:03d}.npy", batch)
    expected = Prefiltered(BatchBALD(), 5, 20)(probs).tolist()
    files = sorted(tmp_path.glob("*.npy"))
    assert Prefiltered(BatchBALD(), 5, 20)(np.load(file, mmap_mode="r") for file in files).tolist() == expected
    np.save(tmp_path / "all.npy", probs)
    assert Prefiltered(BatchBALD(), 5, 20)(np.load(tmp_path / "all.npy", mmap_mode="r")).tolist() == expected


def test_filter_with_arrays() -> None:
    """A filter gets its own arrays, each batch's part of those about rows; labels may be a list."""
    probs, labels, targets = random_probs(), GIVEN["labels"], GIVEN["target_predictions"]
    heuristic = Prefiltered(BADGE(), 5, 20, SelfConfidence())
    assert heuristic.needs == ["predictions", "features", "labels"]
    scores = SelfConfidence().get_uncertainties(probs, labels=labels)
    expected = by_hand(BADGE(), probs, scores, 20, 5)
    batches = in_batches(probs, 7)
    assert heuristic(batches, labels=labels.tolist(), features=GIVEN["features"]).tolist() == expected

    heuristic = Prefiltered(ActiveLab(), 5, 20, EPIG())
    assert heuristic.needs == ["predictions", "labels", "target_predictions"]
    ranks, scores = heuristic.get_ranks(in_batches(probs, 7), labels=labels.tolist(), target_predictions=targets)
    np.testing.assert_allclose(scores, EPIG().get_uncertainties(probs, target_predictions=targets))
    top = np.sort(np.argsort(-scores, kind="stable")[:20])
    assert ranks.tolist() == top[ActiveLab()(probs[top], 5, labels=labels[top])].tolist()


def test_predictions_are_needed() -> None:
    """Batches of predictions say which rows there are, also where neither heuristic looks at them."""
    heuristic = Prefiltered(CoreSet(), 5, 20, Random(seed=1))
    assert heuristic.needs == ["predictions", "features", "labelled_features"]
    ranks, scores = heuristic.get_ranks(in_batches(random_probs(), 7), **arrays_for(heuristic))
    np.testing.assert_array_equal(scores, Random(seed=1).get_uncertainties(range(N)))
    assert ranks.tolist() == by_hand(CoreSet(), random_probs(), scores, 20, 5)


def test_scores_without_ranks() -> None:
    """Scores are the filter's, of an array and of batches, which are held one at a time; single ones rank nothing."""
    probs = random_probs()
    heuristic = Prefiltered(BatchBALD(), by=Entropy())
    for predictions in (probs, torch.from_numpy(probs), list(in_batches(probs, 7)), in_batches(probs, 7)):
        np.testing.assert_array_equal(heuristic.get_uncertainties(predictions), entropy(probs))
    with pytest.raises(TypeError, match="Prefiltered picks rows together, which scores do not tell"):
        heuristic.reorder_indices(entropy(probs))


def test_batches_of_different_width() -> None:
    """A base that scores rows one by one takes batches of any width; one that does not is refused at the batch."""
    batches = [token_probs(9, 3), token_probs(9, 7, seed=1), token_probs(9, 5, seed=2)]
    by, base = Entropy(reduction="max"), BALD(reduction="mean")
    first, second = by.get_uncertainties(batches), base.get_uncertainties(batches)
    top = np.sort(np.argsort(-first, kind="stable")[:6])
    expected = top[np.argsort(-second[top], kind="stable")[:4]].tolist()
    assert Prefiltered(base, 4, 6, by)(iter(batches)).tolist() == expected
    assert len(Prefiltered(CoreSet(), 4, 6, by)(batches, features=np.eye(27), labelled_features=np.eye(27)[:0])) == 4

    def until_refused() -> Iterator[np.ndarray]:
        yield from batches[:2]
        pytest.fail("read on")

    message = (
        r"In batch 1, whose row 0 is row 9 of all: Prefiltered .* one shape, got \[n, 3, 3, 4\] and \[n, 3, 7, 4\]"
    )
    for candidates in (1, 6, 1000):
        heuristic = Prefiltered(KMeans(base_heuristic=base), 1, candidates, by)
        with pytest.raises(ValueError, match=message):
            heuristic(until_refused(), features=np.ones((27, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bald",), "Prefiltered needs a heuristic to rank by, got str"),
        ((BatchBALD(), None, 9, "bald"), "Prefiltered needs a heuristic to filter by, got str"),
        ((BALD(), None, 9, BatchBALD()), "Prefiltered needs .* scores single rows to filter by, got BatchBALD"),
        ((BALD(), None, 9, Prefiltered(BALD())), "Prefiltered needs .* single rows to filter by, got Prefiltered"),
        ((BALD(), None, 9.5), "float"),
        ((BALD(), 1.5), "float"),
    ],
)
def test_arguments_of_another_type(arguments: tuple, message: str) -> None:
    """What is no heuristic, a filter that looks at rows together, and broken numbers are refused."""
    with pytest.raises(TypeError, match=message):
        Prefiltered(*arguments)


def unread() -> Iterator[np.ndarray]:
    """Predictions that are not to be asked for."""
    pytest.fail("was read")
    yield random_probs()


def test_sizes() -> None:
    """Sizes out of range are refused, before the pool is read where that does not have to say how large it is."""
    more = r"Prefiltered needs a query_size in 1 \.\. 5, the candidates, got 6\. Raise candidates to 6 or more"
    for candidates in (0, -1):
        with pytest.raises(ValueError, match=f"Prefiltered needs candidates >= 1, got {candidates}"):
            Prefiltered(BatchBALD(), candidates=candidates)
    with pytest.raises(ValueError, match=more):
        Prefiltered(BatchBALD(), 6, 5)
    with pytest.raises(ValueError, match="Prefiltered needs a query_size of 1 or more, got 0"):
        Prefiltered(BatchBALD(), 0)
    for predictions in (random_probs(), unread()):
        with pytest.raises(ValueError, match=more):
            Prefiltered(BatchBALD(), candidates=5)(predictions, 6)
    with pytest.raises(ValueError, match="Prefiltered picks rows together: say how many, query_size="):
        Prefiltered(BatchBALD(4))(unread())
    with pytest.raises(ValueError, match="Prefiltered needs a query_size of 1 or more, got 0"):
        Prefiltered(BatchBALD())(unread(), 0)
    for predictions in (random_probs(8), in_batches(random_probs(8), 3)):
        with pytest.raises(ValueError, match=r"Prefiltered needs a query_size in 1 \.\. 8, the number of rows, got 9"):
            Prefiltered(BatchBALD())(predictions, 9)


@pytest.mark.parametrize("predictions", [7, None, [1.0, 2.0], "text", [random_probs().tolist()]])
def test_predictions_of_another_type(predictions: Any) -> None:
    """What is neither an array nor an iterable of arrays is refused."""
    with pytest.raises(TypeError, match=r"Prefiltered needs .*, got (int|NoneType|float|str|list)\b"):
        Prefiltered(BatchBALD(), 1)(predictions)


def test_bad_predictions() -> None:
    """No batches, batches of two kinds, and predictions that are broken or have scores of positions are refused."""
    probs = random_probs()
    with pytest.raises(ValueError, match="Prefiltered needs at least one batch of predictions, got none"):
        Prefiltered(BatchBALD(), 1)(iter(()))
    with pytest.raises(TypeError, match="Prefiltered needs batches that are all arrays or all tensors"):
        Prefiltered(BatchBALD(), 1)([probs, torch.from_numpy(probs)])
    broken = probs.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"In batch 1, whose row 0 is row 60 of all: BALD needs finite .* in row 3\."):
        Prefiltered(BatchBALD(), 1)([probs, broken])
    with pytest.raises(ValueError, match=r"^BALD needs finite .* in row 3\."):
        Prefiltered(BatchBALD(), 1)(broken)
    with pytest.raises(ValueError, match=r"BALD ranks one score a row, got scores \[9, 3\]\. Choose a reduction"):
        Prefiltered(Random(), 1)([token_probs(9, 3)])


@pytest.mark.parametrize("rows", [N - 1, N + 1])
def test_arrays_of_another_length(rows: int) -> None:
    """Features of fewer or more rows than the pool has are refused, of an array and of batches."""
    features = np.random.default_rng(0).standard_normal((rows, 4))
    for predictions in (random_probs(), in_batches(random_probs(), 7)):
        with pytest.raises(ValueError, match=rf"Prefiltered needs .*, got {rows} features for 60 rows of predictions"):
            Prefiltered(BADGE(), 2, 10)(predictions, features=features)


def test_arrays_by_name() -> None:
    """What is missing is named, and what is not needed is refused, before the pool is read."""
    with pytest.raises(TypeError, match=r"Prefiltered needs a representation of each row .*: pass features="):
        Prefiltered(BADGE(), 2)(unread())
    with pytest.raises(TypeError, match="Prefiltered takes predictions, got features"):
        Prefiltered(BatchBALD(), 2)(unread(), features=np.eye(3))
