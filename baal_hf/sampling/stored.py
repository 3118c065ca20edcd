"""Sampling into a store on disk: what is there already is not done again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from baal_hf.posterior import Posterior
from baal_hf.sampling.engine import Sampler, Value, check_length
from baal_hf.sampling.joining import halved
from baal_hf.store import ArrayStore

Folder = str | os.PathLike[str]


def sample_to_store(
    sampler: Sampler,
    dataset: Any,
    draws: Sequence[int],
    folder: Folder,
    manifest: Mapping[str, Any],
    accelerator: Accelerator,
    *,
    value: Value | None = None,
    half: bool = False,
) -> ArrayStore:
    """What a sampler keeps of each chunk, in a store; chunks that are there whole already are not done again.

    The main process opens and writes the store, which every process then can read.

    Args:
        sampler: Predicts.
        dataset: Has a length and rows.
        draws: Numbers of the draws.
        folder: Of the store; made if it is not there.
        manifest: What the result depends on.
        accelerator: Of the sampler.
        value: What is kept of a batch.
        half: Store float16.

    Returns:
        The whole store.

    Raises:
        ValueError: The store was made of something else, as the message says.
        TypeError: The dataset has no length.
        OSError: The folder cannot be written, or the disk is full; what is done is kept.
    """
    check_length(dataset, "A store")
    store: ArrayStore | None = None
    plan: list[Any] = [None, 0, []]  # an error for every process, rows of a chunk, chunks that are missing
    if accelerator.is_main_process:
        try:
            rows = _chunk_rows(Path(folder)) or sampler.store_rows(dataset, value)
            store = ArrayStore(folder, {"rows": len(dataset), "chunk_rows": rows, **manifest})
            plan = [None, rows, store.missing()]
        except Exception as error:  # whatever it is, the others wait to be told
            plan = [error, 0, []]
    if accelerator.num_processes > 1:
        broadcast_object_list(plan)
    refusal, rows, missing = plan
    if refusal is not None:
        raise refusal
    if missing:
        for chunk in sampler.chunks(dataset, draws, value, rows, set(missing)):
            if store is not None:
                store.write(chunk.number, (halved(chunk.values) if half else chunk.values).numpy())
    accelerator.wait_for_everyone()
    return store or ArrayStore(folder)


def refuse_fresh(posterior: Posterior, who: str) -> None:
    """Refuse draws that are others each time: what goes on could not be the same as what was begun.

    Raises:
        ValueError: The posterior's masks are fresh.
    """
    if getattr(posterior, "masks", None) == "fresh":
        raise ValueError(f'{who} needs draws that can be repeated, which masks="fresh" are not: take MCDropout().')


def _chunk_rows(folder: Path) -> int | None:
    """Rows of a chunk as the store has them, which a run with another batch size goes on with."""
    try:
        return int(ArrayStore(folder).manifest["chunk_rows"])
    except (OSError, ValueError):
        return None  # there is none, or it is broken, which is said when it is opened for going on
