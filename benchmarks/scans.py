"""Compares a store with its source, entry by entry, by one pass over each and no project code.

A pass over a compressed sparse matrix, CSR or CSC, in a file of either kind, gives three things:

    counts        entries per minor index: of a CSR matrix, per column
    fingerprint   a sum over all entries of hash(row, column, value): the same in any order
    entries       those at some chosen minor indices

The counts of one must be the differences of the other's indptr, the fingerprints must be equal,
and the chosen columns of the source and rows of the target must be, bit by bit, what reading
them from the other one gives.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import zarr
from numba import njit
from numpy.typing import NDArray

from benchmarks.measuring import say

PIECE_NNZ = 2**22
PARTS_PER_PROCESS = 8
TELL_SECONDS = 10


@dataclass
class Scan:
    """What one pass over a matrix, or over a part of it, gives.

    Attributes
    ----------
    counts
        Entries per minor index.
    fingerprint
        Sum of the hashes of all entries, modulo 2^64.
    unordered
        Entries whose minor index is not above the one before, in the same piece and row (of
        CSR) or column (of CSC).
    majors, minors, values
        The entries at the chosen minor indices, in order.
    """

    counts: NDArray[np.int64]
    fingerprint: int
    unordered: int
    majors: NDArray[np.int64]
    minors: NDArray[np.int64]
    values: NDArray[Any]

    def at(self, minor: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Major indices and values of the entries at one of the chosen minor indices."""
        chosen = self.minors == minor
        return self.majors[chosen], self.values[chosen]


class _Part(NamedTuple):
    path: Path
    chosen: NDArray[np.int64]
    start: int
    stop: int


@contextmanager
def open_matrix(path: Path) -> Iterator[Any]:
    """The group ``X`` of an h5ad file or of a zarr store; both are used alike."""
    if path.is_dir():
        yield zarr.open_group(str(path), mode="r")["X"]
    else:
        with h5py.File(path) as file:
            yield file["X"]


def scan(path: Path, chosen: NDArray[np.int64], processes: int) -> Scan:
    """One pass over a matrix.

    Parameters
    ----------
    path
        An h5ad file or a zarr store.
    chosen
        The minor indices whose entries are wanted.
    processes
        How many share the work.
    """
    with open_matrix(path) as matrix:
        nnz, piece = matrix["data"].shape[0], _piece_nnz(matrix["data"])
    pieces = -(-nnz // piece)
    n_parts = min(processes * PARTS_PER_PROCESS, max(pieces, 1))
    borders = [min(pieces * n // n_parts * piece, nnz) for n in range(n_parts + 1)]
    told = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [
            pool.submit(_scan_part, _Part(path, chosen, start, stop))
            for start, stop in pairwise(borders)
        ]
        for done, _ in enumerate(as_completed(futures), 1):
            if time.perf_counter() - told > TELL_SECONDS:
                told = time.perf_counter()
                say(f"  {path.name}: {done} of {n_parts} parts")
        parts = [future.result() for future in futures]
    return Scan(
        np.sum([part.counts for part in parts], axis=0),
        sum(part.fingerprint for part in parts) % 2**64,
        sum(part.unordered for part in parts),
        np.concatenate([part.majors for part in parts]),
        np.concatenate([part.minors for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def compare(
    source: Path, target: Path, *, genes: int, cells: int, processes: int, seed: int = 0
) -> dict[str, bool | int]:
    """Whether a store holds the CSR matrix of an h5ad file.

    Parameters
    ----------
    source, target
        The h5ad file and the store.
    genes, cells
        How many to compare bit by bit; genes spread evenly over the logarithm of abundance.
    processes
        How many share the work.
    seed
        Of the choice of cells.
    """
    with open_matrix(source) as rows, open_matrix(target) as columns:
        row_lengths, column_lengths = np.diff(rows["indptr"][:]), np.diff(columns["indptr"][:])
        same_shape = list(rows.attrs["shape"]) == list(columns.attrs["shape"])
    if not same_shape:
        return {"shape": False}
    chosen_genes = _spread(column_lengths, genes)
    chosen_cells = np.sort(np.random.default_rng(seed).permutation(row_lengths.size)[:cells])
    from_source = scan(source, chosen_genes, processes)
    from_target = scan(target, chosen_cells, processes)
    return {
        "shape": True,
        "indptr": np.array_equal(from_source.counts, column_lengths)
        and np.array_equal(from_target.counts, row_lengths),
        "ordered": from_target.unordered == 0,
        "fingerprint": from_source.fingerprint == from_target.fingerprint,
        "genes": chosen_genes.size,
        "genes_equal": _genes_equal(from_source, target, chosen_genes),
        "cells": chosen_cells.size,
        "cells_equal": _cells_equal(from_target, source, chosen_cells),
    }


def _spread(lengths: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Columns whose lengths are spread evenly over the logarithm, the longest included."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    sizes = lengths[order]
    if not sizes.size:
        return order
    wished = np.geomspace(sizes[0], sizes[-1], count)
    return np.unique(order[np.minimum(np.searchsorted(sizes, wished), sizes.size - 1)])


def _genes_equal(from_source: Scan, target: Path, genes: NDArray[np.int64]) -> bool:
    """Whether reading columns with anndata gives what the pass over the source saw."""
    stored = anndata.io.sparse_dataset(zarr.open_group(str(target), mode="r")["X"])
    for gene in genes:
        column = stored[:, int(gene)].tocsc()
        rows, values = from_source.at(gene)
        if not np.array_equal(column.indices, rows) or not _same_bits(column.data, values):
            return False
    return True


def _cells_equal(from_target: Scan, source: Path, cells: NDArray[np.int64]) -> bool:
    """Whether reading rows with h5py gives what the pass over the target saw."""
    with open_matrix(source) as matrix:
        for cell in cells:
            start, stop = matrix["indptr"][cell : cell + 2]
            indices, data = matrix["indices"][start:stop], matrix["data"][start:stop]
            order = np.argsort(indices, kind="stable")
            columns, values = from_target.at(cell)
            if not np.array_equal(indices[order], columns) or not _same_bits(data[order], values):
                return False
    return True


def _same_bits(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Whether values are equal as float64, NaNs and signs of zero included."""
    return np.array_equal(_bits(left), _bits(right))


def _bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(values, np.float64).view(np.uint64)


def _piece_nnz(array: Any) -> int:
    chunk = array.chunks[0] if array.chunks else 1
    return int(max(PIECE_NNZ // chunk, 1) * chunk)


def _scan_part(part: _Part) -> Scan:
    with open_matrix(part.path) as matrix:
        n_obs, n_vars = (int(length) for length in matrix.attrs["shape"])
        by_row = matrix.attrs["encoding-type"] == "csr_matrix"
        n_minor = n_vars if by_row else n_obs
        strides = (n_vars, 1) if by_row else (1, n_vars)
        ends = matrix["indptr"][1:].astype(np.int64)
        wanted = np.zeros(n_minor, np.bool_)
        wanted[part.chosen] = True
        counts = np.zeros(n_minor, np.int64)
        fingerprint = unordered = 0
        no_index = np.empty(0, np.int64)
        majors, minors, values = [no_index], [no_index], [np.empty(0, matrix["data"].dtype)]
        for start in range(part.start, part.stop, _piece_nnz(matrix["data"])):
            stop = min(start + _piece_nnz(matrix["data"]), part.stop)
            indices, data = matrix["indices"][start:stop], matrix["data"][start:stop]
            if indices.min() < 0 or indices.max() >= n_minor:
                msg = f"{part.path}: X/indices[{start}:{stop}] has one outside [0, {n_minor})"
                raise ValueError(msg)
            hashed, disorder = _scan_piece(ends, start, indices, _bits(data), *strides, counts)
            fingerprint += int(hashed)
            unordered += int(disorder)
            hits = np.flatnonzero(wanted[indices])
            majors.append(np.searchsorted(ends, start + hits, side="right"))
            minors.append(indices[hits].astype(np.int64))
            values.append(data[hits])
    return Scan(
        counts,
        fingerprint,
        unordered,
        np.concatenate(majors),
        np.concatenate(minors),
        np.concatenate(values),
    )


@njit(cache=True)
def _mixed(word: np.uint64) -> np.uint64:
    """A bijection of 64-bit words whose every output bit depends on every input bit."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(cache=True)
def _scan_piece(
    ends: NDArray[np.int64],
    start: int,
    indices: NDArray[Any],
    bits: NDArray[np.uint64],
    major_stride: int,
    minor_stride: int,
    counts: NDArray[np.int64],
) -> tuple[np.uint64, int]:
    """Add a piece to the counts; the sum of its entries' hashes, and how many are out of order.

    `indices` must lie in ``[0, counts.size)``. O(nnz) time, nothing allocated.
    """
    major = int(np.searchsorted(ends, start, side="right"))
    total = np.uint64(0)
    unordered = 0
    previous = -1
    for i in range(indices.size):
        while start + i >= ends[major]:
            major += 1
            previous = -1
        minor = int(indices[i])
        unordered += minor <= previous
        previous = minor
        counts[minor] += 1
        place = np.uint64(major * major_stride + minor * minor_stride)
        total += _mixed(_mixed(place + np.uint64(0x9E3779B97F4A7C15)) ^ bits[i])
    return total, unordered
