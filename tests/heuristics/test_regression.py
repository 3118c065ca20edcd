"""Gaussian BALD against entropies of Gaussians, on cases by hand, and its noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from baal_hf.heuristics import GaussianBALD, gaussian_bald
from tests.laws import few


def outputs(*shape: int, seed: int = 0) -> np.ndarray:
    """Outputs of that shape, of any size and sign."""
    return 3 * np.random.default_rng(seed).standard_normal(shape) + 10


def plain(means: np.ndarray, noise: np.ndarray) -> float:
    """Entropy of the mixture's Gaussian less the draws' mean entropy, [C, T] each."""
    total = np.cov(means, bias=True).reshape(len(means), -1) + np.diag(noise.mean(1))
    entropies = [multivariate_normal(cov=np.diag(column)).entropy() for column in noise.T]
    return float(multivariate_normal(cov=total).entropy() - np.mean(entropies))


@few
@given(
    seed=st.integers(0, 2**32 - 1),
    C=st.integers(1, 5),
    T=st.integers(2, 6),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    per_draw=st.booleans(),
)
def test_reference(seed: int, C: int, T: int, shape: tuple[int, ...], per_draw: bool) -> None:
    """Scores are entropy less expected entropy, position by position, also with more outputs than draws."""
    means = outputs(3, C, *shape, T, seed=seed)
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0.1, 4, means.shape if per_draw else C)
    scores = gaussian_bald(means, noise)
    assert scores.shape == (3, *shape)
    spread = noise if per_draw else np.broadcast_to(noise.reshape(C, *[1] * (len(shape) + 1)), means.shape)
    table, other = np.moveaxis(means, 1, -2), np.moveaxis(spread, 1, -2)  # [N, *S, C, T]
    for place in np.ndindex(scores.shape):
        assert scores[place] == pytest.approx(plain(table[place], other[place]), abs=1e-9)


@pytest.mark.parametrize(
    ("draws", "noise", "expected"),
    [
        ([[-1, 1]], 1.0, math.log(2) / 2),  # variance 1 on noise 1
        ([[0, 6]], 3.0, math.log(4) / 2),  # variance 9 on noise 3
        ([[5, 5]], 1.0, 0),
        ([[-1, 1], [-1, 1]], 1.0, math.log(3) / 2),  # det [[2, 1], [1, 2]]: one direction, seen twice
        ([[-1, 1, -1, 1], [-1, -1, 1, 1]], 1.0, math.log(2)),  # two independent directions
    ],
)
def test_by_hand(draws: list[list[float]], noise: float, expected: float) -> None:
    """Half the logarithm of one plus signal over noise, in nats, once for each independent direction."""
    assert gaussian_bald(np.array([draws], float), noise) == pytest.approx(expected, abs=1e-12)


def test_noise_of_each_draw_by_hand() -> None:
    """Draws that agree on the mean and not on the noise, 1 or 4, hold ½ (log 2.5 - ½ log 4)."""
    score = gaussian_bald(np.full((1, 1, 2), 7.0), np.array([[[1.0, 4.0]]]))
    assert score == pytest.approx((math.log(2.5) - math.log(4) / 2) / 2)


def test_three_forms_of_noise_agree() -> None:
    """One number is that number for each output, and for each output, row and draw."""
    means = outputs(5, 3, 2, 4)
    expected = gaussian_bald(means, 2.5)
    np.testing.assert_allclose(gaussian_bald(means, np.full(3, 2.5)), expected, atol=1e-12)
    np.testing.assert_allclose(gaussian_bald(means, np.broadcast_to(2.5, means.shape)), expected, atol=1e-12)
    np.testing.assert_allclose(GaussianBALD(2.5).compute_score(means), expected)
    per_output = np.array([1.0, 2.0, 9.0])
    spread = np.broadcast_to(per_output[:, None, None], means.shape)
    np.testing.assert_allclose(gaussian_bald(means, per_output), gaussian_bald(means, spread), atol=1e-12)
    np.testing.assert_allclose(GaussianBALD(per_output).compute_score(means), gaussian_bald(means, per_output))


def test_units() -> None:
    """The score has no unit: outputs in another unit, with the noise in that unit squared, have the same."""
    means = outputs(5, 2, 4)
    np.testing.assert_allclose(gaussian_bald(1000 * means, 1e6), gaussian_bald(means, 1.0))
    shifted = means + np.array([1e3, -1e3])[:, None]
    np.testing.assert_allclose(gaussian_bald(shifted, 1.0), gaussian_bald(means, 1.0))


@pytest.mark.parametrize("C", [1, 2, 9])
def test_small_signals_are_told_apart(C: int) -> None:
    """In float32, signals a millionth of the noise still rank by their size."""
    means = torch.from_numpy(outputs(1, C, 5) - 10).float() * torch.linspace(1, 2, 20).reshape(-1, 1, 1) * 1e-3
    scores = gaussian_bald(means)
    assert scores.dtype == torch.float32
    assert (scores.diff() > 0).all()
    np.testing.assert_allclose(scores, gaussian_bald(means.double()), rtol=1e-4)


@pytest.mark.parametrize("noise_kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_large_arrays(kind, noise_kind) -> None:
    """Means and their noise are cut into the same chunks; the kind of the means comes out."""
    means, noise = outputs(3000, 2, 100), np.random.default_rng(1).uniform(1, 2, (3000, 2, 100))
    scores = gaussian_bald(kind(means), noise_kind(noise))
    assert type(scores) is type(kind(means))
    np.testing.assert_allclose(scores[::100], gaussian_bald(means[::100], noise[::100]), rtol=1e-12)


@pytest.mark.parametrize("C", [1, 3])
def test_padding(C: int) -> None:
    """Padding scores NaN, whatever the noise there is, and leaves the other positions alone."""
    means, noise = outputs(2, C, 3, 4), np.random.default_rng(0).uniform(1, 2, (2, C, 3, 4))
    expected, other = gaussian_bald(means), gaussian_bald(means, noise)
    means[0, :, 1], noise[0, :, 1] = np.nan, -1
    real = np.ones((2, 3), bool)
    real[0, 1] = False
    for scores, wanted in ((gaussian_bald(means), expected), (gaussian_bald(means, noise), other)):
        np.testing.assert_array_equal(np.isnan(scores), ~real)
        np.testing.assert_allclose(scores[real], wanted[real])
    assert GaussianBALD(reduction="sum").get_uncertainties(means)[0] == pytest.approx(expected[0, ::2].sum())


@pytest.mark.parametrize("noise", [0, -1.0, float("inf"), float("nan"), np.array([1.0, 0.0])])
def test_noise_is_positive(noise) -> None:
    """No noise, or a negative or infinite one, is refused."""
    with pytest.raises(ValueError, match="GaussianBALD needs a noise_variance that is positive and finite, got"):
        gaussian_bald(outputs(4, 2, 3), noise)
    with pytest.raises(ValueError, match="GaussianBALD needs a noise_variance that is positive and finite, got"):
        GaussianBALD(noise)  # before anything is predicted


def test_heuristic_takes_no_noise_of_rows() -> None:
    """A heuristic outlives the pool of one step, whose noise it cannot keep."""
    with pytest.raises(ValueError, match=r"needs one noise_variance or one for each output, got \[4, 2, 3\]"):
        GaussianBALD(np.ones((4, 2, 3)))


def test_noise_of_rows_is_positive() -> None:
    """Rows with a noise that is none are named."""
    noise = np.ones((4, 2, 3))
    noise[1, 0, 2], noise[3, 1, 0] = 0, np.nan
    with pytest.raises(ValueError, match=r"noise_variance that is positive and finite, got others in rows 1, 3\."):
        gaussian_bald(outputs(4, 2, 3), noise)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 2, 1), (1, 2, 3), (3, 2, 3)])
def test_noise_of_another_shape(shape: tuple[int, ...]) -> None:
    """Noise is a number, [C] or like the means, never broadcast otherwise."""
    wanted = r"one number, \[2\] \(one for each output\) or \[4, 2, 3\] \(like means\), got \["
    with pytest.raises(ValueError, match=wanted):
        gaussian_bald(outputs(4, 2, 3), np.ones(shape))


@pytest.mark.parametrize("noise", ["1.0", None, [1.0, 2.0], np.ones(2, int)])
def test_noise_of_another_type(noise) -> None:
    """Noise is a number or an array of floating-point numbers."""
    with pytest.raises(TypeError, match=r"GaussianBALD's noise_variance needs .*, got"):
        gaussian_bald(outputs(4, 2, 3), noise)


def test_bad_means() -> None:
    """One draw holds no information, a broken one is named; both whatever the noise."""
    for noise in (1.0, np.ones(2), np.ones((4, 2, 1))):
        with pytest.raises(ValueError, match=r"GaussianBALD needs 2 posterior draws or more, got \[4, 2, 1\]"):
            gaussian_bald(outputs(4, 2, 1), noise)
    broken = outputs(4, 2, 3)
    broken[2, 1, 0] = np.inf
    with pytest.raises(ValueError, match=r"GaussianBALD needs finite predictions, got NaN or infinity in row 2\."):
        gaussian_bald(broken)
    with pytest.raises(TypeError, match="GaussianBALD needs a NumPy array or a torch tensor, got list"):
        gaussian_bald(broken.tolist())
