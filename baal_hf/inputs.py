"""What of a row reaches a model: its inputs without labels, of which no row is longer than the model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Any

import datasets
import torch
from torch import nn

from baal_hf.arrays import NumpyArray, row_names
from baal_hf.rows import ROW_ID
from baal_hf.sampling import token_lengths

_MASKS = ("attention_mask", "decoder_attention_mask", "pixel_attention_mask")
# Tables of learned positions, by the names that transformers' models give them.
_POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


class InputCollator:
    """The data collator on rows, and of batches, without what does not reach the model: labels, row ids, other columns.

    What says which positions are padding stays in batches where the model does not take it: `taken` leaves it out. A
    class, so that worker processes can be given it.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], labels: set[str], inputs: set[str] | None) -> None:
        self.collator = collator
        self.labels = labels
        self.inputs = inputs

    def wants(self, name: str) -> bool:
        return name not in self.labels and name != ROW_ID and (self.inputs is None or name in self.inputs)

    def __call__(self, rows: list[Any]) -> Any:
        try:
            batch = self.collator([self._wanted(row) for row in rows])
        except KeyError as error:
            raise ValueError(
                f"The data collator asks for {error}, which predicting does not give it: labels are hidden in a pool. "
                "Let it leave out what a row does not have."
            ) from error
        return self._wanted(batch, also=_MASKS)

    def _wanted(self, row: Any, also: Container[str] = ()) -> Any:
        if not isinstance(row, Mapping):
            return row
        return {name: row[name] for name in row if self.wants(name) or name in also}

    def taken(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is given of a batch."""
        return {name: value for name, value in batch.items() if self.wants(name)}


def model_columns(dataset: Any, collator: InputCollator, model: str) -> Any:
    """The dataset without columns that the model does not take, which then need not be read."""
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return dataset
    columns = [name for name in dataset.column_names if collator.wants(name)]
    if not columns:
        raise ValueError(
            f"{model} takes none of the dataset's columns {dataset.column_names}. Tokenize the dataset first, or set "
            "remove_unused_columns=False if the data collator does it."
        )
    return dataset.select_columns(columns)


def input_names(model: nn.Module) -> set[str]:
    """What the model's forward takes."""
    base = getattr(model, "get_base_model", lambda: model)()  # the forward of a PEFT model takes anything
    return _parameters(type(base).forward)


@cache
def _parameters(forward: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(forward).parameters) - {"self"}


def checked_lengths(model: nn.Module, dataset: Any, first_row: int = 0) -> NumpyArray | None:
    """Tokens of each row, int64 [N]; None where rows have no length.

    Raises:
        ValueError: Rows are longer than the model has positions for, or have no tokens.
    """
    lengths = token_lengths(dataset)
    if lengths is None or not len(lengths):
        return lengths
    if lengths.min() == 0:
        empty = torch.from_numpy(lengths == 0)
        raise ValueError(f"{type(model).__name__} needs tokens, there are none in {row_names(empty, first_row)}.")
    limit = positions(model)
    if limit is not None and lengths.max() > limit:
        longer = torch.from_numpy(lengths > limit)
        raise ValueError(
            f"{type(model).__name__} takes {limit} tokens, there are up to {lengths.max()} in "
            f"{row_names(longer, first_row)}: tokenize with truncation=True, max_length={limit}."
        )
    return lengths


def positions(model: nn.Module) -> int | None:
    """Tokens that the model's table of learned positions has places for; None where it has no such table."""
    sizes = []
    others = ["vision"] + ["decoder."] * bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    for path, module in model.named_modules():
        if any(other in path for other in others):  # not for the tokens of a row
            continue
        if path.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding):
            before = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            sizes.append(module.num_embeddings - before)
    return min(sizes, default=None)
