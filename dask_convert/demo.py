"""A conversion to look at: makes a file, converts it, checks the result, reads a gene."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dask_convert import api
from dask_convert.conversion.publishing import new_directories
from dask_convert.display import progress, summary
from dask_convert.errors import DaskConvertError, TargetError
from dask_convert.example.synthetic import write_synthetic_h5ad
from dask_convert.options import Options
from dask_convert.planning.sizes import bytes_text


def run_demo(
    directory: Path,
    n_obs: int,
    n_vars: int,
    *,
    memory: str,
    workers: int | None,
    say: Callable[[str], None],
) -> None:
    """Make an example in a new directory and convert it.

    Parameters
    ----------
    directory
        Must not exist.
    n_obs, n_vars
        Shape of the matrix.
    memory, workers
        See `api.convert`.
    say
        Is given each line of the story.

    Raises
    ------
    TargetError
        The directory exists, or cannot be made.
    PlanError
        The memory is no size.
    DaskConvertError
        The result differs from scipy's.
    """
    if directory.exists():
        msg = f"{directory} exists already: name a directory that does not"
        raise TargetError(msg)
    chosen = Options(memory=memory, workers=workers)
    with chosen.place() as found:
        chosen.settings(found)  # refuses what cannot be before an example is made
    with new_directories(directory):
        source, target = directory / "cells.h5ad", directory / "genes.zarr"
        say(f"1. Making {source}: {n_obs:,} cells x {n_vars:,} genes ...")
        nnz = write_synthetic_h5ad(source, n_obs=n_obs, n_vars=n_vars)
        say(f"   {nnz:,} counts, {bytes_text(source.stat().st_size)} on disk")
        say(f"2. Converting it to {target} ...")
        shown = progress.for_terminal()
        result = api.convert(source, target, memory=memory, workers=workers, progress=shown)
        say(summary.of_result(result))
        say("3. Comparing every entry with scipy's conversion ...")
        _compare(source, target)
        say("   equal, bit by bit")
        say("4. Reading one gene with anndata ...")
        say(_read_gene(target))


def _compare(source: Path, target: Path) -> None:
    """Hold the store against anndata and scipy, which read the whole matrix."""
    import anndata
    import zarr

    expected = anndata.read_h5ad(source).X.tocsc()
    stored: Any = zarr.open_group(str(target), mode="r")["X"]
    for member in ("indptr", "indices", "data"):
        got, wanted = np.asarray(stored[member]), getattr(expected, member)
        if not np.array_equal(got, wanted):
            msg = f"{target}: {member} differs from scipy's conversion of {source}"
            raise DaskConvertError(msg)


def _read_gene(target: Path) -> str:
    import anndata
    import pandas as pd
    import zarr

    group: Any = zarr.open_group(str(target), mode="r")
    matrix = anndata.io.sparse_dataset(group["X"])
    genes = pd.Index(anndata.io.read_elem(group["var"]).index)
    number = int(np.argmax(np.diff(np.asarray(group["X"]["indptr"]))))
    started = time.perf_counter()
    column = matrix[:, number]
    milliseconds = 1000 * (time.perf_counter() - started)
    return (
        f"   {genes[number]} is expressed in {column.nnz:,} of {column.shape[0]:,} cells, "
        f"{column.sum():,.0f} counts in all; read in {milliseconds:.1f} ms"
    )
