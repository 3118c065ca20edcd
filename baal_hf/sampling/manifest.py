"""What a stored result depends on, in a form that can be written down and compared."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from baal_hf.posterior.weights import weight_files

_ROWS_AT_ONCE = 10_000
_PIECE = 2**24  # bytes
# Where a configuration was loaded from, and by which version.
_PASSING = ("_name_or_path", "transformers_version")


def described(value: Any) -> Any:
    """A posterior, a heuristic or a part of one as JSON: its class and its public attributes, arrays by their digest.

    Generators of random numbers are left out.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return _files_digest(Path(value))
    if isinstance(value, Tensor | np.ndarray):
        return _digest(value)
    if isinstance(value, Mapping):
        return {str(name): described(part) for name, part in value.items()}
    if isinstance(value, list | tuple | range | set):
        return [described(part) for part in value]
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__} {_digest(value.__code__.co_code + repr(value.__code__.co_consts).encode())}"
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(getattr(value, "__dict__", {}))
    public = {name: described(getattr(value, name)) for name in sorted(names) if name[0] != "_" and name != "rng"}
    return {"class": type(value).__name__, **public}


def model_digest(model: nn.Module) -> str:
    """A digest of the model's class, configuration and weights."""
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    settings = {name: value for name, value in settings.items() if name not in _PASSING}
    weights = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return _digest([type(model).__name__, sorted((name, str(value)) for name, value in settings.items()), weights])


def rows_digest(dataset: Any) -> str:
    """A digest of all rows of a dataset, in their order; they are read once."""
    digest = blake2b(digest_size=16)
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        for column in sorted(dataset.column_names):
            _update(digest, column)
            for part in dataset.select_columns([column]).with_format("arrow").iter(_ROWS_AT_ONCE):
                _update_arrow(digest, part.column(column).combine_chunks())
    else:
        for position in range(len(dataset)):
            _update(digest, dataset[position])
    return digest.hexdigest()


def _digest(value: Any) -> str:
    digest = blake2b(digest_size=16)
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Go on with a value; its kind and size go before it, so that no two values look the same."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype.str} {value.shape}".encode())
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        for start in range(0, len(flat), _PIECE):
            digest.update(flat[start : start + _PIECE])
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for name, part in value.items():
            _update(digest, name)
            _update(digest, part)
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)}".encode())
        for part in value:
            _update(digest, part)
    else:
        raw = (
            value
            if isinstance(value, bytes)
            else value.tobytes()
            if hasattr(value, "tobytes")
            else repr(value).encode()
        )
        digest.update(f"{type(value).__name__} {len(raw)} ".encode() + raw)


def _update_arrow(digest: Any, array: Any) -> None:
    """Go on with an Arrow array, whatever lies before and behind it in its buffers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        _update(digest, pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False))
        _update_arrow(digest, array.flatten())
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        _update(digest, array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else True)
        _update(digest, pc.fill_null(array, 0).to_numpy(zero_copy_only=False))
    else:
        _update(digest, array.to_pylist())


def _files_digest(member: Path) -> str:
    digest = blake2b(digest_size=16)
    for path in weight_files(member):
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()
