"""A task as workers run it: what is done already is not done again, and failures have names.

A finished task publishes its report beside its work. A task that finds such a report looks
whether what it speaks of is there and intact, byte by byte, and if so returns it. That is all
that resuming takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from dask_convert.engine import stages
from dask_convert.engine.tasks import BarrierReport, CombineReport, Job, SplitReport
from dask_convert.errors import (
    TRANSIENT,
    DaskConvertError,
    FragmentError,
    StorageError,
    TaskError,
)
from dask_convert.files.fragment_files import FragmentFile
from dask_convert.files.scratch import load_struct, save_struct, storage_errors, visible
from dask_convert.files.shards import is_intact

TRIES = 3
PAUSE_SECONDS = 0.5

T = TypeVar("T")


def split(job: Job, number: int) -> SplitReport:
    """See `stages.split`; returns the report of an earlier run if its fragments are intact."""
    _await(job, "plan.json")
    return _named(job.block_name(number), Path(job.scratch), lambda: _split(job, number))


def barrier(job: Job, reports: Sequence[SplitReport]) -> BarrierReport:
    """See `stages.barrier`."""
    _await(job, "plan.json")
    name = f"the barrier of {job.plan.source.name}"
    return _named(name, Path(job.scratch), lambda: stages.barrier(job, reports))


def combine(job: Job, number: int, shuffled: BarrierReport) -> CombineReport:
    """See `stages.combine`; returns the report of an earlier run if its files are intact."""
    _await(job, "plan.json")
    name = job.region_name(number)
    return _named(name, Path(job.target), lambda: _combine(job, number, shuffled))


def _split(job: Job, number: int) -> SplitReport:
    path = job.files.block_report(number)
    kept = load_struct(path, SplitReport)
    if kept is not None and _fragments_intact(job, number):
        return msgspec.structs.replace(kept, reused=True)
    _await(job, f"{job.matrix}/{job.files.row_ends.name}")
    report = stages.split(job, number)
    save_struct(path, "block report", report)
    return report


def _fragments_intact(job: Job, number: int) -> bool:
    try:
        with FragmentFile(job.files.block(number), job.plan.fragment_layout) as file:
            file.check()
    except FragmentError:
        return False
    return True


def _combine(job: Job, number: int, shuffled: BarrierReport) -> CombineReport:
    path = job.files.region_report(number)
    target = Path(job.target)
    kept = load_struct(path, CombineReport)
    if kept is not None and all(is_intact(target, file) for file in kept.files):
        return msgspec.structs.replace(kept, reused=True)
    if not visible(target, job.wait_seconds):
        msg = f"{target} is missing: something has removed it while the conversion ran"
        raise StorageError(msg)
    _await(job, f"{job.matrix}/{job.files.indptr.name}")
    report = stages.combine(job, number, shuffled)
    save_struct(path, "region report", report)
    return report


def _await(job: Job, name: str) -> None:
    """Wait for a file on scratch that the driver or the barrier has published."""
    path = Path(job.scratch, name)
    if not visible(path, job.wait_seconds):
        msg = f"{path} is missing: is {job.scratch} the same directory for all workers?"
        raise FragmentError(msg)


def _named(name: str, directory: Path, work: Callable[[], T]) -> T:
    """Do something that belongs to a block or a region; errors of the system are ours then.

    Transient ones are tried again. What nobody foresaw is told with the name: a task that always
    fails must not hide which one it was.
    """
    try:
        with storage_errors(directory):
            return _again(work)
    except StorageError as error:
        msg = f"{name}: {error}"
        raise StorageError(msg) from error
    except DaskConvertError:
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        hint = "; give fewer workers more memory" if isinstance(error, MemoryError) else ""
        msg = f"{name}: {type(error).__name__}: {error} (at {where}){hint}"
        raise TaskError(msg) from error


def _again(work: Callable[[], T]) -> T:
    for attempt in range(TRIES - 1):
        try:
            return work()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return work()
