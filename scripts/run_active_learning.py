"""Active learning for text classification: train, evaluate, choose the next rows to label, over rounds.

    python scripts/run_active_learning.py --output_dir outputs/demo --compare random
    python scripts/run_active_learning.py --dataset reviews.csv --text_column review --label_column stars
    accelerate launch --num_processes 2 scripts/run_active_learning.py --output_dir outputs/demo    # on two GPUs
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/run_active_learning.py    # without

The labels are those of the dataset, shown to the model when a row is queried. All of Trainer's arguments work. By
default model and data come from the packages of the extra `demo`, and no network is needed.
"""

import gc
import json
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from text_data import packaged_minilm, train_and_test
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from baal_hf import (
    ActiveLearningDataset,
    ActiveLearningExperiment,
    BaalTransformersTrainer,
    available_heuristics,
    get_heuristic,
    metrics,
)
from baal_hf.plots import learning_curve

DEFAULTS = {
    "output_dir": "outputs/active_learning",
    "learning_rate": 3e-4,
    "num_train_epochs": 8,
    "per_device_eval_batch_size": 32,
    "report_to": "none",
    "save_strategy": "no",
    "ddp_find_unused_parameters": False,
    "logging_strategy": "no",
    "dataloader_pin_memory": torch.cuda.is_available(),
}


@dataclass
class DataArguments:
    """What is labelled, and by which model."""

    model_name_or_path: str = field(
        default="all-MiniLM-L6-v2", metadata={"help": "Hub id or folder; all-MiniLM-L6-v2 is the packaged one."}
    )
    dataset: str = field(
        default="bbc-news", metadata={"help": "Hub id, a parquet, csv or json file, or the packaged bbc-news."}
    )
    test_dataset: str | None = field(
        default=None, metadata={"help": "File of test rows; otherwise the split `test`, otherwise a fifth of the rows."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the texts."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes, numbers or names."})
    max_length: int = field(default=48, metadata={"help": "Tokens of a text that are read."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Keep only the first layers of the model."})


@dataclass
class ActiveLearningArguments:
    """How rows are chosen."""

    heuristic: str = field(
        default="bald", metadata={"help": f"How rows are ranked: {', '.join(available_heuristics())}."}
    )
    query_size: int = field(default=15, metadata={"help": "Rows to label in each round."})
    iterations: int = field(default=10, metadata={"help": "Posterior draws."})
    initial: int = field(default=10, metadata={"help": "Rows labelled at random before the first round."})
    rounds: int = field(default=5, metadata={"help": "Rounds of training and evaluation."})
    pool_sample: int = field(default=-1, metadata={"help": "Score only that many random rows a round; -1 is all."})
    targets: int = field(
        default=200, metadata={"help": "Random rows that are to be predicted well, for heuristics that ask for them."}
    )
    compare: list[str] = field(default_factory=list, metadata={"help": "Heuristics to run beside, on the same seed."})


def accuracy_of(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows whose class is right."""
    accuracy = metrics.load("accuracy")
    return accuracy.compute(predictions=prediction.predictions.argmax(-1), references=prediction.label_ids)


def target_rows(dataset: ActiveLearningDataset, size: int, seed: int) -> datasets.Dataset:
    """Some random rows of what was the pool at first."""
    pool = dataset.pool
    positions = np.random.default_rng(seed).choice(len(pool), min(size, len(pool)), replace=False)
    return pool.select(np.sort(positions))


def line(record: dict[str, Any], seconds: dict[str, float]) -> str:
    """A round in one line."""
    new = record["new"]
    return (
        f"{record['heuristic']:>8}  labelled {record['labelled']:4d}  accuracy {record['eval_accuracy']:.3f}  "
        f"score {seconds.get('score', 0):5.1f} s  train {seconds['train']:5.1f} s  "
        f"new: rows {' '.join(map(str, new[:8]))}{' ...' if len(new) > 8 else ''}"
    )


def verdict(records: list[dict[str, Any]]) -> str:
    """Which heuristic was ahead, by mean accuracy over the rounds after the first, whose labels all share."""
    curves = {name: [r for r in records if r["heuristic"] == name] for name in {r["heuristic"]: None for r in records}}
    if len(curves) == 1:
        first, last = records[0], records[-1]
        return (
            f"Accuracy {first['eval_accuracy']:.3f} with {first['labelled']} labels, "
            f"{last['eval_accuracy']:.3f} with {last['labelled']}."
        )
    means = {name: float(np.mean([r["eval_accuracy"] for r in curve[1:] or curve])) for name, curve in curves.items()}
    told = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    first, second, *_ = sorted(means, key=lambda name: -means[name])
    ahead = f"{first} was ahead" if means[first] > means[second] else "none was ahead"
    return f"Mean accuracy after the first round: {told}. On this one seed {ahead}; one seed proves nothing."


def check(name: str, iterations: int) -> None:
    """Raise if no heuristic has that name, if it cannot rank a pool, or needs more draws."""
    heuristic = get_heuristic(name)
    if "labels" in heuristic.needs:
        raise ValueError(f"{name} scores rows that have a label already, and a pool has none.")
    if heuristic.needs == ("predictions",):
        heuristic.get_ranks(np.full((1, 2, iterations), 0.5), 1)


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults and leaves the commands in the description as they are."""


def parsed(argv: list[str] | None) -> tuple[DataArguments, ActiveLearningArguments, TrainingArguments]:
    """The arguments of the command line, checked before anything is loaded."""
    parser = HfArgumentParser(
        (DataArguments, ActiveLearningArguments, TrainingArguments),
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=_Help,
    )
    parser.set_defaults(**DEFAULTS)
    data_args, al_args, training_args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        parser.error(f"There is no option {' '.join(unknown)}; --help lists them.")
    for name in ("query_size", "iterations", "initial", "rounds", "targets"):
        if getattr(al_args, name) < 1:
            parser.error(f"--{name} needs to be at least 1, got {getattr(al_args, name)}.")
    if al_args.pool_sample < 1 and al_args.pool_sample != -1:
        parser.error(f"--pool_sample needs to be at least 1, or -1 for the whole pool, got {al_args.pool_sample}.")
    for name in [al_args.heuristic, *al_args.compare]:
        try:
            check(name, al_args.iterations)
        except (ValueError, TypeError) as error:
            parser.error(str(error))
    return data_args, al_args, training_args


def rows_for_model(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Tokenized rows to label and to test on, their classes in the column "labels"."""

    def tokenized(batch: dict[str, Any]) -> Any:
        return tokenizer(batch[args.text_column], truncation=True, max_length=args.max_length)

    splits = train_and_test(args.dataset, args.test_dataset, args.text_column, args.label_column, seed)
    train, test = (
        split.select_columns([args.text_column, args.label_column])
        .map(tokenized, batched=True, keep_in_memory=True)
        .rename_columns({args.label_column: "labels"} if args.label_column != "labels" else {})
        for split in splits
    )
    return train, test


def checkpoint_of(args: DataArguments) -> tuple[str, PreTrainedTokenizerBase]:
    """Folder or hub id of the model, and its tokenizer."""
    checkpoint = packaged_minilm() if args.model_name_or_path == "all-MiniLM-L6-v2" else args.model_name_or_path
    try:
        return checkpoint, AutoTokenizer.from_pretrained(checkpoint)
    except OSError as error:
        raise SystemExit(f"The model {checkpoint} cannot be loaded: {error}") from error


def config_of(checkpoint: str, classes: list[str], num_hidden_layers: int | None) -> PreTrainedConfig:
    """The model's configuration with the dataset's classes."""
    layers = {} if num_hidden_layers is None else {"num_hidden_layers": num_hidden_layers}
    names = dict(enumerate(classes))
    return AutoConfig.from_pretrained(checkpoint, id2label=names, label2id={c: i for i, c in names.items()}, **layers)


def quiet() -> None:
    """Leave the screen to one line a round."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run each heuristic from the same weights and the same first labels; returns and writes the records."""
    args, al_args, training_args = parsed(argv)
    quiet()
    report = print if training_args.process_index == 0 else (lambda *_, **__: None)
    checkpoint, tokenizer = checkpoint_of(args)
    with training_args.main_process_first(desc="loading the data"):
        train, test = rows_for_model(args, tokenizer, training_args.seed)
    if al_args.initial > len(train):
        raise SystemExit(f"--initial {al_args.initial} needs that many rows to label, {args.dataset} has {len(train)}.")
    classes = train.features["labels"].names
    config = config_of(checkpoint, classes, args.num_hidden_layers)
    report(f"{args.dataset}: {len(train)} rows to label, {len(test)} to test on, classes {', '.join(classes)}")
    size = f"{config.num_hidden_layers} layers, {args.max_length} tokens"
    report(f"{args.model_name_or_path}: {size}; {al_args.iterations} draws, seed {training_args.seed}", flush=True)

    folder = Path(training_args.output_dir)
    records: list[dict[str, Any]] = []
    for heuristic in dict.fromkeys([al_args.heuristic, *al_args.compare]):
        set_seed(training_args.seed)
        dataset = ActiveLearningDataset(train, random_state=training_args.seed)
        dataset.label_randomly(al_args.initial)
        trainer = BaalTransformersTrainer(
            AutoModelForSequenceClassification.from_pretrained(checkpoint, config=config),
            training_args,
            train_dataset=dataset.labelled,
            eval_dataset=test,
            processing_class=tokenizer,
            compute_metrics=accuracy_of,
        )
        for callback in (PrinterCallback, ProgressCallback):  # a round is one line
            trainer.remove_callback(callback)
        experiment = ActiveLearningExperiment(
            trainer,
            dataset,
            test,
            get_heuristic(heuristic),
            al_args.query_size,
            al_args.iterations,
            None if al_args.pool_sample == -1 else al_args.pool_sample,
            seed=training_args.seed,
            max_rounds=al_args.rounds,
            targets=target_rows(dataset, al_args.targets, training_args.seed),
        )
        for record in experiment.rounds():
            new = [event.row_id for event in dataset.ledger if event.step == dataset.current_al_step]
            records.append({**record, "heuristic": heuristic, "new": new})
            report(line(records[-1], experiment.seconds), flush=True)
        if heuristic == al_args.heuristic:
            trainer.save_model(str(folder / "model"))
    if training_args.process_index == 0:
        write(records, folder, title=f"{args.dataset}, {args.model_name_or_path}")
    report(verdict(records))
    report(f"Written to {folder}: records.jsonl, learning_curve.png, and model, the last one of {al_args.heuristic}")
    return records


def write(records: list[dict[str, Any]], folder: Path, title: str) -> None:
    """The records as JSON lines and their picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "records.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    learning_curve(records, folder / "learning_curve.png", title, metric="eval_accuracy")


if __name__ == "__main__":
    main()
    gc.collect()  # the trainer goes first: what exchanges its gradients would wait for ever for gloo's threads to end
    PartialState().destroy_process_group()  # which, left running, abort one exit in five
