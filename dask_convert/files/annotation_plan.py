"""What of an `.h5ad` file goes where in a store: a node for every group and array of the target.

Refuses what cannot be copied, by metadata alone, before anything is written. Files older than
AnnData's on-disk specification are translated on the way into what `anndata.read_h5ad` makes of
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import h5py
import numpy as np

from dask_convert.errors import AnnotationError, SourceError
from dask_convert.files.annotation_checks import Structure, codes_check, value_check
from dask_convert.files.annotation_elements import Kind, Node
from dask_convert.files.annotation_reading import (
    attr_keys,
    attr_of,
    attrs_of,
    child_path,
    encoding_attrs,
    encoding_of,
    members,
    plain,
    unknown,
)
from dask_convert.files.chunk_guard import ChunkGuard
from dask_convert.files.hdf5_errors import reading

_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
_ROOT = {"X", "obs", "var", "raw", *_MAPPINGS}
_LEGACY_RAW = {"raw.X": "raw/X", "raw.var": "raw/var", "raw.varm": "raw/varm"}
_MOVED = {f"uns/neighbors/{name}": f"obsp/{name}" for name in ("distances", "connectivities")}
_GROUPS = {
    *(("anndata", "0.1.0"), ("raw", "0.1.0"), ("dict", "0.1.0"), ("categorical", "0.2.0")),
    *(("dataframe", "0.1.0"), ("dataframe", "0.2.0"), ("awkward-array", "0.1.0")),
    *(("csr_matrix", "0.1.0"), ("csc_matrix", "0.1.0"), ("nullable-integer", "0.1.0")),
    *(("nullable-boolean", "0.1.0"), ("nullable-string-array", "0.1.0"), ("", "")),
}
_MATRIX_MEMBERS = {"data", "indices", "indptr"}
_MATRIX_ATTRS = (
    *("encoding-type", "encoding-version", "shape"),
    *("h5sparse_format", "h5sparse_shape"),
)
_ARRAYS = {
    *(("array", "0.2.0"), ("string-array", "0.2.0"), ("rec-array", "0.2.0"), ("bytes", "0.2.0")),
    *(("numeric-scalar", "0.2.0"), ("string", "0.2.0"), ("null", "0.1.0"), ("", "")),
}


def planned_nodes(source: h5py.File, converted: frozenset[str]) -> Iterator[Node]:
    """Yield the groups and arrays of the target but the converted matrices, parents first.

    Raises
    ------
    AnnotationError
        An element cannot be copied or, at the end, does not hold together with others.
    """
    structure = Structure()
    for node in _plan(source, converted):
        structure.add(node.path, node.attrs, None if node.kind == "group" else node.shape)
        yield node
    structure.check()


def nodes_beside(
    source: h5py.File, converted: frozenset[str]
) -> tuple[list[Node], tuple[str, ...]]:
    """Other attributes and members of the groups of converted matrices.

    AnnData reads none of them. So one that cannot be copied is left out, and that is told.

    Returns
    -------
        The nodes, and a line for each that is left out.
    """
    nodes: list[Node] = []
    left_out: list[str] = []
    for path in sorted(converted):
        group = source["raw.X" if path == "raw/X" and "raw.X" in source else path]
        _note_attrs(group, path, _MATRIX_ATTRS, nodes, left_out)
        for key in group:
            if key in _MATRIX_MEMBERS:
                _note_attrs(group[key], f"{path}/{key}", (), nodes, left_out)
                continue
            try:
                where = child_path(path, key)
                with reading(where):
                    item = group[key]
                found = [*_nodes(item, where, frozenset(), (group,))]
            except SourceError as error:
                left_out.append(str(error))
            else:
                nodes += (replace(node, check=None) for node in found)
    return nodes, tuple(left_out)


def _note_attrs(
    item: Any, path: str, without: tuple[str, ...], nodes: list[Node], left_out: list[str]
) -> None:
    """Note the attributes of one group or array, each that can be copied."""
    found = {}
    for key in attr_keys(item, without):
        try:
            found[key] = attr_of(item, path, key)
        except SourceError as error:
            left_out.append(str(error))
    if found:
        nodes.append(Node(path, "attrs", found))


def _plan(source: h5py.File, converted: frozenset[str]) -> Iterator[Node]:
    """Yield the target's groups and arrays, parents first."""
    children = dict(members(source, ""))
    _check_root(source, children)
    yield Node("", "group", attrs_of(source, "/") | encoding_attrs("anndata", "0.1.0"))
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
    if encoding_of(source, "/") not in {("anndata", "0.1.0"), ("", "")}:
        msg = (
            f"{source.filename}: the root is encoded as {encoding_of(source, '/')}, not as anndata"
        )
        raise AnnotationError(msg)
    for name in ("obs", "var"):
        if name not in children:
            msg = f"{source.filename}: there is no {name!r}, so this is no complete AnnData file"
            raise AnnotationError(msg)
    strangers = sorted(set(children) - _ROOT - set(_LEGACY_RAW))
    if strangers:
        msg = (
            f"{source.filename}: the root holds {strangers}, which AnnData does not know and which "
            "would make the target unreadable; move it below 'uns' or delete it"
        )
        raise AnnotationError(msg)
    legacy = sorted(set(children) & set(_LEGACY_RAW))
    if legacy and "raw" in children:
        msg = f"{source.filename}: both 'raw' and the older {legacy} are there; delete one of them"
        raise AnnotationError(msg)


def _raw(children: dict[str, Any], converted: frozenset[str]) -> Iterator[Node]:
    attrs = encoding_attrs("raw", "0.1.0")
    parts = {_LEGACY_RAW[name]: item for name, item in children.items() if name in _LEGACY_RAW}
    if raw := children.get("raw"):
        if encoding_of(raw, "raw") == ("null", "0.1.0"):
            return
        if not isinstance(raw, h5py.Group):
            raise AnnotationError(unknown("raw", raw))
        attrs = attrs_of(raw, "raw") | attrs
        parts = {f"raw/{key}": item for key, item in members(raw, "raw")}
        if strangers := sorted(set(parts) - set(_LEGACY_RAW.values())):
            msg = f"{strangers}: 'raw' can hold X, var and varm only; move the others below 'uns'"
            raise AnnotationError(msg)
    if not parts:
        return
    yield Node("raw", "group", attrs)
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
        if (isinstance(item, h5py.Dataset) and len(item.shape or ()) == 2)
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
            ChunkGuard(frame, axis).check()
            codes = frame.fields(name)[()] if isinstance(item, h5py.Dataset) else np.empty(0)
            if codes.dtype.kind in "iu" and (codes < item.size).all():
                found[axis, name] = item
    return found


def _mapping(item: Any, path: str, skipped: frozenset[str]) -> Iterator[Node]:
    """Plan a mapping, which may be absent, or one compound data set in an old file."""
    if isinstance(item, h5py.Group):
        yield from _nodes(item, path, skipped)
        return
    yield Node(path, "group", encoding_attrs("dict", "0.1.0"))
    if item is not None and encoding_of(item, path) == ("null", "0.1.0"):
        return
    if item is not None and not item.dtype.names:
        raise AnnotationError(unknown(path, item))
    for name in item.dtype.names if item is not None else ():
        yield _leaf(item, child_path(path, name), field=name)


def _frame(item: Any, path: str, categories: dict[tuple[str, str], Any]) -> Iterator[Node]:
    """Plan a data frame: a group, or one compound data set in an old file."""
    if isinstance(item, h5py.Group):
        yield from _nodes(item, path, frozenset())
        return
    if not item.dtype.names:
        raise AnnotationError(unknown(path, item))
    index, *columns = item.dtype.names
    attrs = {"_index": index, "column-order": columns}
    yield Node(path, "group", attrs | encoding_attrs("dataframe", "0.2.0"))
    for name in item.dtype.names:
        values = _leaf(item, child_path(path, name), field=name)
        if (path, name) in categories:
            yield from _categorical(values, categories[path, name], ordered=False)
        else:
            yield values


def _old_frame(group: h5py.Group, path: str) -> Iterator[Node]:
    """Plan a data frame of version 0.1.0, whose columns refer to their categories."""
    yield Node(path, "group", attrs_of(group, path) | encoding_attrs("dataframe", "0.2.0"))
    for key, item in members(group, path):
        if key == "__categories":
            continue
        column = child_path(path, key)
        if "categories" in item.attrs:
            categories = group[item.attrs["categories"]]
            ordered = bool(categories.attrs.get("ordered", False))
            codes = _leaf(item, column, without=("categories",))
            yield from _categorical(codes, categories, ordered=ordered)
        else:
            yield from _nodes(item, column, frozenset())


def _categorical(codes: Node, categories: Any, *, ordered: bool) -> Iterator[Node]:
    attrs = {"ordered": ordered} | encoding_attrs("categorical", "0.2.0")
    yield Node(codes.path, "group", attrs)
    yield replace(codes, path=f"{codes.path}/codes", check=codes_check(categories))
    values = _leaf(categories, f"{codes.path}/categories", without=("ordered",))
    encoding = "string-array" if values.kind == "text" else "array"
    shape = categories.shape or (1,)
    yield replace(values, shape=shape, attrs=encoding_attrs(encoding, "0.2.0"))


def _nodes(
    item: Any, path: str, skipped: frozenset[str], ancestors: tuple[Any, ...] = ()
) -> Iterator[Node]:
    """Plan an element of any kind, and what is below it."""
    if path in skipped:
        return
    if isinstance(item, h5py.Dataset):
        yield _leaf(item, path)
        return
    encoding = encoding_of(item, path)
    if not isinstance(item, h5py.Group) or encoding not in _GROUPS:
        raise AnnotationError(unknown(path, item))
    if item in ancestors:
        msg = f"{path}: a link leads back to {item.name!r}, so that the copy would never end"
        raise AnnotationError(msg)
    if encoding == ("dataframe", "0.1.0"):
        yield from _old_frame(item, path)
        return
    attrs = _group_attrs(item, path)
    encoding = (attrs["encoding-type"], attrs["encoding-version"])
    yield Node(path, "group", attrs)
    for key, child in members(item, path):
        where = child_path(path, key)
        check = value_check(item, attrs, key)
        if encoding[0] in {"csr_matrix", "csc_matrix"} and isinstance(child, h5py.Dataset):
            yield replace(_leaf(child, where), attrs=attrs_of(child, where), check=check)
        elif check is not None:
            yield replace(_leaf(child, where), check=check)
        elif encoding[0] == "dataframe" and key == attrs.get("_index") and _all_there(child):
            yield _leaf(child["values"], where)
        else:
            yield from _nodes(child, where, skipped, (*ancestors, item))


def _group_attrs(group: h5py.Group, path: str) -> dict[str, Any]:
    """Read the attributes of a group, giving one from before the specification its encoding."""
    attrs, encoding = attrs_of(group, path), encoding_of(group, path)
    if "h5sparse_format" in attrs:
        attrs["shape"] = attrs.pop("h5sparse_shape")
        encoding = (f"{attrs.pop('h5sparse_format')}_matrix", "0.1.0")
    elif not encoding[0]:
        encoding = ("dict", "0.1.0")
    return attrs | encoding_attrs(*encoding)


def _all_there(index: Any) -> bool:
    """Whether an index is of the nullable strings that pandas 3 makes of all, but has no null.

    Readers older than anndata 0.11 do not know them, and newer ones read a plain array of strings
    into the very same index, unless it is empty.
    """
    if encoding_of(index, index.name) != ("nullable-string-array", "0.1.0"):
        return False
    if "mask" not in index or plain(index.attrs.get("na-value", ""), index.name) != "NaN":
        return False
    ChunkGuard(index["mask"], index["mask"].name).check()
    mask = index["mask"][()]
    return bool(mask.size) and not mask.any()


def _leaf(
    dataset: Any, path: str, *, field: str | None = None, without: tuple[str, ...] = ()
) -> Node:
    """Plan one array: a data set, or the column `field` of a compound one."""
    encoding = encoding_of(dataset, path)
    if not isinstance(dataset, h5py.Dataset) or encoding not in _ARRAYS:
        raise AnnotationError(unknown(path, dataset))
    attrs = {} if field else attrs_of(dataset, path, without)
    if encoding[0] == "null":
        return Node(path, "null", attrs)
    if dataset.shape is None:
        raise AnnotationError(unknown(path, dataset))
    with reading(path):  # numpy has no integers of three bytes, say
        dtype = dataset.dtype if field is None else dataset.dtype[field]
    node = Node(path, "numbers", attrs, dataset, field, (*dataset.shape, *dtype.shape))
    text = h5py.check_string_dtype(dtype.base)
    if text is not None and (encoding[0] in {"string", "string-array", ""}):
        if not encoding[0] and not field and text == ("ascii", text.length) and text.length:
            # Very old files keep single strings as arrays of one fixed-length string.
            node = replace(node, shape=() if node.shape == (1,) else node.shape)
        kind: Kind = "text"
        name = "string-array" if node.shape else "string"
    elif dtype.base.names:
        kind, name = "records", "rec-array"
    else:
        kind, name = "numbers", encoding[0] or ("array" if node.shape else "numeric-scalar")
    node = replace(node, kind=kind, attrs=attrs | encoding_attrs(name, "0.2.0"))
    _check_dtype(node, encoding)
    return node


def _check_dtype(node: Node, encoding: tuple[str, str]) -> None:
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
