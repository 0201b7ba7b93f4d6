"""Chunks of a data set looked at before HDF5 inflates them.

HDF5 takes as much memory as a chunk asks for, and of one that is too short it returns what was in
memory before. So the first bytes of each are read by `pread`, and held against what is declared.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import SourceError
from dask_convert.files.filters import HEAD_BYTES, item_bytes, needs_all, pipeline, wrong_size
from dask_convert.files.hdf5_errors import reading


class ChunkGuard:
    """Checks chunks of a data set before HDF5 inflates them: to what is declared, not less or more.

    Parameters
    ----------
    dataset
        The data set; contiguous, virtual and empty ones have no chunks to check.
    where
        Its name.

    Raises
    ------
    SourceError
        The index of chunks is damaged.
    """

    def __init__(self, dataset: h5py.Dataset, where: str) -> None:
        self._where = where
        self._path = dataset.file.filename
        self._steps = pipeline(dataset)
        self._chunks = np.empty(0, _chunk_dtype(1))
        self._chunk_rows = self._chunk_bytes = 0
        self._shape, self._chunk_shape = dataset.shape, dataset.chunks
        if dataset.chunks and dataset.size:
            self._chunk_rows = dataset.chunks[0]
            self._chunk_bytes = math.prod(dataset.chunks) * item_bytes(dataset)
            with reading(where):
                self._chunks = _chunks(dataset)
        self._rows = self._chunks["start"][:, 0]
        self._checked = 0  # of the chunks, in this order

    def check(self, stop: int | None = None, *, start: int = 0) -> None:
        """Check the chunks that have rows (of the first axis) in a range, each chunk once.

        Raises
        ------
        SourceError
            Names the chunk, its size, and what is declared.
        """
        first = max(self._checked, self._position(start - self._chunk_rows + 1) if start else 0)
        last = len(self._chunks) if stop is None else self._position(stop)
        if first >= last:
            return
        file_bytes = Path(self._path).stat().st_size
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for chunk in self._chunks[first:last]:
                self._check(chunk, descriptor, file_bytes)
        finally:
            os.close(descriptor)
        self._checked = last

    def _position(self, row: int) -> int:
        return int(np.searchsorted(self._rows, row))

    def _check(self, chunk: Any, descriptor: int, file_bytes: int) -> None:
        start, offset, size, mask = chunk.tolist()
        what = f"{self._where}, chunk at {', '.join(map(str, start))}"
        check_extent(what, offset, size, self._chunk_bytes, file_bytes)
        wanted = size if needs_all(self._steps) else min(size, HEAD_BYTES)
        encoded = os.pread(descriptor, wanted, offset)
        sizes = size, self._chunk_bytes
        wrong = wrong_size(self._steps, mask, encoded, *sizes, is_cut=self._is_cut(start))
        if wrong:
            msg = f"{what}: {wrong}: the file is damaged there"
            raise SourceError(msg)

    def _is_cut(self, start: list[int]) -> bool:
        """Whether a chunk reaches over the end of some axis."""
        ends = zip(start, self._chunk_shape, self._shape, strict=True)
        return any(first + length > end for first, length, end in ends)


def _chunk_dtype(n_axes: int) -> np.dtype[np.void]:
    """A row per chunk: there may be millions."""
    start = ("start", "<u8", (n_axes,))
    return np.dtype([start, ("offset", "<u8"), ("stored_bytes", "<u8"), ("filter_mask", "<u4")])


def _chunks(dataset: h5py.Dataset) -> NDArray[np.void]:
    """Where the chunks of a data set begin, on its axes and in the file, by their first row."""
    table = np.empty(dataset.id.get_num_chunks(), _chunk_dtype(dataset.ndim))
    numbers = iter(range(table.size))

    def note(chunk: Any) -> None:
        place = tuple(chunk.chunk_offset), chunk.byte_offset, chunk.size, chunk.filter_mask
        table[next(numbers)] = place

    dataset.id.chunk_iter(note)
    return table[np.argsort(table["start"][:, 0], kind="stable")]


def check_extent(
    what: str, offset: int, stored_bytes: int, chunk_bytes: int, file_bytes: int
) -> None:
    """Refuse a chunk that ends behind the file, or is much longer than what it is to become.

    Raises
    ------
    SourceError
        Says where it lies.
    """
    if offset + stored_bytes > file_bytes:
        msg = (
            f"{what}: lies at bytes {offset} to {offset + stored_bytes}, but the file ends at "
            f"{file_bytes}: it was cut short"
        )
        raise SourceError(msg)
    if stored_bytes > 2 * chunk_bytes + 2**16:
        msg = (
            f"{what}: takes {stored_bytes} bytes, where {chunk_bytes} are declared: the file is "
            "damaged there"
        )
        raise SourceError(msg)
