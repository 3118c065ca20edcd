"""One step of the line: the rows that were scored best are labelled, and no other."""

import logging

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset, random_split

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.heuristics import BALD, AbstractHeuristic, BatchBALD, CoreSet, Entropy, Margin, Random, get_heuristic
from baal_hf.loop import ActiveLearningLoop
from baal_hf.rows import RowView, row_ids_of

M = 20
VALUES = np.random.default_rng(0).permutation(M)  # how uncertain the model below is about each row
sorts = pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets 5.2 on pyarrow 26


def arrow() -> ActiveLearningDataset:
    """Rows of a shuffled table; `x` is the value of the row."""
    order = np.random.default_rng(1).permutation(M)
    table = datasets.Dataset.from_dict({"x": VALUES[np.argsort(order)], "label": [0] * M})
    dataset = ActiveLearningDataset(table.select(order))
    assert [dataset.get_raw(i)["x"] for i in range(M)] == VALUES.tolist()
    return dataset


def tuples() -> ActiveLearningDataset:
    return ActiveLearningDataset(TensorDataset(torch.tensor(VALUES), torch.zeros(M)))


def uncertain(rows) -> np.ndarray:
    """Probabilities [N, 2, 1] whose entropy grows with the row's value."""
    values = np.array([int(row["x"] if isinstance(row, dict) else row[0]) for row in rows])
    p = 0.5 * (values + 1) / (M + 1)
    return np.stack([p, 1 - p], axis=1)[..., None]


def best(row_ids, k: int) -> list[int]:
    """The k rows of largest value, largest first."""
    return sorted(np.asarray(row_ids).tolist(), key=lambda i: -VALUES[i])[:k]


def queried(dataset: ActiveLearningDataset, since: int = 0) -> list[int]:
    return [event.row_id for event in dataset.ledger][since:]


@pytest.mark.parametrize("make", [arrow, tuples])
def test_step_labels_the_most_uncertain_rows(make) -> None:
    """Each step labels the K best rows of the pool, the best first, until all are labelled; then it returns False."""
    dataset = make()
    loop = ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=5)
    for step in range(1, 5):
        assert loop.step() is True
        assert (dataset.current_al_step, len(dataset)) == (step, 5 * step)
    assert queried(dataset) == best(range(M), M)
    assert loop.step() is False
    assert len(dataset) == M


@sorts
@pytest.mark.parametrize(
    "part",
    [
        lambda pool: pool.select([9, 2, 5, 7]),
        lambda pool: pool.select(range(4, 12)),
        lambda pool: pool.filter(lambda row: row["x"] % 3 == 1),
        lambda pool: pool.shuffle(seed=3),
        lambda pool: pool.sort("x"),
        lambda pool: pool.shuffle(seed=3).select(range(6)).filter(lambda row: row["x"] > 2),
        lambda pool: pool.train_test_split(test_size=0.5, seed=0)["test"],
        lambda pool: Subset(pool, [9, 2, 5, 7]),
    ],
)
def test_step_on_a_part_of_an_arrow_pool(part) -> None:
    """Of a part of the pool, its own best rows are labelled, wherever they lie in the pool."""
    dataset = arrow()
    dataset.label_randomly(4)
    chosen = part(dataset.pool)
    before = row_ids_of(chosen)
    assert ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=3).step(chosen)
    assert queried(dataset, since=4) == best(before, 3)


@pytest.mark.parametrize(
    "part",
    [
        lambda pool: Subset(pool, [9, 2, 5, 7]),
        lambda pool: Subset(Subset(pool, range(3, 12)), [8, 1, 0]),
        lambda pool: random_split(pool, [0.5, 0.5], torch.Generator().manual_seed(0))[1],
    ],
)
def test_step_on_a_part_of_a_torch_pool(part) -> None:
    """Of a subset of a torch pool, its own best rows are labelled."""
    dataset = tuples()
    dataset.label_randomly(4)
    chosen = part(dataset.pool)
    assert ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=3).step(chosen)
    assert queried(dataset, since=4) == best(row_ids_of(chosen), 3)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_only_rows_that_were_scored_are_labelled(data) -> None:
    """Whatever is labelled before, sampled and asked for, rows are labelled that were predicted, the best of them."""
    dataset = data.draw(st.sampled_from([arrow, tuples]))()
    before = data.draw(st.integers(0, M))
    dataset.label_randomly(before)
    predicted: list[int] = []

    def predict(pool) -> np.ndarray:
        predicted.extend(row_ids_of(pool).tolist())
        return uncertain(pool)

    query_size, max_sample = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([-1, 1, 4, 9, 50]))
    loop = ActiveLearningLoop(dataset, predict, Entropy(), query_size, max_sample, seed=data.draw(st.integers(0, 9)))
    assert loop.step() is (before < M)
    assert len(predicted) == (M - before if max_sample == -1 else min(max_sample, M - before))
    assert queried(dataset, since=before) == best(predicted, query_size)


@pytest.mark.parametrize("make", [arrow, tuples])
def test_max_sample_takes_other_rows_each_time(make) -> None:
    """Samples of the pool differ from step to step, repeat with the seed, and differ between seeds."""

    def samples(seed: int) -> list[list[int]]:
        dataset, seen = make(), []
        loop = ActiveLearningLoop(
            dataset, lambda pool: seen.append(row_ids_of(pool).tolist()) or uncertain(pool), Entropy(), 1, 5, seed=seed
        )
        loop.step()
        loop.step()
        return seen

    assert samples(0) == samples(0) != samples(1)
    assert samples(0)[0] != samples(0)[1]
    assert [len(sample) for sample in samples(0)] == [5, 5]


def test_random_repeats_with_its_seed() -> None:
    """The heuristic's seed decides which rows Random queries; the same loop twice queries the same."""

    def rows(seed: int) -> list[int]:
        dataset = arrow()
        loop = ActiveLearningLoop(dataset, uncertain, Random(seed=seed), query_size=4)
        loop.step()
        loop.step()
        return queried(dataset)

    assert rows(3) == rows(3) != rows(4)


def test_random_needs_no_predictions() -> None:
    """With Random, the default, nothing is predicted."""

    def never(pool):
        raise AssertionError("predicted for nothing")

    for loop in (
        ActiveLearningLoop(arrow(), never, query_size=2),
        ActiveLearningLoop(tuples(), never, query_size=2, max_sample=3),
        ActiveLearningLoop(tuples(), never, Random(), query_size=2),
    ):
        assert loop.step()
        assert len(loop.dataset) == 2
        assert loop.step(Subset(loop.dataset.pool, [0, 1, 2]))


@pytest.mark.parametrize("tensor", [False, True])
def test_predictions_may_be_a_generator(tensor) -> None:
    """Batches that a generator yields query the rows that the whole array does."""

    def batches(pool):
        probs = uncertain(pool)
        for start in range(0, len(probs), 3):
            batch = probs[start : start + 3]
            yield torch.from_numpy(batch) if tensor else batch

    dataset = arrow()
    ActiveLearningLoop(dataset, batches, Entropy(), query_size=4).step()
    assert queried(dataset) == best(range(M), 4)


def test_arguments_reach_get_probabilities() -> None:
    """What the loop does not know goes to `get_probabilities`, at each step."""
    seen = []

    def predict(pool, **arguments) -> np.ndarray:
        seen.append(arguments)
        return np.repeat(uncertain(pool), arguments["iterations"], axis=2)

    loop = ActiveLearningLoop(arrow(), predict, BALD(), query_size=2, iterations=3, half=True)
    loop.step()
    loop.step()
    assert seen == [{"iterations": 3, "half": True}] * 2


def test_query_labels_nothing() -> None:
    """`query` says which rows to ask a person for, and leaves labelling to the answer."""
    dataset = arrow()
    loop = ActiveLearningLoop(dataset, uncertain, Margin(), query_size=3)
    row_ids = loop.query(dataset.pool)
    assert row_ids.dtype == np.int64
    assert row_ids.tolist() == best(range(M), 3)
    assert len(dataset) == 0


def test_a_small_pool_is_labelled_whole(caplog) -> None:
    """If fewer rows are left than the query needs, all of them are labelled and a warning says so."""
    dataset = arrow()
    dataset.label_randomly(17)
    loop = ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=5)
    with caplog.at_level(logging.WARNING):
        assert loop.step() is True
    assert caplog.messages == ["query_size is 5 but only 3 rows are left: all are labelled."]
    assert len(dataset) == M
    caplog.clear()
    assert loop.step() is False
    assert caplog.messages == []


def test_an_exact_pool_is_no_reason_to_warn(caplog) -> None:
    """A pool of exactly K rows is labelled without a word."""
    dataset = arrow()
    dataset.label_randomly(15)
    ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=5).step()
    assert (len(dataset), caplog.messages) == (M, [])


@pytest.mark.parametrize("make", [arrow, tuples])
def test_nothing_to_choose_from(make) -> None:
    """An empty pool, or an empty part of one, labels nothing and returns False."""

    def never(pool):
        raise AssertionError("predicted for nothing")

    dataset = make()
    loop = ActiveLearningLoop(dataset, never, Entropy(), query_size=5)
    assert loop.step(Subset(dataset.pool, [])) is False
    dataset.label_randomly(M)
    assert loop.step() is False
    assert ActiveLearningLoop(dataset, never, Entropy(), max_sample=3).step() is False
    assert dataset.current_al_step == 1


@pytest.mark.parametrize("change", [lambda probs: probs[:-1], lambda probs: np.concatenate([probs, probs])])
def test_predictions_for_other_rows(change) -> None:
    """More or fewer predictions than rows raise, and nothing is labelled or written."""
    dataset = arrow()
    loop = ActiveLearningLoop(dataset, lambda pool: change(uncertain(pool)), Entropy(), query_size=2)
    with pytest.raises(ValueError, match=r"get_probabilities returned (19|40) rows for a pool of 20"):
        loop.step()
    assert len(dataset) == 0


def test_scores_are_written(tmp_path) -> None:
    """The scores of each step lie beside their row ids in a file of plain arrays, which loads without pickle."""
    dataset = arrow()
    folder = tmp_path / "new" / "scores"
    loop = ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=2, max_sample=6, uncertainty_folder=str(folder))
    pools = []
    for _ in range(2):
        pools.append(dataset.pool_ids)
        loop.step()
    assert sorted(path.name for path in folder.iterdir()) == ["step=0001.npz", "step=0002.npz"]
    for step, pool_ids in enumerate(pools, start=1):
        with np.load(folder / f"step={step:04d}.npz", allow_pickle=False) as written:
            row_ids, scores = written["row_ids"], written["scores"]
        assert set(row_ids.tolist()) <= set(pool_ids.tolist())
        assert len(row_ids) == 6
        values = 0.5 * (VALUES[row_ids] + 1) / (M + 1)
        np.testing.assert_allclose(scores, -values * np.log(values) - (1 - values) * np.log(1 - values))
        assert np.flatnonzero(dataset.labelled_map == step).tolist() == sorted(
            row_ids[np.argsort(-scores)[:2]].tolist()
        )


def test_a_part_that_is_not_of_the_pool() -> None:
    """Rows whose place in the dataset nobody knows, or that are labelled already, are refused."""
    dataset = arrow()
    loop = ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=2)
    with pytest.raises(TypeError, match=r"Take it from `dataset\.pool`"):
        loop.step([{"x": 1}])
    stale = dataset.pool
    loop.step()
    with pytest.raises(ValueError, match="labelled already, since step 1"):
        loop.step(stale)
    with pytest.raises(ValueError, match="given twice"):
        loop.step(dataset.pool.select([0, 0]))
    assert isinstance(tuples().pool, RowView)
    assert len(dataset) == 2


def test_rows_without_own_label_cannot_be_simulated() -> None:
    """A step takes the dataset's own labels; where there is none it names the row and labels nothing."""
    dataset = ActiveLearningDataset(
        datasets.Dataset.from_dict({"x": [5, 1, 2], "label": [None, "a", "b"]}),
    )
    with pytest.raises(ValueError, match="Row 0 needs a label"):
        ActiveLearningLoop(dataset, uncertain, Entropy(), query_size=2).step()
    assert len(dataset) == 0


@pytest.mark.parametrize("query_size", [0, -1])
def test_query_size_is_positive(query_size) -> None:
    """A step queries one row or more."""
    with pytest.raises(ValueError, match=f"query_size >= 1, got {query_size}"):
        ActiveLearningLoop(arrow(), uncertain, query_size=query_size)


@pytest.mark.parametrize("max_sample", [0, -2])
def test_max_sample_is_positive(max_sample) -> None:
    """A sample has one row or more; -1 is the whole pool."""
    with pytest.raises(ValueError, match=f"max_sample >= 1, or -1 for the whole pool, got {max_sample}"):
        ActiveLearningLoop(arrow(), uncertain, max_sample=max_sample)


def features_of(rows) -> np.ndarray:
    """Features [N, 1]: the row's value."""
    return np.array([[float(row["x"] if isinstance(row, dict) else row[0])] for row in rows]).reshape(-1, 1)


class Recording(AbstractHeuristic):
    """Keeps the arrays that it is given, and prefers low row positions."""

    def __init__(self, *needs: str) -> None:
        super().__init__()
        self.needs = needs

    def compute_score(self, predictions, *args, **arrays):
        self.arrays = {"predictions": predictions, **arrays}
        return -np.arange(float(len(arrays["features"])))


@pytest.mark.parametrize("make", [arrow, tuples])
def test_heuristics_are_given_what_they_need(make) -> None:
    """Features and predictions of pool, labelled rows and targets, and labels come by name, each in its rows' order."""
    dataset = make()
    dataset.annotate([7, 3], [1, 0])
    heuristic = Recording(
        *("predictions", "features", "labelled_features", "labelled_predictions", "labelled_labels"),
        "target_predictions",
    )
    targets = make().pool
    loop = ActiveLearningLoop(dataset, uncertain, heuristic, 3, get_features=features_of, targets=targets)
    pool_ids = dataset.pool_ids
    assert loop.query(dataset.pool).tolist() == pool_ids[:3].tolist()
    given = heuristic.arrays
    np.testing.assert_array_equal(given["features"][:, 0], VALUES[pool_ids])
    np.testing.assert_array_equal(given["labelled_features"][:, 0], VALUES[[3, 7]])
    np.testing.assert_array_equal(given["predictions"], uncertain(dataset.pool))
    np.testing.assert_array_equal(given["labelled_predictions"], uncertain([dataset.get_raw(3), dataset.get_raw(7)]))
    np.testing.assert_array_equal(given["labelled_labels"], [0, 1])
    np.testing.assert_array_equal(given["target_predictions"], uncertain(targets))


def test_nothing_is_labelled_yet() -> None:
    """Before the first label, arrays of labelled rows are empty, as wide as the pool's, which are not asked twice."""
    heuristic = Recording("labelled_predictions", "labelled_features", "features", "predictions")
    asked: list[int] = []
    loop = ActiveLearningLoop(
        arrow(), uncertain, heuristic, 3, get_features=lambda rows: asked.append(len(rows)) or features_of(rows)
    )
    loop.step()
    assert heuristic.arrays["labelled_features"].shape == (0, 1)
    assert heuristic.arrays["labelled_predictions"].shape == (0, 2, 1)
    assert asked == [M]


def test_features_of_other_rows() -> None:
    """Where only features are asked for, it is their number that is complained about."""
    loop = ActiveLearningLoop(arrow(), uncertain, CoreSet(), 2, get_features=lambda rows: features_of(rows)[:-1])
    with pytest.raises(ValueError, match="get_features returned 19 rows for a pool of 20"):
        loop.query(loop.dataset.pool)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("features", r"a representation of each row .*: pass get_features=trainer\.predict_features"),
        ("labelled_features", r"representations of the labelled rows .*: pass get_features="),
        ("target_predictions", r"rows to be predicted well .*: pass targets=rows"),
        ("futures", r"needs 'futures', which is none of predictions, features"),
        ("labels", r"scores rows that have a label, and a pool has none"),
    ],
)
def test_needs_that_nobody_meets(needs: str, message: str) -> None:
    """A heuristic that needs what the loop does not have is refused when the loop is made."""
    with pytest.raises(ValueError, match=f"Recording .*{message}"):
        ActiveLearningLoop(arrow(), uncertain, Recording(needs))


def test_rows_picked_together() -> None:
    """A heuristic that picks rows together is asked for the loop's K, and at the end of the pool for what is left."""
    dataset = arrow()
    loop = ActiveLearningLoop(
        dataset, lambda pool: np.repeat(uncertain(pool), 2, axis=2), BatchBALD(num_samples=2), query_size=8
    )
    sizes = []
    while loop.step():
        sizes.append(dataset.n_labelled)
    assert sizes == [8, 16, 20]


@pytest.mark.parametrize("name", ["powerbald", "softmaxbald", "rankbald", "powerentropy"])
def test_stochastic_heuristics_run_in_the_loop(name: str) -> None:
    """Sampling heuristics label K rows a step, seeded, and their scores are written as scores."""

    def rows(seed: int) -> list[int]:
        dataset = arrow()
        draws = np.random.default_rng(0).dirichlet(np.ones(2), (M, 3)).transpose(0, 2, 1)  # [M, C, T]
        heuristic = get_heuristic(name, seed=seed)
        ActiveLearningLoop(dataset, lambda pool: draws, heuristic, query_size=4).step()
        return queried(dataset)

    assert len(rows(0)) == 4
    assert rows(0) == rows(0)
    assert len({tuple(rows(seed)) for seed in range(5)}) > 1


def test_heuristics_by_name() -> None:
    """A heuristic may be named; an unknown name is refused at once."""
    dataset = ActiveLearningDataset(datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 1]}))
    assert ActiveLearningLoop(dataset, len, "bald").heuristic.name == "BALD"
    with pytest.raises(ValueError, match=r"a name out of .*bald, .*, got 'bold'"):
        ActiveLearningLoop(dataset, len, "bold")
