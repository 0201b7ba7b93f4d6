"""Whether two elements are stored alike: then whatever reads them reads the same of both.

Nearly everything that a conversion copies is, and telling it needs none of the libraries that
know what elements mean. Of what is stored in another way this says nothing.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import zarr

from dask_convert.verification.arrays import are_arrays, array_difference


def stored_alike(source: Any, target: Any) -> bool:
    """Whether attributes, keys, and all arrays are the same, down to every bit; False in doubt."""
    if _attributes(source) != _attributes(target):
        return False
    if isinstance(source, h5py.Group) and isinstance(target, zarr.Group):
        return set(source) == set(target) and all(
            stored_alike(source[key], target[key]) for key in target
        )
    if are_arrays(source, target):
        return not array_difference("", source, target)
    return _same_scalars(source, target)


def _same_scalars(source: Any, target: Any) -> bool:
    """Whether both are one text, or one number."""
    if getattr(source, "shape", None) != () or getattr(target, "shape", None) != ():
        return False
    if h5py.check_string_dtype(source.dtype) is not None:
        text = np.asarray(target[()]).item()
        return isinstance(text, str) and source.asstr()[()] == text
    if source.dtype.kind not in "biufc":
        return False
    ours, theirs = (np.asarray(side[()]) for side in (source, target))
    ours, theirs = (side.astype(side.dtype.newbyteorder("=")) for side in (ours, theirs))
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def _attributes(element: Any) -> dict[str, Any]:
    return {str(name): _typed(value) for name, value in element.attrs.items()}


def _typed(value: Any) -> Any:
    """An attribute as plain values, each with its type: 1 is neither True nor 1.0."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, list | tuple):
        return [_typed(item) for item in value]
    return type(value), value
