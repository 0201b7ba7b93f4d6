"""Two arrays, slab by slab: a line about the first element that differs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import zarr

SLAB_BYTES = 16 * 2**20
TEXT_BYTES = 256
"""What a text takes in memory, for the size of slabs."""


def are_arrays(source: Any, target: Any) -> bool:
    """Whether these are arrays that `array_difference` can compare: of numbers or of text."""
    return (
        isinstance(source, h5py.Dataset)
        and isinstance(target, zarr.Array)
        and bool(source.shape)
        and not source.dtype.names
        and source.dtype.kind not in "SV"
    )


def array_difference(path: str, source: h5py.Dataset, target: zarr.Array[Any]) -> str:
    """What differs first, in type, shape or any bit of an element, or nothing."""
    if source.shape != target.shape:
        return f"{path}: has shape {target.shape}, not {source.shape}"
    text = h5py.check_string_dtype(source.dtype) is not None
    if text:
        source = source.asstr()
    elif source.dtype.newbyteorder("=") != target.dtype.newbyteorder("="):
        return f"{path}: has type {target.dtype}, not {source.dtype}"
    for slab in _slabs(target.shape, TEXT_BYTES if text else source.dtype.itemsize):
        ours, theirs = np.asarray(source[slab]), np.asarray(target[slab])
        where = first_unequal(ours, theirs, text=text)
        if where is not None:
            at = tuple(int(s.start + i) for s, i in zip(slab, where, strict=True))
            return f"{path}: {theirs[where]!r} at {at}, not {ours[where]!r}"
    return ""


def first_unequal(ours: Any, theirs: Any, *, text: bool) -> tuple[int, ...] | None:
    """Index of the first element that differs in value, or, of numbers, in any bit."""
    if text:
        unequal = ours.astype(object) != theirs.astype(object)
    else:
        bits = [
            np.ascontiguousarray(side.astype(side.dtype.newbyteorder("="), copy=False)).view(
                np.uint8
            )
            for side in (ours, theirs)
        ]
        if np.array_equal(bits[0], bits[1]):
            return None
        unequal = (bits[0] != bits[1]).reshape(*ours.shape, -1).any(axis=-1)
    found = np.argwhere(unequal)
    return tuple(int(i) for i in found[0]) if found.size else None


def _slabs(shape: tuple[int, ...], item_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Blocks of an array of at most `SLAB_BYTES`, as long as the last axes allow."""
    room = max(SLAB_BYTES // item_bytes, 1)
    steps = []
    for length in reversed(shape):
        steps.append(max(min(length, room), 1))
        room = max(room // steps[-1], 1)
    ranges = [range(0, length, step) for length, step in zip(shape, reversed(steps), strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple(
            slice(start, min(start + axis.step, length))
            for start, axis, length in zip(starts, ranges, shape, strict=True)
        )


def unreadable(path: str, error: Exception) -> str:
    """The line about an element that cannot be read."""
    return f"{path}: cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
