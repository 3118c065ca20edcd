import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import huggingface_hub
import matplotlib.image
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from baal_hf import ActiveLearningDataset

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = "--num_hidden_layers 2 --max_length 16 --iterations 3 --initial 5 --query_size 4 --rounds 2 --num_train_epochs 1"

# A half-read file is closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The script as a module; what it does to the screen, and what `datasets` caches, ends with these tests."""
    verbosity, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    torch.set_num_threads(1)  # on batches this small two threads wait for each other most of the time
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield importlib.import_module("run_active_learning")
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def news(script: ModuleType) -> datasets.Dataset:
    """BBC News: twelve documents of each class, one class after the other."""
    rows = script.train_and_test.__globals__["bbc_news"]()
    return rows.select(np.concatenate([np.flatnonzero(np.asarray(rows["label"]) == c)[:12] for c in range(5)]))


@pytest.fixture(scope="module")
def files(news: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows to label and twenty to test on, as files of each kind, with names or numbers as labels."""
    folder = tmp_path_factory.mktemp("news")
    numbers = news.cast_column("label", datasets.Value("int64"))
    names = datasets.Dataset.from_dict(
        {"text": news["text"][:], "label": news.features["label"].int2str(news["label"][:])}
    )
    for kind, rows in (("numbers", numbers), ("names", names)):
        split = {"train": rows.filter(lambda _, i: i % 3 < 2, with_indices=True, keep_in_memory=True)}
        split["test"] = rows.filter(lambda _, i: i % 3 == 2, with_indices=True, keep_in_memory=True)
        for part, some in split.items():
            some.to_csv(folder / f"{kind}-{part}.csv")
            some.to_json(folder / f"{kind}-{part}.json")
            some.to_parquet(folder / f"{kind}-{part}.parquet")
    return folder


def run(script: ModuleType, output_dir: Path, *arguments: object) -> list[dict]:
    return script.main([*TINY.split(), "--output_dir", str(output_dir), *map(str, arguments)])


@pytest.fixture(scope="module")
def compared(script: ModuleType, files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    """Records, folder and screen of a run of BALD beside Random on a parquet file."""
    folder = tmp_path_factory.mktemp("compared")
    data = ["--dataset", files / "names-train.parquet", "--test_dataset", files / "names-test.parquet"]
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = run(script, folder, *data, "--compare", "random", "--rounds", 3)
    return records, folder, screen.getvalue().strip()


def test_each_round_labels_query_size_more_rows(compared: tuple[list[dict], Path, str]) -> None:
    """From `initial` on each round has `query_size` labels more, and no row is queried twice."""
    for heuristic in ("bald", "random"):
        records = [r for r in compared[0] if r["heuristic"] == heuristic]
        assert [r["labelled"] for r in records] == [5, 9, 13]
        new = [row for r in records for row in r["new"]]
        assert [len(r["new"]) for r in records] == [5, 4, 4]
        assert len(set(new)) == 13 and set(new) <= set(range(40))


def test_compared_heuristics_start_alike_and_choose_otherwise(compared: tuple[list[dict], Path, str]) -> None:
    """Two heuristics share first labels and first weights, hence the first accuracy, and query other rows."""
    bald, random = compared[0][:3], compared[0][3:]
    assert bald[0]["new"] == random[0]["new"]
    assert bald[0]["eval_accuracy"] == random[0]["eval_accuracy"]
    assert set(bald[1]["new"]) != set(random[1]["new"])


def test_first_labels_follow_from_the_seed(files: Path, compared: tuple[list[dict], Path, str]) -> None:
    """The rows labelled at the start are those of a dataset with this seed."""
    rows = datasets.load_dataset("parquet", data_files=str(files / "names-train.parquet"), split="train")
    dataset = ActiveLearningDataset(rows, random_state=42)  # the Trainer's default seed
    dataset.label_randomly(5)
    assert set(compared[0][0]["new"]) == set(dataset.labelled_ids.tolist())


def test_records_file_holds_what_is_returned(compared: tuple[list[dict], Path, str]) -> None:
    """records.jsonl has the returned records, one a line."""
    records, folder, _ = compared
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_picture_is_a_png_that_shows_something(compared: tuple[list[dict], Path, str]) -> None:
    """learning_curve.png decodes to an image of more than one colour."""
    path = compared[1] / "learning_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 200 and pixels.std() > 0.01


def test_saved_model_predicts_class_names(compared: tuple[list[dict], Path, str], news: datasets.Dataset) -> None:
    """The model folder loads with tokenizer, and its predictions have the names of the dataset's classes."""
    folder = compared[1] / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(news["text"][0], truncation=True, max_length=16, return_tensors="pt")
    assert sorted(model.config.id2label.values()) == sorted(news.features["label"].names)
    assert model(**tokens).logits.isfinite().all()


def test_screen_has_one_line_a_round(compared: tuple[list[dict], Path, str]) -> None:
    """The screen shows data, model, one line for each round, who was ahead, and where things are."""
    data, model, *rounds, verdict, written = compared[2].split("\n")
    assert "40 rows to label, 20 to test on" in data and "2 layers" in model
    assert len(rounds) == 6
    for line, record in zip(rounds, compared[0], strict=True):
        assert f"labelled {record['labelled']:4d}  accuracy {record['eval_accuracy']:.3f}" in line
        assert line.endswith("new: rows " + " ".join(map(str, record["new"])))
    assert "ahead" in verdict and "one seed proves nothing" in verdict
    assert str(compared[1]) in written


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_every_file_format_gives_the_same_run(
    kind: str, script: ModuleType, files: Path, compared: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """The same rows as csv or json give the records that parquet gave; hence also: the same seed, the same run."""
    data = ["--dataset", files / f"names-train.{kind}", "--test_dataset", files / f"names-test.{kind}"]
    assert run(script, tmp_path, *data, "--rounds", 3) == compared[0][:3]


def test_another_seed_queries_other_rows(
    script: ModuleType, files: Path, compared: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """The seed decides on first labels and weights; Random takes its choice from it too."""
    data = ["--dataset", files / "names-train.parquet", "--test_dataset", files / "names-test.parquet"]
    records = run(script, tmp_path, *data, "--heuristic", "random", "--seed", 7)
    assert records[1]["new"] != compared[0][4]["new"]


def test_integer_labels_and_a_fifth_as_test_rows(
    script: ModuleType, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers are classes too, and without test rows a fifth of the rows is set apart."""
    records = run(script, tmp_path, "--dataset", files / "numbers-train.parquet", "--heuristic", "entropy")
    assert [r["labelled"] for r in records] == [5, 9]
    screen = capsys.readouterr().out
    assert "32 rows to label, 8 to test on, classes 0, 1, 2, 3, 4" in screen
    assert (
        f"Accuracy {records[0]['eval_accuracy']:.3f} with 5 labels, {records[1]['eval_accuracy']:.3f} with 9." in screen
    )


@pytest.mark.parametrize("heuristic", ["badge", "epig", "cal", "typiclust", "batchbald", "withoutduplicates"])
def test_heuristics_that_need_more(script: ModuleType, files: Path, tmp_path: Path, heuristic: str, capsys) -> None:
    """Features, targets and labelled rows reach the heuristics that ask for them; those made of others are refused."""
    data = ["--dataset", files / "names-train.csv", "--test_dataset", files / "names-test.csv"]
    if heuristic == "withoutduplicates":
        with pytest.raises(SystemExit, match="2"):
            run(script, tmp_path, *data, "--heuristic", heuristic)
        assert "base_heuristic" in capsys.readouterr().err
        return
    records = run(script, tmp_path, *data, "--heuristic", heuristic, "--targets", 7)
    assert [record["labelled"] for record in records] == [5, 9]
    assert len(set(records[1]["new"])) == 4


def test_query_larger_than_the_pool_labels_what_is_left(
    script: ModuleType, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A query_size beyond the pool labels the rest, says so, trains once more and ends there."""
    data = ["--dataset", files / "names-train.csv", "--test_dataset", files / "names-test.csv"]
    records = run(script, tmp_path, *data, "--initial", 30, "--query_size", 99, "--rounds", 4, "--heuristic", "margin")
    assert [(r["labelled"], len(r["new"])) for r in records] == [(30, 30), (40, 10)]
    assert "query_size is 99 but only 10 rows are left" in caplog.text


def test_numbers_are_classes_in_their_order(script: ModuleType) -> None:
    """Classes that are numbers are ordered as numbers, 2 before 10."""
    rows = datasets.Dataset.from_dict({"text": ["a"] * 4, "label": [10, 2, 10, 2]})
    with_classes = script.train_and_test.__globals__["_with_classes"]
    classed = with_classes({"train": rows}, "label")["train"]
    assert classed.features["label"].names == ["2", "10"] and classed["label"][:] == [1, 0, 1, 0]


def test_test_rows_take_the_classes_of_the_train_rows(script: ModuleType, tmp_path: Path) -> None:
    """Names in a test file become the numbers that the train rows' ClassLabel gives them."""
    path = tmp_path / "test.json"
    path.write_text('{"text": "a goal", "label": "sports"}\n{"text": "a law", "label": "politics"}\n')
    train, test = script.train_and_test("bbc-news", str(path), "text", "label", seed=0)
    assert test.features["label"] == train.features["label"]
    assert test.features["label"].int2str(test["label"][:]) == ["sports", "politics"]


# Bad input


def error_of(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a run that must end before any training says: on the screen with code 2, or as message of the exit."""
    with pytest.raises(SystemExit) as caught:
        script.main([*TINY.split(), *map(str, arguments)])
    if caught.value.code == 2:
        return capsys.readouterr().err
    assert isinstance(caught.value.code, str)
    return caught.value.code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--heuristic", "bold"], "variance, variationratio, voteentropy, withoutduplicates, got 'bold'"),
        (["--compare", "random", "bold"], "got 'bold'"),
        (["--query_size", "0"], "--query_size needs to be at least 1, got 0"),
        (["--rounds", "0"], "--rounds needs to be at least 1, got 0"),
        (["--pool_sample", "0"], "--pool_sample needs to be at least 1, or -1 for the whole pool, got 0"),
        (["--iterations", "0"], "--iterations needs to be at least 1, got 0"),
        (["--iterations", "1"], "BALD needs 2 posterior draws or more"),
        (["--no_such_option"], "There is no option --no_such_option"),
    ],
)
def test_bad_options_end_with_code_2(
    arguments: list[str], told: str, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that cannot work ends the run before anything is loaded, and says what came and what is needed."""
    error = error_of(script, capsys, *arguments)
    assert told in error or told in error.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.csv", "body,label\nA goal,sport\n", "The train rows have no column text, only body, label"),
        ("rows.csv", "text,label\n", "corresponds to no data"),
        ("rows.csv", "text,label\nA goal,\nA law,politics\n", "The column label is empty in 1 of the 2 train rows"),
        ("rows.csv", "text,label\n,sport\nA law,politics\n", "The column text is empty in 1 of the 2 train rows"),
        ("rows.csv", "text,label\n1,sport\n2,politics\n", "The column text of the train rows needs to hold texts"),
        ("rows.csv", "text,label\nA goal,sport\nA law,politics\n", "rows of their own with --test_dataset"),
        ("rows.json", '{"text": "A goal", "label": ["sport"]}\n', "needs a class in each row"),
        ("rows.json", '{"text": "A goal", "lab', "cannot be read as json"),
        ("rows.txt", "A goal", "needs to end in one of .parquet, .csv, .json, .jsonl"),
        ("rows.csv", None, "There is no file"),
    ],
)
def test_bad_files_end_with_a_sentence(
    name: str, content: str | None, told: str, script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file that cannot be used ends the run with a message that says why."""
    if content is not None:
        (tmp_path / name).write_text(content)
    assert told in error_of(script, capsys, "--dataset", tmp_path / name)


def test_truncated_parquet_ends_with_a_sentence(
    script: ModuleType, capsys: pytest.CaptureFixture[str], files: Path, tmp_path: Path
) -> None:
    """Half a parquet file is named, with what the reader said."""
    whole = (files / "names-train.parquet").read_bytes()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(whole[: len(whole) // 2])
    error = error_of(script, capsys, "--dataset", broken)
    assert f"{broken} cannot be read as parquet: " in error and "footer" in error


def test_unknown_dataset_without_network(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is nothing here and cannot be asked for at the hub is told so, with what could stand there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    error = error_of(script, capsys, "--dataset", "no-such-dataset")
    assert "no-such-dataset is not bbc-news, no file that ends in .parquet" in error and "hub" in error


def test_unknown_model_without_network(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is no folder and not in the cache ends the run with a message."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "The model ./no-model cannot be loaded" in error_of(script, capsys, "--model_name_or_path", "./no-model")


def test_more_first_labels_than_rows(script: ModuleType, capsys: pytest.CaptureFixture[str], files: Path) -> None:
    """`initial` beyond the rows is refused with both numbers."""
    data = ["--dataset", files / "names-train.csv", "--test_dataset", files / "names-test.csv"]
    assert "--initial 41 needs that many rows to label" in error_of(script, capsys, *data, "--initial", 41)


def test_class_that_only_the_test_rows_have(
    script: ModuleType, capsys: pytest.CaptureFixture[str], files: Path
) -> None:
    """Test rows of a class that the train rows' ClassLabel does not know are refused by name."""
    test = files / "numbers-test.csv"
    assert "The test rows have the classes 0, 1, 2, 3, 4" in error_of(script, capsys, "--test_dataset", test)


# As a user starts it

WRAPPER = """
import json, os, sys
sys.path.insert(0, {scripts!r})
import run_active_learning
records = run_active_learning.main(sys.argv[1:])
with open({folder!r} + "/rank" + os.environ["RANK"] + ".json", "w") as file:
    json.dump(records, file)
"""


def test_help_without_a_model() -> None:
    """`--help` of the script itself ends well, shows our options and the commands in its description."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "run_active_learning.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for option in ("--dataset", "--heuristic", "--query_size", "--compare", "--learning_rate", "accelerate launch"):
        assert option in done.stdout


@pytest.mark.distributed
def test_two_processes_label_as_one(script: ModuleType, files: Path, tmp_path: Path) -> None:
    """From the same weights (learning rate 0), two processes query the rows that one queries, both the same."""
    arguments = [*TINY.split(), "--learning_rate", "0", "--rounds", "3", "--use_cpu", "--output_dir", str(tmp_path)]
    arguments += ["--dataset", str(files / "names-train.csv"), "--test_dataset", str(files / "names-test.csv")]
    wrapper = tmp_path / "both.py"
    wrapper.write_text(WRAPPER.format(scripts=str(SCRIPTS), folder=str(tmp_path)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, str(wrapper), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",  # with --cpu accelerate starts one process only, unless there is MPI
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert done.stdout.count("labelled ") == 3  # only the first process speaks
    one = run(script, tmp_path / "one", *arguments[arguments.index("--learning_rate") :])
    for record in [*one, *ranks[0]]:
        del record["eval_loss"]  # which Trainer multiplies by the number of processes
    assert one == ranks[0]
