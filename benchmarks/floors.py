"""The floor: every source chunk inflated once, every target chunk encoded once, nothing else.

No conversion with these formats can take less on the same cores. Each of N processes, one per
core, takes a share of the chunks, reads and inflates them with the project's own reader, and
keeps nothing; then it takes a share of the target's chunks, decodes a batch of them (not timed)
and encodes it again with the project's own encoder, checksum included (timed), and writes
nothing. The floor's wall time is the sum of timed seconds over all processes, divided by N:
what a perfect distribution of that work would take.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import psutil
from numpy.typing import NDArray

from dask_convert.files.h5ad import csr_matrices
from dask_convert.files.hdf5 import MemberReader, open_source
from dask_convert.files.hdf5_trial import raw_table
from dask_convert.files.shards import chunk_encoder
from dask_convert.planning.layout import TargetLayout

MEMBERS = ("indices", "data")
BATCH_BYTES = 64 * 2**20
H5PY_ELEMENTS = 8 * 2**20


@dataclass(frozen=True)
class Floor:
    """What inflating and encoding take.

    Attributes
    ----------
    nnz, processes
        Of the matrix; on how many cores.
    inflate_seconds, encode_seconds
        Wall time of each half, evenly distributed.
    inflated_bytes, encoded_bytes
        Of the source as stored, and of the target: the work that was done.
    disk_bytes
        What the first half had to fetch from the disk because no page cache held it.
    """

    nnz: int
    processes: int
    inflate_seconds: float
    encode_seconds: float
    inflated_bytes: int
    encoded_bytes: int
    disk_bytes: int

    @property
    def seconds(self) -> float:
        """Wall time of both."""
        return self.inflate_seconds + self.encode_seconds


class _Share(NamedTuple):
    path: Path
    number: int
    of: int

    def of_items(self, count: int) -> range:
        """The items, of `count`, that belong to this share."""
        return range(count * self.number // self.of, count * (self.number + 1) // self.of)


class _Done(NamedTuple):
    seconds: float
    n_bytes: int
    disk_bytes: int = 0


def floor(source: Path, target: Path, processes: int) -> Floor:
    """Measure the floor of a conversion of ``X`` that has been made.

    Parameters
    ----------
    source, target
        The h5ad file and the store.
    processes
        How many share the work.
    """
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    shares = range(processes)
    with context.Pool(processes, _prepare, (together,)) as pool:
        inflated = pool.map(_inflate, [_Share(source, n, processes) for n in shares], 1)
        encoded = pool.map(_encode, [_Share(target, n, processes) for n in shares], 1)
        pool.close()
        pool.join()
    with h5py.File(source) as file:
        nnz = int(file["X/data"].shape[0])
    return Floor(
        nnz,
        processes,
        sum(done.seconds for done in inflated) / processes,
        sum(done.seconds for done in encoded) / processes,
        sum(done.n_bytes for done in inflated),
        sum(done.n_bytes for done in encoded),
        sum(done.disk_bytes for done in inflated),
    )


def h5py_seconds(source: Path) -> float:
    """Wall time of one read of ``X`` by h5py, nothing kept."""
    started = time.perf_counter()
    with h5py.File(source) as file:
        for member in MEMBERS:
            dataset = file["X"][member]
            for start in range(0, dataset.shape[0], H5PY_ELEMENTS):
                dataset[start : start + H5PY_ELEMENTS]
    return time.perf_counter() - started


def _prepare(together: Any) -> None:
    """Import all that is slow, use one core, and wait until the other processes are as far."""
    import zarr
    from numcodecs import blosc

    blosc.use_threads = False
    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    together.wait()


def _inflate(share: _Share) -> _Done:
    with open_source(share.path) as file:
        matrix = next(found for found in csr_matrices(file) if found.name == "X")
        members = [(m, getattr(matrix, m), file[matrix.path][m]) for m in MEMBERS]
        readers = [
            MemberReader(share.path, f"X/{m}", array, raw_table(dataset, array))
            for m, array, dataset in members
        ]
    disk_before = psutil.Process().io_counters().read_bytes
    started = time.perf_counter()
    for reader, (_, array, _) in zip(readers, members, strict=True):
        length = array.chunk_length or 2**16
        chunks = share.of_items(-(-array.length // length))
        with reader:
            stop = min(chunks.stop * length, array.length)
            for _piece in reader.pieces(chunks.start * length, stop):
                pass
    seconds = time.perf_counter() - started
    disk_bytes = psutil.Process().io_counters().read_bytes - disk_before
    return _Done(seconds, sum(reader.stored_bytes for reader in readers), disk_bytes)


def _encode(share: _Share) -> _Done:
    import zarr

    group: Any = zarr.open_group(str(share.path), mode="r")["X"]
    seconds, n_bytes = 0.0, 0
    for member in MEMBERS:
        array = group[member]
        encode = chunk_encoder(target_layout(array))
        for chunks in _batches(array, share):
            started = time.perf_counter()
            for chunk in chunks:
                n_bytes += len(encode(chunk))
            seconds += time.perf_counter() - started
    return _Done(seconds, n_bytes)


def _batches(array: Any, share: _Share) -> Iterator[NDArray[Any]]:
    """Whole chunks, as rows of arrays of up to 64 MiB; the last one is padded, as when stored."""
    length = array.chunks[0]
    chunks = share.of_items(-(-array.shape[0] // length))
    step = max(BATCH_BYTES // (length * array.dtype.itemsize), 1)
    for first in range(chunks.start, chunks.stop, step):
        stop = min(first + step, chunks.stop)
        batch = np.zeros((stop - first) * length, array.dtype)
        elements = array[first * length : stop * length]
        batch[: elements.size] = elements
        yield batch.reshape(-1, length)


def target_layout(array: Any) -> TargetLayout:
    """How a stored array is cut and encoded, by its metadata."""
    codec: Any = array.compressors[0] if array.compressors else None
    name: Any = getattr(codec, "cname", None)
    if name is not None:  # blosc
        name, level = getattr(name, "value", name), codec.clevel
    elif hasattr(codec, "level"):
        name, level = "gzip", codec.level
    else:
        name, level = "none", 0
    chunk = array.chunks[0]
    shard = array.shards[0] if array.shards else chunk
    return TargetLayout(array.metadata.zarr_format, chunk, shard, name, level)
