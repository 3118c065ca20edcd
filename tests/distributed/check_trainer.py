"""N processes give the answer of one. An ordinary script: `accelerate launch tests/distributed/check_trainer.py`."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    TrainingArguments,
    set_seed,
)

from baal_hf import (
    BALD,
    ActiveLearningDataset,
    ActiveLearningExperiment,
    ActiveLearningLoop,
    BaalTransformersTrainer,
)
from baal_hf.sampling import concatenated


def rows(size: int) -> Dataset:
    """Rows of 1 to 9 tokens."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 99, length).tolist() for length in generator.integers(1, 10, size)]
    return Dataset.from_dict({"input_ids": ids, "label": [i % 3 for i in range(size)]})


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right."""
    length = max(len(row["input_ids"]) for row in features)
    ids = torch.tensor([row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in features])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def collate_with_labels(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The same, with labels where there are any."""
    labels = [row["label"] for row in features if "label" in row]
    return {**collate(features), **({"labels": torch.tensor(labels)} if labels else {})}


def expected(trainer: BaalTransformersTrainer, dataset: Dataset, iterations: int) -> np.ndarray:
    """The answer, row by row, by the model alone."""
    answers = []
    for row in dataset:
        batch = {name: value.to(trainer.args.device) for name, value in collate([row]).items()}
        passes = []
        for t in range(iterations):
            with torch.inference_mode(), trainer.posterior.draw(trainer.model, t):
                passes.append(trainer.probabilities(trainer.model(**batch).logits))
        answers.append(torch.stack(passes, -1).cpu())
    return concatenated(iter(answers))


def expected_features(trainer: BaalTransformersTrainer, dataset: Dataset, name: str) -> np.ndarray:
    """Features row by row, by the model without its head."""
    features = []
    for row in dataset:
        batch = {key: value.to(trainer.args.device) for key, value in collate([row]).items()}
        with torch.inference_mode():
            outputs = trainer.model.eval().bert(**batch)
        hidden = outputs.last_hidden_state  # [1, S, d]
        chosen = {"pooled": outputs.pooler_output, "cls": hidden[:, 0], "mean": hidden.mean(1)}
        features.append(chosen[name][0].cpu().numpy())
    return np.stack(features)


def check_shared_ledger(trainer: BaalTransformersTrainer) -> None:
    """A loop and an experiment of several processes write each label once to their one ledger file."""
    folder = Path(broadcast_object_list([tempfile.mkdtemp()])[0])
    accelerator = trainer.accelerator
    trainer.data_collator = collate_with_labels
    for name in ("loop", "experiment"):
        with accelerator.main_process_first():
            active = ActiveLearningDataset(rows(40), ledger=folder / f"{name}.db")
            if active.n_labelled == 0:
                active.label_randomly(4)
        if name == "loop":
            loop = ActiveLearningLoop(active, trainer.predict_on_dataset_generator, BALD(), 6, iterations=3)
            assert loop.step() and loop.step()
        else:
            place = {"folder": folder / "experiment", "max_rounds": 3}
            runs = [ActiveLearningExperiment(trainer, active, rows(8), "bald", 6, 3, **place) for _ in range(2)]
            records = runs[0].start()
            assert [record["labelled"] for record in records] == [4, 10, 16]
            assert gather_object([records]) == [records] * accelerator.num_processes
            assert runs[1].start() == records
        events = [(event.row_id, event.step, event.label) for event in active.ledger]
        assert len({row_id for row_id, *_ in events}) == len(events) == 16
        assert gather_object([events]) == [events] * accelerator.num_processes


def main() -> None:
    """Assert it, on every process, for pools smaller and larger than the number of processes."""
    config = BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    for kind in (BertForSequenceClassification, BertForTokenClassification):
        set_seed(0)
        arguments = TrainingArguments(
            tempfile.mkdtemp(),
            per_device_eval_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu="--gpu" not in sys.argv,
        )
        trainer = BaalTransformersTrainer(kind(config), arguments, data_collator=collate)
        assert trainer.accelerator.num_processes == int(sys.argv[1]), trainer.accelerator.num_processes
        for size in (1, 2, 3, 7, 11):
            dataset = rows(size)
            probs = trainer.predict_on_dataset(dataset, iterations=3)
            np.testing.assert_allclose(probs, expected(trainer, dataset, 3), rtol=0, atol=1e-5)
            parts = list(trainer.predict_on_dataset_generator(dataset, iterations=3))
            assert sum(map(len, parts)) == size
            for name in ("pooled", "cls", "mean")[kind is BertForTokenClassification :]:
                features = trainer.predict_features(dataset, name)
                np.testing.assert_allclose(features, expected_features(trainer, dataset, name), rtol=0, atol=1e-5)

    trainer = BaalTransformersTrainer(BertForSequenceClassification(config), arguments, data_collator=collate)
    active = ActiveLearningDataset(rows(40))
    active.label_randomly(4)
    loop = ActiveLearningLoop(active, trainer.predict_on_dataset_generator, BALD(), 5, max_sample=30, iterations=3)
    while loop.step():
        queried = torch.tensor(active.labelled_map, device=trainer.args.device)
        everyone = trainer.accelerator.gather(queried).view(-1, 40)
        assert (everyone == everyone[0]).all(), "the processes label different rows"
    assert active.n_unlabelled == 0
    check_shared_ledger(trainer)
    if trainer.accelerator.is_main_process:
        print("the processes agree")


if __name__ == "__main__":
    main()
    gc.collect()  # the trainer goes first: what exchanges its gradients would wait for ever for gloo's threads to end
    PartialState().destroy_process_group()  # which, left running, abort one exit in five
