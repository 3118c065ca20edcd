"""What an ensemble costs beside plain passes of one model: time, and memory at its peak.

    python scripts/bench_ensemble.py

Five checkpoints of all-MiniLM-L6-v2 with a head of five classes predict 1,000 rows of 32 to 128 tokens in batches of 16
rows, through the engine that the trainer uses, in float32. Time is that of five draws beside five passes without an
ensemble, in turns; memory is what a process of its own holds at its peak, predicting with either.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from text_data import packaged_minilm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from baal_hf import Deterministic, Ensemble, Posterior
from baal_hf.sampling import Sampler

ROWS, MEMBERS, RUNS = 1000, 5, 3


def model() -> transformers.PreTrainedModel:
    """The network."""
    return AutoModelForSequenceClassification.from_pretrained(packaged_minilm(), num_labels=5).eval()


def rows() -> Dataset:
    """Rows of token ids."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(32, 129, (ROWS,), generator=generator).tolist()
    ids = [torch.randint(1000, 20000, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids})


def predict(network: torch.nn.Module, posterior: Posterior, iterations: int) -> None:
    """All rows under draws of a posterior."""
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(packaged_minilm()))
    forward = lambda network, batch: network(**batch).logits.softmax(-1)  # noqa: E731
    sampler = Sampler(network, posterior, forward, Accelerator(), batch_size=16, collate_fn=collator)
    for _ in sampler.predictions(rows(), iterations):
        pass


def seconds(network: torch.nn.Module, posterior: Posterior, iterations: int, times: int) -> float:
    """Wall-clock time of predicting so many times."""
    started = time.perf_counter()
    for _ in range(times):
        predict(network, posterior, iterations)
    return time.perf_counter() - started


def save_members(folder: str) -> None:
    """Checkpoints that differ in their heads."""
    network = model()
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        torch.nn.init.normal_(network.classifier.weight, std=0.02)
        network.save_pretrained(Path(folder, f"checkpoint-{seed}"))


JOBS: dict[str, Callable[[str], object]] = {
    "save": save_members,
    "nothing": lambda folder: None,
    "one": lambda folder: seconds(model(), Deterministic(), 1, MEMBERS),
    "ensemble": lambda folder: predict(model(), Ensemble(folder), MEMBERS),
}


def peak(folder: str, job: str) -> float:
    """Peak memory in megabytes of a process of its own that does a job."""
    # What the kernel says of a process begins with the memory of the one that started it: start them while it is small.
    run = subprocess.run([sys.executable, __file__, folder, job], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1]) / 1024


def main() -> None:
    """Save the members, weigh both, and time both."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if len(sys.argv) == 3:
        folder, job = sys.argv[1:]
        JOBS[job](folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = {job: peak(folder, job) for job in JOBS}
        print(
            ", ".join(f"{job}: {megabytes:.0f} MB" for job, megabytes in peaks.items() if job != "save"), "at the peak"
        )
        ratio = (peaks["ensemble"] - peaks["nothing"]) / (peaks["one"] - peaks["nothing"])
        print(f"memory: {ratio:.2f} times one model's, libraries left out")
        network, ensemble = model(), Ensemble(folder)
        ratios = []
        for _ in range(RUNS):
            base = seconds(network, Deterministic(), 1, MEMBERS)
            ratios.append(seconds(network, ensemble, MEMBERS, 1) / base)
        shown = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
        print(f"time: {statistics.median(ratios):.2f} times five plain predictions of {ROWS} rows (of {shown})")


if __name__ == "__main__":
    main()
