"""Rows as pool and as labelled views: on the same Arrow buffers, labels hidden or the given ones."""

import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset, TensorDataset

from baal_hf import ActiveLearningDataset
from baal_hf.rows import ROW_ID, ArrowRows, RowView, TorchRows, row_ids_of

ANIMALS = ClassLabel(names=["ant", "bee", "cat"])


def table(M: int = 6) -> datasets.Dataset:
    """Texts and class labels."""
    return datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(M)], "label": [i % 3 for i in range(M)]},
        features=Features({"text": Value("string"), "label": ANIMALS}),
    )


def addresses(dataset: datasets.Dataset, column: str) -> set[int]:
    """Where the column's data buffers lie in memory."""
    buffers = [chunk.buffers()[-1] for chunk in dataset.data.column(column).chunks]
    return {buffer.address for buffer in buffers if buffer is not None}


def ids(*row_ids: int) -> np.ndarray:
    return np.asarray(row_ids, dtype=np.int64)


# datasets 5.2 sorts with an argument that pyarrow 26 deprecates.
sorts = pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")


class Words(torch.utils.data.Dataset):
    """A torch dataset whose rows are dictionaries."""

    def __init__(self, label: str = "label", size: int = 5) -> None:
        self.label, self.size, self.prefix, self.asked = label, size, "w", []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict:
        self.asked.append(i)
        return {"text": f"{self.prefix}{i}", self.label: i % 2}


# Arrow


@sorts
@pytest.mark.parametrize(
    "prepare",
    [
        lambda d: d,
        lambda d: d.select(range(2, 6)),
        lambda d: d.select([5, 0, 3, 1]),
        lambda d: d.shuffle(seed=0),
        lambda d: d.sort("label"),
        lambda d: d.filter(lambda row: row["label"] != 1),
        lambda d: d.train_test_split(test_size=0.5, seed=0)["test"],
        lambda d: datasets.concatenate_datasets([d.select([4, 1]), d.select([2, 0, 3])]),
        lambda d: d.select([3, 0, 3, 1, 0]),
    ],
    ids=["whole", "slice", "select", "shuffle", "sort", "filter", "split", "concatenated", "repeated rows"],
)
def test_row_ids_are_positions_in_the_dataset(prepare) -> None:
    """Whatever was done to the dataset before, a row id is a position in it, and views show that row."""
    dataset = prepare(table())
    rows = ArrowRows(dataset, "label")
    wanted = ids(*range(len(rows)))[::-2][::-1]
    pool = rows.pool(wanted)
    assert pool["text"][:] == [dataset[int(i)]["text"] for i in wanted]
    assert pool[ROW_ID][:] == row_ids_of(pool).tolist() == wanted.tolist()
    labelled = rows.labelled(wanted, {int(i): (i + 1) % 3 for i in wanted})
    assert labelled["text"][:] == pool["text"][:]
    assert labelled["label"][:] == [(i + 1) % 3 for i in wanted]
    assert rows.encoded(wanted.tolist(), None) == [dataset[int(i)]["label"] for i in wanted]
    assert rows.raw(int(wanted[0])) == dataset[int(wanted[0])]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_views_show_the_rows_asked_for(data) -> None:
    """For any selection of any selection, views show the rows asked for, in that order, with their labels."""
    chosen = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
    dataset = table(8).select(chosen)
    wanted = data.draw(st.lists(st.sampled_from(range(len(chosen))), unique=True))
    labels = {i: data.draw(st.integers(0, 2)) for i in wanted}
    rows = ArrowRows(dataset, "label")
    for view in (rows.pool(ids(*wanted)), rows.labelled(ids(*wanted), labels)):
        assert view["text"][:] == [f"text {chosen[i]}" for i in wanted]
        assert row_ids_of(view).tolist() == wanted
    assert rows.labelled(ids(*wanted), labels)["label"][:] == list(labels.values())


def test_views_lie_on_the_same_buffers() -> None:
    """Pool and labelled rows of a table, whole or shuffled, are that table: no text is copied."""
    dataset = table(1000)
    for source in (dataset, dataset.shuffle(seed=0)):
        rows = ArrowRows(source, "label")
        odd = np.arange(1, 1000, 2)
        for view in (rows.pool(odd), rows.labelled(odd, dict.fromkeys(odd.tolist(), 0)), rows.pool(np.arange(1000))):
            assert addresses(view, "text") == addresses(dataset, "text")


def test_views_need_little_memory() -> None:
    """Building the views of 200,000 texts allocates less than a tenth of the texts."""
    dataset = datasets.Dataset(pa.table({"text": [f"{i} " + "x" * 500 for i in range(200_000)]}))
    dataset = dataset.add_column("label", np.zeros(200_000, dtype=np.int64)).shuffle(seed=0)
    before = pa.total_allocated_bytes()
    rows = ArrowRows(dataset, "label")
    some = np.arange(0, 200_000, 3)
    views = rows.pool(some), rows.labelled(some, dict.fromkeys(some.tolist(), 1))
    assert pa.total_allocated_bytes() - before < dataset.data.nbytes / 10, views


def test_a_memory_mapped_table_stays_on_disk(tmp_path) -> None:
    """Views of a dataset loaded from disk are memory-mapped too."""
    table(100).save_to_disk(tmp_path)
    dataset = datasets.load_from_disk(tmp_path)
    rows = ArrowRows(dataset, "label")
    before = pa.total_allocated_bytes()
    for view in (rows.pool(ids(1, 5)), rows.labelled(ids(1, 5), {1: 0, 5: 2})):
        assert addresses(view, "text") == addresses(dataset, "text")
        assert view["text"][:] == ["text 1", "text 5"]
        assert view.cache_files == dataset.cache_files
    assert pa.total_allocated_bytes() - before < 10_000


def test_consecutive_rows_are_a_slice() -> None:
    """Consecutive rows need no index, so that they are read as fast as the dataset itself."""
    assert len(ArrowRows(table(), "label").pool(ids(2, 3, 4)).data) == 3


@pytest.mark.parametrize("form", ["torch", "numpy", None])
def test_format_stays(form) -> None:
    """Views have the dataset's format, and its choice of columns with label and row id."""
    dataset = table().add_column("size", list(range(6))).with_format(form, columns=["size"])
    rows = ArrowRows(dataset, "label")
    kind = {"torch": torch.Tensor, "numpy": np.integer, None: int}[form]
    pool, labelled = rows.pool(ids(0, 4)), rows.labelled(ids(0, 4), {0: 1, 4: 2})
    assert set(pool[1]) == {"size", ROW_ID}
    assert set(labelled[1]) == {"size", ROW_ID, "label"}
    assert all(isinstance(value, kind) for value in labelled[1].values())
    assert int(labelled[1]["label"]) == 2
    assert set(rows.raw(0)) == {"size"}


def test_output_all_columns_stays() -> None:
    """A format that shows the other columns as Python objects does so in views."""
    dataset = table().with_format("torch", columns=["label"], output_all_columns=True)
    labelled = ArrowRows(dataset, "label").labelled(ids(3), {3: 2})
    assert labelled[0]["text"] == "text 3"
    assert torch.equal(labelled[0]["label"], torch.tensor(2))


def test_a_new_column_shows_in_all_columns() -> None:
    """A dataset formatted in all its columns stays so: views hide nothing."""
    rows = ArrowRows(table().with_format("numpy"), "label")
    assert set(rows.labelled(ids(3), {3: 2})[0]) == {"text", "label", ROW_ID}


def test_transform_stays() -> None:
    """A dataset with a transform shows its views through it, and the pool's transform never sees a label."""
    seen = []

    def upper(batch):
        seen.append(set(batch))
        return {"upper": [text.upper() for text in batch["text"]]}

    rows = ArrowRows(table().with_transform(upper), "label")
    assert rows.pool(ids(2, 5))[1] == {"upper": "TEXT 5"}
    assert seen == [{"text", ROW_ID}]
    assert rows.labelled(ids(2, 5), {2: 0, 5: 0})[1] == {"upper": "TEXT 5"}
    assert seen[-1] == {"text", "label", ROW_ID}
    assert row_ids_of(rows.pool(ids(2, 5))).tolist() == [2, 5]


def test_pool_transform() -> None:
    """`transform` among the specifics shows the pool, and nothing else, through another function."""
    with_label = table().with_transform(lambda batch: {"y": batch["label"]})
    rows = ArrowRows(with_label, "label", specifics={"transform": lambda batch: {"x": batch["text"]}})
    assert rows.pool(ids(1))[0] == {"x": "text 1"}
    assert rows.labelled(ids(1), {1: 2})[0] == {"y": 2}
    with pytest.raises(ValueError, match=r"transform only, got \['batch_size'\]"):
        ArrowRows(table(), "label", specifics={"batch_size": 3})


def test_split_stays() -> None:
    """Views keep the name of the dataset's split."""
    dataset = datasets.Dataset.from_dict({"x": [1]}, split="train")
    assert ArrowRows(dataset, "label").pool(ids(0)).split == "train"


def test_fingerprint_names_the_contents() -> None:
    """Equal rows and labels have equal fingerprints, so that `map` finds its cache; others have others."""
    dataset = table()
    views = [
        ArrowRows(dataset, "label").labelled(ids(*row_ids), dict(zip(row_ids, labels, strict=True)))
        for row_ids, labels in [
            ((0, 3), (1, 2)),
            ((0, 3), (1, 2)),
            ((0, 4), (1, 2)),
            ((0, 3), (1, 1)),
            ((3, 0), (1, 2)),
        ]
    ]
    prints = [view._fingerprint for view in views]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert ArrowRows(dataset, "label").pool(ids(0, 3))._fingerprint not in prints


def test_fingerprint_names_what_labels_mean() -> None:
    """The same numbers in another column, or of other classes, are other contents: `map` would find the wrong ones."""
    dataset = datasets.Dataset.from_dict({"x": [1, 2, 3]})
    prints = set()
    for column, names in (("a", ["no", "yes"]), ("b", ["no", "yes"]), ("a", ["yes", "no"]), ("a", ["no", "yes", "?"])):
        rows = ArrowRows(dataset, column, label_feature=ClassLabel(names=names))
        prints.add(rows.labelled(ids(0, 2), {0: 1, 2: 0})._fingerprint)
    assert len(prints) == 4


def test_views_work_like_any_dataset(tmp_path) -> None:
    """A view can be mapped, filtered, concatenated, saved, loaded and written as Parquet."""
    view = ArrowRows(table().shuffle(seed=0), "label").labelled(ids(0, 2, 4), {0: 2, 2: 1, 4: 0})
    assert view.map(lambda row: {"twice": 2 * row["label"]})["twice"][:] == [4, 2, 0]
    assert view.filter(lambda row: row["label"] > 0)[ROW_ID][:] == [0, 2]
    assert datasets.concatenate_datasets([view, view])["label"][:] == [2, 1, 0, 2, 1, 0]
    view.save_to_disk(tmp_path / "saved")
    assert datasets.load_from_disk(tmp_path / "saved")["label"][:] == [2, 1, 0]
    view.to_parquet(tmp_path / "view.parquet")
    assert pa.parquet.read_table(tmp_path / "view.parquet")["label"].to_pylist() == [2, 1, 0]
    assert view.features["label"] == ANIMALS
    assert pickle.loads(pickle.dumps(view))["label"][:] == [2, 1, 0]


@pytest.mark.parametrize(
    ("feature", "given_labels", "stored"),
    [
        (ANIMALS, ["bee", 2, np.int64(0), torch.tensor(1)], [1, 2, 0, 1]),
        (Value("int64"), [3, np.int32(-1), torch.tensor(0), 7], [3, -1, 0, 7]),
        (Value("string"), ["a", "", "ü", "d"], ["a", "", "ü", "d"]),
        (Value("float32"), [0.5, 1, np.float64(2), torch.tensor(0.25)], [0.5, 1.0, 2.0, 0.25]),
        (Value("bool"), [True, False, np.True_, True], [True, False, True, True]),
        (datasets.List(Value("int64")), [[0, 1], [], np.array([1]), torch.tensor([1, 0])], [[0, 1], [], [1], [1, 0]]),
        (datasets.List(ANIMALS), [["ant"], ["cat", "bee"], [], [0]], [[0], [2, 1], [], [0]]),
        (datasets.List(Value("float32")), [[0.5], [1], [], [0]], [[0.5], [1.0], [], [0.0]]),
        ({"start": Value("int64")}, [{"start": i} for i in range(4)], [{"start": i} for i in range(4)]),
        (datasets.Array2D((1, 2), "int64"), [[[i, 0]] for i in range(4)], [[[i, 0]] for i in range(4)]),
    ],
    ids=["class", "int", "string", "float", "bool", "ints", "classes", "floats", "struct", "array"],
)
def test_labels_of_every_kind(feature, given_labels, stored) -> None:
    """Labels are stored as plain Python values of the feature, and the labelled view shows these."""
    rows = ArrowRows(datasets.Dataset.from_dict({"x": range(6)}), "label", feature)
    encoded = rows.encoded([5, 1, 3, 0], given_labels)
    assert encoded == stored
    assert [type(label) for label in encoded] == [type(label) for label in stored]
    view = rows.labelled(ids(0, 1, 3, 5), dict(zip([5, 1, 3, 0], encoded, strict=True)))
    assert view["label"][:] == [stored[3], stored[1], stored[2], stored[0]]
    assert view.features["label"] == feature
    # What the ledger stores is accepted again.
    assert rows.encoded([5, 1, 3, 0], encoded) == encoded


@pytest.mark.parametrize(
    ("feature", "label"),
    [
        (ANIMALS, 3),
        (ANIMALS, -1),
        (ANIMALS, "dog"),
        (ANIMALS, True),
        (ANIMALS, 1.0),
        (ANIMALS, [1]),
        (Value("int64"), 1.5),
        (Value("int64"), "1"),
        (Value("int8"), 1000),
        (Value("string"), 1),
        (Value("float32"), "x"),
        (datasets.List(Value("int64")), 1),
        (datasets.List(Value("int64")), [1.5]),
        (datasets.List(ANIMALS), ["dog"]),
        (datasets.List(ANIMALS), [3]),
    ],
    ids=str,
)
def test_a_label_of_another_kind_is_refused(feature, label) -> None:
    """A label that is not of the feature raises; nothing is rounded, cut or read as something else."""
    classes = feature in (ANIMALS, datasets.List(ANIMALS))
    with pytest.raises(ValueError, match="Unknown label" if classes else "The labels are"):
        ArrowRows(table(), "label", feature).encoded([0], [label])


def test_unknown_label_lists_the_classes() -> None:
    """The message about an unknown class says which there are."""
    with pytest.raises(ValueError, match=r"'dog'.*\{0: 'ant', 1: 'bee', 2: 'cat'\}"):
        ArrowRows(table(), "label").encoded([0], ["dog"])


def test_label_feature_reads_the_column_anew() -> None:
    """A label feature takes the place of the column's: names in a string column become classes."""
    dataset = datasets.Dataset.from_dict({"x": range(3), "label": ["cat", "ant", "dog"]})
    rows = ArrowRows(dataset, "label", ANIMALS)
    assert rows.encoded([0, 1], None) == [2, 0]
    assert rows.labelled(ids(0), {0: 2}).features["label"] == ANIMALS
    with pytest.raises(ValueError, match="Unknown label 'dog'"):
        rows.encoded([2], None)


@pytest.mark.parametrize(
    ("feature", "missing"), [(ANIMALS, -1), (ANIMALS, None), (Value("string"), None), (Value("float64"), float("nan"))]
)
def test_a_row_without_own_label(feature, missing) -> None:
    """A row whose label is missing is in the pool, is named when its own label is asked for, and can be given one."""
    present = "there" if feature.dtype == "string" else 1
    dataset = datasets.Dataset.from_dict(
        {"x": range(3), "label": [present, missing, present]},
        features=Features({"x": Value("int64"), "label": feature}),
    )
    rows = ArrowRows(dataset, "label")
    assert rows.pool(ids(0, 1, 2))[1] == {"x": 1, ROW_ID: 1}
    assert rows.encoded([0, 2], None) == [present, present]
    with pytest.raises(ValueError, match=r"Row 1 needs a label"):
        rows.encoded([0, 1, 2], None)
    assert rows.encoded([1], [present]) == [present]


def test_no_label_column() -> None:
    """Without a column there is no own label; without a feature besides, no label at all."""
    dataset = datasets.Dataset.from_dict({"x": range(3)})
    with pytest.raises(ValueError, match=r"no column 'label' to take them from, only \['x'\]"):
        ArrowRows(dataset, "label", ANIMALS).encoded([0], None)
    rows = ArrowRows(dataset, "label")
    with pytest.raises(ValueError, match=r"label_feature=.*ClassLabel"):
        rows.encoded([0], [1])
    assert len(rows.labelled(ids(), {})) == 0
    assert rows.pool(ids(1))[0] == {"x": 1, ROW_ID: 1}


def test_views_without_rows() -> None:
    """A view of no rows is an empty dataset with all columns."""
    rows = ArrowRows(table().shuffle(seed=0), "label")
    assert rows.pool(ids()).column_names == ["text", ROW_ID]
    assert rows.labelled(ids(), {}).features["label"] == ANIMALS
    assert len(rows.labelled(ids(), {})) == len(row_ids_of(rows.pool(ids()))) == 0


def test_row_id_column_is_taken() -> None:
    """A dataset with a column of the row ids' name is refused, such as a view of another one."""
    with pytest.raises(ValueError, match="__row_id__"):
        ArrowRows(ArrowRows(table(), "label").pool(ids(0)), "label")


# torch


@pytest.mark.parametrize("name", ["label", "labels"])
def test_torch_rows_that_are_dictionaries(name) -> None:
    """The label's key is dropped in the pool and holds the given label, or else the own one, in the labelled rows."""
    rows = TorchRows(Words(name))
    assert rows.pool(ids(1, 3))[1] == {"text": "w3"}
    labelled = rows.labelled(ids(1, 3), {1: None, 3: 7})
    assert [labelled[0], labelled[1]] == [{"text": "w1", name: 1}, {"text": "w3", name: 7}]
    assert rows.raw(3) == {"text": "w3", name: 1}


def test_torch_label_column() -> None:
    """With a label column given, only that key is the label."""
    rows = TorchRows(Words("target"), "target")
    assert rows.pool(ids(1))[0] == {"text": "w1"}
    assert rows.labelled(ids(1), {1: 5})[0] == {"text": "w1", "target": 5}


def test_torch_rows_without_label() -> None:
    """Rows that never had a label are given one."""
    assert TorchRows([{"x": 1}]).labelled(ids(0), {0: 4})[0] == {"x": 1, "label": 4}
    assert TorchRows(["x"]).labelled(ids(0), {0: 4})[0] == ("x", 4)
    assert TorchRows(["x"]).pool(ids(0))[0] == "x"


def test_torch_rows_that_are_tuples() -> None:
    """The last element of a tuple is the label."""
    rows = TorchRows(TensorDataset(torch.arange(4.0), torch.arange(4) % 2))
    assert rows.pool(ids(1, 3))[1] == (torch.tensor(3.0),)
    assert rows.labelled(ids(1, 3), {1: None, 3: 9})[0] == (torch.tensor(1.0), torch.tensor(1))
    assert rows.labelled(ids(1, 3), {1: None, 3: 9})[1] == (torch.tensor(3.0), 9)


@pytest.mark.parametrize(
    ("own", "label", "dtype"),
    [(torch.int64, 9, torch.int64), (torch.float32, 9, torch.float32), (torch.int64, 0.5, torch.float32)],
)
def test_given_labels_are_tensors_where_own_ones_are(own, label, dtype) -> None:
    """Beside labels that are tensors a given one is a tensor of their type, unless that would cut it."""
    for source in (TensorDataset(torch.zeros(2), torch.zeros(2, dtype=own)), [{"label": torch.zeros((), dtype=own)}]):
        row = TorchRows(source).labelled(ids(0), {0: label})[0]
        shown = row["label"] if isinstance(row, dict) else row[1]
        assert torch.equal(shown, torch.tensor(label, dtype=dtype))


def test_make_unlabelled() -> None:
    """A function of one's own hides the label."""
    rows = TorchRows([(0, "a"), (1, "b")], make_unlabelled=lambda row: (row[0], None))
    assert rows.pool(ids(1))[0] == (1, None)


def test_torch_pool_specifics() -> None:
    """The pool has its own attributes; the dataset and the labelled rows keep theirs."""
    words = Words()
    rows = TorchRows(words, specifics={"prefix": "pool-"})
    assert rows.pool(ids(1))[0]["text"] == "pool-1"
    assert rows.labelled(ids(1), {1: 0})[0]["text"] == rows.raw(1)["text"] == "w1"
    assert words.prefix == "w"
    with pytest.raises(ValueError, match="'tranform', which Words does not have"):
        TorchRows(words, specifics={"tranform": None})


def test_torch_labels_are_the_ledgers_own() -> None:
    """A given array is copied, a given scalar becomes a number: nobody can change a label afterwards."""
    mask, classes = torch.zeros(2), torch.tensor([1, 0])
    first, second = TorchRows([0, 1]).encoded([0, 1], [mask, classes[0]])
    mask += 1
    classes += 1
    assert torch.equal(first, torch.zeros(2))
    assert second == 1 and type(second) is int
    assert TorchRows([0, 1]).encoded([0, 1], None) == [None, None]


def test_what_is_read_of_labels_is_the_readers() -> None:
    """A collator that pads labels in place changes no label of the ledger, and nor does a change of `.labels`."""
    rows = [{"x": 0, "labels": [0]}, {"x": 1, "labels": [0]}]
    dataset = ActiveLearningDataset(rows)
    dataset.annotate([0, 1], [[1], [2, 2]])
    for row in dataset.labelled:
        row["labels"] += [-100]
    dataset.labels[1].append(7)
    bare = ActiveLearningDataset([0, 1])
    bare.annotate([1], [[3]])
    bare.labelled[0][1].append(4)
    assert [dataset.history(row_id)[0].label for row_id in (0, 1)] == [[1], [2, 2]]
    assert bare.history(1)[0].label == [3]


def test_views_read_only_what_is_asked_for() -> None:
    """A view of a torch dataset reads the rows asked for and no other."""
    words = Words(size=1000)
    view = TorchRows(words).pool(np.arange(0, 1000, 2))
    assert len(view) == 500 and words.asked == []
    assert view[3] == {"text": "w6"}
    assert words.asked == [6]


def test_a_view_ends() -> None:
    """A view can be iterated, and has no row beyond its last."""
    view = TorchRows(Words()).pool(ids(0, 4))
    assert [row["text"] for row in view] == ["w0", "w4"]
    with pytest.raises(IndexError):
        view[2]


def test_batched_reading() -> None:
    """Rows read together are the rows read one by one, through the dataset's own batched reading where it has one."""

    class Batched(Words):
        def __getitems__(self, positions: list[int]) -> list[dict]:
            self.batches = [*getattr(self, "batches", []), positions]
            return [self[i] for i in positions]

    for words in (Words(), Batched()):
        view = TorchRows(words).labelled(ids(0, 2, 4), {0: 5, 2: None, 4: 6})
        assert (
            view.__getitems__([2, 0]) == [view[2], view[0]] == [{"text": "w4", "label": 6}, {"text": "w0", "label": 5}]
        )
    assert words.batches == [[4, 0]]


def test_views_can_be_sent_to_workers() -> None:
    """Views pickle, as workers that are spawned need it."""
    rows = TorchRows(Words())
    view = pickle.loads(pickle.dumps(rows.labelled(ids(1, 3), {1: 5, 3: 6})))
    assert [row["label"] for row in view] == [5, 6]
    assert pickle.loads(pickle.dumps(rows.pool(ids(1, 3))))[1] == {"text": "w3"}


def test_views_load_in_batches() -> None:
    """A DataLoader makes batches of a view, also through workers."""
    rows = TorchRows(TensorDataset(torch.arange(6.0), torch.zeros(6)))
    view = rows.labelled(ids(1, 3, 5), {1: 1, 3: 2, 5: 3})
    for workers in (0, 1):
        batches = [y.tolist() for _, y in DataLoader(view, batch_size=2, num_workers=workers)]
        assert batches == [[1, 2], [3]]


# Row ids


@sorts
@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (lambda pool: pool, [1, 2, 4, 5]),
        (lambda pool: pool.select([3, 0]), [5, 1]),
        (lambda pool: pool.select(range(1, 3)), [2, 4]),
        (lambda pool: pool.select([3, 0]).select([1]), [1]),
        (lambda pool: pool.filter(lambda row: row["text"] > "text 2"), [4, 5]),
        (lambda pool: pool.sort("text", reverse=True), [5, 4, 2, 1]),
        (lambda pool: pool.map(lambda row: {"length": len(row["text"])}), [1, 2, 4, 5]),
        (lambda pool: pool.flatten_indices().select([2]), [4]),
        (lambda pool: pool.with_format("torch", columns=["text"]), [1, 2, 4, 5]),
        (lambda pool: pool.with_transform(lambda batch: {"x": batch["text"]}).select([1]), [2]),
        (lambda pool: datasets.concatenate_datasets([pool.select([3]), pool.select([0, 1])]), [5, 1, 2]),
        (lambda pool: Subset(pool, [2, 0]), [4, 1]),
        (lambda pool: Subset(Subset(pool, [2, 0, 1]), range(1, 3)), [1, 2]),
        (lambda pool: pool.select([]), []),
    ],
)
def test_row_ids_of_parts_of_an_arrow_pool(part, wanted) -> None:
    """Row ids stay with their rows through everything that `datasets` and torch do to a pool."""
    pool = ArrowRows(table().select([0, 1, 2, 3, 4, 5]), "label").pool(ids(1, 2, 4, 5))
    row_ids = row_ids_of(part(pool))
    assert row_ids.tolist() == wanted
    assert row_ids.dtype == np.int64


def test_row_ids_of_a_shuffled_pool() -> None:
    """The text beside each row id of a shuffled pool of a shuffled dataset is that of the row."""
    dataset = table(50).shuffle(seed=1)
    part = ArrowRows(dataset, "label").pool(np.arange(0, 50, 2)).shuffle(seed=2)
    assert part["text"][:] == [dataset[int(i)]["text"] for i in row_ids_of(part)]


def test_row_ids_of_parts_of_a_torch_pool() -> None:
    """Subsets of a torch pool map back to its rows."""
    pool = TorchRows(Words()).pool(ids(0, 2, 4))
    assert isinstance(pool, RowView)
    assert row_ids_of(pool).tolist() == [0, 2, 4]
    assert row_ids_of(Subset(pool, [2, 1])).tolist() == [4, 2]
    assert row_ids_of(Subset(Subset(pool, [2, 1]), torch.tensor([1]))).tolist() == [2]
    assert row_ids_of(Subset(pool, [])).tolist() == []


@pytest.mark.parametrize("view", [[1, 2], table(), Subset(table(), [0]), None], ids=lambda view: type(view).__name__)
def test_row_ids_of_something_else(view) -> None:
    """What never came out of a pool has no row ids."""
    with pytest.raises(TypeError, match=r"knows its row ids.*Take it from `dataset.pool`"):
        row_ids_of(view)
