"""Imported by the process that local workers are forked from: all that they need, made ready.

With it, a worker is there in milliseconds instead of a second or two, and the memory of
libraries and compiled kernels is shared by all of them.
"""

import gc
import signal
import sys
from types import TracebackType

# A terminal sends Ctrl-C to all processes at once; it is the caller's to answer.
signal.signal(signal.SIGINT, signal.SIG_IGN)
gc.disable()  # imports make a hundred thousand objects and no garbage

import distributed.nanny  # noqa: E402  (after the line above, which is for all that follow)
import distributed.worker  # noqa: E402
import numpy as np  # noqa: E402

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
    indices, words = np.empty(0, np.int32), np.empty(0, np.uint32)
    small, row_ends = np.empty(0, np.uint16), np.empty(0, np.int64)
    values = np.empty(0, np.float64)
    scans.check_indices(indices, 0, indices)
    scans.count_columns(indices, words)
    scans.narrow_to_uint16(values, values.view(np.uint64), small)
    scans.count_descents(indices)
    kernels.scatter_paged(indices, small, words, row_ends, 1, words, words.reshape(0, 0), small)
    scans.check_row_order(indices, row_ends, row_ends)
    scans.sum_rows(indices)
    kernels.place_paged(small, small.reshape(0, 0), row_ends, 0, 0, indices, small)
    if sys.modules[unneeded] is None:
        del sys.modules[unneeded]


_load_kernels()
sys.excepthook = _unless_the_caller_is_gone
# What is imported stays: the garbage collector of a worker need not walk through it, time and
# again, nor copy the shared pages that it would mark.
gc.freeze()
gc.enable()

__all__ = ["attempts", "distributed"]
