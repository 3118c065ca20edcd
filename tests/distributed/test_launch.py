"""The checks of this folder, started as users start scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("checked", ["trainer", "modelwrapper"])
def test_processes_give_the_answer_of_one(processes: int, checked: str) -> None:
    """Under accelerate launch on the CPU each process has every row's predictions, and all label the same rows."""
    assert "the processes agree" in launched(processes, f"check_{checked}.py", str(processes))


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_learn_from_unlabelled_rows_as_one(tmp_path: Path) -> None:
    """Semi-supervised training on two processes ends with the weights that one process has."""
    check = Path(__file__).parents[1] / "semisupervised" / "check_processes.py"
    launched(1, check, "1", str(tmp_path / "weights"))
    assert "the processes agree" in launched(2, check, "2", str(tmp_path / "weights"))


def launched(processes: int, check: str | Path, *arguments: str) -> str:
    """What a check of this folder prints when accelerate launches it on so many processes."""
    # With --cpu accelerate starts one process only, unless there is MPI; this is its way to several with gloo.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        *(["--multi_gpu"] if processes > 1 else []),
        "--num_machines",
        "1",
    ]
    settings = ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    run = subprocess.run(
        [*launch, *settings, "--main_process_port", "0", str(Path(__file__).parent / check), *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
