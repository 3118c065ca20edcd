"""The laws of every scaling, and each against a solver of other making."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from baal_hf import metrics
from baal_hf.calibration import DirichletScaling, Scaling, TemperatureScaling, VectorScaling

few = settings(max_examples=15, deadline=None)
SCALINGS = [TemperatureScaling, VectorScaling, DirichletScaling, lambda: DirichletScaling(l2=0.01, mu=1)]
every_scaling = pytest.mark.parametrize("make", SCALINGS, ids=["temperature", "vector", "dirichlet", "dirichlet weak"])


def rows(N: int = 300, C: int = 3, sharpness: float = 2.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, C] of a model that is too sure by this factor, float64, and labels [N]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, C)) + np.arange(C) / C
    labels = (softmax(logits, 1).cumsum(1) > rng.random((N, 1))).argmax(1)
    return softmax(sharpness * logits, 1), labels


def nll(probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probs[np.arange(len(labels)), labels].clip(2.0**-52)).mean())


PROBS, LABELS = rows()


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, C] with zeros and ties, and labels [N] of two classes or more."""
    C = draw(st.integers(2, 4))
    weights = st.lists(st.integers(0, 5), min_size=C, max_size=C).filter(any)
    given_rows = np.array(draw(st.lists(weights, min_size=2, max_size=30)), float)
    N = len(given_rows)
    labels = draw(st.lists(st.integers(0, C - 1), min_size=N, max_size=N).filter(lambda each: len(set(each)) > 1))
    return given_rows / given_rows.sum(1, keepdims=True), np.array(labels)


@few
@given(predictions())
@pytest.mark.filterwarnings("ignore::UserWarning")  # of rows too few and classes without any
def test_temperature_keeps_the_predicted_class(given_rows):
    """Temperature scaling changes no predicted class, and keeps the order of all classes."""
    probs, labels = given_rows
    calibrated = TemperatureScaling().fit(probs, labels).calibrated(probs)
    assert (np.take_along_axis(calibrated, probs.argmax(1)[:, None], 1)[:, 0] == calibrated.max(1)).all()
    smaller = probs[:, :, None] < probs[:, None, :]  # [N, C, C]
    assert (calibrated[:, :, None] <= calibrated[:, None, :])[smaller].all()


@pytest.mark.parametrize("make", [TemperatureScaling, VectorScaling, lambda: DirichletScaling(l2=0)])
@few
@given(given_rows=predictions())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fitting_never_raises_the_nll_of_its_rows(make, given_rows):
    """Where nothing is regularised, the rows that a scaling was fitted on have no higher NLL than before."""
    probs, labels = given_rows
    assert nll(make().fit(probs, labels).calibrated(probs), labels) <= nll(probs, labels) + 1e-9


@every_scaling
@few
@given(given_rows=predictions())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_calibrated_rows_are_probabilities(make, given_rows):
    """Calibrated rows are finite, not negative, and sum to 1, zeros before or not."""
    probs, labels = given_rows
    calibrated = make().fit(probs, labels).calibrated(probs)
    assert np.isfinite(calibrated).all() and (calibrated >= 0).all()
    np.testing.assert_allclose(calibrated.sum(1), 1, atol=1e-12)


@every_scaling
def test_held_out_rows_are_calibrated(make):
    """A model that is too sure has a lower NLL and at most a third of its ECE on other rows."""
    probs, labels = rows(N=3000)
    others, true = rows(N=3000, seed=1)
    calibrated = make().fit(probs, labels).calibrated(others)
    ece = metrics.load("ece")
    before, after = (ece.compute(predictions=each, references=true)["ece"] for each in (others, calibrated))
    assert before > 0.15
    assert after < before / 3
    assert nll(calibrated, true) < nll(others, true)


def test_temperature_is_the_factor_that_made_the_model_too_sure():
    """The temperature is found again by which a calibrated model's logits were multiplied."""
    probs, labels = rows(N=20_000, sharpness=2.5)
    assert TemperatureScaling().fit(probs, labels).temperature == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 6.0])
def test_temperature_is_scipys(sharpness):
    """The temperature is that of a bounded search in one dimension."""
    probs, labels = rows(sharpness=sharpness)
    found = minimize_scalar(
        lambda t: nll(softmax(np.log(probs) / np.exp(t), 1), labels), bounds=(-4, 4), options={"xatol": 1e-9}
    )
    assert TemperatureScaling().fit(probs, labels).temperature == pytest.approx(np.exp(found.x), rel=1e-5)


def test_vector_scaling_is_scipys():
    """Vector scaling reaches the NLL and the probabilities of SciPy's optimum."""

    def loss(x: np.ndarray) -> float:
        return -log_softmax(np.log(PROBS) * x[:3] + x[3:], 1)[np.arange(len(LABELS)), LABELS].mean()

    found = minimize(loss, [1, 1, 1, 0, 0, 0], method="BFGS", options={"gtol": 1e-8})
    calibrated = VectorScaling().fit(PROBS, LABELS).calibrated(PROBS)
    assert nll(calibrated, LABELS) == pytest.approx(found.fun, abs=1e-9)
    np.testing.assert_allclose(calibrated, softmax(np.log(PROBS) * found.x[:3] + found.x[3:], 1), atol=1e-4)


@pytest.mark.parametrize(("l2", "mu"), [(0.1, 0.1), (100, 0.01), (0.01, 100)])
def test_dirichlet_scaling_is_scipys(l2, mu):
    """Dirichlet scaling has the weights and intercept of SciPy's optimum of NLL + ODIR, summed term by term."""

    def loss(x: np.ndarray) -> float:
        W, b = x[:9].reshape(3, 3), x[9:]
        fit = -log_softmax(np.log(PROBS) @ W.T + b, 1)[np.arange(len(LABELS)), LABELS].mean()
        off = sum(W[i, j] ** 2 for i in range(3) for j in range(3) if i != j) / (3 * 2)
        return fit + l2 * off + mu * sum(b**2) / 3

    found = minimize(loss, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], method="BFGS", options={"gtol": 1e-7})
    scaling = DirichletScaling(l2=l2, mu=mu).fit(PROBS, LABELS)
    ours = np.concatenate([scaling.weights.flatten(), scaling.intercept])
    assert loss(ours) <= found.fun + 1e-9
    np.testing.assert_allclose(ours, found.x, atol=2e-3)


def test_strong_regularisation_leaves_the_diagonal_alone():
    """With large factors no class speaks of another and no intercept is left, and the diagonal still moves."""
    scaling = DirichletScaling(l2=1e7).fit(PROBS, LABELS)
    off = scaling.weights - torch.diag(scaling.weights.diagonal())
    assert off.abs().max() < 1e-6 and scaling.intercept.abs().max() < 1e-6
    assert (scaling.weights.diagonal() < 0.7).all()


def test_mu_is_l2_unless_given():
    """Without μ, the intercept is regularised as the off-diagonal is."""
    assert DirichletScaling(l2=3).mu == 3
    assert DirichletScaling(l2=3, mu=0).mu == 0


@every_scaling
def test_permuted_classes_are_calibrated_alike(make):
    """Classes in another order are calibrated to the same probabilities, in that order."""
    order = np.array([2, 0, 1])
    there = make().fit(PROBS, LABELS).calibrated(PROBS)
    back = make().fit(PROBS[:, order], np.argsort(order)[LABELS]).calibrated(PROBS[:, order])
    np.testing.assert_allclose(back, there[:, order], atol=1e-5)


@every_scaling
def test_fitting_twice_is_fitting_once(make):
    """The same rows give the same numbers, bit by bit, also from a scaling that was fitted on others before."""
    used = make().fit(*rows(seed=5))
    before = make().fit(PROBS, LABELS).calibrated(PROBS)
    assert (used.fit(PROBS, LABELS).calibrated(PROBS) == before).all()


@every_scaling
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_who_predict_fit_alike(make, mode):
    """Where gradients are switched off, arrays and the tensors made there fit the same numbers, which can be used."""
    expected = make().fit(PROBS, LABELS).calibrated(PROBS)
    with mode():
        of_array = make().fit(PROBS, LABELS)
        made_there = torch.tensor(PROBS)[..., None] * 1.0, torch.tensor(LABELS) * 1
        of_tensors = make().fit(*made_there)
        np.testing.assert_array_equal(of_array.calibrated(PROBS), expected)
    for scaling in (of_array, of_tensors):
        np.testing.assert_array_equal(scaling.calibrated(PROBS), expected)
        assert not any(value.is_inference() for value in vars(scaling).values() if isinstance(value, torch.Tensor))


@every_scaling
def test_draws_are_averaged_to_fit_and_calibrated_each(make):
    """Draws [N, C, T] fit like their mean, and each is calibrated as it would be alone."""
    draws = np.stack([rows(seed=0)[0], rows(sharpness=1)[0]], -1)  # [N, C, 2]
    scaling = make().fit(draws, LABELS)
    calibrated = scaling.calibrated(draws)
    assert calibrated.shape == draws.shape
    of_mean = make().fit(draws.mean(-1), LABELS)
    for t in range(2):
        np.testing.assert_array_equal(calibrated[..., t], of_mean.calibrated(draws[..., t]))


@every_scaling
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_comes_out_is_of_the_kind_that_came_in(make, dtype):
    """Arrays give arrays and tensors tensors, in their precision but at least float32, near what double gives."""
    scaling = make().fit(PROBS, LABELS)
    expected = scaling.calibrated(PROBS)
    tensor = torch.tensor(PROBS, dtype=getattr(torch, dtype), requires_grad=True)
    found = scaling.calibrated(tensor)
    assert isinstance(found, torch.Tensor) and not found.requires_grad
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)
    if dtype != "bfloat16":
        array = scaling.calibrated(PROBS.astype(dtype))
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, found.numpy())
    np.testing.assert_allclose(make().fit(tensor, torch.tensor(LABELS)).calibrated(PROBS), expected, atol=0.02)


def test_many_rows_are_calibrated_like_few(monkeypatch):
    """Rows calibrated in chunks have the same values, and a bad one is counted from the first of all."""
    scaling = TemperatureScaling().fit(PROBS, LABELS)
    whole = scaling.calibrated(PROBS)
    monkeypatch.setattr("baal_hf.calibration.scaling.AT_ONCE", 21)  # 7 rows
    np.testing.assert_array_equal(scaling.calibrated(PROBS), whole)
    broken = PROBS.copy()
    broken[100] = 2
    with pytest.raises(ValueError, match="got 6 in row 100"):
        scaling.calibrated(broken)


def test_a_probability_of_0_counts_as_2_to_the_minus_52():
    """0 and any probability up to 2^-52 are calibrated alike, and a larger one otherwise."""
    scaling = TemperatureScaling().fit(PROBS, LABELS)
    zero, tiny, small = (scaling.calibrated(np.array([[1 - p, p, 0.0]]))[0, 1] for p in (0, 2.0**-60, 2.0**-40))
    assert zero == tiny < small
    assert zero == pytest.approx(2 ** (-52 / scaling.temperature), rel=1e-5)


SURE, RIGHT = np.eye(3)[[0, 1, 2, 0]] * 0.9925 + 0.0025, np.array([0, 1, 2, 0])


@every_scaling
def test_predictions_of_the_training_rows_are_warned_of(make):
    """Rows all right with a mean confidence above .99 raise the suspicion that the model was trained on them."""
    with pytest.warns(UserWarning, match="all 4 rows are predicted right.* the training rows' own predictions"):
        make().fit(SURE, RIGHT)


def test_nothing_is_said_of_one_error_or_less_confidence():
    """One wrong row among sure ones, or right rows that are less sure, are no training rows."""
    TemperatureScaling().fit(np.repeat(SURE, 10, 0), np.append(np.repeat(RIGHT, 10)[:-1], 1))
    less_sure = SURE * 0.97 + 0.01
    with pytest.warns(UserWarning, match="gives the true classes of its 4 rows a probability of 1 or nearly so"):
        TemperatureScaling().fit(less_sure, RIGHT)


def test_a_temperature_has_limits_and_says_so():
    """Predictions no better than chance get the highest temperature and a warning, perfect ones the lowest."""
    with pytest.warns(UserWarning, match="no better than equal probabilities"):
        worst = TemperatureScaling().fit(PROBS, (PROBS.argmax(1) + 1) % 3)
    assert worst.temperature == 100
    with pytest.warns(UserWarning, match="probability of 1 or nearly so"):
        best = TemperatureScaling().fit(np.array([[0.6, 0.4], [0.4, 0.6]]), [0, 1])
    assert best.temperature == 0.01


@pytest.mark.parametrize("make", [VectorScaling, DirichletScaling])
def test_classes_without_a_row_are_warned_of(make):
    """A scaling by class warns, and names the classes, where held-out rows are missing; temperature does not care."""
    some = LABELS != 1
    with pytest.warns(UserWarning, match=r"classes without a row never come, here \[1\]") as caught:
        make().fit(PROBS[some], LABELS[some])
    assert caught[0].filename == __file__
    TemperatureScaling().fit(PROBS[some], LABELS[some])


NAN = PROBS.copy()
NAN[7, 1] = np.nan


@every_scaling
@pytest.mark.parametrize(
    ("probs", "labels", "error", "message"),
    [
        (PROBS[:0], LABELS[:0], ValueError, "needs held-out rows to fit, got none"),
        (PROBS, np.full(300, 2), ValueError, "needs rows of two classes or more, got only class 2 in 300 rows"),
        (PROBS, np.append(LABELS[:-1], 3), ValueError, r"needs labels in 0 .. 2, got 3 in row 299"),
        (PROBS, np.append(-1, LABELS[1:]), ValueError, r"got -1 in row 0. Leave rows without a label out"),
        (PROBS, LABELS[:-1], ValueError, r"needs labels \[N\] for N = 300 rows, got \[299\]"),
        (PROBS, LABELS[:, None], ValueError, r"needs labels \[N\] for N = 300 rows, got \[300, 1\]"),
        (PROBS, LABELS.astype(float), TypeError, "needs whole numbers as labels, got float64"),
        (PROBS, LABELS == 1, TypeError, "needs whole numbers as labels, got bool"),
        (np.log(PROBS), LABELS, ValueError, "needs probabilities, got negative values in rows 0, 1"),
        (PROBS * 2, LABELS, ValueError, "needs sums of 1 over classes, got 2 in row 0"),
        (NAN, LABELS, ValueError, "needs finite predictions, got NaN or infinity in row 7"),
        (PROBS[:, :1], LABELS, ValueError, "needs 2 classes or more, got C = 1"),
        (PROBS[..., :0], LABELS, ValueError, "needs at least one row, class"),
        (PROBS[..., None, None], LABELS, ValueError, r"or draws of them \[N, C, T\], got \[300, 3, 1, 1\]"),
        (PROBS[:, 0], LABELS, ValueError, r"needs probabilities \[N, C\] .* got \[300\]"),
        (PROBS.tolist(), LABELS, TypeError, "needs a NumPy array or a torch tensor, got list"),
        (LABELS[:, None], LABELS, TypeError, "needs float64, .* got int64"),
    ],
)
def test_what_cannot_be_fitted_is_refused(make, probs, labels, error, message):
    """Rows that teach nothing, and predictions or labels that are none, raise an error that names them."""
    with pytest.raises(error, match=message):
        make().fit(probs, labels)


@every_scaling
def test_what_cannot_be_calibrated_is_refused(make):
    """Without parameters, with another number of classes or no probabilities nothing is calibrated."""
    with pytest.raises(RuntimeError, match="has no parameters yet"):
        make().calibrated(PROBS)
    scaling: Scaling = make().fit(PROBS, LABELS)
    with pytest.raises(ValueError, match=r"fitted on C = 3 classes, got \[1, 2, 1\]"):
        scaling.calibrated(np.array([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="NaN or infinity in row 7"):
        scaling.calibrated(NAN)
    with pytest.raises(ValueError, match="at least one row"):
        scaling.calibrated(PROBS[:0])
    with pytest.raises(ValueError, match=r"got \[300, 3, 1, 1\]"):
        scaling.calibrated(PROBS[..., None, None])


@pytest.mark.parametrize("factors", [{"l2": -1}, {"l2": float("nan")}, {"mu": -0.1}, {"mu": float("inf")}])
def test_factors_that_regularise_nothing_are_refused(factors):
    """A regularisation that is negative or not finite raises an error that names it."""
    (name,) = factors
    with pytest.raises(ValueError, match=f"needs a finite {name} >= 0"):
        DirichletScaling(**factors)
