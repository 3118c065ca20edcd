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
    # With --cpu accelerate starts one process only, unless there is MPI; this is its way to several with gloo.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_machines",
        "1",
    ]
    settings = ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    check = [str(Path(__file__).with_name(f"check_{checked}.py")), str(processes)]
    run = subprocess.run(
        [*launch, *settings, "--main_process_port", "0", *check],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "the processes agree" in run.stdout
