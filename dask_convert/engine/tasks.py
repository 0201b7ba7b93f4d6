"""The tasks of a graph, and what they are told and tell.

    split     row block   → one fragment file
    barrier   all splits  → the target's exact indptr, and the types to combine in
    combine   region      → whole shards of data and indices

A task takes a `Job` (where things are) and a number (which block or region), reads the rest
from scratch, and returns a small report, never an array. Running one twice, or twice at
once, does no harm: what it writes depends on nothing but the plan and the source, and
appears by rename.

The work itself is in `dask_convert.engine.stages`, and what is done for it to survive in
`dask_convert.engine.attempts`; both are loaded where tasks run: whoever only sends them does
without the compiler.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec

from dask_convert.engine.meters import Meters, own_peak_bytes
from dask_convert.errors import FragmentError
from dask_convert.files.scratch import MatrixScratch, load_struct
from dask_convert.planning.layout import TargetFile
from dask_convert.planning.plans import ConversionPlan, MatrixPlan
from dask_convert.shuffle.findings import Findings
from dask_convert.shuffle.integrity import RegionCheck


class Job(msgspec.Struct, frozen=True):
    """Where a matrix's conversion takes place; small, and sent along with every task.

    Attributes
    ----------
    source
        Path of the h5ad file.
    scratch
        The run's scratch directory.
    target
        Directory of the store that is being built.
    matrix
        Which matrix of the plan.
    wait_seconds
        For published files to become visible.
    """

    source: str
    scratch: str
    target: str
    matrix: int
    wait_seconds: float = 60.0

    @property
    def attempts(self) -> Path:
        """Where files of the target are while they are written: on its file system, outside."""
        return Path(self.target).with_name("attempts")

    @property
    def files(self) -> MatrixScratch:
        """The matrix's scratch files."""
        return MatrixScratch(str(Path(self.scratch, str(self.matrix))))

    @property
    def plan(self) -> MatrixPlan:
        """The matrix's plan, as published on scratch."""
        return self.conversion.matrices[self.matrix]

    @property
    def conversion(self) -> ConversionPlan:
        """The whole plan, as published on scratch."""
        return read_plan(Path(self.scratch, "plan.json"))

    def block_name(self, number: int) -> str:
        """A row block, in words."""
        plan = self.plan
        block = plan.blocks[number]
        return f"row block {number} of {plan.source.name}, rows {block.start} to {block.stop - 1}"

    def region_name(self, number: int) -> str:
        """A region, in words."""
        plan = self.plan
        region = plan.regions[number]
        return (
            f"region {number} of {plan.source.name}, entries {region.start_nnz} to "
            f"{region.stop_nnz - 1} of the target"
        )


class SplitReport(msgspec.Struct, frozen=True):
    """What a split task tells the barrier.

    Attributes
    ----------
    payload
        Type of the values in the block's records.
    exact_dtypes
        For ``data_dtype="auto"``: bit ``i`` says that candidate ``i`` holds every value.
    findings
        Unusual entries of the block.
    meters
        Bytes and seconds of the task.
    reused
        Whether an earlier run had done it.
    """

    payload: str
    exact_dtypes: int
    findings: Findings
    meters: Meters
    reused: bool = False


class BarrierReport(msgspec.Struct, frozen=True):
    """What the barrier tells the combine tasks.

    Attributes
    ----------
    payload
        Type in which a region keeps its values.
    data_dtype
        Type of the target's values.
    row_sum
        What the sums of `RegionCheck` must add up to.
    findings
        Unusual entries of the matrix.
    """

    payload: str
    data_dtype: str
    row_sum: int
    findings: Findings
    meters: Meters


class CombineReport(msgspec.Struct, frozen=True):
    """What a combine task tells of itself.

    Attributes
    ----------
    check
        What its rows came to.
    files
        What it wrote.
    reused
        Whether an earlier run had done it.
    """

    check: RegionCheck
    meters: Meters
    files: tuple[TargetFile, ...] = ()
    reused: bool = False


def is_reused(report: SplitReport | BarrierReport | CombineReport) -> bool:
    """Whether an earlier run had done what a report tells of."""
    return not isinstance(report, BarrierReport) and report.reused


_Report = TypeVar("_Report", SplitReport, BarrierReport, CombineReport)


@lru_cache(maxsize=4)
def read_plan(path: Path) -> ConversionPlan:
    """The plan of a run; kept, since every task of a process needs it.

    Raises
    ------
    FragmentError
        It is missing or damaged.
    """
    plan = load_struct(path, ConversionPlan)
    if plan is None:
        msg = f"{path} is missing or damaged: something has changed scratch while this ran"
        raise FragmentError(msg)
    return plan


def split(job: Job, number: int) -> SplitReport:
    """Read one row block, order it by column and write its fragments; see `stages.split`."""
    from dask_convert.engine import attempts

    return _metered(attempts.split(job, number))


def barrier(job: Job, reports: Sequence[SplitReport]) -> BarrierReport:
    """Add up the column counts of all blocks; see `stages.barrier`."""
    from dask_convert.engine import attempts

    return _metered(attempts.barrier(job, reports))


def combine(job: Job, number: int, shuffled: BarrierReport) -> CombineReport:
    """Write the shards of one region; see `stages.combine`."""
    from dask_convert.engine import attempts

    return _metered(attempts.combine(job, number, shuffled))


def _metered(report: _Report) -> _Report:
    """Note a task's end, and let dask's fine performance metrics have its counters."""
    if is_reused(report):
        return report
    meters = report.meters
    meters.ended = time.time()
    meters.peak_bytes = own_peak_bytes()
    if "distributed.worker" in sys.modules:
        from distributed import get_worker
        from distributed.metrics import context_meter

        with suppress(ValueError):  # this is none
            meters.worker = get_worker().address
        for name, seconds in meters.seconds.items():
            context_meter.digest_metric(name, seconds, "seconds")
        for name, n_bytes in meters.bytes.items():
            context_meter.digest_metric(name, n_bytes, "bytes")
    return report
