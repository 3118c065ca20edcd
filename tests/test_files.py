"""Rows that are images: files of a `FileDataset`, and columns of type `datasets.Image`, through the line."""

import copy
import random
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import nn
from torch.utils.data import DataLoader

from baal_hf import BALD, ActiveLearningDataset, ActiveLearningLoop, ModelWrapper
from baal_hf.files import FileDataset

N = 12


def pixels_of(image: Image.Image) -> torch.Tensor:
    """An image as the model takes it, [3, 8, 8] in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def noisy(image: Image.Image) -> torch.Tensor:
    """An image with noise from each global generator, as different libraries of transforms would add it."""
    noise = torch.randn(3, 8, 8) + np.random.normal() + random.gauss(0, 1)
    return pixels_of(image) + noise.float()


def broken(image: Image.Image) -> torch.Tensor:
    noisy(image)
    raise RuntimeError("a transform that fails half way")


def states() -> list[object]:
    """Of all global generators, to compare."""
    name, key, *rest = np.random.get_state()
    return [random.getstate(), name, key.tolist(), rest, torch.get_rng_state().tolist()]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """12 images of 8x8, each of one grey; the class is whether it is light."""
    paths = [tmp_path / f"{i:02d}.png" for i in range(N)]
    for i, path in enumerate(paths):
        Image.new("L", (8, 8), 20 * i).save(path)
    return paths


@pytest.fixture
def lbls() -> list[int]:
    return [int(i >= N // 2) for i in range(N)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))


# Rows


def test_row_is_image_and_label(files: list[Path], lbls: list[int]) -> None:
    """A row is the file's image in RGB and its label, each through its own transform."""
    image, label = FileDataset(files, lbls)[3]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (8, 8), (60, 60, 60), 0)
    dataset = FileDataset(files, lbls, pixels_of, lambda label: torch.tensor(10 + label))
    inputs, labels = next(iter(DataLoader(dataset, batch_size=N)))
    assert torch.equal(inputs[:, 0, 0, 0], torch.arange(N) * 20 / 255) and labels.tolist() == [10] * 6 + [11] * 6


def test_row_without_labels_is_the_image(files: list[Path]) -> None:
    """While no file has a label, a row is the image, so that files can be predicted as they are."""
    dataset = FileDataset(files, transform=pixels_of)
    assert len(dataset) == N and next(iter(DataLoader(dataset, batch_size=5))).shape == (5, 3, 8, 8)
    probs = ModelWrapper(net(), nn.CrossEntropyLoss()).predict_on_dataset(dataset, iterations=3, workers=0)
    assert probs.shape == (N, 2, 3)


def test_label_labels_a_file(files: list[Path]) -> None:
    """`label` gives one file a label; the others then have None, which no transform is asked about."""
    dataset = FileDataset(files, target_transform=lambda label: label + 1)
    dataset.label(2, 4)
    dataset.label(-1, 7)
    assert [label for _, label in dataset] == [None, None, 5, *[None] * 8, 8]
    dataset.label(2, 0)
    assert dataset[2][1] == 1


def test_has_label_reads_no_image(files: list[Path]) -> None:
    """Whether a file has a label is told without its image."""
    dataset = FileDataset(files, image_load_fn=broken)
    assert not any(dataset.has_label(i) for i in range(N))
    dataset.label(2, 0)
    assert [dataset.has_label(i) for i in range(-N, N)] == ([False] * 2 + [True] + [False] * 9) * 2
    with pytest.raises(IndexError, match="none at 12"):
        dataset.has_label(N)


def test_labels_of_the_caller_stay(files: list[Path], lbls: list[int]) -> None:
    """Labelling a file does not change the list that the caller gave."""
    before = list(lbls)
    FileDataset(files, lbls).label(0, 9)
    assert lbls == before


def test_own_loader_reads_the_files(tmp_path: Path) -> None:
    """`image_load_fn` is given the path as it was given, and reads what Pillow does not."""
    np.save(tmp_path / "a.npy", np.arange(6))
    dataset = FileDataset([str(tmp_path / "a.npy")], [1], image_load_fn=np.load)
    assert dataset[0][0].tolist() == list(range(6)) and dataset.files == [str(tmp_path / "a.npy")]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff"])
def test_photographs_are_upright(tmp_path: Path, name: str) -> None:
    """An image that the camera was turned for is shown as a person sees it, as `datasets.Image` does."""
    image, exif = Image.new("RGB", (8, 4)), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / name, exif=exif)
    column = datasets.Dataset.from_dict({"image": [str(tmp_path / name)]}).cast_column("image", datasets.Image())
    assert FileDataset([tmp_path / name])[0].size == column[0]["image"].size == (4, 8)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "big-endian.tiff"])
def test_grey_of_16_bits_keeps_its_upper_8(tmp_path: Path, name: str) -> None:
    """Grey of 16 bits is read from black to white, each value by its upper 8 bits."""
    values = np.linspace(0, 2**16 - 1, 32).astype(np.uint16).reshape(4, 8)
    Image.fromarray(values.astype(">u2" if name.startswith("big") else "<u2")).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode.startswith("I;16")
    image = FileDataset([tmp_path / name])[0]
    assert image.mode == "RGB" and image.getextrema()[0] == (0, 255)
    np.testing.assert_array_equal(np.asarray(image), np.stack([values // 256] * 3, -1))


def test_turned_grey_of_16_bits_is_upright(tmp_path: Path) -> None:
    """Grey of 16 bits that the camera was turned for is turned back, as other images are."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    values = np.arange(32, dtype=np.uint16).reshape(4, 8) * 256
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    shown = np.asarray(FileDataset([tmp_path / "a.png"])[0])
    np.testing.assert_array_equal(shown[..., 0], np.rot90(values // 256, -1))


@pytest.mark.parametrize(("kind", "what"), [(np.int32, "32 bits"), (np.float32, "floating-point numbers")])
def test_grey_of_unknown_range_is_refused(tmp_path: Path, kind: type, what: str) -> None:
    """Grey whose white is not known is refused by the file's name, with what to do."""
    Image.fromarray(np.arange(12, dtype=kind).reshape(3, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=rf"a\.tiff has grey values of {what}, .* scale them in image_load_fn="):
        FileDataset([tmp_path / "a.tiff"])[0]


# Randomness


@pytest.mark.parametrize("seed", [0, 7, None])
def test_global_generators_are_as_before(files: list[Path], lbls: list[int], seed: int | None) -> None:
    """Reading rows leaves the generators of Python, NumPy and torch where they were, also if a transform fails."""
    before = states()
    dataset = FileDataset(files, lbls, noisy, lambda label: label + random.random(), seed=seed)
    list(dataset)
    assert states() == before
    with pytest.raises(RuntimeError, match="half way"):
        FileDataset(files, lbls, broken, seed=seed)[0]
    assert states() == before


def test_row_has_its_own_randomness(files: list[Path]) -> None:
    """With a seed a row is the same in whatever order, process or global state it is read; rows and seeds differ."""
    black = [files[0]] * 4
    dataset = FileDataset(black, transform=noisy, seed=1)
    rows = [dataset[i] for i in range(4)]
    torch.manual_seed(99)
    random.seed(99)
    assert all(torch.equal(dataset[i], rows[i]) for i in (3, 1, 0, 2))
    assert torch.equal(dataset[-1], rows[3])
    loaded = torch.cat(list(DataLoader(dataset, batch_size=1, num_workers=2)))
    assert torch.equal(loaded, torch.stack(rows))
    values = torch.stack([*rows, FileDataset(black, transform=noisy, seed=2)[0]])[:, 0, 0, 0]
    assert len(set(values.tolist())) == 5
    dataset.seed = 2
    assert torch.equal(dataset[0], FileDataset(black, transform=noisy, seed=2)[0])


def test_every_generator_is_seeded(files: list[Path]) -> None:
    """Each of the three global generators alone gives a row the same numbers at each reading."""
    for draw in (random.random, np.random.random, lambda: float(torch.rand(()))):
        dataset = FileDataset(files, transform=lambda image, draw=draw: draw(), seed=0)
        first = [dataset[i] for i in range(N)]
        assert [dataset[i] for i in range(N)] == first and len(set(first)) == N


def test_without_seed_each_reading_differs(files: list[Path]) -> None:
    """Without a seed each reading draws another randomness, whatever the global seeds are, as Baal's users expect."""
    dataset, seen = FileDataset(files, transform=noisy), []
    for _ in range(3):
        torch.manual_seed(0)
        seen.append(float(dataset[0][0, 0, 0]))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("seed", [0, None])
def test_image_and_mask_share_randomness(files: list[Path], seed: int | None) -> None:
    """`transform` and `target_transform` of a row draw the same numbers, so that a mask is cropped as its image."""

    def corner(_: object) -> tuple[int, float, float]:
        return random.randrange(1000), np.random.random(), float(torch.rand(()))

    dataset = FileDataset(files, [0] * N, corner, corner, seed=seed)
    drawn = list(dataset)
    assert all(image == mask for image, mask in drawn) and len({image for image, _ in drawn}) == N


# Bad input


def test_missing_files_are_named(files: list[Path], tmp_path: Path) -> None:
    """Files that do not exist are refused when the dataset is made, with their number and the names of the first."""
    gone = [tmp_path / f"gone{i}.png" for i in range(7)]
    with pytest.raises(FileNotFoundError) as caught:
        FileDataset([*files, *gone])
    text = str(caught.value)
    assert text.startswith(f"FileDataset needs files that exist, and 7 of {N + 7} do not: {gone[0]}, {gone[1]}, ")
    assert text.endswith(f"{gone[4]}, ...") and "gone5" not in text
    with pytest.raises(FileNotFoundError, match=r"1 of 2 do not: .*gone0\.png$"):
        FileDataset([files[0], gone[0]])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 do not: .*gone0\.png$"):
        FileDataset([bytes(gone[0])])
    with pytest.raises(FileNotFoundError, match="1 of 1 do not"):
        FileDataset([tmp_path])  # a folder is no file


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((["{0}"], [1, 2]), ValueError, "a label for each of 1 files, got 2"),
        (([],), ValueError, "at least one file, got none"),
        (("{0}",), TypeError, "a list of files, got one path"),
        ((["{0}"], None, None, None, None, -1), ValueError, "a seed >= 0, or None, got -1"),
    ],
)
def test_arguments_that_do_not_fit(files: list[Path], arguments: tuple, kind: type, message: str) -> None:
    """No files, a path in place of a list, other numbers of labels and negative seeds are refused."""
    first, *rest = arguments
    given = [name.format(files[0]) for name in first] if isinstance(first, list) else first.format(files[0])
    with pytest.raises(kind, match=message):
        FileDataset(given, *rest)


def test_positions_outside_are_refused(files: list[Path]) -> None:
    """A position that no file has is an IndexError, for reading and labelling, and labels nothing."""
    dataset = FileDataset(files)
    for idx in (N, -N - 1):
        with pytest.raises(IndexError, match=f"has 12 files, and none at {idx}"):
            dataset[idx]
        with pytest.raises(IndexError, match="none at"):
            dataset.label(idx, 1)
    assert dataset.lbls is None


def test_file_that_is_no_image_is_named(files: list[Path], tmp_path: Path) -> None:
    """A file that is no image, or half of one, is named by the error."""
    (tmp_path / "text.png").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for name in ("text.png", "half.png"):
        with pytest.raises(OSError, match=rf"{name} cannot be read as an image"):
            FileDataset([tmp_path / name])[0]


def test_reading_without_pillow_says_what_to_do(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow the error says how to install it, or to load images otherwise."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow, or image_load_fn="):
        FileDataset(files)[0]


# Through the line


@pytest.mark.parametrize("labelled", [True, False], ids=["simulated", "unlabelled"])
def test_files_are_a_pool(files: list[Path], lbls: list[int], labelled: bool) -> None:
    """Files with or without labels are labelled in a loop: predicted, ranked, answered, trained on."""
    dataset = ActiveLearningDataset(FileDataset(files, lbls if labelled else None, pixels_of), random_state=0)
    wrapper = ModelWrapper(net(), nn.CrossEntropyLoss())
    loop = ActiveLearningLoop(
        dataset, wrapper.predict_on_dataset, BALD(), query_size=3, iterations=4, workers=0, verbose=False
    )
    for size in (3, 6):
        row_ids = loop.query(dataset.pool)
        dataset.annotate(row_ids, None if labelled else [lbls[i] for i in row_ids])
        assert (len(dataset), len(dataset.pool)) == (size, N - size)
        optimizer = torch.optim.SGD(wrapper.model.parameters(), 0.1)
        assert np.isfinite(wrapper.train_on_dataset(dataset, optimizer, 4, workers=0)).all()
    assert [dataset[i][1] for i in range(6)] == [lbls[i] for i in dataset.labelled_ids]
    row = dataset.pool[0]
    assert torch.is_tensor(row) or len(row) == 1  # no label to be seen


@pytest.mark.parametrize("some", [True, False], ids=["some labels", "no labels"])
def test_files_without_a_label_are_not_labelled_with_it(files: list[Path], lbls: list[int], some: bool) -> None:
    """Files without a label cannot be labelled with their own, nor those beside them; with one given they can."""
    dataset = ActiveLearningDataset(FileDataset(files, [*lbls[:-1], None] if some else None, transform=pixels_of))
    with pytest.raises(ValueError, match=r"Row \d+ needs a label: its own in the dataset is None"):
        dataset.label_randomly(N)
    assert len(dataset) == 0
    dataset.annotate([N - 1], [1])
    assert dataset[0][1] == 1
    wrapper = ModelWrapper(net(), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="need targets"):
        rows = FileDataset(files, transform=pixels_of)
        wrapper.train_on_dataset(rows, torch.optim.SGD(wrapper.model.parameters(), 0.1), workers=0)


def test_files_with_some_labels_are_predicted_as_without(files: list[Path], lbls: list[int]) -> None:
    """Predicting looks at no target: files of which some have a label are predicted as if none had one."""
    wrapper = ModelWrapper(net(), nn.CrossEntropyLoss())
    some, none = (FileDataset(files, given, pixels_of) for given in ([*lbls[:-1], None], None))
    for workers in (0, 1):
        probs = [wrapper.predict_on_dataset(rows, 5, 3, workers=workers, verbose=False) for rows in (some, none)]
        np.testing.assert_array_equal(*probs)


def test_pool_may_have_another_transform(files: list[Path], lbls: list[int]) -> None:
    """`pool_specifics` shows the pool without the noise that rows are trained with."""
    rows = FileDataset(files, lbls, noisy, seed=3)
    dataset = ActiveLearningDataset(rows, pool_specifics={"transform": pixels_of})
    dataset.annotate([4])
    assert torch.equal(dataset.pool[0][0], pixels_of(Image.new("RGB", (8, 8), (0, 0, 0))))
    assert torch.equal(dataset[0][0], rows[4][0]) and not torch.equal(dataset[0][0], dataset.pool[0][0])


def test_copies_are_apart(files: list[Path], lbls: list[int]) -> None:
    """A deep copy shows the same rows and has labels of its own."""
    dataset = FileDataset(files, lbls, pixels_of)
    twin = copy.deepcopy(dataset)
    twin.label(0, 5)
    assert dataset[0][1] == 0 and twin[0][1] == 5 and torch.equal(twin[1][0], dataset[1][0])


@pytest.fixture
def table(files: list[Path], lbls: list[int]) -> datasets.Dataset:
    """The images as a column of type `datasets.Image`."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["dark", "light"]))
    return datasets.Dataset.from_dict({"image": [str(file) for file in files], "label": lbls}, features=features)


def as_inputs(rows: dict[str, list]) -> dict[str, list]:
    """Rows of the table as what a model takes, with labels where they are shown."""
    shown = {"input": [pixels_of(image.convert("RGB")) for image in rows["image"]]}
    return shown | ({"label": rows["label"]} if "label" in rows else {})


def test_image_column_is_a_pool(table: datasets.Dataset) -> None:
    """A table of images shows its images in the pool without labels, and labelled rows with what was answered."""
    dataset = ActiveLearningDataset(table)
    dataset.annotate([5, 2], ["light", "dark"])
    assert "label" not in dataset.pool.column_names and len(dataset.pool) == N - 2
    assert dataset.pool.features["image"] == datasets.Image()
    assert [dataset.pool[i]["image"].getpixel((0, 0)) for i in range(4)] == [0, 20, 60, 80]
    rows = [dataset[i] for i in range(2)]
    assert [(row["image"].getpixel((0, 0)), row["label"]) for row in rows] == [(40, 0), (100, 1)]
    exported = dataset.to_dataset()
    assert exported[1]["image"].getpixel((0, 0)) == 100 and exported[1]["label"] == 1


def test_image_column_goes_through_the_loop(table: datasets.Dataset) -> None:
    """Images of a table are decoded, predicted, labelled and trained on, the same as tuples of the same rows."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.net(input)

    dataset = ActiveLearningDataset(table.with_transform(as_inputs))
    wrapper = ModelWrapper(Named(), nn.CrossEntropyLoss())
    arguments = {"iterations": 4, "workers": 0, "verbose": False}
    probs = wrapper.predict_on_dataset(dataset.pool, **arguments)
    tensors = [(pixels_of(row["image"].convert("RGB")), 0) for row in table]
    assert probs.shape == (N, 2, 4)
    np.testing.assert_allclose(probs, wrapper.predict_on_dataset(tensors, **arguments), atol=1e-6)
    loop = ActiveLearningLoop(dataset, wrapper.predict_on_dataset, BALD(), query_size=4, **arguments)
    assert loop.step() and len(dataset) == 4
    optimizer = torch.optim.SGD(wrapper.model.parameters(), 0.1)
    assert np.isfinite(wrapper.train_on_dataset(dataset, optimizer, 4, workers=0)).all()
    assert dataset.labels == [table["label"][i] for i in dataset.labelled_ids]


def test_image_labels_come_back(table: datasets.Dataset, tmp_path: Path) -> None:
    """Labels of images survive a ledger in a file, and are refused for other images."""
    dataset = ActiveLearningDataset(table, ledger=tmp_path / "labels.sqlite")
    dataset.annotate([1, 3])
    again = ActiveLearningDataset(table, ledger=tmp_path / "labels.sqlite")
    assert again.labelled_ids.tolist() == [1, 3] and again.labels == [0, 0]
    with pytest.raises(ValueError):
        ActiveLearningDataset(table.select(range(N - 1, -1, -1)), ledger=tmp_path / "labels.sqlite")
