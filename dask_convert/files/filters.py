"""HDF5's filters: which are let in, where they come from, and how much they can blow up.

HDF5 itself trusts a chunk: one that inflates to more than its data set declares takes the
memory that it takes, and one that inflates to less leaves the rest of the buffer as it was,
whatever that was. So the number of bytes that a chunk *will* become is found first, by what
its format says of itself, and must be the declared one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import deflate
import h5py
import numcodecs
import numpy as np

HEAD_BYTES = 32
"""What `Filter.inflated_bytes` needs of a chunk, unless it needs it all."""


class Filter(NamedTuple):
    """What is known of an HDF5 filter.

    Attributes
    ----------
    name
        As people say it.
    plugin
        Whether it comes with the package hdf5plugin.
    ratio
        Bytes that one stored byte can become at most; None where there is no bound.
    inflated_bytes
        Tells from a stored chunk, the most that it may become and the filter's parameters what
        it will become; -1 if that cannot be told, None for filters that keep the size.
    whole
        Whether that takes the whole chunk, not just its head.
    """

    name: str
    plugin: bool = False
    ratio: int | None = 1
    inflated_bytes: Callable[[bytes, int, tuple[int, ...]], int] | None = None
    whole: bool = False


def _gzip_bytes(encoded: bytes, most: int, _options: tuple[int, ...]) -> int:
    try:
        return len(deflate.zlib_decompress(encoded, most))
    except deflate.DeflateError:
        return -1


def _lzf_bytes(encoded: bytes, _most: int, _options: tuple[int, ...]) -> int:
    from dask_convert.shuffle import scans  # slow to import, and few files need it

    return scans.lzf_bytes(np.frombuffer(encoded, np.uint8))


def _blosc_bytes(encoded: bytes, _most: int, _options: tuple[int, ...]) -> int:
    """Blosc 1: version, versionlz, flags, typesize, then nbytes."""
    return int(struct.unpack_from("<I", encoded, 4)[0])


def _lz4_bytes(encoded: bytes, _most: int, _options: tuple[int, ...]) -> int:
    return int(struct.unpack_from(">Q", encoded)[0])


def _bitshuffle_bytes(encoded: bytes, most: int, options: tuple[int, ...]) -> int:
    compresses = len(options) > 4 and options[4] != 0
    return _lz4_bytes(encoded, most, options) if compresses else most


def _zstd_bytes(encoded: bytes, most: int, _options: tuple[int, ...]) -> int:
    return len(zstd_inflated(encoded, most) or b"") if zstd_content(encoded) == most else -1


def zstd_content(encoded: bytes) -> int:
    """The content size in the header of a zstandard frame (RFC 8878, 3.1.1.1); -1 if it is not."""
    if len(encoded) < 5:
        return -1
    magic, descriptor = struct.unpack_from("<IB", encoded)
    single_segment = descriptor >> 5 & 1
    offset = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    if magic != 0xFD2FB528 or not size:
        return -1
    content = int.from_bytes(encoded[offset : offset + size], "little")
    return content + 256 if size == 2 else content


def zstd_inflated(encoded: bytes, content_bytes: int) -> bytes | None:
    """The content of a zstandard frame, if it is whole and of that size.

    HDF5's own filter (of hdf5plugin 7.1) takes a damaged frame for a good one, and hands out what
    was in memory before.
    """
    if zstd_content(encoded) != content_bytes:
        return None
    try:
        return bytes(numcodecs.Zstd().decode(encoded))
    except RuntimeError:
        return None


FILTERS = {
    h5py.h5z.FILTER_DEFLATE: Filter("gzip", ratio=1100, inflated_bytes=_gzip_bytes, whole=True),
    h5py.h5z.FILTER_SHUFFLE: Filter("shuffle"),
    h5py.h5z.FILTER_FLETCHER32: Filter("fletcher32"),
    h5py.h5z.FILTER_LZF: Filter("lzf", ratio=100, inflated_bytes=_lzf_bytes, whole=True),
    32001: Filter("blosc", plugin=True, ratio=None, inflated_bytes=_blosc_bytes),
    32004: Filter("lz4", plugin=True, ratio=300, inflated_bytes=_lz4_bytes),
    32008: Filter("bitshuffle", plugin=True, ratio=None, inflated_bytes=_bitshuffle_bytes),
    32015: Filter("zstd", plugin=True, ratio=None, inflated_bytes=_zstd_bytes, whole=True),
}
"""The filters that are let in, by their registered numbers. Of others (Blosc2, n-bit, …) it cannot
be told beforehand how much a chunk will become."""


class FilterStep(NamedTuple):
    """A filter of a data set: its number and its parameters."""

    code: int
    options: tuple[int, ...]


def filter_name(code: int) -> str:
    """What a filter is called, or its number."""
    return FILTERS[code].name if code in FILTERS else str(code)


def pipeline(dataset: h5py.Dataset) -> tuple[FilterStep, ...]:
    """The filters of a data set in the order of writing, with their parameters."""
    properties = dataset.id.get_create_plist()
    steps = (properties.get_filter(number) for number in range(properties.get_nfilters()))
    return tuple(FilterStep(int(code), tuple(options)) for code, _, options, _ in steps)


def is_usual(step: FilterStep, itemsize: int) -> bool:
    """Whether a filter has the parameters that HDF5 itself gives it, and undoes it by."""
    if step.code == h5py.h5z.FILTER_SHUFFLE:
        return step.options == (itemsize,)
    return step.code != h5py.h5z.FILTER_DEFLATE or (len(step.options) == 1 and step.options[0] < 10)


def greatest_ratio(steps: tuple[FilterStep, ...]) -> int | None:
    """Bytes that one stored byte of a pipeline can become at most; None: there is no bound."""
    ratio = 1
    for step in steps:
        own = FILTERS[step.code].ratio if step.code in FILTERS else None
        if own is None:
            return None
        ratio *= own
    return ratio


def wrong_size(
    steps: tuple[FilterStep, ...],
    mask: int,
    encoded: bytes,
    stored_bytes: int,
    chunk_bytes: int,
    *,
    is_cut: bool = False,
) -> str | None:
    """What is wrong with the size of a chunk, stored or inflated; None if nothing is.

    Parameters
    ----------
    steps
        The pipeline of its data set.
    mask
        HDF5's filter mask of the chunk: bit ``i`` says that step ``i`` was left out.
    encoded
        The chunk as stored; its first `HEAD_BYTES` do, unless `needs_all` of the pipeline.
    stored_bytes, chunk_bytes
        Its size as stored, and declared.
    is_cut
        Whether it reaches over the end of the data set: writers may have HDF5 leave such chunks
        without their filters, which no mask tells.
    """
    used = [step for number, step in enumerate(steps) if not mask >> number & 1]
    may_be_plain = is_cut and stored_bytes == chunk_bytes
    sizes, size = [], chunk_bytes
    for step in used:
        sizes.append(size)  # before the step, when writing
        size += 4 * (step.code == h5py.h5z.FILTER_FLETCHER32)
    end = stored_bytes
    for step, before in zip(reversed(used), reversed(sizes), strict=True):
        known = FILTERS.get(step.code)
        if known is None:
            return None  # let in by those who asked for it
        if step.code == h5py.h5z.FILTER_FLETCHER32:
            end -= 4
        if known.inflated_bytes is None:
            continue
        try:
            inflated = known.inflated_bytes(encoded[:end], before, step.options)
        except struct.error:
            inflated = -1
        if inflated == before or (inflated < 0 and may_be_plain):
            return None
        became = "cannot be inflated" if inflated < 0 else f"inflates to {inflated} bytes"
        return f"{became}, where {before} bytes are declared"
    if stored_bytes != size and not may_be_plain:
        return f"has {stored_bytes} bytes, where {size} are declared"
    return None


def needs_all(steps: tuple[FilterStep, ...]) -> bool:
    """Whether `wrong_size` needs whole chunks of this pipeline."""
    return any(step.code in FILTERS and FILTERS[step.code].whole for step in steps)


def item_bytes(dataset: h5py.Dataset) -> int:
    """Bytes of an element as stored, which can differ from those in memory."""
    address_bytes, _ = dataset.file.id.get_create_plist().get_sizes()
    return _stored_item_bytes(dataset.id.get_type(), address_bytes)


def _stored_item_bytes(kind: h5py.h5t.TypeID, address_bytes: int) -> int:
    """Bytes of an element of a type; of variable length, that of its place in a heap."""
    number = kind.get_class()
    if number == h5py.h5t.VLEN or (number == h5py.h5t.STRING and kind.is_variable_str()):
        return 4 + int(address_bytes) + 4
    if number == h5py.h5t.ARRAY:
        items = math.prod(kind.get_array_dims())
        return int(items) * _stored_item_bytes(kind.get_super(), address_bytes)
    total = int(kind.get_size())
    if number == h5py.h5t.COMPOUND:
        for field in map(kind.get_member_type, range(kind.get_nmembers())):
            total += _stored_item_bytes(field, address_bytes) - int(field.get_size())
    return total
