"""Labelled rows and pool: a partition of the rows after whatever was done, the one with labels, the other without."""

import json
import time

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.rows import row_ids_of

ANIMALS = ClassLabel(names=["ant", "bee", "cat"])
M = 12


def table(size: int = M, column: str = "label") -> datasets.Dataset:
    """Texts and class labels; the label of row i is i modulo 3."""
    return datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(size)], column: [i % 3 for i in range(size)]},
        features=Features({"text": Value("string"), column: ANIMALS}),
    )


class Stream(IterableDataset):
    """Has a length, but no rows by position."""

    def __iter__(self):
        return iter([1, 2])

    def __len__(self) -> int:
        return 2


def active(size: int = M, **arguments) -> ActiveLearningDataset:
    return ActiveLearningDataset(table(size), **arguments)


def equal(one: ActiveLearningDataset, other: ActiveLearningDataset) -> bool:
    """Whether both show the same and will go on in the same way."""
    return (
        np.array_equal(one.labelled_map, other.labelled_map)
        and one.labelled[:] == other.labelled[:]
        and one.pool[:] == other.pool[:]
        and one.current_al_step == other.current_al_step
        and list(one.ledger) == list(other.ledger)
        and one.state_dict() == other.state_dict()
    )


class Labelling(RuleBasedStateMachine):
    """Any sequence of operations, beside a dictionary of the labels that there should be."""

    def __init__(self) -> None:
        super().__init__()
        self.source = table(20).shuffle(seed=3).select(range(M))
        self.own = self.source["label"][:]
        self.dataset = ActiveLearningDataset(self.source, random_state=1)
        self.labels: dict[int, int] = {}
        self.step = 0

    def labelled(self, labels: dict[int, int]) -> None:
        self.labels |= labels
        self.step += bool(labels)

    @rule(data=st.data())
    def label(self, data) -> None:
        pool = [i for i in range(M) if i not in self.labels]
        positions = data.draw(
            st.lists(st.sampled_from(range(len(pool))), unique=True, max_size=4) if pool else st.just([])
        )
        values = data.draw(st.lists(st.integers(0, 2), min_size=len(positions), max_size=len(positions)))
        self.dataset.label(positions, [ANIMALS.names[value] for value in values])
        self.labelled(dict(zip([pool[position] for position in positions], values, strict=True)))

    @rule(data=st.data())
    def annotate_with_own_labels(self, data) -> None:
        pool = [i for i in range(M) if i not in self.labels]
        row_ids = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=4) if pool else st.just([]))
        self.dataset.annotate(row_ids)
        self.labelled({row_id: self.own[row_id] for row_id in row_ids})

    @rule(n=st.integers(0, 3))
    def label_randomly(self, n: int) -> None:
        n = min(n, self.dataset.n_unlabelled)
        self.dataset.label_randomly(n)
        new = set(self.dataset.labelled_ids.tolist()) - set(self.labels)
        assert len(new) == n
        self.labelled({row_id: self.own[row_id] for row_id in new})

    @rule()
    def reset(self) -> None:
        self.dataset.reset_labelled()
        self.labels, self.step = {}, 0

    @rule(row_id=st.integers(0, M - 1), other=st.integers(0, M - 1))
    def fail(self, row_id: int, other: int) -> None:
        """Whatever is refused changes nothing."""
        row_ids = [row_id, other]
        labels = [0, 1] if row_id == other or set(row_ids) & set(self.labels) else [0, 3]
        with pytest.raises(ValueError, match=r"given twice|labelled already|Unknown label"):
            self.dataset.annotate(row_ids, labels)

    @rule()
    def save_and_load(self) -> None:
        """Replaying the state in another object gives an equal dataset; the tests go on with that one."""
        state = json.loads(json.dumps(self.dataset.state_dict()))
        restored = ActiveLearningDataset(self.source, random_state=99)
        restored.label_randomly(2)
        restored.load_state_dict(state)
        assert equal(restored, self.dataset)
        self.dataset = restored

    @invariant()
    def labelled_and_pool_partition_the_rows(self) -> None:
        labelled, pool = row_ids_of(self.dataset.labelled).tolist(), row_ids_of(self.dataset.pool).tolist()
        assert labelled == sorted(self.labels) == self.dataset.labelled_ids.tolist()
        assert pool == sorted(set(range(M)) - set(labelled)) == self.dataset.pool_ids.tolist()
        assert (len(labelled), len(pool)) == (self.dataset.n_labelled, self.dataset.n_unlabelled)
        assert len(self.dataset) == len(labelled)
        assert [self.dataset.is_labelled(i) for i in range(M)] == [i in self.labels for i in range(M)]
        assert self.dataset.current_al_step == self.step == self.dataset.labelled_map.max()

    @invariant()
    def views_show_the_right_rows_and_labels(self) -> None:
        labelled, pool = self.dataset.labelled, self.dataset.pool
        assert "label" not in pool.column_names
        assert labelled["label"][:] == [self.labels[i] for i in sorted(self.labels)]
        for view in (labelled, pool):
            assert view["text"][:] == [self.source[int(i)]["text"] for i in row_ids_of(view)]
        assert (self.dataset.labelled, self.dataset.pool) == (labelled, pool)


TestLabelling = Labelling.TestCase
TestLabelling.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


# Views


@pytest.mark.parametrize("column", ["label", "labels"])
def test_the_label_column_is_found(column) -> None:
    """The label column is called 'label' or 'labels', is hidden in the pool, and is where labels are shown."""
    dataset = ActiveLearningDataset(table(column=column))
    dataset.label(4, "cat")
    dataset.label([0])
    assert dataset.labelled[column][:] == [0, 2]
    assert column not in dataset.pool.column_names


def test_label_column_by_name() -> None:
    """A label column of another name is named."""
    source = table().rename_column("label", "animal")
    dataset = ActiveLearningDataset(source, label_column="animal")
    dataset.label(1)
    assert dataset.labelled["animal"][:] == [1]
    assert "animal" not in dataset.pool.column_names
    with pytest.raises(ValueError, match=r"no column 'y', only \['text', 'animal'\].*label_feature"):
        ActiveLearningDataset(source, label_column="y")


def test_two_label_columns() -> None:
    """With both 'label' and 'labels' one would show in the pool: the caller says which it is."""
    both = table().add_column("labels", [0] * M)
    with pytest.raises(ValueError, match="'label' and 'labels'"):
        ActiveLearningDataset(both)
    assert "labels" not in ActiveLearningDataset(both, label_column="labels").pool.column_names


def test_labels_to_come() -> None:
    """A dataset without labels is labelled by people, once `label_feature` says what labels are."""
    dataset = ActiveLearningDataset(table().remove_columns("label"), label_feature=ANIMALS)
    dataset.label([2, 0], ["cat", "bee"])
    assert dataset.labelled["label"][:] == [1, 2]
    assert dataset.labelled.features["label"] == ANIMALS
    with pytest.raises(ValueError, match=r"no column 'label' to take them from, only \['text'\]"):
        dataset.label(0)
    with pytest.raises(ValueError, match="label_feature"):
        ActiveLearningDataset(table().remove_columns("label")).label(0, 1)


@pytest.mark.parametrize("missing", [-1, None])
def test_rows_without_label_stay_in_the_pool(missing) -> None:
    """Rows with label -1 or None are pool like any other, and are labelled by giving a label."""
    source = datasets.Dataset.from_dict(
        {"x": [0, 1, 2], "label": [1, missing, 0]}, features=Features({"x": Value("int64"), "label": ANIMALS})
    )
    dataset = ActiveLearningDataset(source)
    assert dataset.pool["x"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match=f"Row 1 needs a label: its own in the dataset is {missing}"):
        dataset.label([0, 1])
    assert len(dataset) == 0
    dataset.label([0, 1], [1, "cat"])
    assert dataset.labelled["label"][:] == [1, 2]


def test_views_are_free_while_nothing_changes() -> None:
    """Pool and labelled rows are the same objects until something is labelled, unlabelled or loaded."""
    dataset = active()
    dataset.label([1, 2])

    def views() -> tuple:
        return dataset.pool, dataset.labelled, dataset.pool_ids, dataset.labelled_ids

    def shared(before: tuple) -> set[bool]:
        return {now is then for now, then in zip(views(), before, strict=True)}

    before = views()
    len(dataset), dataset[0], dataset.is_labelled(3), dataset.state_dict(), dataset.label([]), dataset.annotate([])
    with pytest.raises(ValueError):
        dataset.annotate([1])
    assert shared(before) == {True}
    for change in (
        lambda: dataset.label(0),
        lambda: dataset.annotate([9]),
        lambda: dataset.label_randomly(1),
        lambda: dataset.load_state_dict(dataset.state_dict()),
        dataset.reset_labelled,
    ):
        before = views()
        change()
        assert shared(before) == {False}


def test_a_view_does_not_change() -> None:
    """A view taken before labelling still shows what it showed."""
    dataset = active()
    dataset.label(0)
    pool, labelled = dataset.pool, dataset.labelled
    dataset.label([0, 1])
    assert len(pool) == M - 1 and len(labelled) == 1
    assert pool[0]["text"] == "text 1"


def test_as_a_torch_dataset() -> None:
    """Length, items and batches of the dataset are those of the labelled rows."""
    dataset = ActiveLearningDataset(table().with_format("torch", columns=["label"]))
    dataset.label([8, 0, 4, 3], [2, 1, 0, 2])
    assert len(dataset) == 4
    assert [int(row["label"]) for row in dataset] == [1, 2, 0, 2]
    assert dataset[-1]["label"] == dataset.labelled[3]["label"]
    assert dataset.__getitems__([2, 0]) == [dataset[2], dataset[0]]
    batches = [batch["label"].tolist() for batch in DataLoader(dataset, batch_size=3)]
    assert batches == [[1, 2, 0], [2]]


def test_a_batch_is_read_at_once() -> None:
    """A DataLoader reads a batch of labelled rows in one go."""
    calls = []

    def transform(batch):
        calls.append(len(batch["label"]))
        return {"y": batch["label"]}

    dataset = ActiveLearningDataset(table().with_transform(transform), labelled=np.ones(M))
    assert [batch["y"].tolist() for batch in DataLoader(dataset, batch_size=8)] == [
        [0, 1, 2, 0, 1, 2, 0, 1],
        [2, 0, 1, 2],
    ]
    assert calls == [8, 4]


def test_raw_rows() -> None:
    """`get_raw` is the row as it came, whatever was labelled."""
    dataset = active()
    dataset.annotate([4], ["cat"])
    assert dataset.get_raw(4) == {"text": "text 4", "label": 1}


# torch datasets


def test_torch_tuples() -> None:
    """Tuples of a torch dataset lose their last element in the pool and get the given one when labelled."""
    dataset = ActiveLearningDataset(TensorDataset(torch.arange(4.0), torch.arange(4)))
    dataset.label([3, 1], [7, 8])
    dataset.label(0)
    assert [(x.item(), int(y)) for x, y in dataset] == [(0, 0), (1, 8), (3, 7)]
    assert [len(row) for row in dataset.pool] == [1]
    assert next(iter(DataLoader(dataset, batch_size=3)))[1].tolist() == [0, 8, 7]


def test_torch_dictionaries() -> None:
    """Dictionaries of a list lose their label in the pool, 'labels' too."""
    dataset = ActiveLearningDataset([{"x": i, "labels": i} for i in range(3)])
    dataset.annotate([1], [9])
    assert list(dataset.pool) == [{"x": 0}, {"x": 2}]
    assert dataset[0] == {"x": 1, "labels": 9}


def test_torch_arguments() -> None:
    """`make_unlabelled`, `pool_specifics` and `label_column` reach a torch dataset; what is not for it is refused."""
    source = TensorDataset(torch.arange(3.0), torch.arange(3))
    dataset = ActiveLearningDataset(
        source, make_unlabelled=lambda row: row[0].item(), pool_specifics={"tensors": (torch.ones(3), torch.ones(3))}
    )
    assert list(dataset.pool) == [1.0, 1.0, 1.0]
    dataset.label(2)
    assert dataset[0][0] == 2
    assert ActiveLearningDataset([{"a": 1, "y": 2}], label_column="y").pool[0] == {"a": 1}
    with pytest.raises(ValueError, match="label_feature is for a datasets"):
        ActiveLearningDataset(source, label_feature=ANIMALS)
    with pytest.raises(ValueError, match="make_unlabelled is for torch"):
        ActiveLearningDataset(table(), make_unlabelled=lambda row: row)


def test_torch_state() -> None:
    """The state of a torch dataset holds own and given labels."""
    source = TensorDataset(torch.arange(4.0), torch.arange(4))
    dataset, restored = ActiveLearningDataset(source), ActiveLearningDataset(source)
    dataset.label([3, 1], torch.tensor([7, 8]))
    dataset.label(0)
    restored.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    assert [int(y) for _, y in restored] == [0, 8, 7]


def test_pool_transform() -> None:
    """`pool_specifics` gives the pool of a table another transform, for one where the dataset's own reads the label."""
    source = table().with_transform(lambda batch: {"y": batch["label"]})
    dataset = ActiveLearningDataset(source, pool_specifics={"transform": lambda batch: {"x": batch["text"]}})
    dataset.label(0)
    assert dataset.pool[0] == {"x": "text 1"}
    assert dataset[0] == {"y": 0}


# Steps


def test_labelled_map() -> None:
    """Each call that labels is one step; the map says in which a row was labelled, 0 where it was not."""
    dataset = active(5)
    dataset.label([0, 3])
    dataset.label([])
    dataset.label_randomly(0)
    dataset.annotate([1])
    assert dataset.labelled_map.tolist() == [1, 2, 0, 1, 0]
    assert dataset.current_al_step == 2
    assert [(event.row_id, event.step) for event in dataset.ledger] == [(0, 1), (3, 1), (1, 2)]


@pytest.mark.parametrize("make", [lambda: table(10), lambda: TensorDataset(torch.arange(10), torch.arange(10) % 3)])
def test_labels_of_the_labelled_rows(make) -> None:
    """`labels` are the current labels in the order of `.labelled`: given ones, and the dataset's own."""
    dataset = ActiveLearningDataset(make())
    assert dataset.labels == []
    dataset.annotate([7, 2], [2, 0])
    dataset.annotate([5])
    assert dataset.labels == [0, 5 % 3, 2]
    dataset.last_active_steps = 1
    assert dataset.labels == [5 % 3]


def test_last_active_steps() -> None:
    """With `last_active_steps` only the rows of the last steps are shown as labelled; others stay out of the pool."""
    dataset = active(last_active_steps=2)
    for row_id in (7, 3, 5):
        dataset.annotate([row_id])
    assert row_ids_of(dataset.labelled).tolist() == [3, 5]
    assert (len(dataset), dataset.n_labelled, len(dataset.pool)) == (2, 3, M - 3)
    dataset.last_active_steps = 1
    assert (row_ids_of(dataset.labelled).tolist(), len(dataset)) == ([5], 1)
    dataset.last_active_steps = 9
    assert row_ids_of(dataset.labelled).tolist() == [3, 5, 7]
    dataset.last_active_steps = -1
    assert len(dataset) == len(dataset.labelled) == 3


@pytest.mark.parametrize("steps", [0, -2])
def test_last_active_steps_is_a_number_of_steps(steps) -> None:
    """`last_active_steps` is at least 1, or -1, at construction and later."""
    with pytest.raises(ValueError, match="number of steps, or -1"):
        active(last_active_steps=steps)
    dataset = active()
    with pytest.raises(ValueError, match="number of steps, or -1"):
        dataset.last_active_steps = steps


def test_reset() -> None:
    """After a reset everything is pool, steps count from 1, all can be labelled anew, and the ledger knows what was."""
    dataset = active(4)
    dataset.label([0, 1])
    dataset.label(0)
    dataset.reset_labelled()
    assert (len(dataset), len(dataset.pool), dataset.current_al_step) == (0, 4, 0)
    assert len(dataset.labelled) == 0
    dataset.label([1, 0], ["cat", "cat"])
    assert (dataset.current_al_step, dataset.labelled["label"][:]) == (1, [2, 2])
    assert [event.action for event in dataset.ledger] == 3 * ["label"] + 3 * ["unlabel"] + 2 * ["label"]


@pytest.mark.parametrize("as_mask", [list, np.array, torch.tensor])
def test_labelled_mask(as_mask) -> None:
    """A mask labels rows from the start, with their own labels, as step 1."""
    dataset = active(4, labelled=as_mask([True, False, False, True]))
    assert row_ids_of(dataset.labelled).tolist() == [0, 3]
    assert dataset.labelled_map.tolist() == [1, 0, 0, 1]
    assert active(2, labelled=as_mask([False, False])).current_al_step == 0


@pytest.mark.parametrize("labelled", [[True], np.ones((4, 1)), True, []])
def test_labelled_mask_of_wrong_shape(labelled) -> None:
    """A mask has one entry for each row."""
    with pytest.raises(ValueError, match="labelled needs one entry for each of 4 rows"):
        active(4, labelled=labelled)


# Randomness


def test_random_rows_repeat() -> None:
    """The same `random_state` draws the same rows, another one others; None is a fixed one."""

    def drawn(random_state: int | None) -> list[int]:
        dataset = active(100, random_state=random_state)
        dataset.label_randomly(5)
        dataset.label_randomly(5)
        return [event.row_id for event in dataset.ledger]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) == drawn(None)


def test_random_rows_leave_global_generators_alone() -> None:
    """Labelling at random neither reads nor moves NumPy's and torch's global generators."""
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    active().label_randomly(3)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_all_rows_at_random() -> None:
    """Drawing as many rows as there are labels each once; then there is nothing left to draw."""
    dataset = active()
    dataset.label_randomly(M)
    assert (len(dataset), len(dataset.pool)) == (M, 0)
    with pytest.raises(ValueError, match="needs 0 to 0 rows, what the pool has, got 1"):
        dataset.label_randomly()


# State


def test_a_snapshot_is_a_copy() -> None:
    """A snapshot does not follow the dataset, nor the dataset the snapshot; arrays it hands out are read-only."""
    source = datasets.Dataset.from_dict({"x": range(4)})
    dataset = ActiveLearningDataset(source, label_feature=datasets.List(Value("int64")))
    label = [1, 2]
    dataset.annotate([2], [label])
    state, text = dataset.state_dict(), json.dumps(dataset.state_dict())
    dataset.annotate([3], [[0]])
    label.append(4)
    assert json.dumps(state) == text
    dataset.load_state_dict(state)
    state["events"][0]["label"].append(3)
    state["random_state"]["state"]["state"] = 0
    assert dataset.labelled["label"][:] == [[1, 2]]
    assert json.dumps(dataset.state_dict()) == text
    for array in (dataset.labelled_map, dataset.labelled_ids, dataset.pool_ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_random_rows_go_on_after_loading() -> None:
    """A restored dataset draws the rows that the saved one would have drawn next."""
    dataset, restored = active(50, random_state=5), active(50)
    dataset.label_randomly(3)
    restored.load_state_dict(dataset.state_dict())
    dataset.label_randomly(3)
    restored.label_randomly(3)
    assert equal(dataset, restored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 5}, "dataset of 5 rows, this one has 12"),
        ({"events": [{"row_id": 1}]}, "no state of an ActiveLearningDataset"),
        (
            {"events": [{"row_id": 12, "action": "label", "label": 0, "step": 1}]},
            "no state of an Active.*rows 0 to 11, got 12",
        ),
        ({"random_state": {"bit_generator": "MT19937"}}, "no state of an ActiveLearningDataset"),
        ({"random_state": None}, "no state of an ActiveLearningDataset"),
    ],
)
def test_another_state(change, message) -> None:
    """The state of another dataset, or something else, is refused, and nothing changes."""
    dataset = active()
    dataset.label([1, 2])
    before = dataset.state_dict()
    with pytest.raises(ValueError, match=message):
        dataset.load_state_dict(before | change)
    assert dataset.state_dict() == before
    assert len(dataset.labelled) == 2
    with pytest.raises(ValueError, match="no state of an ActiveLearningDataset"):
        dataset.load_state_dict({})


# Bad input


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (table(0), ValueError, "at least one row, got an empty dataset"),
        ([], ValueError, "at least one row"),
        (iter([1, 2]), TypeError, "rows it can index, got list_iterator"),
        (table().to_iterable_dataset(), TypeError, "rows it can index, got IterableDataset"),
        (Stream(), TypeError, "rows it can index"),
        (datasets.DatasetDict(train=table(), test=table()), TypeError, r"pass one of \['train', 'test'\]"),
        (None, TypeError, "rows it can index, got NoneType"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_something_else_than_rows(source, error, message) -> None:
    """A dataset has rows, one set of them, that can be indexed."""
    with pytest.raises(error, match=message):
        ActiveLearningDataset(source)


@pytest.mark.parametrize(
    ("index", "value", "error", "message"),
    [
        (9, None, ValueError, "positions in the pool, 0 to 8, got 9"),
        (-1, None, ValueError, "positions in the pool, 0 to 8, got -1"),
        ([0, 99], None, ValueError, "got 99"),
        ([1, 0, 1], None, ValueError, "Row 2 was given twice"),
        ([0, 1], [1], ValueError, "2 rows, 1 labels"),
        ([0], [1, 2], ValueError, "1 rows, 2 labels"),
        ([0, 1], 1, TypeError, "sequence with a label for each, got 1"),
        ([0, 1, 2], "ant", TypeError, "sequence with a label for each, got 'ant'"),
        ([0], {0: 1}, TypeError, "sequence with a label for each"),
        ([0, 1], [1, None], ValueError, "got None for some"),
        ([0, 1], [1, 3], ValueError, r"Unknown label 3. The classes are \{0: 'ant', 1: 'bee', 2: 'cat'\}"),
        (0, "dog", ValueError, "Unknown label 'dog'"),
        (0, [1], ValueError, r"Unknown label \[1\]"),
        (0.0, None, TypeError, "float"),
        ("ab", None, TypeError, "str"),
    ],
)
def test_label_refuses(index, value, error, message) -> None:
    """A wrong position or label raises and says what came; none of the call's rows is labelled then."""
    dataset = active()
    dataset.annotate([1, 5, 6])
    before = dataset.state_dict()
    with pytest.raises(error, match=message):
        dataset.label(index, value)
    assert dataset.state_dict() == before


@pytest.mark.parametrize(
    ("row_ids", "message"),
    [
        ([M], "rows 0 to 11, got 12"),
        ([-1], "rows 0 to 11, got -1"),
        ([0, 0], "Row 0 was given twice"),
        ([0, 5], "Row 5 is labelled already, since step 1: 2"),
    ],
)
def test_annotate_refuses(row_ids, message) -> None:
    """A row that is not there, given twice or labelled already raises, and none of the call's rows is labelled."""
    dataset = active(labelled=[i == 5 for i in range(M)])
    before = dataset.state_dict()
    with pytest.raises(ValueError, match=message):
        dataset.annotate(row_ids)
    assert dataset.state_dict() == before


@pytest.mark.parametrize("row_id", [-1, M])
def test_rows_that_are_not_there(row_id) -> None:
    """A row id is not counted from the end, and has to exist."""
    for ask in (active().is_labelled, active().get_raw):
        with pytest.raises(ValueError, match=f"rows 0 to 11, got {row_id}"):
            ask(row_id)


def test_an_exhausted_pool() -> None:
    """When nothing is left, a position is refused with words that say so, and the pool is empty with its columns."""
    dataset = active(2, labelled=[1, 1])
    assert dataset.pool.column_names == ["text", "__row_id__"]
    with pytest.raises(ValueError, match="of which none are left, got 0"):
        dataset.label(0)


@pytest.mark.parametrize("n", [-1, M + 1])
def test_label_randomly_refuses(n) -> None:
    """More rows than the pool has cannot be drawn, nor fewer than none."""
    with pytest.raises(ValueError, match=f"needs 0 to {M} rows, what the pool has, got {n}"):
        active().label_randomly(n)


@pytest.mark.parametrize("index", [3, np.int64(3), np.array(3), torch.tensor(3), [3], (3,), np.array([3]), iter([3])])
def test_positions_in_any_integer_form(index) -> None:
    """A position is an integer of Python, NumPy or torch; several are any iterable of these."""
    dataset = active()
    dataset.label(index, None)
    assert dataset.labelled_ids.tolist() == [3]


@pytest.mark.parametrize(
    ("index", "value"),
    [(3, 2), (3, "cat"), (torch.tensor(3), np.int64(2)), ([3], [2]), (torch.tensor([3]), torch.tensor([2]))],
)
def test_a_single_label(index, value) -> None:
    """One position takes a label, a list of positions a list of labels."""
    dataset = active()
    dataset.label(index, value)
    assert dataset.labelled["label"][:] == [2]
    assert [type(event.label) for event in dataset.ledger] == [int]


# Speed


def test_a_million_rows() -> None:
    """With a million rows and 50,000 labels, views come in a quarter of a second and questions in 20 microseconds."""
    source = datasets.Dataset.from_dict({"x": np.arange(1_000_000), "label": np.arange(1_000_000) % 3})
    dataset = ActiveLearningDataset(source)
    dataset.label_randomly(50_000)

    def seconds(ask, times: int = 1) -> float:
        """Best of five, of so many calls: what another process takes is not ours."""
        measured = []
        for turn in range(5):
            dataset.label(turn)
            ask()
            if times == 1:
                dataset.label(turn)
            begin = time.perf_counter()
            for _ in range(times):
                ask()
            measured.append((time.perf_counter() - begin) / times)
        return min(measured)

    assert seconds(lambda: dataset.labelled) < 0.25
    assert seconds(lambda: dataset.pool) < 0.25
    assert seconds(lambda: len(dataset)) < 0.001  # no view is built for it
    for ask in (lambda: len(dataset), lambda: dataset.is_labelled(77), lambda: dataset.pool, lambda: dataset.labelled):
        assert seconds(ask, times=1000) < 20e-6


def test_labels_alone_are_refused() -> None:
    """A dataset whose only column is the label has nothing to predict from."""
    with pytest.raises(ValueError, match=r"inputs beside labels, got the columns \['label'\]"):
        ActiveLearningDataset(datasets.Dataset.from_dict({"label": [0, 1]}))


@pytest.mark.parametrize("mask", [[True, False, False], np.array([True, False, False])])
def test_masks_are_no_positions(mask: object) -> None:
    """A mask is not read as the positions 1 and 0."""
    dataset = ActiveLearningDataset(datasets.Dataset.from_dict({"x": [1, 2, 3], "label": [0, 1, 0]}))
    with pytest.raises(TypeError, match="flatnonzero"):
        dataset.label(mask)


def test_strings_are_no_datasets() -> None:
    """A name is not taken for a dataset of letters."""
    with pytest.raises(TypeError, match="rows it can index, got str"):
        ActiveLearningDataset("imdb")


def test_minus_one_is_no_label() -> None:
    """An own label of -1 in a column of whole numbers means that there is none; a given NaN is refused too."""
    dataset = ActiveLearningDataset(datasets.Dataset.from_dict({"x": [1, 2], "label": [-1, 2]}))
    with pytest.raises(ValueError, match="Row 0 needs a label"):
        dataset.label(0)
    scores = ActiveLearningDataset(datasets.Dataset.from_dict({"x": [1, 2], "label": [0.5, 2.0]}))
    with pytest.raises(ValueError, match="NaN is none"):
        scores.label(0, float("nan"))


def test_events_are_checked() -> None:
    """A state whose events say something unknown is refused."""
    dataset = ActiveLearningDataset(datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 1]}))
    dataset.label(0)
    state = dataset.state_dict()
    state["events"][0]["action"] = "lable"
    with pytest.raises(ValueError, match="labels or unlabels"):
        dataset.load_state_dict(state)
