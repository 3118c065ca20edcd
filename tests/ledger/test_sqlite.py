"""A ledger in a file: nobody edits it, several processes write to it, and it says what is wrong with a file."""

import copy
import os
import pickle
import resource
import select
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from baal_hf.ledger import LabelEvent, LabelLedger
from baal_hf.ledger import sqlite as log


def event(row_id: int = 0, label: object = 1, **known) -> LabelEvent:
    return LabelEvent(row_id, "label", label, step=1, **known)


def rows_in(path: Path) -> list[int]:
    """Row ids as another program reads them from the file."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row_id for (row_id,) in connection.execute("SELECT row_id FROM events ORDER BY id")]
    finally:
        connection.close()


def forked(work: Callable[[], None]) -> int:
    """Process id of a child that does this work, and tells by its exit status whether it succeeded."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def joined(*children: int) -> None:
    """Wait for children, all of which must have succeeded."""
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


def heard(end: int) -> None:
    """Wait for the other process to say that it is there; it may have failed."""
    assert select.select([end], [], [], 60)[0], "the other process said nothing"
    os.read(end, 1)


def connection_of(ledger: LabelLedger) -> sqlite3.Connection:
    return ledger._log._opened()


# The file


def test_what_was_appended_is_in_the_file(tmp_path) -> None:
    """Another object and another program find what was appended as soon as the call returns."""
    path = tmp_path / "labels.db"
    ledger = LabelLedger(path)
    ledger.append([event(3, "größer"), event(5)])
    assert rows_in(path) == [3, 5]
    assert list(LabelLedger(str(path))) == list(ledger)
    assert ledger.path == path


def test_a_file_is_found_after_a_change_of_folder(tmp_path, monkeypatch) -> None:
    """A ledger whose path was relative stays the same file when the process, or its child, is in another folder."""
    monkeypatch.chdir(tmp_path)
    ledger = LabelLedger("labels.db")
    ledger.append([event(1)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    copy.deepcopy(ledger).append([event(2)])
    joined(forked(lambda: ledger.append([event(3)])))
    assert rows_in(tmp_path / "labels.db") == [1, 2, 3]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "DELETE FROM events WHERE id = 2",
        "UPDATE events SET label = '2' WHERE id = 1",
        "INSERT OR REPLACE INTO events SELECT 1, 9, action, label, step, annotator, heuristic, score, probability, "
        "model_version, time, operation, undoes FROM events WHERE id = 2",
        "UPDATE dataset SET rows = 3",
        "DELETE FROM dataset",
        "INSERT OR REPLACE INTO dataset VALUES (1, 3, 'x')",
    ],
)
def test_the_file_can_only_be_appended_to(tmp_path, statement) -> None:
    """Whoever opens the file with whatever program can neither change nor delete events, nor what they belong to."""
    path = tmp_path / "labels.db"
    ledger = LabelLedger(path)
    ledger.append([event(1), event(2)])
    ledger.bind(5, "abc")
    before = list(ledger)
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        connection.execute(statement)
    connection.close()
    assert list(LabelLedger(path)) == before
    ledger.bind(5, "abc")


@pytest.mark.parametrize("label", [{1, 2}, b"x", float("nan"), float("inf"), object()], ids=repr)
def test_labels_that_a_file_cannot_hold(tmp_path, label) -> None:
    """A label that JSON cannot hold is refused, and with it the others of the call."""
    ledger = LabelLedger(tmp_path / "labels.db")
    with pytest.raises(TypeError, match=r"labels that JSON can hold, which .* is not"):
        ledger.append([event(1), event(2, label)])
    assert rows_in(tmp_path / "labels.db") == []


def test_append_returns_what_will_be_read(tmp_path) -> None:
    """A label that JSON holds in another form is returned in that form."""
    ledger = LabelLedger(tmp_path / "labels.db")
    (recorded,) = ledger.append([event(1, (1, {2: (3,)}), score=1, probability=0)])
    assert recorded.label == [1, {"2": [3]}]
    assert list(ledger) == [recorded]


# What is no ledger


def test_a_newer_version_is_refused(tmp_path) -> None:
    """A ledger of a version that this library does not know is refused, in words that say what to do, and kept."""
    path = tmp_path / "labels.db"
    LabelLedger(path).append([event(1)])
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(log.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(ValueError, match=f"version {len(log.MIGRATIONS) + 1}, this baal_hf knows up to .*: update it"):
        LabelLedger(path)
    assert rows_in(path) == [1]


@pytest.mark.parametrize("version", [0, 1, 9])
def test_another_programs_database_is_refused(tmp_path, version) -> None:
    """A database with other tables is no ledger, whatever its version, and is left as it is."""
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events (id INTEGER)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"other.db is a database, but not a ledger"):
        LabelLedger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "contents", [b"row_id,label\n1,cat\n" * 100, b"SQLite format 3\x00" + b"\x01" * 500, b"a,b\n1,2\n3,4\n"]
)
def test_something_else_than_a_database_is_refused(tmp_path, contents) -> None:
    """A file that is no database is refused, and left as it is."""
    path = tmp_path / "labels.csv"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"labels.csv is not a ledger of labels"):
        LabelLedger(path)
    assert path.read_bytes() == contents


def test_half_a_file_is_refused(tmp_path) -> None:
    """A ledger of which the end is missing is refused, when it is opened or read."""
    path = tmp_path / "labels.db"
    ledger = LabelLedger(path)
    ledger.append([event(row_id, "x" * 100) for row_id in range(1000)])
    del ledger
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"labels.db is not a ledger of labels: .*malformed"):
        list(LabelLedger(path))


def test_an_empty_file_becomes_a_ledger(tmp_path) -> None:
    """A file without contents, as `tempfile` makes one, is made a ledger."""
    path = tmp_path / "labels.db"
    path.touch()
    LabelLedger(path).append([event(1)])
    assert rows_in(path) == [1]


@pytest.mark.parametrize("place", ["nowhere/labels.db", "."])
def test_files_that_cannot_be_made(tmp_path, place) -> None:
    """A file in a folder that is not there, and a folder, are told as an OSError that names the path."""
    with pytest.raises(OSError, match=r"The ledger .* cannot be used: unable to open") as caught:
        LabelLedger(tmp_path / place)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Versions


def test_migrations_go_forward(tmp_path, monkeypatch) -> None:
    """A ledger of an older version becomes one of this, with all its events; the older library refuses it then."""
    path = tmp_path / "labels.db"
    ledger = LabelLedger(path)
    ledger.bind(5, "abc")
    before = ledger.append([event(1), event(2, "ü")])
    del ledger
    older = list(log.MIGRATIONS)
    monkeypatch.setattr(
        log, "MIGRATIONS", [*older, ["CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('new')"]]
    )
    for _ in range(2):  # once, not each time that it is opened
        migrated = LabelLedger(path)
        assert list(migrated)[:2] == before
        assert connection_of(migrated).execute("SELECT text FROM notes").fetchall() == [("new",)]
        migrated.bind(5, "abc")
        migrated.append([event(3)])
    assert rows_in(path) == [1, 2, 3, 3]
    monkeypatch.setattr(log, "MIGRATIONS", older)
    with pytest.raises(ValueError, match="update it"):
        LabelLedger(path)


@pytest.mark.parametrize("version", range(1, len(log.MIGRATIONS)))
def test_every_older_version_can_be_read(tmp_path, monkeypatch, version) -> None:
    """A ledger that an older version has written is read and written as one of this."""
    path = tmp_path / "labels.db"
    with monkeypatch.context() as older:
        older.setattr(log, "MIGRATIONS", log.MIGRATIONS[:version])
        before = LabelLedger(path).append([event(1), event(2, "ü")])
    ledger = LabelLedger(path)
    after = ledger.append([event(1, 3)])
    assert list(ledger) == [*before, *after]
    assert ledger.histories([1], 3) == {1: [before[0], *after]}


def test_rows_are_found_without_reading_all(tmp_path) -> None:
    """Reading the history of a row looks at its events only, whatever the ledger holds."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(row_id) for row_id in range(10_000)])
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    connection_of(ledger).set_progress_handler(count, 1)
    ledger.histories([77, None], 10_000)
    assert 0 < steps < 1000


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch) -> None:
    """If a step of a migration fails, the file is one of the older version as it was."""
    path = tmp_path / "labels.db"
    LabelLedger(path).append([event(1)])
    older = list(log.MIGRATIONS)
    monkeypatch.setattr(log, "MIGRATIONS", [*older, ["CREATE TABLE notes (text TEXT)", "CREATE TABLE events (id)"]])
    with pytest.raises(OSError, match="already exists"):
        LabelLedger(path)
    monkeypatch.setattr(log, "MIGRATIONS", older)
    ledger = LabelLedger(path)
    assert [each.row_id for each in ledger] == [1]
    tables = connection_of(ledger).execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert ("notes",) not in tables


# Trouble


def refused(ledger: LabelLedger, events: list[LabelEvent], message: str) -> None:
    """The ledger refuses these with an OSError that says so, and has what it had."""
    before = list(ledger)
    with pytest.raises(OSError, match=rf"cannot be used: .*{message}.*What was recorded before is kept"):
        ledger.append(events)
    assert list(ledger) == before == list(LabelLedger(ledger.path))


MANY = [event(row_id, "x" * 1000) for row_id in range(1000)]


def test_a_full_database(tmp_path) -> None:
    """If there is no room for all events of a call, none is recorded; with room again, it can be said again."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])
    connection = connection_of(ledger)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    refused(ledger, MANY, "full")
    with pytest.raises(OSError, match="full"), ledger.writing():
        ledger.append([event(2)])
        ledger.append(MANY)
    assert rows_in(ledger.path) == [1]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert {each.operation for each in ledger.append(MANY)} == {2}


def test_a_disk_that_takes_no_more(tmp_path) -> None:
    """If the system refuses to write, in the middle of a call, nothing of the call is recorded."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 4096, 40_000, 200_000, 500_000):
        size = Path(f"{ledger.path}-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
        try:
            with pytest.raises(OSError, match=r"cannot be used: .*What was recorded before is kept"):
                ledger.append(MANY)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert rows_in(ledger.path) == [1]
    ledger.append(MANY)
    assert len(rows_in(ledger.path)) == 1001


def test_a_disk_that_fills_up(tmp_path) -> None:
    """On a disk without room for all events of a call none is recorded."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        ledger = LabelLedger(disk / "labels.db")
        ledger.append([event(1)])
        refused(ledger, MANY, "full")
        ledger.append([event(2)])
        assert rows_in(ledger.path) == [1, 2]
        del ledger
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_connection_that_may_only_read(tmp_path) -> None:
    """A ledger that cannot be written refuses events in words that say so, and can be read."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])
    connection_of(ledger).execute("PRAGMA query_only = 1")
    refused(ledger, [event(2)], "readonly")


@pytest.mark.parametrize("closed", [True, False])
def test_a_read_only_disk(tmp_path, closed) -> None:
    """On a disk that may only be read a ledger is an OSError, or can be read but not written; nothing is lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        ledger = LabelLedger(disk / "labels.db")
        ledger.append([event(1)])
        if closed:
            del ledger
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        else:  # an open file keeps a disk from becoming read-only: a second view of it does
            view = tmp_path / "view"
            view.mkdir()
            subprocess.run(["mount", "--bind", str(disk), str(view)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(view)], check=True)
            disk = view
        with pytest.raises(OSError, match="cannot be used: "):
            LabelLedger(disk / "labels.db").append([event(2)])
    finally:
        for place in {disk, tmp_path / "disk"}:
            subprocess.run(["umount", "-l", str(place)], check=True)


# Processes


def test_a_child_reads_and_writes(tmp_path) -> None:
    """A forked child reads and writes the ledger of its parent, which goes on, too."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])

    def work() -> None:
        assert [each.row_id for each in ledger] == [1]
        ledger.append([event(2)])

    joined(forked(work))
    ledger.append([event(3)])
    assert [each.row_id for each in ledger] == [1, 2, 3] == rows_in(ledger.path)


def test_a_child_outlives_its_parent(tmp_path) -> None:
    """What a child writes after its parent has closed the ledger, and others have opened and closed it, is kept."""
    path = tmp_path / "labels.db"
    ready, go = os.pipe(), os.pipe()
    ledgers = [LabelLedger(path)]
    ledgers[0].append([event(1)])

    def work() -> None:
        ledgers[0].append([event(2)])
        os.write(ready[1], b".")
        heard(go[0])
        ledgers[0].append([event(3)])

    child = forked(work)
    heard(ready[0])
    ledgers.clear()  # closes it: nobody else has the file open but the child
    LabelLedger(path).append([event(10)])
    os.write(go[1], b".")
    joined(child)
    assert rows_in(path) == [1, 2, 10, 3]
    for end in (*ready, *go):
        os.close(end)


def test_a_child_that_lets_the_ledger_go(tmp_path) -> None:
    """A child that drops its parent's ledger does the parent no harm."""
    path = tmp_path / "labels.db"
    ledgers = [LabelLedger(path)]
    ledgers[0].append([event(1)])
    joined(forked(ledgers.clear), forked(lambda: (ledgers[0].append([event(2)]), ledgers.clear())))
    ledgers[0].append([event(3)])
    assert rows_in(path) == [1, 2, 3] == [each.row_id for each in ledgers[0]]


def test_pickles_and_copies_are_the_same_file(tmp_path) -> None:
    """What a copy writes the original reads, and the other way."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])
    for copied in (pickle.loads(pickle.dumps(ledger)), copy.deepcopy(ledger), copy.copy(ledger)):
        copied.append([event(2)])
        assert list(copied) == list(ledger)
    assert len(ledger) == 4


def test_a_writer_waits_for_its_turn(tmp_path) -> None:
    """While one writes, others can read what was there before, and who wants to write waits."""
    path = tmp_path / "labels.db"
    ready, go = os.pipe(), os.pipe()
    ledger = LabelLedger(path)  # made before: whoever finds no file waits for its turn to make it

    def work() -> None:
        other = LabelLedger(path)
        heard(go[0])
        assert len(other) == 0
        os.write(ready[1], b".")
        other.append([event(9)])

    child = forked(work)
    with ledger.writing():
        ledger.append([event(1)])
        os.write(go[1], b".")
        heard(ready[0])
        time.sleep(0.1)  # the child waits by now
        ledger.append([event(2)])
    joined(child)
    assert [each.row_id for each in ledger] == [1, 2, 9]
    for end in (*ready, *go):
        os.close(end)


def test_a_ledger_that_was_taken_away(tmp_path) -> None:
    """A file that is gone when a copy or a child opens it is an error: an empty one would seem to have no labels."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])
    copied = pickle.dumps(ledger)
    joined(forked(lambda: None))  # closes it for the time being
    for file in tmp_path.iterdir():
        file.unlink()
    for each in (ledger, pickle.loads(copied)):
        with pytest.raises(OSError, match="unable to open"):
            each.append([event(2)])
    assert list(tmp_path.iterdir()) == []


WRITERS, CALLS = 4, 25


def test_processes_write_at_once(tmp_path) -> None:
    """Processes that make a ledger and write to it at once lose nothing, and operations do not mix."""
    path, start = tmp_path / "labels.db", os.pipe()

    def work(writer: int) -> Callable[[], None]:
        def write() -> None:
            heard(start[0])  # all at once
            ledger = LabelLedger(path)
            ledger.bind(1000, "abc")
            for call in range(CALLS):
                first = 3 * call
                ledger.append([event(row_id, annotator=str(writer)) for row_id in range(first, first + 3)])

        return write

    children = [forked(work(writer)) for writer in range(WRITERS)]
    os.write(start[1], b"." * WRITERS)
    joined(*children)
    found = list(LabelLedger(path))
    assert [number for number, _ in groupby(each.operation for each in found)] == list(range(1, WRITERS * CALLS + 1))
    for _, several in groupby(found, key=lambda each: each.operation):
        (annotator,) = {each.annotator for each in several}
        assert annotator in "0123"
    for writer in range(WRITERS):
        assert [each.row_id for each in found if each.annotator == str(writer)] == list(range(3 * CALLS))
    for end in start:
        os.close(end)


def test_a_new_file_is_made_once(tmp_path) -> None:
    """However many processes make the same file at the same moment, they all end up with the one ledger."""
    for turn in range(10):
        path, start = tmp_path / f"{turn}.db", os.pipe()

        def work(path=path, start=start) -> None:
            heard(start[0])
            LabelLedger(path).append([event(os.getpid())])

        children = [forked(work) for _ in range(6)]
        os.write(start[1], b"." * 6)
        joined(*children)
        assert sorted(rows_in(path)) == sorted(children)
        for end in start:
            os.close(end)


def test_a_program_of_ones_own(tmp_path) -> None:
    """A process that knows nothing but the path appends to the ledger that is open here."""
    ledger = LabelLedger(tmp_path / "labels.db")
    ledger.append([event(1)])
    program = (
        "import sys; from baal_hf.ledger import LabelEvent, LabelLedger; ledger = LabelLedger(sys.argv[1]); "
        "ledger.append([LabelEvent(2, 'label', 'ü')]); print(len(ledger))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(ledger.path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]
    assert [each.label for each in ledger] == [1, "ü"]
