"""A conversion from beginning to end: prepare, run the graph of each matrix, publish.

    TARGET.partial-xxxx/     the store while it is being built, beside its final place
    SCRATCH/.TARGET.scratch-xxxx/     fragments and the run's own files

Both carry names that nothing else has, and both are gone when the function returns or raises;
the target's own name appears by one rename when all is written.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

import h5py
import msgspec
import numpy as np
import zarr

from dask_convert import __version__
from dask_convert.annotations import annotation_bytes, copy_annotations
from dask_convert.errors import DiskSpaceError, PlanError, SourceError, TargetError
from dask_convert.graph import Executor, Report, conversion_graph
from dask_convert.h5ad import csr_matrices, row_index
from dask_convert.hdf5 import chunk_table, open_source
from dask_convert.layout import MatrixSource
from dask_convert.meters import Meters, PeakMemory
from dask_convert.planning import conversion_plan
from dask_convert.plans import ConversionPlan, MatrixPlan, Settings
from dask_convert.scratch import (
    MatrixScratch,
    make_scratch,
    published,
    remove_scratch,
    save_array,
    save_slabs,
)
from dask_convert.tasks import BarrierReport, Job, SplitReport
from dask_convert.zarr_csc import describe_matrix, finalise, made_by_us


class Progress(Protocol):
    """Is told how a run comes along; called in the thread that called `run_conversion`."""

    def start(self, plan: ConversionPlan) -> None:
        """The run begins."""

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """A task of a matrix is done."""

    def stop(self) -> None:
        """The run has ended, well or not."""


class MatrixResult(msgspec.Struct, frozen=True):
    """What became of one matrix.

    Attributes
    ----------
    name, n_obs, n_vars, nnz
        The matrix.
    data_dtype
        Type of the values in the target.
    source_bytes, fragment_bytes, target_bytes
        Read from the source as stored, written to scratch, written to the target.
    split_seconds, combine_seconds
        Wall time of the stages; the barrier is part of the second.
    steps
        Seconds of each step, added up over all tasks.
    """

    name: str
    n_obs: int
    n_vars: int
    nnz: int
    data_dtype: str
    source_bytes: int
    fragment_bytes: int
    target_bytes: int
    split_seconds: float
    combine_seconds: float
    steps: dict[str, float]


class ConversionResult(msgspec.Struct, frozen=True):
    """What a conversion did.

    Attributes
    ----------
    target
        Path of the store.
    plan
        What was planned.
    matrices
        What became of each matrix.
    seconds
        Wall time from the call on, the start of a cluster not included.
    peak_bytes
        Most memory seen in use by this process and those below it; 0 if not measured.
    """

    target: str
    plan: ConversionPlan
    matrices: tuple[MatrixResult, ...]
    seconds: float
    peak_bytes: int

    @property
    def nnz(self) -> int:
        """Entries converted."""
        return sum(matrix.nnz for matrix in self.matrices)


def plan_conversion(
    source: Path, settings: Settings, matrices: Iterable[str] | None = None
) -> ConversionPlan:
    """Plan the conversion of a file; reads indptr and metadata, writes nothing.

    Parameters
    ----------
    source
        The h5ad file.
    settings
        The user's choices.
    matrices
        Names of the matrices to convert; None for every CSR matrix.

    Raises
    ------
    SourceError
        The file or one of the matrices is not as it must be.
    PlanError
        Settings contradict each other, name what is not there, or ask for too little memory.
    """
    with open_source(source) as file:
        chosen = _chosen(file, matrices)
        return conversion_plan(
            [(matrix, row_index(file, matrix)) for matrix in chosen],
            settings,
            annotation_bytes(file, [matrix.name for matrix in chosen]),
        )


def run_conversion(
    source: Path,
    target: Path,
    plan: ConversionPlan,
    executor: Callable[[], AbstractContextManager[Executor]],
    *,
    scratch_parent: Path,
    overwrite: bool,
    progress: Progress,
) -> ConversionResult:
    """Convert a file as planned.

    Parameters
    ----------
    source, target
        The h5ad file and the store to make of it.
    plan
        From `plan_conversion`, for this source.
    executor
        Gives what runs the tasks; entered while other preparations go on, and left, with no
        task running any more, before anything is cleared up.
    scratch_parent
        Where to make the scratch directory.
    overwrite
        Replace a target, if this tool made it.
    progress
        Is told of every task that is done.

    Raises
    ------
    DaskConvertError
        Of the kind that fits. There is then no target, and nothing else is left.
    """
    started = time.perf_counter()
    check_target(target, overwrite=overwrite)
    new_directories = _make_directory(target.parent)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    scratch = make_scratch(scratch_parent, target.name)
    jobs = [
        Job(str(source), str(scratch), str(partial), number) for number in range(len(plan.matrices))
    ]
    try:
        check_space(plan, scratch, target.parent)
        with PeakMemory() as memory, ThreadPoolExecutor(1) as helper:
            preparing = helper.submit(_prepare, source, scratch, partial, plan)
            with executor() as run:
                root = preparing.result()
                copying = helper.submit(_copy_annotations, source, root, plan)
                results = _run_matrices(jobs, plan, run, progress)
                copying.result()
            for job, result in zip(jobs, results, strict=True):
                indptr = np.load(job.files.indptr)
                matrix = job.plan
                data_dtype = np.dtype(result.data_dtype)
                describe_matrix(root, matrix.source, matrix.target, data_dtype, indptr)
            finalise(root, __version__)
            _publish(partial, target, overwrite=overwrite)
        seconds = time.perf_counter() - started
        return ConversionResult(str(target), plan, results, seconds, memory.peak_bytes)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_scratch(scratch)
        for directory in new_directories:  # innermost first; those in use stay
            with suppress(OSError):
                directory.rmdir()


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that is there already, unless it is ours and may go.

    Raises
    ------
    TargetError
        Says what is there.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        msg = f"{target} exists already: choose another name, or say overwrite to replace it"
        raise TargetError(msg)
    if target.is_symlink() or not target.is_dir() or not made_by_us(target):
        msg = f"{target} was not made by dask_convert, so it is not replaced: remove it yourself"
        raise TargetError(msg)
    foreign = next(
        (path for path in sorted(target.rglob("*")) if not _is_zarr_key(path, target)), None
    )
    if foreign is not None:
        name = foreign.relative_to(target)
        msg = f"{target} holds {name}, which is no part of a store: remove it yourself"
        raise TargetError(msg)


def check_space(plan: ConversionPlan, scratch: Path, target_parent: Path) -> None:
    """Refuse to begin where the disk cannot hold what is expected.

    Raises
    ------
    DiskSpaceError
        Says where, how much there is, and how much is needed.
    """
    needs = [(scratch, plan.scratch_bytes), (target_parent, plan.target_bytes)]
    if scratch.stat().st_dev == target_parent.stat().st_dev:
        needs = [(target_parent, plan.scratch_bytes + plan.target_bytes)]
    for directory, needed in needs:
        free = shutil.disk_usage(directory).free
        if free < needed:
            msg = (
                f"{directory} has {free:,} bytes free, and up to {needed:,} are needed; "
                "make room, or put scratch or target elsewhere"
            )
            raise DiskSpaceError(msg)


def _chosen(file: h5py.File, names: Iterable[str] | None) -> list[MatrixSource]:
    """The matrices to convert, in the order of the file."""
    found = csr_matrices(file)
    wanted = [matrix.name for matrix in found] if names is None else list(names)
    available = ", ".join(matrix.name for matrix in found) or "none"
    for name in wanted:
        if name not in {matrix.name for matrix in found}:
            msg = f"{file.filename}: {name!r} is no CSR matrix of this file; there are: {available}"
            raise PlanError(msg)
    if not found and "X" not in file:
        msg = f"{file.filename}: has no CSR matrix, and no X at all: there is nothing to convert"
        raise SourceError(msg)
    return [matrix for matrix in found if matrix.name in wanted]


def _prepare(source: Path, scratch: Path, partial: Path, plan: ConversionPlan) -> zarr.Group:
    """Put on scratch what tasks need, and begin the store."""
    with open_source(source) as file:
        prepared = [_prepare_matrix(file, scratch / str(n), m) for n, m in enumerate(plan.matrices)]
    plan = msgspec.structs.replace(plan, matrices=tuple(prepared))
    with published(scratch / "plan.json") as out:
        out.write(plan.to_json())
    try:
        return zarr.open_group(str(partial), mode="w-", zarr_format=plan.settings.zarr_format)
    except OSError as error:
        msg = f"cannot write beside {partial.parent}: {error.strerror}"
        raise TargetError(msg) from error


def _prepare_matrix(file: h5py.File, directory: Path, plan: MatrixPlan) -> MatrixPlan:
    """Save a matrix's row ends and chunk tables; members whose tables are odd go through HDF5."""
    directory.mkdir()
    files = MatrixScratch(str(directory))
    save_slabs(files.row_ends, plan.source.n_obs, row_index(file, plan.source).row_ends())
    changed = plan.source
    for member in ("data", "indices"):
        array = getattr(plan.source, member)
        table = chunk_table(file[plan.source.path][member]) if array.raw else None
        if table is not None:
            save_array(files.chunks(member), table)
        elif array.raw:
            array = msgspec.structs.replace(array, raw=False)
            changed = msgspec.structs.replace(changed, **{member: array})
    return msgspec.structs.replace(plan, source=changed)


def _copy_annotations(source: Path, root: zarr.Group, plan: ConversionPlan) -> None:
    with open_source(source) as file:
        copy_annotations(file, root, converted=[matrix.source.name for matrix in plan.matrices])


def _run_matrices(
    jobs: list[Job], plan: ConversionPlan, executor: Executor, progress: Progress
) -> tuple[MatrixResult, ...]:
    progress.start(plan)
    try:
        return tuple(_run_matrix(job, executor, progress) for job in jobs)
    finally:
        progress.stop()


def _run_matrix(job: Job, executor: Executor, progress: Progress) -> MatrixResult:
    """Run the three stages of one matrix; of its scratch files, only the indptr is left."""
    plan = job.plan
    started = time.perf_counter()
    last_split = started
    data_dtype = ""
    total = Meters()

    def on_report(report: Report) -> None:
        nonlocal last_split, data_dtype
        total.add(report.meters)
        if isinstance(report, SplitReport):
            last_split = time.perf_counter()
        elif isinstance(report, BarrierReport):
            data_dtype = report.data_dtype
        progress.report(plan, report)

    executor.run(conversion_graph(job, plan), on_report)
    ended = time.perf_counter()
    for number in range(len(plan.blocks)):
        job.files.block(number).unlink()
    return MatrixResult(
        name=plan.source.name,
        n_obs=plan.source.n_obs,
        n_vars=plan.source.n_vars,
        nnz=plan.source.nnz,
        data_dtype=np.dtype(data_dtype).name,
        source_bytes=total.bytes.get("source", 0),
        fragment_bytes=total.bytes.get("fragments", 0),
        target_bytes=total.bytes.get("target", 0),
        split_seconds=last_split - started,
        combine_seconds=ended - last_split,
        steps=total.seconds,
    )


def _make_directory(directory: Path) -> list[Path]:
    """Make a directory; returns those of its parents and itself that were not there."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make {directory}: {error.strerror}"
        raise TargetError(msg) from error
    return new


def _publish(partial: Path, target: Path, *, overwrite: bool) -> None:
    """Give the finished store its name; what was there before goes only then."""
    old = None
    if overwrite and target.exists():
        check_target(target, overwrite=True)
        old = target.with_name(f"{target.name}.replaced-{uuid.uuid4().hex[:8]}")
        target.rename(old)
    try:
        partial.rename(target)
    except OSError as error:
        if old is not None:
            old.rename(target)
        msg = f"{target}: the finished store cannot take its name: {error.strerror}"
        raise TargetError(msg) from error
    if old is not None:
        shutil.rmtree(old)


def _is_zarr_key(path: Path, root: Path) -> bool:
    """Whether a path can be a part of a zarr store: a group, metadata or a chunk."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return True
    metadata = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
    is_chunk = path.name == "c" or path.name.replace(".", "").isdigit()
    return path.name in metadata or (is_chunk and path.parent != root)
