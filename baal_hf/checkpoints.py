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

    `BaalTransformersTrainer.train(resume_from_checkpoint=...)` restores it, and trains on what was labelled when the
    training began. With another Trainer, or with rows that are made of the labelled ones, call `restore` before.

    Args:
        dataset: What the trainer trains on the labelled rows of.

    Example:
        callbacks = [ActiveLearningCallback(dataset)]
        trainer = BaalTransformersTrainer(model, args, train_dataset=dataset.labelled, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=True)
    """

    def __init__(self, dataset: ActiveLearningDataset) -> None:
        self.dataset = dataset
        self._state: dict[str, Any] | None = None  # of the rows that are trained on
        self._restored: dict[str, Any] | None = None  # of those that the next training goes on with

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember what is labelled, whatever is labelled while the trainer trains."""
        self._state = self._restored or self.dataset.state_dict()
        self._restored = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state beside the weights."""
        if state.is_world_process_zero:
            path = Path(args.output_dir or ".", f"checkpoint-{state.global_step}", _NAME)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self._state, default=_plain), encoding="utf-8")
            part.replace(path)

    def restore(self, checkpoint: str | Path) -> Any:
        """Take the dataset's state from a checkpoint.

        Returns:
            The labelled rows that were trained on; a ledger file may have more.

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
        self._restored = state
        return self.dataset.labelled_after(len(state["events"]))


def _plain(label: Any) -> Any:
    return label.tolist()
