"""What a run keeps on disk while it works, and how files appear there.

    SCRATCH/plan.json
    SCRATCH/<matrix number>/row_ends.npy           indptr[1:], int64
                            data.chunks.npy        where the chunks lie, if they are read raw
                            indices.chunks.npy
                            block-<number>         fragments of a row block
                            indptr.npy             of the target, after the barrier

Every file is written under a name of its own and then renamed: a name that exists is a file
that is whole, and two attempts at the same task cannot disturb each other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import DiskSpaceError


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


def make_scratch(parent: Path, name: str) -> Path:
    """Make a private directory for one run, under a name that nothing else has.

    Raises
    ------
    DiskSpaceError
        It cannot be made there.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}.scratch-", dir=parent))
    except OSError as error:
        msg = f"cannot make a scratch directory in {parent}: {error.strerror}"
        raise DiskSpaceError(msg) from error


def remove_scratch(directory: Path) -> None:
    """Remove a directory that `make_scratch` made; what is gone already does no harm."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A new file for writing that takes its name only when it is complete.

    Raises
    ------
    DiskSpaceError
        The disk or the quota is full; names the directory and what it has left.
    """
    attempt = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with attempt.open("xb", buffering=0) as file:
            yield file
        attempt.replace(path)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            free = shutil.disk_usage(path.parent).free
            msg = f"no space left in {path.parent}: {free:,} bytes are free; give it more room"
            raise DiskSpaceError(msg) from error
        raise
    finally:
        attempt.unlink(missing_ok=True)


def will_need(descriptor: int, offset: int, size: int) -> None:
    """Tell the system what will be read soon, so that it is fetched meanwhile."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write bytes to an unbuffered file, however many calls it takes."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array so that it appears whole."""
    with published(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def save_slabs(path: Path, length: int, slabs: Iterable[NDArray[np.int64]]) -> None:
    """Write an array of int64 that comes in slabs, so that it appears whole."""
    header = {"descr": "<i8", "fortran_order": False, "shape": (length,)}
    with published(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for slab in slabs:
            write_all(file, slab.astype("<i8", copy=False).tobytes())
