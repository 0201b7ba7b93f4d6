"""A conversion from beginning to end: prepare, run the graph of each matrix, publish.

What there is meanwhile, and under which names, is in `dask_convert.conversion.workspace`. The
target's own name appears by one rename, when all is written and on disk. A run that ends before
that leaves what is needed to go on, if it ended for a reason that may pass and any task had been
finished; otherwise it leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import h5py
import msgspec
import numpy as np
import zarr

from dask_convert import __version__
from dask_convert.conversion.locks import RunLock
from dask_convert.conversion.matrix_run import MatrixRun
from dask_convert.conversion.publishing import (
    check_space,
    check_target,
    flush,
    new_directories,
    publish,
)
from dask_convert.conversion.resuming import start
from dask_convert.conversion.workspace import (
    RunState,
    Workspace,
    abandoned,
    clear,
    clear_attempts,
    clear_store,
    has_finished_work,
)
from dask_convert.engine.graph import Executor, Report
from dask_convert.engine.meters import PeakMemory
from dask_convert.engine.results import ConversionResult, MatrixResult, VerificationResult
from dask_convert.engine.tasks import Job
from dask_convert.errors import DaskConvertError, SourceError, TargetError
from dask_convert.files.annotations import copy_annotations, copy_attributes
from dask_convert.files.failpoints import reach
from dask_convert.files.fingerprints import changed_file
from dask_convert.files.h5ad import row_end_slabs
from dask_convert.files.hdf5 import reopen_source
from dask_convert.files.hdf5_trial import raw_table
from dask_convert.files.scratch import (
    MatrixScratch,
    load_array,
    save_array,
    save_slabs,
    save_struct,
    storage_errors,
)
from dask_convert.files.store_files import check_matrix_files
from dask_convert.files.zarr_csc import describe_matrix, finalise
from dask_convert.planning.dtypes import indptr_dtype
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import ConversionPlan, MatrixPlan
from dask_convert.verification.matrices import OnPart
from dask_convert.verification.verifying import save_keys, verify_conversion


class Progress(Protocol):
    """Is told how a run comes along; called in the thread that called `run_conversion`."""

    def start(self, plan: ConversionPlan) -> None:
        """The run begins."""

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """A task of a matrix is done."""

    def stop(self, *, failed: bool) -> None:
        """No more tasks will run: all are done, or one of them failed."""


def run_conversion(
    source: Path,
    target: Path,
    plan: ConversionPlan,
    executor: Callable[[ConversionPlan], AbstractContextManager[Executor]],
    *,
    scratch_parent: Path,
    overwrite: bool,
    progress: Progress,
    on_part: OnPart = lambda _name, _done, _total: None,
    restart: bool = False,
    limits: Limits | None = None,
) -> ConversionResult:
    """Convert a file as planned, or continue where an earlier call with the same plan stopped.

    Parameters
    ----------
    source, target
        The h5ad file and the store to make of it; absolute.
    plan
        From `source_plan.plan_conversion`, for this source.
    executor
        Gives what runs the tasks of a plan; entered while other preparations go on, and left,
        with no task running any more, before anything is cleared up.
    scratch_parent
        Where to make the scratch directory.
    overwrite
        Replace a target, if this tool made it.
    progress
        Is told of every task that is done.
    on_part
        Is told how the verification comes along; see `verification.verify_store`.
    restart
        Begin afresh, whatever an earlier run has kept.
    limits
        How long to wait for what.

    Raises
    ------
    DaskConvertError
        Of the kind that fits. There is then no target. If the error is of a kind that may pass
        and some work was finished, that is kept, and the error has a note which says so;
        otherwise nothing is left.
    """
    space = Workspace(target, scratch_parent)
    if not space.state.exists():
        check_target(target, overwrite=overwrite)  # before anything is made
    with (
        new_directories(target.parent),
        storage_errors(target.parent),
        RunLock(space.directory, target) as lock,
    ):
        state, plan = start(source, space, plan, overwrite=overwrite, restart=restart)
        if state.outcome is not None:  # published already: only clearing up was left
            clear(space)
            return state.outcome
        run = _Run(space, state, plan, lock, progress, on_part, limits or Limits())
        try:
            return run.convert(executor, overwrite=overwrite)
        except BaseException as error:
            _leave(space, state, lock, error)
            raise


class _Run:
    """A run that holds the lock and has its directories."""

    def __init__(
        self,
        space: Workspace,
        state: RunState,
        plan: ConversionPlan,
        lock: RunLock,
        progress: Progress,
        on_part: OnPart,
        limits: Limits,
    ) -> None:
        self._space = space
        self._state = state
        self._plan = plan
        self._lock = lock
        self._progress = progress
        self._on_part = on_part
        self._limits = limits
        self._source = Path(state.source.path)
        self._scratch = space.run_scratch(state.token)
        self._store = space.store(state.token)
        self._copying: Future[None] | None = None

    def convert(
        self,
        executor: Callable[[ConversionPlan], AbstractContextManager[Executor]],
        *,
        overwrite: bool,
    ) -> ConversionResult:
        """Build the store and publish it."""
        started = time.perf_counter()
        clear_attempts(self._space, self._state.token)
        check_space(self._plan, self._space, self._state.token)
        with PeakMemory() as memory, ThreadPoolExecutor(1) as helper:
            preparing = helper.submit(self._prepare)
            with executor(self._plan) as run:
                root = preparing.result()
                self._copying = helper.submit(self._copy_annotations, root)
                matrices = self._run_matrices(run)
                self._copying.result()
                self._describe(root, matrices)
                check_matrix_files(self._store, self._plan)
                verification = self._verify(run)
        self._check_source()
        flush(self._store)
        result = ConversionResult(
            str(self._space.target),
            self._plan,
            matrices,
            time.perf_counter() - started,
            memory.peak_bytes,
            verification,
            tuple(f"{path} of {target}" for path, target in abandoned(self._space)),
        )
        self._publish(result, overwrite=overwrite)
        return msgspec.structs.replace(result, seconds=time.perf_counter() - started)

    def _prepare(self) -> zarr.Group:
        """Put on scratch what tasks need, and begin the store."""
        clear_store(self._store, self._plan)
        prepare_scratch(self._source, self._scratch, self._plan)
        try:
            zarr_format = self._plan.settings.zarr_format
            return zarr.open_group(str(self._store), mode="a", zarr_format=zarr_format)
        except PermissionError as error:
            msg = f"cannot write beside {self._space.target}: {error.strerror}"
            raise TargetError(msg) from error

    def _copy_annotations(self, root: zarr.Group) -> None:
        self._copy_from_source(copy_annotations, root)
        reach("annotations: copied")

    def _copy_from_source(self, copy: Callable[..., None], root: zarr.Group) -> None:
        converted = [matrix.source.name for matrix in self._plan.matrices]
        with reopen_source(self._source, self._plan.settings.trust) as file:
            copy(file, root, converted=converted)

    def _run_matrices(self, executor: Executor) -> tuple[MatrixResult, ...]:
        self._progress.start(self._plan)
        failed = True
        try:
            results = tuple(
                MatrixRun(job, self._prepare_again, self._on_report, self._limits).run(executor)
                for job in self._jobs()
            )
            failed = False
            return results
        finally:
            self._progress.stop(failed=failed)

    def _jobs(self) -> list[Job]:
        return [
            Job(
                str(self._source),
                str(self._scratch),
                str(self._store),
                number,
                self._limits.wait_seconds,
            )
            for number in range(len(self._plan.matrices))
        ]

    def _prepare_again(self) -> None:
        prepare_scratch(self._source, self._scratch, self._plan)

    def _on_report(self, matrix: MatrixPlan, report: Report) -> None:
        """Pass a report on; end the run where going on has become useless."""
        if self._lock.lost:
            self._lock.check()
        if self._copying is not None and self._copying.done():
            self._copying.result()
        self._progress.report(matrix, report)

    def _describe(self, root: zarr.Group, results: tuple[MatrixResult, ...]) -> None:
        """Write the metadata around the files of entries."""
        for job, result in zip(self._jobs(), results, strict=True):
            matrix, indptr = job.plan, load_array(job.files.indptr)
            data_dtype = np.dtype(result.data_dtype)
            indptr = indptr.astype(indptr_dtype(self._plan.settings.profile, result.nnz))
            describe_matrix(root, matrix.source, matrix.target, data_dtype, indptr)
        self._copy_from_source(copy_attributes, root)
        reach("target: described")
        finalise(root, __version__)
        reach("target: finalised")

    def _verify(self, executor: Executor) -> VerificationResult | None:
        """Compare the store with its source, if that was asked for."""
        if not self._plan.settings.verify:
            return None
        where = (self._source, self._store, self._space.target)
        return verify_conversion(*where, self._plan.settings, self._jobs(), executor, self._on_part)

    def _check_source(self) -> None:
        if changed := changed_file(self._state.source, self._plan.settings.trust):
            msg = f"{changed} was changed while it was read: convert {self._source} again"
            raise SourceError(msg)

    def _publish(self, result: ConversionResult, *, overwrite: bool) -> None:
        self._lock.check()
        state = msgspec.structs.replace(self._state, outcome=result)
        save_struct(self._space.state, "state", state, durable=True)
        publish(self._space, self._store, overwrite=overwrite)
        clear(self._space)


def prepare_scratch(source: Path, scratch: Path, plan: ConversionPlan) -> None:
    """Put on scratch what tasks need: row ends, chunk tables, and the plan."""
    with reopen_source(source, plan.settings.trust) as file:
        prepared = [_prepare_matrix(file, scratch / str(n), m) for n, m in enumerate(plan.matrices)]
    plan = msgspec.structs.replace(plan, matrices=tuple(prepared))
    save_struct(scratch / "plan.json", "plan", plan, durable=True)


def _prepare_matrix(file: h5py.File, directory: Path, plan: MatrixPlan) -> MatrixPlan:
    """Save a matrix's row ends and chunk tables; members whose tables are odd go through HDF5."""
    directory.mkdir(exist_ok=True)
    files = MatrixScratch(str(directory))
    save_keys(files.keys)
    # Planning has checked these.
    save_slabs(files.row_ends, plan.source.n_obs, row_end_slabs(file[plan.source.path]["indptr"]))
    changed = plan.source
    for member in ("data", "indices"):
        array = getattr(plan.source, member)
        table = raw_table(file[plan.source.path][member], array)
        if table is not None:
            save_array(files.chunks(member), table)
        elif array.raw:
            array = msgspec.structs.replace(array, raw=False)
            changed = msgspec.structs.replace(changed, **{member: array})
    return msgspec.structs.replace(plan, source=changed)


def _leave(space: Workspace, state: RunState, lock: RunLock, error: BaseException) -> None:
    """Keep what the same command can go on from, and say so in a note, or remove everything."""
    if not lock.is_held():
        return  # it belongs to another run now
    may_pass = error.resumable if isinstance(error, DaskConvertError) else True
    if may_pass and has_finished_work(space, state.token):
        error.add_note(
            "what is finished is kept: the same command continues, and 'dask-convert clean "
            f"{space.target}' removes it"
        )
    else:
        clear(space)
