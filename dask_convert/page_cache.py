"""What to tell the system of the files that it keeps in memory; it may take the advice."""

from __future__ import annotations

import os


def will_need(descriptor: int, offset: int, size: int) -> None:
    """Tell the system what will be read soon, so that it is fetched meanwhile; size 0: the rest."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def not_needed(descriptor: int, offset: int, size: int) -> None:
    """Tell the system what will not be read again: its memory may serve others."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
