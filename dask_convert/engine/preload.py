"""Imported by the process that local workers are forked from: all that they need, made ready.

With it, a worker is there in milliseconds instead of a second or two, and the memory of
libraries and compiled kernels is shared by all of them.
"""

import gc
import logging
import signal
import sys
from types import TracebackType

# A terminal sends Ctrl-C to all processes at once; it is the caller's to answer.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `worker_start.prepare_workers`
gc.disable()  # imports make a hundred thousand objects and no garbage

import distributed.nanny  # noqa: E402  (after the line above, which is for all that follow)
import distributed.worker  # noqa: E402
import numpy as np  # noqa: E402
from distributed import versions  # noqa: E402
from numcodecs import blosc  # noqa: E402

from dask_convert.engine import attempts  # noqa: E402
from dask_convert.shuffle import kernels, scans  # noqa: E402


def _unless_the_caller_is_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print what ended a worker as it started, unless it was its caller's end."""
    if not issubclass(kind, FileNotFoundError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _load_kernels() -> None:
    """Call the kernels that every conversion of a count matrix uses, on nothing.

    numba imports scipy's linear algebra for its own, and does without where there is none: a
    sixth of the time that all of this takes.
    """
    unneeded = "scipy.linalg"
    sys.modules.setdefault(unneeded, None)  # type: ignore[arg-type]  # makes importing it fail
    small, words, rows, places = (np.empty(0, t) for t in ("u2", "u4", "i4", "i8"))
    values, bits = np.empty(0, np.float64), np.empty(0, np.uint64)
    # What was read from scratch cannot be written to; numba has other types for that.
    records, row_ends = np.frombuffer(b"", np.uint16), np.frombuffer(b"", np.int64)
    page_counts, table, page_ends = small.reshape(0, 0), words.reshape(0, 0), np.zeros(1, np.int64)
    scans.check_and_count(rows, 0, small, 0, page_ends, table)
    scans.count_descents(small)
    scans.narrow_to_uint16(values, bits, np.uint64(0), small)
    scans.find_from(small, 0, words)
    kernels.scatter_paged(small, small, words, places, 1, table, small)
    scans.sum_pages(page_counts, words)
    kernels.place_paged(records, page_counts, 1, places, places, 0, 0, rows, small)
    scans.check_rows(rows, places, places)
    scans.sum_counted_rows(0, row_ends, 0)
    if sys.modules[unneeded] is None:
        del sys.modules[unneeded]


_load_kernels()
# Every worker tells these, and takes 30 ms to find them out; they are remembered. Not all of
# `get_versions`: a process of its own, ``uname``, would be started here.
versions.get_package_info([*versions.required_packages, *versions.optional_packages])
# The caller is given the error of a task, and tells it in a line; a worker would tell it in twenty,
# and as many of a connection that closes because the run has ended.
logging.getLogger("distributed.worker").addFilter(lambda record: record.levelno > logging.ERROR)
# A worker has one thread for its task; left alone, blosc asks at every chunk which one it is in.
blosc.use_threads = False
sys.excepthook = _unless_the_caller_is_gone
# What is imported stays: the garbage collector of a worker need not walk through it, time and
# again, nor copy the shared pages that it would mark.
gc.freeze()
gc.enable()

__all__ = ["attempts", "distributed"]
