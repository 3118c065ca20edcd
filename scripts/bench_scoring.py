"""What scoring a pool costs beside Baal, what the cheaper ways change, and how much of the machine is used.

    pip install --no-deps baal==2.1.0 toma==1.1.0 structlog==26.1.0 torchmetrics==1.9.0 lightning-utilities==0.15.3 \\
        h5py==3.16.0 Pillow==13.0.0
    python scripts/bench_scoring.py --data FOLDER             # all, on two cores: about 45 minutes, most of them Baal's
    python scripts/bench_scoring.py --data FOLDER --ours      # without Baal: about 20 minutes
    python scripts/bench_scoring.py --data FOLDER trec6-head  # one case

FOLDER holds `trec6` and `ag_news_10k`, each with `train.parquet` and `test.parquet` of columns `text` and `label` (a
ClassLabel); the environment variable BAAL_HF_DATA may name it instead. The model is all-MiniLM-L6-v2 with a head,
fine-tuned here on 200 rows, since the scores of an untrained head mean nothing. Everything runs on the CPU, in as many
threads as torch takes, with BALD under T = 20 draws.

Each side is one process that stays alive, has its model loaded and its rows tokenized, and is asked in turns, so that
two never run at once: all cases of ours, then the others, and again. Seconds are those of the call that scores, after a
run of 16 rows to warm up. Each run has new masks, since ours are kept for those who ask again. Shown are medians and
quartiles, and ratios within a run. Baal runs in float32,

- documented: rows padded to 128 tokens, as its dataset wrapper does, and the defaults: batches of 8 rows, and the 20
  draws of a batch in one pass;
- at its best: rows padded to the longest of their batch, batches of 64, one pass for each draw.

Ours has its defaults but for bf16=True: it groups rows by length itself.

Baal knows one posterior, a fresh mask in every `nn.Dropout`. In this model that leaves attention dropout off, so its
passes do a little less than ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from text_data import packaged_minilm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

ITERATIONS, QUERY_SIZE, SEED = 20, 50, 0
TRAINED, TESTED = 200, 500  # rows
WARM = 16  # rows
PEER = {
    "documented": {"per_device_eval_batch_size": 8, "replicate_in_memory": True},
    "best": {"per_device_eval_batch_size": 64, "replicate_in_memory": False},
}
TIMED = {
    "trec6-all": ("trec6", None),
    "trec6-last2": ("trec6", "last:2"),
    "trec6-head": ("trec6", "head"),
    "ag_news-all": ("ag_news_10k", None),
}
"""Case -> data set, and the places where our dropout is random."""
Answer = dict[str, Any]


# What a worker does. Each method is a task that can be asked for by its name.


@dataclass
class RecordingCollator(DataCollatorWithPadding):
    """Pads like its parent, and keeps the batches."""

    batches: list[Any] = field(default_factory=list)

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        self.batches.append(super().__call__(features))
        return self.batches[-1]


class Worker:
    """One side of the bench, in a process of its own.

    Args:
        data: The folder of the data sets.
        folder: Where the fine-tuned models are.
        bf16: Score with matrices in bfloat16.
    """

    def __init__(self, data: str, folder: str, bf16: bool) -> None:
        self.data = Path(data)
        self.folder = Path(folder)
        self.bf16 = bf16
        self.tokenizer = AutoTokenizer.from_pretrained(packaged_minilm())
        self._kept: dict[tuple[Any, ...], Any] = {}

    def train(self, name: str) -> Answer:
        """Fine-tune the model, and save it."""
        transformers.set_seed(SEED)
        rows = self._split(name, "train")
        classes = rows.features["label"].num_classes
        model = AutoModelForSequenceClassification.from_pretrained(packaged_minilm(), num_labels=classes)
        arguments = self._arguments(
            num_train_epochs=10, per_device_train_batch_size=16, learning_rate=2e-4, save_strategy="no", seed=SEED
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=self._tokenized(rows.select(trained_rows(name, len(rows)))),
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        trainer.train()
        test = self._split(name, "test").shuffle(seed=SEED)
        predicted = trainer.predict(self._tokenized(test.select(range(min(TESTED, len(test))))))
        model.save_pretrained(self.folder / name)
        return {"accuracy": float(np.mean(np.argmax(predicted.predictions, 1) == predicted.label_ids))}

    def ours(self, name: str, rows: int, where: str | None, seed: int) -> Answer:
        """Scores by our engine."""
        from baal_hf.heuristics import BALD

        trainer, pool = self._trainer(name, where, seed), self._pool(name, rows)
        started = time.perf_counter()
        scores = trainer.score_dataset(pool, BALD(), iterations=ITERATIONS)  # [N]
        return {"seconds": time.perf_counter() - started, "scores": scores.tolist()}

    def peer(self, name: str, rows: int, how: str, seed: int) -> Answer:
        """Scores by Baal."""
        from baal.active.heuristics import BALD
        from baal.bayesian.dropout import patch_module
        from baal.transformers_trainer_wrapper import BaalTransformersTrainer

        setting = dict(PEER[how])
        replicate = setting.pop("replicate_in_memory")
        padded = how == "documented"
        # Rows of equal length are collated by Trainer's default. Baal's docstring names `tokenizer=`, which
        # transformers 5 has no more; nothing here needs it.
        trainer = BaalTransformersTrainer(
            model=self._once(("patched", name), lambda: patch_module(self._loaded(name))),
            args=self._arguments(**setting),
            replicate_in_memory=replicate,
            data_collator=None if padded else DataCollatorWithPadding(self.tokenizer),
        )
        # A pool has no labels; with them Trainer would compute a loss as well.
        pool = self._pool(name, rows, padded).remove_columns("labels")
        torch.manual_seed(seed)
        started = time.perf_counter()
        logits = trainer.predict_on_dataset(pool, iterations=ITERATIONS)  # [N, C, T]
        scores = BALD().get_uncertainties(logits)  # [N]
        return {"seconds": time.perf_counter() - started, "scores": scores.tolist()}

    def rank(self, name: str, rows: int, adaptive: bool, seed: int) -> Answer:
        """The top rows by our engine, of which `adaptive` gives up on hopeless rows early."""
        from baal_hf.heuristics import BALD

        trainer, pool = self._trainer(name, None, seed), self._whole(name, rows)
        started = time.perf_counter()
        positions, _ = trainer.rank_dataset(
            pool, BALD(), iterations=ITERATIONS, query_size=min(QUERY_SIZE, len(pool)), adaptive=adaptive
        )
        return {"seconds": time.perf_counter() - started, "positions": [int(k) for k in positions], "rows": len(pool)}

    def bare(self, name: str, rows: int, seed: int) -> Answer:
        """Forward passes over the batches that our engine makes, and nothing else."""
        from baal_hf import MCDropout

        posterior, model = MCDropout(seed=seed), self._model(name).eval()
        batches = self._batches(name, rows)
        started = time.perf_counter()
        # Entered once, so that weights are cast once for the whole loop.
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            for batch in batches:
                for t in range(ITERATIONS):
                    with posterior.draw(model, t):
                        model(**batch)
        return {"seconds": time.perf_counter() - started}

    def work(self, name: str, rows: int) -> Answer:
        """Tokens and floating-point operations of one pass over the rows, and padding beside it."""
        model = self._model(name)
        layers = model.base_model.encoder.layer
        weights = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
        lengths = np.array([len(ids) for ids in self._pool(name, rows)["input_ids"]])
        batches = self._batches(name, rows)
        attention = 4 * len(layers) * model.config.hidden_size * int((lengths**2).sum())
        return {
            "layers": len(layers),
            "hidden_size": model.config.hidden_size,
            "weights": weights,
            "tokens": int(lengths.sum()),
            "attention": attention,
            "flop": 2 * weights * int(lengths.sum()) + attention,
            "batches": len(batches),
            "places": sum(batch["input_ids"].numel() for batch in batches),
        }

    def matmul(self) -> dict[str, dict[str, float]]:
        """Floating-point operations per second of matrix products, by shape and precision."""
        rates: dict[str, dict[str, float]] = {}
        for shape, (n, k, m), times in (("cube", (2048, 2048, 2048), 10), ("MiniLM", (2048, 384, 1536), 60)):
            rates[shape] = {}
            for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
                x, weight = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype)
                seconds = []
                with torch.inference_mode():
                    for _ in range(times + 1):
                        started = time.perf_counter()
                        F.linear(x, weight)  # [n, m]
                        seconds.append(time.perf_counter() - started)
                rates[shape][precision] = 2 * n * k * m / statistics.median(seconds[1:])
        return rates

    # What they have in common.

    def _arguments(self, **others: Any) -> TrainingArguments:
        return TrainingArguments(
            str(self.folder / "runs"),
            use_cpu=True,
            bf16=self.bf16,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **others,
        )

    def _trainer(self, name: str, where: str | None, seed: int, collator: Any = None) -> Any:
        from baal_hf import BaalTransformersTrainer, MCDropout

        return BaalTransformersTrainer(
            self._model(name),
            self._arguments(),
            data_collator=collator or DataCollatorWithPadding(self.tokenizer),
            posterior=MCDropout(seed=seed, where=where),
        )

    def _batches(self, name: str, rows: int) -> list[Any]:
        """The batches of which our engine makes the pool."""

        def recorded() -> list[Any]:
            from baal_hf.heuristics import BALD

            collator = RecordingCollator(self.tokenizer)
            self._trainer(name, None, SEED, collator).score_dataset(self._pool(name, rows), BALD(), iterations=2)
            found = sum(len(batch["input_ids"]) for batch in collator.batches)
            if found != rows:
                raise RuntimeError(f"Our engine collated {found} rows of a pool of {rows}: its batches are not known.")
            return collator.batches

        return self._once(("batches", name, rows), recorded)

    def _model(self, name: str) -> Any:
        return self._once(("model", name), lambda: self._loaded(name))

    def _loaded(self, name: str) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(self.folder / name)

    def _pool(self, name: str, rows: int, padded: bool = False) -> Dataset:
        split = self._split(name, "train")
        kept = pool_rows(name, len(split))[:rows]
        return self._once(("pool", name, rows, padded), lambda: self._tokenized(split.select(kept), padded))

    def _whole(self, name: str, rows: int) -> Dataset:
        split = self._split(name, "train")
        kept = range(min(rows, len(split)))
        return self._once(("whole", name, rows), lambda: self._tokenized(split.select(kept)))

    def _split(self, name: str, split: str) -> Dataset:
        path = str(self.data / name / f"{split}.parquet")
        return self._once(("split", path), lambda: Dataset.from_parquet(path, cache_dir=str(self.folder / "cache")))

    def _tokenized(self, rows: Dataset, padded: bool = False) -> Dataset:
        def tokens(batch: Any) -> Any:
            padding = "max_length" if padded else False
            made = self.tokenizer(
                batch["text"], truncation=True, max_length=128, padding=padding, return_token_type_ids=False
            )
            return {**made, "labels": batch["label"]}

        return rows.map(tokens, batched=True, remove_columns=rows.column_names, keep_in_memory=True)

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def trained_rows(name: str, size: int) -> list[int]:
    """Rows that the model is fine-tuned on; none of them is in `pool_rows`."""
    order = np.random.default_rng(SEED).permutation(size)
    return [int(row) for row in order if name == "trec6" or row >= 1000][:TRAINED]


def pool_rows(name: str, size: int) -> list[int]:
    """Rows that are scored, of which the first so many are taken."""
    if name == "ag_news_10k":
        return list(range(1000))
    return [int(row) for row in np.random.default_rng(SEED).permutation(size)][TRAINED:]


def serve(data: str, folder: str, bf16: bool) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        worker = Worker(data, folder, bf16)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(worker, request.pop("task"))(**request)
            except Exception as error:  # the other side's errors are its own, and shown in its place
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


# What asks them.


class PeerFailed(RuntimeError):
    """What Baal could not do; the others go on."""


class Workers(AbstractContextManager["Workers"]):
    """The processes, each started when it is first asked.

    Args:
        data: The folder of the data sets.
    """

    def __init__(self, data: str) -> None:
        self.data = data
        self._folder = tempfile.TemporaryDirectory()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._trained: set[str] = set()

    def __exit__(self, *_: object) -> None:
        for who in list(self._processes):
            self._end(who)
        self._folder.cleanup()

    def ask(self, who: str, task: str, **arguments: Any) -> Answer:
        """Have a task done, and wait for it.

        Args:
            who: "ours" (bfloat16), "ours fp32" or "peer".
            task: A method of `Worker`.
            **arguments: What it takes.

        Raises:
            PeerFailed: The peer failed.
            RuntimeError: We failed.
        """
        if "name" in arguments and task != "train":
            self.train(arguments["name"])
        process = self._process(who)
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps({"task": task, **arguments}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: Answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            log = Path(self._folder.name, f"{who}.log").read_text(errors="replace")
            print(log[-3000:], file=sys.stderr)
            raise (PeerFailed if who == "peer" else RuntimeError)(f"{who} failed to do {task}: {answer['error']}")
        return answer

    def train(self, name: str) -> None:
        """Have the model of a data set fine-tuned, if it is not yet."""
        if name in self._trained:
            return
        started = time.perf_counter()
        accuracy = self.ask("training", "train", name=name)["accuracy"]
        self._end("training")
        self._trained.add(name)
        seconds = time.perf_counter() - started
        print(f"{name}: fine-tuned on {TRAINED} rows in {seconds:.0f} s, accuracy {accuracy:.3f}", flush=True)

    def _process(self, who: str) -> subprocess.Popen[str]:
        if who not in self._processes:
            command = [sys.executable, __file__, "--data", self.data, "--serve", self._folder.name]
            with open(Path(self._folder.name, f"{who}.log"), "w") as log:
                self._processes[who] = subprocess.Popen(
                    [*command, "--bf16"] if who == "ours" else command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        return self._processes[who]

    def _end(self, who: str) -> None:
        process = self._processes.pop(who)
        process.communicate()  # without further requests it ends


@dataclass(frozen=True)
class Side:
    """Who is asked for what."""

    who: str
    task: str
    arguments: dict[str, Any]

    def measured(self, workers: Workers, **others: Any) -> Answer:
        """One run."""
        return workers.ask(self.who, self.task, **{**self.arguments, **others})


def in_turns(workers: Workers, first: Side, second: Side, runs: int, warm: int) -> tuple[list[Answer], list[Answer]]:
    """Runs of both, one after the other, each with masks of its own."""
    for side in (first, second):
        side.measured(workers, rows=warm, seed=-1)
    answers: tuple[list[Answer], list[Answer]] = ([], [])
    for seed in range(runs):
        for side, found in zip((first, second), answers, strict=True):
            found.append(side.measured(workers, seed=seed))
    return answers


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and quartiles where there is more than one value."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    low, *_, high = statistics.quantiles(values, n=4)
    return f"{middle} ({low:.{digits}f} to {high:.{digits}f})"


def correlation(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(pd.Series(first).rank(), pd.Series(second).rank())[0, 1])


def ratios(first: list[Answer], second: list[Answer]) -> list[float]:
    """How many times as long each second run took as the first run before it."""
    return [b["seconds"] / a["seconds"] for a, b in zip(first, second, strict=True)]


def seconds(answers: list[Answer]) -> str:
    """Their seconds."""
    return spread([answer["seconds"] for answer in answers])


def table(*names: str) -> None:
    """Begin a table."""
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def timed(workers: Workers, cases: list[str], args: argparse.Namespace) -> None:
    """Seconds of ours and of others on the same rows: each run has a turn of every case and of every other."""
    for name in dict.fromkeys(TIMED[case][0] for case in cases):
        workers.train(name)
        rows = min(args.rows or 256, 1000) if name == "ag_news_10k" else args.rows or 256
        here = {"name": name, "rows": rows}
        ours = {
            case: Side("ours", "ours", {**here, "where": TIMED[case][1]}) for case in cases if TIMED[case][0] == name
        }
        others = {f"baal, {how}": Side("peer", "peer", {**here, "how": how}) for how in PEER if how in args.beside}
        if "fp32" in args.beside:
            others["ours, all layers in fp32"] = Side("ours fp32", "ours", {**here, "where": None})
        found: dict[str, list[Answer]] = {label: [] for label in (*ours, *others)}
        failed: dict[str, str] = {}
        for seed in (-1, *range(args.runs or 3)):  # the first is for warming up
            for label, side in {**ours, **others}.items():
                try:
                    found[label].append(side.measured(workers, seed=seed, **({"rows": WARM} if seed < 0 else {})))
                except PeerFailed as error:
                    failed[label] = str(error)
        table("case", "beside ours in bf16", "rows", "ours, s", "other, s", "other / ours", "rank correlation of BALD")
        for case in ours:
            for label in others:
                if label in failed:
                    print(f"| {case} | {label} | {rows} | {failed[label]} | | | |", flush=True)
                    continue
                mine, theirs = found[case][1:], found[label][1:]
                figures = f"{seconds(mine)} | {seconds(theirs)} | {spread(ratios(mine, theirs))}"
                agreement = correlation(mine[-1]["scores"], theirs[-1]["scores"])
                print(f"| {case} | {label} | {rows} | {figures} | {agreement:.3f} |", flush=True)


def adaptive(workers: Workers, args: argparse.Namespace) -> None:
    """The top rows of the whole pool, with and without giving up on rows early."""
    arguments = {"name": "trec6", "rows": args.pool}
    plain = Side("ours", "rank", {**arguments, "adaptive": False})
    early = Side("ours", "rank", {**arguments, "adaptive": True})
    first, second = in_turns(workers, early, plain, args.runs or 1, 4 * QUERY_SIZE)
    table("case", "rows", "K", "adaptive, s", "not adaptive, s", "not adaptive / adaptive", "the same rows")
    same = [len(set(a["positions"]) & set(b["positions"])) for a, b in zip(first, second, strict=True)]
    figures = f"{seconds(first)} | {seconds(second)} | {spread(ratios(first, second))}"
    chosen = len(second[0]["positions"])
    shown = ", ".join(map(str, same))
    print(f"| adaptive | {first[0]['rows']} | {chosen} | {figures} | {shown} of {chosen} |", flush=True)


def honesty(workers: Workers, args: argparse.Namespace) -> None:
    """How near the scores of the cheaper ways are to those of all layers in float32."""
    arguments = {"name": "trec6", "rows": args.rows or 1000, "where": None, "seed": SEED}
    exact = workers.ask("ours fp32", "ours", **arguments)["scores"]
    ways: dict[str, tuple[str, Answer]] = {
        "all layers, fp32, 20 other draws": ("ours fp32", {"seed": SEED + 1}),
        "all layers, bf16 (0.99 wanted)": ("ours", {}),
        "last:2, fp32": ("ours fp32", {"where": "last:2"}),
        "head, fp32": ("ours fp32", {"where": "head"}),
    }
    table("honesty: against all layers, fp32", "rows", "rank correlation", "largest difference, nats", "of the top 50")
    top = min(QUERY_SIZE, len(exact))
    best = set(np.argsort(exact)[-top:])
    for label, (who, others) in ways.items():
        scores = workers.ask(who, "ours", **{**arguments, **others})["scores"]
        largest = np.abs(np.subtract(scores, exact)).max()
        shared = len(best & set(np.argsort(scores)[-top:]))
        print(f"| {label} | {len(exact)} | {correlation(exact, scores):.4f} | {largest:.4f} | {shared} of {top} |")
    print(f"Scores of all layers in fp32: 0 is none, median {np.median(exact):.4f}, largest {max(exact):.4f} nats.")


def hardware(workers: Workers, args: argparse.Namespace) -> None:
    """How much of the machine's matrix products our scoring reaches."""
    rows = args.rows or 256
    work = workers.ask("ours", "work", name="trec6", rows=rows)
    precisions = {"bf16": "ours", "fp32": "ours fp32"}
    sides = {
        name: Side(who, "ours", {"name": "trec6", "rows": rows, "where": None}) for name, who in precisions.items()
    }
    for side in sides.values():
        side.measured(workers, rows=WARM, seed=-1)
    peaks: dict[tuple[str, str], list[float]] = {}
    reached: dict[str, list[float]] = {name: [] for name in precisions}
    for seed in range(args.runs or 3):
        for precision, side in sides.items():
            for shape, rates in workers.ask("ours", "matmul").items():
                peaks.setdefault((shape, precision), []).append(rates[precision] / 1e9)
            took = side.measured(workers, seed=seed)["seconds"]
            reached[precision].append(work["flop"] * ITERATIONS / took / 1e9)
    names = ("2048³, GFLOP/s", "2048 × 384 × 1536, GFLOP/s", "all layers, GFLOP/s", "share of 2048³", "of the other")
    table("hardware", *names)
    for precision, values in reached.items():
        cube, flat = peaks["cube", precision], peaks["MiniLM", precision]
        shares = [spread([a / b for a, b in zip(values, peak, strict=True)], 3) for peak in (cube, flat)]
        print(f"| {precision} | {spread(cube, 0)} | {spread(flat, 0)} | {spread(values, 0)} | {' | '.join(shares)} |")
    tokens, places = work["tokens"], work["places"]
    print(
        f"Counted: 2 × {work['weights']:,} weights, which are all in matrices of the {work['layers']} encoder layers, "
        f"makes {2 * work['weights'] / 1e6:.2f} MFLOP a token; attention, 4 × L × {work['hidden_size']} a layer, adds "
        f"{work['attention'] / tokens / 1e6:.3f}: {work['flop'] / 1e9:.2f} GFLOP a draw for {tokens:,} real tokens of "
        f"{rows} rows, times {ITERATIONS} draws. Embeddings, norms, softmax, pooler and head are not counted.\n"
        f"Padding, not counted: {places - tokens:,} places beside {tokens:,} tokens ({(places - tokens) / tokens:.1%}) "
        f"in {work['batches']} batches of ours; padded to 128 it were {128 * rows - tokens:,}.",
        flush=True,
    )


def overhead(workers: Workers, args: argparse.Namespace) -> None:
    """Our engine beside the bare passes over the same batches."""
    arguments = {"name": "trec6", "rows": args.rows or 256}
    workers.ask("ours", "work", **arguments)  # makes the batches
    bare = Side("ours", "bare", arguments)
    engine = Side("ours", "ours", {**arguments, "where": None})
    first: list[Answer] = []
    second: list[Answer] = []
    for side in (bare, engine):
        side.measured(workers, rows=WARM, seed=-1)
    for run in range(args.runs or 3):  # different seeds: what one draws, the other would find kept
        first.append(bare.measured(workers, seed=2 * run))
        second.append(engine.measured(workers, seed=2 * run + 1))
    table("case", "rows", "bare passes, s", "score_dataset, s", "score_dataset / bare passes")
    figures = f"{seconds(first)} | {seconds(second)} | {spread(ratios(first, second), 3)}"
    print(f"| overhead | {arguments['rows']} | {figures} |", flush=True)


OTHERS: dict[str, Callable[[Workers, argparse.Namespace], None]] = {
    "adaptive": adaptive,
    "honesty": honesty,
    "hardware": hardware,
    "overhead": overhead,
}


def machine() -> str:
    """What this runs on."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "asimd")
    flags = [flag for flag in wanted if flag in (fields.get("flags") or fields.get("Features") or "").split()]
    return (
        f"{fields.get('model name', platform.processor())}, {os.cpu_count()} cores, {torch.get_num_threads()} threads "
        f"of torch {torch.__version__}, transformers {transformers.__version__}; CPU flags: {' '.join(flags)}; "
        f"load at the start: {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Print a table for each case, a line at a time."""
    cases = [*TIMED, *OTHERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"out of {', '.join(cases)}; all by default")
    parser.add_argument("--data", default=os.environ.get("BAAL_HF_DATA"), help="folder of the data sets")
    parser.add_argument("--ours", action="store_true", help="leave Baal out")
    parser.add_argument(
        "--beside", nargs="+", choices=[*PEER, "fp32"], default=[*PEER, "fp32"], help="what to time beside"
    )
    parser.add_argument("--rows", type=int, help="rows that are scored: 256, in `honesty` 1,000; not for `adaptive`")
    parser.add_argument("--pool", type=int, default=5452, help="rows of the pool in `adaptive`, all by default")
    parser.add_argument("--runs", type=int, help="runs of each side: 3, in `adaptive` 1")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data is None:
        parser.error("name the folder of the data sets with --data, or in BAAL_HF_DATA")
    if args.serve:
        serve(args.data, args.serve, args.bf16)
        return
    if args.ours:
        args.beside = ["fp32"]
    unknown = set(args.cases) - set(cases)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; the cases are {', '.join(cases)}")
    chosen = args.cases or cases
    if set(args.beside) & set(PEER) and set(chosen) & set(TIMED) and importlib.util.find_spec("baal") is None:
        parser.error("Baal is not installed: leave it out with --ours, or install it as the top of this file says")
    print(machine(), flush=True)
    with Workers(args.data) as workers:
        timed(workers, [case for case in TIMED if case in chosen], args)
        for case, run in OTHERS.items():
            if case in chosen:
                run(workers, args)


if __name__ == "__main__":
    main()
