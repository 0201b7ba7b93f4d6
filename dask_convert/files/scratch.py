"""What a run keeps on disk while it works, and how files appear there.

    SCRATCH/plan.json
    SCRATCH/<matrix number>/row_ends.npy           indptr[1:], int64
                            data.chunks.npy        where the chunks lie, if they are read raw
                            indices.chunks.npy
                            block-<number>         fragments of a row block
                            block-<number>.json    report of the split task that made them
                            digest-<number>.npy    what a row block held, to be verified
                            indptr.npy             of the target, after the barrier
                            region-<number>.json   report of a combine task, with its files
                            matrix.json            all regions are there: fragments may go

Every file is written under a name of its own and then renamed: a name that exists is a file
that is whole, and two attempts at the same task cannot disturb each other. That holds while the
machine runs. When it loses power, files that were not fsynced may turn up short or empty, so
whatever a later run goes on from carries a checksum, and is made again if that does not match.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import google_crc32c
import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import DiskSpaceError, FragmentError, StorageError
from dask_convert.files.failpoints import reach
from dask_convert.page_cache import not_needed

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FEW_INODES = 1000
"""So few that these may be what a file system lacks; what was removed since has freed some."""

_CRC_DIGITS = 8
_CRC_BYTES = 4
_PIECE_BYTES = 2**22

T = TypeVar("T")


class MatrixScratch(msgspec.Struct, frozen=True):
    """The names of one matrix's scratch files."""

    directory: str

    @property
    def row_ends(self) -> Path:
        """``indptr[1:]`` of the source; int64."""
        return Path(self.directory, "row_ends.npy")

    @property
    def indptr(self) -> Path:
        """Indptr of the target; int64."""
        return Path(self.directory, "indptr.npy")

    def chunks(self, member: str) -> Path:
        """The chunk table of a member array."""
        return Path(self.directory, f"{member}.chunks.npy")

    def block(self, number: int) -> Path:
        """The fragments of a row block."""
        return Path(self.directory, f"block-{number:06d}")

    def block_report(self, number: int) -> Path:
        """What the split task said that made them."""
        return Path(self.directory, f"block-{number:06d}.json")

    @property
    def keys(self) -> Path:
        """The keys of its digests."""
        return Path(self.directory, "digest.keys")

    def digest(self, number: int) -> Path:
        """The digest of a row block, as it was read; see `dask_convert.shuffle.digests`."""
        return Path(self.directory, f"digest-{number:06d}.npy")

    def region_report(self, number: int) -> Path:
        """What the combine task said that wrote a region."""
        return Path(self.directory, f"region-{number:06d}.json")

    @property
    def matrix_report(self) -> Path:
        """That all regions are written, and what became of the matrix."""
        return Path(self.directory, "matrix.json")


@contextmanager
def published(
    path: Path, kind: str = "array", *, attempts: Path | None = None, durable: bool = False
) -> Iterator[BinaryIO]:
    """A new file for writing that takes its name only when it is complete.

    Parameters
    ----------
    path
        Its name.
    kind
        One of `failpoints.FILE_KINDS`.
    attempts
        Directory on the same file system for the file while it is written; that of `path` by
        default. Killed writers leave their files there.
    durable
        Make sure that it is on disk before it takes its name, and its name after that.

    Raises
    ------
    DiskSpaceError
        The disk or the quota is full; names the directory and what it has left.
    """
    attempt = (attempts or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with attempt.open("xb", buffering=0) as file:
            reach(f"{kind}: opened")
            yield file
            reach(f"{kind}: written")
            if durable:
                os.fsync(file.fileno())
                reach(f"{kind}: synced")
        attempt.replace(path)
        if durable:
            sync(path.parent)
        reach(f"{kind}: renamed")
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(path.parent) from error
        raise
    finally:
        with suppress(OSError):
            attempt.unlink()


def no_space(directory: Path) -> DiskSpaceError:
    """The error to raise where a disk is full."""
    free_bytes = shutil.disk_usage(directory).free
    found = os.statvfs(directory)
    lacking, free = "space", f"{free_bytes:,} bytes"
    # Of a file system that is full of bytes, some make their number of inodes up.
    if found.f_files and found.f_favail < FEW_INODES and free_bytes > _PIECE_BYTES:
        lacking = "space" if found.f_favail else "inodes"
        free += f" and {found.f_favail:,} inodes, one for each file or directory,"
    msg = f"no {lacking} left in {directory}: {free} are free; give it more room"
    return DiskSpaceError(msg)


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Turn the system's errors into ours; a full disk is one of `directory`, if of no other.

    Raises
    ------
    DiskSpaceError, StorageError
        Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(directory) from error
        where = error.filename or directory
        msg = f"{where}: {error.strerror or error}: the system could not read or write it"
        raise StorageError(msg) from error


def sync(path: Path) -> None:
    """Make sure that a file's content, or a directory's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_writeback(descriptor: int) -> None:
    """Let the system begin to write a file to disk, and do not wait.

    Linux starts to write dirty pages when it is told that they will not be needed; the fsync at
    the end of a run then finds little to do.
    """
    not_needed(descriptor, 0, 0)


def visible(path: Path, seconds: float) -> bool:
    """Whether a published file is there, after waiting for it if it is not.

    Network file systems remember for a while that a name did not exist; listing the directory
    makes them ask again.
    """
    deadline = time.monotonic() + seconds
    pause_seconds = 0.01
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        with suppress(OSError):
            os.listdir(path.parent)  # noqa: PTH208  # for its effect
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, 1.0)
    return True


def write_all(file: BinaryIO, content: bytes | memoryview | NDArray[np.uint8]) -> None:
    """Write bytes to an unbuffered file, however many calls it takes."""
    view = memoryview(content)  # type: ignore[arg-type]  # a buffer, which numpy says from 3.12 on
    while view:
        view = view[file.write(view) :]


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Publish an array in numpy's own format, with a checksum behind it."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=False)
    _save_pieces(path, [content.getbuffer()])


def save_slabs(path: Path, length: int, slabs: Iterable[NDArray[np.int64]]) -> None:
    """The same for an array of int64 that comes in slabs."""
    header = io.BytesIO()
    form = {"descr": "<i8", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, form)
    pieces = (slab.astype("<i8", copy=False).tobytes() for slab in slabs)
    _save_pieces(path, itertools.chain([header.getvalue()], pieces))


def load_array(path: Path) -> NDArray[Any]:
    """Map an array into memory, read-only; its checksum is looked at once per process.

    Raises
    ------
    FragmentError
        It is missing or damaged.
    """
    try:
        found = path.stat()
        if _is_whole(path, found.st_ino, found.st_size, found.st_mtime_ns):
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
    except (FileNotFoundError, ValueError):
        pass
    msg = f"{path} is missing or damaged: something has changed scratch while this ran"
    raise FragmentError(msg)


def file_checksum(file: BinaryIO, n_bytes: int) -> int:
    """crc32c of the next bytes of a file, a few MiB at a time."""
    checksum = 0
    while n_bytes and (piece := file.read(min(n_bytes, _PIECE_BYTES))):
        checksum = google_crc32c.extend(checksum, piece)
        n_bytes -= len(piece)
    return checksum


def _save_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    checksum = 0
    with published(path) as file:
        for piece in pieces:
            write_all(file, piece)
            checksum = google_crc32c.extend(checksum, bytes(piece))
        write_all(file, checksum.to_bytes(_CRC_BYTES, "little"))


@lru_cache(maxsize=64)
def _is_whole(path: Path, _inode: int, n_bytes: int, _mtime_ns: int) -> bool:
    with path.open("rb", buffering=0) as file:
        checksum = file_checksum(file, max(n_bytes - _CRC_BYTES, 0))
        return file.read(_CRC_BYTES + 1) == checksum.to_bytes(_CRC_BYTES, "little")


def save_struct(path: Path, kind: str, value: msgspec.Struct, *, durable: bool = False) -> None:
    """Publish a struct as JSON, after a checksum."""
    text = msgspec.json.encode(value)
    with published(path, kind, durable=durable) as file:
        write_all(file, f"{google_crc32c.value(text):0{_CRC_DIGITS}x}\n".encode() + text)


def load_struct(path: Path, kind: type[T]) -> T | None:
    """Read what `save_struct` wrote; None where it is missing, damaged or of another form."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    checksum, text = content[:_CRC_DIGITS], content[_CRC_DIGITS + 1 :]
    if checksum != f"{google_crc32c.value(text):0{_CRC_DIGITS}x}".encode():
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        return None
