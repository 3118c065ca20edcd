"""`EnsembleModelWrapper`: a `ModelWrapper` whose draws are networks that were trained one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from baal_hf.modelwrapper import ModelWrapper
from baal_hf.posterior import Ensemble
from baal_hf.posterior.patching import is_patched


class EnsembleModelWrapper(ModelWrapper):
    """A `ModelWrapper` whose draws are the checkpoints that were added (deep ensembles, Lakshminarayanan et al., 2017).

    Predictions are the members'. Tests are of the model as it is, so that a member can be watched while it is trained;
    `average_predictions=T` tests the mean of the first T members.

    Args:
        model: As for `ModelWrapper`, but not patched.
        criterion: As for `ModelWrapper`.
        **arguments: As for `ModelWrapper`, but no posterior.

    Raises:
        ValueError: Another posterior is asked for; otherwise as `ModelWrapper`.
    """

    def __init__(self, model: nn.Module, criterion: Callable[[Any, Any], Tensor] | None, **arguments: Any) -> None:
        if arguments.get("posterior") is not None or is_patched(model):
            raise ValueError(
                "The draws of EnsembleModelWrapper are its members: give it a model that is not patched, and no "
                "posterior. For MC dropout or DropConnect take ModelWrapper."
            )
        super().__init__(model, criterion, **{**arguments, "posterior": _NoMembers()})
        self._checkpoints: list[dict[str, Tensor]] = []

    def add_checkpoint(self) -> None:
        """Make a copy of the model's weights, kept in memory, a member."""
        weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self._checkpoints.append(weights)
        self.posterior = Ensemble(self._checkpoints)

    def clear_checkpoints(self) -> None:
        """Have no members."""
        self._checkpoints = []
        self.posterior = _NoMembers()

    def predict_on_dataset(
        self, dataset: Any, batch_size: int = 32, iterations: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As `ModelWrapper`'s; T is the number of members unless fewer are asked for.

        Raises:
            ValueError: There is no member, or T is larger than their number.
        """
        return super().predict_on_dataset(dataset, batch_size, self._draws(iterations), *args, **kwargs)

    def predict_on_dataset_generator(
        self, dataset: Any, batch_size: int = 32, iterations: int | None = None, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """As `ModelWrapper`'s; T is the number of members unless fewer are asked for."""
        return super().predict_on_dataset_generator(dataset, batch_size, self._draws(iterations), *args, **kwargs)

    def predict_on_batch(self, data: Any, iterations: int | None = None, cuda: bool | None = None) -> Any:
        """As `ModelWrapper`'s; T is the number of members unless fewer are asked for."""
        return super().predict_on_batch(data, self._draws(iterations), cuda)

    def _draws(self, iterations: int | None) -> int:
        if iterations is None and not self._checkpoints:
            raise ValueError(_NoMembers.what_to_do)
        return len(self._checkpoints) if iterations is None else iterations


class _NoMembers:
    """The posterior of an ensemble that has no members yet."""

    size: int | None = None
    swaps_weights = True
    what_to_do = "An ensemble needs members: train the model and call add_checkpoint() for each."

    def draw(self, model: nn.Module, t: int) -> AbstractContextManager[None]:
        raise ValueError(self.what_to_do)
