"""Which rows make a batch: every row once in a pass, each pass in an order of its own, which a seed names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def shuffled(rows: int, seed: int, number: int) -> np.typing.NDArray[np.int64]:
    """Positions of all rows in the order of a pass, int64 [rows]: a function of the seed and the pass's number."""
    return np.random.default_rng([seed, number]).permutation(rows)


class PassBatches:
    """Batches of positions, one pass over the rows an iteration; the last batch may be smaller.

    Args:
        rows: Number of rows.
        batch_size: Rows of a batch.
        seed: Names the sequence of orders.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self._passes = 0

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # A pass counts once it is begun: a DataLoader with workers asks for an iterator that it does not read.
        order = shuffled(self.rows, self.seed, self._passes)
        self._passes += 1
        for i in range(0, self.rows, self.batch_size):
            yield order[i : i + self.batch_size].tolist()


class EndlessBatches:
    """Batches of positions without end, pass after pass; a batch may span two passes, so that all have one size.

    The n-th batch is a function of the arguments and n. So training that goes on sees what it would have seen, and
    processes that make the same steps have other rows of a pass.

    Args:
        rows: Number of rows.
        batch_size: Rows of a batch on each process.
        seed: Names the sequence of orders.
        first: Batches to leave out at the start.
        processes: Number of processes.
        process: This one's index.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int, first: int = 0, processes: int = 1, process: int = 0
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.first = first
        self.processes = processes
        self.process = process

    def __iter__(self) -> Iterator[list[int]]:
        place = (self.first * self.processes + self.process) * self.batch_size
        known: tuple[int, np.typing.NDArray[np.int64]] | None = None  # one pass's order at a time
        while True:
            batch: list[int] = []
            while len(batch) < self.batch_size:
                number, start = divmod(place + len(batch), self.rows)
                if known is None or known[0] != number:
                    known = number, shuffled(self.rows, self.seed, number)
                batch += known[1][start : start + self.batch_size - len(batch)].tolist()
            yield batch
            place += self.processes * self.batch_size
