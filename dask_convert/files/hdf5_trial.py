"""Whether an array may be read past HDF5: only if some of its chunks come out as HDF5 reads them.

What a file says of its chunks does not always tell all that HDF5 makes of them: a chunk that the
end cuts may have been left without its filters, filters have parameters that nobody expects, and a
damaged description stops HDF5 where a plain read would go on. So the first chunk, the last one and
one between are read in both ways before either is chosen.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import SourceError
from dask_convert.files.chunk_guard import ChunkGuard
from dask_convert.files.hdf5 import MemberReader, chunk_table
from dask_convert.files.hdf5_errors import reading
from dask_convert.files.hdf5_lock import read_chunk
from dask_convert.planning.layout import ArraySource
from dask_convert.planning.records import native_dtype

TRIED_ELEMENTS = 2**16
"""At each place, at most: a chunk may have many more."""


def raw_table(dataset: h5py.Dataset, array: ArraySource) -> NDArray[np.void] | None:
    """Where the chunks of an array lie, if it is to be read without HDF5; else None.

    Parameters
    ----------
    dataset
        The array, in the open source file.
    array
        How it is stored.

    Returns
    -------
        See `hdf5.chunk_table`.

    Raises
    ------
    SourceError
        HDF5 cannot read one of the chunks, or a chunk lies where none can be.
    """
    table = chunk_table(dataset) if array.raw else None
    if table is None or not array.length:
        return table
    name = dataset.name.lstrip("/")
    guard = ChunkGuard(dataset, name)
    with MemberReader(Path(dataset.file.filename), name, array, table) as reader:
        for start, stop in _places(array, table):
            guard.check(stop, start=start)
            with reading(f"{name}, elements {start} to {stop}"):
                if array.chunk_length:
                    read_chunk(dataset, (start,))  # or HDF5 would miss it, and read zeros
                wanted = dataset[start:stop].astype(native_dtype(array.dtype), copy=False)
            if _read(reader, start, stop) != wanted.tobytes():
                return None
    return table


def _places(array: ArraySource, table: NDArray[np.void]) -> list[tuple[int, int]]:
    """The first elements of the first, of a middle and of the last chunk that were written."""
    length = array.chunk_length or TRIED_ELEMENTS
    numbers = np.arange(-(-array.length // length))
    if array.chunk_length:
        numbers = numbers[table["stored_bytes"] > 0]
    chosen = sorted({int(n) for part in (0, numbers.size // 2, -1) for n in numbers[part:][:1]})
    tried = min(length, TRIED_ELEMENTS)
    return [(n * length, min(n * length + tried, array.length)) for n in chosen]


def _read(reader: MemberReader, start: int, stop: int) -> bytes | None:
    try:
        return b"".join(elements.tobytes() for _, elements in reader.pieces(start, stop))
    except SourceError:  # HDF5 has just read it
        return None
