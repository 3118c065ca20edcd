"""Labelled rows and pool: a partition of the rows after whatever was done, the one with labels, the other without."""

import copy
import json
import pickle
import tempfile
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Features, Value
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.ledger import LabelLedger
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


def shown(dataset: ActiveLearningDataset) -> dict[str, object]:
    """All that a dataset says of its labels."""
    return {
        "labelled_map": dataset.labelled_map.tolist(),
        "labelled": dataset.labelled[:],
        "features": dataset.labelled.features,
        "labels": dataset.labels,
        "pool": dataset.pool[:],
        "pool_ids": dataset.pool_ids.tolist(),
        "skipped": dataset.skipped_ids.tolist(),
        "votes": [dataset.votes(row_id) for row_id in range(len(dataset.labelled_map))],
        "step": dataset.current_al_step,
        "numbers": (len(dataset), dataset.n_labelled, dataset.n_unlabelled),
    }


PEOPLE = (None, "anna", "ben")
people = st.sampled_from(PEOPLE)


class Model:
    """What a dataset should say: dictionaries that are filled anew from what was done and not taken back."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self.done: list[tuple[str, dict[int, int], str | None, int]] = []  # action, labels, annotator, step
        self.fill()

    def do(self, action: str, labels: dict[int, int], who: str | None = None) -> None:
        if labels:
            self.done.append((action, labels, who, self.step() + 1))
            self.fill()

    def undo(self, who: str | None) -> set[int] | None:
        """Rows of what is taken back; None if there is nothing to take back."""
        for place in reversed(range(len(self.done))):
            _, labels, by, _ = self.done[place]
            if who in (None, by):
                del self.done[place]
                self.fill()
                return set(labels)
        return None

    def fill(self) -> None:
        self.votes: dict[int, dict[str | None, int]] = {row_id: {} for row_id in range(M)}
        self.first: dict[int, dict[str | None, int]] = {row_id: {} for row_id in range(M)}
        self.skips: dict[int, set[str | None]] = {row_id: set() for row_id in range(M)}
        for action, labels, who, step in self.done:
            for row_id, label in labels.items():
                votes, first, skips = self.votes[row_id], self.first[row_id], self.skips[row_id]
                if action == "skip":
                    skips.add(who)
                elif action == "unlabel":
                    for gone in PEOPLE if who is None else [who]:
                        votes.pop(gone, None)
                        first.pop(gone, None)
                        skips.discard(gone)
                else:
                    votes.pop(who, None)
                    votes[who] = label
                    first.setdefault(who, step)
                    skips.discard(who)

    def steps(self) -> list[int]:
        return [min(self.first[row_id].values(), default=0) for row_id in range(M)]

    def step(self) -> int:
        return max(self.steps())

    def labels(self) -> dict[int, int]:
        """Label of each labelled row."""
        labels = {}
        for row_id, votes in self.votes.items():
            latest = list(votes.values())[::-1]
            if latest:
                most = 1 if self.rule == "last" else max(map(latest.count, latest))
                labels[row_id] = next(label for label in latest if latest.count(label) >= most)
        return labels

    def skipped(self) -> list[int]:
        return [row_id for row_id in range(M) if self.skips[row_id] and not self.votes[row_id]]

    def pool(self) -> list[int]:
        return [row_id for row_id in range(M) if not self.skips[row_id] and not self.votes[row_id]]


class Labelling(RuleBasedStateMachine):
    """Any sequence of operations of several annotators, beside a model of what the dataset should say."""

    consensus = "last"
    in_file = False

    def __init__(self) -> None:
        super().__init__()
        self.source = table(20).shuffle(seed=3).select(range(M))
        self.own = self.source["label"][:]
        self.folder = tempfile.TemporaryDirectory()
        self.files = 0
        self.dataset = self.opened(self.new_ledger(), random_state=1)
        self.model = Model(self.consensus)
        self.names = list(ANIMALS.names)

    def teardown(self) -> None:
        self.folder.cleanup()

    def new_ledger(self) -> LabelLedger:
        self.files += 1
        return LabelLedger(Path(self.folder.name, f"{self.files}.db") if self.in_file else None)

    def opened(self, ledger: LabelLedger, **arguments) -> ActiveLearningDataset:
        return ActiveLearningDataset(self.source, ledger=ledger, consensus=self.consensus, **arguments)

    def some(self, data, row_ids, at_least: int = 0) -> list[int]:
        row_ids = list(row_ids)
        if not row_ids:
            return []
        return data.draw(st.lists(st.sampled_from(row_ids), unique=True, min_size=at_least, max_size=4))

    def values(self, data, row_ids) -> dict[int, int]:
        classes = st.integers(0, len(self.names) - 1)
        return {row_id: data.draw(classes) for row_id in row_ids}

    def operation(self, data, dataset: ActiveLearningDataset) -> tuple[str, dict[int, int], str | None]:
        """Do something that makes sense to a dataset that knows all, and say what the model is to do."""
        votes, skips = self.model.votes, self.model.skips
        said = {i: {*votes[i], *skips[i]} for i in range(M)}
        sensible = {
            "label": {who: [i for i in range(M) if who not in votes[i]] for who in PEOPLE},
            "relabel": {who: [i for i in range(M) if who in votes[i]] for who in PEOPLE},
            "skip": {who: [i for i in range(M) if not votes[i] and who not in skips[i]] for who in PEOPLE},
            "unlabel": {who: [i for i in range(M) if (said[i] if who is None else who in said[i])] for who in PEOPLE},
        }
        choices = [(action, who) for action, rows in sensible.items() for who in PEOPLE if rows[who]]
        action, who = data.draw(st.sampled_from(choices))
        row_ids = self.some(data, sensible[action][who], at_least=1)
        if action in ("label", "relabel"):
            given = self.values(data, row_ids)
            if action == "label":
                dataset.annotate(row_ids, [self.names[label] for label in given.values()], annotator=who)
            else:
                dataset.relabel(row_ids, list(given.values()), annotator=who)
            return action, given, who
        (dataset.skip if action == "skip" else dataset.unlabel)(row_ids, annotator=who)
        return action, dict.fromkeys(row_ids, -1), who

    @rule(data=st.data())
    def operate(self, data) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            self.model.do(*self.operation(data, self.dataset))

    @rule(data=st.data())
    def there_and_back(self, data) -> None:
        """Undo is the inverse of what was done last."""
        before = shown(self.dataset)
        _, labels, who = self.operation(data, self.dataset)
        by = data.draw(st.sampled_from([None, who]))
        assert set(self.dataset.undo(annotator=by)) == set(labels)
        assert shown(self.dataset) == before

    @rule(who=people)
    def undo(self, who) -> None:
        row_ids = self.model.undo(who)
        if row_ids is None:
            with pytest.raises(ValueError, match="nothing to undo"):
                self.dataset.undo(annotator=who)
        else:
            assert set(self.dataset.undo(annotator=who)) == row_ids

    @rule(data=st.data())
    def label(self, data) -> None:
        pool = self.model.pool()
        positions = self.some(data, range(len(pool)))
        given = self.values(data, [pool[position] for position in positions])
        self.dataset.label(positions, list(given.values()))
        self.model.do("label", given)

    @rule(data=st.data())
    def annotate_with_own_labels(self, data) -> None:
        row_ids = self.some(data, self.model.pool())
        self.dataset.annotate(row_ids)
        self.model.do("label", {row_id: self.own[row_id] for row_id in row_ids})

    @rule(n=st.integers(0, 3))
    def label_randomly(self, n: int) -> None:
        n = min(n, self.dataset.n_unlabelled)
        before = set(self.dataset.labelled_ids.tolist())
        self.dataset.label_randomly(n)
        new = [row_id for row_id in self.dataset.labelled_ids.tolist() if row_id not in before]
        assert len(new) == n
        self.model.do("label", {row_id: self.own[row_id] for row_id in new})

    @rule()
    def reset(self) -> None:
        self.dataset.reset_labelled()
        said = [i for i in range(M) if self.model.votes[i] or self.model.skips[i]]
        self.model.do("unlabel", dict.fromkeys(said, -1))

    @precondition(lambda self: len(self.names) < 6)
    @rule(n=st.integers(1, 2))
    def add_classes(self, n: int) -> None:
        names = [f"new {len(self.names) + number}" for number in range(n)]
        self.dataset.add_classes(names)
        self.names += names

    @rule(data=st.data(), row_id=st.integers(0, M - 1), other=st.integers(0, M - 1), who=people)
    def fail(self, data, row_id: int, other: int, who) -> None:
        """Whatever is refused changes nothing."""
        before, events = shown(self.dataset), list(self.dataset.ledger)
        model, row_ids, wrong = self.model, [row_id, other], len(self.names)
        twice, who_votes = row_id == other, [who in model.votes[i] for i in row_ids]
        refused = [
            lambda: self.dataset.annotate(
                row_ids, [0, wrong] if not (twice or any(who_votes)) else [0, 0], annotator=who
            ),
            lambda: self.dataset.add_classes(["new", self.names[-1]]),
        ]
        if twice or not all(who_votes):
            refused.append(lambda: self.dataset.relabel(row_ids, [0, 0], annotator=who))
        if twice or any(model.votes[i] or who in model.skips[i] for i in row_ids):
            refused.append(lambda: self.dataset.skip(row_ids, annotator=who))
        if twice or any(i in model.pool() for i in row_ids):
            refused.append(lambda: self.dataset.unlabel(row_ids, annotator=who))
        with pytest.raises(ValueError):
            data.draw(st.sampled_from(refused))()
        assert shown(self.dataset) == before
        assert list(self.dataset.ledger) == events

    @rule(data=st.data())
    def somebody_else(self, data) -> None:
        """Another dataset on the same ledger changes nothing here before `refresh`, and then both say the same."""
        other, before = self.opened(self.dataset.ledger), shown(self.dataset)
        number = len(self.dataset.ledger)
        done = [self.operation(data, other)]
        assert shown(self.dataset) == before
        assert self.dataset.refresh() == len(self.dataset.ledger) - number
        assert self.dataset.refresh() == other.refresh() == 0
        assert shown(self.dataset) == shown(other)
        self.model.do(*done[0])

    @rule()
    def replay(self) -> None:
        """A new dataset on the same ledger says the same, and so does one on a copy; the tests go on with the first."""
        replayed = self.opened(self.dataset.ledger)
        assert shown(replayed) == shown(self.dataset) == shown(copy.deepcopy(self.dataset))
        assert shown(pickle.loads(pickle.dumps(self.dataset))) == shown(self.dataset)
        if self.in_file:
            assert shown(self.opened(self.dataset.ledger.path)) == shown(self.dataset)
        self.dataset = replayed

    @rule()
    def save_and_load(self) -> None:
        """Replaying the state in another object gives an equal dataset; the tests go on with that one."""
        state = json.loads(json.dumps(self.dataset.state_dict()))
        restored = self.opened(self.new_ledger(), random_state=99)
        if not self.in_file:  # in a file, what is recorded stays
            restored.label_randomly(2)
        restored.load_state_dict(state)
        assert equal(restored, self.dataset)
        assert shown(restored) == shown(self.dataset)
        self.dataset = restored

    @invariant()
    def labelled_skipped_and_pool_partition_the_rows(self) -> None:
        dataset, labels = self.dataset, self.model.labels()
        labelled, pool = row_ids_of(dataset.labelled).tolist(), row_ids_of(dataset.pool).tolist()
        skipped = dataset.skipped_ids.tolist()
        assert sorted(labelled + skipped + pool) == list(range(M))
        assert labelled == sorted(labels) == dataset.labelled_ids.tolist()
        assert skipped == self.model.skipped()
        assert pool == self.model.pool() == dataset.pool_ids.tolist()
        assert (len(labelled), len(pool)) == (dataset.n_labelled, dataset.n_unlabelled)
        assert len(dataset) == len(labelled)
        assert [dataset.is_labelled(i) for i in range(M)] == [i in labels for i in range(M)]
        assert dataset.labelled_map.tolist() == self.model.steps()
        assert dataset.current_al_step == self.model.step()

    @invariant()
    def views_show_the_right_rows_and_labels(self) -> None:
        labelled, pool, labels = self.dataset.labelled, self.dataset.pool, self.model.labels()
        assert "label" not in pool.column_names
        assert labelled["label"][:] == self.dataset.labels == [labels[i] for i in sorted(labels)]
        assert labelled.features["label"].names == self.names
        for view in (labelled, pool):
            assert view["text"][:] == [self.source[int(i)]["text"] for i in row_ids_of(view)]
        assert (self.dataset.labelled, self.dataset.pool) == (labelled, pool)

    @invariant()
    def votes_are_the_annotators_current_labels(self) -> None:
        for row_id in range(M):
            votes = [(vote.annotator, vote.label) for vote in self.dataset.votes(row_id)]
            assert votes == list(self.model.votes[row_id].items())


class LabellingInAFile(Labelling):
    """The same with a ledger in a file, and the majority's labels."""

    consensus = "majority"
    in_file = True


TestLabelling = Labelling.TestCase
TestLabelling.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestLabellingInAFile = LabellingInAFile.TestCase
TestLabellingInAFile.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


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


def test_views_of_a_ledger_in_a_file_need_little_memory(tmp_path) -> None:
    """Opening a ledger with labels for a twentieth of the rows, and making both views, takes 33 bytes a row."""
    size, path = 200_000, tmp_path / "labels.db"
    rows = datasets.Dataset(pa.table({"text": pa.nulls(size, pa.string()), "label": np.zeros(size, dtype=np.int64)}))
    ActiveLearningDataset(rows, ledger=path).annotate(np.random.default_rng(0).permutation(size)[: size // 20])
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        dataset = ActiveLearningDataset(rows, ledger=path)
        views = dataset.pool, dataset.labelled
        taken = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    assert [len(view) for view in views] == [size - size // 20, size // 20]
    assert taken < 33 * size


def test_tables_of_more_rows_than_are_counted() -> None:
    """A table of 2**31 rows is refused: their positions would not be what they are."""
    rows = datasets.Dataset(pa.table({"text": pa.nulls(2**31)}))
    with pytest.raises(ValueError, match=r"needs a table of less than 2\*\*31 rows, got 2147483648"):
        ActiveLearningDataset(rows, label_feature=ANIMALS)


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


@pytest.mark.parametrize("name", ["label", "labels", "label_ids", "target", "targets"])
def test_torch_dictionaries(name: str) -> None:
    """Dictionaries of a list lose their label in the pool, by each name that ModelWrapper knows a target by."""
    dataset = ActiveLearningDataset([{"x": i, name: i} for i in range(3)])
    dataset.annotate([1], [9])
    dataset.annotate([2])
    assert list(dataset.pool) == [{"x": 0}]
    assert dataset[0] == {"x": 1, name: 9} and dataset.labels == [9, 2]


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


# Annotators, second thoughts


def test_annotators_vote() -> None:
    """Several annotators may label a row, each once; its label is what the rule makes of their votes."""
    by_rule = {
        "last": [2, 1],
        "majority": [0, 1],
        lambda votes: min(vote.label for vote in votes): [0, 0],
    }
    for consensus, wanted in by_rule.items():
        dataset = active(consensus=consensus)
        dataset.annotate([4, 7], ["ant", "ant"], annotator="anna")
        dataset.annotate([4], ["ant"], annotator="ben")
        dataset.annotate([7, 4], ["bee", "cat"])
        assert dataset.labelled["label"][:] == dataset.labels == wanted
        assert [(vote.annotator, vote.label) for vote in dataset.votes(4)] == [("anna", 0), ("ben", 0), (None, 2)]
        with pytest.raises(ValueError, match=r"Row 7 is labelled already by 'anna', since step 1: 0\. relabel"):
            dataset.annotate([1, 7], [0, 0], annotator="anna")
        assert (dataset.n_labelled, dataset.labelled_map[[4, 7]].tolist()) == (2, [1, 1])
    with pytest.raises(ValueError, match="out of last, majority"):
        active(consensus="mean")


def test_provenance() -> None:
    """What chose the rows, its score of each, the chance each had and the model are recorded with the labels."""
    dataset = active()
    dataset.annotate(
        np.array([3, 5]),
        ["cat", 1],
        annotator="anna",
        heuristic="BALD",
        scores=np.array([0.5, 0.25], dtype=np.float32),
        probabilities=torch.tensor([1.0, 0.5]),
        model_version="v1",
    )
    (event,) = dataset.history(5)
    assert (event.label, event.annotator, event.heuristic, event.model_version) == (1, "anna", "BALD", "v1")
    assert (event.score, event.probability) == (0.25, 0.5)
    assert type(event.score) is type(event.probability) is float
    for wrong, message in [
        ({"scores": [0.5]}, "a score for each: 2 rows, got 1"),
        ({"probabilities": [0.5, 2]}, r"probability in \[0, 1\], got 2"),
        ({"scores": [0.5, float("nan")]}, "score that is a number, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataset.annotate([1, 2], [0, 0], **wrong)
    assert len(dataset.ledger) == 2


def test_history() -> None:
    """The history of a row is all that happened to it, in order, also what was taken back."""
    dataset = active()
    dataset.annotate([2, 3], [0, 0], annotator="anna")
    dataset.relabel([3], ["cat"], annotator="anna")
    assert dataset.undo() == [3]
    dataset.unlabel([2, 3])
    dataset.skip([3], annotator="ben")
    assert [(event.action, event.label, event.annotator, event.undoes) for event in dataset.history(3)] == [
        ("label", 0, "anna", None),
        ("relabel", 2, "anna", None),
        ("undo", None, None, 2),
        ("unlabel", None, None, None),
        ("skip", None, "ben", None),
    ]
    assert [event.operation for event in dataset.history(3)] == [1, 2, 3, 4, 5]
    assert dataset.history(0) == dataset.votes(3) == []
    times = [event.time for event in dataset.ledger]
    assert times == sorted(times) and abs(times[-1] - time.time()) < 60


def test_relabelled_rows_keep_their_step() -> None:
    """Another label in the place of the first changes neither the step of a row nor that of the dataset."""
    dataset = active()
    dataset.annotate([1])
    dataset.annotate([2])
    dataset.relabel([1], ["ant"])
    assert (dataset.labelled_map[[1, 2]].tolist(), dataset.current_al_step) == ([1, 2], 2)
    assert dataset.labelled["label"][:] == [0, 2]


def test_skipped_rows_are_neither_labelled_nor_asked_for() -> None:
    """Skipped rows are in neither view and never drawn; who labels one knows better; unlabelling brings one back."""
    dataset = active(5)
    dataset.skip([0, 3], annotator="anna")
    assert (dataset.skipped_ids.tolist(), dataset.pool_ids.tolist(), len(dataset)) == ([0, 3], [1, 2, 4], 0)
    dataset.label_randomly(3)
    assert dataset.labelled_ids.tolist() == [1, 2, 4]
    dataset.annotate([0], ["cat"])
    dataset.unlabel([3], annotator="anna")
    assert (dataset.skipped_ids.tolist(), dataset.pool_ids.tolist()) == ([], [3])


def test_undo_goes_back_step_by_step() -> None:
    """Each undo takes back the call before, of anyone or of one annotator, until nothing is left."""
    dataset = active()
    dataset.annotate([1, 2], [0, 0], annotator="anna")
    dataset.annotate([1, 3], [1, 1], annotator="ben")
    dataset.skip([4], annotator="ben")
    assert dataset.undo(annotator="anna") == [1, 2]
    assert dataset.labelled["label"][:] == [1, 1]
    assert dataset.undo() == [4]
    assert dataset.undo() == [1, 3]
    assert len(dataset.pool) == M
    for annotator in (None, "anna", "carl"):
        with pytest.raises(ValueError, match="nothing to undo"):
            dataset.undo(annotator=annotator)


def test_new_classes() -> None:
    """New classes stand behind the others, in the views of now, and of whoever opens the ledger later."""
    dataset = active()
    dataset.label(0, "cat")
    with pytest.raises(ValueError, match="Unknown label 'dog'"):
        dataset.label(0, "dog")
    dataset.add_classes(["dog", "eel"])
    dataset.label([0, 1], ["dog", 4])
    dataset.add_classes(["fox"])
    for each in (dataset, active(ledger=dataset.ledger), active()):
        each.load_state_dict(dataset.state_dict())
        assert each.labelled.features["label"].names == ["ant", "bee", "cat", "dog", "eel", "fox"]
        assert each.labelled["label"][:] == [2, 3, 4]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["cat"], ValueError, r"need new names, got \['cat'\]. The classes are \['ant', 'bee', 'cat'\]"),
        (["dog", "dog"], ValueError, "new names"),
        ([""], ValueError, "new names"),
        ([], ValueError, "new names"),
        ("dog", TypeError, "names"),
        ([5], TypeError, "names"),
    ],
)
def test_classes_that_are_not_new(names, error, message) -> None:
    """Names that are taken, come twice, or are no names are refused, and none is added."""
    dataset = active()
    with pytest.raises(error, match=message):
        dataset.add_classes(names)
    assert len(dataset.ledger) == 0


@pytest.mark.parametrize(
    "source", [datasets.Dataset.from_dict({"x": [1, 2], "label": [0.5, 1]}), [{"x": 1, "label": 0}]]
)
def test_labels_that_are_no_classes(source) -> None:
    """Where labels are no classes, none can be added."""
    with pytest.raises(TypeError, match="Classes can be added"):
        ActiveLearningDataset(source).add_classes(["dog"])


def test_classes_of_a_list() -> None:
    """Labels that are lists of classes get new classes, too."""
    dataset = ActiveLearningDataset(table().remove_columns("label"), label_feature=datasets.List(ANIMALS))
    dataset.add_classes(["dog"])
    dataset.annotate([3], [["ant", "dog"]])
    assert dataset.labelled["label"][:] == [[0, 3]]


@pytest.mark.parametrize("act", ["annotate", "relabel", "skip", "unlabel"])
@pytest.mark.parametrize(
    ("row_ids", "error", "message"),
    [
        ([0, M], ValueError, "rows 0 to 11, got 12"),
        ([-1], ValueError, "rows 0 to 11, got -1"),
        ([3, 3], ValueError, "Row 3 was given twice"),
        ([0.5], TypeError, "float"),
        ([True, False], TypeError, "mask"),
        (np.arange(M) == 1, TypeError, "mask"),
    ],
)
def test_rows_that_are_no_rows(act, row_ids, error, message) -> None:
    """A row that is not there, given twice, or a mask, is refused by all that changes labels."""
    dataset = active()
    labels = [[0] * len(row_ids)] if act in ("annotate", "relabel") else []
    with pytest.raises(error, match=message):
        getattr(dataset, act)(row_ids, *labels)
    assert len(dataset.ledger) == 0


def test_an_annotator_is_a_name() -> None:
    """An annotator that is no text is refused: a file would not know it again."""
    dataset = active()
    for act in (
        lambda: dataset.annotate([0], [0], annotator=5),
        lambda: dataset.skip([0], annotator=5),
    ):
        with pytest.raises(TypeError, match="annotator that is text"):
            act()
    assert len(dataset.ledger) == 0


def test_a_consensus_that_fails() -> None:
    """Where the consensus rule raises, nothing is labelled, and labelling goes on with what it can judge."""

    def unanimous(votes) -> int:
        if len({vote.label for vote in votes}) > 1:
            raise ArithmeticError("they disagree")
        return votes[0].label

    dataset = active(consensus=unanimous)
    dataset.annotate([3, 4], [0, 0], annotator="anna")
    before, events = shown(dataset), list(dataset.ledger)
    with pytest.raises(ArithmeticError):
        dataset.annotate([5, 4], [1, 1], annotator="ben")
    assert list(dataset.ledger) == events
    assert shown(dataset) == before
    dataset.annotate([4], [0], annotator="ben")
    assert [event.annotator for event in dataset.history(4)] == ["anna", "ben"]


# Ledgers in files


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "labels.db"


@pytest.mark.parametrize("given", [str, Path, LabelLedger])
def test_labels_in_a_file(path, given) -> None:
    """With a file, labels are there when it is opened again."""
    dataset = active(ledger=given(path))
    dataset.label([0, 5], ["cat", "bee"])
    dataset.skip([1])
    again = active(ledger=given(path))
    assert shown(again) == shown(dataset)
    assert again.ledger.path == path


def test_a_mask_and_a_ledger(path) -> None:
    """A mask starts an empty ledger; one that has events says itself what is labelled, and a mask is refused."""
    mask = np.arange(M) < 2
    assert active(ledger=path, labelled=mask).n_labelled == 2
    with pytest.raises(ValueError, match="says already what is labelled, by 2 events"):
        active(ledger=path, labelled=mask)
    assert active(ledger=path).n_labelled == 2


def texts(*changed: tuple[int, str]) -> datasets.Dataset:
    column = table()["text"][:]
    for row_id, text in changed:
        column[row_id] = text
    return table().remove_columns("text").add_column("text", column)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: table(M - 1), "a dataset of 12 rows, this one has 11"),
        (lambda: table().shuffle(seed=0), "contents, order or classes differ"),
        (lambda: texts((7, "Text 7")), "contents, order or classes differ"),
        (lambda: table().rename_column("text", "sentence"), "contents, order or classes differ"),
        (lambda: table().add_column("more", [0] * M), "contents, order or classes differ"),
        (lambda: TensorDataset(torch.arange(M), torch.arange(M)), "contents, order or classes differ"),
    ],
)
def test_the_ledger_of_another_dataset(path, other, message) -> None:
    """A ledger is refused by a dataset with other rows, and has what it had."""
    active(ledger=path).label([0, 1])
    with pytest.raises(ValueError, match=f"The ledger {path} belongs to .*{message}"):
        ActiveLearningDataset(other(), ledger=path)
    assert active(ledger=path).n_labelled == 2


@pytest.mark.parametrize(
    "same",
    [
        lambda: texts(),
        lambda: table().with_format("torch"),
        lambda: table().remove_columns("label"),
        lambda: table().add_column("index", range(M)).sort("index", reverse=True).sort("index").remove_columns("index"),
        lambda: table(20).select(range(M)),
        lambda: datasets.concatenate_datasets([table().select(range(5)), table().select(range(5, M))]),
    ],
    ids=["columns moved", "format", "no labels", "sorted", "selected", "joined"],
)
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets 5.2 under pyarrow 26
def test_the_same_dataset(path, same) -> None:
    """The same inputs in the same order are the same dataset, however they lie in memory, with labels or without."""
    active(ledger=path).label([0, 1])
    assert ActiveLearningDataset(same(), ledger=path, label_feature=ANIMALS).labels == [0, 1]


def test_positions_are_those_that_were_shown(path) -> None:
    """A position means the row that this object's pool has there, whatever others labelled in the meantime."""
    dataset, other = active(ledger=path), active(ledger=path)
    other.label([0, 1, 2], ["cat"] * 3)
    dataset.label(3, "ant")
    assert dataset.history(3)[0].label == 0
    assert dataset.labelled_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="Row 3 is labelled already, since step 2: 0"):
        other.label(0, "bee")
    dataset.annotate([4])
    with pytest.raises(ValueError, match="Row 4 is labelled, and cannot be skipped"):
        other.skip([4])
    with pytest.raises(ValueError, match="Somebody else has written since"):
        other.undo()
    assert other.labelled_ids.tolist() == [0, 1, 2]  # what is refused moves nothing
    other.refresh()
    assert shown(other) == shown(dataset)


def test_a_ledger_that_cannot_be_written(path) -> None:
    """If the ledger cannot be written the dataset stays what it was, and goes on once it can be."""
    dataset = active(ledger=path)
    dataset.annotate([0, 1], annotator="anna")
    connection = dataset.ledger._log._opened()
    connection.execute("PRAGMA query_only = 1")
    before = shown(dataset)
    for act in (
        lambda: dataset.label([0]),
        lambda: dataset.annotate([5]),
        lambda: dataset.relabel([0], [1], annotator="anna"),
        lambda: dataset.skip([5]),
        lambda: dataset.unlabel([0]),
        lambda: dataset.add_classes(["dog"]),
        lambda: dataset.label_randomly(2),
        dataset.undo,
        dataset.reset_labelled,
    ):
        with pytest.raises(OSError, match=r"labels.db cannot be used: .*readonly.*What was recorded before is kept"):
            act()
        assert shown(dataset) == before
    connection.execute("PRAGMA query_only = 0")
    dataset.label([0])
    assert active(ledger=path).n_labelled == 3


def test_a_state_and_a_file(path) -> None:
    """A file keeps what was recorded after a state that is loaded; other events are refused and change nothing."""
    dataset = active(ledger=path)
    dataset.label(0)
    state = dataset.state_dict()
    dataset.label(0)
    dataset.load_state_dict(state)
    assert dataset.labelled_ids.tolist() == [0, 1]
    other = active()
    other.label(3)
    before = shown(dataset)
    with pytest.raises(ValueError, match="other events than this state"):
        dataset.load_state_dict(other.state_dict())
    assert shown(dataset) == before == shown(active(ledger=path))


@pytest.mark.parametrize("in_file", [False, True])
def test_a_state_with_classes_that_cannot_be_added(path, in_file) -> None:
    """A state that adds a class which this dataset has already is refused, and nothing changes."""
    more = ClassLabel(names=[*ANIMALS.names, "dog"])
    dataset = active(label_feature=more, ledger=path if in_file else None)
    other = active()
    other.add_classes(["dog"])
    other.label(0, "dog")
    before = shown(dataset)
    with pytest.raises(ValueError, match="dog"):
        dataset.load_state_dict(other.state_dict())
    assert shown(dataset) == before
    assert len(dataset.ledger) == 0
    dataset.label(0, "dog")
    assert dataset.labels == [3]


def test_other_classes_than_the_ledgers(path) -> None:
    """A ledger whose labels meant other classes, or the same in another order, is refused."""
    active(ledger=path).label(0, "cat")
    with pytest.raises(ValueError, match=r"class"):
        active(ledger=path, label_feature=ClassLabel(names=["cat", "bee", "ant"]))
    assert active(ledger=path).labels == [2]


def test_names_are_stored_as_given(path) -> None:
    """Letters of any alphabet come back from a file."""
    dataset = ActiveLearningDataset(table().remove_columns("label"), label_feature=Value("string"), ledger=path)
    dataset.annotate([0], ["größe 猫"], annotator="Zoë")
    assert ActiveLearningDataset(table().remove_columns("label"), label_feature=Value("string"), ledger=path).history(
        0
    ) == dataset.history(0)


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
    assert [event.row_id for event in dataset.ledger] == [event.row_id for event in restored.ledger]
    assert dataset.state_dict()["random_state"] == restored.state_dict()["random_state"]
    assert shown(dataset)["labelled"] == shown(restored)["labelled"]


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
        ([0, 1], [1], ValueError, "a label for each: 2 rows, got 1"),
        ([0], [1, 2], ValueError, "a label for each: 1 rows, got 2"),
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
    with pytest.raises(ValueError, match="needs an action out of label, relabel"):
        dataset.load_state_dict(state)
