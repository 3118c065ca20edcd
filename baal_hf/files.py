"""`FileDataset`: rows that are image files, with labels where there are some."""

from __future__ import annotations

import operator
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

File = str | os.PathLike[str]

_NAMED = 5  # missing files that an error lists


class FileDataset(Dataset[Any]):
    """Image files as a torch dataset, for `ActiveLearningDataset`: each row is an image, or an image and its label.

    While no file has a label at all, a row is the image; then it is `(image, label)`, the label of a file without one
    being None. Nothing is read before it is asked for.

    Transforms may be random and use the global generators of Python, NumPy and torch (its CPU's), as most libraries of
    transforms do. These are seeded at each reading, alike for `transform` and `target_transform`, so that an image and
    its mask are cropped alike, and are as before afterwards. Threads that draw from them meanwhile would see this: load
    rows in processes, as a DataLoader does.

    Args:
        files: Paths of images.
        lbls: Label of each file, None for one that has none; None means that no file has one.
        transform: Image -> what the model takes. None shows the image as it is loaded.
        target_transform: Label -> what the criterion takes; not called for labels that are None.
        image_load_fn: Path -> image; by default `rgb_image`: Pillow's, upright and as RGB of 8 bits.
        seed: None, as in Baal, draws another randomness at each reading, whatever the global seeds are: augmentations
            differ in each epoch, and cannot be repeated. With a number a row's randomness is the same whenever it is
            read: predictions through a random transform repeat, and so do augmentations in each epoch, unless one sets
            `seed` to another number before it.

    Attributes:
        files: The paths.
        lbls: The labels, or None.
        transform: As given.
        target_transform: As given.
        seed: As given.

    Raises:
        FileNotFoundError: Some files do not exist; the first of them are named.
        ValueError: No files, another number of labels than files, or a negative seed.
        TypeError: `files` is one path.
    """

    def __init__(
        self,
        files: Sequence[File],
        lbls: Sequence[Any] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        image_load_fn: Callable[[str], Any] | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(files, str | bytes | os.PathLike):
            raise TypeError(f"FileDataset needs a list of files, got one path: {files!r}.")
        self.files = [os.fsdecode(file) for file in files]
        if not self.files:
            raise ValueError("FileDataset needs at least one file, got none.")
        if lbls is not None and len(lbls) != len(self.files):
            raise ValueError(f"FileDataset needs a label for each of {len(self.files)} files, got {len(lbls)}.")
        if seed is not None and operator.index(seed) < 0:
            raise ValueError(f"FileDataset needs a seed >= 0, or None, got {seed}.")
        missing = [file for file in self.files if not os.path.isfile(file)]
        if missing:
            more = ", ..." if len(missing) > _NAMED else ""
            raise FileNotFoundError(
                f"FileDataset needs files that exist, and {len(missing)} of {len(self.files)} do not: "
                f"{', '.join(missing[:_NAMED])}{more}"
            )
        self.lbls = None if lbls is None else list(lbls)
        self.transform = transform
        self.target_transform = target_transform
        self.image_load_fn = image_load_fn or rgb_image
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, idx: int) -> Any:
        place = self._place(idx)
        image = self.image_load_fn(self.files[place])
        label = None if self.lbls is None else self.lbls[place]
        entropy = None if self.seed is None else [self.seed, place]
        words = np.random.SeedSequence(entropy).generate_state(4)  # uint32 [4]
        if self.transform is not None:
            with _seeded(words):
                image = self.transform(image)
        if self.target_transform is not None and label is not None:
            with _seeded(words):
                label = self.target_transform(label)
        return image if self.lbls is None else (image, label)

    def label(self, idx: int, lbl: Any) -> None:
        """Give a file a label, in place of one that it has; an `ActiveLearningDataset` keeps its own in its ledger.

        Args:
            idx: Position of the file.
            lbl: The label, before `target_transform`.

        Raises:
            IndexError: There is no such file.
        """
        place = self._place(idx)
        if self.lbls is None:
            self.lbls = [None] * len(self.files)
        self.lbls[place] = lbl

    def has_label(self, idx: int) -> bool:
        """Whether a file has a label here; its image is not read.

        Args:
            idx: Position of the file.

        Raises:
            IndexError: There is no such file.
        """
        place = self._place(idx)
        return self.lbls is not None and self.lbls[place] is not None

    def _place(self, idx: int) -> int:
        """0 .. N-1, also for an index from the end."""
        place = operator.index(idx)
        if not -len(self.files) <= place < len(self.files):
            raise IndexError(f"FileDataset has {len(self.files)} files, and none at {place}.")
        return place % len(self.files)


def rgb_image(path: str) -> Any:
    """The image of a file as Pillow reads it: upright, where the camera says how it was held, and in RGB of 8 bits.

    Of 16 bits the upper 8 stay, in grey as in colour: 65,535 becomes 255.

    Raises:
        OSError: The file cannot be read as an image.
        ValueError: Its grey values have 32 bits, or are floating-point numbers, and no range that is known.
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("FileDataset reads images with Pillow: pip install pillow, or image_load_fn=...") from error

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # convert would make 255 of all values above
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode not in ("I", "F"):
                return image.convert("RGB")
            what = {"I": "32 bits", "F": "floating-point numbers"}[image.mode]
    except (OSError, SyntaxError) as error:  # SyntaxError: what Pillow says of a broken PNG
        raise OSError(f"{path} cannot be read as an image: {error}") from error
    raise ValueError(f"{path} has grey values of {what}, of unknown range: scale them in image_load_fn=...")


@contextmanager
def _seeded(words: np.ndarray) -> Iterator[None]:
    """Python's, NumPy's and torch's CPU generator begin at this seed, and are as before afterwards."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.default_generator
    cpu = generator.get_state()
    try:
        random.seed(words.tobytes())
        np.random.seed(words)
        # Not torch.manual_seed, which seeds the GPUs' generators, too.
        generator.manual_seed(int(words[0]))
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        generator.set_state(cpu)
