"""ArrayStore: arrays about many rows in a folder, a chunk of rows a file; a run goes on from what a killed one left.

The folder holds `manifest.json`, which says what the arrays were made with, and `chunk-00000000.npy` and so on. A chunk
is a plain .npy file, which NumPy can map into memory, with a digest of 16 bytes behind it. The digest covers the
manifest, the chunk's number and the .npy file: a chunk that is cut short, altered, of another number or of another
store is found. Every file is written under a temporary name and renamed when it is on the disk, so it is whole or not
there. One process writes; any number may read.

The file is long because the format is known here and nowhere else: what writes it, reads it and says what is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

NumpyArray = npt.NDArray[Any]

FORMAT = 1  # of the folder; raised when older programs could not read a new one
MANIFEST = "manifest.json"
LEFTOVER = re.compile(r"(manifest\.json|chunk-\d+\.npy)\.tmp")
DTYPES = ("float32", "float16")
DIGEST = 16  # bytes
PIECE = 2**20  # bytes that are read, hashed or written at once
SHOWN = 16  # characters of a long value in a message
LEAD = 4  # of those that are the same in both


class ArrayStore:
    """A folder with the arrays of consecutive chunks of N rows; an iterable of batches for heuristics.

    Args:
        folder: Where the store is, or is to be.
        manifest: What the arrays depend on, as JSON can hold it, with "rows", N, and "chunk_rows", the rows of each
            chunk but the last. Makes the store, or opens it for going on, where every entry must be as it was. None
            opens an existing store for reading.

    Attributes:
        folder: The folder.
        manifest: What the arrays depend on; a copy, as it was read back from JSON.
        chunks: Number of chunks, whether they are there or not.

    Raises:
        ValueError: The manifest has no "rows" or "chunk_rows" of 1 or more, or differs from that of the store that is
            there; or the folder holds other files, a broken manifest or an unknown format.
        TypeError: The manifest is no mapping, or JSON cannot hold it.
        FileNotFoundError: There is no store, and no manifest to make one.
        OSError: The folder or its manifest cannot be written.

    Example:
        >>> store = ArrayStore("preds", {"rows": 5, "chunk_rows": 2, "iterations": 20})  # doctest: +SKIP
        >>> for number in store.missing():  # doctest: +SKIP
        ...     store.write(number, predictions_of(store.rows_of(number)))
        >>> ranks = BALD()(store)  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self._name = f"{self.folder}{os.sep}"
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{self.folder} is a file. ArrayStore needs a folder.")
        if manifest is None:
            if not (self.folder / MANIFEST).exists():
                advice = "Give a manifest to make one, or look for the folder."
                raise FileNotFoundError(
                    errno.ENOENT, f"There is no store in {self._name}, {MANIFEST} is missing. {advice}"
                )
            self.manifest = self._read()
        else:
            self.manifest = self._opened(_in_json(manifest))
        self._rows, self._chunk_rows = self.manifest["rows"], self.manifest["chunk_rows"]
        self.chunks: int = -(-self._rows // self._chunk_rows)
        canonical = json.dumps(self.manifest, sort_keys=True).encode()
        self._digest_of_manifest = blake2b(canonical, digest_size=DIGEST).digest()

    def __len__(self) -> int:
        """Number of rows, N; iteration gives chunks."""
        return int(self._rows)

    def rows_of(self, number: int) -> range:
        """The rows of a chunk, n of 0 .. N-1.

        Raises:
            IndexError: There is no such chunk.
        """
        number = operator.index(number)
        if not 0 <= number < self.chunks:
            raise IndexError(f"The store {self._name} has chunks 0 .. {self.chunks - 1}, got {number}.")
        start = number * self._chunk_rows
        return range(start, min(start + self._chunk_rows, len(self)))

    def write(self, number: int, array: NumpyArray) -> None:
        """Put a chunk on the disk, whole or not at all; one that is there is replaced.

        Args:
            number: Of the chunk.
            array: Predictions [n, C, *S, T] or scores [n] of the rows `rows_of(number)`, float32 or float16, with any
                strides; not copied.

        Raises:
            ValueError: The array has another number of rows.
            TypeError: It is no NumPy array, or of another type.
            IndexError: There is no such chunk.
            OSError: It cannot be written; the errno is the system's.
        """
        number = operator.index(number)  # NumPy's integers, too
        rows = self.rows_of(number)
        if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES:
            came = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"The store {self._name} needs NumPy arrays of {' or '.join(DTYPES)}, got {came}.")
        if array.shape[:1] != (len(rows),):
            came = f"an array {list(array.shape)}"
            raise ValueError(f"Chunk {number} of {self._name} has {_span(rows)}, n = {len(rows)}, got {came}.")
        advice = "The chunks that are there are kept: make room or access, and a new run goes on from there."
        with _told(f"Chunk {number}, {_span(rows)}, could not be written to {self._name}", advice):
            _put(self._path(number), self._content(number, array))

    def missing(self) -> list[int]:
        """Numbers of the chunks that are absent or damaged, in order; every damaged one is warned of.

        Reads all that is there, in pieces.

        Raises:
            OSError: A chunk is there and cannot be read.
        """
        return [number for number in range(self.chunks) if not self._is_whole(number)]

    def __iter__(self) -> Iterator[NumpyArray]:
        """The chunks in order, [n, C, *S, T] or [n], read-only and mapped into memory.

        Raises:
            RuntimeError: Some are missing, or one proves damaged on the way; whether bits are right, `missing` says.
        """
        absent = sum(not self._path(number).exists() for number in range(self.chunks))
        if absent:
            came = f"{absent} of {self.chunks} chunks are missing"
            raise RuntimeError(f"The store {self._name} is not complete, {came}. Finish the run that writes it.")
        return map(self._mapped, range(self.chunks))

    def take(self, positions: npt.ArrayLike) -> NumpyArray:
        """These rows alone, in the order given.

        Args:
            positions: Of k rows in 0 .. N-1, in any order and more than once if you like.

        Returns:
            [k, C, *S, T] or [k] in memory of its own. Where the chunks that hold these rows differ in *S, positions
            are padded with NaN at the end to the widest of those chunks.

        Raises:
            IndexError: A position lies outside.
            TypeError: Positions are no whole numbers in one axis.
            ValueError: The chunks differ in another axis than the first and *S, or in type.
            RuntimeError: A chunk that is needed is missing or damaged.
        """
        rows = np.asarray(positions)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(f"take needs whole numbers [k], got {rows.dtype.name} {list(rows.shape)}.")
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            raise IndexError(f"The store {self._name} has rows 0 .. {len(self) - 1}, got {rows[outside][0]}.")
        rows = rows.astype(np.int64)
        numbers = rows // self._chunk_rows  # [k]
        needed = [int(number) for number in np.unique(numbers)] or [0]  # the first tells the shape of no rows
        taken = np.full((len(rows), *self._widest(needed)), np.nan, self._mapped(needed[0]).dtype)  # [k, C, *S, T]
        for number in needed:
            chunk = self._mapped(number)
            here = np.flatnonzero(numbers == number)
            place: tuple[Any, ...] = (here, *map(slice, chunk.shape[1:]))
            taken[place] = chunk[rows[here] - self.rows_of(number).start]
        return taken

    def _widest(self, numbers: list[int]) -> tuple[int, ...]:
        """The shape [C, *S, T] that holds every row of these chunks."""
        first = self._mapped(numbers[0])
        widest = first.shape[1:]
        for number in numbers[1:]:
            chunk = self._mapped(number)
            if _fixed(chunk) != _fixed(first):
                came = f"{list(first.shape)} {first.dtype} and {list(chunk.shape)} {chunk.dtype}"
                raise ValueError(f"Chunks {numbers[0]} and {number} of {self._name} do not go together: {came}.")
            widest = tuple(map(max, widest, chunk.shape[1:]))
        return widest

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:08d}.npy"

    def _digest(self, number: int) -> blake2b:
        """What the chunk's digest begins with."""
        return blake2b(self._digest_of_manifest + number.to_bytes(8, "little"), digest_size=DIGEST)

    def _content(self, number: int, array: NumpyArray) -> Iterator[bytes | memoryview]:
        """The bytes of the chunk's file, piece by piece."""
        digest = self._digest(number)
        for piece in _npy(array):
            digest.update(piece)
            yield piece
        yield digest.digest()

    def _mapped(self, number: int) -> NumpyArray:
        """The chunk's array [n, C, *S, T], mapped into memory to read; its bits are not looked at."""
        advice = f"Too many at once? Go through them one by one, or call take(range({len(self)}))."
        try:
            with _told(f"Chunk {number} of {self._name} could not be mapped into memory", advice):
                chunk: NumpyArray = np.lib.format.open_memmap(self._path(number), mode="r")
        except FileNotFoundError:
            raise RuntimeError(f"Chunk {number} of {self._name} is missing. Finish the run that writes it.") from None
        except ValueError as error:  # what NumPy says of a file that is not the one it was
            raise self._damage(number, str(error).rstrip(".")) from error
        expected = len(self.rows_of(number))
        if chunk.shape[:1] != (expected,):
            raise self._damage(number, f"it has an array {list(chunk.shape)} for n = {expected} rows")
        return chunk

    def _is_whole(self, number: int) -> bool:
        """Whether the chunk is there and is what was written."""
        try:
            self._verify(number)
        except FileNotFoundError:
            return False
        except RuntimeError as error:
            logger.warning("%s", error)
            return False
        return True

    def _verify(self, number: int) -> None:
        """Raise unless the chunk is there and is what was written."""
        digest = self._digest(number)
        with open(self._path(number), "rb") as file:
            size = os.fstat(file.fileno()).st_size - DIGEST
            for start in range(0, size, PIECE):
                digest.update(file.read(min(PIECE, size - start)))
            if file.read() != digest.digest():
                raise self._damage(number, "it was cut short or altered, or is of another chunk or store")
        self._mapped(number)

    def _damage(self, number: int, why: str) -> RuntimeError:
        return RuntimeError(f"Chunk {number} of {self._name} is damaged: {why}. A new run writes it again.")

    def _opened(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest of the store that is there, or that is made, once it is the one given."""
        _check_sizes(manifest)
        advice = "Choose another folder, or make room or access in this one."
        with _told(f"The store {self._name} could not be opened for writing", advice):
            self.folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in self.folder.iterdir())
            leftovers = [name for name in names if LEFTOVER.fullmatch(name)]
            if MANIFEST in names:
                found = self._read()
                if differences := _differences(found, manifest):
                    advice = "Choose another folder, or delete this one."
                    raise ValueError(f"The store {self._name} was made with {differences}. {advice}")
            elif others := [name for name in names if name not in leftovers]:
                came = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
                raise ValueError(f"{self._name} is no store and holds other files: {came}. Choose another folder.")
            for name in leftovers:  # of a run that was killed: only one process writes, and that is this one now
                (self.folder / name).unlink()
            if MANIFEST in names:
                return found
            text = json.dumps({"format": FORMAT, "manifest": manifest}, indent=2) + "\n"
            _put(self.folder / MANIFEST, [text.encode()])
            return manifest

    def _read(self) -> dict[str, Any]:
        """The manifest that is there.

        Raises:
            ValueError: It is broken, or of another format.
        """
        advice = "Choose another folder, or delete this one."
        try:
            content = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            version, manifest = content["format"], content["manifest"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{MANIFEST} in {self._name} is broken ({error!r}). {advice}") from error
        if version != FORMAT:
            newer = f"Read it with the baal_hf that wrote it. {advice}"
            raise ValueError(f"The store {self._name} is of format {version!r}, this baal_hf knows {FORMAT}. {newer}")
        try:
            return _check_sizes(manifest)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{MANIFEST} in {self._name} is broken ({error}). {advice}") from error


def _check_sizes(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, once it says how many rows there are and how many a chunk has."""
    if not isinstance(manifest, dict):
        raise TypeError(f"ArrayStore needs a mapping as manifest, got {type(manifest).__name__}.")
    for name in ("rows", "chunk_rows"):
        if name not in manifest:
            raise ValueError(f"ArrayStore needs {name!r} in its manifest, got {', '.join(manifest) or 'nothing'}.")
        if type(manifest[name]) is not int or manifest[name] < 1:
            raise ValueError(f"ArrayStore needs a whole number of 1 or more as {name!r}, got {manifest[name]!r}.")
    return manifest


def _in_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as JSON gives it back: a copy, with lists for tuples."""
    if not isinstance(manifest, Mapping):
        raise TypeError(f"ArrayStore needs a mapping as manifest, got {type(manifest).__name__}.")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(manifest), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"ArrayStore needs a manifest that JSON can hold: {error}.") from error
    return copy


def _differences(found: dict[str, Any], given: dict[str, Any]) -> str:
    """What an old manifest has that a new one has not, for a message; empty where they are equal.

    >>> _differences({"rows": 5, "weights": "3f2a" * 8}, {"rows": 6, "weights": "99b1" * 8})
    'rows=5, not 6, and other weights (3f2a3f2a3f2a..., not 99b199b199b1...)'
    """
    parts = []
    for name in dict.fromkeys((*found, *given)):
        if name not in given:
            parts.append(f"{name}={_shown(found[name])}, which is not given now")
        elif name not in found:
            parts.append(f"no {name}, not {_shown(given[name])}")
        elif found[name] != given[name]:
            one, other = json.dumps(found[name]), json.dumps(given[name])
            if max(len(one), len(other)) <= SHOWN:
                parts.append(f"{name}={one}, not {other}")
            else:
                same = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
                start = max(0, same - LEAD)  # the place where they differ must be seen
                parts.append(f"other {name} ({_shown(found[name], start)}, not {_shown(given[name], start)})")
    return ", and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)


def _shown(value: Any, start: int = 0) -> str:
    """The value as JSON; of a long one some characters from `start` on, without the quotation marks of a text."""
    text = json.dumps(value)
    if len(text) <= SHOWN:
        return text
    if isinstance(value, str):
        text, start = text[1:-1], max(0, start - 1)
    end = start + SHOWN - LEAD
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def _fixed(chunk: NumpyArray) -> tuple[Any, ...]:
    """What the chunks of a store share: type, number of axes, C and T."""
    return chunk.dtype, chunk.ndim, chunk.shape[1:2], chunk.shape[2:][-1:]


def _span(rows: range) -> str:
    """These rows, for a message."""
    return f"rows {rows.start} .. {rows.stop - 1}"


def _npy(array: NumpyArray) -> Iterator[bytes | memoryview]:
    """The .npy file of an array with any strides, piece by piece."""
    dtype = array.dtype.newbyteorder("<")  # the same file on every machine
    header = io.BytesIO()
    content = {"descr": dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, content)
    yield header.getvalue()
    numbers = np.nditer(
        array,
        ["external_loop", "buffered", "zerosize_ok"],
        order="C",
        op_dtypes=dtype,
        casting="equiv",
        buffersize=PIECE // dtype.itemsize,
    )
    for piece in numbers:
        yield np.ascontiguousarray(piece).view(np.uint8).data


def _put(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Make a file of these pieces, or replace it; it is whole and on the disk afterwards, or as it was."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _put_names(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it is renamed, or was never there; what went wrong is told already
            temporary.unlink()


def _put_names(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can do so for folders."""
    flag = getattr(os, "O_DIRECTORY", None)
    if flag is None:
        return  # Windows opens no folders
    opened = os.open(folder, os.O_RDONLY | flag)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network drives know no fsync of folders
            raise
    finally:
        os.close(opened)


@contextlib.contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    """Say of an OSError what could not be done, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}. {advice}") from error
