"""`BaalTransformersTrainer`: Trainer, and Monte-Carlo predictions, scores and features over a pool.

The file is long by what its docstrings promise; the work is done in `sampling`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from baal_hf import features
from baal_hf.arrays import probabilities
from baal_hf.checkpoints import ActiveLearningCallback
from baal_hf.devices import agree_on_buffers
from baal_hf.heuristics import AbstractHeuristic, get_heuristic
from baal_hf.heuristics.base import checked_size
from baal_hf.inputs import InputCollator, checked_lengths, input_names, model_columns
from baal_hf.outputs import found_logits, known_problem_type, problem_type, token_mask
from baal_hf.posterior import Deterministic, MCDropout, Posterior
from baal_hf.posterior.base import unwrapped
from baal_hf.posterior.patching import unpatched
from baal_hf.rows import ROW_ID
from baal_hf.sampling import (
    Folder,
    Forward,
    Sampler,
    Value,
    adaptive_top_rows,
    agreed,
    check_iterations,
    check_length,
    check_ranking,
    check_row_arrays,
    concatenated,
    described,
    halved,
    is_sharded,
    model_digest,
    progress_bar,
    refuse_fresh,
    rows_digest,
    sample_to_store,
    scoring,
    top_rows,
)
from baal_hf.store import ArrayStore


class BaalTransformersTrainer(Trainer):
    """A drop-in `transformers.Trainer` that also predicts under draws from a posterior.

    Everything Trainer does it does here, unchanged: `train()`, `evaluate()` and `predict()` know nothing of draws.

    Args:
        *args: As for Trainer.
        posterior: What to draw from, `MCDropout()` by default. A model that was given to `patch_module` or
            a `BayesianModule` (`MCDropoutModule`) is unpatched, so that evaluation stays deterministic, and the
            posterior that it was given is taken over.
        max_tokens_per_batch: Tokens of a batch under draws, padding included, on each process; None chooses by the
            device and its memory. Rows are grouped by the length of their `input_ids`. Where that cannot be read (other
            inputs, a dataset with a transform), a batch has `per_device_eval_batch_size` rows.
        **kwargs: As for Trainer.

    Attributes:
        posterior: What `predict_on_dataset` draws from.
        max_tokens_per_batch: As above.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *args: Any,
        posterior: Posterior | None = None,
        max_tokens_per_batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._patched_with: Posterior | None = None
        if max_tokens_per_batch is not None and max_tokens_per_batch < 1:
            raise ValueError(f"BaalTransformersTrainer needs max_tokens_per_batch >= 1, got {max_tokens_per_batch}.")
        self.max_tokens_per_batch = max_tokens_per_batch
        super().__init__(self._taken_over(model), *args, **kwargs)
        self.model: nn.Module
        self.posterior = posterior if posterior is not None else self._patched_with or MCDropout()
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        self._given_states = {name: deepcopy(part.state_dict()) for name, part in parts.items() if part is not None}

    def predict_on_dataset(
        self,
        dataset: Any,
        iterations: int = 1,
        half: bool = False,
        ignore_keys: Sequence[str] | None = None,
        *,
        store: Folder | None = None,
    ) -> np.ndarray | ArrayStore:
        """Class probabilities of each row under T draws of the posterior.

        Softmax for single-label models, sigmoid for multi-label ones, values as they are for regression, as the model's
        configuration says. Labels are not needed and not looked at; no loss is computed.

        Args:
            dataset: Rows to predict, usually a pool.
            iterations: Number of draws, T.
            half: Return float16.
            ignore_keys: Names of the model's outputs to pass over when looking for `logits`.
            store: A folder to put them in instead of memory. Heuristics read it in chunks. A run that was killed goes
                on where it was, on any number of processes, once it is started again with the same rows, weights,
                posterior and iterations.

        Returns:
            float32 or float16, [N, C, T] or [N, C, *S, T], in the order of the dataset, the same on every process.
            Where rows have different lengths, positions that are padding are NaN, and stand behind the row's tokens
            whatever side is padded. With `store` the store, whose iteration gives these arrays a chunk of rows at a
            time.

        Raises:
            ValueError: `iterations` < 1 or beyond the posterior's size, an empty dataset, a row that is too long for
                the model, a model without dropout, outputs that are not finite or hold no logits; a store that was
                made of something else, as the message says.
            OSError: The store cannot be written; what is done is kept.
        """
        sampler, rows = self._predicting(dataset, iterations, ignore_keys)
        if store is not None:
            of = {"kind": "predictions", "ignore_keys": sorted(ignore_keys or ())}
            return self._stored(store, sampler, rows, iterations, of, half=half)
        parts = sampler.predictions(rows, iterations)
        return concatenated(halved(part) if half else part for part in parts)

    def predict_on_dataset_generator(
        self, dataset: Any, iterations: int = 1, half: bool = False, ignore_keys: Sequence[str] | None = None
    ) -> Iterator[np.ndarray]:
        """What `predict_on_dataset` returns, a chunk of rows at a time: arrays [n, C, *S, T] in the order of the rows.

        `dataset` may be a stream.
        """
        sampler, rows = self._predicting(dataset, iterations, ignore_keys)
        return ((halved(part) if half else part).numpy() for part in sampler.predictions(rows, iterations))

    def score_dataset(
        self,
        dataset: Any,
        heuristic: AbstractHeuristic | str,
        iterations: int = 1,
        *,
        store: Folder | None = None,
        ignore_keys: Sequence[str] | None = None,
        **arrays: Any,
    ) -> np.ndarray:
        """The heuristic's score of each row, without the predictions, of which only a batch is there at a time.

        Args:
            dataset: Rows to score, usually a pool; a stream, too.
            heuristic: Scores rows one by one; a name for `get_heuristic`, or the heuristic. Those that look at all rows
                together take predictions, or are wrapped in `Prefiltered`.
            iterations: Number of draws, T.
            store: A folder to put them in on the way, as for `predict_on_dataset`.
            ignore_keys: As for `predict_on_dataset`.
            **arrays: The other arrays that the heuristic needs, by name, such as `target_predictions`.

        Returns:
            float32, [N], in the order of the dataset, the same on every process; higher is more informative.

        Raises:
            ValueError: As for `predict_on_dataset`; a heuristic that looks at all rows together, or gives scores to
                positions.
            TypeError: The heuristic needs an array that is missing.
            OSError: The store cannot be written; what is done is kept.
        """
        heuristic = _heuristic(heuristic)
        if "predictions" not in heuristic.needs:
            check_length(dataset, heuristic.name)
            if store is not None:
                raise ValueError(f"{heuristic.name} needs no predictions: there is nothing to keep in a store.")
            check_row_arrays(heuristic.name, arrays, len(dataset))
            return heuristic.get_uncertainties(None if heuristic.needs else dataset, **arrays).astype(np.float32)
        sampler, rows = self._predicting(dataset, iterations, ignore_keys)
        value = scoring(heuristic, arrays, len(rows) if hasattr(rows, "__len__") else None)
        if store is not None:
            of = {"kind": "scores", "ignore_keys": sorted(ignore_keys or ())}
            of |= {"heuristic": described(heuristic), "arrays": described(arrays)}
            return np.concatenate([*self._stored(store, sampler, rows, iterations, of, value=value)])
        scores = np.concatenate([chunk.values.numpy() for chunk in sampler.chunks(rows, range(iterations), value)])
        check_row_arrays(heuristic.name, arrays, len(scores))  # of a stream only now
        return scores

    def rank_dataset(
        self,
        dataset: Any,
        heuristic: AbstractHeuristic | str,
        iterations: int,
        query_size: int,
        *,
        adaptive: bool = False,
        error_rate: float = 0.005,
        ignore_keys: Sequence[str] | None = None,
        **arrays: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The K most informative rows, found without holding the predictions of all.

        Args:
            dataset: Rows to rank, usually a pool; a stream, too, of which only K scores are held.
            heuristic: Ranks rows; a name or a heuristic. One that looks at all rows together is given the predictions
                of all: for a large pool, `Prefiltered(BatchBALD())` holds those of the best by a first score.
            iterations: Number of draws, T.
            query_size: Number of rows, K.
            adaptive: Give no more draws to a row once a test says that it will not be among the K best. The rows that
                stay have all T draws, and their own scores.
            error_rate: Of the test that a row lies below another; a row is out when it lies below K others.
            ignore_keys: As for `predict_on_dataset`.
            **arrays: As for `score_dataset`.

        Returns:
            Positions in the dataset, most informative first, int64 [K], and their scores [K].

        Raises:
            ValueError: As for `predict_on_dataset`; K is not in 1 .. N; a stream with a heuristic that samples or
                shuffles its ranking, or `adaptive` with one that does not rank by scores from predictions alone.
            TypeError: As for `score_dataset`.
        """
        heuristic = _heuristic(heuristic)
        if hasattr(dataset, "__len__"):
            check_row_arrays(heuristic.name, arrays, len(dataset))
        if heuristic.rows_together and not adaptive:
            parts = self.predict_on_dataset_generator(dataset, iterations, ignore_keys=ignore_keys)
            ranks, scores = heuristic.get_ranks(parts, query_size, **arrays)
            return agreed(ranks[:query_size], scores[ranks[:query_size]], self.accelerator)
        if not adaptive and hasattr(dataset, "__len__"):
            checked_size(query_size, len(dataset), heuristic.name)
            scores = self.score_dataset(dataset, heuristic, iterations, ignore_keys=ignore_keys, **arrays)
            ranks = heuristic.reorder_indices(scores)[:query_size]
            return agreed(ranks, scores[ranks], self.accelerator)
        check_ranking(heuristic, adaptive)
        if adaptive and arrays:
            raise TypeError(f"{heuristic.name} takes predictions, got {', '.join(arrays)}.")
        sampler, rows = self._predicting(dataset, iterations, ignore_keys)
        if adaptive:
            refuse_fresh(self.posterior, "Adaptive scoring")
            return adaptive_top_rows(sampler, rows, heuristic, iterations, query_size, error_rate)
        chunks = sampler.chunks(rows, range(iterations), scoring(heuristic, arrays))
        return top_rows(chunks, query_size, heuristic.name, arrays)

    def predict_features(
        self, dataset: Any, representation: str = "pooled", ignore_keys: Sequence[str] | None = None
    ) -> np.ndarray:
        """What the model knows of each row before its head, in one deterministic pass, whatever the posterior.

        Labels are not needed and not looked at. The representations are

        - `pooled`: what the last linear layer of the head receives, so that logits = W h + b, which BADGE needs;
        - `cls`: the last hidden state of the first token (in a decoder, which sees no other, choose another);
        - `mean`: the last hidden state, averaged over tokens without padding, or over all places of an image.

        An encoder-decoder's last hidden state is its encoder's, to whose tokens the attention mask belongs.

        Args:
            dataset: Rows to represent.
            representation: `pooled`, `cls` or `mean`.
            ignore_keys: Names of the model's outputs to pass over when looking for `logits`.

        Returns:
            float32, [N, d], in the order of the dataset, the same on every process.

        Raises:
            ValueError: An unknown representation or one that this model does not have, an empty dataset, features that
                are not finite.
        """
        represent = features.representation(representation)

        def forward(model: nn.Module, batch: Any) -> Tensor:
            return represent(
                model,
                lambda: self._outputs(model, batch),
                lambda outputs: found_logits(outputs, ignore_keys or ()),
                token_mask(batch),
            )

        sampler, rows = self._sampler(dataset, Deterministic(), forward, shown_as="features")
        parts = sampler.predictions(rows, iterations=1)
        return concatenated(part.squeeze(-1) for part in parts)  # [n, d, 1] -> [N, d]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities [B, C, *S] of the model's logits; override it for a model with another output.

        The configuration's `problem_type` decides. Where it is None, one label means regression and several mean single
        labels, as in transformers, which sets it when it first sees labels: set it yourself for multi-label models.

        Logits of three dimensions are taken as [B, S, C], a class vector for each token; of two as [B, C], of four or
        more as [B, C, *S].
        """
        if logits.ndim == 3:
            logits = logits.movedim(-1, 1)  # [B, C, S]
        return probabilities(logits, problem_type(unwrapped(self.model)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the model and start optimizer and schedule anew, those given to the trainer too."""
        self.model.load_state_dict(state_dict, strict=strict)
        for name in ("optimizer", "lr_scheduler"):
            if name in self._given_states:
                getattr(self, name).load_state_dict(deepcopy(self._given_states[name]))
            else:
                setattr(self, name, None)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own; a checkpoint that was saved with `ActiveLearningCallback` brings its labelled rows along."""
        checkpoint: Any = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir or ".")  # type: ignore[no-untyped-call]
        for callback in self.callback_handler.callbacks if checkpoint else ():
            if isinstance(callback, ActiveLearningCallback):
                if self.train_dataset not in (None, callback.dataset, callback.dataset.labelled):
                    raise ValueError(
                        "The trainer trains on other rows than dataset.labelled: make them of what "
                        "ActiveLearningCallback.restore(checkpoint) returns, and leave the callback out."
                    )
                self.train_dataset = callback.restore(checkpoint)
        trained = super().train(resume_from_checkpoint, *args, **kwargs)
        agree_on_buffers(unwrapped(self.model), self.accelerator)
        return trained

    def call_model_init(self, trial: Any = None) -> Any:
        """Trainer's own; a model that comes patched is taken over."""
        return self._taken_over(super().call_model_init(trial))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer's own; with persistent workers, too, each dataset that is given has a loader of its own."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        # Trainer keeps all that have no name under the same one.
        kept, self._eval_dataloaders = getattr(self, "_eval_dataloaders", {}), {}
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self._eval_dataloaders = kept

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's own, once something is labelled.

        Raises:
            ValueError: The training set has no rows.
        """
        if isinstance(self.train_dataset, Sized) and len(self.train_dataset) == 0:
            raise ValueError("Training needs labelled rows, and there are none: call dataset.label_randomly(n) first.")
        return super().get_train_dataloader()

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Trainer's own, of what reaches the model: with `remove_unused_columns=False` row ids would."""
        if isinstance(inputs, Mapping) and ROW_ID in inputs:
            inputs = {name: value for name, value in inputs.items() if name != ROW_ID}
        return super()._prepare_inputs(inputs)

    def _taken_over(self, model: nn.Module | None) -> nn.Module | None:
        """The model without the patches of it or its parts; what they draw from is kept."""
        if model is not None:
            model, posterior = unpatched(model)
            self._patched_with = posterior or self._patched_with
        return model

    def _predicting(self, dataset: Any, iterations: int, ignore_keys: Sequence[str] | None) -> tuple[Sampler, Any]:
        """What predicts under draws of the trainer's posterior, and the rows as it takes them."""
        check_iterations(iterations, self.posterior)

        def forward(model: nn.Module, batch: Any) -> Tensor:
            return self.probabilities(found_logits(self._outputs(model, batch), ignore_keys or ()))

        return self._sampler(dataset, self.posterior, forward)

    def _outputs(self, model: nn.Module, batch: Any) -> Any:
        """What the model returns for a batch."""
        precision = {self.args.fp16_full_eval: torch.float16, self.args.bf16_full_eval: torch.bfloat16}.get(True)
        # Trainer's evaluation casts the weights for `*_full_eval`, for good; here they stay as they are.
        with torch.autocast(self.args.device.type, precision) if precision else nullcontext():
            if not isinstance(batch, Mapping):
                return model(*batch)
            no_cache = {"use_cache": False} if "use_cache" in input_names(model) else {}  # of keys and values
            try:
                return model(**{**no_cache, **self._collator(model).taken(batch)})
            except ValueError as error:
                has_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
                if not has_decoder or "decoder_input_ids" in batch:
                    raise
                raise ValueError(
                    f"{type(model).__name__} was given no decoder_input_ids ({error}). It makes them of labels, which "
                    "are not looked at here: give the rows a column of them."
                ) from error

    def _place(self, model: nn.Module) -> None:
        """Move the model to the device if Trainer has not: with `*_full_eval` it does so when it evaluates itself."""
        spread = self.is_model_parallel or self.is_deepspeed_enabled or self.is_fsdp_enabled or is_sharded(model)
        weight = next(model.parameters(), None)
        if not spread and weight is not None and weight.device.type != self.args.device.type:
            self._move_model_to_device(model, self.args.device)

    def _collator(self, model: nn.Module) -> InputCollator:
        inputs = input_names(model) if self.args.remove_unused_columns else None
        return InputCollator(self.data_collator, {"label", "labels", "label_ids", *self.label_names}, inputs)

    def _sampler(
        self, dataset: Any, posterior: Posterior, forward: Forward, shown_as: str = "draws"
    ) -> tuple[Sampler, Any]:
        """The engine for this trainer's model, and the rows without what does not reach it."""
        model = unwrapped(self.model)
        self._place(model)
        collator = self._collator(model)
        sampler = Sampler(
            model,
            posterior,
            forward,
            self.accelerator,
            batch_size=self.args.per_device_eval_batch_size,
            max_tokens=self.max_tokens_per_batch,
            lengths=partial(checked_lengths, model),
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            progress=partial(progress_bar, shown_as, self.args.disable_tqdm or not self.is_world_process_zero()),
        )
        return sampler, model_columns(dataset, collator, type(model).__name__)

    def _stored(
        self,
        folder: Folder,
        sampler: Sampler,
        rows: Any,
        iterations: int,
        of: dict[str, Any],
        *,
        value: Value | None = None,
        half: bool = False,
    ) -> ArrayStore:
        """What `value` keeps of predictions, in a store whose manifest says what it depends on."""
        check_length(rows, "A store")
        refuse_fresh(self.posterior, "A store")
        model = unwrapped(self.model)
        manifest = {
            **of,
            "outputs": [described(type(self).probabilities), described(type(self)._outputs), known_problem_type(model)],
            "collator": described(self.data_collator),
            "half": half,
            "iterations": int(iterations),
            "posterior": described(self.posterior),
            "precision": [self.accelerator.mixed_precision, self.args.fp16_full_eval, self.args.bf16_full_eval],
            "weights": model_digest(model),
            "dataset": rows_digest(rows),
        }
        draws = range(iterations)
        return sample_to_store(sampler, rows, draws, folder, manifest, self.accelerator, value=value, half=half)


def _heuristic(heuristic: AbstractHeuristic | str) -> AbstractHeuristic:
    return heuristic if isinstance(heuristic, AbstractHeuristic) else get_heuristic(heuristic)
