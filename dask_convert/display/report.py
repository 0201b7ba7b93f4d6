"""The report of a run as one HTML file: it opens without a network, and also tells of failures."""

from __future__ import annotations

import logging
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dask_convert import __version__
from dask_convert.display.board import STEPS, Run
from dask_convert.display.board_feed import stage_of, started
from dask_convert.display.charts import Bar, Line, Mark, lane_chart, line_chart
from dask_convert.display.losses import Loss, NotingExecutor, losses_since
from dask_convert.display.side_files import check_page, write_page
from dask_convert.display.summary import of_plan, of_result, of_verification
from dask_convert.engine.meters import Meters, tree_bytes
from dask_convert.engine.tasks import is_reused
from dask_convert.errors import VerificationError
from dask_convert.planning.sizes import bytes_text, seconds_text

if TYPE_CHECKING:
    from distributed import Client

    from dask_convert.engine.graph import Executor, Report
    from dask_convert.engine.results import ConversionResult
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan

SAMPLE_SECONDS = 1.0
LINES = 12
"""Workers whose memory is drawn, those that took most of it."""

_GIB = 2**30
_PACKAGES = ("dask", "distributed", "h5py", "numpy", "numba", "zarr", "anndata")

_log = logging.getLogger(__name__)


class RunReport:
    """Collects what a report shows while a run goes on; a `run.Progress`.

    Parameters
    ----------
    source, target
        Of the conversion.

    Attributes
    ----------
    result
        Of the run, once there is one.

    Notes
    -----
    The memory of workers is sampled once a second: as dask's scheduler knows it (resident), or
    as the system does (proportional), where everything is in one process.
    """

    def __init__(self, source: str, target: str) -> None:
        self.result: ConversionResult | None = None
        self._where = (source, target)
        self._began = time.time()
        self._plan: ConversionPlan | None = None
        self._run: Run | None = None
        self._tasks: list[tuple[str, Meters]] = []
        self._parts: list[tuple[str, float]] = []
        self._losses: list[Loss] = []
        self._matrix = ""
        self._processes: dict[str, str] = {}
        self._client: Client | None = None
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="report", daemon=True)

    @contextmanager
    def watching(self, executor: Executor) -> Iterator[Executor]:
        """Sample workers while the block runs, and note at its end which of them were lost.

        Without a client, this process and all below it are sampled. What is yielded is to be
        used in the executor's place.
        """
        client = self._client = executor.client
        noting = NotingExecutor(executor, lambda: self._matrix)
        try:
            yield noting
        finally:
            self._done.set()
            if self._sampler.ident is not None:
                self._sampler.join()
            if client is not None and self._run is not None:
                self._losses = losses_since(client, self._run.began, noting.matrices)
            self._client = None

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        self._plan = plan
        self._run = Run(started(plan, *self._where), time.time())
        self._sampler.start()

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        stage, name = stage_of(report), matrix.source.name
        self._matrix = name
        if self._run is not None:
            self._run.done[name, stage] = self._run.done.get((name, stage), 0) + 1
        if is_reused(report):
            return
        self._processes[report.meters.worker] = report.meters.process
        self._tasks.append((f"{stage} {name}", report.meters))
        if self._run is not None:
            for step, n_bytes in report.meters.bytes.items():
                self._run.bytes[step] = self._run.bytes.get(step, 0) + n_bytes

    def part(self, name: str, done: int, total: int) -> None:
        """See `verification.verify_store`."""
        self._matrix = name
        if self._run is not None:
            self._run.compared[name] = (done, total)
        self._parts.append((f"verify {name}", time.time()))

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`; workers are sampled on, since a verification may follow."""

    @contextmanager
    def written_to(self, path: Path | None) -> Iterator[RunReport]:
        """Write the report when the block ends, well or not; `result` is what it was to do.

        If it turns out then that it cannot be written, a warning is logged: the conversion, or its
        error, matters more.

        Raises
        ------
        TargetError, DiskSpaceError
            It can be told already that it cannot be written, or would replace what is no page of
            ours; before the block begins.
        """
        if path is None:
            yield self
            return
        path = path.absolute()
        check_page(path, source=Path(self._where[0]), target=Path(self._where[1]))
        try:
            yield self
        except BaseException as error:
            # What was refused at first has no report, if it would take the place of one.
            if self._run is not None or not path.exists():
                self._write(path, error)
            raise
        self._write(path, None)

    def _write(self, path: Path, error: BaseException | None) -> None:
        try:
            page = self._page(error)
            path.parent.mkdir(parents=True, exist_ok=True)  # a run that failed has removed its own
            write_page(path, page, source=Path(self._where[0]), target=Path(self._where[1]))
        except Exception as failure:  # noqa: BLE001  (whatever: a report is not worth a conversion)
            _log.warning("%s: the report cannot be written: %s", path, failure)

    def _page(self, error: BaseException | None) -> str:
        from jinja2 import Environment

        template = (
            files("dask_convert.display").joinpath("templates/report.html").read_text("utf-8")
        )
        return Environment(autoescape=True).from_string(template).render(
            source=self._where[0],
            target=self._where[1],
            state="failed" if error is not None else "done",
            error="" if error is None else f"{type(error).__name__}: {error}",
            began=time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self._began)),
            seconds=seconds_text(time.time() - self._began),
            result="" if self.result is None else of_result(self.result),
            stages=self._stages(),
            retries=self._retries(),
            verification=self._verification(error),
            lost=[self._lost_row(loss) for loss in self._losses],
            plan="" if self._plan is None else of_plan(self._plan),
            settings=[] if self._plan is None else msgspec.to_builtins(self._plan.settings).items(),
            steps=self._steps(),
            charts=self._charts(),
            facts=_facts(),
            python=f"Python {platform.python_version()} on {platform.platform()}",
            command=" ".join(sys.argv),
        )  # fmt: skip

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            if self._run is not None:
                self._run.sample(time.time(), self._memory())

    def _memory(self) -> dict[str, float]:
        client = self._client
        if client is None:
            return {"this process": float(tree_bytes())}
        try:
            workers = client.scheduler_info(n_workers=-1)["workers"]
        except Exception:  # noqa: BLE001  (a scheduler that is gone is told of elsewhere)
            return {}
        return {str(w["name"]): float(w["metrics"].get("memory", 0)) for w in workers.values()}

    def _steps(self) -> list[tuple[str, str, str]]:
        """Every step: its name, seconds over all tasks, bytes."""
        total = Meters()
        for _, meters in self._tasks:
            total.add(meters)
        rows = [(name, seconds_text(seconds), "") for name, seconds in total.seconds.items()]
        return rows + [(name, "", bytes_text(n_bytes)) for name, n_bytes in total.bytes.items()]

    def _charts(self) -> list[tuple[str, str]]:
        """Titles and pictures."""
        run = self._run
        if run is None:
            return []
        began = self._zero(run)
        bars = [Bar(m.process, m.began - began, m.ended - began, name) for name, m in self._tasks]
        marks = [
            Mark(self._lane(loss), loss.time - began, " ".join(self._lost_row(loss)))
            for loss in self._losses
        ]
        moved = [Line(word, *_in_gib(run.moved.of(name))) for name, word in STEPS.items()]
        names = sorted(run.memory.names(), key=lambda name: -max(run.memory.of(name)[1]))
        drawn = f"{LINES} of {len(names)} workers" if len(names) > LINES else "workers"
        memory = [Line(f"worker {name}", *_in_gib(run.memory.of(name))) for name in names[:LINES]]
        rows = list(run.memory.rows())
        together = ([seconds for seconds, _ in rows], [sum(each.values()) for _, each in rows])
        limit = run.started.memory_bytes / _GIB
        return [
            (
                "Tasks of each process; crosses: lost workers",
                lane_chart([*bars, *self._compared(began)], marks),
            ),
            ("Bytes moved", line_chart(moved, "GiB")),
            (
                f"Memory of {drawn}; dashed: the budget of all processes",
                line_chart([*memory, Line("all", *_in_gib(together))], "GiB", limit),
            ),
        ]

    def _zero(self, run: Run) -> float:
        """When the report's time begins."""
        return min([run.began, *(meters.began for _, meters in self._tasks)])

    def _compared(self, began: float) -> Iterator[Bar]:
        """The verification of each matrix as one bar: its parts do not tell who did them."""
        ended = dict(self._parts)  # the last of each
        start = max([began, *(meters.ended for _, meters in self._tasks)])
        for name, at in ended.items():
            yield Bar("all workers", start - began, at - began, name)
            start = at

    def _stages(self) -> list[str]:
        """How far every stage came."""
        stages = [] if self._run is None else self._run.stages()
        return [f"{name}: {min(done, total):,} of {total:,}" for name, done, total in stages]

    def _retries(self) -> str:
        """What was done more than once, in words."""
        given = [work for loss in self._losses for work in loss.work]
        found = [work for loss in self._losses for work in loss.lost_results]
        told = [f"given to another worker: {', '.join(given)}"] if given else []
        told += [f"finished, and found again on scratch: {', '.join(found)}"] if found else []
        for stage, done, total in [] if self._run is None else self._run.stages():
            if done > total:
                told.append(f"{stage}: {done - total} more, since scratch was damaged")
        return "; ".join(told)

    def _verification(self, error: BaseException | None) -> str:
        """What comparing with the source came to, in words."""
        if isinstance(error, VerificationError):
            return "\n".join(["The store differs from its source:", *error.differences])
        if self.result is not None and self.result.verification is not None:
            return of_verification(self.result.verification)
        asked = self._plan is not None and self._plan.settings.verify
        return "asked for, and not come to its end" if asked else "not asked for"

    def _lane(self, loss: Loss) -> str:
        """The process of a worker, if a task of it has told."""
        return self._processes.get(loss.worker, loss.worker)

    def _lost_row(self, loss: Loss) -> tuple[str, str, str, str]:
        """When a worker was lost, which, how, and what it was doing."""
        began = self._zero(self._run) if self._run is not None else self._began
        how = "left as told" if loss.expected else "lost"
        work = ", ".join(loss.work) or "nothing"
        return f"{loss.time - began:.1f} s", self._lane(loss), how, work


def _in_gib(series: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    seconds, values = series
    return seconds, [value / _GIB for value in values]


def _facts() -> list[tuple[str, str]]:
    return [("dask_convert", __version__), *((name, version(name)) for name in _PACKAGES)]
