"""Workers in SLURM jobs that this process submits, through dask-jobqueue.

dask-jobqueue writes the job script, submits and cancels. That lost jobs are replaced is done
here, by asking SLURM which jobs there still are: a static dask cluster never replaces any, an
adaptive one only those whose workers had once been there, and none of several workers each.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from dask_convert.errors import ClusterError
from dask_convert.places.closing import closing_quietly
from dask_convert.places.local_cluster import WORKER_SETTINGS
from dask_convert.places.slurm_settings import SlurmSettings
from dask_convert.places.worker_start import WORKER_ENVIRONMENT

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster
    from distributed import Client, Security

SQUEUE_SECONDS = 60.0
_LIVING = frozenset({"CONFIGURING", "PENDING", "RUNNING", "RESIZING", "STAGE_OUT", "SUSPENDED"})
SCHEDULER_SETTINGS = {
    **WORKER_SETTINGS,
    # Jobs end for many reasons, and dask blames every task that a lost worker had been given.
    "distributed.scheduler.allowed-failures": 10,
    # Dask's own replacing of lost workers would cancel jobs that this package has just submitted.
    "distributed.deploy.lost-worker-timeout": "36500 days",
}
"""Dask's configuration for schedulers whose workers come and go."""


class SlurmJobs:
    """The jobs of a cluster; see `watching.Jobs`.

    Parameters
    ----------
    cluster
        Has no jobs yet.
    count
        Jobs that there should be.
    logs
        Where they write their logs.
    """

    def __init__(self, cluster: SLURMCluster, count: int, logs: Path) -> None:
        self.count = count
        self._cluster = cluster
        self._logs = logs
        self._refused = ""
        self._submitted = 0

    def submit(self) -> None:
        """Submit as many jobs as are missing.

        Raises
        ------
        ClusterError
            SLURM takes none; says why.
        """
        spec = self._cluster.worker_spec
        while len(spec) < self.count:
            # A name that no job had before: dask knows workers, gone ones too, by their names.
            spec[f"job-{self._submitted}"] = self._cluster.new_spec
            self._submitted += 1
        try:
            self._cluster.sync(self._settled)
        except RuntimeError as error:
            from distributed.core import Status

            for job in self._cluster.workers.values():
                if job.job_id is None:
                    job.status = Status.failed
            self._refused = " ".join(str(error).partition("stderr:")[2].split()) or str(error)
            msg = f"SLURM does not take the job: {self._refused}"
            raise ClusterError(msg) from error
        self._refused = ""

    def replace_lost(self) -> int:
        """Submit anew what has ended; see `watching.Jobs`."""
        known = {name: job.job_id for name, job in list(self._cluster.workers.items())}
        queue = self._queue()
        if queue is None:
            return 0
        living = {job_id for job_id, state, _ in queue if state in _LIVING}
        gone = [name for name, job_id in known.items() if job_id not in living]
        with suppress(ClusterError):  # it may take one later; `describe` tells
            if gone:
                self._cluster.sync(self._cluster.scale_down, gone)
            if gone or self._refused:
                self.submit()
        return len(gone)

    async def _settled(self) -> None:
        """Returns when jobs are submitted and cancelled as specified."""
        await self._cluster

    def describe(self) -> str:
        """What SLURM says about the jobs, and the last of them about itself."""
        queue = self._queue()
        if queue is None:
            said = "squeue does not answer"
        else:
            jobs = ", ".join(f"job {number} is {state} ({why})" for number, state, why in queue)
            said = f"squeue says: {jobs or 'no job'}"
        if self._refused:
            said = f"{said}; SLURM does not take more: {self._refused}"
        last = last_line(self._logs)
        return f"{said}; the last log ends: {last}" if last else said

    def _queue(self) -> list[tuple[str, str, str]] | None:
        """Number, state and reason of each job that SLURM still knows; None if it is silent."""
        command = ["squeue", "--noheader", "--format=%i|%T|%r", "--name", self._cluster.job_name]
        try:
            listed = subprocess.run(  # noqa: S603  (no part of it comes from elsewhere)
                command, capture_output=True, text=True, check=True, timeout=SQUEUE_SECONDS
            )
        except (OSError, subprocess.SubprocessError):
            return None
        rows = [line.split("|", 2) for line in listed.stdout.splitlines() if line.count("|") > 1]
        return [(number, state, why) for number, state, why in rows]


@contextmanager
def slurm_client(
    settings: SlurmSettings, security: Security | None, room: Path, dashboard_address: str | None
) -> Iterator[tuple[Client, SlurmJobs]]:
    """A scheduler in this process, and jobs with its workers; all gone with the block.

    Parameters
    ----------
    settings
        What to ask SLURM for.
    security
        Credentials, as files that the nodes can read; None for none.
    room
        A directory of this run, shared with the nodes.
    dashboard_address
        Host and port of the dashboard; None for no dashboard.

    Raises
    ------
    ClusterError
        SLURM or dask-jobqueue is not there, or SLURM does not take the jobs.
    """
    from distributed import Client

    cluster_class = _cluster_class()
    logs = Path(settings.log_directory) if settings.log_directory else room / "logs"
    with dask.config.set(SCHEDULER_SETTINGS):
        cluster = cluster_class(
            **_job_options(settings, room.name.lstrip("."), logs),
            security=security,
            protocol="tcp://" if security is None else "tls://",
            scheduler_options=_scheduler_options(settings, dashboard_address),
            silence_logs="error",
        )
        with (
            closing_quietly() as hush,
            cluster,
            Client(cluster, security=security, set_as_default=False) as client,
        ):
            jobs = SlurmJobs(cluster, settings.jobs, logs)
            _require_slurm()
            jobs.submit()
            try:
                yield client, jobs
            finally:
                hush()


def _cluster_class() -> Any:
    """Dask-jobqueue's cluster, imported without what it does to Ctrl-C: end with code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        msg = "SLURM needs the package dask-jobqueue: pip install 'dask_convert[slurm]'"
        raise ClusterError(msg) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    return SLURMCluster


def worker_arguments(settings: SlurmSettings) -> list[str]:
    """Options of ``dask worker``: leave before the walltime, talk about oneself on loopback."""
    lifetime_seconds, stagger_seconds = settings.leaving_seconds
    return [
        "--lifetime",
        f"{lifetime_seconds:.0f}s",
        "--lifetime-stagger",
        f"{stagger_seconds:.0f}s",
        "--dashboard-address",
        "127.0.0.1:0",
    ]


def worker_environment() -> dict[str, str]:
    """Environment of ``dask worker``: the settings of local workers, for any node."""
    wanted = {
        name: setting
        for name, setting in WORKER_SETTINGS.items()
        if name.startswith("distributed.worker.")
    }
    return {
        f"DASK_{name.upper().replace('-', '_').replace('.', '__')}": str(setting)
        for name, setting in wanted.items()
    } | WORKER_ENVIRONMENT


def _job_options(settings: SlurmSettings, name: str, logs: Path) -> dict[str, Any]:
    exports = [f"export {name}={text}" for name, text in worker_environment().items()]
    worker_bytes = settings.worker_limit_bytes * settings.cores
    return {
        "cores": settings.cores,
        "processes": settings.cores,
        "memory": f"{worker_bytes}B",
        "job_mem": f"{settings.job_bytes // 2**20}M",
        "walltime": settings.walltime,
        "queue": settings.queue,
        "account": settings.account,
        "interface": settings.interface,
        "python": settings.python,
        "local_directory": settings.local_directory,
        "log_directory": str(logs),
        "job_name": name,
        "name": "dask-convert",
        # SLURM would start a lost job again under its old number while a new one runs.
        "job_extra_directives": ["--no-requeue", "--nodes=1", *settings.directives],
        "job_script_prologue": [*exports, *settings.prologue],
        "worker_extra_args": worker_arguments(settings),
    }


def _scheduler_options(settings: SlurmSettings, dashboard_address: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dashboard_address": dashboard_address or "127.0.0.1:0",
        "dashboard": dashboard_address is not None,
    }
    return options | ({"interface": settings.interface} if settings.interface else {})


def _require_slurm() -> None:
    try:
        command = ["sinfo", "--noheader"]
        subprocess.run(command, capture_output=True, check=True, timeout=SQUEUE_SECONDS)  # noqa: S603  (fixed)
    except subprocess.CalledProcessError as error:
        msg = f"SLURM does not answer: {error.stderr.decode().strip()}"
        raise ClusterError(msg) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"SLURM is not here, or does not answer: {error}"
        raise ClusterError(msg) from error


def last_line(logs: Path) -> str:
    """The last line of the log that was written to last."""
    with suppress(OSError):
        for path in sorted(logs.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            lines = path.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
    return ""
