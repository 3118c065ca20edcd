"""Scoring on several processes, and on those that are killed: `check_scoring.py`, started without a launcher.

A launcher would end the process that outlives another one; here it must end by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from baal_hf.store import ArrayStore

pytestmark = pytest.mark.distributed
LIMIT = 80  # seconds


def ended(processes: int, check: str, folder: Path, *more: str) -> list[tuple[int, str, float]]:
    """Start a check on so many processes and wait for them: status, what was written to stderr, and seconds of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("check_scoring.py")), check, str(processes), str(folder)]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder.mkdir(exist_ok=True)
    running = []
    for rank in map(str, range(processes)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, **common} if processes > 1 else {}
        with open(folder / f"stderr-{rank}", "w") as errors:  # a pipe that is full would hold the process up
            environment = {**os.environ, **ranks, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen([*command, *more], env=environment, stderr=errors))
    try:
        return awaited(running, folder)
    finally:
        for process in running:
            process.kill()
            process.wait()


def awaited(running: list[subprocess.Popen[bytes]], folder: Path) -> list[tuple[int, str, float]]:
    """Status, stderr and time of each process, once all have ended."""
    started, seconds = time.monotonic(), [0.0] * len(running)
    while not all(seconds):
        assert time.monotonic() - started < LIMIT, f"processes hang: {[process.poll() for process in running]}"
        for rank, process in enumerate(running):
            if process.poll() is not None and not seconds[rank]:
                seconds[rank] = time.monotonic() - started
        time.sleep(0.05)
    errors = [(folder / f"stderr-{rank}").read_text() for rank in range(len(running))]
    return [(process.returncode, *rest) for process, *rest in zip(running, errors, seconds, strict=True)]


def succeed(processes: int, check: str, folder: Path, *more: str) -> None:
    """A check passes on every process."""
    for status, errors, _ in ended(processes, check, folder, *more):
        assert status == 0, errors[-3000:]


def done(folder: Path) -> dict[str, list[int]]:
    """Numbers of the rows that the last run was given for each store."""
    return json.loads((folder / "done.json").read_text())


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that were killed in the third chunk of either store."""
    folder = tmp_path_factory.mktemp("killed")
    for name in ("predictions", "scores"):
        statuses = [status for status, _, _ in ended(2, "stores", folder, name)]
        assert statuses == [-signal.SIGKILL] * 2
    return folder


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_score_as_one(processes: int, tmp_path: Path) -> None:
    """Scores, queries, stores and errors of several processes are those of the model alone, row by row."""
    succeed(processes, "answers", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_memory_that_runs_out_on_one_process_moves_no_row(processes: int, tmp_path: Path) -> None:
    """Where one process had to halve its batches, later chunks still have each row once."""
    succeed(processes, "memory", tmp_path)


@pytest.mark.slow
def test_unseeded_heuristics_give_all_processes_one_query(tmp_path: Path) -> None:
    """A heuristic that shuffles or samples without a seed ranks the same rows on every process."""
    succeed(2, "seeds", tmp_path)


@pytest.mark.slow
def test_stores_do_not_tell_how_many_wrote_them(tmp_path: Path) -> None:
    """Two processes and one make the same stores, and either takes those of the other for its own."""
    one, two = tmp_path / "one", tmp_path / "two"
    succeed(1, "stores", one)
    succeed(2, "stores", two)
    assert done(one) == done(two) == {"predictions": [*range(200)], "scores": [*range(4600)]}
    for name in ("predictions", "scores"):
        mine, theirs = ArrayStore(one / name), ArrayStore(two / name)
        assert mine.manifest == theirs.manifest
        for chunk, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(chunk, other, rtol=0, atol=1e-5)
    succeed(1, "stores", two)
    assert done(two) == {"predictions": [], "scores": []}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_killed_runs_go_on_with_what_is_missing(processes: int, killed: Path, tmp_path: Path) -> None:
    """Other processes finish what two left, do only missing chunks, and give the result of a run never killed."""
    folder = shutil.copytree(killed, tmp_path / "copy")
    succeed(processes, "stores", folder)
    assert done(folder) == {"predictions": [*range(128, 200)], "scores": [*range(4096, 4600)]}


@pytest.mark.slow
def test_stores_are_gone_on_with_at_another_batch_size(killed: Path, tmp_path: Path) -> None:
    """A store whose rows have no length keeps the chunks it was made with when the batch size is another."""
    folder = shutil.copytree(killed, tmp_path / "copy")
    succeed(1, "larger", folder)
    assert done(folder)["predictions"] == [*range(128, 200)]


@pytest.mark.slow
def test_survivors_end(tmp_path: Path) -> None:
    """When a process is killed in a forward pass the others end soon after, with an error."""
    (status, errors, survived), (killed, _, died) = ended(2, "death", tmp_path)
    assert killed == -signal.SIGKILL
    assert status > 0
    assert "by peer" in errors, errors[-3000:]  # closed, or reset
    assert survived - died < 30
    print(f"the survivor ended after {survived - died:.1f} s")
