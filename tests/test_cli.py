"""The program baal-hf: rounds with people in them, from an empty folder to labels, as a user types them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from baal_hf import LabelLedger
from baal_hf.cli import app
from baal_hf.project import batch_files
from tests.project import tiny

ROOT = Path(__file__).parents[1]
TEXTS, LABELS = tiny.texts(60, 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows and test rows, in which commands are typed."""
    tiny.write_csv(tmp_path / "rows.csv", {"text": TEXTS, "label": LABELS})
    texts, labels = tiny.texts(20, 1)
    tiny.write_csv(tmp_path / "test.csv", {"text": texts, "label": labels})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: str | Path) -> str:
    """What a command prints that does what it should."""
    result = typed(*words)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def failed(*words: str | Path, code: int = 1) -> str:
    """The line that a command prints that fails."""
    result = typed(*words)
    assert result.exit_code == code, result.output
    if code == 1:
        assert result.stderr.startswith("baal-hf: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def init(checkpoint: Path) -> list[str]:
    """The command that makes a project p of the rows."""
    return [
        *("init", "p", "--data", "rows.csv", "--label-column", "label", "--test", "test.csv"),
        *("--model", str(checkpoint), "--max-length", "16", "--epochs", "5", "--learning-rate", "0.01"),
        *("--batch-size", "8"),
    ]


def fill(path: Path, labels: Callable[[int], str] = lambda row_id: LABELS[row_id]) -> Path:
    """Fill in the labels of a batch in CSV, as a person does."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = labels(int(row["row_id"]))
    return tiny.write_csv(path.with_stem(path.stem + "_done"), {name: [row[name] for row in rows] for name in rows[0]})


# A whole project


def test_rounds(init: list[str]) -> None:
    """Init, query, import, train, query, import by two people, status and export fit together."""
    assert "Project p is made" in done(*init)
    assert "query --heuristic random" in done("status", "--project", "p")

    told = done("query", "--heuristic", "random", "-k", "20", "--out", "first.csv", "--project", "p")
    assert "Wrote 20 rows to first.csv, by random." in told and "sport" in told and "politics" in told
    told = done("import", fill(Path("first.csv")), "--annotator", "anna", "--project", "p")
    assert "20 new labels by anna. 20 of 60 rows are labelled." in told and "Next: baal-hf train --project p" in told

    told = done("train", "--project", "p")
    assert "0001  labelled    20  accuracy" in told and "query --heuristic bald" in told
    assert "Nothing is new since model 0001" in done("train", "--project", "p")

    told = done("query", "-k", "10", "-T", "5", "--out", "second.csv", "--project", "p")
    assert "Wrote 10 rows to second.csv, by bald of model 0001." in told
    done("import", fill(Path("second.csv")), "--annotator", "anna", "--project", "p")
    done("import", fill(Path("second.csv"), lambda _: "sport"), "--annotator", "ben", "--project", "p")
    done("train", "--project", "p")

    told = done("status", "--project", "p")
    for part in ("30 of 60 rows (50.0%), 30 in the pool", "anna 30, ben 10", "10 rows labelled by several", "kappa"):
        assert part in told
    assert "0001  labelled    20" in told and "0002  labelled    30" in told

    for suffix in ("parquet", "csv", "jsonl"):
        assert "30 labelled rows" in done("export", "--out", f"labels.{suffix}", "--project", "p")
    exported = pq.read_table("labels.parquet").to_pylist()
    assert [row["row_id"] for row in exported] == sorted(row["row_id"] for row in exported)
    twice = [row for row in exported if len(row["votes"]) == 2]
    assert len(twice) == 10
    for row in exported:
        assert row["text"] == TEXTS[row["row_id"]]
        first, last = row["votes"][0], row["votes"][-1]
        assert (first["annotator"], first["label"]) == ("anna", LABELS[row["row_id"]]) and last["label"] == row["label"]
        assert (first["heuristic"], first["model_version"]) == (("bald", "0001") if row in twice else ("random", None))
    lines = [json.loads(line) for line in Path("labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == exported
    with open("labels.csv", newline="", encoding="utf-8") as file:
        assert [json.loads(row["votes"]) for row in csv.DictReader(file)] == [row["votes"] for row in exported]


def test_in_the_folder(init: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --project the project is the folder one is in, and no command told to the user names it."""
    done(*init)
    monkeypatch.chdir("p")
    assert "--project" not in done("status")
    done("query", "--heuristic", "random", "-k", "5", "--out", "batch.csv")


def test_moved(init: list[str], folder: Path) -> None:
    """A project that is moved with its data goes on in its new place."""
    done(*init)
    done("query", "--heuristic", "random", "-k", "5", "--out", "batch.csv", "--project", "p")
    (folder / "new").mkdir()
    for name in ("p", "rows.csv", "test.csv"):
        os.rename(name, folder / "new" / name)
    done("import", fill(Path("batch.csv")), "--annotator", "anna", "--project", "new/p")
    assert "accuracy" in done("train", "--project", "new/p")


def test_run(init: list[str]) -> None:
    """A simulation prints a line a round, goes on when it is asked for more, and leaves the project's labels alone."""
    done(*init)
    command = ("run", "--heuristic", "bald", "-k", "6", "-T", "3", "--project", "p", "--rounds")
    told = done(*command, "2").splitlines()
    assert [" ".join(line.split()[:5]) for line in told[:2]] == [f"bald round {n} labelled {6 * n}" for n in (1, 2)]
    assert done(*command, "3").splitlines()[:2] == told[:2]
    assert len(Path("p/runs/bald-0/records.jsonl").read_text().splitlines()) == 3
    assert "0 of 60 rows" in done("status", "--project", "p")
    other = ("run", "-T", "3", "--name", "bald-0", "--project", "p", "-k")
    assert "query_size: 6, not 7" in failed(*other, "7")
    assert "other rows labelled" in failed(*other, "6", "--initial", "9")


# Each step can be repeated


def test_init_again(init: list[str]) -> None:
    """The same init changes nothing; another one is refused, and the message says what differs."""
    done(*init)
    before = Path("p/project.json").read_bytes()
    assert "Project p is there already, and the same." in done(*init)
    assert "epochs is 5.0, not 6.0" in failed(*init, "--epochs", "6")
    assert Path("p/project.json").read_bytes() == before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_query_again(init: list[str], suffix: str) -> None:
    """The same query writes the same file; one that has other contents, perhaps labels, is not replaced unasked."""
    done(*init)
    out = Path(f"batch.{suffix}")
    command = ("query", "--heuristic", "random", "-k", "5", "--out", out, "--project", "p")
    done(*command)
    before = out.read_bytes()
    assert "has just these 5 rows already" in done(*command) and out.read_bytes() == before
    out.write_bytes(b"my labels")
    assert "there with other contents" in failed(*command) and out.read_bytes() == b"my labels"
    done(*command, "--overwrite")
    assert out.read_bytes() == before


def test_import_again(init: list[str]) -> None:
    """A file that is imported again brings nothing new and says so; with more labels it brings these."""
    done(*init)
    done("query", "--heuristic", "random", "-k", "5", "--out", "batch.csv", "--project", "p")
    rows = [row.row_id for row in batch_files.rows(Path("batch.csv"), "text")]
    half = fill(Path("batch.csv"), lambda row_id: LABELS[row_id] if row_id in rows[:2] else "")
    command = ("import", half, "--annotator", "anna", "--project", "p")
    assert "line 4: row" in failed(*command)
    assert "2 new labels by anna, 3 rows without a label. 2 of 60" in done(*command, "--skip-empty")
    fill(Path("batch.csv"))
    assert "3 new labels by anna, 2 were there already. 5 of 60" in done(*command)
    assert "0 new labels by anna, 5 were there already. 5 of 60" in done(*command)
    fill(Path("batch.csv"), lambda _: "sport")
    assert "--relabel" in failed(*command)
    assert "changed" in done(*command, "--relabel")


# Bad input: one line, and nothing is written

GOOD = f"0,{LABELS[0]}\n"
BATCHES = {
    "missing column": ("b.csv", "row_id,text\n0,x\n", "b.csv, line 1: the column label is missing"),
    "unknown row": ("b.csv", f"row_id,label\n{GOOD}60,sport\n", "b.csv, line 3: there is no row 60"),
    "empty label": ("b.csv", f"row_id,label\n{GOOD}1,\n", "b.csv, line 3: row 1 has no label. --skip-empty"),
    "unknown class": ("b.csv", f"row_id,label\n{GOOD}1,art\n", "b.csv, line 3: there is no class 'art'. The classes"),
    "wrong encoding": ("b.csv", f"row_id,label\n{GOOD}1,spört\n".encode("latin-1"), "b.csv, line 3: this is not UTF-8"),
    "half a line": ("b.jsonl", '{"row_id": 0, "label": "sport"}\n{"row_id": 1, "lab', "b.jsonl, line 2: this is not a"),
    "half a row": ("b.csv", f'row_id,label\n{GOOD}1,"spo', "b.csv, line 3: this is not a whole row of CSV"),
    "row twice": ("b.csv", f"row_id,label\n{GOOD}1,sport\n{GOOD}", "b.csv, line 4: row 0 is there already, on line 2"),
    "another text": ("b.csv", 'row_id,text,label\n0,"some\nthing",sport\n', "b.csv, line 2: this is not the text of"),
    "another label": ("b.csv", f"row_id,label\n{GOOD}59,art\n", "b.csv, line 3: there is no class 'art'"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_bad_batch(init: list[str], name: str) -> None:
    """A batch with something wrong is refused whole, in one line that names the line of the file."""
    done(*init)
    file, text, message = BATCHES[name]
    Path(file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in failed("import", file, "--annotator", "anna", "--project", "p")
    assert len(LabelLedger("p/labels.db")) == 0


def test_no_file(init: list[str]) -> None:
    """A batch that is not there is one line, too."""
    done(*init)
    assert "nowhere.csv" in failed("import", "nowhere.csv", "--annotator", "anna", "--project", "p")


def without(words: list[str], option: str) -> list[str]:
    place = words.index(option)
    return words[:place] + words[place + 2 :]


def test_bad_init(init: list[str]) -> None:
    """Data, classes, columns or a model that cannot be used make no folder."""
    tiny.write_csv(Path("other.csv"), {"text": ["x"], "label": ["art"]})
    wrong = [
        (["--data", "nowhere.csv"], "There is no file nowhere.csv"),
        (["--text-column", "review"], "has no column review, only text, label"),
        (["--label-column", "stars"], "has no column stars"),
        (["--classes", "sport"], "two or more classes"),
        (["--classes", "sport,art"], "has the class 'politics'. The classes are sport, art"),
        (["--test", "other.csv"], "other.csv: row 0 has the class 'art'"),
        (["--model", "./nowhere"], "The model ./nowhere cannot be loaded"),
    ]
    for words, message in wrong:
        assert message in failed(*without(init, words[0]) if words[0] in init else init, *words)
        assert not Path("p").exists()


def test_bad_usage(init: list[str]) -> None:
    """What is typed wrongly is exit code 2 with a hint, and writes nothing."""
    done(*init)
    before = sorted(Path("p").iterdir())
    query = ("query", "--project", "p", "--heuristic", "random", "--out")
    assert "needs to end in one of .jsonl, .csv, .parquet" in failed(*query, "b.xlsx", code=2)
    assert "needs a name out of" in failed("query", "--out", "b.csv", "--heuristic", "nonsense", code=2)
    assert "have a label" in failed("query", "--out", "b.csv", "--heuristic", "selfconfidence", code=2)
    assert "draws" in failed("query", "--out", "b.csv", "--heuristic", "bald", "-T", "1", code=2)
    assert "--query-size" in failed(*query, "b.csv", "-k", "0", code=2)
    assert "--annotator" in failed("import", "b.csv", code=2)
    assert "--annotator" in failed("import", "b.csv", "--annotator", " ", code=2)
    assert "--classes" in failed(*without(init, "--label-column"), code=2)
    assert "last or majority" in failed(*init, "--consensus", "first", code=2)
    assert "--name" in failed("run", "--name", "../x", "--project", "p", code=2)
    assert "nonsense" in failed("nonsense", code=2)
    assert sorted(Path("p").iterdir()) == before and not Path("b.csv").exists()


def test_own_rows_are_kept(init: list[str]) -> None:
    """No output replaces the rows that the project stands on, and a folder that is not there is told at once."""
    done(*init)
    before = Path("rows.csv").read_bytes()
    assert "own rows" in failed("export", "--out", "rows.csv", "--project", "p")
    assert "own rows" in failed("query", "--heuristic", "random", "--overwrite", "--out", "test.csv", "--project", "p")
    assert "There is no folder nowhere" in failed("export", "--out", "nowhere/a.csv", "--project", "p")
    assert Path("rows.csv").read_bytes() == before


def test_no_project() -> None:
    """Where there is no project every command says how to make one."""
    for words in (["status"], ["train"], ["query", "--out", "b.csv"], ["export", "--out", "b.csv"], ["run"]):
        assert "There is no project in" in failed(*words)


def test_not_a_ledger(init: list[str]) -> None:
    """A ledger that is none is told in a line."""
    done(*init)
    for file in Path("p").glob("labels.db*"):
        file.unlink()
    Path("p/labels.db").write_text("no database, but long enough to be taken for one. " * 50)
    assert "not a ledger of labels" in failed("status", "--project", "p")


# The program


def program(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(Path("cache").resolve())}
    command = [sys.executable, "-m", "baal_hf.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)  # type: ignore[call-overload,no-any-return]


COMMANDS = ("init", "status", "train", "query", "import", "run", "export")


def test_help() -> None:
    """Help lists each command in a line, and the help of each names its options with what they are for."""
    told = done("--help")
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] for line in told.splitlines())
        assert "--project" in done(command, "--help") or command == "init"
        for line in done(command, "--help").splitlines():
            assert len(line) <= 100, line
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage." in told


def test_help_is_quick() -> None:
    """Help imports transformers neither nor trainer: what is costly comes when a command needs it."""
    code = (
        "import sys; import baal_hf; before = set(sys.modules); import baal_hf.cli; "
        "from typer.testing import CliRunner; assert CliRunner().invoke(baal_hf.cli.app, ['--help']).exit_code == 0; "
        "print([name for name in set(sys.modules) - before if name.split('.')[0] in "
        "('torch', 'transformers', 'datasets', 'pandas', 'pyarrow') or name.startswith('baal_hf.')])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['baal_hf.cli']"


def test_program() -> None:
    """As a program it fails with one line on stderr, no traceback and exit code 1."""
    wrong = program("status", "--project", "p")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("baal-hf: There is no project in p: ") and wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_program_does(init: list[str]) -> None:
    """As a program it prints to stdout only, and returns 0 when it has done what it should and 2 for wrong usage."""
    made = program(*init)
    assert (made.returncode, made.stderr) == (0, "") and "Project p is made" in made.stdout
    query = ("query", "--heuristic", "random", "-k", "20", "--out", "first.csv", "--project", "p")
    assert program(*query).returncode == 0
    done("import", fill(Path("first.csv")), "--annotator", "anna", "--project", "p")
    trained = program("train", "--project", "p")
    assert (trained.returncode, trained.stderr) == (0, "") and "accuracy" in trained.stdout
    assert program("train", "--nonsense").returncode == 2


@pytest.mark.slow
def test_killed_training(init: list[str]) -> None:
    """A training that is killed leaves no half a model, and the next one makes it."""
    done(*init)
    done("query", "--heuristic", "random", "-k", "20", "--out", "first.csv", "--project", "p")
    done("import", fill(Path("first.csv")), "--annotator", "anna", "--project", "p")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(Path("cache").resolve())}
    command = [sys.executable, "-m", "baal_hf.cli", "train", "--project", "p"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(Path("p").glob("models/lock")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "Models      none yet" in done("status", "--project", "p")
    assert "0001  labelled    20" in done("train", "--project", "p")
