"""Pictures are looked at: what was drawn is read from the file."""

import re
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


def heights(svg: Path) -> tuple[np.ndarray, np.ndarray]:
    """Heights on the page of the first heuristic's line [P], and of the corners of its band [2P + 2], if there is one.

    The band's outline has two corners, where it begins and turns, twice.
    """
    line = re.search(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: #1f77b4', texts(svg))
    band = re.search(r'id="FillBetween.*?<path [^>]*d="([^"]*)".*?<use [^>]* y="([0-9.]+)"', texts(svg), re.DOTALL)
    assert line is not None
    points, corners = (
        np.array(re.findall(r"[ML] \S+ (\S+)", found[1] if found else ""), float) for found in (line, band)
    )
    return points, corners + float(band[2]) if band else corners


def in_percent(svg: Path, known: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The same in percent, where those of the line's first and last point are known."""
    line, band = heights(svg)
    scale = (known[1] - known[0]) / (line[-1] - line[0])
    return known[0] + (line - line[0]) * scale, known[0] + (band - line[0]) * scale


def seeds(labelled: int, *accuracies: float) -> list[dict[str, object]]:
    return [{**record("bald", labelled, accuracy), "seed": seed} for seed, accuracy in enumerate(accuracies)]


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


def test_one_run_has_no_band(tmp_path: Path) -> None:
    """A single run is a line alone, and the legend speaks of no interval."""
    path = learning_curve(RISING, tmp_path / "curve.svg")
    assert not len(heights(path)[1]) and "interval" not in texts(path)


def test_equal_runs_have_the_line_of_one(tmp_path: Path) -> None:
    """Runs that agree give the line of one, under a band without height; without seeds their order tells them apart."""
    one, _ = heights(learning_curve(RISING, tmp_path / "one.svg"))
    twice, band = heights(learning_curve(RISING * 2, tmp_path / "twice.svg"))
    assert np.array_equal(one, twice)
    assert set(band.round(3)) == set(one.round(3))


@pytest.mark.parametrize(
    ("accuracies", "half"),
    [
        ((0.495, 0.505), 12.706 * 0.5),  # t of 1 degree of freedom, standard error of the mean
        ((0.49, 0.50, 0.51), 4.303 / 3**0.5),
        ((0.48, 0.49, 0.50, 0.51, 0.52), 2.776 * 0.5**0.5),
    ],
)
def test_band_is_the_interval_of_the_mean(tmp_path: Path, accuracies: tuple[float, ...], half: float) -> None:
    """The line is the mean over seeds, and the band reaches as far from it as Student's t in the tables says."""
    path = learning_curve([*seeds(20, *accuracies), *seeds(10, *[0.4] * len(accuracies))], tmp_path / "curve.svg")
    line, band = in_percent(path, (40, 50))
    assert "<!-- mean and its 95 % interval -->" in texts(path)
    assert (line[0], line[-1]) == pytest.approx((40, 50))
    assert band.max() == pytest.approx(50 + half, rel=0.002)
    assert band.min() == pytest.approx(min(40, 50 - half), rel=0.002)


def test_band_of_a_share_stays_possible(tmp_path: Path) -> None:
    """No accuracy is above 100 % or below 0, however little two seeds say; another metric has no such ends."""
    wide = [*seeds(10, 0.1, 0.3), *seeds(20, 0.7, 0.9)]
    _, band = in_percent(learning_curve(wide, tmp_path / "share.svg"), (20, 80))
    assert (band.min(), band.max()) == pytest.approx((0, 100), abs=0.01)
    other = [{**r, "eval_loss": r["accuracy"]} for r in wide]
    _, band = in_percent(learning_curve(other, tmp_path / "loss.svg", metric="eval_loss"), (20, 80))
    assert band.max() > 200


def test_runs_with_other_numbers_of_rows_are_read_between_their_points(tmp_path: Path) -> None:
    """A seed without a point at 20 counts there with what lies between its points; one run alone has no band."""
    records = [*seeds(10, 0.2, 0.2), *seeds(20, 0.5), *seeds(30, 0.6, 0.6), *seeds(40, 0.8)]
    line, band = in_percent(learning_curve(records, tmp_path / "curve.svg"), (20, 80))
    assert line == pytest.approx(np.array([20, 45, 60, 80]), abs=0.01)  # at 20: of 50 and 40
    assert len(band) == 2 * 3 + 2  # over 10, 20 and 30


def test_target_is_a_line_across(tmp_path: Path) -> None:
    """A target is drawn in the metric's unit and named; without one there is none."""
    path = learning_curve(RISING, tmp_path / "curve.svg", target=0.5)
    line, _ = heights(path)
    drawn = re.search(r'<path d="M \S+ (\S+) \nL \S+ (\S+) \n" [^>]*stroke-dasharray: 3.7', texts(path))
    assert drawn is not None and "<!-- target -->" in texts(path)
    assert [float(drawn[1]), float(drawn[2])] == pytest.approx([line.mean()] * 2, abs=0.01)  # 50 of 20 and 80
    assert "<!-- target -->" not in texts(learning_curve(RISING, tmp_path / "plain.svg"))


@pytest.mark.parametrize(
    ("metric", "label"),
    [("eval_accuracy", "test accuracy (%)"), ("eval_loss", "test loss"), ("macro_f1", "test macro f1")],
)
def test_axis_names_the_metric(tmp_path: Path, metric: str, label: str) -> None:
    """Any metric of the records can be drawn, and the axis says which; only accuracy is in percent."""
    records = [{**r, metric: r["accuracy"]} for r in RISING]
    assert f"<!-- {label} -->" in texts(learning_curve(records, tmp_path / "curve.svg", metric=metric))


def test_a_metric_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A metric that a record lacks is an error that names both, and no file is left."""
    with pytest.raises(ValueError, match=r"needs eval_loss in every record, got one with .*accuracy"):
        learning_curve(RISING, tmp_path / "curve.png", metric="eval_loss")
    assert not list(tmp_path.iterdir())


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
