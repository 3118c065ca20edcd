"""Processes that are killed while they label lose nothing of what they were told is recorded."""

import json
import os
import random
import signal
import sqlite3
import time
import traceback
from itertools import groupby
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Value

from baal_hf.dataset import ActiveLearningDataset
from baal_hf.ledger import LabelLedger

ROWS = 200_000
PEOPLE = ("anna", "ben")


def active(rows: datasets.Dataset, path: Path) -> ActiveLearningDataset:
    """Labels are whole numbers: each call gives one of its own, so that an event tells of which call it is."""
    return ActiveLearningDataset(rows, ledger=path, label_feature=Value("int64"))


def label_for_ever(rows: datasets.Dataset, path: Path, acknowledged: Path, annotator: str, seed: int) -> None:
    """Label rows, one to five in a call, and write down each call that returned."""
    chance = random.Random(seed)
    dataset = active(rows, path)
    with open(acknowledged, "ab", buffering=0) as written:
        while True:
            call = chance.getrandbits(62)
            row_ids = chance.sample(range(ROWS), size(call))
            try:
                dataset.annotate(row_ids, [call] * len(row_ids), annotator=annotator)
            except ValueError as error:
                assert "labelled already" in str(error)  # in this call's rows: it is by chance
                continue
            written.write(json.dumps([call, row_ids]).encode() + b"\n")
            if chance.random() < 0.2:
                dataset.relabel(row_ids, [call + 1] * len(row_ids), annotator=annotator)
                written.write(json.dumps([call + 1, row_ids]).encode() + b"\n")


def size(call: int) -> int:
    """Number of rows of a call."""
    return call // 2 % 5 + 1


def forked(rows: datasets.Dataset, path: Path, acknowledged: Path, annotator: str, seed: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            label_for_ever(rows, path, acknowledged, annotator, seed)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("kills", [20, pytest.param(250, marks=pytest.mark.slow)])
def test_kills(tmp_path, kills) -> None:
    """Two processes label; one after the other is killed at a random moment; each acknowledged label is in the ledger.

    No call is there in part, no two are mixed, and the file is whole.
    """
    rows, path = datasets.Dataset.from_dict({"x": np.arange(ROWS)}), tmp_path / "labels.db"
    chance = random.Random(kills)
    acknowledged = {name: tmp_path / f"{name}.jsonl" for name in PEOPLE}
    seeds = iter(range(2 * kills + 2))
    children = {name: forked(rows, path, acknowledged[name], name, next(seeds)) for name in PEOPLE}
    try:
        for _ in range(kills):
            # From before a child has the file open to after some calls.
            time.sleep(chance.choice([0.005, 0.02, 0.1]) * chance.random())
            name = chance.choice(PEOPLE)
            os.kill(children[name], signal.SIGKILL)
            assert os.waitpid(children.pop(name), 0)[1] == signal.SIGKILL  # and not an error of its own
            children[name] = forked(rows, path, acknowledged[name], name, next(seeds))
        time.sleep(0.5)  # those that were left go on
    finally:
        for child in children.values():
            os.kill(child, signal.SIGKILL)
        assert {os.waitpid(child, 0)[1] for child in children.values()} == {signal.SIGKILL}

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    operations = [list(events) for _, events in groupby(LabelLedger(path), key=lambda event: event.operation)]
    assert [events[0].operation for events in operations] == list(range(1, len(operations) + 1))
    recorded = {}
    for events in operations:
        ((call, annotator),) = {(event.label, event.annotator) for event in events}
        assert len(events) == size(call - (events[0].action == "relabel"))
        recorded[call] = annotator, [event.row_id for event in events]
    assert len(recorded) == len(operations)

    dataset, said = active(rows, path), 0
    for name, file in acknowledged.items():
        lines = file.read_bytes().split(b"\n")
        assert lines.pop() == b""
        for call, row_ids in map(json.loads, lines):
            assert recorded[call] == (name, row_ids)
            assert name in [vote.annotator for vote in dataset.votes(row_ids[0])]
        said += len(lines)
    assert said >= 2 * kills
    # What was recorded just when its process was killed is all that nobody was told of.
    assert len(operations) - said <= kills + len(PEOPLE)
