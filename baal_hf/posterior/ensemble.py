"""Ensembles: draws that are separately trained networks, or adapters, read from disk one at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from baal_hf.posterior.base import opened
from baal_hf.posterior.switches import evaluation_flags
from baal_hf.posterior.weights import Member, has_weights, kept_aside, saved_for, weight_files


class Ensemble:
    """Deep ensemble (Lakshminarayanan et al., 2017; 1612.01474): the t-th draw is the t-th member.

    A member's weights are written into the model when its draw is opened, in the model's precision; the model's own
    wait in a temporary file and come back when it ends. So there is one member in memory at a time, whatever their
    number. Nothing pickled is read.

    Checkpoints of one training run with a cyclic learning rate make a snapshot ensemble (Huang et al., 2017;
    1704.00109): `Ensemble(args.output_dir)`. Members that are LoRA adapters (needs `peft`) exchange the adapter alone;
    the model is then a `PeftModel` whose adapter has their configuration.

    Args:
        members: A folder that has a checkpoint in each subfolder (those of a Trainer, in the order of their numbers) or
            `.safetensors` files; or a sequence of members, each a checkpoint's folder, a `.safetensors` file, an
            adapter's folder, or a state dict.

    Attributes:
        size: Number of members.
        swaps_weights: True.

    Raises:
        FileNotFoundError: A path does not exist.
        TypeError: `members` is a single state dict, not a sequence.
        ValueError: There is no member, or a folder has no weights in it.
    """

    swaps_weights = True

    def __init__(self, members: str | os.PathLike[str] | Sequence[Member]) -> None:
        if isinstance(members, Mapping):
            raise TypeError("Ensemble needs a sequence of members, got one state dict: give a list.")
        self.members: list[Member] = (
            [*_found(Path(members))]
            if isinstance(members, str | os.PathLike)
            else [Path(member) if isinstance(member, str) else member for member in members]
        )
        if not self.members:
            raise ValueError("Ensemble needs at least one member, got none.")
        for member in self.members:
            if not isinstance(member, Mapping):
                weight_files(Path(member))
        self.size: int | None = len(self.members)

    @contextmanager
    def draw(self, model: nn.Module, t: int) -> Iterator[None]:
        """Make `model` the t-th member for the length of a `with` block.

        Raises:
            ValueError: `t` is negative or beyond `size`, or the member's names or shapes are not the model's.
            TypeError: `model` is wrapped in `nn.DataParallel`.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        with opened(self, model, t) as bare, evaluation_flags(bare):
            live, saved = saved_for(bare, self.members[t])
            try:
                with kept_aside(live.values()):
                    with torch.no_grad():
                        for name in saved.shapes:
                            live[name].copy_(saved.read(name))
                    del saved
                    torch.clear_autocast_cache()  # of other weights, in an autocast region that somebody has opened
                    yield
            finally:
                torch.clear_autocast_cache()


def train_ensemble(trainer: Any, members: int, seeds: Sequence[int] | None = None) -> Ensemble:
    """Train members one after the other, from the same weights but each with a seed of its own.

    A seed governs the order of the rows (unless `args.data_seed` is set) and dropout; with a trainer that has
    `model_init` also the weights that are not pretrained, which is what makes members differ most. Each is saved in
    `member-0`, `member-1`, ... of `args.output_dir`. The trainer is left with the last member as its model.

    Args:
        trainer: A `BaalTransformersTrainer`.
        members: How many.
        seeds: One for each member; from `args.seed` upwards by default.

    Returns:
        The ensemble of what was saved; make it the trainer's `posterior`.

    Raises:
        ValueError: `members` < 1, or seeds that are not as many or not different.
    """
    seeds = range(trainer.args.seed, trainer.args.seed + members) if seeds is None else seeds
    if members < 1 or len(set(seeds)) != members or len(seeds) != members:
        raise ValueError(
            f"train_ensemble needs members >= 1 and as many different seeds, got {members}, {list(seeds)}."
        )
    given = trainer.args.seed
    begun = {name: weight.detach().to("cpu", copy=True) for name, weight in _trained(trainer.model)}
    folders = [Path(trainer.args.output_dir, f"member-{number}") for number in range(members)]
    try:
        for folder, seed in zip(folders, seeds, strict=True):
            trainer.args.seed = seed
            set_seed(seed)
            if trainer.model_init is None:
                trainer.load_state_dict(begun, strict=False)
            trainer.train()
            trainer.save_model(str(folder))
            trainer.accelerator.wait_for_everyone()  # the main process has written what all will read
    finally:
        trainer.args.seed = given
    return Ensemble(folders)


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What training changes: frozen parameters, such as those under an adapter, stay as they are."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return ((name, weight) for name, weight in model.state_dict().items() if name not in frozen)


def _found(folder: Path) -> list[Path]:
    """The members in a folder, in the order of the numbers in their names."""
    if not folder.exists():
        raise FileNotFoundError(f"Ensemble found no folder {folder}.")
    checkpoints = [part for part in folder.iterdir() if part.is_dir() and has_weights(part)]
    if not checkpoints and has_weights(folder) and any(folder.glob("*config.json")):
        return [folder]  # itself a checkpoint
    members = checkpoints or [part for part in folder.iterdir() if part.suffix == ".safetensors"]
    if not members:
        raise ValueError(
            f"Ensemble found no checkpoints in {folder}: it takes a folder of checkpoint folders or of .safetensors "
            "files. Pickled weights (.bin, .pt) are not read: save them with safetensors."
        )
    return sorted(members, key=lambda part: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", part.name)])
