"""How far a run is: one bar, on the main process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def progress_bar(shown_as: str, hidden: bool, rows: int | None, draws: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts rows, with what is left, rows and draws of rows a second; what is yielded moves it on.

    Args:
        shown_as: What is done; "draws" are shown with their number.
        hidden: Show nothing.
        rows: How many there are, if that is known.
        draws: Passes for each row.
    """
    shown_as = f"{draws} draws" if shown_as == "draws" else shown_as
    with logging.tqdm(total=rows, unit="row", desc=shown_as, disable=hidden) as bar:
        started, done = time.perf_counter(), 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if draws > 1:
                rate = done * draws / (time.perf_counter() - started)
                bar.set_postfix_str(f"{rate:,.0f} draws/s", refresh=False)
            bar.update(more)

        yield advance
