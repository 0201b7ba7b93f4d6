"""HDF5 by one thread at a time.

The library is not safe for threads. h5py has a lock for it, which its functions take by
themselves, but for those that deal with filter plugins and those that read or write a chunk as it
is stored. Any other thread may be in HDF5 just then, if only to close what it had open when
Python collects its garbage: without the lock files have been seen to be damaged.
"""

from __future__ import annotations

import h5py
from h5py._objects import phil as h5py_lock

__all__ = ["h5py_lock", "read_chunk", "write_chunk"]


def read_chunk(dataset: h5py.Dataset, start: tuple[int, ...]) -> bytes:
    """A chunk as it is stored, by the place of its first element.

    Raises
    ------
    OSError, RuntimeError, ValueError
        It was never written, or cannot be read.
    """
    with h5py_lock:
        return bytes(dataset.id.read_direct_chunk(start)[1])


def write_chunk(dataset: h5py.Dataset, start: tuple[int, ...], content: bytes) -> None:
    """Store a chunk as it is, by the place of its first element."""
    with h5py_lock:
        dataset.id.write_direct_chunk(start, content)
