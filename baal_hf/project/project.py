"""`Project`: a folder with settings, a ledger of labels and trained models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.ledger import LabelLedger
from baal_hf.project import settings as settings_file
from baal_hf.project import source
from baal_hf.project.batch_files import rows as batch_rows
from baal_hf.project.importing import Imported, import_labels
from baal_hf.project.settings import Settings
from baal_hf.project.trained import TrainedModel, trained_models


class Project:
    """The project in a folder.

    Args:
        folder: Where `project.json` is.

    Attributes:
        folder: As given.
        settings: Of the project.

    Raises:
        FileNotFoundError: There is no project.
        ValueError: Its file cannot be understood.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings: Settings = settings_file.read(self.folder)

    @classmethod
    def create(cls, folder: str | Path, settings: Settings) -> tuple[Project, bool]:
        """Make a project, or find the same one there.

        Returns:
            The project, and whether it is new.

        Raises:
            ValueError: Another project is there, as the message says; the data do not fit the settings.
            OSError: A file cannot be read or written.
        """
        folder = Path(folder)
        is_new = not (folder / settings_file.FILE).exists()
        if not is_new and (differences := settings_file.read(folder).differences(settings)):
            raise ValueError(f"{folder} is another project: {', '.join(differences)}. Take another folder.")
        _check(folder, settings)
        if is_new:
            folder.mkdir(parents=True, exist_ok=True)
            settings_file.written(folder, settings)
        project = cls(folder)
        project.dataset()  # makes the ledger, or sees that it belongs to these rows
        return project, is_new

    def path(self, stored: str) -> Path:
        """Where something is that the settings name."""
        return settings_file.path_of(stored, self.folder)

    def dataset(self) -> ActiveLearningDataset:
        """The rows and what the ledger says of them, as of now; known classes are not looked at.

        Raises:
            ValueError: The rows are not those that the ledger belongs to, or cannot be read.
            OSError: A file cannot be opened.
        """
        path = self.path(self.settings.data)
        return ActiveLearningDataset(
            source.texts(source.rows_of(path), path, self.settings.text_column),
            label_column="label",
            label_feature=ClassLabel(names=list(self.settings.classes)),
            ledger=LabelLedger(self.folder / "labels.db"),
            consensus=self.settings.consensus,
            random_state=self.settings.seed,
        )

    def known_rows(self) -> Dataset:
        """Texts and classes of the rows whose class is known, for a simulation.

        Raises:
            ValueError: None is known.
        """
        if self.settings.label_column is None:
            raise ValueError("A simulation needs rows with known classes: make a project with --label-column.")
        path = self.path(self.settings.data)
        rows = source.with_classes(
            source.rows_of(path), path, self.settings.text_column, self.settings.label_column, self.settings.classes
        )
        known = [row_id for row_id, label in enumerate(rows["label"]) if label >= 0]
        if not known:
            raise ValueError(f"A simulation needs rows with known classes, {path} has none.")
        return rows if len(known) == len(rows) else rows.select(known)

    def test_rows(self, classes: Sequence[str] | None = None) -> Dataset | None:
        """Texts and classes of the rows to test on, if there are any.

        Args:
            classes: Names, where there are more by now than the settings have.
        """
        return _test_rows(self.folder, self.settings, classes or self.settings.classes)

    def is_trained(self) -> bool:
        """Whether the latest model knows all that the ledger says."""
        models = self.models()
        return bool(models) and models[-1].events == len(LabelLedger(self.folder / "labels.db"))

    def models(self) -> list[TrainedModel]:
        """All models that were trained, the latest last."""
        return trained_models(self.folder)

    def import_file(
        self, path: Path, annotator: str, *, skip_empty: bool = False, relabel: bool = False
    ) -> tuple[Imported, ActiveLearningDataset]:
        """Record the labels of a batch that came back; see `import_labels`."""
        rows = batch_rows(path, self.settings.text_column)
        dataset = self.dataset()
        done = import_labels(
            dataset, rows, path, annotator, self.settings.text_column, skip_empty=skip_empty, relabel=relabel
        )
        return done, dataset


def _check(folder: Path, settings: Settings) -> None:
    """Refuse data that do not fit the settings."""
    path = settings_file.path_of(settings.data, folder)
    rows = source.rows_of(path)
    source.texts(rows, path, settings.text_column)
    if settings.label_column is not None:
        source.with_classes(rows, path, settings.text_column, settings.label_column, settings.classes)
    _test_rows(folder, settings, settings.classes)


def _test_rows(folder: Path, settings: Settings, classes: Sequence[str]) -> Dataset | None:
    if settings.test is None:
        return None
    path = settings_file.path_of(settings.test, folder)
    column = settings.label_column or "label"
    return source.with_classes(source.rows_of(path), path, settings.text_column, column, classes, complete=True)
