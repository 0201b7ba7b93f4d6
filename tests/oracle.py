"""What must come out, by the slow and obvious way: scipy for the matrix, zarr for reading it.

Everything is compared bit by bit, since −0.0 equals 0 and NaN equals nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray
from strategies import Csr

Csc = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def tocsc(matrix: Csr) -> Csc:
    """Data, indices and indptr of the matrix in CSC, repeated entries in their order."""
    data = matrix.data
    values = data.view(np.uint16) if data.dtype == np.float16 else data  # scipy has no float16
    members = (values, matrix.indices, matrix.indptr)
    columns = sp.csr_array(members, shape=matrix.shape).tocsc()
    return columns.data.view(data.dtype), columns.indices, columns.indptr


def read_csc(target: Path, name: str = "X") -> Csc:
    """The members of a matrix of a store, through zarr-python and nothing else."""
    group = zarr.open_group(target, mode="r")[name]
    return group["data"][:], group["indices"][:], group["indptr"][:]


def bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The values as bytes."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal in type, length and every bit."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(bits(actual), bits(expected))


def assert_converted(target: Path, matrix: Csr, name: str = "X", dtype: str | None = None) -> None:
    """A matrix of the store is the source's, entry by entry, and says so."""
    data, indices, indptr = read_csc(target, name)
    expected_data, expected_indices, expected_indptr = tocsc(matrix)
    assert_same_bits(data, expected_data.astype(dtype or matrix.data.dtype))
    assert_same_bits(indices, expected_indices.astype(np.int32))
    assert_same_bits(indptr, expected_indptr.astype(np.int64))
    attributes = zarr.open_group(target, mode="r")[name].attrs
    assert attributes["encoding-type"] == "csc_matrix"
    assert tuple(attributes["shape"]) == matrix.shape
