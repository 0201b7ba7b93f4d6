"""What HDF5 and h5py raise over a file, told as errors of ours: where it was, who is to blame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dask_convert.errors import TRANSIENT, DaskConvertError, SourceError, StorageError

_ERRNO = re.compile(r"errno = (\d+)")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what h5py raises over a damaged file into an error that says where.

    Raises
    ------
    SourceError
        Instead of whatever came out of HDF5, h5py or the decoding of a name.
    StorageError
        The system failed, in a way that may pass: the file is not to blame.
    """
    try:
        yield
    except DaskConvertError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError) as error:
        refuse_transient(error, where)
        reason = _reason(error)
        msg = f"{where}: cannot be read ({reason}): the file is damaged, or made by something odd"
        raise SourceError(msg) from error


def refuse_transient(error: Exception, where: str) -> None:
    """Raise what is resumable, if the system has failed in a way that may pass.

    Raises
    ------
    StorageError
        It has: what was read is not to blame.
    """
    if _is_transient(error):
        msg = f"{where}: the system could not read it ({_reason(error)})"
        raise StorageError(msg) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_transient(error: BaseException) -> bool:
    """Of this error, or one that has led to it; HDF5 tells the system's number in words alone."""
    told = _ERRNO.search(str(error))
    number = getattr(error, "errno", None) if told is None else int(told[1])
    if number in TRANSIENT or isinstance(error, MemoryError):
        return True
    return error.__cause__ is not None and _is_transient(error.__cause__)
