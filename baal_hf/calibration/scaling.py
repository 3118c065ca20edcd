"""What every scaling answers: fitted on held-out predictions, it turns probabilities into calibrated ones."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from baal_hf.arrays import Array, as_numpy, checked_probabilities, like, row_names

SMALLEST = 2.0**-52  # what a probability below it, such as 0, counts as: log 0 would be infinite
AT_ONCE = 2**19  # numbers of a chunk of rows, whose copies in double precision stay in the cache

Fitted = TypeVar("Fitted", bound="Scaling")


class Scaling(ABC):
    """A map of log-probabilities to the logits of calibrated ones, which minimises the NLL of held-out rows.

    Rows of the training set do not do: there the model is surer and more often right than elsewhere. Draws [N, C, T]
    are averaged before fitting, so that the *mean* prediction is what becomes calibrated: `calibrated(probs.mean(-1))`.
    `calibrated(probs)` of draws calibrates each of them by itself, for heuristics that look at how draws differ; the
    mean of those is another prediction, and in general not calibrated.

    A probability below 2^-52 counts as 2^-52. Fitting is L-BFGS with line search in double precision, from the
    identity: no randomness, and where nothing is regularised the rows are never fitted worse than by what came in.
    """

    _C: int | None = None

    @property
    def name(self) -> str:
        """The scaling's name in messages."""
        return type(self).__name__

    @abstractmethod
    def _fit(self, log_probs: Tensor, labels: Tensor) -> None:
        """Set the parameters from float64 log-probabilities [N, C] and true classes int64 [N]."""

    @abstractmethod
    def _logits(self, log_probs: Tensor) -> Tensor:
        """Logits of the calibrated probabilities, [N, C, T] to [N, C, T]."""

    def fit(self: Fitted, probs: Array, labels: npt.ArrayLike | Tensor) -> Fitted:
        """Learn the parameters from predictions of rows that the model was not trained on.

        Args:
            probs: Class probabilities, [N, C] or, of T posterior draws, [N, C, T]; draws are averaged.
            labels: True classes in 0 .. C-1, whole numbers, [N].

        Returns:
            Itself.

        Raises:
            ValueError: There are no rows, or rows of one class only; labels are outside 0 .. C-1 or of another number;
                `probs` are misshapen, not finite, or no probabilities over two or more classes.
            TypeError: `probs` is no array of floating-point numbers, or labels are no whole numbers.

        Warns:
            UserWarning: These look like the training rows' own predictions: all are right, with a mean confidence above
                .99. Training rows that the model fits less well look as others do, and are not noticed; compare them
                with other rows, as `DirichletCalibrator` does. Or too few rows: the fitted probabilities of their true
                classes are 1, or nearly so.
        """
        draws = _with_draws(probs, self.name)  # [N, C, T]
        if len(draws) == 0:
            raise ValueError(f"{self.name} needs held-out rows to fit, got none.")
        mean = checked_probabilities(draws, self.name).detach().cpu().double().mean(-1)  # [N, C]
        true = checked_labels(labels, self.name, *mean.shape)  # [N]
        if (true == true[0]).all():
            raise ValueError(
                f"{self.name} needs rows of two classes or more, got only class {true[0]} in {len(true)} rows."
            )
        suspect = bool((mean.argmax(1) == true).all()) and float(mean.amax(1).mean()) > 0.99
        if suspect:
            warnings.warn(
                f"{self.name}: all {len(mean)} rows are predicted right, with a mean confidence above .99. Are these "
                "the training rows' own predictions? Fit on rows that the model has not seen, and on more of them.",
                stacklevel=2,
            )
        with torch.inference_mode(False):  # new tensors, which gradients can go through
            log_probs, true = _log(mean), true.clone()  # [N, C], [N]
            self._fit(log_probs, true)
        self._C = mean.shape[1]
        if not suspect and float(self._nll(log_probs, true)) < 1e-3:
            warnings.warn(
                f"{self.name} gives the true classes of its {len(mean)} rows a probability of 1 or nearly so, and will "
                "be too sure of others: no error is left to learn from. Fit on more rows.",
                stacklevel=2,
            )
        return self

    @torch.no_grad()
    def calibrated(self, probs: Array) -> Array:
        """Calibrated probabilities, each draw by itself.

        Args:
            probs: Class probabilities, [N, C] or [N, C, T].

        Returns:
            Class probabilities of the shape and kind of `probs`, in its precision but at least float32.

        Raises:
            RuntimeError: Nothing was fitted yet.
            ValueError: `probs` have another number of classes, or are none, as in `fit`.
            TypeError: `probs` is no array of floating-point numbers.
        """
        if self._C is None:
            raise RuntimeError(f"{self.name} has no parameters yet: call fit(probs, labels) with held-out rows first.")
        draws = _with_draws(probs, self.name)  # [N, C, T]
        if draws.shape[1] != self._C:
            raise ValueError(f"{self.name} was fitted on C = {self._C} classes, got {list(draws.shape)}.")
        step = max(1, AT_ONCE // max(1, math.prod(draws.shape[1:])))
        parts = []
        for start in range(0, max(1, len(draws)), step):  # once for no rows, which is refused there
            rows = checked_probabilities(draws[start : start + step], self.name, first_row=start)  # [n, C, T]
            parts.append(self._logits(_log(rows.double())).softmax(1).to(rows))
        return like(probs, torch.cat(parts).reshape(probs.shape))

    def _nll(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood in nats of the calibrated [N, C], averaged over rows, []."""
        return nll_loss(self._logits(log_probs.unsqueeze(-1)).squeeze(-1).log_softmax(1), labels)


def minimised(loss: Callable[..., Tensor], start: Sequence[Tensor]) -> list[Tensor]:
    """The arguments at which a smooth function is least, sought from `start` downhill.

    Args:
        loss: A function of as many tensors as `start` has, to a scalar.
        start: Float64 tensors.

    Returns:
        Tensors of the shapes of `start`; the loss there is not above that at `start`.
    """
    best = [each.clone().requires_grad_() for each in start]
    solver = torch.optim.LBFGS(
        best,
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=1e-11,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        solver.zero_grad()
        value = loss(*best)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return float(value.detach())

    solver.step(closure)  # type: ignore[no-untyped-call]  # with gradients, also under torch.no_grad
    with torch.no_grad():
        return min(([each.detach() for each in best], list(start)), key=lambda each: float(loss(*each)))


def warn_of_absent_classes(labels: Tensor, C: int, who: str) -> None:
    """Warn where a class has no row, of which a scaling by class learns that it never comes."""
    absent = torch.bincount(labels, minlength=C) == 0  # [C]
    if absent.any():
        warnings.warn(
            f"{who} learns that classes without a row never come, here {absent.nonzero().flatten().tolist()}. "
            "Fit on rows of every class, or use TemperatureScaling.",
            stacklevel=4,
        )


def _with_draws(probs: Array, who: str) -> Array:
    """`probs` as [N, C, T], T = 1 where draws have no axis."""
    if not isinstance(probs, np.ndarray | Tensor):
        raise TypeError(f"{who} needs a NumPy array or a torch tensor, got {type(probs).__name__}.")
    if probs.ndim not in (2, 3):
        raise ValueError(f"{who} needs probabilities [N, C] or draws of them [N, C, T], got {list(probs.shape)}.")
    return probs if probs.ndim == 3 else probs[..., None]


def _log(probs: Tensor) -> Tensor:
    return probs.clamp(min=SMALLEST).log_()


def checked_labels(labels: npt.ArrayLike | Tensor, who: str, N: int, C: int) -> Tensor:
    """`labels` as int64 [N] in 0 .. C-1.

    Raises:
        ValueError: They are outside, or of another number.
        TypeError: They are no whole numbers.
    """
    values = as_numpy(labels) if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (N,):
        raise ValueError(f"{who} needs labels [N] for N = {N} rows, got {list(values.shape)}.")
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{who} needs whole numbers as labels, got {values.dtype}. Convert them: labels.astype(int).")
    wrong = (values < 0) | (values >= C)  # [N]
    if wrong.any():
        rows, came = row_names(torch.from_numpy(wrong)), values[wrong][0]
        advice = "Leave rows without a label out, and number labels as the columns of the predictions."
        raise ValueError(f"{who} needs labels in 0 .. {C - 1}, got {came} in {rows}. {advice}")
    return torch.from_numpy(values.astype(np.int64))
