"""The tasks of a graph, and what they are told and tell.

    split     row block   → one fragment file
    barrier   all splits  → the target's exact indptr, and the types to combine in
    combine   region      → whole shards of data and indices

A task takes a `Job` (where things are) and a number (which block or region), reads the rest
from scratch, and returns a small report, never an array. Running one twice, or twice at
once, does no harm: what it writes depends on nothing but the plan and the source, and
appears by rename.

The work itself is in `dask_convert.stages`, which is loaded where tasks run: whoever only
sends them does without the compiler and the codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from dask_convert.meters import Meters
from dask_convert.plans import ConversionPlan, MatrixPlan
from dask_convert.scratch import MatrixScratch


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
    """

    source: str
    scratch: str
    target: str
    matrix: int

    @property
    def files(self) -> MatrixScratch:
        """The matrix's scratch files."""
        return MatrixScratch(str(Path(self.scratch, str(self.matrix))))

    @property
    def plan(self) -> MatrixPlan:
        """The matrix's plan, as published on scratch."""
        return read_plan(Path(self.scratch, "plan.json")).matrices[self.matrix]


class SplitReport(msgspec.Struct, frozen=True):
    """What a split task tells the barrier.

    Attributes
    ----------
    payload
        Type of the values in the block's records.
    exact_dtypes
        For ``data_dtype="auto"``: bit ``i`` says that candidate ``i`` holds every value.
    meters
        Bytes and seconds of the task.
    """

    payload: str
    exact_dtypes: int
    meters: Meters


class BarrierReport(msgspec.Struct, frozen=True):
    """What the barrier tells the combine tasks.

    Attributes
    ----------
    payload
        Type in which a region keeps its values.
    data_dtype
        Type of the target's values.
    """

    payload: str
    data_dtype: str
    meters: Meters


class CombineReport(msgspec.Struct, frozen=True):
    """What a combine task tells of itself."""

    meters: Meters


@lru_cache(maxsize=4)
def read_plan(path: Path) -> ConversionPlan:
    """The plan of a run; kept, since every task of a process needs it."""
    return ConversionPlan.from_json(path.read_bytes())


def split(job: Job, number: int) -> SplitReport:
    """Read one row block, order it by column and write its fragments; see `stages.split`."""
    from dask_convert import stages

    return stages.split(job, number)


def barrier(job: Job, reports: Sequence[SplitReport]) -> BarrierReport:
    """Add up the column counts of all blocks; see `stages.barrier`."""
    from dask_convert import stages

    return stages.barrier(job, reports)


def combine(job: Job, number: int, shuffled: BarrierReport) -> CombineReport:
    """Write the shards of one region; see `stages.combine`."""
    from dask_convert import stages

    return stages.combine(job, number, shuffled)
