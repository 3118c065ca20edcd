"""What the heuristics cost beside their peers, and how good BatchBALD's choice is.

    pip install --no-deps batchbald-redux==2.0.5 baal==2.1.0 toma==1.1.0 structlog==22.3.0 torchmetrics==1.9.0 \\
        lightning-utilities==0.15.2
    pip install scikit-activeml==1.0.1
    python scripts/bench_heuristics.py                # all, with the peers that are installed: about 20 minutes
    python scripts/bench_heuristics.py --ours         # without peers: about 2 minutes
    python scripts/bench_heuristics.py batchbald-10   # one line

The pool is one of a Bayesian linear classifier: rows x ~ N(0, 1) of 16 numbers, and T weight matrices around a common
one, hence draws are consistent networks. Each run is a process, and medians are printed: seconds and CPU seconds are
those of the call alone, memory is what the process grew by during the call. A peer that takes longer than `--limit`
seconds is stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = 0
Task = Callable[[], Callable[[], Any]]
"""Makes the data and returns the call that is measured."""


def pool(N: int, C: int = 10, T: int = 20, seed: int = SEED) -> Tensor:
    """Class probabilities under T draws of a Bayesian linear classifier, float32 [N, C, T]."""
    generator = torch.Generator().manual_seed(SEED)
    weights = torch.randn(16, C, 1, generator=generator) + 0.5 * torch.randn(16, C, T, generator=generator)
    rows = torch.randn(N, 16, generator=torch.Generator().manual_seed(seed))
    probs = torch.empty(N, C, T)
    for start in range(0, N, 10_000):
        part = torch.tensordot(rows[start : start + 10_000], weights, dims=1) / 2  # [n, C, T]
        torch.softmax(part, 1, out=probs[start : start + 10_000])
    return probs


def features(N: int, d: int = 384) -> Tensor:
    """Representations of the rows, float32 [N, d]."""
    return torch.randn(N, d, generator=torch.Generator().manual_seed(SEED + 1))


# Tasks: name -> who -> what is measured. Ours come first.


def batchbald_ours(K: int) -> Task:
    """K picks of 10,000 rows."""

    def prepare() -> Callable[[], Any]:
        from baal_hf.heuristics import batchbald

        probs = pool(10_000)
        return lambda: batchbald(probs, K)[0].tolist()

    return prepare


def batchbald_redux(K: int) -> Task:
    """The same by batchbald_redux, with 10,000 configurations."""

    def prepare() -> Callable[[], Any]:
        from batchbald_redux.batchbald import get_batchbald_batch

        log_probs = pool(10_000).log().permute(0, 2, 1).double()  # [N, T, C]
        return lambda: get_batchbald_batch(log_probs, K, 10_000, dtype=torch.double).indices

    return prepare


def batchbald_baal(K: int) -> Task:
    """The same by Baal."""

    def prepare() -> Callable[[], Any]:
        from baal.active.heuristics import BatchBALD

        probs = pool(10_000).numpy()
        return lambda: BatchBALD(num_samples=K)(probs)[:K].tolist()

    return prepare


def batchbald_skactiveml(K: int) -> Task:
    """The same by scikit-activeml, with 2,000 configurations: it holds them all for all rows."""

    def prepare() -> Callable[[], Any]:
        from skactiveml.pool import batch_bald

        probs = pool(10_000).numpy().transpose(2, 0, 1)  # [T, N, C]
        return lambda: np.nanargmax(batch_bald(probs, K, n_MC_samples=2_000, random_state=0), 1).tolist()

    return prepare


def ranking_ours(name: str) -> Task:
    """A ranking of 10,000 rows."""

    def prepare() -> Callable[[], Any]:
        from baal_hf.heuristics import get_heuristic

        probs = pool(10_000)
        return lambda: len(get_heuristic(name).get_ranks(probs)[0])

    return prepare


def ranking_baal(name: str) -> Task:
    """The same by Baal."""

    def prepare() -> Callable[[], Any]:
        from baal.active.heuristics import BALD, stochastics

        probs = pool(10_000).numpy()
        samplers = {"softmaxbald": stochastics.GibbsSampling, "rankbald": stochastics.RankBasedSampling}
        sampler = samplers.get(name, stochastics.PowerSampling)
        return lambda: len(sampler(BALD(), query_size=10).get_ranks(probs)[0])

    return prepare


def epig_ours() -> Callable[[], Any]:
    """10,000 rows, 1,000 targets."""
    from baal_hf.heuristics import epig

    probs, targets = pool(10_000), pool(1_000, seed=1)
    return lambda: float(epig(probs, targets).mean())


def epig_baal() -> Callable[[], Any]:
    """The same by Baal."""
    from baal.active.heuristics import EPIG

    probs, targets = pool(10_000).numpy(), pool(1_000, seed=1).numpy()
    return lambda: float(np.mean(EPIG().get_uncertainties(probs, target_predictions=targets)))


def badge_ours() -> Callable[[], Any]:
    """100 picks of 10,000 rows."""
    from baal_hf.heuristics import BADGE

    probs, rows = pool(10_000), features(10_000)
    return lambda: BADGE()(probs, 100, features=rows).tolist()


def badge_explicit() -> Callable[[], Any]:
    """The same with scikit-learn's k-means++ on the gradients themselves, [N, C·d]."""
    from sklearn.cluster import kmeans_plusplus

    probs, rows = pool(10_000).mean(-1), features(10_000)
    residual = probs - torch.nn.functional.one_hot(probs.argmax(1), 10)  # [N, C]

    def run() -> Any:
        gradients = (residual[:, :, None] * rows[:, None, :]).flatten(1).numpy()  # [N, C·d]
        return kmeans_plusplus(gradients, 100, random_state=0, n_local_trials=1)[1].tolist()

    return run


def scoring_ours(name: str) -> Task:
    """A million rows in one array."""

    def prepare() -> Callable[[], Any]:
        from baal_hf.heuristics import bald, entropy

        probs = pool(1_000_000)
        function = {"bald": bald, "entropy": entropy}[name]
        return lambda: float(function(probs).mean())

    return prepare


def copying() -> Callable[[], Any]:
    """One copy of that array."""
    probs = pool(1_000_000).numpy()
    return lambda: float(probs.copy()[0, 0, 0])


def scoring_baal(name: str) -> Task:
    """The same by Baal."""

    def prepare() -> Callable[[], Any]:
        from baal.active import heuristics

        probs = pool(1_000_000).numpy()
        heuristic = {"bald": heuristics.BALD, "entropy": heuristics.Entropy}[name]()
        return lambda: float(np.mean(heuristic.get_uncertainties(probs)))

    return prepare


TASKS: dict[str, dict[str, Task]] = {
    "batchbald-10": {
        "baal_hf": batchbald_ours(10),
        "batchbald_redux": batchbald_redux(10),
        "baal": batchbald_baal(10),
        "scikit-activeml": batchbald_skactiveml(10),
    },
    "batchbald-100": {"baal_hf": batchbald_ours(100)},
    "powerbald": {"baal_hf": ranking_ours("powerbald"), "baal": ranking_baal("powerbald")},
    "softmaxbald": {"baal_hf": ranking_ours("softmaxbald"), "baal": ranking_baal("softmaxbald")},
    "rankbald": {"baal_hf": ranking_ours("rankbald"), "baal": ranking_baal("rankbald")},
    "epig": {"baal_hf": epig_ours, "baal": epig_baal},
    "badge-100": {"baal_hf": badge_ours, "k-means++ on gradients": badge_explicit},
    "bald-1M": {"baal_hf": scoring_ours("bald"), "one copy": copying, "baal": scoring_baal("bald")},
    "entropy-1M": {"baal_hf": scoring_ours("entropy"), "one copy": copying, "baal": scoring_baal("entropy")},
}
QUICK = ("baal_hf", "one copy")  # measured several times; the others take too long
ONE_CORE = ("batchbald-10", "batchbald-100")


def measured(task: str, who: str) -> dict[str, Any]:
    """Run in this process, once to warm up where it is quick; seconds, CPU seconds, MB, and what was returned."""
    torch.set_num_threads(1 if task in ONE_CORE else (os.cpu_count() or 1))
    call = TASKS[task][who]()
    if who in QUICK and not task.startswith("batchbald"):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    megabytes = (after.ru_maxrss - before.ru_maxrss) / 1024
    return {"seconds": seconds, "cpu": cpu, "megabytes": megabytes, "answer": answer}


def run_in_process(task: str, who: str, limit: float) -> dict[str, Any] | str:
    """`measured` in a process of its own, or why there is no measurement."""
    command = [sys.executable, __file__, "--measure", task, who]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    if done.returncode:
        told = [line for line in done.stderr.replace("\r", "\n").splitlines() if "Error" in line]
        return f"exit code {done.returncode} {told[-1] if told else ''}"[:120]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def joint_information(probs: Tensor, samples: int = 2_000_000, chunk: int = 100_000) -> tuple[float, float]:
    """Joint mutual information in nats of the labels of rows [K, C, T] and the draw, with its standard error.

    I = log T - E_ŷ[H(θ|ŷ)], ŷ sampled from each draw equally often: an estimator of its own, in float64.
    """
    generator = torch.Generator().manual_seed(SEED + 2)
    log_probs = probs.double().log()  # [K, C, T]
    K, _, T = probs.shape
    unknown = []
    for t in range(T):
        for _ in range(0, samples // T, chunk):
            likelihood = torch.zeros(chunk, T, dtype=torch.float64)
            for k in range(K):
                labels = torch.multinomial(probs[k, :, t].double(), chunk, replacement=True, generator=generator)
                likelihood += log_probs[k, labels]  # [chunk, T]
            posterior = likelihood.softmax(1)
            unknown.append(-torch.xlogy(posterior, posterior).sum(1))
    values = torch.stack(unknown)
    return math.log(T) - float(values.mean()), float(values.std() / math.sqrt(values.numel()))


def row(task: str, who: str, runs: list[dict[str, Any]], ours: dict[str, float]) -> str:
    """A line of the table."""
    middle = {name: statistics.median(run[name] for run in runs) for name in ("seconds", "cpu", "megabytes")}
    ours.update(middle if who == "baal_hf" else {})
    ratio = "" if who == "baal_hf" else f"{middle['cpu'] / ours['cpu']:.2f}"
    figures = f"{middle['seconds']:.3f} | {middle['cpu']:.3f} | {middle['megabytes']:.0f} | {len(runs)} | {ratio}"
    return f"| {task} | {who} | {figures} |"


def main() -> None:
    """Print the table, a line at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"out of {', '.join(TASKS)}; all by default")
    parser.add_argument("--ours", action="store_true", help="leave the peers out")
    parser.add_argument("--runs", type=int, default=5, help="runs of what is quick, of which the median is printed")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a peer is stopped")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(*args.measure)))
        return
    unknown = set(args.tasks) - set(TASKS)
    if unknown:
        parser.error(f"there is no task {', '.join(sorted(unknown))}; the tasks are {', '.join(TASKS)}")
    print("| task | who | seconds | CPU seconds | MB | runs | CPU seconds over ours |")
    print("|---|---|---|---|---|---|---|", flush=True)
    picks: dict[str, list[int]] = {}
    for task in args.tasks or TASKS:
        ours: dict[str, float] = {}
        people = [who for who in TASKS[task] if who in QUICK or not args.ours]
        results: dict[str, list[Any]] = {who: [] for who in people}
        for number in range(args.runs):  # in turn, so that all have the same noise
            for who in people:
                if number == 0 or who in QUICK:
                    results[who].append(run_in_process(task, who, args.limit))
        for who, runs in results.items():
            good = [run for run in runs if isinstance(run, dict)]
            print(row(task, who, good, ours) if good else f"| {task} | {who} | {runs[0]} | | | | |", flush=True)
            if good and task == "batchbald-10":
                picks[who] = good[0]["answer"]
    for who, chosen in picks.items():
        information, error = joint_information(pool(10_000)[chosen])
        print(f"joint information of the 10 picks of {who}: {information:.4f} ± {error:.4f} nats: rows {chosen}")


if __name__ == "__main__":
    main()
