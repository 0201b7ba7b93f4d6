"""One element of an `.h5ad` file on its way to zarr: its chunks, its values, what it takes.

`annotation_plan` decides what goes where; here is how a group or an array gets there, in slabs of
bounded size.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numcodecs
import numpy as np

from dask_convert.errors import AnnotationError
from dask_convert.files.annotation_checks import ValueCheck
from dask_convert.files.chunk_guard import ChunkGuard
from dask_convert.files.filters import pipeline
from dask_convert.files.hdf5_errors import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import zarr
    from numpy.typing import NDArray

#: Groups that the engine writes into as well, which a repeated copy must therefore not empty.
_SHARED = ("", "layers", "raw")

_MAX_PATH_BYTES = 4096 - 128  # of Linux, less the names of chunks and of what they are before

_CHUNK_BYTES = 4 * 2**20  # of an array of two or more axes
CHUNK_ITEMS = {"numbers": 2**18, "text": 2**16, "records": 2**16}  # of an array of one axis
_NUMBER_COPIES = 4  # a slab as read, its chunks, encoded, and with their checksum
_TEXT_BYTES, _TEXT_COPIES = 256, 5  # of one string: bytes, str, and UTF-8 objects and pointers
_SAMPLE_ITEMS = 1024
_NODE_BYTES = 2**13  # metadata, twice with the consolidated, and what a file system rounds up
_CACHE_BYTES = 8 * 2**20  # of HDF5 2 for one data set, unless the file was opened otherwise
FIXED_BYTES = 26 * 2**20  # the plan, HDF5's metadata cache, what the allocator keeps per thread

Kind = Literal["group", "attrs", "null", "numbers", "text", "records"]


@dataclass(frozen=True, slots=True)
class Node:
    """One group or array of the target, and where its values come from.

    `field` is the column of a compound data set, and `shape` the shape in the target, which may
    differ from the source's by axes of length one. `check` is what its values must fulfil. Of kind
    ``attrs`` are attributes alone, for what is there already.
    """

    path: str
    kind: Kind
    attrs: dict[str, Any]
    dataset: Any = None
    field: str | None = None
    shape: tuple[int, ...] = ()
    check: ValueCheck | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of one value as HDF5 stores it."""
        dtype: np.dtype[Any] = self.dataset.dtype if self.dataset is not None else np.dtype(bool)
        dtype = dtype if self.field is None else dtype[self.field]
        return dtype.base


# ---------------------------------------------------------------- names in the target


def check_collisions(paths: Iterable[str], target: zarr.Group) -> None:
    """Refuse names that differ by case alone where the target's file system takes them for one.

    Raises
    ------
    AnnotationError
        Names both.
    """
    met: dict[str, str] = {}
    for path in paths:
        other = met.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        root = getattr(target.store, "root", None)
        if other == path or root is None or _kept_apart(Path(root), path, other):
            continue
        msg = f"{path}: the target's file system takes it for {other!r}; rename one of them"
        raise AnnotationError(msg)


def check_lengths(paths: Iterable[str], target: zarr.Group) -> None:
    """Refuse elements whose files would have longer paths than the system allows.

    Raises
    ------
    AnnotationError
        Names one.
    """
    root = len(os.fsencode(str(getattr(target.store, "root", ""))))
    for path in paths:
        if root + len(path.encode()) > _MAX_PATH_BYTES:
            msg = f"{path}: its path in the target would be too long for the system; shorten either"
            raise AnnotationError(msg)


def _kept_apart(directory: Path, one: str, other: str) -> bool:
    """Whether a file system knows two names, whose last parts may differ, from each other."""
    one, other = one.replace("/", "_"), other.replace("/", "_")
    if max(len(one.encode()), len(other.encode())) > 255:
        one, other = "a", "A"
    with tempfile.TemporaryDirectory(dir=directory, prefix=".names-") as place:
        Path(place, one).touch()
        return not Path(place, other).exists()


# ---------------------------------------------------------------- copying one node


def write_node(target: zarr.Group, node: Node, slab_bytes: int) -> None:
    """Copy one group or array, at most `slab_bytes` of it at a time."""
    if node.kind == "group":
        if node.path in _SHARED:
            group = target.require_group(node.path) if node.path else target
            group.attrs.update(node.attrs)
        else:
            target.create_group(node.path, overwrite=True, attributes=node.attrs)
        return
    if node.kind == "attrs":
        target[node.path].attrs.update(node.attrs)
        return
    if node.kind == "null":
        _create(target, node, np.dtype(bool), ())[...] = False
        return
    chunks = array_chunks(node, slab_bytes)
    steps = [range(0, length, step) for length, step in zip(node.shape, chunks, strict=True)]
    slices = [
        tuple(slice(start, start + step) for start, step in zip(starts, chunks, strict=True))
        for starts in itertools.product(*steps)
    ]
    try:
        guard = ChunkGuard(node.dataset, node.path)
        dtype = _target_dtype(node, slices, guard)
        array = _create(target, node, dtype, chunks)
        seen = None
        for selection, values in _slabs(node, slices, guard):
            seen = _checked(node, values, seen)
            array[selection or ...] = (
                _as_stored(values, dtype) if node.kind == "records" else values
            )
    except (TypeError, ValueError) as error:
        msg = f"{node.path}: cannot be copied to zarr as {node.attrs}: {error}"
        raise AnnotationError(msg) from error


def _slabs(
    node: Node, slices: list[tuple[slice, ...]], guard: ChunkGuard
) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Read a node slab by slab; where the source's chunks are larger, each of these once."""
    if not _has_large_chunks(node):
        for selection in slices:
            guard.check(selection[0].stop if selection else None)
            yield selection, _values(node, selection)
        return
    step = slices[0][0].stop if slices else 1
    for first in range(0, node.shape[0], node.dataset.chunks[0]):
        stop = min(first + node.dataset.chunks[0], node.shape[0])
        guard.check(stop)
        chunk = _values(node, (slice(first, stop),))
        for start in range(0, chunk.size, step):
            part = chunk[start : start + step]
            yield (slice(first + start, first + start + part.size),), part


def _has_large_chunks(node: Node) -> bool:
    """Whether HDF5 would inflate a chunk again for each slab, since its cache does not hold it."""
    if node.kind != "numbers" or len(node.shape) != 1 or not node.dataset.chunks:
        return False
    return _chunk_bytes(node) > _CACHE_BYTES


def _chunk_bytes(node: Node) -> int:
    return int(math.prod(node.dataset.chunks)) * int(node.dataset.dtype.itemsize)


def _values(node: Node, selection: tuple[slice, ...]) -> NDArray[Any]:
    """Read a part of a node."""
    axes = len(node.dataset.shape)
    with reading(node.path):
        source = node.dataset if node.field is None else node.dataset.fields(node.field)
        values = np.asarray(source[selection[:axes]])
    if node.field is not None:
        values = values[(slice(None),) * axes + selection[axes:]]
    if node.kind == "text":
        values = _text(values)
    return values if values.ndim == len(node.shape) else values.reshape(node.shape)


def _text(values: NDArray[Any]) -> NDArray[Any]:
    """Decode what h5py reads from strings of fixed or variable length."""
    decoded = [item if isinstance(item, str) else item.decode() for item in values.ravel().tolist()]
    return np.array(decoded, dtype=object).reshape(values.shape)


def _checked(node: Node, values: NDArray[Any], seen: Any) -> Any:
    """Hold the next values against what they must fulfil; see `annotation_checks`."""
    if node.check is None:
        return None
    try:
        return node.check(values, seen)
    except ValueError as error:
        msg = f"{node.path} {error}; write the element again, or delete it"
        raise AnnotationError(msg) from error


def _as_stored(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Records, with strings of the lengths that they have in zarr."""
    records = np.empty(values.shape, dtype)
    for name in dtype.names:
        column = values[name]
        records[name] = _text(column) if dtype[name].kind == "U" else column
    return records


def _target_dtype(node: Node, slices: list[tuple[slice, ...]], guard: ChunkGuard) -> Any:
    """Choose the data type in zarr; for strings in records, the longest one has to be known."""
    if node.kind == "text":
        from zarr.dtype import VariableLengthUTF8

        return VariableLengthUTF8()
    if node.kind == "numbers":
        return _native(node.dtype)
    lengths = dict.fromkeys(_variable_fields(node.dtype), 1)
    if lengths:
        guard.check()
    for selection, name in itertools.product(slices if lengths else [], lengths):
        column = _text(np.asarray(node.dataset.fields(name)[selection]))
        lengths[name] = max(lengths[name], *(len(item) for item in column.ravel()), 1)
    return np.dtype(
        [
            (name, f"U{lengths[name]}" if name in lengths else _native(node.dtype[name]))
            for name in node.dtype.names or ()
        ]
    )


def _variable_fields(dtype: np.dtype[Any]) -> list[str]:
    return [name for name in dtype.names or () if dtype[name].kind == "O"]


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(dtype.str).newbyteorder("=")


def _create(target: zarr.Group, node: Node, dtype: Any, chunks: tuple[int, ...]) -> Any:
    """Create the array of a node, every chunk of which carries a checksum."""
    options: dict[str, Any] = {}
    if target.metadata.zarr_format == 3:
        from zarr.codecs import Crc32cCodec, ZstdCodec

        options["compressors"] = (ZstdCodec(level=3), Crc32cCodec())
    else:
        options["compressors"] = (numcodecs.Zstd(level=3, checksum=True),)
        if node.kind == "text":
            options |= {"filters": (numcodecs.VLenUTF8(),), "fill_value": ""}
    options |= {"config": {"write_empty_chunks": True}, "attributes": node.attrs}
    options |= {"shape": node.shape, "chunks": chunks, "dtype": dtype, "overwrite": True}
    if getattr(dtype, "kind", "") not in {"S", "U", "V"}:
        return target.create_array(node.path, **options)
    # The specification of zarr 3 leaves these types to extensions, of which zarr warns. AnnData's
    # readers need them. The filter is the process's, hence for this one call only.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The data type ")
        return target.create_array(node.path, **options)


# ---------------------------------------------------------------- sizes


def array_chunks(node: Node, slab_bytes: int) -> tuple[int, ...]:
    """Choose the chunks of an array, which are also the slabs in which it is copied.

    In two or more axes, a chunk is a whole number of the source's chunks where those are small
    enough, so that each is inflated once, and else a run of rows.
    """
    axes, full = len(node.shape), [max(1, length) for length in node.shape]
    slab_items = max(1, slab_bytes // item_bytes(node))
    chunk_items, base = CHUNK_ITEMS[node.kind], (1,) * axes
    if axes > 1:
        chunk_items = _CHUNK_BYTES // node.dtype.itemsize
        of_source = node.dataset.chunks or ()
        if len(of_source) == axes and math.prod(of_source) <= slab_items:
            base = of_source
    chunk_items = min(chunk_items, slab_items)
    chunks = [min(step, length) for step, length in zip(base, full, strict=True)]
    for axis in reversed(range(axes)):
        times = max(1, chunk_items // math.prod(chunks))
        chunks[axis] = min(full[axis], chunks[axis] * times)
    return tuple(chunks)


def hdf5_bytes(node: Node) -> int:
    """Project what HDF5 holds of an open data set: its chunk cache, and a chunk being inflated."""
    if not node.dataset.chunks:
        return 0
    copies = 3 if _has_large_chunks(node) else 2
    cache_bytes = min(_CACHE_BYTES, math.prod(node.shape) * node.dtype.itemsize)
    return copies * _chunk_bytes(node) + cache_bytes


def disk_bytes(node: Node) -> int:
    """Project what a node takes in the target at most, with the metadata around it.

    Compressed numbers may take twice as much as in the source, which may have shuffled them.
    """
    if node.dataset is None or node.kind == "null":
        return _NODE_BYTES
    count = math.prod(node.shape)
    if node.kind == "text":
        return _NODE_BYTES + count * (4 + _longest(node.dataset, node.field))
    texts = _variable_fields(node.dtype) if node.kind == "records" else []
    raw = count * (node.dtype.itemsize + 4 * sum(_longest(node.dataset, name) for name in texts))
    if node.kind == "numbers" and node.field is None and pipeline(node.dataset):
        raw = min(raw, 2 * int(node.dataset.id.get_storage_size()))
    return _NODE_BYTES + raw


def item_bytes(node: Node) -> int:
    """Project the working memory for one value, strings by the longest of the first ones."""
    if node.kind == "text":
        return _TEXT_BYTES + _TEXT_COPIES * _longest(node.dataset, node.field)
    texts = _variable_fields(node.dtype) if node.kind == "records" else []
    lengths = [_longest(node.dataset, name) for name in texts]
    return _NUMBER_COPIES * (node.dtype.itemsize + 4 * sum(lengths)) + _TEXT_BYTES * len(texts)


def _longest(dataset: Any, field: str | None) -> int:
    dtype = dataset.dtype if field is None else dataset.dtype[field]
    if dtype.base.kind == "S":
        return int(dtype.base.itemsize)
    ChunkGuard(dataset, dataset.name.lstrip("/")).check(_SAMPLE_ITEMS)
    source = dataset if field is None else dataset.fields(field)
    values = np.asarray(source[:_SAMPLE_ITEMS] if dataset.shape else source[()])
    return max((len(item) for item in values.ravel().tolist()), default=0)
