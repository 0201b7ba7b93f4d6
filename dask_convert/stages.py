"""The work of the three stages: read → kernel → write. See `dask_convert.tasks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert import dtypes, kernels, memory
from dask_convert.errors import DtypeError, FragmentError, SourceError
from dask_convert.fragment_files import Fragment, FragmentFile, open_ahead, write_fragment_file
from dask_convert.hdf5 import MemberReader, Piece
from dask_convert.layout import ArraySource, Region, RowBlock
from dask_convert.meters import Meters
from dask_convert.ordering import BlockRecords
from dask_convert.placing import RegionEntries
from dask_convert.plans import MatrixPlan
from dask_convert.records import native_dtype
from dask_convert.scratch import save_array
from dask_convert.shards import write_region
from dask_convert.tasks import BarrierReport, CombineReport, Job, SplitReport, read_plan


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
    row_ends = (
        np.load(job.files.row_ends, mmap_mode="r")[block.start : block.stop] - block.start_nnz
    )
    indices = np.empty(block.nnz, np.int32)
    counts = np.zeros(plan.source.n_vars, np.uint32)
    for position, piece in _pieces(job, "indices", block, meters):
        with meters.step("check and count"):
            checked = indices[position : position + piece.size]
            _check_columns(plan, block, row_ends, position, piece, checked)
            kernels.count_columns(checked, counts)
    data_dtype = native_dtype(plan.source.data.dtype)
    records = BlockRecords(indices, counts, row_ends, data_dtype, paged=plan.paged)
    policy = _DtypePolicy(job, data_dtype)
    for position, piece in _pieces(job, "data", block, meters):
        with meters.step("narrow"):
            records.add(position, piece)
        changed = policy.check(piece, records.payload)
        if changed >= 0:
            at = position + changed
            what = _changed_value(plan, block, row_ends, at, int(indices[at]), piece[changed])
            msg = f"{what}: {policy.requested} cannot hold it exactly; choose another data_dtype"
            raise DtypeError(msg)
    with meters.step("order"):
        ordered = records.records()
    with meters.step("write fragments"):
        path = job.files.block(number)
        layout = plan.fragment_layout
        written = write_fragment_file(path, layout, ordered, counts, records.payload)
    meters.count("fragments", written)
    return SplitReport(records.payload.str, policy.exact_dtypes, meters)


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
            with FragmentFile(job.files.block(number), plan.fragment_layout) as file:
                head = file.head()
            if head.nnz != block.nnz or int(head.counts.sum(dtype=np.int64)) != block.nnz:
                name = job.files.block(number)
                msg = f"{name}: holds {head.nnz} entries, the plan says {block.nnz}"
                raise FragmentError(msg)
            indptr[1:] += head.counts
        np.cumsum(indptr, out=indptr)
        save_array(job.files.indptr, indptr)
    data_dtype = native_dtype(plan.source.data.dtype)
    payloads = {report.payload for report in reports}
    payload = np.dtype(payloads.pop()) if len(payloads) == 1 else data_dtype
    policy = _DtypePolicy(job, data_dtype)
    for report in reports:
        policy.exact_dtypes &= report.exact_dtypes
    return BarrierReport(payload.str, policy.target_dtype().str, meters)


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
    indptr = np.load(job.files.indptr, mmap_mode="r")
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
    data_dtype = np.dtype(shuffled.data_dtype)
    directory = Path(job.target, plan.source.name)
    with meters.step("encode and write"):
        written = write_region(directory / "indices", plan.target, region, entries.rows)
        written += write_region(
            directory / "data",
            plan.target,
            region,
            lambda start, stop: entries.values(start, stop, data_dtype),
        )
    meters.count("target", written)
    return CombineReport(meters)


class _DtypePolicy:
    """Applies the setting ``data_dtype`` to values as they come by."""

    def __init__(self, job: Job, data_dtype: np.dtype[Any]) -> None:
        settings = read_plan(Path(job.scratch, "plan.json")).settings
        self.requested = dtypes.requested_dtype(settings.data_dtype, data_dtype)
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


def _fragments(job: Job, ranges: range, meters: Meters) -> Iterator[tuple[int, Fragment]]:
    """All fragments of some column ranges, block after block, with their block's first row."""
    plan = job.plan
    paths = [job.files.block(number) for number in range(len(plan.blocks))]
    files = open_ahead(paths, plan.fragment_layout, ranges)
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
    table = np.load(job.files.chunks(member), mmap_mode="r") if array.raw else None
    with MemberReader(Path(job.source), f"{source.path}/{member}", array, table) as reader:
        pieces = reader.pieces(block.start_nnz, block.stop_nnz)
        while True:
            with meters.step(f"read {member}"):
                piece = next(pieces, None)
            if piece is None:
                break
            yield piece[0] - block.start_nnz, piece[1]
        meters.count("source", reader.stored_bytes)


def _check_columns(
    plan: MatrixPlan,
    block: RowBlock,
    row_ends: NDArray[np.int64],
    position: int,
    piece: NDArray[Any],
    checked: NDArray[np.int32],
) -> None:
    """Copy a piece of the indices into the block's, or refuse it."""
    signed = piece.view(np.int64) if piece.dtype == np.uint64 else piece
    bad = kernels.check_indices(signed, plan.source.n_vars, checked)
    if bad < 0:
        return
    at = position + bad
    row = block.start + int(np.searchsorted(row_ends, at, side="right"))
    msg = (
        f"{plan.source.path}/indices[{block.start_nnz + at}] is {piece[bad]}, in row {row}: "
        f"a column must be at least 0 and less than n_vars, {plan.source.n_vars}"
    )
    raise SourceError(msg)


def _ranges_of(plan: MatrixPlan, region: Region, indptr: NDArray[np.int64]) -> range:
    """The column ranges that have entries in a region."""
    first = int(np.searchsorted(indptr, region.start_nnz, side="right")) - 1
    last = int(np.searchsorted(indptr, region.stop_nnz, side="left")) - 1
    return range(first // plan.column_width, last // plan.column_width + 1)


def _changed_value(
    plan: MatrixPlan, block: RowBlock, row_ends: NDArray[np.int64], at: int, column: int, value: Any
) -> str:
    row = block.start + int(np.searchsorted(row_ends, at, side="right"))
    position = block.start_nnz + at
    return f"{plan.source.path}/data[{position}] is {value!r}, in row {row}, column {column}"
