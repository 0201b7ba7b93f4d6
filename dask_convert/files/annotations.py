"""Copies everything of an `.h5ad` file that is not a converted matrix into a zarr store.

AnnData's on-disk specification is one for HDF5 and zarr, so elements are copied as they are
stored: group by group and array by array, with their attributes, in slabs of bounded size. No
data frame is ever built, hence no pandas, no type inference, no anndata setting, and memory that
does not grow with the file.

    annotation_plan      what goes where: a `Node` for every group and array of the target
    annotation_checks    whether these hold together, by metadata first and then by their values
    annotation_reading   what HDF5 says of one element: members, attributes, encoding
    annotation_elements  one node: its chunks, its copy, what it takes
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import h5py

from dask_convert.files.annotation_elements import (
    CHUNK_ITEMS,
    FIXED_BYTES,
    array_chunks,
    check_collisions,
    check_lengths,
    disk_bytes,
    hdf5_bytes,
    item_bytes,
    write_node,
)
from dask_convert.files.annotation_plan import nodes_beside, planned_nodes
from dask_convert.files.hdf5_errors import reading

if TYPE_CHECKING:
    from collections.abc import Collection

    import zarr


def copy_annotations(
    source: h5py.File,
    target: zarr.Group,
    *,
    converted: Collection[str],
    slab_bytes: int = 32 * 2**20,
) -> None:
    """Make `target` an AnnData store with all of `source` but the converted matrices.

    Parameters
    ----------
    source
        An open `.h5ad` file, of any version of anndata.
    target
        The root group of a writable store, of zarr format 2 or 3. What a former copy left there
        is overwritten; the converted matrices are not touched.
    converted
        Paths such as ``"X"``, ``"layers/counts"``, ``"raw/X"`` that are left out. Their parent
        groups are made.
    slab_bytes
        Working memory that the copy of one array may take.

    Raises
    ------
    AnnotationError
        If an element cannot be copied faithfully; before anything is written wherever the
        source's metadata tell.
    """
    chosen = frozenset(converted)
    with reading(source.filename):
        nodes = deque(planned_nodes(source, chosen))
        nodes += (node for node in nodes_beside(source, chosen)[0] if node.kind != "attrs")
    check_collisions((node.path for node in nodes), target)
    check_lengths((node.path for node in nodes), target)
    while nodes:  # An open data set keeps HDF5's chunk cache of up to 8 MiB: let go of it.
        write_node(target, nodes.popleft(), slab_bytes)


def copy_attributes(source: h5py.File, target: zarr.Group, *, converted: Collection[str]) -> None:
    """Copy attributes of converted matrices that are not AnnData's.

    Parameters
    ----------
    source, converted
        See `copy_annotations`.
    target
        Has the converted matrices with their metadata.
    """
    with reading(source.filename):
        nodes, _ = nodes_beside(source, frozenset(converted))
    for node in nodes:
        if node.kind == "attrs":
            write_node(target, node, 0)


class Needs(NamedTuple):
    """What copying annotations takes.

    Attributes
    ----------
    memory_bytes
        At its peak, above that of a process at rest.
    disk_bytes
        In the target, at most.
    left_out
        A line for each attribute and element that AnnData does not know and zarr cannot hold.
    """

    memory_bytes: int
    disk_bytes: int
    left_out: tuple[str, ...]


def annotation_needs(
    source: h5py.File, converted: Collection[str], *, slab_bytes: int = 32 * 2**20
) -> Needs:
    """Project what `copy_annotations` takes.

    One slab is in memory at a time, so the largest counts, but one of each kind, as what Python's
    allocator holds for strings is of no use for arrays.

    Raises
    ------
    AnnotationError
        See `copy_annotations`.
    """
    chosen = frozenset(converted)
    largest, on_disk = dict.fromkeys(CHUNK_ITEMS, 0), 0
    with reading(source.filename):
        beside, left_out = nodes_beside(source, chosen)
        for node in itertools.chain(planned_nodes(source, chosen), beside):
            on_disk += disk_bytes(node)
            if node.kind in largest:
                chunk = math.prod(array_chunks(node, slab_bytes)) * item_bytes(node)
                largest[node.kind] = max(largest[node.kind], chunk + hdf5_bytes(node))
    return Needs(sum(largest.values()) + FIXED_BYTES, on_disk, left_out)
