"""The compiled loops of `dask_convert.shuffle.digests`; they share no loop with the engine's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.shuffle.compiling import kernel

_WINDOW = 128
"""Minor indices that are compared with a border at once: about as many as a run has."""


@kernel
def _mix(z: np.uint64) -> np.uint64:
    """The finaliser of splitmix64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _below(minors: NDArray[np.signedinteger[Any]], border: int) -> int:
    """How many of these ascending indices are less than a border."""
    total = 0
    while total < minors.size:
        window = minors[total : total + _WINDOW]
        below = 0
        for i in range(window.size):
            below += window[i] < border
        total += below
        if below < window.size:
            break
    return total


@kernel
def add_entries(
    minors: NDArray[np.signedinteger[Any]],
    values: NDArray[np.unsignedinteger[Any]],
    first_major: int,
    major_ends: NDArray[np.int64],
    keys: NDArray[np.uint64],
    axes: NDArray[np.int64],
    cells: NDArray[np.uint64],
    noted: NDArray[np.int64],
) -> None:
    """Add entries to their cells; see `Digest.add`. O(n). Ends beyond the entries are cut.

    `axes` has the shifts of the major and the minor axis, and the length of the minor one;
    `cells` is by major group. Runs within a cell are what the slices are for: the compiler
    makes vector code of a loop over them, and of the search for their end where indices ascend,
    which going from entry to entry took longer than all the mixing. `noted` is given descents,
    entries outside, and the major indices of the first and of the last entry.
    """
    minor_shift, n_minor = axes[1], axes[2]
    k = 0
    for number in range(major_ends.size):
        end = min(max(major_ends[number], k), minors.size)
        if end == k:
            continue
        noted[3] = first_major + number
        if k == 0:
            noted[2] = noted[3]
        major = np.uint64(first_major + number)
        base = major * keys[0] + keys[3]
        group = np.int64(major) >> axes[0]
        own = minors[k:end]
        descents = 0
        for i in range(1, own.size):
            descents += own[i] < own[i - 1]
        noted[0] += descents
        in_order = descents == 0 and own[0] >= 0 and own[-1] < n_minor
        while k < end:
            minor = np.int64(minors[k])
            if minor < 0 or minor >= n_minor:
                noted[1] += 1
                k += 1
                continue
            minor_group = minor >> minor_shift
            low = minor_group << minor_shift
            high = min(low + (np.int64(1) << minor_shift), n_minor)
            stop = k + 1
            if in_order:
                stop += _below(minors[stop:end], high)
            while not in_order and stop < end and low <= minors[stop] < high:
                stop += 1
            run, words = minors[k:stop], values[k:stop]
            total = np.uint64(0)
            for i in range(run.size):
                word = np.uint64(words[i])
                word ^= word >> np.uint64(32)
                total += _mix(base + np.uint64(run[i]) * keys[1] + word * keys[2])
            cells[group, minor_group, 0] += total
            cells[group, minor_group, 1] += np.uint64(stop - k)
            k = stop


@kernel
def fold(words: NDArray[np.uint64], keys: NDArray[np.uint64], folded: NDArray[np.uint64]) -> None:
    """Mix pairs of words to one each."""
    for i in range(folded.size):
        folded[i] = _mix(_mix(words[i, 0] * keys[0] + keys[1]) + words[i, 1] * keys[1])
