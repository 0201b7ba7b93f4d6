"""From a file to a plan: what is in it, how its rows are cut, and what else will be copied.

Needs neither zarr nor dask, which are loaded meanwhile where a run follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py

from dask_convert.errors import PlanError, SourceError
from dask_convert.files.annotations import annotation_needs
from dask_convert.files.h5ad import copied_matrices, csr_matrices, row_index
from dask_convert.files.hdf5 import open_source
from dask_convert.planning.layout import MatrixSource
from dask_convert.planning.planner import conversion_plan
from dask_convert.planning.plans import ConversionPlan, Settings


def plan_conversion(
    source: Path, settings: Settings, matrices: Iterable[str] | None = None
) -> ConversionPlan:
    """Plan the conversion of a file; reads indptr and metadata, writes nothing.

    Parameters
    ----------
    source
        The h5ad file.
    settings
        The user's choices.
    matrices
        Names of the matrices to convert; None for every CSR matrix.

    Raises
    ------
    SourceError
        The file or one of the matrices is not as it must be.
    PlanError
        Settings contradict each other, name what is not there, or ask for too little memory.
    """
    with open_source(source, settings.trust) as file:
        chosen = _chosen(file, matrices)
        names = [matrix.name for matrix in chosen]
        indexed = [(matrix, row_index(file, matrix)) for matrix in chosen]
        needs = annotation_needs(file, names)
        return conversion_plan(
            indexed,
            settings,
            annotation_bytes=needs.memory_bytes,
            copied_bytes=needs.disk_bytes,
            copied=copied_matrices(file, names),
            left_out=needs.left_out,
        )


def _chosen(file: h5py.File, names: Iterable[str] | None) -> list[MatrixSource]:
    """The matrices to convert, in the order of the file."""
    found = csr_matrices(file)
    wanted = [matrix.name for matrix in found] if names is None else list(names)
    available = ", ".join(matrix.name for matrix in found) or "none"
    for name in wanted:
        if name not in {matrix.name for matrix in found}:
            msg = f"{file.filename}: {name!r} is no CSR matrix of this file; there are: {available}"
            raise PlanError(msg)
    if not found and "X" not in file:
        msg = (
            f"{file.filename}: has no CSR matrix, and no X at all: there is nothing to convert; "
            "give a file with X, or with a CSR matrix in layers or raw"
        )
        raise SourceError(msg)
    return [matrix for matrix in found if matrix.name in wanted]
