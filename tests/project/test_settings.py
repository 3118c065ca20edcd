"""A project's file says what the project is, and only its own version is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baal_hf.project.settings import FILE, Settings, read, stored_path, written

SETTINGS = Settings(data="rows.csv", text_column="text", classes=("spört", "politics"), model="bert")


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read, in UTF-8 with its version, and nothing else is left in the folder."""
    written(tmp_path, SETTINGS)
    assert read(tmp_path) == SETTINGS
    found = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert found["version"] == 1 and found["classes"] == ["spört", "politics"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_differences() -> None:
    """Each difference is named with both values, and equal settings have none."""
    other = Settings(data="rows.csv", text_column="review", classes=("spört", "politics"), model="bert", epochs=3)
    assert SETTINGS.differences(other) == ["text_column is 'text', not 'review'", "epochs is 20, not 3"]
    assert SETTINGS.differences(SETTINGS) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not the file of a project"),
        ("{}", "not the file of a project: it has no version"),
        ('{"version": 2}', "has version 2, this baal_hf knows up to 1: update it"),
        ('{"version": 1, "classes": ["a", "b"], "data": "x"}', "not the file of a project: .*text_column"),
        ('{"version": 1, "classes": ["a", "b"], "colour": 1}', "not the file of a project: .*colour"),
    ],
)
def test_other_files(tmp_path: Path, text: str, message: str) -> None:
    """A file that is no project's, or a newer one's, is refused."""
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_no_project(tmp_path: Path) -> None:
    """Where there is no project the error says how to make one."""
    with pytest.raises(FileNotFoundError, match="baal-hf init"):
        read(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ("a", "")},
        {"classes": ("a", "b", "b ")},
        {"text_column": "label"},
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"consensus": "first"},
    ],
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    """Settings that make no project are refused."""
    with pytest.raises(ValueError, match="needs"):
        Settings(**{"data": "x", "text_column": "text", "classes": ("a", "b"), "model": "m", **wrong})  # type: ignore[arg-type]


def test_paths(tmp_path: Path) -> None:
    """A file in the folder or beside it is named from there, so that both can move; another by its whole path."""
    folder = tmp_path / "projects" / "reviews"
    assert stored_path(folder / "rows.csv", folder) == "rows.csv"
    assert stored_path(tmp_path / "projects" / "data" / "rows.csv", folder) == "../data/rows.csv"
    assert stored_path(tmp_path / "rows.csv", folder) == str(tmp_path / "rows.csv")
