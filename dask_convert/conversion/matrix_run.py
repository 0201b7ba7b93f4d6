"""One matrix from beginning to end: its graph is run, and run again where scratch was damaged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from dask_convert.engine.graph import Executor, Key, Report, conversion_graph
from dask_convert.engine.meters import Meters
from dask_convert.engine.results import MatrixResult
from dask_convert.engine.tasks import (
    BarrierReport,
    CombineReport,
    Job,
    SplitReport,
    is_reused,
)
from dask_convert.errors import FragmentError, TaskError
from dask_convert.files.failpoints import reach
from dask_convert.files.scratch import load_array, load_struct, save_struct
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import MatrixPlan
from dask_convert.shuffle.integrity import check_regions


class MatrixDone(msgspec.Struct, frozen=True):
    """Published when all regions of a matrix are written, so that its fragments may go."""

    result: MatrixResult
    shuffled: BarrierReport


class MatrixRun:
    """Runs the three stages of a matrix; of its scratch files, only small ones are left.

    Parameters
    ----------
    job
        Where it takes place.
    prepare
        Writes again what tasks find on scratch, should that be damaged.
    on_report
        Is told of every task that is done.
    limits
        How often a block is done again.
    """

    def __init__(
        self,
        job: Job,
        prepare: Callable[[], object],
        on_report: Callable[[MatrixPlan, Report], None],
        limits: Limits,
    ) -> None:
        self._job = job
        self._plan = job.plan
        self._prepare = prepare
        self._on_report = on_report
        self._limits = limits
        self._done = _finished(job)
        self._shuffled = self._done.shuffled if self._done else None
        self._blocks: dict[int, SplitReport] = {}
        self._regions: dict[int, CombineReport] = {}
        self._tries: Counter[int] = Counter()
        self._started = self._last_split = time.perf_counter()

    def run(self, executor: Executor) -> MatrixResult:
        """Run what is still to be done.

        Raises
        ------
        FragmentError
            A row block's fragments are damaged again and again.
        DaskConvertError
            What else tasks raise.
        """
        while True:
            graph = conversion_graph(
                self._job,
                self._plan,
                done_blocks=self._blocks,
                done_regions=self._regions,
                shuffled=self._done.shuffled if self._done else None,
            )
            try:
                executor.run(graph, self._note)
                break
            except FragmentError as error:
                self._discard(error)
        return self._finish()

    def _note(self, key: Key, report: Report) -> None:
        number = key[1]
        if isinstance(report, SplitReport):
            self._last_split = time.perf_counter()
            self._blocks[number] = report
        elif isinstance(report, CombineReport):
            self._regions[number] = report
        else:
            self._shuffled = report
        self._on_report(self._plan, report)

    def _discard(self, error: FragmentError) -> None:
        """Forget the row block whose fragments are damaged, so that it is split again.

        With it go all whose files are missing. Where no row block is to blame, something that
        the driver or the barrier wrote is damaged: both write it again.
        """
        files = self._job.files
        self._done = None
        files.matrix_report.unlink(missing_ok=True)
        everything = range(len(self._plan.blocks))
        paths = {str(files.block(number)): number for number in everything}
        blamed = paths.get(error.path or "", -1)
        self._tries[blamed] += 1
        if self._tries[blamed] >= self._limits.tries:
            name = self._job.block_name(blamed) if blamed >= 0 else self._plan.source.name
            msg = f"{name}: {error}; so it was {self._limits.tries} times"
            raise FragmentError(msg) from error
        if blamed < 0:
            self._prepare()
        else:
            files.block_report(blamed).unlink(missing_ok=True)
            files.block(blamed).unlink(missing_ok=True)
        for number in everything:
            if not files.block(number).exists():
                self._blocks.pop(number, None)

    def _finish(self) -> MatrixResult:
        ended = time.perf_counter()
        missing = set(range(len(self._plan.regions))) - set(self._regions)
        if missing or self._shuffled is None:  # an executor that ends early must not pass
            msg = f"{self._plan.source.name}: not all tasks have reported: {sorted(missing)[:5]}"
            raise TaskError(msg)
        if self._done is None:
            checks = [self._regions[number].check for number in range(len(self._plan.regions))]
            duplicate_nnz = self._shuffled.findings.duplicate_nnz
            check_regions(self._plan.source.name, checks, self._shuffled.row_sum, duplicate_nnz)
            result = self._result(self._shuffled, ended)
            self._done = MatrixDone(result, self._shuffled)
            save_struct(self._job.files.matrix_report, "matrix report", self._done)
        with ThreadPoolExecutor() as pool:  # to free what the page cache has of them takes a while
            fragments = map(self._job.files.block, range(len(self._plan.blocks)))
            list(pool.map(partial(Path.unlink, missing_ok=True), fragments))
        reach("matrix: fragments removed")
        return msgspec.structs.replace(
            self._done.result,
            blocks_reused=sum(report.reused for report in self._blocks.values()),
            regions_reused=sum(report.reused for report in self._regions.values()),
        )

    def _result(self, shuffled: BarrierReport, ended: float) -> MatrixResult:
        total = Meters()
        reports: list[Report] = [*self._blocks.values(), shuffled, *self._regions.values()]
        for report in reports:
            total.add(report.meters)
        source = self._plan.source
        return MatrixResult(
            name=source.name,
            n_obs=source.n_obs,
            n_vars=source.n_vars,
            nnz=source.nnz,
            data_dtype=np.dtype(shuffled.data_dtype).name,
            source_bytes=total.bytes.get("source", 0),
            fragment_bytes=total.bytes.get("fragments", 0),
            target_bytes=total.bytes.get("target", 0),
            split_seconds=self._last_split - self._started,
            combine_seconds=ended - self._last_split,
            steps=total.seconds,
            findings=shuffled.findings,
            process_peaks=_process_peaks(reports),
        )


def _finished(job: Job) -> MatrixDone | None:
    """What an earlier run has finished; without an indptr that goes with it, it is not."""
    done = load_struct(job.files.matrix_report, MatrixDone)
    if done is None:
        return None
    try:
        load_array(job.files.indptr)
    except FragmentError:
        job.files.matrix_report.unlink(missing_ok=True)
        return None
    return done


def _process_peaks(reports: Iterable[Report]) -> dict[str, int]:
    """What the processes of this run's tasks say of their memory."""
    peaks: dict[str, int] = {}
    for report in reports:
        if not is_reused(report):
            meters = report.meters
            peaks[meters.process] = max(meters.peak_bytes, peaks.get(meters.process, 0))
    return peaks
