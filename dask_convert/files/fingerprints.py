"""By what a run recognises the source that an earlier one began with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from dask_convert.errors import SourceError
from dask_convert.files.admission import admit
from dask_convert.files.h5ad import row_end_slabs
from dask_convert.files.hdf5 import reopen_source
from dask_convert.files.hdf5_errors import reading
from dask_convert.files.hdf5_lock import read_chunk
from dask_convert.planning.layout import MatrixSource, Trust

SAMPLED_CHUNKS = 16
SAMPLED_BYTES = 2**16
"""Of a contiguous data set, at each place."""


class MatrixPrint(msgspec.Struct, frozen=True):
    """What one matrix looked like.

    Attributes
    ----------
    layout
        Shape, types, chunks, filters and stored bytes of its members.
    indptr_hash
        Of all of indptr.
    sample_hash
        Of evenly spaced chunks of data and indices, as they are stored.
    """

    layout: MatrixSource
    indptr_hash: str
    sample_hash: str


class FilePrint(msgspec.Struct, frozen=True):
    """What a file looked like from outside."""

    size_bytes: int
    mtime_ns: int


class SourcePrint(msgspec.Struct, frozen=True):
    """What a source looked like.

    Attributes
    ----------
    path, size_bytes, mtime_ns
        The file.
    matrices
        Those to be converted.
    others
        Every other file that it may read, by its true path.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    matrices: tuple[MatrixPrint, ...]
    others: dict[str, FilePrint] = {}


def source_print(
    path: Path, file: h5py.File, matrices: list[MatrixSource], trust: Trust
) -> SourcePrint:
    """Look at a source: metadata, every indptr, and `SAMPLED_CHUNKS` chunks of each member.

    Of other files that it may read, size and time; and samples, where HDF5 tells what lies where:
    not of virtual data sets and external storage.
    """
    own = _file_print(path)
    others = {other: _file_print(Path(other)) for other in _others(file, trust)}
    prints = tuple(
        MatrixPrint(matrix, _indptr_hash(file, matrix), _sample_hash(file, matrix))
        for matrix in matrices
    )
    return SourcePrint(str(path), own.size_bytes, own.mtime_ns, prints, others)


def changed_file(seen: SourcePrint, trust: Trust) -> str | None:
    """The file of a source that is not what it was: by size and time, or else by its content.

    A file that was replaced by one of the same size can have been given its time as well.
    """
    files = {seen.path: FilePrint(seen.size_bytes, seen.mtime_ns), **seen.others}
    changed = next((path for path, before in files.items() if not _is_still(path, before)), None)
    return changed or (None if _looks_alike(seen, trust) else seen.path)


def _looks_alike(seen: SourcePrint, trust: Trust) -> bool:
    path = Path(seen.path)
    layouts = [matrix.layout for matrix in seen.matrices]
    try:
        with reopen_source(path, trust) as file, reading(seen.path):
            return source_print(path, file, layouts, trust) == seen
    except SourceError:
        return False


def _is_still(path: str, before: FilePrint) -> bool:
    try:
        return _file_print(Path(path)) == before
    except OSError:
        return False


def _file_print(path: Path) -> FilePrint:
    found = path.stat()
    return FilePrint(found.st_size, found.st_mtime_ns)


def _others(file: h5py.File, trust: Trust) -> list[str]:
    """The other files that a source may read; looks for them where it may read any."""
    return sorted(admit(file, trust)) if trust.allow_external else []


def _indptr_hash(file: h5py.File, matrix: MatrixSource) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for slab in row_end_slabs(file[matrix.path]["indptr"]):
        digest.update(slab.tobytes())
    return digest.hexdigest()


def _sample_hash(file: h5py.File, matrix: MatrixSource) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for member in ("data", "indices"):
        for content in _samples(file[matrix.path][member]):
            digest.update(content)
    return digest.hexdigest()


def _samples(dataset: h5py.Dataset) -> list[bytes]:
    if dataset.chunks is None:
        return _contiguous_samples(dataset)
    length = dataset.chunks[0]
    n_chunks = -(-dataset.shape[0] // length)
    return [_stored_chunk(dataset, int(number) * length) for number in _spread(n_chunks)]


def _stored_chunk(dataset: h5py.Dataset, start: int) -> bytes:
    with reading(f"{dataset.name.lstrip('/')}, chunk at {start}"):
        return read_chunk(dataset, (start,))


def _contiguous_samples(dataset: h5py.Dataset) -> list[bytes]:
    offset, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    if offset is None:
        return []
    with Path(dataset.file.filename).open("rb", buffering=0) as file:  # a link may have led there
        samples = []
        for number in _spread(-(-size // SAMPLED_BYTES)):
            file.seek(offset + int(number) * SAMPLED_BYTES)
            samples.append(file.read(min(SAMPLED_BYTES, size - int(number) * SAMPLED_BYTES)))
        return samples


def _spread(count: int) -> Any:
    """Up to `SAMPLED_CHUNKS` numbers of ``range(count)``, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLED_CHUNKS)).astype(np.int64))
