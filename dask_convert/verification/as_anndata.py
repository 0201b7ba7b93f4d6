"""Elements as anndata reads them, on both sides: equal or not. Loading anndata is slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from dask_convert.verification.arrays import first_unequal, unreadable


def same_element(source: Any, target: Any) -> bool:
    """Whether anndata reads the same of both."""
    return _equal(anndata.io.read_elem(source), anndata.io.read_elem(target))


def legacy_differences(
    source: h5py.File, target: zarr.Group, mappings: tuple[str, ...]
) -> Iterator[str]:
    """Compare an old file as `anndata.read_h5ad` understands it, all but X."""
    old = anndata.read_h5ad(Path(source.filename), backed="r")
    try:
        parts = {name: getattr(old, name) for name in ("obs", "var", *mappings)}
        if old.raw is not None:
            parts |= {"raw/var": old.raw.var, "raw/varm": old.raw.varm}
        for name, part in parts.items():
            try:
                copy = anndata.io.read_elem(target[name]) if name in target else {}
                mapping = part if isinstance(part, pd.DataFrame) else _without_csr(name, dict(part))
                copy = copy if isinstance(part, pd.DataFrame) else _without_csr(name, copy)
                same = _equal(mapping, copy)
            except Exception as error:  # noqa: BLE001  (anndata and codecs raise what they like)
                yield unreadable(name, error)
                continue
            if not same:
                yield f"{name}: differs"
    finally:
        old.file.close()


def _without_csr(name: str, mapping: dict[str, Any]) -> dict[str, Any]:
    """Layers but for X, which some versions of anndata have there, and for sparse ones.

    Both are compared elsewhere.
    """
    if name != "layers":
        return mapping
    return {k: item for k, item in mapping.items() if k is not None and not sp.issparse(item)}


def _equal(ours: Any, theirs: Any) -> bool:  # noqa: PLR0911  (one kind after the other)
    """Whether two elements, as anndata reads them, are equal: in type, and in every bit."""
    if isinstance(ours, dict):
        same_keys = isinstance(theirs, dict) and set(ours) == set(theirs)
        return same_keys and all(_equal(item, theirs[key]) for key, item in ours.items())
    if isinstance(ours, pd.DataFrame):
        return _frames_equal(ours, theirs)
    if isinstance(ours, pd.Categorical):
        return _extensions_equal(ours, theirs)
    if isinstance(ours, pd.api.extensions.ExtensionArray) and type(ours) is type(theirs):
        return _extensions_equal(ours, theirs)
    if sp.issparse(ours):
        members = ("data", "indices", "indptr")
        return type(ours) is type(theirs) and all(
            _equal(getattr(ours, member), getattr(theirs, member)) for member in members
        )
    if isinstance(ours, np.ndarray | np.generic | pd.api.extensions.ExtensionArray):
        return _arrays_equal(np.asarray(ours), np.asarray(theirs))
    if type(ours).__module__.startswith("awkward"):
        return bool(ours.to_list() == theirs.to_list() and str(ours.type) == str(theirs.type))
    return type(ours) is type(theirs) and bool(ours == theirs)


def _arrays_equal(ours: Any, theirs: Any) -> bool:
    if ours.shape != theirs.shape:
        return False
    if ours.dtype.kind in "biufcmM" or theirs.dtype.kind in "biufcmM":
        same_type = ours.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
        if not same_type:
            return False
        return first_unequal(ours.reshape(-1), theirs.reshape(-1), text=False) is None
    return bool(ours.tolist() == theirs.tolist())


def _frames_equal(ours: pd.DataFrame, theirs: Any) -> bool:
    try:
        # The types of indexes depend on the reader and, of empty ones, on nothing at all.
        loose = {"check_index_type": False, "check_column_type": False}
        pd.testing.assert_frame_equal(theirs, ours, check_exact=True, **loose)
    except AssertionError:
        return False
    return True


def _extensions_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, pd.Categorical):
        return (
            isinstance(theirs, pd.Categorical)
            and ours.ordered == theirs.ordered
            and ours.categories.dtype == theirs.categories.dtype
            and ours.categories.equals(theirs.categories)
            and np.array_equal(ours.codes, theirs.codes)
        )
    try:
        pd.testing.assert_extension_array_equal(theirs, ours, check_exact=True)
    except AssertionError:
        return False
    return True
