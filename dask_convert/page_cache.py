"""What to tell the system of the files that it keeps in memory; it may take the advice."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CACHED_SHARE = 1 / 8
"""Of a machine's memory: what is stored in less may stay in the page cache."""


def fills_cache(stored_bytes: int) -> bool:
    """Whether something would take the room in the page cache that fragments need.

    They are read again; Linux would evict whatever is older.
    """
    return stored_bytes >= CACHED_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def will_need(descriptor: int, offset: int, size: int) -> None:
    """Tell the system what will be read soon, so that it is fetched meanwhile; size 0: the rest."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def not_needed(descriptor: int, offset: int, size: int) -> None:
    """Tell the system what will not be read again: its memory may serve others."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def forget(path: Path) -> None:
    """Have the system drop what it holds of a file, and begin to write what is not on the disk yet.

    A file that cannot be opened is left as it is.
    """
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            not_needed(descriptor, 0, 0)
        finally:
            os.close(descriptor)


def forget_below(directory: Path) -> None:
    """Have the system forget what it holds of a directory's files, so that the disk is read.

    Works where the system has `posix_fadvise`, for what has been written out already; what a
    disk or a file server itself keeps in memory is beyond reach.
    """
    for path in directory.rglob("*"):
        forget(path)
