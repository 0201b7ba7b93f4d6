"""Entries of a sparse matrix of either file, read slice by slice, in one way or in two.

    h5ad   h5py
    zarr   `dask_convert.chunks`, and a sample of it zarr-python as well

Of a store, every chunk is fetched, checked and decoded by a reader that shares nothing with what
wrote it, in a third of the time that zarr-python takes. But writer and reader are both ours, and
could be wrong about the format in the same way. So some parts, drawn at random, are read by
zarr-python as well, and must be the same bit by bit. Where our reader does not know the codecs,
zarr-python reads everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_convert.chunks.chunk_reader import ChunkReader
from dask_convert.errors import DamagedStoreError, SourceError, StoreError
from dask_convert.files.hdf5_errors import refuse_transient
from dask_convert.verification.sides import Part, Side, whole_chunks

SLICE_NNZ = 2**17
"""Entries that our own reader reads at once: a chunk of a store of ours, which a cache holds."""


_Entries = tuple[NDArray[Any], NDArray[Any]]


class _Member(NamedTuple):
    """Values or minor indices of a matrix, read in one of the ways."""

    name: str
    chunk_nnz: int
    elements: Callable[[int, int], NDArray[Any]]


class EntryReader:
    """Reads the entries of a part.

    Parameters
    ----------
    side, part
        Whose they are, and which.
    data, indices
        Open; see `sides.open_members`.

    Attributes
    ----------
    library_nnz
        Entries that h5py or zarr-python has read so far.
    """

    def __init__(self, side: Side, part: Part, data: Any, indices: Any) -> None:
        self._side = side
        self._library = [_library_member(side, array) for array in (data, indices)]
        self._direct = _direct_members(side, (data, indices)) if side.store == "zarr" else None
        self._twice = part.twice and self._direct is not None
        one_way = self._direct is not None and not part.twice
        step = whole_chunks(SLICE_NNZ, side.chunk_nnz) if one_way else side.step_nnz
        self._starts = range(part.start, part.stop, step)
        self.library_nnz = 0

    def slices(self) -> Iterator[tuple[int, int]]:
        """Where the slices of the part begin and end, in order."""
        for start in self._starts:
            yield start, min(start + self._starts.step, self._starts.stop)

    def read(self, start: int, stop: int) -> _Entries | list[str]:
        """Values and minor indices of a slice, or what is wrong with them, a line each.

        Raises
        ------
        SourceError
            The h5ad file cannot be read. (The store is what is being judged.)
        StorageError
            The system failed, in a way that may pass.
        """
        found = self._read(self._direct or self._library, start, stop)
        if self._direct is None or self._twice:
            self.library_nnz += stop - start
        if not self._twice or isinstance(found, list):
            return found
        again = self._read(self._library, start, stop)
        if isinstance(again, list):
            return again
        return [
            f"{member.name}, entries {start:,} to {stop - 1:,}: zarr-python reads something else "
            "than dask_convert"
            for member, one, other in zip(self._library, found, again, strict=True)
            if not _same_bits(one, other)
        ] or found

    def _read(self, members: Sequence[_Member], start: int, stop: int) -> _Entries | list[str]:
        try:
            data, indices = (member.elements(start, stop) for member in members)
        except Exception as error:
            what = f"{self._side.name}, entries {start} to {stop}"
            refuse_transient(error, what)
            if self._side.store == "h5ad":
                msg = f"{what}: HDF5 cannot read them: {error}"
                raise SourceError(msg) from error
            lines = [line for member in members for line in _damage(member, start, stop)]
            return lines or [f"{self._side.name}, entries from {start:,}: cannot be read: {error}"]
        return data, indices


def _library_member(side: Side, array: Any) -> _Member:
    name = f"{side.name}/{array.name.rpartition('/')[2]}"
    chunk_nnz = (array.chunks or (1,))[0]
    return _Member(name, chunk_nnz, lambda start, stop: np.asarray(array[start:stop]))


def _direct_members(side: Side, arrays: Sequence[Any]) -> list[_Member] | None:
    """The same for our own reader; None where it does not know how they are stored."""
    members = []
    for array in arrays:
        name = f"{side.name}/{array.basename}"
        try:
            # What writers leave out is the fill value; whether they may, `store_files` tells.
            reader = ChunkReader(array, name, fill_missing=True)
        except StoreError:  # of shards whose index is of another kind
            return None
        if reader.layout.steps is None:
            return None
        members.append(_Member(name, reader.layout.chunk_length, reader.elements))
    return members


def _damage(member: _Member, start: int, stop: int) -> Iterator[str]:
    """The chunks of a slice that cannot be read, a line each."""
    length = member.chunk_nnz
    for low in range(start // length * length, stop, length):
        try:
            member.elements(low, min(low + length, stop))
        except Exception as error:  # noqa: BLE001  (codecs raise what they like)
            what = error.what if isinstance(error, DamagedStoreError) else None
            where = f"{member.name}, chunk {low // length} (entries from {low:,})"
            yield f"{where}: cannot be read: {what or error}"


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    one, other = (side.astype(side.dtype.newbyteorder("="), copy=False) for side in (one, other))
    if one.dtype != other.dtype:
        return False
    word = f"u{min(one.itemsize, 8)}"
    return np.array_equal(one.view(word), other.view(word))
