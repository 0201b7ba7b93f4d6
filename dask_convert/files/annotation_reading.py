"""What HDF5 says of one element: its members, its attributes, how AnnData has encoded it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from dask_convert.errors import AnnotationError
from dask_convert.files.hdf5_errors import reading

_RESERVED_KEYS = {"", ".", "..", "zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
_HDF5_ATTRS = {"DIMENSION_LIST", "REFERENCE_LIST"}  # HDF5's own references between data sets


def members(group: h5py.Group, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the members of a group, following links (`dask_convert.files.admission`: where to)."""
    for key in group:
        where = child_path(path, key)
        try:
            item = group[key]
        except KeyError as error:
            msg = f"{where}: a link to nothing; delete it"
            raise AnnotationError(msg) from error
        yield key, item


def child_path(path: str, key: str) -> str:
    """Join, refusing a key that a zarr store would take for something else."""
    try:
        long = len(key.encode()) > 255
    except UnicodeEncodeError:  # bytes that are no UTF-8
        long = True
    if key in _RESERVED_KEYS or "\\" in key or "/" in key or long:
        msg = f"{path}: the key {key!r} cannot be the name of a zarr element; rename it"
        raise AnnotationError(msg)
    return f"{path}/{key}" if path else key


def encoding_attrs(name: str, version: str) -> dict[str, Any]:
    """The attributes by which AnnData knows an element."""
    return {"encoding-type": name, "encoding-version": version}


def encoding_of(item: Any, path: str) -> tuple[str, str]:
    """An element's encoding and its version; empty strings where it has none."""
    names = ("encoding-type", "encoding-version")
    with reading(f"{path}, attribute 'encoding-type'"):
        kind, version = (plain(item.attrs.get(name, ""), path) for name in names)
    return str(kind), str(version)


def attrs_of(item: Any, path: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """An element's attributes as JSON can hold them."""
    return {key: attr_of(item, path, key) for key in attr_keys(item, without)}


def attr_keys(item: Any, without: tuple[str, ...] = ()) -> list[str]:
    """Names of an element's attributes, but for some and those of HDF5's own."""
    return [key for key in item.attrs if key not in _HDF5_ATTRS and key not in without]


def attr_of(item: Any, path: str, key: str) -> Any:
    """One attribute of an element, as JSON can hold it."""
    where = f"{path}, attribute {key!r}"
    with reading(where):
        return plain(item.attrs[key], where)


def plain(value: Any, where: str) -> Any:
    """Turn the value of an HDF5 attribute into one that JSON can hold."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, bytes):
        return _decoded(value, where)
    if isinstance(value, list):
        return [plain(item, where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"{where}: is {value}, which JSON, and so a zarr attribute, cannot hold; delete it"
        raise AnnotationError(msg)
    if not isinstance(value, str | int | float | bool):
        msg = f"{where}: a value of type {type(value).__name__} cannot be stored in zarr"
        raise AnnotationError(msg)
    return value


def _decoded(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        msg = f"{where}: {value!r} is no UTF-8; write it as such"
        raise AnnotationError(msg) from error


def unknown(path: str, item: Any) -> str:
    """The message about an element of an unknown kind."""
    kind = "group" if isinstance(item, h5py.Group) else "data set"
    name, version = encoding_of(item, path)
    return (
        f"{path}: a {kind} with encoding-type {name!r}, version {version!r}, which dask_convert "
        "cannot copy; rewrite the file with a current anndata, or delete the element"
    )
