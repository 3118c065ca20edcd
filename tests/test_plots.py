"""Pictures are looked at: what was drawn is read from the file."""

import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from baal_hf.plots import learning_curve


def record(heuristic: str, labelled: int, accuracy: float) -> dict[str, object]:
    return {"heuristic": heuristic, "labelled": labelled, "accuracy": accuracy, "round": 1}


RISING = [record("bald", 10, 0.2), record("bald", 20, 0.8)]


def texts(svg: Path) -> str:
    return svg.read_text(encoding="utf-8")


def test_png_is_written_where_it_was_asked(tmp_path: Path) -> None:
    """The path comes back, and there lies a PNG with something in it."""
    path = learning_curve(RISING, tmp_path / "curve.png", title="BBC News")
    assert path == tmp_path / "curve.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.image.imread(path).std() > 0.01


def test_suffix_chooses_the_format_and_strings_are_paths(tmp_path: Path) -> None:
    """A path given as a string ending in .svg gives an SVG, and a `Path` comes back."""
    path = learning_curve(iter(RISING), str(tmp_path / "curve.svg"))
    assert isinstance(path, Path)
    assert "<svg" in texts(path)


def test_axes_legend_and_title_are_named(tmp_path: Path) -> None:
    """Each heuristic is in the legend, and both axes say what they measure."""
    drawn = texts(learning_curve([*RISING, record("random", 10, 0.3)], tmp_path / "curve.svg", title="BBC News"))
    for text in ("bald", "random", "BBC News", "labelled rows", "test accuracy (%)"):
        assert f"<!-- {text} -->" in drawn


def test_order_of_records_changes_nothing(tmp_path: Path) -> None:
    """The rounds of a heuristic may come in any order."""
    there = learning_curve(RISING, tmp_path / "there.png")
    back = learning_curve(RISING[::-1], tmp_path / "back.png")
    assert np.array_equal(matplotlib.image.imread(there), matplotlib.image.imread(back))


def test_seeds_are_averaged_under_a_band(tmp_path: Path) -> None:
    """Two seeds give one line, at their mean, and a band; equal seeds give the line of one."""
    spread = [record("bald", 10, 0.1), record("bald", 10, 0.3), record("bald", 20, 0.7), record("bald", 20, 0.9)]
    one = matplotlib.image.imread(learning_curve(RISING, tmp_path / "one.png"))
    twice = matplotlib.image.imread(learning_curve(RISING * 2, tmp_path / "twice.png"))
    banded = texts(learning_curve(spread, tmp_path / "banded.svg"))
    assert np.array_equal(one, twice)
    assert "FillBetweenPolyCollection" in banded and "FillBetweenPolyCollection" not in texts(
        learning_curve(RISING, tmp_path / "plain.svg")
    )


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    """No global state of matplotlib is touched: pyplot is not even imported."""
    before = "matplotlib.pyplot" in sys.modules
    learning_curve(RISING, tmp_path / "curve.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_no_records_are_refused(tmp_path: Path) -> None:
    """Nothing to draw is an error, and no file is left."""
    with pytest.raises(ValueError, match="at least one record, got none"):
        learning_curve([], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'baal_hf\[plot\]'"):
        learning_curve(RISING, tmp_path / "curve.png")
