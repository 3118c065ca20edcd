"""The store of arrays: chunks are whole or not there, damage is found, and heuristics read it like one array."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_hf import store as module
from baal_hf.heuristics import BALD, EPIG, BatchBALD, Entropy
from baal_hf.store import ArrayStore
from tests.laws import few

ROOT = Path(__file__).parents[1]

# A child is Python, NumPy and the file alone, so that starting one is cheap.
LOADED = f"""
import os, resource, runpy, signal, sys
import numpy as np
ArrayStore = runpy.run_path({str(ROOT / "baal_hf" / "store.py")!r})["ArrayStore"]
"""


def child(program: str, *arguments: object, **settings: Any) -> subprocess.Popen[str]:
    """A Python of its own that runs the program with `ArrayStore` at hand."""
    command = [sys.executable, "-c", LOADED + textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of the child, once it has ended."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def manifest(rows: int, chunk_rows: int, **more: Any) -> dict[str, Any]:
    """What a store of so many rows says of itself."""
    return {"rows": rows, "chunk_rows": chunk_rows, **more}


def filled(folder: Path, array: np.ndarray, chunk_rows: int, **more: Any) -> ArrayStore:
    """A complete store of the array."""
    store = ArrayStore(folder, manifest(len(array), chunk_rows, **more))
    for number in store.missing():
        rows = store.rows_of(number)
        store.write(number, array[rows.start : rows.stop])
    return store


def probs(rows: int, *axes: int, dtype: str = "float32") -> np.ndarray:
    """Class probabilities [N, C, *S, T]."""
    values = np.random.default_rng(0).gamma(0.5, size=(rows, *axes)) + 1e-3
    return (values / values.sum(1, keepdims=True)).astype(dtype)


def chunk_file(store: ArrayStore, number: int) -> Path:
    """The file of the chunk."""
    return store.folder / f"chunk-{number:08d}.npy"


def digests(store: ArrayStore, number: int, npy: bytes) -> bytes:
    """The digest of a chunk's file as the module's docstring defines it."""
    text = json.dumps(store.manifest, sort_keys=True).encode()
    begin = blake2b(text, digest_size=16).digest() + number.to_bytes(8, "little")
    return blake2b(begin + npy, digest_size=16).digest()


@pytest.fixture
def small(tmp_path: Path) -> ArrayStore:
    """A complete store of 5 rows in 3 chunks."""
    return filled(tmp_path / "preds", probs(5, 2, 2, dtype="float16"), 2, weights="3f2a")


# Round trips


shapes = st.tuples(st.integers(1, 7)) | st.lists(st.integers(1, 4), min_size=3, max_size=5).map(tuple)


@few
@given(shapes, st.sampled_from(["<f4", ">f4", "<f2", ">f2"]), st.integers(1, 8), st.randoms(use_true_random=False))
def test_what_was_written_is_read(shape, dtype, chunk_rows, rng) -> None:
    """Every bit of an array comes back, whatever its shape, type, strides and byte order, for NumPy alone as well."""
    values = np.random.default_rng(rng.randrange(99)).normal(size=shape).astype(dtype)
    values.flat[0] = rng.choice([np.nan, np.inf, -0.0, 1.0])
    axes = list(range(1, len(shape)))
    rng.shuffle(axes)
    turned = np.ascontiguousarray(values.transpose(0, *axes)).transpose(0, *(1 + np.argsort(axes)))[::-1]
    with tempfile.TemporaryDirectory() as folder:
        filled(Path(folder), turned, chunk_rows)
        store = ArrayStore(folder)
        assert store.missing() == []
        assert len(store) == len(turned) and store.chunks == -(-len(turned) // chunk_rows)
        native = turned.astype(turned.dtype.newbyteorder("="))
        read = np.concatenate(list(store))
        alone = np.concatenate([np.load(chunk_file(store, number)) for number in range(store.chunks)])
        for answer in (read, alone, store.take(range(len(turned)))):
            assert answer.dtype == native.dtype and answer.shape == native.shape
            assert answer.tobytes() == native.tobytes()


@few
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4), st.data())
def test_ragged_chunks_are_padded(sizes, data) -> None:
    """Rows taken are those of an array that is padded with NaN at the end of *S, in the order asked, with repeats."""
    last = data.draw(st.integers(1, 3))
    rows = 3 * (len(sizes) - 1) + last
    values = np.random.default_rng(rows).normal(size=(rows, 2, 3, 3, 4)).astype("float32")  # [N, C, H, W, T]
    positions = data.draw(st.lists(st.integers(0, rows - 1), max_size=9))
    with tempfile.TemporaryDirectory() as folder:
        store = ArrayStore(folder, manifest(rows, 3))
        for number, (height, width) in enumerate(sizes):
            here = store.rows_of(number)
            values[here.start : here.stop, :, height:] = np.nan
            values[here.start : here.stop, :, :, width:] = np.nan
            store.write(number, values[here.start : here.stop, :, :height, :width])
        touched = [sizes[position // 3] for position in positions] or sizes[:1]
        height, width = np.max(touched, axis=0)
        np.testing.assert_array_equal(store.take(positions), values[positions][:, :, :height, :width])


def test_the_format_is_as_documented(small) -> None:
    """A chunk's file is what NumPy saves and a digest over manifest, number and that, which later versions keep."""
    for number, chunk in enumerate(small):
        content = chunk_file(small, number).read_bytes()
        saved = io.BytesIO()
        np.save(saved, chunk)
        assert content == saved.getvalue() + digests(small, number, saved.getvalue())
    assert json.loads((small.folder / "manifest.json").read_text()) == {"format": 1, "manifest": small.manifest}


def test_rows_of_covers_every_row_once(tmp_path) -> None:
    """Chunks are consecutive, all of chunk_rows but the last."""
    store = ArrayStore(tmp_path, manifest(8, 3))
    assert [list(store.rows_of(number)) for number in range(store.chunks)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for number in (-1, 3):
        with pytest.raises(IndexError, match=r"has chunks 0 \.\. 2, got"):
            store.rows_of(number)


def test_chunks_cannot_be_changed(small) -> None:
    """What iteration gives is mapped into memory and read-only; what take gives is the caller's own."""
    for chunk in small:
        assert isinstance(chunk, np.memmap) and not chunk.flags.writeable
    taken = small.take([0])
    taken[:] = 0
    assert small.missing() == [] and small.take([0]).any()


def test_chunks_come_in_any_order_and_again(tmp_path) -> None:
    """Chunks are written in any order, and one that is written again is replaced."""
    array = probs(6, 2, 2)
    store = ArrayStore(tmp_path, manifest(6, 2))
    for number in np.array([2, 0, 0, 1]):
        store.write(number, np.zeros_like(array[:2]))
        store.write(number, array[2 * number : 2 * number + 2])
    np.testing.assert_array_equal(np.concatenate(list(store)), array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2**15, 16, 16), "float32"),
        np.zeros((2**15, 16, 16), "float32").transpose(0, 2, 1),
        np.zeros((2**15, 16, 16), "float32", order="F"),
        np.zeros((2**15, 32, 16), "float32")[:, ::2],
        np.zeros(2**24, "float32")[::-2],
        np.zeros(2**23, ">f4"),
    ],
    ids=["plain", "turned", "columns first", "a part", "strided backwards", "swapped"],
)
def test_no_second_copy(tmp_path, array) -> None:
    """Writing and checking a chunk of 32 MB takes memory of a few pieces, whatever its strides and byte order."""
    store = ArrayStore(tmp_path, manifest(len(array), len(array)))
    tracemalloc.start()
    try:
        store.write(0, array)
        assert store.missing() == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * module.PIECE


# Heuristics


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("chunk_rows", [1, 7, 50])
def test_heuristics_rank_a_store(tmp_path, dtype, chunk_rows) -> None:
    """A store is ranked as the whole array is, without a warning of read-only memory."""
    array, targets = probs(50, 3, 8, dtype=dtype), probs(6, 4, 8, dtype=dtype)
    store = filled(tmp_path, array, chunk_rows)
    for heuristic, arrays in (
        (BALD(), {}),
        (EPIG(), {"target_predictions": targets}),
        (BatchBALD(3), {}),
    ):
        ranks, scores = heuristic.get_ranks(store, **arrays)
        expected_ranks, expected_scores = heuristic.get_ranks(array, **arrays)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(ranks, expected_ranks)


def test_heuristics_rank_ragged_chunks(tmp_path) -> None:
    """Chunks of different width are ranked as the padded array is."""
    array = probs(9, 3, 5, 4)  # [N, C, S, T]
    store = ArrayStore(tmp_path, manifest(9, 3))
    for number, width in enumerate((5, 2, 3)):
        store.write(number, array[3 * number : 3 * number + 3, :, :width])
    ranks, scores = Entropy(reduction="mean").get_ranks(store)
    padded_ranks, padded_scores = Entropy(reduction="mean").get_ranks(store.take(range(9)))
    np.testing.assert_allclose(scores, padded_scores, rtol=1e-6)
    np.testing.assert_array_equal(ranks, padded_ranks)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
def test_ranking_a_store_needs_a_chunk_of_memory(tmp_path) -> None:
    """BALD of a store of 200 MB in chunks of 10 MB raises the peak of resident memory by less than 60 MB."""
    chunk = probs(12_500, 10, 20)
    store = ArrayStore(tmp_path / "preds", manifest(20 * len(chunk), len(chunk)))
    for number in range(store.chunks):
        store.write(number, chunk)
    program = """
        import sys
        from pathlib import Path
        import torch
        from baal_hf import BALD
        from baal_hf.store import ArrayStore

        def memory(name):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

        torch.set_num_threads(1)
        store = ArrayStore(sys.argv[1])
        BALD().get_ranks(store.take(range(9)))
        before = memory("VmRSS:")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
        ranks, scores = BALD().get_ranks(store)
        assert len(scores) == len(store)
        print(memory("VmHWM:") - before)
        """
    command = [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(program), str(store.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"200 MB ranked with {done.stdout.strip()} MB more")
    assert float(done.stdout) < 60


# Kills


KILLED_CHUNKS, KILLED_ROWS = 60, 64


def killed_chunk(number: int) -> np.ndarray:
    """What the children of the kill tests write as this chunk, 1 MB."""
    return np.random.default_rng(number).normal(size=(KILLED_ROWS, 4, 1000)).astype("float32")


WRITER = f"""
store = ArrayStore(sys.argv[1], {manifest(KILLED_CHUNKS * KILLED_ROWS, KILLED_ROWS)})
for number in store.missing():
    print(number, flush=True)
    store.write(number, np.random.default_rng(number).normal(size=({KILLED_ROWS}, 4, 1000)).astype("float32"))
"""


def test_killed_at_any_moment(tmp_path) -> None:
    """After SIGKILL at random moments the store opens, misses exactly what is not whole, and can be finished."""
    rng, folder = random.Random(0), tmp_path / "preds"
    kept: set[int] = set()
    statuses = []
    for _ in range(8):
        process = child(WRITER, folder)
        assert process.stdout
        for _ in range(rng.randint(1, 5)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        status, _, err = ended(process)
        assert status in (-signal.SIGKILL, 0), err
        statuses.append(status)
        there = {number for number in range(KILLED_CHUNKS) if (folder / f"chunk-{number:08d}.npy").exists()}
        assert kept <= there, "what is done is kept"
        for number in there - kept:
            np.testing.assert_array_equal(np.load(folder / f"chunk-{number:08d}.npy"), killed_chunk(number))
        kept = there
        assert ArrayStore(folder).missing() == sorted(set(range(KILLED_CHUNKS)) - there)
    assert -signal.SIGKILL in statuses, "every kill came too late and proves nothing"
    status, _, err = ended(child(WRITER, folder))
    assert status == 0, err
    store = ArrayStore(folder)
    assert store.missing() == []
    for number, chunk in enumerate(store):
        np.testing.assert_array_equal(chunk, killed_chunk(number))
    assert len(list(folder.iterdir())) == KILLED_CHUNKS + 1, "nothing is left of the killed"


LIMITED = """
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the system kills the process that writes one byte more

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
"""

NPY = 128 + 8 * 2**20  # bytes of the .npy file of a chunk of 8 MB, header and data


@pytest.mark.parametrize("size", [0, 1, 50, 127, 128, 129, 2**20, 5_000_000, NPY - 1, NPY, NPY + 1, NPY + 15, NPY + 16])
def test_killed_at_a_byte(tmp_path, size) -> None:
    """A process that is killed at whatever byte of a chunk's file leaves the chunk absent; the last makes it whole."""
    array = np.random.default_rng(0).normal(size=(4, 2, 2**19)).astype("float32")  # 2 chunks of 8 MB
    store = filled(tmp_path / "preds", array, 2)
    chunk_file(store, 1).unlink()
    program = """
        store = ArrayStore(sys.argv[1], {"rows": 4, "chunk_rows": 2})
        array = np.random.default_rng(0).normal(size=(4, 2, 2**19)).astype("float32")
        limit(int(sys.argv[2]))
        store.write(1, array[2:])
        """
    status, _, err = ended(child(LIMITED + textwrap.dedent(program), store.folder, size))
    temporary = store.folder / "chunk-00000001.npy.tmp"
    if size == NPY + 16:
        assert status == 0, err
        assert not temporary.exists()
    else:
        assert status == -signal.SIGXFSZ, err
        assert temporary.stat().st_size == size
    again = ArrayStore(store.folder, store.manifest)
    assert again.missing() == ([] if size == NPY + 16 else [1])
    again.write(1, array[2:])
    np.testing.assert_array_equal(np.concatenate(list(again)), array)
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "chunk-00000000.npy",
        "chunk-00000001.npy",
        "manifest.json",
    ]


@pytest.mark.parametrize("size", [0, 1, 30])
def test_killed_at_a_byte_of_the_manifest(tmp_path, size) -> None:
    """A process that is killed while it makes a store leaves a folder in which the store can be made."""
    program = 'limit(int(sys.argv[2])); ArrayStore(sys.argv[1], {"rows": 4, "chunk_rows": 2})'
    status, _, err = ended(child(LIMITED + program, tmp_path / "preds", size))
    assert status == -signal.SIGXFSZ, err
    with pytest.raises(FileNotFoundError, match="There is no store in"):
        ArrayStore(tmp_path / "preds")
    assert ArrayStore(tmp_path / "preds", manifest(4, 2)).missing() == [0, 1]
    assert os.listdir(tmp_path / "preds") == ["manifest.json"]


# Damage


def found_missing(store: ArrayStore, caplog: pytest.LogCaptureFixture) -> list[int]:
    """What the store misses, once every damaged chunk, which is there, has its warning."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="baal_hf.store"):
        missing = ArrayStore(store.folder).missing()
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == sum(chunk_file(store, number).exists() for number in missing)
    assert all("is damaged" in text and "A new run writes it again." in text for text in warned)
    return missing


def test_every_truncation_is_found(small, caplog) -> None:
    """A chunk's file that is cut at whatever byte counts as missing, and so does one with a byte more."""
    content = chunk_file(small, 1).read_bytes()
    for size in range(len(content)):
        chunk_file(small, 1).write_bytes(content[:size])
        assert found_missing(small, caplog) == [1], size
    chunk_file(small, 1).write_bytes(content + b"\0")
    assert found_missing(small, caplog) == [1]
    chunk_file(small, 1).write_bytes(content)
    assert found_missing(small, caplog) == []


def test_every_flipped_bit_is_found(small, caplog) -> None:
    """A chunk's file with one bit another, in whichever byte, counts as missing, and no other chunk does."""
    content = chunk_file(small, 2).read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        chunk_file(small, 2).write_bytes(changed)
        assert found_missing(small, caplog) == [2], place


def test_damage_far_inside_is_found(tmp_path, caplog) -> None:
    """A bit or a byte that is wrong behind the first piece that is read is found, too."""
    store = filled(tmp_path, np.ones((3, 2**19), "float32"), 3)  # 6 MB
    content = chunk_file(store, 0).read_bytes()
    for place in (0, module.PIECE - 1, module.PIECE, 5_000_000, len(content) - 17):
        changed = bytearray(content)
        changed[place] ^= 16
        chunk_file(store, 0).write_bytes(changed)
        assert found_missing(store, caplog) == [0], place
    chunk_file(store, 0).write_bytes(content[: 2 * module.PIECE])
    assert found_missing(store, caplog) == [0]


def test_chunks_of_another_place_are_found(small, tmp_path, caplog) -> None:
    """A chunk of another number, or of a store with another manifest, counts as missing though its file is whole."""
    other = filled(tmp_path / "other", probs(5, 2, 2, dtype="float16"), 2, weights="99b1")
    own = chunk_file(small, 0).read_bytes()
    chunk_file(small, 1).write_bytes(own)
    assert found_missing(small, caplog) == [1]
    chunk_file(small, 0).write_bytes(chunk_file(other, 0).read_bytes())
    chunk_file(small, 2).unlink()
    assert found_missing(small, caplog) == [0, 1, 2]
    chunk_file(small, 0).write_bytes(own)
    assert found_missing(small, caplog) == [1, 2]


@pytest.mark.parametrize("npy", [b"no header", None], ids=["no npy", "wrong rows"])
def test_a_digest_is_not_enough(small, tmp_path, caplog, npy) -> None:
    """A file with the right digest over what is no .npy file, or an array of other rows, counts as missing."""
    if npy is None:
        np.save(tmp_path / "rows.npy", probs(1, 2, 2))
        npy = (tmp_path / "rows.npy").read_bytes()
    chunk_file(small, 0).write_bytes(npy + digests(small, 0, npy))
    assert found_missing(small, caplog) == [0]
    with pytest.raises(RuntimeError, match=r"Chunk 0 of .* is damaged: .*\. A new run writes it again\."):
        next(iter(small))


def test_damage_is_repaired(small) -> None:
    """A damaged chunk that is written again is whole."""
    array = small.take(range(5))
    chunk_file(small, 1).write_bytes(b"")
    again = ArrayStore(small.folder, small.manifest)
    assert again.missing() == [1]
    again.write(1, array[2:4])
    np.testing.assert_array_equal(np.concatenate(list(again)), array)


def test_no_pickle_is_loaded(small, tmp_path, caplog) -> None:
    """A chunk that is a pickle, even with the right digest, is refused unopened."""

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "trap.npy", np.array([Trap(), Trap()], dtype=object), allow_pickle=True)
    npy = (tmp_path / "trap.npy").read_bytes()
    chunk_file(small, 0).write_bytes(npy + digests(small, 0, npy))
    assert found_missing(small, caplog) == [0]
    for read in (lambda: next(iter(small)), lambda: small.take([0])):
        with pytest.raises(RuntimeError, match=r"Chunk 0 of .* is damaged"):
            read()
    assert not (tmp_path / "sprung").exists()


# What is refused


def test_an_incomplete_store_gives_no_batches(small) -> None:
    """Iteration over a store with missing chunks says how many, before the first is given; taking names the chunk."""
    chunk_file(small, 0).unlink()
    chunk_file(small, 2).unlink()
    with pytest.raises(RuntimeError, match=r"is not complete, 2 of 3 chunks are missing\. Finish the run"):
        iter(small)
    with pytest.raises(RuntimeError, match=r"Chunk 2 of .* is missing\. Finish the run"):
        small.take([2, 4])
    assert len(small.take([3, 2])) == 2


@pytest.mark.parametrize("positions", [[5], [0, -1], np.array([2**63], "uint64")])
def test_positions_outside(small, positions) -> None:
    """Positions outside 0 .. N-1 are refused, negative ones too, and the first is named."""
    with pytest.raises(IndexError, match=rf"has rows 0 \.\. 4, got {max(positions, key=abs)}\."):
        small.take(positions)


@pytest.mark.parametrize("positions", [[0.0], [True, False], 1, [[0, 1]], ["a"]])
def test_positions_of_another_kind(small, positions) -> None:
    """Positions are whole numbers in one axis; masks and floats are refused."""
    with pytest.raises(TypeError, match=r"take needs whole numbers \[k\], got"):
        small.take(positions)


def test_no_rows(small, tmp_path) -> None:
    """Taking no rows gives no rows of the right shape and type; arrays with nothing on an axis of *S are stored."""
    assert small.take([]).shape == (0, 2, 2) and small.take([]).dtype == np.float16
    assert small.take(np.array([], int)).shape == (0, 2, 2)
    store = filled(tmp_path / "hollow", np.zeros((3, 2, 0, 4), "float32"), 2)
    assert store.missing() == []
    assert [chunk.shape for chunk in store] == [(2, 2, 0, 4), (1, 2, 0, 4)]
    assert store.take([2, 0]).shape == (2, 2, 0, 4)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 2), (0, 2, 2), ()])
def test_other_rows_are_refused(small, shape) -> None:
    """A chunk takes an array of exactly its rows, and is as it was after another."""
    with pytest.raises(ValueError, match=r"Chunk 0 of .* has rows 0 \.\. 1, n = 2, got an array \["):
        small.write(0, np.zeros(shape, "float32"))
    assert small.missing() == []


@pytest.mark.parametrize("array", [np.zeros((2, 1)), np.zeros((2, 1), int), np.array([{}, {}]), [[1.0], [2.0]]])
def test_other_types_are_refused(small, array) -> None:
    """Arrays are NumPy's, of float32 or float16."""
    with pytest.raises(TypeError, match="needs NumPy arrays of float32 or float16, got"):
        small.write(0, array)


@pytest.mark.parametrize(
    "other", [np.zeros((1, 3, 2), "f2"), np.zeros((1, 2, 3), "f2"), np.zeros((1, 2, 2), "f4"), np.zeros(1, "f2")]
)
def test_chunks_that_do_not_go_together(small, other) -> None:
    """Rows of chunks that differ in C, T, type or number of axes are not taken together; each alone is."""
    small.write(2, other)
    with pytest.raises(ValueError, match=r"Chunks 1 and 2 of .* do not go together"):
        small.take([4, 2])
    assert small.take([4]).shape == other.shape


# Manifests


def test_differences_are_named(tmp_path, monkeypatch) -> None:
    """A store of other entries is refused with every difference and both values, and is left as it was."""
    monkeypatch.chdir(tmp_path)
    old, new = "3f2a" + 60 * "0", "99b1" + 60 * "1"
    ArrayStore("preds", manifest(5, 2, iterations=20, weights=old, seed=3, same=[1, {"a": None}]))
    Path("preds/chunk-00000000.npy.tmp").touch()
    with pytest.raises(ValueError) as error:
        ArrayStore("preds", manifest(5, 2, iterations=10, weights=new, dtype="float16", same=(1, {"a": None})))
    assert str(error.value) == (
        "The store preds/ was made with iterations=20, not 10, other weights (3f2a00000000..., not 99b111111111...), "
        'seed=3, which is not given now, and no dtype, not "float16". Choose another folder, or delete this one.'
    )
    assert sorted(os.listdir("preds")) == ["chunk-00000000.npy.tmp", "manifest.json"]


def test_a_long_list_is_shown_where_it_differs(tmp_path) -> None:
    """Of long lists the message shows the place where they part."""
    ArrayStore(tmp_path, manifest(5, 2, classes=list(range(30))))
    with pytest.raises(ValueError, match=r"other classes \(\.\.\.28, 29\], not \.\.\.28, 99\]\)"):
        ArrayStore(tmp_path, manifest(5, 2, classes=[*range(29), 99]))


@few
@given(
    st.text('xyz "é', min_size=16, max_size=60),
    st.text("ab", min_size=1, max_size=9),
    st.text("cd", min_size=1, max_size=9),
)
def test_long_values_are_shown_where_they_differ(common, one, other) -> None:
    """The message differs between the values that differ, however late, and stays short."""
    with tempfile.TemporaryDirectory() as folder:
        ArrayStore(folder, manifest(1, 1, model=common + one))
        with pytest.raises(ValueError, match=r"other model|model=") as error:
            ArrayStore(folder, manifest(1, 1, model=common + other))
        text = str(error.value).replace(folder, "")
        assert len(text) < 180
        shown, asked = text.split("model", 1)[1].split(", not ", 1)
        assert one[0] in shown and other[0] in asked


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@few
@given(st.dictionaries(st.text(min_size=1, max_size=5), json_values, max_size=4), st.randoms(use_true_random=False))
def test_an_equal_manifest_goes_on(entries, rng) -> None:
    """A manifest that is equal, in whatever order, opens the store with its chunks; reading gives the same manifest."""
    entries = entries | manifest(3, 2)
    again = list(entries.items())
    rng.shuffle(again)
    with tempfile.TemporaryDirectory() as folder:
        first = ArrayStore(folder, entries)
        first.write(1, np.zeros(1, "float32"))
        for store in (ArrayStore(folder, dict(again)), ArrayStore(folder)):
            assert store.manifest == entries and store.missing() == [0]
            assert store.folder == Path(folder)


def test_equal_numbers_are_equal(tmp_path) -> None:
    """An entry that JSON spells in another way but that equals the old one changes nothing."""
    filled(tmp_path, np.zeros(3, "float32"), 2, temperature=1)
    assert ArrayStore(tmp_path, manifest(3, 2, temperature=1.0)).missing() == []


@pytest.mark.parametrize(
    ("given_manifest", "error", "text"),
    [
        ({}, ValueError, "needs 'rows' in its manifest, got nothing"),
        ({"rows": 3}, ValueError, "needs 'chunk_rows' in its manifest, got rows"),
        (manifest(0, 1), ValueError, "whole number of 1 or more as 'rows', got 0"),
        (manifest(1, 0), ValueError, "whole number of 1 or more as 'chunk_rows', got 0"),
        (manifest(3.0, 1), ValueError, "whole number of 1 or more as 'rows', got 3.0"),  # type: ignore[arg-type]
        (manifest(True, 1), ValueError, "whole number of 1 or more as 'rows', got True"),
        (manifest(3, 1, weights=np.zeros(3)), TypeError, "that JSON can hold"),
        (manifest(3, 1, temperature=np.nan), ValueError, "that JSON can hold"),
        ([("rows", 3)], TypeError, "needs a mapping as manifest, got list"),
    ],
)
def test_manifests_that_say_nothing(tmp_path, given_manifest, error, text) -> None:
    """A manifest needs the rows and the rows of a chunk and what JSON holds; nothing is made of another."""
    with pytest.raises(error, match=text):
        ArrayStore(tmp_path / "preds", given_manifest)
    assert not (tmp_path / "preds").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is broken"),
        ("[]", "is broken"),
        ("{}", "is broken"),
        ('{"format": 1, "manifest": {"rows": 5', "is broken"),
        ('{"format": 1, "manifest": [5]}', "is broken"),
        ('{"format": 1, "manifest": {"rows": "5", "chunk_rows": 2}}', "is broken"),
        ('{"format": 2, "manifest": {"rows": 5, "chunk_rows": 2}}', "is of format 2, this baal_hf knows 1"),
    ],
)
def test_broken_manifests(small, content, text) -> None:
    """A manifest file that is broken, or of another format, is refused for reading and for going on."""
    (small.folder / "manifest.json").write_text(content)
    for given_manifest in (None, small.manifest):
        with pytest.raises(ValueError, match=text):
            ArrayStore(small.folder, given_manifest)


def test_no_store(tmp_path) -> None:
    """Reading needs a store and makes none."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="There is no store in"):
            ArrayStore(folder)
    assert os.listdir(tmp_path) == []


def test_other_files_are_not_mixed_with(tmp_path) -> None:
    """A folder with other files and no manifest is refused and left as it was."""
    names = ["a.txt", "b.txt", "c.txt", "chunk-00000000.npy", "chunk-00000001.npy.tmp"]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds other files: a\.txt, b\.txt, c\.txt and 1 more\. Choose another"):
        ArrayStore(tmp_path, manifest(1, 1))
    assert sorted(os.listdir(tmp_path)) == names


def test_leftovers(small) -> None:
    """What killed runs left is removed when the store is opened with a manifest, not by reading; other files stay."""
    names = {"chunk-00000001.npy.tmp", "manifest.json.tmp", "notes.tmp", "notes.txt"}
    for name in names:
        (small.folder / name).touch()
    assert ArrayStore(small.folder).missing() == []
    assert names <= set(os.listdir(small.folder))
    assert ArrayStore(small.folder, small.manifest).missing() == []
    assert names & set(os.listdir(small.folder)) == {"notes.tmp", "notes.txt"}


# What the system refuses


def test_a_file_is_no_folder(tmp_path) -> None:
    """A store whose folder is a file, or lies in one, is refused with the system's errno."""
    (tmp_path / "file").touch()
    for given_manifest in (None, manifest(1, 1)):
        with pytest.raises(NotADirectoryError, match=r"file is a file\. ArrayStore needs a folder") as error:
            ArrayStore(tmp_path / "file", given_manifest)
        assert error.value.errno == errno.ENOTDIR
    with pytest.raises(NotADirectoryError, match=r"could not be opened for writing: Not a directory\. Choose another"):
        ArrayStore(tmp_path / "file" / "preds", manifest(1, 1))


TRYING = """
def tried(what):
    try:
        what()
    except OSError as error:
        print(error.errno, error)
"""


def test_a_full_disk(tmp_path) -> None:
    """A chunk that finds no room says which, where, why and what to do; it leaves nothing and the others are kept."""
    program = """
        store = ArrayStore(sys.argv[1], {"rows": 3000, "chunk_rows": 1000})
        store.write(0, np.ones((1000, 2, 2), "float32"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))
        tried(lambda: store.write(1, np.ones((1000, 2, 2), "float32")))
        tried(lambda: store.write(0, np.zeros((1000, 2, 2), "float32")))
        tried(lambda: ArrayStore(sys.argv[1] + "2", {"rows": 1, "chunk_rows": 1, "long": 9999 * "x"}))
        print(store.missing(), sorted(os.listdir(sys.argv[1])), os.listdir(sys.argv[1] + "2"))
        """
    folder = tmp_path / "preds"
    status, out, err = ended(child(TRYING + textwrap.dedent(program), folder))
    assert status == 0, err
    new, replaced, made, left = out.splitlines()
    what = f"{errno.EFBIG} [Errno {errno.EFBIG}]"
    why = f"could not be written to {folder}/: File too large"
    advice = "The chunks that are there are kept: make room or access, and a new run goes on from there."
    assert new == f"{what} Chunk 1, rows 1000 .. 1999, {why}. {advice}"
    assert replaced == f"{what} Chunk 0, rows 0 .. 999, {why}. {advice}"
    assert made.startswith(f"{what} The store {folder}2/ could not be opened for writing: File too large.")
    assert left == "[1, 2] ['chunk-00000000.npy', 'manifest.json'] []"
    assert ArrayStore(folder).take([0, 999]).all()


def test_a_read_only_folder(tmp_path) -> None:
    """In a folder without access a store is neither made nor written, and is read all the same."""
    store = filled(tmp_path / "preds", probs(4, 2, 2), 2)
    chunk_file(store, 1).unlink()
    store.folder.chmod(0o555)
    (tmp_path / "others").mkdir(0o555)
    tmp_path.chmod(0o755)  # the child is there already when it becomes another user
    program = """
        import mmap  # NumPy does so late, when this user may not read Python's own files any more
        if not os.geteuid():
            os.setuid(65534)  # whom permissions bind
        store = ArrayStore("preds", {"rows": 4, "chunk_rows": 2})
        print(store.missing(), len(ArrayStore("preds").take([1, 0])))
        tried(lambda: store.write(1, np.ones((2, 2, 2), "float32")))
        tried(lambda: ArrayStore("others", {"rows": 4, "chunk_rows": 2}))
        tried(lambda: ArrayStore("others/deeper", {"rows": 4, "chunk_rows": 2}))
        """
    try:
        status, out, err = ended(child(TRYING + textwrap.dedent(program), cwd=tmp_path))
    finally:
        store.folder.chmod(0o755)
    assert status == 0, err
    read, *refused = out.splitlines()
    assert read == "[1] 2"
    assert len(refused) == 3
    assert refused[0].startswith(f"{errno.EACCES} [Errno {errno.EACCES}] Chunk 1, rows 2 .. 3, could not be written to")
    assert all("Permission denied. " in line for line in refused)


def test_a_folder_that_went_away(small) -> None:
    """A chunk whose folder was deleted is refused with the errno, and the folder is not made anew."""
    for path in small.folder.iterdir():
        path.unlink()
    small.folder.rmdir()
    with pytest.raises(FileNotFoundError, match=r"Chunk 0, rows 0 \.\. 1, could not be written") as error:
        small.write(0, np.zeros((2, 2, 2), "float16"))
    assert error.value.errno == errno.ENOENT and not small.folder.exists()


def test_too_many_open_files(tmp_path) -> None:
    """Chunks that cannot all be mapped at once are refused with advice, and following it works."""
    program = """
        store = ArrayStore(sys.argv[1], {"rows": 50, "chunk_rows": 1})
        for number in store.missing():
            store.write(number, np.full(1, number, "float32"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
        tried(lambda: list(store))
        print(sum(float(chunk[0]) for chunk in store), store.take(range(50)).sum())
        """
    status, out, err = ended(child(TRYING + textwrap.dedent(program), tmp_path / "preds"))
    assert status == 0, err
    refused, answers = out.splitlines()
    assert "Too many open files. Too many at once? Go through them one by one, or call take(range(50))." in refused
    assert answers == "1225.0 1225.0"


def test_file_systems_without_fsync_of_folders() -> None:
    """A folder that the file system cannot put on the disk is no error; one that is not there is."""
    if Path("/proc").is_dir():
        module._put_names(Path("/proc"))  # answers EINVAL, as some network drives do
    with pytest.raises(FileNotFoundError):
        module._put_names(Path("/nowhere"))


def test_the_file_stands_alone() -> None:
    """The store needs the standard library and NumPy only, so that a program without torch reads it."""
    status, out, err = ended(child("print(*sorted({name.split('.')[0] for name in sys.modules}))"))
    assert status == 0, err
    heavy = {"baal_hf", "torch", "transformers", "datasets", "accelerate", "pyarrow", "pandas", "scipy"}
    assert not heavy & set(out.split())
