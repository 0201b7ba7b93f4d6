"""Columns of a CSC matrix of a store, by position.

    indptr   tells where the entries of each column asked for lie;
    pieces   those intervals, neighbours joined, cut at the borders of chunks;
    groups   the chunks, each read and decoded once, neighbours in one read, several at once,
             while the system fetches the next ones.

What a read holds besides its result is a group of chunks per thread.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from dask_convert.chunks.chunk_reader import ChunkReader
from dask_convert.errors import DamagedStoreError, StoreError
from dask_convert.planning.cores import available_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_NNZ = 2**21
"""Entries of a block where many columns are gone through, unless told otherwise."""

_REMOTE_THREADS = 16
_AHEAD_BYTES = 128 * 2**20  # of decoded chunks that are on their way
_FEW_JOBS = 2  # that take less time than threads take to start

_ADVICE = {
    "csr_matrix": "it is stored cell by cell (CSR), so that reading a gene means reading all of "
    "it; convert the h5ad file that it comes from with `dask-convert convert` (from a CSR store, "
    "make one with anndata.read_zarr(...).write_h5ad(...))",
    "array": "it is dense; read it with anndata.experimental.read_lazy",
}


class Piece(NamedTuple):
    """Elements ``[start, stop)`` of a chunk, and where they go in the result."""

    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class CscReader:
    """Reads columns of one matrix. Can be pickled, and used by several threads.

    Attributes
    ----------
    name
        ``X``, ``layers/NAME`` or ``raw/X``.
    shape
        Number of obs and of vars.
    indptr
        Shape (n_vars + 1,), int64; checked to ascend from 0 to the number of entries.
    data, indices
        Readers of the members.
    threads
        How many read and decode at once.
    """

    name: str
    shape: tuple[int, int]
    indptr: NDArray[np.int64]
    data: ChunkReader
    indices: ChunkReader
    threads: int

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return int(self.indptr[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that are returned: float32 for float16, which scipy lacks."""
        stored = self.data.dtype
        return np.dtype(np.float32) if stored == np.float16 else stored

    def with_threads(self, threads: int) -> CscReader:
        """The same for callers that run several at once."""
        return replace(self, threads=threads)

    def columns(self, positions: NDArray[np.int64]) -> sp.csc_array:
        """Some columns, in the order asked for, repeated ones too.

        Parameters
        ----------
        positions
            In ``[0, n_vars)``.

        Returns
        -------
            Shape (n_obs, len(positions)); entries as stored, with explicit zeros and duplicates.

        Raises
        ------
        DamagedStoreError
            A chunk is missing or damaged, or an entry lies outside of the matrix.
        """
        starts, stops = self.indptr[positions], self.indptr[positions + 1]
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        data = np.empty(indptr[-1], self.data.dtype)
        indices = np.empty(indptr[-1], self.indices.dtype)
        runs = _runs(starts.tolist(), stops.tolist())
        self._fill([(self.data, data), (self.indices, indices)], runs)
        self._check_rows(indices, indptr, positions)
        small = _index_dtype(indices.dtype, data.size)
        members = [data.astype(self.dtype, copy=False)]
        members += [array.astype(small, copy=False) for array in (indices, indptr)]
        return sp.csc_array(tuple(members), shape=(self.shape[0], positions.size))

    def block(self, start: int, stop: int) -> sp.csc_array:
        """The columns ``[start, stop)``."""
        return self.columns(np.arange(start, stop))

    def ranges(self, block_nnz: int = BLOCK_NNZ) -> list[tuple[int, int]]:
        """Column ranges of about equal numbers of entries, which tile the matrix.

        Each ends with the column in which a multiple of whole stored chunks ends, so that two
        neighbours share at most that chunk.

        Parameters
        ----------
        block_nnz
            Entries per range, rounded up to whole chunks of values; a longer column is a range
            by itself.
        """
        chunk_length = self.data.layout.chunk_length
        step = -(-max(block_nnz, 1) // chunk_length) * chunk_length
        targets = np.arange(step, max(self.nnz, step), step)
        borders = np.searchsorted(self.indptr, targets, side="right") - 1
        edges = np.unique([0, *borders, self.shape[1]])
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))

    def parts(self, positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cut a list of columns into lists of bounded numbers of entries."""
        ends = np.cumsum(self.indptr[positions + 1] - self.indptr[positions])
        groups = ends // BLOCK_NNZ
        borders = np.flatnonzero(np.diff(groups)) + 1
        yield from np.split(positions, borders)

    def _fill(
        self, members: list[tuple[ChunkReader, NDArray[Any]]], runs: list[tuple[int, int]]
    ) -> None:
        """Read the runs of both members into the arrays of the result."""
        jobs: list[_Job] = []
        for reader, out in members:
            pieces = _pieces(runs, reader.layout.chunk_length)
            numbers = sorted(pieces)
            reader.expect_indexes(numbers)
            jobs += [_Job(reader, out, pieces, group) for group in reader.groups(numbers)]
        few = len(jobs) <= _FEW_JOBS and not self.data.remote
        _Work(jobs).done_by(1 if few else min(self.threads, len(jobs)))

    def _check_rows(
        self, indices: NDArray[Any], indptr: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> None:
        """Look that every entry lies within the matrix: scipy does not, and would crash."""
        if not indices.size or (indices.min() >= 0 and indices.max() < self.shape[0]):
            return
        entry = int(np.flatnonzero((indices < 0) | (indices >= self.shape[0]))[0])
        column = int(positions[np.searchsorted(indptr, entry, side="right") - 1])
        msg = (
            f"{self.indices.layout.name}: row {indices[entry]} in column {column:,}, but there "
            f"are {self.shape[0]:,} obs; the store is damaged, convert again"
        )
        raise DamagedStoreError(msg)


def open_csc(
    group: Any, name: str, *, fill_missing: bool = False, direct: bool = True
) -> CscReader:
    """A reader of a matrix of a store.

    Parameters
    ----------
    group
        What the store has under the matrix's name: a group, unless it is dense.
    name
        Of the matrix.
    fill_missing, direct
        See `ChunkReader`.

    Raises
    ------
    StoreError
        It is not CSC.
    DamagedStoreError
        A member is missing, or they contradict each other.
    """
    encoding = str(group.attrs.get("encoding-type", ""))
    if encoding != "csc_matrix":
        what = _ADVICE.get(encoding, f"its encoding is {encoding!r}, not 'csc_matrix'")
        msg = f"{group.store_path} cannot be read gene by gene: {what}"
        raise StoreError(msg)
    try:
        arrays = {member: group[member] for member in ("data", "indices", "indptr")}
    except KeyError as error:
        msg = f"{group.store_path} lacks {error}; the store is damaged, convert again"
        raise DamagedStoreError(msg) from error
    readers = {
        member: ChunkReader(array, f"{name}/{member}", fill_missing=fill_missing, direct=direct)
        for member, array in arrays.items()
    }
    shape = tuple(int(length) for length in group.attrs["shape"])
    indptr = readers["indptr"].all_elements().astype(np.int64)
    _check_members(str(group.store_path), shape, indptr, readers)
    threads = _REMOTE_THREADS if readers["data"].remote else available_cores()
    return CscReader(
        name, (shape[0], shape[1]), indptr, readers["data"], readers["indices"], threads
    )


def _check_members(
    where: str, shape: tuple[int, ...], indptr: NDArray[np.int64], readers: dict[str, ChunkReader]
) -> None:
    nnz = readers["data"].layout.length
    if readers["indices"].layout.length != nnz:
        msg = f"{where}: {nnz:,} values, but {readers['indices'].layout.length:,} indices"
        raise DamagedStoreError(msg)
    if readers["indices"].dtype.kind not in "iu":
        msg = f"{where}: indices are {readers['indices'].dtype}, not integers"
        raise DamagedStoreError(msg)
    if indptr.size != shape[1] + 1 or indptr[0] != 0 or indptr[-1] != nnz:
        msg = (
            f"{where}: indptr has {indptr.size:,} elements from {indptr[:1]} to {indptr[-1:]}, not "
            f"{shape[1] + 1:,} from 0 to {nnz:,}"
        )
        raise DamagedStoreError(msg)
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if falls.size:
        msg = f"{where}: indptr falls after position {int(falls[0]):,}"
        raise DamagedStoreError(msg)


def _runs(starts: list[int], stops: list[int]) -> list[tuple[int, int]]:
    """Intervals of entries, one after the other in the result, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for start, stop in zip(starts, stops, strict=True):
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        elif stop > start:
            runs.append((start, stop))
    return runs


def _pieces(runs: list[tuple[int, int]], chunk_length: int) -> dict[int, list[Piece]]:
    """The runs cut at the borders of chunks, by chunk; O(runs + chunks)."""
    pieces: dict[int, list[Piece]] = defaultdict(list)
    place = 0
    for start, stop in runs:
        at = start
        while at < stop:
            number, first = divmod(at, chunk_length)
            last = min(chunk_length, first + stop - at)
            pieces[number].append(Piece(first, last, place))
            place += last - first
            at += last - first
    return pieces


class _Job(NamedTuple):
    """A group of chunks, and where what is wanted of each goes."""

    reader: ChunkReader
    out: NDArray[Any]
    pieces: dict[int, list[Piece]]
    group: list[int]

    @property
    def n_bytes(self) -> int:
        """Of the decoded chunks."""
        return len(self.group) * self.reader.layout.chunk_bytes

    def do(self) -> None:
        """Read the chunks and copy what is wanted into the result."""
        for number, elements in self.reader.read(self.group):
            for start, stop, place in self.pieces[number]:
                self.out[place : place + stop - start] = elements[start:stop]


class _Work:
    """Jobs, each done by the thread that is free first, while the storage fetches the next ones.

    Parameters
    ----------
    jobs
        All of them.
    """

    def __init__(self, jobs: list[_Job]) -> None:
        self._left = deque(jobs)
        self._unasked = islice(jobs, 1, None)  # the first is read at once
        self._room_bytes = _AHEAD_BYTES - sum(job.n_bytes for job in jobs[:1])
        self._lock = threading.Lock()

    def done_by(self, threads: int) -> None:
        """Do all jobs, in this thread and others beside it; the first error ends them."""
        self._expect_more(0)
        if threads <= 1:
            self._do_jobs()
            return
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(self._do_jobs) for _ in range(threads - 1)]
            self._do_jobs()
            for other in others:
                other.result()

    def _do_jobs(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._expect_more(job.n_bytes)
                job.do()
        except BaseException:
            self._left.clear()
            raise

    def _next(self) -> _Job | None:
        try:
            return self._left.popleft()
        except IndexError:
            return None

    def _expect_more(self, n_bytes: int) -> None:
        """Have the next ones fetched, now that so much is not on its way any more."""
        with self._lock:
            self._room_bytes += n_bytes
            jobs: list[_Job] = []
            while self._room_bytes > 0 and (job := next(self._unasked, None)) is not None:
                jobs.append(job)
                self._room_bytes -= job.n_bytes
        for job in jobs:
            job.reader.expect(job.group)


def _index_dtype(stored: np.dtype[Any], nnz: int) -> np.dtype[np.signedinteger]:
    """The type of ``indices`` and ``indptr``: scipy wants one for both, and would copy for it."""
    small = stored == np.int32 and nnz <= np.iinfo(np.int32).max
    return np.dtype(np.int32 if small else np.int64)
