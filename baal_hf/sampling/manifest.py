"""What a stored result depends on, in a form that can be written down and compared."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from baal_hf.posterior import dropout_report
from baal_hf.posterior.weights import is_member, weight_files
from baal_hf.store import ArrayStore

_ROWS_AT_ONCE = 10_000
_ROW = 10_000  # bytes; of larger rows there are fewer at once
_PIECE = 2**24  # bytes
_GENERATORS = (torch.Generator, np.random.Generator)
# What a configuration gains by being saved, loaded or trained, and what no result depends on.
_PASSING = ("_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "problem_type", "dtype")


def described(value: Any) -> Any:
    """A posterior, a heuristic, a collator or a part of one as JSON: its class and its attributes.

    Arrays, code and tables are told by their digest. Generators of random numbers are left out, and so is what models
    and tokenizers of transformers are besides their class and how they pad.

    Raises:
        ValueError: A method of an object that holds itself.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return _files_digest(Path(value)) if is_member(Path(value)) else os.fspath(value)
    if isinstance(value, ArrayStore):
        return value.manifest
    if isinstance(value, Tensor | np.ndarray):
        return _digest(value)
    if isinstance(value, Mapping):
        return {str(name): described(part) for name, part in value.items() if not isinstance(part, _GENERATORS)}
    if isinstance(value, list | tuple | range):
        return [described(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((described(part) for part in value), key=repr)
    if isinstance(value, types.MethodType):
        try:
            return [described(value.__self__), described(value.__func__)]
        except RecursionError:
            raise ValueError(
                f"What {value.__qualname__} depends on cannot be told: its object holds itself. Pass a function."
            ) from None
    if isinstance(value, types.FunctionType):
        closed = [described(cell.cell_contents) for cell in value.__closure__ or ()]
        return [value.__qualname__, _code_digest(value.__code__), closed, described(value.__defaults__)]
    if isinstance(value, partial):
        return [described(value.func), described(value.args), described(value.keywords)]
    if isinstance(value, _GENERATORS):
        return None
    if isinstance(value, datasets.Dataset):
        return value._fingerprint
    if isinstance(value, PreTrainedModel):
        return type(value).__name__
    if isinstance(value, PreTrainedTokenizerBase):
        return [type(value).__name__, value.padding_side, value.pad_token_id]
    if hasattr(value, "__qualname__"):  # a class, or a function that is not written in Python
        return f"{value.__module__}.{value.__qualname__}"
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(getattr(value, "__dict__", {}))
    return {"class": type(value).__name__, **{name: described(getattr(value, name)) for name in sorted(names)}}


def model_digest(model: nn.Module) -> str:
    """A digest of the model's class, configuration, weights, dropout rates and active adapters."""
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    settings = {name: value for name, value in settings.items() if name not in _PASSING}
    weights = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    adapters = [str(getattr(model, "peft_config", "")), str(getattr(model, "active_adapter", ""))]
    rates = [[site.where, site.kind, site.p] for site in dropout_report(model).sites]
    named = sorted([name, str(value)] for name, value in settings.items())
    return _digest([type(model).__name__, named, weights, rates, adapters])


def _code_digest(code: types.CodeType) -> str:
    return _digest([code.co_code, [_constant(part) for part in code.co_consts], list(code.co_names)])


def _constant(part: Any) -> str:
    if isinstance(part, types.CodeType):
        return _code_digest(part)
    return repr(sorted(part, key=repr) if isinstance(part, frozenset) else part)  # whose order is another each time


def rows_digest(dataset: Any) -> str:
    """A digest of all rows of a dataset, in their order; they are read once."""
    digest = blake2b(digest_size=16)
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        for column in sorted(dataset.column_names):
            _update(digest, column)
            rows = dataset.select_columns([column]).with_format("arrow")
            first = rows[:1].column(column).combine_chunks().nbytes if len(rows) else 0
            for part in rows.iter(max(1, _ROWS_AT_ONCE >> (first // _ROW).bit_length())):
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
        value = getattr(value, "full_tensor", lambda: value)().detach().cpu()
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
        if hasattr(value, "size") and hasattr(value, "mode"):  # an image
            _update(digest, [value.size, value.mode])
        raw = value.tobytes() if hasattr(value, "tobytes") else value if isinstance(value, bytes) else _text(value)
        digest.update(f"{type(value).__name__} {len(raw)} ".encode() + raw)


def _text(value: Any) -> bytes:
    return repr(value).encode()


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
