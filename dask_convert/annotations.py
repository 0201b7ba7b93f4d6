"""Copies everything of an `.h5ad` file that is not a converted matrix into a zarr store.

AnnData's on-disk specification is one for HDF5 and zarr, so elements are copied as they are
stored: group by group and array by array, with their attributes, in slabs of bounded size. No
data frame is ever built, hence no pandas, no type inference, no anndata setting, and memory that
does not grow with the file. Files older than the specification are translated on the way into
what `anndata.read_h5ad` makes of them.

Two steps: `_plan` walks the source and yields a `_Node` for every group and array of the target,
refusing what cannot be copied before anything is written; `_write` then copies one node.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numcodecs
import numpy as np
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.dtype import VariableLengthUTF8

from dask_convert.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import zarr
    from numpy.typing import NDArray

_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
_ROOT = {"X", "obs", "var", "raw", *_MAPPINGS}
_LEGACY_RAW = {"raw.X": "raw/X", "raw.var": "raw/var", "raw.varm": "raw/varm"}
_MOVED = {f"uns/neighbors/{name}": f"obsp/{name}" for name in ("distances", "connectivities")}
#: Groups that the engine writes into as well, which a repeated copy must therefore not empty.
_SHARED = ("", "layers", "raw")
_GROUPS = {
    *(("anndata", "0.1.0"), ("raw", "0.1.0"), ("dict", "0.1.0"), ("categorical", "0.2.0")),
    *(("dataframe", "0.1.0"), ("dataframe", "0.2.0"), ("awkward-array", "0.1.0")),
    *(("csr_matrix", "0.1.0"), ("csc_matrix", "0.1.0"), ("nullable-integer", "0.1.0")),
    *(("nullable-boolean", "0.1.0"), ("nullable-string-array", "0.1.0"), ("", "")),
}
_ARRAYS = {
    *(("array", "0.2.0"), ("string-array", "0.2.0"), ("rec-array", "0.2.0"), ("bytes", "0.2.0")),
    *(("numeric-scalar", "0.2.0"), ("string", "0.2.0"), ("null", "0.1.0"), ("", "")),
}
_RESERVED_KEYS = {"", ".", "..", "zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
_HDF5_ATTRS = {"DIMENSION_LIST", "REFERENCE_LIST"}  # HDF5's own references between data sets

_CHUNK_BYTES = 4 * 2**20  # of an array of two or more axes
_CHUNK_ITEMS = {"numbers": 2**18, "text": 2**16, "records": 2**16}  # of an array of one axis
_NUMBER_COPIES = 4  # a slab as read, its chunks, encoded, and with their checksum
_TEXT_BYTES, _TEXT_COPIES = 256, 5  # of one string: bytes, str, and UTF-8 objects and pointers
_SAMPLE_ITEMS = 1024
_CACHE_BYTES = 8 * 2**20  # of HDF5 2 for one data set, unless the file was opened otherwise
_FIXED_BYTES = 26 * 2**20  # the plan, HDF5's metadata cache, what the allocator keeps per thread

_Kind = Literal["group", "null", "numbers", "text", "records"]


@dataclass(frozen=True, slots=True)
class _Node:
    """One group or array of the target, and where its values come from.

    `field` is the column of a compound data set, and `shape` the shape in the target, which may
    differ from the source's by axes of length one.
    """

    path: str
    kind: _Kind
    attrs: dict[str, Any]
    dataset: Any = None
    field: str | None = None
    shape: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of one value as HDF5 stores it."""
        dtype: np.dtype[Any] = self.dataset.dtype if self.dataset is not None else np.dtype(bool)
        dtype = dtype if self.field is None else dtype[self.field]
        return dtype.base


def copy_annotations(
    source: h5py.File,
    target: zarr.Group,
    *,
    converted: Collection[str],
    slab_bytes: int = 32 * 2**20,
) -> None:
    """Make `target` an AnnData store with all of `source` but the converted matrices.

    Parameters
    ----------
    source
        An open `.h5ad` file, of any version of anndata.
    target
        The root group of a writable store, of zarr format 2 or 3. What a former copy left there
        is overwritten; the converted matrices are not touched.
    converted
        Paths such as ``"X"``, ``"layers/counts"``, ``"raw/X"`` that are left out. Their parent
        groups are made.
    slab_bytes
        Working memory that the copy of one array may take.

    Raises
    ------
    AnnotationError
        If an element cannot be copied faithfully; before anything is written wherever the
        source's metadata tell.
    """
    nodes = deque(_plan(source, frozenset(converted)))
    while nodes:  # An open data set keeps HDF5's chunk cache of up to 8 MiB: let go of it.
        _write(target, nodes.popleft(), slab_bytes)


def annotation_bytes(
    source: h5py.File, converted: Collection[str], *, slab_bytes: int = 32 * 2**20
) -> int:
    """Project the peak memory of `copy_annotations` above that of a process at rest.

    One slab is in memory at a time, so the largest counts, but one of each kind, as what Python's
    allocator holds for strings is of no use for arrays.
    """
    largest = dict.fromkeys(_CHUNK_ITEMS, 0)
    for node in _plan(source, frozenset(converted)):
        if node.kind in largest:
            chunk = math.prod(_chunks(node, slab_bytes)) * _item_bytes(node)
            largest[node.kind] = max(largest[node.kind], chunk + _hdf5_bytes(node))
    return sum(largest.values()) + _FIXED_BYTES


# ---------------------------------------------------------------- the plan: what goes where


def _plan(source: h5py.File, converted: frozenset[str]) -> Iterator[_Node]:
    """Yield the target's groups and arrays, parents first."""
    children = dict(_children(source, ""))
    _check_root(source, children)
    yield _Node("", "group", _attrs(source, "/") | _encoding_attrs("anndata", "0.1.0"))
    if "X" in children:
        yield from _nodes(children["X"], "X", converted)
    categories = _legacy_categories(children)
    for axis in ("obs", "var"):
        yield from _frame(children[axis], axis, categories)
    moved = _moved(source)
    used = {f"uns/{name}_categories" for _, name in categories}
    skipped = converted | used | {*moved, *(_MOVED[path] for path in moved)}
    for name in _MAPPINGS:
        yield from _mapping(children.get(name), name, skipped)
    for path, item in moved.items():
        yield from _nodes(item, _MOVED[path], frozenset())
    yield from _raw(children, converted)


def _check_root(source: h5py.File, children: dict[str, Any]) -> None:
    if _encoding(source, "/") not in {("anndata", "0.1.0"), ("", "")}:
        msg = f"{source.filename}: the root is encoded as {_encoding(source, '/')}, not as anndata"
        raise AnnotationError(msg)
    for name in ("obs", "var"):
        if name not in children:
            msg = f"{source.filename}: there is no {name!r}, so this is no complete AnnData file"
            raise AnnotationError(msg)
    unknown = sorted(set(children) - _ROOT - set(_LEGACY_RAW))
    if unknown:
        msg = (
            f"{source.filename}: the root holds {unknown}, which AnnData does not know and which "
            "would make the target unreadable; move it below 'uns' or delete it"
        )
        raise AnnotationError(msg)
    legacy = sorted(set(children) & set(_LEGACY_RAW))
    if legacy and "raw" in children:
        msg = f"{source.filename}: both 'raw' and the older {legacy} are there; delete one of them"
        raise AnnotationError(msg)


def _raw(children: dict[str, Any], converted: frozenset[str]) -> Iterator[_Node]:
    attrs = _encoding_attrs("raw", "0.1.0")
    parts = {_LEGACY_RAW[name]: item for name, item in children.items() if name in _LEGACY_RAW}
    if raw := children.get("raw"):
        if _encoding(raw, "raw") == ("null", "0.1.0"):
            return
        if not isinstance(raw, h5py.Group):
            raise AnnotationError(_unknown("raw", raw))
        attrs = _attrs(raw, "raw") | attrs
        parts = {f"raw/{key}": item for key, item in _children(raw, "raw")}
        if unknown := sorted(set(parts) - set(_LEGACY_RAW.values())):
            msg = f"{unknown}: 'raw' can hold X, var and varm only; move the others below 'uns'"
            raise AnnotationError(msg)
    if not parts:
        return
    yield _Node("raw", "group", attrs)
    if "raw/X" in parts:
        yield from _nodes(parts["raw/X"], "raw/X", converted)
    if "raw/var" in parts:
        yield from _frame(parts["raw/var"], "raw/var", {})
    yield from _mapping(parts.get("raw/varm"), "raw/varm", converted)


def _moved(source: h5py.File) -> dict[str, Any]:
    """Matrices that anndata before 0.7 kept in `uns`, and that readers move to `obsp`."""
    found = {path: source[path] for path in _MOVED if path in source}
    return {
        path: item
        for path, item in found.items()
        if (isinstance(item, h5py.Dataset) and len(item.shape or ()) == 2)  # noqa: PLR2004
        or "shape" in item.attrs
        or "h5sparse_shape" in item.attrs
    }


def _legacy_categories(children: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Find the categories of (axis, column) that files before anndata 0.7 keep in `uns`."""
    if isinstance(children["obs"], h5py.Group) or not isinstance(children.get("uns"), h5py.Group):
        return {}
    found = {}
    for axis, (key, item) in itertools.product(("obs", "var"), children["uns"].items()):
        name, frame = key.removesuffix("_categories"), children[axis]
        columns = (frame.dtype.names or ())[1:] if isinstance(frame, h5py.Dataset) else ()
        if name != key and name in columns:
            codes = frame.fields(name)[()] if isinstance(item, h5py.Dataset) else np.empty(0)
            if codes.dtype.kind in "iu" and (codes < item.size).all():
                found[axis, name] = item
    return found


def _mapping(item: Any, path: str, skipped: frozenset[str]) -> Iterator[_Node]:
    """Plan a mapping, which may be absent, or one compound data set in an old file."""
    if isinstance(item, h5py.Group):
        yield from _nodes(item, path, skipped)
        return
    yield _Node(path, "group", _encoding_attrs("dict", "0.1.0"))
    if item is not None and not item.dtype.names:
        raise AnnotationError(_unknown(path, item))
    for name in item.dtype.names if item is not None else ():
        yield _leaf(item, _child_path(path, name), field=name)


def _frame(item: Any, path: str, categories: dict[tuple[str, str], Any]) -> Iterator[_Node]:
    """Plan a data frame: a group, or one compound data set in an old file."""
    if isinstance(item, h5py.Group):
        yield from _nodes(item, path, frozenset())
        return
    if not item.dtype.names:
        raise AnnotationError(_unknown(path, item))
    index, *columns = item.dtype.names
    attrs = {"_index": index, "column-order": columns}
    yield _Node(path, "group", attrs | _encoding_attrs("dataframe", "0.2.0"))
    for name in item.dtype.names:
        values = _leaf(item, _child_path(path, name), field=name)
        if (path, name) in categories:
            yield from _categorical(values, categories[path, name], ordered=False)
        else:
            yield values


def _old_frame(group: h5py.Group, path: str) -> Iterator[_Node]:
    """Plan a data frame of version 0.1.0, whose columns refer to their categories."""
    yield _Node(path, "group", _attrs(group, path) | _encoding_attrs("dataframe", "0.2.0"))
    for key, item in _children(group, path):
        if key == "__categories":
            continue
        column = _child_path(path, key)
        if "categories" in item.attrs:
            categories = group[item.attrs["categories"]]
            ordered = bool(categories.attrs.get("ordered", False))
            codes = _leaf(item, column, without=("categories",))
            yield from _categorical(codes, categories, ordered=ordered)
        else:
            yield from _nodes(item, column, frozenset())


def _categorical(codes: _Node, categories: Any, *, ordered: bool) -> Iterator[_Node]:
    attrs = {"ordered": ordered} | _encoding_attrs("categorical", "0.2.0")
    yield _Node(codes.path, "group", attrs)
    yield replace(codes, path=f"{codes.path}/codes")
    values = _leaf(categories, f"{codes.path}/categories", without=("ordered",))
    encoding = "string-array" if values.kind == "text" else "array"
    shape = categories.shape or (1,)
    yield replace(values, shape=shape, attrs=_encoding_attrs(encoding, "0.2.0"))


def _nodes(
    item: Any, path: str, skipped: frozenset[str], ancestors: tuple[Any, ...] = ()
) -> Iterator[_Node]:
    """Plan an element of any kind, and what is below it."""
    if path in skipped:
        return
    if isinstance(item, h5py.Dataset):
        yield _leaf(item, path)
        return
    encoding = _encoding(item, path)
    if not isinstance(item, h5py.Group) or encoding not in _GROUPS:
        raise AnnotationError(_unknown(path, item))
    if item in ancestors:
        msg = f"{path}: a link leads back to {item.name!r}, so that the copy would never end"
        raise AnnotationError(msg)
    if encoding == ("dataframe", "0.1.0"):
        yield from _old_frame(item, path)
        return
    attrs = _group_attrs(item, path)
    encoding = (attrs["encoding-type"], attrs["encoding-version"])
    yield _Node(path, "group", attrs)
    for key, child in _children(item, path):
        where = _child_path(path, key)
        if encoding[0] in {"csr_matrix", "csc_matrix"} and isinstance(child, h5py.Dataset):
            yield replace(_leaf(child, where), attrs=_attrs(child, where))
        elif encoding[0] == "dataframe" and key == attrs.get("_index") and _all_there(child):
            yield _leaf(child["values"], where)
        else:
            yield from _nodes(child, where, skipped, (*ancestors, item))


def _group_attrs(group: h5py.Group, path: str) -> dict[str, Any]:
    """Read the attributes of a group, giving one from before the specification its encoding."""
    attrs, encoding = _attrs(group, path), _encoding(group, path)
    if "h5sparse_format" in attrs:
        attrs["shape"] = attrs.pop("h5sparse_shape")
        encoding = (f"{attrs.pop('h5sparse_format')}_matrix", "0.1.0")
    elif not encoding[0]:
        encoding = ("dict", "0.1.0")
    return attrs | _encoding_attrs(*encoding)


def _all_there(index: Any) -> bool:
    """Whether an index is of the nullable strings that pandas 3 makes of all, but has no null.

    Readers older than anndata 0.11 do not know them, and newer ones read a plain array of strings
    into the very same index, unless it is empty.
    """
    if _encoding(index, index.name) != ("nullable-string-array", "0.1.0"):
        return False
    if "mask" not in index or _plain(index.attrs.get("na-value", ""), index.name) != "NaN":
        return False
    mask = index["mask"][()]
    return bool(mask.size) and not mask.any()


def _leaf(
    dataset: Any, path: str, *, field: str | None = None, without: tuple[str, ...] = ()
) -> _Node:
    """Plan one array: a data set, or the column `field` of a compound one."""
    encoding = _encoding(dataset, path)
    if not isinstance(dataset, h5py.Dataset) or encoding not in _ARRAYS:
        raise AnnotationError(_unknown(path, dataset))
    if dataset.is_virtual or dataset.external:
        msg = f"{path}: its values are in another file; repack the source with h5repack first"
        raise AnnotationError(msg)
    attrs = {} if field else _attrs(dataset, path, without)
    if encoding[0] == "null":
        return _Node(path, "null", attrs)
    if dataset.shape is None:
        raise AnnotationError(_unknown(path, dataset))
    dtype = dataset.dtype if field is None else dataset.dtype[field]
    node = _Node(path, "numbers", attrs, dataset, field, (*dataset.shape, *dtype.shape))
    text = h5py.check_string_dtype(dtype.base)
    if text is not None and (encoding[0] in {"string", "string-array", ""}):
        if not encoding[0] and not field and text == ("ascii", text.length) and text.length:
            # Very old files keep single strings as arrays of one fixed-length string.
            node = replace(node, shape=() if node.shape == (1,) else node.shape)
        kind: _Kind = "text"
        name = "string-array" if node.shape else "string"
    elif dtype.base.names:
        kind, name = "records", "rec-array"
    else:
        kind, name = "numbers", encoding[0] or ("array" if node.shape else "numeric-scalar")
    node = replace(node, kind=kind, attrs=attrs | _encoding_attrs(name, "0.2.0"))
    _check_dtype(node, encoding)
    return node


def _check_dtype(node: _Node, encoding: tuple[str, str]) -> None:
    """Refuse types that zarr has no equal of, and encodings that do not fit their type."""
    dtype, most = node.dtype, {"f": 8, "c": 16}
    if node.kind == "text":
        return
    if node.kind == "records":
        types = [field[0] for field in (dtype.fields or {}).values()]
        fits = encoding[0] in {"rec-array", "array", ""}
        fits &= not any(item.names or item.subdtype for item in types)
        types = [item for item in types if h5py.check_string_dtype(item) is None]
    else:
        types, fits = [dtype], encoding[0] not in {"rec-array", "string", "string-array"}
        fits &= node.dataset.dtype.subdtype is None
    if not fits or any(
        item.kind not in "biufcSMm" or item.itemsize > most.get(item.kind, item.itemsize)
        for item in types
    ):
        msg = (
            f"{node.path}: HDF5 type {dtype} with encoding-type {encoding[0]!r} has no equal in "
            "an AnnData zarr store; convert it to numbers or to a 'string-array' in the source"
        )
        raise AnnotationError(msg)


# ------------------------------------------------------------- reading HDF5's structure


def _children(group: h5py.Group, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the members of a group, following links within the file and no others."""
    for key in group:
        where = _child_path(path, key)
        if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
            msg = f"{where}: a link to another file; copy its content into the source first"
            raise AnnotationError(msg)
        try:
            item = group[key]
        except KeyError as error:
            msg = f"{where}: a link to nothing; delete it"
            raise AnnotationError(msg) from error
        if item.file.filename != group.file.filename:
            msg = f"{where}: a link that leads into another file, {item.file.filename}"
            raise AnnotationError(msg)
        yield key, item


def _child_path(path: str, key: str) -> str:
    """Join, refusing a key that a zarr store would take for something else."""
    if key in _RESERVED_KEYS or "\\" in key or "/" in key or len(key.encode()) > 255:  # noqa: PLR2004
        msg = f"{path}: the key {key!r} cannot be the name of a zarr element; rename it"
        raise AnnotationError(msg)
    return f"{path}/{key}" if path else key


def _encoding_attrs(name: str, version: str) -> dict[str, Any]:
    return {"encoding-type": name, "encoding-version": version}


def _encoding(item: Any, path: str) -> tuple[str, str]:
    names = ("encoding-type", "encoding-version")
    kind, version = (_plain(item.attrs.get(name, ""), path) for name in names)
    return str(kind), str(version)


def _attrs(item: Any, path: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        key: _plain(item.attrs[key], f"{path}, attribute {key!r}")
        for key in item.attrs
        if key not in _HDF5_ATTRS and key not in without
    }


def _plain(value: Any, where: str) -> Any:
    """Turn the value of an HDF5 attribute into one that JSON can hold."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if not isinstance(value, str | int | float | bool):
        msg = f"{where}: a value of type {type(value).__name__} cannot be stored in zarr"
        raise AnnotationError(msg)
    return value


def _unknown(path: str, item: Any) -> str:
    kind = "group" if isinstance(item, h5py.Group) else "data set"
    name, version = _encoding(item, path)
    return (
        f"{path}: a {kind} with encoding-type {name!r}, version {version!r}, which dask_convert "
        "cannot copy; rewrite the file with a current anndata, or delete the element"
    )


# ---------------------------------------------------------------- copying one node


def _write(target: zarr.Group, node: _Node, slab_bytes: int) -> None:
    if node.kind == "group":
        if node.path in _SHARED:
            group = target.require_group(node.path) if node.path else target
            group.attrs.update(node.attrs)
        else:
            target.create_group(node.path, overwrite=True, attributes=node.attrs)
        return
    if node.kind == "null":
        _create(target, node, np.dtype(bool), ())[...] = False
        return
    chunks = _chunks(node, slab_bytes)
    steps = [range(0, length, step) for length, step in zip(node.shape, chunks, strict=True)]
    slices = [
        tuple(slice(start, start + step) for start, step in zip(starts, chunks, strict=True))
        for starts in itertools.product(*steps)
    ]
    try:
        dtype = _target_dtype(node, slices)
        array = _create(target, node, dtype, chunks)
        for selection in slices:
            _write_slab(array, node, selection, dtype)
    except (TypeError, ValueError) as error:
        msg = f"{node.path}: cannot be copied to zarr as {node.attrs}: {error}"
        raise AnnotationError(msg) from error


def _values(node: _Node, selection: tuple[slice, ...]) -> NDArray[Any]:
    """Read a part of a node."""
    axes = len(node.dataset.shape)
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


def _write_slab(array: Any, node: _Node, selection: tuple[slice, ...], dtype: Any) -> None:
    values = _values(node, selection)
    if node.kind == "records":
        records = np.empty(values.shape, dtype)
        for name in dtype.names:
            column = values[name]
            records[name] = _text(column) if dtype[name].kind == "U" else column
        values = records
    array[selection or ...] = values


def _target_dtype(node: _Node, slices: list[tuple[slice, ...]]) -> Any:
    """Choose the data type in zarr; for strings in records, the longest one has to be known."""
    if node.kind == "text":
        return VariableLengthUTF8()
    if node.kind == "numbers":
        return _native(node.dtype)
    lengths = dict.fromkeys(_variable_fields(node.dtype), 1)
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


def _create(target: zarr.Group, node: _Node, dtype: Any, chunks: tuple[int, ...]) -> Any:
    """Create the array of a node, every chunk of which carries a checksum."""
    options: dict[str, Any] = {}
    if target.metadata.zarr_format == 3:  # noqa: PLR2004
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


def _chunks(node: _Node, slab_bytes: int) -> tuple[int, ...]:
    """Choose the chunks of an array, which are also the slabs in which it is copied.

    In two or more axes, a chunk is a whole number of the source's chunks where those are small
    enough, so that each is inflated once, and else a run of rows.
    """
    axes, full = len(node.shape), [max(1, length) for length in node.shape]
    slab_items = max(1, slab_bytes // _item_bytes(node))
    chunk_items, base = _CHUNK_ITEMS[node.kind], (1,) * axes
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


def _hdf5_bytes(node: _Node) -> int:
    """Project what HDF5 holds of an open data set: its chunk cache, and a chunk being inflated."""
    if not node.dataset.chunks:
        return 0
    chunk = math.prod(node.dataset.chunks) * node.dataset.dtype.itemsize
    return 2 * int(chunk) + min(_CACHE_BYTES, math.prod(node.shape) * node.dtype.itemsize)


def _item_bytes(node: _Node) -> int:
    """Project the working memory for one value, strings by the longest of the first ones."""
    if node.kind == "text":
        return _TEXT_BYTES + _TEXT_COPIES * _longest(node.dataset, node.field)
    texts = _variable_fields(node.dtype) if node.kind == "records" else []
    lengths = [_longest(node.dataset, name) for name in texts]
    return _NUMBER_COPIES * (node.dtype.itemsize + 4 * sum(lengths)) + _TEXT_BYTES * len(texts)


def _longest(dataset: Any, field: str | None) -> int:
    source = dataset if field is None else dataset.fields(field)
    values = np.asarray(source[:_SAMPLE_ITEMS] if dataset.shape else source[()])
    return max((len(item) for item in values.ravel().tolist()), default=0)
