"""What scoring costs as the pool grows, and what a second process gains.

    python scripts/bench_pool.py            # about 10 minutes
    python scripts/bench_pool.py memory     # one of: memory, processes

Memory: BBC News, the first 16 to 31 tokens of each text, written to disk over and over until there are 1,000,000 rows;
a BERT of one layer of 32 units, T = 4. Each run is a process; printed are its peak of resident memory, of which mapped
files are a part, and the rows a second of the scoring alone.

Processes: all-MiniLM-L6-v2 in float32, T = 20, 1,024 rows; one process with one thread, and two with one each under
`accelerate launch`, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from accelerate import PartialState
from text_data import packaged_minilm, train_and_test
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
    set_seed,
)

from baal_hf import BALD, BaalTransformersTrainer

SIZES, RUNS = (10_000, 100_000, 1_000_000), 3
WAYS = ("scores", "scores to a store", "predictions to a store")


def quiet() -> None:
    """Leave the screen to the figures."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def write_rows(folder: Path, size: int) -> None:
    """Tokenized texts, as many rows as asked for, in Arrow files."""
    quiet()
    tokenizer = AutoTokenizer.from_pretrained(packaged_minilm())
    texts = train_and_test("bbc-news", None, "text", "label", 0)[0]["text"]
    lengths = np.random.default_rng(0).integers(16, 32, len(texts)).tolist()
    rows = [tokenizer(text, truncation=True, max_length=length) for text, length in zip(texts, lengths, strict=True)]
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("int32")), attention_mask=datasets.List(datasets.Value("int8"))
    )
    once = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
    times = -(-size // len(once))
    datasets.concatenate_datasets([once] * times).select(range(size)).save_to_disk(folder)


def trainer(model: Any, folder: str) -> BaalTransformersTrainer:
    """The trainer of a model, without bars."""
    args = TrainingArguments(folder, report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False)
    return BaalTransformersTrainer(model, args, processing_class=AutoTokenizer.from_pretrained(packaged_minilm()))


def tiny() -> BertForSequenceClassification:
    """A BERT of one layer of 32 units."""
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=5))


def scored(folder: str, size: int, way: str) -> dict[str, float]:
    """Score so many rows, in this process."""
    quiet()
    rows = datasets.load_from_disk(folder).select(range(size))
    with tempfile.TemporaryDirectory() as outputs:
        scoring = trainer(tiny(), outputs)
        scoring.score_dataset(rows.select(range(1000)), BALD(), iterations=4)
        started = time.perf_counter()
        if way == "predictions to a store":
            scoring.predict_on_dataset(rows, iterations=4, store=Path(outputs, "store"))
        else:
            store = Path(outputs, "store") if way == "scores to a store" else None
            scoring.score_dataset(rows, BALD(), iterations=4, store=store)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return {"peak MB": peak, "own MB": int(anonymous.split()[1]) / 1024, "rows a second": size / seconds}


def child(command: list[str], **environment: str) -> dict[str, float]:
    """What a process of this script prints last."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    printed: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return printed


def memory() -> None:
    """Peak memory and rate at each size, in each way."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows"), max(SIZES))
        print(f"| what | rows | peak MB | more than at {SIZES[0]:,} rows | own MB at the end | rows a second |")
        print("|---|---|---|---|---|---|")
        for way in WAYS:
            first = 0.0
            for size in SIZES:
                run = child([sys.executable, __file__, "--scored", str(Path(folder, "rows")), str(size), way])
                first = first or run["peak MB"]
                more, own, rate = run["peak MB"] - first, run["own MB"], run["rows a second"]
                print(
                    f"| {way:<24} | {size:>9,} | {run['peak MB']:.0f} | {more:+.0f} | {own:.0f} | {rate:,.0f} |",
                    flush=True,
                )


def timed() -> None:
    """Score 1,024 rows with MiniLM under whatever started this process, and print the seconds on the main process."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows"), 1024)
        rows = datasets.load_from_disk(Path(folder, "rows"))
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(packaged_minilm(), num_labels=5)
        scoring = trainer(model, folder)
        scoring.score_dataset(rows.select(range(64)), BALD(), iterations=20)
        scoring.accelerator.wait_for_everyone()
        started = time.perf_counter()
        scoring.score_dataset(rows, BALD(), iterations=20)
        if scoring.accelerator.is_main_process:
            print(json.dumps({"seconds": time.perf_counter() - started}))
        PartialState().destroy_process_group()  # gloo's threads, left running, can abort the exit


def processes() -> None:
    """One process with one thread beside two with one each."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_machines",
        "1",
    ]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    gains = []
    for _ in range(RUNS):
        one = child([sys.executable, __file__, "--timed"], OMP_NUM_THREADS="1")["seconds"]
        two = child([*launch, __file__, "--timed"], OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")["seconds"]
        gains.append(one / two)
        print(f"one process {one:.1f} s, two {two:.1f} s: {one / two:.2f} times as fast", flush=True)
    print(f"median: two processes are {statistics.median(gains):.2f} times as fast as one")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="memory or processes; both by default")
    parser.add_argument("--scored", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--timed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.scored:
        folder, size, way = args.scored
        print(json.dumps(scored(folder, int(size), way)))
    elif args.timed:
        timed()
    else:
        for case in args.cases or ("memory", "processes"):
            {"memory": memory, "processes": processes}[case]()


if __name__ == "__main__":
    main()
