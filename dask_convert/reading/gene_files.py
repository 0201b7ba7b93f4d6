"""Genes written to a file: csv, parquet or npz, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from dask_convert.errors import SelectionError, TargetError

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

Format = Literal["csv", "parquet", "npz"]


def write_csv(frame: pd.DataFrame, file: IO[Any]) -> None:
    """A frame as text, one line per obs, to anything that takes text."""
    frame.to_csv(file, index_label=frame.index.name or "obs")


def save_frame(frame: pd.DataFrame, path: Path, file_format: Format) -> None:
    """A frame as csv or parquet.

    Raises
    ------
    TargetError
        The file exists, or cannot be written.
    SelectionError
        pandas cannot write parquet here, or not with these columns.
    """
    if file_format == "csv":
        _publish(path, lambda partial: frame.to_csv(partial, index_label="obs"))
        return
    try:
        _publish(path, frame.to_parquet)
    except ImportError as error:
        msg = "parquet needs pyarrow: pip install pyarrow, or take --format csv"
        raise SelectionError(msg) from error
    except ValueError as error:
        msg = f"pandas cannot write this as parquet: {error}"
        raise SelectionError(msg) from error


def save_npz(matrix: sp.csc_array, obs: pd.Index, genes: pd.Index, path: Path) -> None:
    """A sparse matrix as ``scipy.sparse.load_npz`` reads it, with ``obs`` and ``genes`` beside.

    Raises
    ------
    TargetError
        The file exists, or cannot be written.
    """

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                format=np.bytes_("csc"),
                shape=np.array(matrix.shape),
                data=matrix.data,
                indices=matrix.indices,
                indptr=matrix.indptr,
                _is_array=np.True_,
                obs=np.asarray(obs, dtype=str),
                genes=np.asarray(genes, dtype=str),
            )

    _publish(path, write)


def _publish(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the path and rename, so that it is there whole or not at all."""
    if path.exists():
        msg = f"{path} exists already; remove it, or name another file"
        raise TargetError(msg)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        msg = f"{path}: cannot be written: {error}"
        raise TargetError(msg) from error
    finally:
        with suppress(OSError):
            partial.unlink()
