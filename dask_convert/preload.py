"""Imported by the process that local workers are forked from: all that they need, made ready.

With it, a worker is there in milliseconds instead of a second or two, and the memory of
libraries and compiled kernels is shared by all of them.
"""

import signal

import distributed.nanny
import distributed.worker
import numpy as np

from dask_convert import kernels, stages


def _load_kernels() -> None:
    """Call the kernels that every conversion of a count matrix uses, on nothing."""
    indices, words = np.empty(0, np.int32), np.empty(0, np.uint32)
    small, row_ends = np.empty(0, np.uint16), np.empty(0, np.int64)
    values = np.empty(0, np.float64)
    kernels.check_indices(indices, 0, indices)
    kernels.count_columns(indices, words)
    kernels.narrow_to_uint16(values, values.view(np.uint64), small)
    kernels.count_descents(indices)
    kernels.scatter_paged(indices, small, words, row_ends, 1, words, words.reshape(0, 0), small)
    kernels.place_paged(small, small.reshape(0, 0), row_ends, 0, 0, indices, small)


_load_kernels()
# A terminal sends Ctrl-C to all processes at once; it is the caller's to answer.
signal.signal(signal.SIGINT, signal.SIG_IGN)

__all__ = ["distributed", "stages"]
