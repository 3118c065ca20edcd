"""What a project is: its rows, classes and model, as `project.json` says."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from baal_hf.ledger import consensus_rule
from baal_hf.project.whole_file import put

FILE = "project.json"
VERSION = 1
"""Of the file; a newer one is refused."""

TAKEN = ("row_id", "score", "heuristic", "model", "label", "labels", "votes", "__row_id__")
"""Columns of batches and exports, which the column of the texts cannot be called."""


@dataclass(frozen=True)
class Settings:
    """What does not change while a project lasts.

    Attributes:
        data: File or saved dataset of the rows to label; relative to the project's folder, or absolute.
        text_column: Its column of texts.
        classes: Names.
        model: Hub id, or folder relative to the project's or absolute.
        label_column: Column of known classes, if there is one; for simulations and test rows.
        test: File or saved dataset of the rows to test on, with texts and classes; None means no tests.
        max_length: Tokens of a text that are read.
        epochs: Of each training.
        learning_rate: Of each training, at its start.
        batch_size: Of training.
        seed: Of training, and of what is drawn at random.
        consensus: Which label of a row counts that several annotators labelled, "last" or "majority".

    Raises:
        ValueError: A name is missing, taken or there twice, or a number is too small.
    """

    data: str
    text_column: str
    classes: tuple[str, ...]
    model: str
    label_column: str | None = None
    test: str | None = None
    max_length: int = 128
    epochs: float = 20
    learning_rate: float = 5e-5
    batch_size: int = 8
    seed: int = 0
    consensus: str = "last"

    def __post_init__(self) -> None:
        names = [name for name in self.classes if name and name == name.strip()]
        if len(set(names)) < max(2, len(self.classes)):
            raise ValueError(f"A project needs two or more classes, each with a name of its own, got {self.classes}.")
        if self.text_column in TAKEN:
            raise ValueError(f"A project needs the column name {self.text_column!r} for itself: rename that column.")
        for name in ("max_length", "epochs", "learning_rate", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"A project needs {name} > 0, got {getattr(self, name)}.")
        consensus_rule(self.consensus)

    def differences(self, other: Settings) -> list[str]:
        """What is different in the other, in words."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return [f"{name} is {ours!r}, not {theirs!r}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def written(folder: Path, settings: Settings) -> None:
    """Write the project's file.

    Raises:
        OSError: It cannot be written.
    """
    text = json.dumps({"version": VERSION, **asdict(settings)}, indent=2, ensure_ascii=False)
    put(folder / FILE, (text + "\n").encode())


def read(folder: Path) -> Settings:
    """The settings of the project in a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is none of a project, or of a newer version.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no project in {folder}: make one with baal-hf init, or name its folder with --project."
        ) from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} cannot be read: {error}.") from error
    version = found.pop("version", None) if isinstance(found, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} is not the file of a project: it has no version.")
    if version > VERSION:
        raise ValueError(f"{path} has version {version}, this baal_hf knows up to {VERSION}: update it.")
    try:
        return Settings(**{**found, "classes": tuple(found.get("classes", ()))})
    except TypeError as error:
        raise ValueError(f"{path} is not the file of a project: {error}.") from error


def stored_path(path: str | Path, folder: Path) -> str:
    """How a project names a path: from its own folder on, if it lies there or beside it, so that both can move."""
    whole, home = Path(path).resolve(), folder.resolve()
    if whole.is_relative_to(home.parent):
        return Path(os.path.relpath(whole, home)).as_posix()
    return str(whole)


def path_of(stored: str, folder: Path) -> Path:
    """Where something is that a project names; the folder itself need not be there yet."""
    return Path(os.path.normpath(folder.resolve() / stored))
