"""Weights on their way into a model and back: what a member of an ensemble has saved, and what waits meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

Member = str | os.PathLike[str] | Mapping[str, Tensor]

_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Saved:
    """The weights of a member.

    Attributes:
        shapes: By name.
        read: The weight of a name.
    """

    shapes: dict[str, list[int]]
    read: Callable[[str], Tensor]


def has_weights(folder: Path) -> bool:
    """Whether a folder is a checkpoint or an adapter that can be read."""
    return any((folder / name).exists() for name in (_WEIGHTS, _INDEX, _ADAPTER))


def is_member(path: Path) -> bool:
    """Whether there are weights of a member."""
    return (path.is_file() and path.suffix == ".safetensors") or has_weights(path)


def weight_files(member: Path) -> list[Path]:
    """The files that hold a member's weights.

    Raises:
        FileNotFoundError: There is no such path.
        ValueError: It has no weights, or only pickled ones.
    """
    if not member.exists():
        raise FileNotFoundError(f"Ensemble found no member {member}.")
    if member.is_file() and member.suffix == ".safetensors":
        return [member]
    if (member / _INDEX).exists():
        shards = json.loads((member / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [member / shard for shard in sorted(set(shards))]
    for name in (_WEIGHTS, _ADAPTER):
        if (member / name).exists():
            return [member / name]
    raise ValueError(
        f"Ensemble found no weights in {member}: a member is a folder with {_WEIGHTS} or {_ADAPTER}, or a .safetensors "
        "file. Pickled weights (.bin, .pt) are not read."
    )


def saved_for(model: nn.Module, member: Member) -> tuple[dict[str, Tensor], Saved]:
    """The weights in the model that a member's take the place of, and the member's; nothing is changed.

    Raises:
        ValueError: Names or shapes are not the same.
    """
    saved = _state_dict(member) if isinstance(member, Mapping) else _on_disk(Path(member))
    live = _live(model, saved.shapes)
    if not isinstance(member, Mapping) and _foreign(live, saved) and _is_transformers(model, Path(member)):
        # Some architectures are saved under other names than they run with: transformers knows how to read them.
        saved = _state_dict(type(model).from_pretrained(member, config=model.config).state_dict())  # type: ignore[attr-defined]
    _check(live, saved, "a state dict" if isinstance(member, Mapping) else str(member))
    return live, saved


def _state_dict(weights: Mapping[str, Tensor]) -> Saved:
    tensors = {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    return Saved({name: list(weight.shape) for name, weight in tensors.items()}, tensors.__getitem__)


def _on_disk(member: Path) -> Saved:
    file_of: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    for file in weight_files(member):
        with _opened(file) as content:
            here = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118 (no dict)
        shapes |= here
        file_of |= dict.fromkeys(here, file)

    def read(name: str) -> Tensor:
        with _opened(file_of[name]) as content:  # for each weight anew: what was read of an open file stays in memory
            weight: Tensor = content.get_tensor(name)
            return weight

    return Saved(shapes, read)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if not file.exists():
        raise FileNotFoundError(f"Ensemble found no {file}, which the checkpoint's index names.")
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise ValueError(f"Ensemble cannot read {file}: {error}. Is it whole?") from error


def _live(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of the model that weights of these names take the place of: all, or those of its adapter."""
    weights = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, Tensor)}
    if set(names) <= set(weights):
        return weights
    adapters: Any = getattr(model, "peft_config", None)
    if adapters is None and any("lora_" in name for name in names):
        raise ValueError(
            f"A member is an adapter, and {type(model).__name__} has none: load the first with "
            "peft.PeftModel.from_pretrained(model, folder), the others are exchanged for it."
        )
    if adapters is None:
        return weights
    from peft import get_peft_model_state_dict

    active: Any = model.active_adapters
    active = active() if callable(active) else active
    if len(active) != 1:
        raise ValueError(f"Ensemble exchanges the adapter that is active, and {len(active)} are: {list(active)}.")
    adapter = get_peft_model_state_dict(model, adapter_name=active[0], save_embedding_layers=False)
    if set(names) <= set(adapter):
        return dict(adapter)
    # A model of transformers with an adapter inside it saves that as if a PeftModel were around it.
    return {f"base_model.model.{name}": weight for name, weight in adapter.items()}


def _foreign(live: Mapping[str, Tensor], saved: Saved) -> list[str]:
    """Names that only one of the two has; weights that are tied are saved under one of their names."""
    places = {live[name].data_ptr() for name in saved.shapes if name in live}
    missing = [name for name in live if name not in saved.shapes and live[name].data_ptr() not in places]
    return missing + [name for name in saved.shapes if name not in live]


def _is_transformers(model: nn.Module, member: Path) -> bool:
    return hasattr(model, "from_pretrained") and (member / "config.json").exists()


def _check(live: Mapping[str, Tensor], saved: Saved, who: str) -> None:
    foreign = _foreign(live, saved)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        side = "the model has no" if foreign[0] in saved.shapes else "it has no"
        raise ValueError(f"Ensemble cannot put {who} in the model: {side} {', '.join(foreign[:3])}{more}.")
    for name, shape in saved.shapes.items():
        if list(live[name].shape) != shape:
            here = list(live[name].shape)
            raise ValueError(f"Ensemble cannot put {who} in the model: {name} is {shape} there and {here} here.")


@contextmanager
def kept_aside(weights: Iterable[Tensor]) -> Iterator[None]:
    """Keep tensors in a temporary file, and put them back on leaving."""
    distinct = list({(weight.data_ptr(), weight.shape): weight for weight in weights}.values())
    with TemporaryFile() as file:  # buffered: a short write is gone on with, a full disk is an error
        for part in (part for weight in distinct for part in _parts(weight)):
            file.write(_bytes(part.cpu()))
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            with torch.no_grad():
                for part in (part for weight in distinct for part in _parts(weight)):
                    back = torch.empty(part.shape, dtype=part.dtype)
                    file.readinto(_bytes(back))
                    part.copy_(back)


def _parts(weight: Tensor) -> Sequence[Tensor]:
    """A tensor in views of a few megabytes, so that moving it takes no more memory than that."""
    return torch.split(weight.view(-1), 2**20) if weight.is_contiguous() else (weight,)


def _bytes(weight: Tensor) -> memoryview:
    values: Any = weight.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)
