"""The digest of a part of a sparse matrix, of either file: a task.

A part is a slice of entries; its report holds the cells that it touched, of
`dask_convert.shuffle.digests`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.engine.meters import Meters
from dask_convert.shuffle.digests import Digest, Grid, Keys
from dask_convert.verification.entries import EntryReader
from dask_convert.verification.sides import Part, Side, open_members


class PartReport(msgspec.Struct, frozen=True):
    """What a part of a matrix comes to.

    Attributes
    ----------
    side, number
        Whose report it is: 0 for the source, 1 for the target; number of the part.
    corner, shape, cells
        The cells that were touched: first group of rows and of columns, shape, and their words
        as bytes.
    descents, outside, first, last
        See `digests.Scan`.
    inexact
        Values that are none of the source's type, or would change on the way there and back.
    library_nnz
        Entries that h5py or zarr-python has read.
    damage
        Chunks that cannot be read, a line each; their entries are left out.
    meters
        Bytes and seconds.
    """

    side: int
    number: int
    corner: tuple[int, int]
    shape: tuple[int, int, int]
    cells: bytes
    descents: int
    outside: int
    first: tuple[int, int] | None
    last: tuple[int, int] | None
    inexact: int
    library_nnz: int
    damage: tuple[str, ...]
    meters: Meters

    def add_to(self, cells: NDArray[np.uint64]) -> None:
        """Add the part's cells to those of the matrix."""
        (row, column), (rows, columns, _) = self.corner, self.shape
        own = np.frombuffer(self.cells, np.uint64).reshape(self.shape)
        cells[row : row + rows, column : column + columns] += own


def digest_part(
    sides: tuple[Side, Side], which: int, number: int, part: Part, keys: Keys
) -> PartReport:
    """Read a part of a matrix and digest it, values in the source's type.

    Parameters
    ----------
    sides
        The source's matrix and the target's.
    which, number, part
        Which of them to read, and what part of it.
    keys
        The run's.

    Raises
    ------
    SourceError
        The source cannot be read. (The target is what is being judged.)
    """
    side, dtype = sides[which], np.dtype(sides[0].data_dtype)
    digest = Digest(Grid(sides[0].n_obs, sides[0].n_vars), keys, side.format)
    meters, inexact = Meters(), 0
    damage: list[str] = []
    with open_members(side) as (data, indices, indptr):
        with meters.step("read"):
            ends = np.asarray(indptr[part.major_start + 1 : part.major_stop + 1]).astype(np.int64)
        reader = EntryReader(side, part, data, indices)
        for start, stop in reader.slices():
            with meters.step("read"):
                read = reader.read(start, stop)
            if isinstance(read, list):
                damage += read
                continue
            with meters.step("digest"):
                values, changed = in_dtype(read[0], dtype)
                inexact += changed
                low, high = np.searchsorted(ends, [start, stop - 1], side="right")
                major_ends = ends[low : high + 1] - start
                digest.add(read[1], values, part.major_start + int(low), major_ends)
    counts = (inexact, reader.library_nnz)
    return _report(digest, which, number, counts, tuple(damage), meters)


def in_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """Values in the type of the source, and how many of them would not come back bit by bit.

    A target's value t stands for the source's value s if s is t in the source's type *and* t is
    s in the target's: then no two values of either are taken for the same.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == dtype:
        return values, 0
    with np.errstate(all="ignore"):
        real = values if dtype.kind == "c" or values.dtype.kind != "c" else values.real
        cast = real.astype(dtype)
        too_long = values.dtype.itemsize == 8 and dtype.kind in "fc"  # numpy calls these safe
        if values.dtype.kind in "biu" and not too_long and np.can_cast(values.dtype, dtype, "safe"):
            return cast, 0
        back = cast if values.dtype.kind == "c" or cast.dtype.kind != "c" else cast.real
        back = back.astype(values.dtype)
    width = values.dtype.itemsize
    there, again = (
        np.ascontiguousarray(array).view(np.uint8).reshape(-1, width) for array in (values, back)
    )
    return cast, int((there != again).any(axis=1).sum())


def _report(
    digest: Digest,
    which: int,
    number: int,
    counts: tuple[int, int],
    damage: tuple[str, ...],
    meters: Meters,
) -> PartReport:
    """What a digest came to; `counts` are of inexact values, and of entries read by libraries."""
    touched = digest.cells[..., -1] > 0
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    corner = (int(rows[0]), int(columns[0])) if rows.size else (0, 0)
    shape = (int(rows[-1]) + 1, int(columns[-1]) + 1) if rows.size else (0, 0)
    box = digest.cells[corner[0] : shape[0], corner[1] : shape[1]]
    scan = digest.scan
    return PartReport(
        which,
        number,
        corner,
        (box.shape[0], box.shape[1], box.shape[2]),
        box.tobytes(),
        scan.descents,
        scan.outside,
        scan.first,
        scan.last,
        *counts,
        damage,
        meters,
    )
