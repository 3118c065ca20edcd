"""The folder of an experiment: each part of a round is a file that is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from baal_hf.loop import Query


class ExperimentFolder(AbstractContextManager["ExperimentFolder"]):
    """What was done in the rounds of one experiment.

    `settings.json` says what the experiment is; `weights-0000.safetensors` are the first weights; of round 3,
    `weights-0003.safetensors` is the trained model, `round-0003.json` what was measured and `query-0003.npz` the rows
    to label next. `records.jsonl` has the records of all rounds for reading.

    Args:
        folder: Made if it is not there.
        is_writing: Whether this process writes; with several, one does.

    Raises:
        RuntimeError: Another experiment is running in this folder.
    """

    def __init__(self, folder: Path, is_writing: bool = True) -> None:
        self.folder = folder
        self._is_writing = is_writing
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock")
        if is_writing:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RuntimeError(
                    f"Another experiment is running in {folder}: wait for it, or take another."
                ) from None

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the experiment that was begun here, which are those given if none was.

        Raises:
            ValueError: Some of those given are others; the message names them. What is labelled is not looked at.
        """
        path = self.folder / "settings.json"
        if not path.exists():
            self._write(path, lambda part: part.write_text(json.dumps(given, indent=2), encoding="utf-8"))
            return dict(given)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = json.loads(json.dumps(given))
        compared = {**found, **given}.keys() - {
            "first_step",
            "initial",
        }  # of a ledger that went on these are later ones
        names = sorted(name for name in compared if found.get(name) != given.get(name))
        if names:
            differences = ", ".join(f"{name}: {found.get(name)!r}, not {given.get(name)!r}" for name in names)
            raise ValueError(f"The experiment in {self.folder} was begun with {differences}. Take another folder.")
        return found

    def weights(self, number: int) -> Path:
        """Where the weights after a round are; 0 means before the first."""
        return self.folder / f"weights-{number:04d}.safetensors"

    def save_weights(self, number: int, save: Callable[[Path], None]) -> None:
        """Keep the weights after a round, in place of those before."""
        self._write(self.weights(number), save)
        if number > 1 and self._is_writing:
            self.weights(number - 1).unlink(missing_ok=True)

    def round(self, number: int) -> dict[str, Any] | None:
        """What was measured in a round; None if it was not yet."""
        path = self.folder / f"round-{number:04d}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_round(self, number: int, measured: Mapping[str, Any]) -> None:
        """Keep what was measured in a round."""
        text = json.dumps(measured)
        path = self.folder / f"round-{number:04d}.json"
        self._write(path, lambda part: part.write_text(text, encoding="utf-8"))
        self.write_records()

    def write_records(self) -> None:
        """Have the records of all rounds in one file."""
        lines, number = "", 1
        while (measured := self.round(number)) is not None:
            lines, number = lines + json.dumps(measured["record"]) + "\n", number + 1
        self._write(self.folder / "records.jsonl", lambda part: part.write_text(lines, encoding="utf-8"))

    def query(self, number: int) -> Query | None:
        """The rows to label after a round; None if they were not chosen yet."""
        path = self.folder / f"query-{number:04d}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return Query(arrays["row_ids"], arrays["scores"], arrays["pool_scores"])

    def save_query(self, number: int, query: Query) -> None:
        """Keep the rows to label after a round."""

        def save(part: Path) -> None:
            with open(part, "wb") as file:  # to a name, savez would add a suffix
                np.savez(file, row_ids=query.row_ids, scores=query.scores, pool_scores=query.pool_scores)

        self._write(self.folder / f"query-{number:04d}.npz", save)

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Write under another name, and give the file its own once it is on the disk."""
        if not self._is_writing:
            return
        part = path.with_name(path.name + ".part")
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
