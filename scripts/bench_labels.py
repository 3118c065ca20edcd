"""What labels cost: a ledger of 100,000 labels in a file, on 2,000,000 rows on disk.

    python scripts/bench_labels.py              # about 10 minutes
    python scripts/bench_labels.py questions    # one of: questions, training

Questions: rows are 128 token ids and a class, about a gigabyte of Arrow, memory-mapped. A process of its own labels
100,000 rows at random, 1,000 a call; another one opens the ledger and asks. Times are medians; "after a change" means
that a row was labelled since. Resident memory is that of the process once it has the ledger open and has read the first
and the last row of both views, less what it was with the table open; files that are mapped are a part of it.

Training: Trainer on `.labelled` beside a plain `datasets.Dataset` with the same rows and labels, written out and
loaded; by turns, the same seed, one thread; a BERT of one layer of 32 units, where reading rows counts most, and
all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
from datasets import ClassLabel, Features, List, Value
from text_data import packaged_minilm
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from baal_hf import ActiveLearningDataset
from baal_hf.rows import ROW_ID

ROWS, LABELS, CALL, TOKENS, CLASSES = 2_000_000, 100_000, 1_000, 128, 5
FEATURES = Features(input_ids=List(Value("int32")), label=ClassLabel(num_classes=CLASSES))


def write_rows(folder: Path, rows: int) -> None:
    """Token ids and classes at random, in Arrow files."""
    datasets.disable_progress_bars()
    rng, part, parts = np.random.default_rng(0), 100_000, []
    for begin in range(0, rows, part):
        size = min(part, rows - begin)
        tokens = pa.array(rng.integers(1000, 20_000, size * TOKENS, dtype=np.int32))
        offsets = pa.array(np.arange(0, size * TOKENS + 1, TOKENS, dtype=np.int32))
        columns = {"input_ids": pa.ListArray.from_arrays(offsets, tokens), "label": rng.integers(0, CLASSES, size)}
        parts.append(datasets.Dataset(pa.table(columns)).cast(FEATURES))
    datasets.concatenate_datasets(parts).save_to_disk(folder)


def resident() -> dict[str, float]:
    """Megabytes of this process: all, and without mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("all", "VmRSS"), ("own", "RssAnon"))}


def seconds(ask: Callable[[], Any]) -> float:
    """One call."""
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


def each(ask: Callable[[int], Any], calls: int = 2000, turns: int = 5) -> float:
    """Median over turns of the mean of so many calls with a random row, in seconds."""
    chance = random.Random(0)

    def turn() -> float:
        given = [chance.randrange(LABELS) for _ in range(calls)]
        started = time.perf_counter()
        for row in given:
            ask(row)
        return (time.perf_counter() - started) / calls

    return statistics.median(turn() for _ in range(turns))


def write_labels(folder: str) -> dict[str, float]:
    """A ledger of labels for the rows in the folder, and what a call took."""
    dataset = ActiveLearningDataset(datasets.load_from_disk(Path(folder, "rows")), ledger=Path(folder, "labels.db"))
    rng = np.random.default_rng(1)
    chosen = rng.permutation(len(dataset.pool))[:LABELS].reshape(-1, CALL)
    labels = rng.integers(0, CLASSES, chosen.shape)
    took = [
        seconds(lambda ids=ids, given=given: dataset.annotate(ids, given, annotator="anna", heuristic="BALD"))
        for ids, given in zip(chosen, labels.tolist(), strict=True)
    ]
    return {"median": statistics.median(took), "most": max(took)}


def answers(folder: str) -> dict[str, float]:
    """Figures of a process that opens the ledger and asks."""
    rows = datasets.load_from_disk(Path(folder, "rows"))
    rows[0], rows[-1]
    before = resident()
    started, worked = time.perf_counter(), time.process_time()
    dataset = ActiveLearningDataset(rows, ledger=Path(folder, "labels.db"))
    figures: dict[str, float] = {"opening": time.perf_counter() - started, "working": time.process_time() - worked}
    opened = resident()
    figures["first .pool"], figures["first .labelled"] = (
        seconds(lambda: dataset.pool),
        seconds(lambda: dataset.labelled),
    )
    for view in (dataset.pool, dataset.labelled):
        view[0], view[-1]
    after = resident()
    for name in before:
        figures[f"{name} opened"] = opened[name] - before[name]
        figures[f"{name} with views"] = after[name] - before[name]
    figures["table"] = rows.data.nbytes / 2**20
    figures["len"] = each(lambda row: len(dataset))
    figures["is_labelled"] = each(dataset.is_labelled)
    figures["[i]"] = each(lambda row: dataset[row])
    figures["[i] of the view"] = each(lambda row, view=dataset.labelled: view[row])
    plain = rows.select(dataset.labelled_ids)
    figures["[i] of select"] = each(lambda row: plain[row])
    plain = rows.select(range(LABELS))
    figures["[i] of a slice"] = each(lambda row: plain[row])
    free = iter(np.random.default_rng(2).permutation(dataset.pool_ids).tolist())
    for name in ("pool", "labelled"):
        took = []
        for _ in range(7):
            dataset.annotate([next(free)], [0])
            took.append(seconds(lambda name=name: getattr(dataset, name)))
        figures[f".{name} after a change"] = statistics.median(took)
        figures[f".{name} again"] = each(lambda row, name=name: getattr(dataset, name))
    figures["annotate one row"] = statistics.median(
        seconds(lambda: dataset.annotate([next(free)], [0], annotator="ben")) for _ in range(50)
    )
    figures["annotate 1,000 rows"] = statistics.median(
        seconds(
            lambda ids=[next(free) for _ in range(CALL)]: dataset.annotate(ids, [0] * CALL, annotator="ben")  # noqa: B008
        )
        for _ in range(15)
    )
    return figures


def child(*arguments: str) -> dict[str, float]:
    """What a process of this script prints last."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    printed: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return printed


def questions(folder: str) -> None:
    """Print what each question took beside what is wanted of it."""
    written, figures = child("--written", folder), child("--answers", folder)
    size = Path(folder, "labels.db").stat().st_size / 2**20
    print(f"{ROWS:,} rows of {figures['table']:.0f} MB, {LABELS:,} labels in {size:.0f} MB")
    print(f"labelling them: {written['median']:.3f} s for {CALL:,} rows, at most {written['most']:.3f} s")
    print("| what | took | wanted |\n|---|---|---|")
    for name in ("len", "is_labelled", "[i]"):
        print(f"| {name} | {figures[name] * 1e6:.2f} µs | 20 µs |")
    for name in ("[i] of the view", "[i] of select", "[i] of a slice"):
        print(f"| {name} | {figures[name] * 1e6:.2f} µs | |")
    for name in (".pool", ".labelled"):
        print(f"| {name} after a change | {figures[f'{name} after a change']:.3f} s | 0.5 s |")
        print(f"| {name} when nothing changed | {figures[f'{name} again'] * 1e6:.2f} µs | free |")
    print(f"| annotate of one row | {figures['annotate one row'] * 1e3:.1f} ms | |")
    print(f"| annotate of 1,000 rows | {figures['annotate 1,000 rows']:.3f} s | 0.2 s |")
    print(f"| opening | {figures['opening']:.2f} s, {figures['working']:.2f} s of a processor | 2 s |")
    for when in ("opened", "with views"):
        print(
            f"| resident memory, {when} | {figures[f'all {when}']:.0f} MB, "
            f"{figures[f'all {when}'] / figures['table']:.1%} of the table "
            f"({figures[f'own {when}']:.0f} MB without mapped files) | 10 % |"
        )


def tiny() -> PreTrainedModel:
    """A BERT of one layer of 32 units."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=CLASSES))


def minilm() -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(packaged_minilm(), num_labels=CLASSES)


def trained(
    model: Callable[[], PreTrainedModel], rows: Any, steps: int, size: int, folder: str
) -> tuple[float, float, float]:
    """Seconds of training, seconds of a processor, and the loss, with one seed."""
    set_seed(0)
    args = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=size,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = Trainer(model(), args, train_dataset=rows, data_collator=default_data_collator)
    trainer.remove_callback(PrinterCallback)
    started, worked = time.perf_counter(), time.process_time()
    loss = trainer.train().training_loss
    return time.perf_counter() - started, time.process_time() - worked, loss


def training(folder: str, turns: int = 7) -> None:
    """Print what training costs more on `.labelled`, by turns."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    if not Path(folder, "labels.db").exists():
        child("--written", folder)
    dataset = ActiveLearningDataset(datasets.load_from_disk(Path(folder, "rows")), ledger=Path(folder, "labels.db"))
    dataset.labelled.remove_columns(ROW_ID).flatten_indices().save_to_disk(Path(folder, "plain"))
    plain = datasets.load_from_disk(Path(folder, "plain"))
    print(
        "| model | seconds on a plain dataset | on .labelled | ratio of pairs, median (least to most) | of processor |"
    )
    print("|---|---|---|---|---|")
    for name, model, steps, size in (("BERT of one layer", tiny, 300, 32), ("MiniLM", minilm, 6, 8)):
        for rows in (plain, dataset.labelled):  # warm
            trained(model, rows, 3, size, folder)
        took: dict[str, list[float]] = {"plain": [], "labelled": []}
        worked: dict[str, list[float]] = {"plain": [], "labelled": []}
        for turn in range(turns):
            losses = set()
            for which in ("plain", "labelled") if turn % 2 else ("labelled", "plain"):
                rows = plain if which == "plain" else dataset.labelled
                lasted, processor, loss = trained(model, rows, steps, size, folder)
                took[which].append(lasted)
                worked[which].append(processor)
                losses.add(round(loss, 5))
            if len(losses) > 1:
                raise SystemExit(f"The two saw other rows: their losses are {losses}.")
        ratios, work = (
            [ours / theirs for ours, theirs in zip(seconds_of["labelled"], seconds_of["plain"], strict=True)]
            for seconds_of in (took, worked)
        )
        print(
            f"| {name}, {steps} batches of {size} | {statistics.median(took['plain']):.2f} | "
            f"{statistics.median(took['labelled']):.2f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) | {statistics.median(work):.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["questions", "training"], help="left out: both")
    parser.add_argument("--written", help=argparse.SUPPRESS)  # a folder: this is a child
    parser.add_argument("--answers", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.written or given.answers:
        print(json.dumps(write_labels(given.written) if given.written else answers(given.answers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows"), ROWS)
        if given.what != "training":
            questions(folder)
        if given.what != "questions":
            training(folder)


if __name__ == "__main__":
    main()
