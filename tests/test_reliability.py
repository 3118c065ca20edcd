"""The reliability diagram is looked at: what was drawn is read from the file."""

import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from baal_hf import metrics
from baal_hf.reliability import reliability_diagram

PROBS = np.array([[0.3, 0.7], [0.3, 0.7], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
LABELS = np.array([1, 0, 0, 0, 0, 1])  # half of those at .7 are right, and three quarters of those at .9


def drawn_bars(svg: Path) -> list[tuple[float, float, float]]:
    """Left, width and height on the page of each filled rectangle that is no background, in the order of drawing."""
    found = re.findall(
        r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) [\d.]+ \nL [\d.]+ ([\d.]+) [^"]*" clip-path', svg.read_text()
    )
    return [(float(x), float(right) - float(x), float(y) - float(top)) for x, y, right, top in found]


def test_png_is_written_where_it_was_asked(tmp_path):
    """The path comes back, as a `Path`, and there lies a PNG with something in it."""
    path = reliability_diagram(PROBS, LABELS, str(tmp_path / "reliability.png"))
    assert path == tmp_path / "reliability.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.image.imread(path).std() > 0.01


def test_words_and_the_error_are_drawn(tmp_path):
    """Axes, legend and title say what they mean, and the number is the ECE of the metric with as many bins."""
    drawn = reliability_diagram(PROBS, LABELS, tmp_path / "a.svg", n_bins=5, title="digits").read_text()
    error = metrics.load("ece").compute(predictions=PROBS, references=LABELS, n_bins=5)["ece"]
    for text in ("digits", "share that is right", "confidence in the predicted class", "accuracy", f"ECE {error:.3f}"):
        assert f"<!-- {text} -->" in drawn


def test_bars_are_as_high_as_the_shares(tmp_path):
    """Bars above are as high as accuracies, one for each bin that holds rows; those beneath as shares of rows."""
    bars = drawn_bars(reliability_diagram(PROBS, LABELS, tmp_path / "a.svg", n_bins=5))
    (left, width, first), (right, _, second), *beneath = [bar for bar in bars if bar[1] > 0]
    assert second / first == pytest.approx(0.75 / 0.5, rel=1e-4)
    assert right - left == pytest.approx(width, rel=1e-4)  # bins (.6, .8] and (.8, 1]
    shares = [height for _, _, height in beneath if height > 0]
    assert shares[1] / shares[0] == pytest.approx(2, rel=1e-4)


def test_tensors_draw_what_arrays_draw(tmp_path):
    """Tensors and lists of labels give the picture of arrays."""
    one = reliability_diagram(PROBS, LABELS, tmp_path / "one.png")
    two = reliability_diagram(torch.tensor(PROBS), LABELS.tolist(), tmp_path / "two.png")
    three = reliability_diagram(PROBS, torch.tensor(LABELS), tmp_path / "three.png")
    pictures = [matplotlib.image.imread(each) for each in (one, two, three)]
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("probs", "labels", "n_bins", "message"),
    [
        (PROBS[:0], LABELS[:0], 5, "reliability_diagram needs at least one prediction"),
        (PROBS[..., None], LABELS, 5, r"got \[6, 2, 1\]. Average draws"),
        (PROBS * 3, LABELS, 5, "sum to 1"),
        (PROBS, LABELS + 1, 5, r"whole numbers in 0 .. 1, got 2"),
        (PROBS, LABELS, 0, "whole number from 1 as n_bins, got 0"),
    ],
)
def test_bad_input_draws_nothing(tmp_path, probs, labels, n_bins, message):
    """Predictions, labels or bins that are none raise an error, and no file is left."""
    with pytest.raises(ValueError, match=message):
        reliability_diagram(probs, labels, tmp_path / "a.png", n_bins=n_bins)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    """Where matplotlib is missing, the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"reliability_diagram needs matplotlib: pip install 'baal_hf\[plot\]'"):
        reliability_diagram(PROBS, LABELS, tmp_path / "a.png")
