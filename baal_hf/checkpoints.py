"""`ActiveLearningCallback`: Trainer's checkpoints hold what is labelled, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from baal_hf.dataset import ActiveLearningDataset

_NAME = "active_learning.json"


class ActiveLearningCallback(TrainerCallback):
    """Saves the state of a dataset in each checkpoint of a Trainer.

    `BaalTransformersTrainer.train(resume_from_checkpoint=...)` restores it and trains on what was labelled then. With
    another Trainer call `restore` before.

    Args:
        dataset: What the trainer trains on the labelled rows of.

    Example:
        callbacks = [ActiveLearningCallback(dataset)]
        trainer = BaalTransformersTrainer(model, args, train_dataset=dataset.labelled, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=True)
    """

    def __init__(self, dataset: ActiveLearningDataset) -> None:
        self.dataset = dataset

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state beside the weights."""
        if state.is_world_process_zero:
            path = Path(args.output_dir or ".", f"checkpoint-{state.global_step}", _NAME)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self.dataset.state_dict()), encoding="utf-8")
            part.replace(path)

    def restore(self, checkpoint: str | Path) -> None:
        """Take the dataset's state from a checkpoint.

        Raises:
            ValueError: The checkpoint has none, or one of another dataset.
        """
        try:
            state = json.loads(Path(checkpoint, _NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{checkpoint} does not hold what was labelled: it was saved without ActiveLearningCallback, or the "
                f"process ended while it was saved. ({error})"
            ) from error
        self.dataset.load_state_dict(state)
