"""Text classification with Trainer: which rows to label, by MC dropout of a BERT.

    python scripts/experiments/bert_mcdropout.py                                # BBC News and all-MiniLM-L6-v2, offline
    python scripts/experiments/bert_mcdropout.py --data FOLDER --model google-bert/bert-base-uncased
    python scripts/experiments/bert_mcdropout.py --quick                        # to see that it works

This is the script to copy: a model and a Trainer for each heuristic and seed, an `ActiveLearningExperiment` around
them, and `compare` over all. `../run_active_learning.py` has options in place of the settings below.

`--data` is `bbc-news`, a folder with `train.parquet` and `test.parquet` of columns `text` and `label`, a file of such
rows, or a data set on the hub; without test rows a fifth of the rows is. `--model` is a folder or a name on the hub.

The settings are small, for a processor: 24 tokens of a text, word embeddings as they were. 20 rows are labelled at the
start and 20 more a round; a query sees 20 draws of 200 random rows of the pool, each draw one network for all rows.
Test rows are predicted once, without dropout. Each round trains the first weights anew, for 30 epochs; two layers of
MiniLM in place of six, and 10 epochs, were tried with random labels on seeds 0 to 2, which the table has, too: both
were worse.

For a seed all heuristics share first labels, first weights and the noise of training. A run that was stopped goes on
where it was. Written to --output_dir: a folder for each run, with its records and two checkpoints; records.csv,
summary.json, learning_curve.png and table.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from run_records import Record, RunRecords, markdown, table
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)

from baal_hf import ActiveLearningDataset, ActiveLearningExperiment, BaalTransformersTrainer, MCDropout
from baal_hf.experiment import compare
from baal_hf.heuristics import BALD, Entropy, PowerBALD, Random
from baal_hf.sampling import rows_digest

sys.path.append(str(Path(__file__).parents[1]))  # text_data lies beside the scripts that are no experiments
from text_data import packaged_minilm, train_and_test

HEURISTICS = {  # draws of which an experiment seeds anew in each round
    "Random": Random,
    "BALD": BALD,
    "PowerBALD": lambda: PowerBALD(temperature=1 / 8),
    "Entropy": Entropy,
}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}  # of --quick


@dataclass(frozen=True)
class Settings:
    """What is the same for every heuristic and seed."""

    max_length: int = 24  # tokens
    initial: int = 20
    query_size: int = 20
    rounds: int = 6
    pool_size: int = 200  # random rows of the pool that are scored in a round
    draws: int = 20
    learning_rate: float = 2e-4
    epochs: int = 30
    batch_size: int = 16


def model_of(checkpoint: str, classes: list[str], seed: int, quick: bool) -> PreTrainedModel:
    """The checkpoint with a new head, whose weights depend on the seed."""
    set_seed(seed)
    config = AutoConfig.from_pretrained(checkpoint, id2label=dict(enumerate(classes)), **(TINY if quick else {}))
    if quick:
        return AutoModelForSequenceClassification.from_config(config)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, config=config)
    model.get_input_embeddings().requires_grad_(False)  # most of a small model's weights; few labels teach few words
    return model


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def rows_of(source: str, tokenizer: Any, settings: Settings, most: int | None) -> list[datasets.Dataset]:
    """Tokenized rows to label and to test on; at most so many random ones."""
    files = [str(Path(source) / f"{split}.parquet") for split in ("train", "test")]
    train, test = files if Path(source).is_dir() else (source, None)
    splits = [split.shuffle(seed=0) for split in train_and_test(train, test, "text", "label", seed=0)]
    return [
        split.select(range(min(most or len(split), len(split))))
        .map(lambda row: tokenizer(row["text"], truncation=True, max_length=settings.max_length), keep_in_memory=True)
        .rename_column("label", "labels")
        for split in splits
    ]


def main(argv: list[str] | None = None) -> list[Record]:
    """Run what is not there yet, then print and write what came out; returns the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bbc-news", help="bbc-news, a folder, a file, or a data set on the hub.")
    parser.add_argument("--model", help="A folder, or a name on the hub; by default the packaged all-MiniLM-L6-v2.")
    parser.add_argument("--heuristics", nargs="+", choices=HEURISTICS, metavar="NAME", help=", ".join(HEURISTICS))
    parser.add_argument("--seeds", nargs="+", type=int, help="By default 0 1 2.")
    parser.add_argument("--target", type=float, default=0.9, help="Accuracy to reach, in [0, 1]; by default 0.9.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bert_mcdropout"))
    parser.add_argument("--quick", action="store_true", help="A tiny model with random weights, 100 rows, one seed.")
    args = parser.parse_args(argv)
    names = list(dict.fromkeys(args.heuristics or (["Random", "BALD"] if args.quick else HEURISTICS)))
    seeds = sorted(set(args.seeds or range(1 if args.quick else 3)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()

    settings = Settings()
    if args.quick:
        settings = replace(settings, rounds=3, query_size=10, pool_size=30, draws=3, epochs=1)
    checkpoint = args.model or packaged_minilm()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    train, test = rows_of(args.data, tokenizer, settings, 100 if args.quick else None)
    if len(train) < settings.initial:
        raise SystemExit(f"{settings.initial} first labels need as many rows, and {args.data} has {len(train)}.")
    told = asdict(settings) | {
        "model": args.model,
        "quick": args.quick,
        "data": [rows_digest(train), rows_digest(test)],
    }
    RunRecords(args.output_dir, told)  # refuses a folder of runs with other settings

    def experiment(heuristic: str, seed: int, folder: Path) -> ActiveLearningExperiment:
        print(f"{heuristic}, seed {seed}", flush=True)
        dataset = ActiveLearningDataset(train, random_state=seed)
        dataset.label_randomly(settings.initial)
        trainer = BaalTransformersTrainer(
            model_of(checkpoint, train.features["labels"].names, seed, args.quick),
            TrainingArguments(
                str(folder),
                learning_rate=settings.learning_rate,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=64,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=torch.cuda.is_available(),
                disable_tqdm=True,
            ),
            eval_dataset=test,
            processing_class=tokenizer,
            compute_metrics=accuracy,
            posterior=MCDropout(seed),
        )
        trainer.remove_callback(PrinterCallback)
        return ActiveLearningExperiment(
            trainer,
            dataset,
            test,
            HEURISTICS[heuristic](),
            settings.query_size,
            settings.draws,
            settings.pool_size,
            folder=folder,
            seed=seed,
            max_rounds=settings.rounds,
        )

    came_out = compare(experiment, names, seeds, args.output_dir, target=args.target, baseline="Random")
    told_of = sorted(came_out, key=lambda record: names.index(record["heuristic"]))
    records = [record | {"accuracy": record["eval_accuracy"], "images": record["labelled"]} for record in told_of]
    rows = table(records, args.target, against=["Random"])
    text = markdown([{name: cell for name, cell in row.items() if name != "images"} for row in rows])
    (args.output_dir / "table.md").write_text(text + "\n")
    print(f"{text}\nWritten to {args.output_dir}: table.md, learning_curve.png, records.csv, a folder for each run")
    return records


if __name__ == "__main__":
    main()
