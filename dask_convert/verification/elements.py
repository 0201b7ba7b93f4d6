"""Everything of a file beside its sparse matrices, compared with the store: element by element.

Mappings and data frames are walked, so that one column is in memory at a time, and arrays of
numbers and of text are compared slab by slab. Other elements are equal if they are stored alike,
or if anndata reads the same of both. Files older than anndata's specification are read with
`anndata.read_h5ad` as a whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
import zarr

from dask_convert.verification.alike import stored_alike
from dask_convert.verification.arrays import are_arrays, array_difference, unreadable

_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
_WALKED = {"anndata", "raw", "dict", "dataframe", ""}
_FRAME_ATTRS = ("_index", "column-order")


def element_differences(
    source: h5py.File, target: zarr.Group, matrices: Collection[str]
) -> Iterator[str]:
    """Where a store says something else than its source, a line each.

    Parameters
    ----------
    source, target
        Both files, open; the store without its consolidated metadata.
    matrices
        Elements that are compared elsewhere.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what anndata says of old files is no difference
        if _encoding(source) == "anndata" and isinstance(source.get("obs"), h5py.Group):
            yield from _group_differences("", source, target, frozenset(matrices))
        else:
            from dask_convert.verification.as_anndata import legacy_differences  # slow to load

            yield from legacy_differences(source, target, _MAPPINGS)


def _encoding(element: Any) -> str:
    encoding = element.attrs.get("encoding-type", "")
    return encoding.decode() if isinstance(encoding, bytes) else str(encoding)


def _differences(path: str, source: Any, target: Any, matrices: frozenset[str]) -> Iterator[str]:
    if path in matrices:
        return
    if (
        isinstance(source, h5py.Group)
        and isinstance(target, zarr.Group)
        and _walked((_encoding(source), _encoding(target)))
    ):
        yield from _group_differences(path, source, target, matrices)
        return
    try:
        if are_arrays(source, target):
            where = array_difference(path, source, target)
        else:
            where = "" if _same(source, target) else f"{path}: differs"
    except Exception as error:  # noqa: BLE001  (anndata and codecs raise what they like)
        where = unreadable(path, error)
    if where:
        yield where


def _same(source: Any, target: Any) -> bool:
    with suppress(Exception):  # what cannot be read in this way is anndata's to judge
        if stored_alike(source, target):
            return True
    from dask_convert.verification.as_anndata import same_element  # slow to load

    return same_element(source, target)


def _walked(encodings: tuple[str, str]) -> bool:
    ours, theirs = encodings
    return ours in _WALKED and theirs in {ours, ours or "dict"}


def _group_differences(
    path: str, source: h5py.Group, target: Any, matrices: frozenset[str]
) -> Iterator[str]:
    """Compare a mapping: its keys, and what they stand for."""
    encodings = _encoding(source), _encoding(target)
    if encodings[0] and encodings[0] != encodings[1]:
        yield f"{path or '/'}: is of encoding-type {encodings[1]!r}, not {encodings[0]!r}"
    if encodings[0] == "dataframe":
        yield from _frame_differences(path, source, target)
    keys, copied = set(source), set(target)
    if not path:
        keys -= {key for key in keys & {"raw"} if _encoding(source[key]) == "null"}
        copied -= {key for key in copied & {"raw"} if _encoding(target[key]) == "null"}
        # What every AnnData has may be left out by either, if it is empty.
        keys -= {key for key in keys - copied if key in _MAPPINGS and not len(source[key])}
        copied -= {key for key in copied - keys if key in _MAPPINGS and not len(target[key])}
    elif path == "raw":
        keys -= {key for key in keys - copied if key == "varm" and not len(source[key])}
        copied -= {key for key in copied - keys if key == "varm" and not len(target[key])}
    for key in sorted(keys - copied):
        yield f"{path}/{key}".lstrip("/") + ": is missing in the store"
    for key in sorted(copied - keys):
        yield f"{path}/{key}".lstrip("/") + ": is in the store only"
    for key in sorted(keys & copied):
        inner = f"{path}/{key}" if path else key
        yield from _differences(inner, source[key], target[key], matrices)


def _frame_differences(path: str, source: h5py.Group, target: zarr.Group) -> Iterator[str]:
    for name in _FRAME_ATTRS:
        ours, theirs = (element.attrs.get(name, ()) for element in (source, target))
        if not np.array_equal(_texts(ours), _texts(theirs)):
            yield f"{path}: attribute {name!r} is {theirs!r}, not {ours!r}"


def _texts(value: Any) -> list[str]:
    items = [value] if isinstance(value, str | bytes) else list(value)
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]
