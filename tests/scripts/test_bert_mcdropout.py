import contextlib
import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pytest
import torch
import transformers

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"

# A half-read file is closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The script as a module; what it does to the screen, and what `datasets` caches, ends with these tests."""
    verbosity = transformers.logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield importlib.import_module("bert_mcdropout")
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()


def texts(folder: Path, rows: int) -> Path:
    """Texts of six words, one of which tells the class, to label and to test on."""
    rng = np.random.default_rng(0)
    words = np.array(["time", "house", "river", "music", "apple", "winter", "garden", "paper", "stone", "light"])
    for split in ("train", "test"):
        classes = np.arange(rows) % 3
        text = [" ".join([*rng.choice(words, 5), ("red", "green", "blue")[name]]) for name in classes]
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["r", "g", "b"])}
        )
        datasets.Dataset.from_dict({"text": text, "label": classes}, features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets.disable_progress_bars()
    return texts(tmp_path_factory.mktemp("texts"), 120)


def shown(script: ModuleType, *arguments: str) -> tuple[list[dict], str]:
    """Records and screen of a quick run."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(["--quick", *arguments])
    return records, screen.getvalue()


@pytest.fixture(scope="module")
def quick(script: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    out = tmp_path_factory.mktemp("quick")
    records, screen = shown(script, "--data", str(folder), "--output_dir", str(out))
    return records, out, screen


def test_each_round_labels_more(quick: tuple[list[dict], Path, str]) -> None:
    """Random and BALD go through three rounds, and table, picture and records are written."""
    records, out, screen = quick
    assert [(r["heuristic"], r["labelled"]) for r in records] == [
        (name, labelled) for name in ("Random", "BALD") for labelled in (20, 30, 40)
    ]
    assert (out / "table.md").read_text() in screen and "minus Random" in screen and "images" not in screen
    assert (out / "learning_curve.png").stat().st_size > 5_000 and (out / "records.csv").is_file()


def test_heuristics_start_alike(quick: tuple[list[dict], Path, str]) -> None:
    """On one seed heuristics share the first round to the last digit of its loss, and then label other rows."""
    records, out, _ = quick
    assert records[0]["eval_loss"] == records[3]["eval_loss"] and records[2]["eval_loss"] != records[5]["eval_loss"]
    queries = [np.load(out / f"{name}-0" / "query-0001.npz")["row_ids"] for name in ("Random", "BALD")]
    assert all(len(set(row_ids)) == 10 for row_ids in queries) and set(queries[0]) != set(queries[1])


def test_stopped_run_ends_like_another(
    script: ModuleType,
    folder: Path,
    quick: tuple[list[dict], Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that stops in its second evaluation goes on, and its records are those of one that did not."""
    rounds = iter([False, True])

    def stopping(prediction: transformers.EvalPrediction) -> dict[str, float]:
        if next(rounds):
            raise KeyboardInterrupt
        return accuracy(prediction)

    accuracy = script.accuracy
    arguments = ["--data", str(folder), "--output_dir", str(tmp_path), "--heuristics", "BALD"]
    monkeypatch.setattr(script, "accuracy", stopping)
    with pytest.raises(KeyboardInterrupt):
        shown(script, *arguments)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("BALD-0/round-*.json"))) == 1
    assert shown(script, *arguments)[0] == quick[0][3:]


def test_every_heuristic_chooses(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """PowerBALD and Entropy rank a pool, too, from the first round of the others."""
    assert list(script.HEURISTICS) == ["Random", "BALD", "PowerBALD", "Entropy"]
    records, screen = shown(
        script, *("--data", str(folder), "--output_dir", str(tmp_path), "--heuristics", "PowerBALD", "Entropy")
    )
    assert [r["eval_loss"] for r in records if r["labelled"] == 20] == [quick[0][0]["eval_loss"]] * 2
    assert len(records) == 6 and "minus" not in screen


# The model


@pytest.fixture(scope="module")
def models(script: ModuleType) -> list[transformers.PreTrainedModel]:
    """MiniLM by seed 0, seed 0 again and seed 1."""
    return [script.model_of(script.packaged_minilm(), ["a", "b"], seed, False) for seed in (0, 0, 1)]


def test_head_is_the_seeds(models: list[transformers.PreTrainedModel]) -> None:
    """The new head depends on the seed alone, and the encoder is the checkpoint's for all."""
    one, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"classifier.weight"}
    assert models[0].config.num_labels == 2


def test_word_embeddings_stay(models: list[transformers.PreTrainedModel]) -> None:
    """Of the encoder only the word embeddings are not trained."""
    frozen = [name for name, weight in models[0].named_parameters() if not weight.requires_grad]
    assert frozen == ["bert.embeddings.word_embeddings.weight"]


def test_accuracy_is_the_share_of_right_rows(script: ModuleType) -> None:
    """Two of three rows have their class on top."""
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    found = script.accuracy(transformers.EvalPrediction(logits, np.array([0, 1, 1])))
    assert found == {"accuracy": pytest.approx(2 / 3)}


def test_settings_are_the_issues(script: ModuleType) -> None:
    """20 first labels, 20 a round, 20 draws, PowerBALD at temperature 1/8."""
    settings = script.Settings()
    assert (settings.initial, settings.query_size, settings.draws) == (20, 20, 20)
    assert script.HEURISTICS["PowerBALD"]().temperature == 1 / 8


# Bad input


def test_unknown_heuristic_is_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A heuristic that is not in the list ends with code 2."""
    with pytest.raises(SystemExit) as caught:
        script.main(["--heuristics", "bold"])
    assert caught.value.code == 2 and "invalid choice: 'bold'" in capsys.readouterr().err


def test_too_few_rows_are_refused(script: ModuleType, tmp_path: Path) -> None:
    """Fewer rows than first labels are refused before anything is run."""
    with pytest.raises(SystemExit, match=r"20 first labels need as many rows, and .* has 12"):
        shown(script, "--data", str(texts(tmp_path, 12)), "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """Runs are not gone on with in full, nor on other texts."""
    with pytest.raises(SystemExit, match=r"other settings \(.*rounds"):
        script.main(["--data", str(folder), "--output_dir", str(quick[1])])
    with pytest.raises(SystemExit, match=r"other settings \(data\)"):
        shown(script, "--data", str(texts(tmp_path, 60)), "--output_dir", str(quick[1]))
