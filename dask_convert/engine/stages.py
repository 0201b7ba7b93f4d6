"""The work of the three stages: read → kernel → write. See `dask_convert.engine.tasks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.engine.meters import Meters
from dask_convert.engine.tasks import BarrierReport, CombineReport, Job, SplitReport
from dask_convert.errors import DtypeError, FragmentError, SourceError, StrictError
from dask_convert.files.fragment_files import (
    Fragment,
    FragmentFile,
    open_ahead,
    write_fragment_file,
)
from dask_convert.files.hdf5 import MemberReader, Piece
from dask_convert.files.scratch import load_array, load_struct, save_array, sync
from dask_convert.files.shards import write_region
from dask_convert.page_cache import fills_cache, forget
from dask_convert.planning import dtypes, memory
from dask_convert.planning.layout import ArraySource, MatrixSource, Region, RowBlock
from dask_convert.planning.plans import MatrixPlan
from dask_convert.planning.records import native_dtype
from dask_convert.shuffle.digests import Digest, Grid, Keys, saved_cells
from dask_convert.shuffle.duplicates import first_duplicate, order_and_duplicates
from dask_convert.shuffle.findings import (
    Findings,
    first_unusual,
    value_findings,
)
from dask_convert.shuffle.ordering import BlockColumns, BlockRecords, Columns
from dask_convert.shuffle.placing import RegionEntries
from dask_convert.shuffle.row_checks import expected_row_sum, region_check

SLAB_ROWS = 2**20


def split(job: Job, number: int) -> SplitReport:
    """Read one row block, order it by column and write its fragments.

    Raises
    ------
    SourceError
        The block's entries cannot be read, or a column is out of range.
    DtypeError
        A value would change in the type that was asked for.
    """
    plan = job.plan
    block = plan.blocks[number]
    meters = Meters()
    row_ends = _row_ends(job, block)
    collected = BlockColumns(row_ends, plan.source.n_vars, paged=plan.paged)
    for position, piece in _pieces(job, "indices", block, meters):
        with meters.step("check and count"):
            bad = collected.add(position, piece)
        if bad >= 0:
            raise SourceError(_no_column(plan, block, row_ends, position + bad, piece[bad]))
    columns = collected.columns
    data_dtype = native_dtype(plan.source.data.dtype)
    with meters.step("check and count"):
        ascending, duplicates = order_and_duplicates(columns, row_ends, plan.source.n_vars)
    found = Findings(duplicate_nnz=duplicates)
    strict = job.conversion.settings.strict
    if strict and duplicates:
        raise StrictError(_duplicate(plan, block, row_ends, columns))
    records = BlockRecords(
        collected, data_dtype, column_width=plan.column_width, ascending=ascending
    )
    policy = _DtypePolicy(job, data_dtype)
    digest = _BlockDigest(job, plan.source, block) if job.conversion.settings.verify else None
    for position, piece in _pieces(job, "data", block, meters):
        if digest:
            with meters.step("digest"):
                digest.add(columns, position, piece, row_ends)
        with meters.step("narrow"):
            found += value_findings(records.add(position, piece))
        if strict and (unusual := first_unusual(piece)) >= 0:
            what = _entry(plan, block, row_ends, columns, position + unusual, piece[unusual])
            msg = f"{what}: a zero, NaN or infinite entry, which --strict refuses; remove it"
            raise StrictError(msg)
        changed = policy.check(piece, records.payload)
        if changed >= 0:
            what = _entry(plan, block, row_ends, columns, position + changed, piece[changed])
            msg = f"{what}: {policy.requested} cannot hold it exactly; choose another data_dtype"
            raise DtypeError(msg)
    with meters.step("order"):
        ordered = records.records()
    with meters.step("write fragments"):
        path = job.files.block(number)
        layout = plan.fragment_layout
        written = write_fragment_file(path, layout, ordered, records.counts, records.payload)
    meters.count("fragments", written)
    if digest:
        digest.save(number)
    return SplitReport(records.payload.str, policy.exact_dtypes, found, meters)


def barrier(job: Job, reports: Sequence[SplitReport]) -> BarrierReport:
    """Add up the column counts of all blocks: the target's indptr, exactly.

    Raises
    ------
    FragmentError
        A fragment file is missing or damaged, or the counts do not add up.
    """
    plan = job.plan
    meters = Meters()
    with meters.step("barrier"):
        indptr = np.zeros(plan.source.n_vars + 1, np.int64)
        for number, block in enumerate(plan.blocks):
            path = job.files.block(number)
            with FragmentFile(path, plan.fragment_layout, job.wait_seconds) as file:
                head = file.head(block.nnz)
            indptr[1:] += head.counts
        np.cumsum(indptr, out=indptr)
        save_array(job.files.indptr, indptr)
    data_dtype = native_dtype(plan.source.data.dtype)
    payloads = {report.payload for report in reports}
    payload = np.dtype(payloads.pop()) if len(payloads) == 1 else data_dtype
    policy = _DtypePolicy(job, data_dtype)
    found = Findings()
    for report in reports:
        policy.exact_dtypes &= report.exact_dtypes
        found += report.findings
    with meters.step("barrier"):
        row_ends = load_array(job.files.row_ends)
        slabs = (row_ends[at : at + SLAB_ROWS] for at in range(0, row_ends.size, SLAB_ROWS))
        row_sum = expected_row_sum(slabs)
    return BarrierReport(payload.str, policy.target_dtype().str, row_sum, found, meters)


def combine(job: Job, number: int, shuffled: BarrierReport) -> CombineReport:
    """Gather the entries of one region from all fragments and write its shards.

    Raises
    ------
    FragmentError
        A fragment is missing or damaged.
    """
    plan = job.plan
    region = plan.regions[number]
    meters = Meters()
    indptr = load_array(job.files.indptr)
    ranges = _ranges_of(plan, region, indptr)
    columns = slice(
        plan.fragment_layout.column_range(ranges[0]).start,
        plan.fragment_layout.column_range(ranges[-1]).stop,
    )
    entries = RegionEntries(
        region.nnz,
        memory.row_dtype(plan.source.n_obs),
        np.dtype(shuffled.payload),
        indptr[columns] - region.start_nnz,
    )
    for first_row, fragment in _fragments(job, ranges, meters):
        with meters.step("place"):
            own = slice(
                fragment.columns.start - columns.start, fragment.columns.stop - columns.start
            )
            entries.place(fragment.records, fragment.payload, fragment.counts, own, first_row)
    ends = indptr[columns.start + 1 : columns.stop + 1] - region.start_nnz
    if not np.array_equal(entries.cursors, ends):
        msg = f"region {number}: the fragments do not fill their columns: scratch has changed"
        raise FragmentError(msg)
    with meters.step("check rows"):
        rows = entries.rows(0, region.nnz)
        check = region_check(plan.source.name, number, columns.start, ends, rows)
    data_dtype = np.dtype(shuffled.data_dtype)
    target, name, attempts = Path(job.target), plan.source.name, job.attempts
    with meters.step("encode and write"):
        written = write_region(
            target, f"{name}/indices", plan.target, region, entries.rows, attempts
        )
        written += write_region(
            target,
            f"{name}/data",
            plan.target,
            region,
            lambda start, stop: entries.values(start, stop, data_dtype),
            attempts,
        )
        if fills_cache(plan.source.stored_bytes):  # so will the target
            for file in written:
                sync(target / file.path)  # a disk's error is told to who has the file in memory
                forget(target / file.path)
    meters.count("target", sum(file.n_bytes for file in written))
    return CombineReport(check, meters, tuple(written))


class _BlockDigest:
    """Digests a row block as it is read, so that verifying needs not read all of it again."""

    def __init__(self, job: Job, source: MatrixSource, block: RowBlock) -> None:
        self._files, self._first_row = job.files, block.start
        self._keys = load_struct(self._files.keys, Keys) or Keys.random()
        self._digest = Digest(Grid(source.n_obs, source.n_vars), self._keys, "csr")

    def add(
        self,
        columns: Columns,
        position: int,
        values: NDArray[Any],
        row_ends: NDArray[np.int64],
    ) -> None:
        """Add a piece of the values, with the columns that they belong to."""
        stop = position + values.size
        low, high = np.searchsorted(row_ends, [position, stop - 1], side="right")
        ends = row_ends[low : high + 1] - position
        self._digest.add(columns[position:stop], values, self._first_row + int(low), ends)

    def save(self, number: int) -> None:
        """Publish what the block came to."""
        save_array(self._files.digest(number), saved_cells(self._keys, self._digest.cells))


class _DtypePolicy:
    """Applies the setting ``data_dtype`` to values as they come by."""

    def __init__(self, job: Job, data_dtype: np.dtype[Any]) -> None:
        self.requested = dtypes.requested_dtype(job.conversion.settings.data_dtype, data_dtype)
        self._candidates = dtypes.auto_dtypes(data_dtype)
        self.exact_dtypes = (1 << len(self._candidates)) - 1

    def check(self, values: NDArray[Any], payload: np.dtype[Any]) -> int:
        """Position of the first value that would change, or -1."""
        if self.requested is None:
            mask = dtypes.exact_mask(values, payload, self._candidates, self.exact_dtypes)
            self.exact_dtypes = mask
            return -1
        if dtypes.always_exact(payload, self.requested):
            return -1  # all values have proved to fit the payload
        return dtypes.first_changed(values, self.requested)

    def target_dtype(self) -> np.dtype[Any]:
        """The type of the target, once every value has been seen."""
        if self.requested is not None:
            return self.requested
        first = (self.exact_dtypes & -self.exact_dtypes).bit_length() - 1
        return self._candidates[first]


def _row_ends(job: Job, block: RowBlock) -> NDArray[np.int64]:
    """Where each row of a block ends, counted from its start; kernels go where these say."""
    saved = load_array(job.files.row_ends)
    row_ends: NDArray[np.int64] = saved[block.start : block.stop] - block.start_nnz
    lengths = np.diff(row_ends, prepend=0)
    if row_ends.size != block.rows or row_ends[-1] != block.nnz or lengths.min() < 0:
        msg = f"{job.files.row_ends}: does not fit the plan: scratch has changed; convert again"
        raise FragmentError(msg)
    return row_ends


def _fragments(job: Job, ranges: range, meters: Meters) -> Iterator[tuple[int, Fragment]]:
    """All fragments of some column ranges, block after block, with their block's first row."""
    plan = job.plan
    paths = [job.files.block(number) for number in range(len(plan.blocks))]
    files = open_ahead(paths, plan.fragment_layout, ranges, job.wait_seconds)
    for block in plan.blocks:
        with meters.step("read fragments"):
            file = next(files)
            fragments = file.fragments()
        while True:
            with meters.step("read fragments"):
                fragment = next(fragments, None)
            if fragment is None:
                break
            yield block.start, fragment
        meters.count("fragments read", file.read_bytes)


def _pieces(job: Job, member: str, block: RowBlock, meters: Meters) -> Iterator[Piece]:
    """A member's elements of a block; positions counted from the block's start."""
    if block.nnz == 0:
        return
    source = job.plan.source
    array: ArraySource = getattr(source, member)
    table = load_array(job.files.chunks(member)) if array.raw else None
    name, trust = f"{source.path}/{member}", job.conversion.settings.trust
    position = block.start_nnz
    with MemberReader(Path(job.source), name, array, table, trust) as reader:
        pieces = reader.pieces(block.start_nnz, block.stop_nnz)
        while True:
            with meters.step(f"read {member}"):
                piece = next(pieces, None)
            if piece is None or piece[0] != position:  # kernels rely on reading every entry
                break
            position += piece[1].size
            yield piece[0] - block.start_nnz, piece[1]
        meters.count("source", reader.stored_bytes)
    if position != block.stop_nnz:
        msg = (
            f"{name}: ends at {position}, before {block.stop_nnz}: it was cut short; copy it again"
        )
        raise SourceError(msg)


def _no_column(
    plan: MatrixPlan, block: RowBlock, row_ends: NDArray[np.int64], at: int, index: Any
) -> str:
    """The message about the first index that is none."""
    row = block.start + int(np.searchsorted(row_ends, at, side="right"))
    return (
        f"{plan.source.path}/indices[{block.start_nnz + at}] is {index}, in row {row}: "
        f"a column must be at least 0 and less than n_vars, {plan.source.n_vars}; the matrix was "
        "damaged, or wrong when it was written"
    )


def _duplicate(
    plan: MatrixPlan, block: RowBlock, row_ends: NDArray[np.int64], columns: Columns
) -> str:
    """The message about the first entry that is not the first of its row and column."""
    at = first_duplicate(columns, row_ends, plan.source.n_vars)
    row = block.start + int(np.searchsorted(row_ends, at, side="right"))
    return (
        f"{plan.source.path}/indices[{block.start_nnz + at}] is {columns[at]}, in row {row}, which "
        "has that column already, and --strict refuses duplicates; add them up in the source"
    )


def _ranges_of(plan: MatrixPlan, region: Region, indptr: NDArray[np.int64]) -> range:
    """The column ranges that have entries in a region."""
    first = int(np.searchsorted(indptr, region.start_nnz, side="right")) - 1
    last = int(np.searchsorted(indptr, region.stop_nnz, side="left")) - 1
    return range(first // plan.column_width, last // plan.column_width + 1)


def _entry(
    plan: MatrixPlan,
    block: RowBlock,
    row_ends: NDArray[np.int64],
    columns: Columns,
    at: int,
    value: Any,
) -> str:
    """The begin of a message about a value."""
    row = block.start + int(np.searchsorted(row_ends, at, side="right"))
    where = f"{plan.source.path}/data[{block.start_nnz + at}]"
    return f"{where} is {value}, in row {row}, column {columns[at]}"
