"""A log of events in one SQLite file, to which several processes may append."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any
from weakref import WeakSet

from baal_hf.ledger.events import LabelEvent

_APPLICATION = 0x6261616C  # "baal", in the header of the file
_WAIT = 60  # seconds, for others to finish writing

# What makes a file of the next version from one of this; the first makes it from an empty file.
MIGRATIONS: list[list[str]] = [
    [
        """CREATE TABLE events (
            id INTEGER PRIMARY KEY, row_id INTEGER, action TEXT NOT NULL, label TEXT NOT NULL, step INTEGER NOT NULL,
            annotator TEXT, heuristic TEXT, score REAL, probability REAL, model_version TEXT, time REAL NOT NULL,
            operation INTEGER NOT NULL, undoes INTEGER
        )""",
        """CREATE TABLE dataset (
            id INTEGER PRIMARY KEY CHECK (id = 1), rows INTEGER NOT NULL, fingerprint TEXT NOT NULL
        )""",
        "CREATE TRIGGER kept BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END",
        "CREATE TRIGGER unchanged BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END",
        # INSERT OR REPLACE asks neither of these.
        """CREATE TRIGGER appended BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE id = NEW.id)
            BEGIN SELECT RAISE(ABORT, 'events are never replaced'); END""",
        "CREATE TRIGGER bound BEFORE DELETE ON dataset BEGIN SELECT RAISE(ABORT, 'it is never unbound'); END",
        "CREATE TRIGGER rebound BEFORE UPDATE ON dataset BEGIN SELECT RAISE(ABORT, 'it never belongs to another'); END",
        """CREATE TRIGGER bound_once BEFORE INSERT ON dataset WHEN EXISTS (SELECT 1 FROM dataset)
            BEGIN SELECT RAISE(ABORT, 'it never belongs to another'); END""",
    ],
    ["CREATE INDEX events_of_row ON events (row_id)"],
]

_ALL = 2**63 - 1  # events, the most that SQLite can count
_COLUMNS = [field.name for field in fields(LabelEvent)]
_LABEL = _COLUMNS.index("label")
_VALUES = attrgetter(*_COLUMNS)


class SqliteLog:
    """Events in the order in which they were appended, in a file.

    Writers take turns. The file has a write-ahead log beside it, so that readers wait for nobody, and a process that is
    killed while it writes leaves what was written before. Each append is on the disk when it returns.

    Args:
        path: The file; made if it is not there, in a folder that is.

    Raises:
        ValueError: The file is no ledger, or a newer one.
        OSError: It can be neither opened nor made.
    """

    def __init__(self, path: str | Path) -> None:
        self._connections: dict[int, sqlite3.Connection] = {}  # by process
        self.path = Path(path).absolute()  # also for a copy in a process that works in another folder
        self._mode = "rwc"
        self._is_writing = False
        self._lock = threading.RLock()  # threads share the connection, on which one would see what another may undo
        with self._explained():
            self._opened()

    def __len__(self) -> int:
        with self._explained():
            return int(self._opened().execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

    def since(self, count: int, until: int | None = None) -> list[LabelEvent]:
        return self._read("FROM events WHERE id > ? AND id <= ? ORDER BY id", count, _ALL if until is None else until)

    def row_ids(self, until: int) -> list[int]:
        query = "SELECT DISTINCT row_id FROM events WHERE row_id IS NOT NULL AND id <= ? ORDER BY row_id"
        with self._explained():
            return [row_id for (row_id,) in self._opened().execute(query, (until,))]

    def histories(self, row_ids: Iterable[int | None], until: int) -> dict[int | None, list[LabelEvent]]:
        histories: dict[int | None, list[LabelEvent]] = {row_id: [] for row_id in row_ids}
        # A cross join looks the rows up one after the other; IS finds the events of no row, too.
        tables = "FROM json_each(?) AS asked CROSS JOIN events ON events.row_id IS asked.value"
        for event in self._read(f"{tables} WHERE events.id <= ? ORDER BY events.id", json.dumps([*histories]), until):
            histories[event.row_id].append(event)
        return histories

    def _read(self, tables: str, *values: Any) -> list[LabelEvent]:
        query = f"SELECT {', '.join(f'events.{name}' for name in _COLUMNS)} {tables}"
        known: dict[Any, Any] = {}
        labels: dict[str, Any] = {}
        with self._explained():
            return [_event(row, known, labels) for row in self._opened().execute(query, values)]

    def append(self, events: Sequence[LabelEvent]) -> list[LabelEvent]:
        labels = [_as_json(event.label) for event in events]
        values = map(_VALUES, events)
        rows = [(*row[:_LABEL], label, *row[_LABEL + 1 :]) for row, label in zip(values, labels, strict=True)]
        query = f"INSERT INTO events ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
        with self.writing():
            self._opened().executemany(query, rows)
        return [replace(event, label=json.loads(label)) for event, label in zip(events, labels, strict=True)]

    def last_operation(self) -> int:
        with self._explained():
            query = "SELECT operation FROM events ORDER BY id DESC LIMIT 1"
            found = self._opened().execute(query).fetchone()
        return int(found[0]) if found else 0

    def bound(self, rows: int, fingerprint: str) -> tuple[int, str]:
        query = "SELECT rows, fingerprint FROM dataset"
        with self._explained():
            found = self._opened().execute(query).fetchone()
        if found is None:
            with self.writing():
                found = self._opened().execute(query).fetchone()  # another process may have been first
                if found is None:
                    self._opened().execute("INSERT INTO dataset VALUES (1, ?, ?)", (rows, fingerprint))
                    found = rows, fingerprint
        return int(found[0]), str(found[1])

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._explained():
            if self._is_writing:  # a part of what is being written
                yield
                return
            connection = self._opened()
            self._refuse_other_file()
            self._is_writing = True
            try:
                connection.execute("BEGIN IMMEDIATE")  # waits for others
                yield
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._is_writing = False

    def _refuse_other_file(self) -> None:
        """SQLite goes on writing to a file that was deleted, where nobody will find it."""
        if not self.path.exists() or self.path.stat().st_ino != self._inode:
            raise OSError(f"The ledger {self.path} was deleted or replaced while it was open: open it anew.")

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self._connections, self._is_writing = {}, False  # a connection stays where it was made
        self._lock = threading.RLock()
        self.path, self._mode = state["path"], "rw"

    def _opened(self) -> sqlite3.Connection:
        """The connection of this process."""
        process = os.getpid()
        if process not in self._connections:
            file = f"{self.path.as_uri()}?mode={self._mode}"
            connection = sqlite3.connect(file, uri=True, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connections[process] = connection
            self._inode = self.path.stat().st_ino
            self._mode = "rw"  # a ledger that somebody took away is not made anew, without its events
            _close_before_forks()
            _OPEN.add(self)
        return self._connections[process]

    def _close(self) -> None:
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self._close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Have the tables of this version."""
        if self._version(connection) < len(MIGRATIONS):
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                for statements in MIGRATIONS[self._version(connection) :]:
                    for statement in statements:
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        self._write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")  # what was appended survives a loss of power, too

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        """Have a write-ahead log, which SQLite refuses at once, without waiting, while another process is at it."""
        deadline = time.monotonic() + _WAIT
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _version(self, connection: sqlite3.Connection) -> int:
        """Of the file; 0 if it is empty."""
        version, application, tables = connection.execute(  # all at one moment: another process may be making it
            "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master) "
            "FROM pragma_user_version, pragma_application_id"
        ).fetchone()
        if tables and application != _APPLICATION:
            raise ValueError(f"{self.path} is a database, but not a ledger of labels.")
        if version > len(MIGRATIONS):
            raise ValueError(
                f"{self.path} is a ledger of version {version}, this baal_hf knows up to {len(MIGRATIONS)}: update it."
            )
        return int(version)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """One thread at a time; SQLite's errors, told as what they mean for the ledger."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"The ledger {self.path} cannot be used: {error}. What was recorded before is kept."
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a ledger of labels: {error}.") from error


_OPEN: WeakSet[SqliteLog] = WeakSet()


@cache  # once for all ledgers, when the first is opened
def _close_before_forks() -> None:
    """Have no connection when this process forks; both sides open their own when they next need one.

    A child can neither use nor close what its parent had open. Nor is it enough that it opens the file itself: SQLite
    takes its parent's locks for its own, and whoever closes the file next, thinking to be the last, deletes the
    write-ahead log that the child writes to.
    """

    def close() -> None:
        for log in list(_OPEN):
            if not log._is_writing:
                log._close()

    if hasattr(os, "register_at_fork"):  # Windows has no forks
        os.register_at_fork(before=close)


def _event(row: Sequence[Any], known: dict[Any, Any], labels: dict[str, Any]) -> LabelEvent:
    """The event of a row in the file. Equal names, times and labels are one object, where SQLite and JSON make many."""
    row_id, action, text, step, annotator, heuristic, score, probability, version, at, operation, undoes = row
    if text in labels:
        label = labels[text]
    else:
        label = json.loads(text)
        if not isinstance(label, list | dict):  # which somebody may change
            labels[text] = label
    one = known.setdefault
    return LabelEvent(
        row_id,
        one(action, action),
        label,
        step,
        one(annotator, annotator),
        one(heuristic, heuristic),
        score,
        probability,
        one(version, version),
        one(at, at),
        operation,
        undoes,
    )


def _as_json(label: object) -> str:
    try:
        return json.dumps(label, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"A ledger in a file holds labels that JSON can hold, which {label!r} is not.") from error
