"""Whether elements that are copied hold together: their lengths, and values as they come.

A copy of a matrix whose indptr points nowhere, or of a column that is shorter than its data frame,
would be opened by nobody, or crash whoever does. So it is refused as it is in converted matrices:
by name, and where metadata tell it before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import AnnotationError

ValueCheck = Callable[[NDArray[Any], Any], Any]
"""Is given consecutive values of an array, and what it returned for those before; None at first.

Raises `ValueError`, which says what is wrong.
"""

_MINOR_AXES = {"csr_matrix": 1, "csc_matrix": 0}
_VALUES = {"categorical": "codes"}  # of nullable arrays: "values"
_ALIGNED = {
    "obsm": ("obs",),
    "varm": ("var",),
    "obsp": ("obs", "obs"),
    "varp": ("var", "var"),
    "layers": ("obs", "var"),
    "raw/varm": ("raw/var",),
}
_MATRICES = {"X": ("obs", "var"), "raw/X": ("obs", "raw/var")}


class Structure:
    """What metadata tell of the elements of a store, and whether it fits together."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, path: str, attrs: dict[str, Any], shape: tuple[int, ...] | None) -> None:
        """Note a group, whose shape is None, or an array."""
        if shape is None:
            self._groups[path] = attrs
        else:
            self._shapes[path] = shape

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises
        ------
        AnnotationError
            Names the element, its lengths, and those that it must have.
        """
        for path, attrs in self._groups.items():
            encoding = str(attrs.get("encoding-type", ""))
            if encoding in _MINOR_AXES:
                self._check_sparse(path, attrs, encoding)
            elif encoding == "dataframe":
                self._check_frame(path, attrs)
            elif encoding.startswith("nullable-"):
                self._check_length(f"{path}/mask", self._member(path, "values"), f"{path}/values")
            elif encoding == "categorical":
                self._member(path, "codes")
                self._member(path, "categories")
        for path in (*self._groups, *self._shapes):
            self._check_alignment(path)

    def _check_sparse(self, path: str, attrs: dict[str, Any], encoding: str) -> None:
        shape = attrs.get("shape")
        if not isinstance(shape, list) or not _is_shape(shape):
            msg = f"{path}: attribute 'shape' is {shape!r}: it must be two numbers"
            raise AnnotationError(msg)
        self._check_length(f"{path}/indices", self._member(path, "data"), f"{path}/data")
        n_major = int(shape[1 - _MINOR_AXES[encoding]])
        what = f"a {encoding[:3]} matrix of shape {tuple(shape)}, for its indptr,"
        self._check_length(f"{path}/indptr", (n_major + 1,), what)

    def _check_frame(self, path: str, attrs: dict[str, Any]) -> None:
        index = attrs.get("_index", "_index")
        rows = self._member(path, index)
        columns = attrs.get("column-order") or ()
        for column in [columns] if isinstance(columns, str) else columns:
            self._member(path, column)
            self._check_length(f"{path}/{column}", rows, f"{path}/{index}")

    def _check_alignment(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        axes = _MATRICES.get(path) or (_ALIGNED.get(parent, ()) if name else ())
        shape = self._shape(path)
        for axis, length in zip(axes, shape or (), strict=False):
            rows = self._shape(axis)
            if rows and rows[0] != length:
                msg = (
                    f"{path} has {length} along {axis}, but {axis} has {rows[0]} rows: they must "
                    "agree; one of them was cut short, or is of another file"
                )
                raise AnnotationError(msg)

    def _check_length(self, path: str, expected: tuple[int, ...] | None, other: str) -> None:
        parent, _, name = path.rpartition("/")
        shape = self._member(parent, name)
        if expected and shape and shape[0] != expected[0]:
            msg = (
                f"{path} has {shape[0]} elements, but {other} has {expected[0]}: they must agree; "
                "one of them was cut short; write the element again, or delete it"
            )
            raise AnnotationError(msg)

    def _member(self, path: str, name: Any) -> tuple[int, ...] | None:
        """The shape of what must be there."""
        inner = f"{path}/{name}"
        if inner not in self._groups and inner not in self._shapes:
            msg = f"{path}: has no {name!r}, which it needs; write the element again, or delete it"
            raise AnnotationError(msg)
        return self._shape(inner)

    def _shape(self, path: str) -> tuple[int, ...] | None:
        """Of an array, or of what a group stands for; None if that cannot be told."""
        if path in self._shapes:
            return self._shapes[path]
        attrs = self._groups.get(path, {})
        encoding = str(attrs.get("encoding-type", ""))
        if encoding in _MINOR_AXES:
            return tuple(map(int, attrs["shape"]))
        if encoding == "awkward-array":
            return None if attrs.get("length") is None else (int(attrs["length"]),)
        if encoding == "dataframe":
            rows = self._shape(f"{path}/{attrs.get('_index', '_index')}")
            return rows and rows[:1]
        if encoding in _VALUES or encoding.startswith("nullable-"):
            return self._shape(f"{path}/{_VALUES.get(encoding, 'values')}")
        return None


def value_check(group: h5py.Group, attrs: dict[str, Any], key: str) -> ValueCheck | None:
    """What the values of a member of a group must fulfil; None if nothing.

    Parameters
    ----------
    group
        A sparse matrix, categorical or anything else.
    attrs
        Its attributes, in AnnData's present form.
    key
        Of the member.
    """
    encoding = attrs.get("encoding-type")
    if encoding == "categorical" and key == "codes":
        return codes_check(group.get("categories"))
    if encoding not in _MINOR_AXES or not _is_shape(attrs.get("shape")):
        return None
    if key == "indptr":
        nnz = _length(group.get("data"))
        return partial(_check_indptr, length=_length(group["indptr"]), nnz=nnz)
    stop = int(attrs["shape"][_MINOR_AXES[encoding]])
    return partial(_check_bounds, least=0, stop=stop) if key == "indices" else None


def codes_check(categories: Any) -> ValueCheck | None:
    """What the codes of a categorical must fulfil: -1 is a missing value."""
    if isinstance(categories, h5py.Group):  # nullable ones
        categories = categories.get("values")
    if not isinstance(categories, h5py.Dataset):
        return None
    # A single one may be a scalar in old files.
    count = _length(categories) if categories.shape else 1
    return partial(_check_bounds, least=-1, stop=count)


def _check_bounds(values: NDArray[Any], last: Any, *, least: int, stop: int) -> Any:
    if values.size and (int(values.min()) < least or int(values.max()) >= stop):
        wrong = values.ravel()[(values.ravel() < least) | (values.ravel() >= stop)][0]
        msg = f"holds {wrong}, and {least} to {stop - 1} are all that there can be"
        raise ValueError(msg)
    return last


def _check_indptr(values: NDArray[Any], last: Any, *, length: int, nnz: int) -> Any:
    """Let it ascend from 0 to nnz; `last` is the number of elements so far and the last one."""
    count, before = last or (0, 0)
    if not count and values.size and values[0] != 0:
        msg = f"begins with {values[0]}, not with 0"
        raise ValueError(msg)
    ends = values.astype(np.int64)
    if (np.diff(ends, prepend=before) < 0).any():
        msg = "descends somewhere: a row or column would have a negative length"
        raise ValueError(msg)
    count += ends.size
    before = int(ends[-1]) if ends.size else before
    if count == length and before > nnz:  # scipy takes no notice of more entries than these
        msg = f"ends with {before}, but there are {nnz} entries only"
        raise ValueError(msg)
    return count, before


def _is_shape(shape: Any) -> bool:
    is_pair = isinstance(shape, list) and len(shape) == 2
    return is_pair and all(
        isinstance(length, int | float) and length == int(length) >= 0 for length in shape
    )


def _length(array: Any) -> int:
    return int(array.shape[0]) if isinstance(array, h5py.Dataset) and array.shape else 0
