"""The target's metadata, written with zarr-python once the files of entries are there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from dask_convert.files.shards import blosc_block_bytes, blosc_shuffle
from dask_convert.planning.layout import MatrixSource, TargetLayout
from dask_convert.planning.memory import row_dtype

CREATED_BY = "created_by"
"""Root attribute by which a store of ours is known; others use it, too."""

_CREATOR = "dask_convert "


def describe_matrix(
    root: zarr.Group,
    source: MatrixSource,
    layout: TargetLayout,
    data_dtype: np.dtype[Any],
    indptr: NDArray[np.signedinteger],
) -> None:
    """Write a CSC matrix's metadata, and its indptr, around the files of its entries.

    Parameters
    ----------
    root
        The target.
    source, layout
        What was converted, and how its members are stored.
    data_dtype
        Type of the target's values.
    indptr
        Shape (n_vars + 1,).
    """
    group = root.require_group(source.name)
    group.attrs.update(
        {
            "encoding-type": "csc_matrix",
            "encoding-version": "0.1.0",
            "shape": [source.n_obs, source.n_vars],
        }
    )
    for member, dtype in (("data", data_dtype), ("indices", row_dtype(source.n_obs))):
        group.create_array(
            member,
            shape=(source.nnz,),
            dtype=dtype,
            chunks=(layout.chunk_nnz,),
            shards=(layout.shard_nnz,) if layout.sharded else None,
            compressors=_compressors(layout, dtype.itemsize),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
    stored = group.create_array(
        "indptr",
        shape=indptr.shape,
        dtype=indptr.dtype,
        chunks=indptr.shape,
        compressors=_compressors(layout, indptr.itemsize),
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    stored[:] = indptr


def is_ours(attrs: Any) -> bool:
    """Whether these root attributes, of a store or file, are of one that this tool made."""
    creator = attrs.get(CREATED_BY)
    return isinstance(creator, str) and creator.startswith(_CREATOR)


def made_by_us(target: Path) -> bool:
    """Whether a path is a store that this tool made."""
    try:
        return is_ours(zarr.open_group(str(target), mode="r").attrs)
    except (FileNotFoundError, ValueError, OSError):
        return False


def finalise(root: zarr.Group, version: str) -> None:
    """Mark the store as ours and consolidate its metadata; the last thing written.

    What the source said of who had created it goes on being said.
    """
    source = root.attrs.get(CREATED_BY)
    before = f" of what {source} has created" if source and not is_ours(root.attrs) else ""
    root.attrs[CREATED_BY] = f"{_CREATOR}{version}{before}"
    with warnings.catch_warnings():
        # anndata consolidates zarr v3 stores as well, though the specification is still to come.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", "The data type ")  # as when they were copied
        zarr.consolidate_metadata(root.store)


def _compressors(layout: TargetLayout, itemsize: int) -> Any:
    """The codecs that `dask_convert.files.shards` writes, as zarr-python names them."""
    level, block = layout.codec_level, blosc_block_bytes(layout.codec)
    if layout.zarr_format == 2:
        if layout.codec == "none":
            return None
        if layout.codec == "gzip":
            return numcodecs.GZip(level)
        return numcodecs.Blosc(layout.codec, level, blosc_shuffle(itemsize), block)
    if layout.codec == "none":
        return (Crc32cCodec(),)
    if layout.codec == "gzip":
        return (GzipCodec(level=level), Crc32cCodec())
    shuffle: Literal["bitshuffle", "shuffle"] = "bitshuffle" if itemsize == 1 else "shuffle"
    blosc = BloscCodec(
        cname=layout.codec, clevel=level, shuffle=shuffle, typesize=itemsize, blocksize=block
    )
    return (blosc, Crc32cCodec())
