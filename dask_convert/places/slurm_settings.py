"""What users say about SLURM jobs: the ``slurm`` section of the configuration, checked."""

from __future__ import annotations

import re

import msgspec
from dask.utils import parse_bytes

RESERVE_BYTES = 200 * 2**20
"""Of a job's memory, for the process that starts and watches its workers."""

_WALLTIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d{1,2}){0,2})")


class SlurmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """How many jobs to submit, and what to ask for in each.

    Attributes
    ----------
    jobs
        Jobs to keep running.
    cores
        Cores of a job; each has a worker process of its own.
    memory
        Of a job, all its processes together: bytes, or as ``"8GiB"``.
    walltime
        Of a job, in one of SLURM's formats: ``"30"`` (minutes), ``"04:00:00"``, ``"1-12"``.
    lifetime_seconds
        After which workers leave of their own accord; by default some time before the walltime.
    queue, account
        Partition and account; by default what SLURM or ``jobqueue.slurm`` says.
    interface
        Network interface, such as ``ib0``, of scheduler and workers.
    python
        Interpreter on the nodes; by default the one that runs this.
    directives
        Further ``#SBATCH`` options.
    prologue
        Lines of shell that a job runs before its workers, such as ``module load``.
    log_directory
        Where jobs write their logs, kept; by default on scratch, removed with it.
    local_directory
        Where workers may keep files of their own, on their node.
    tls
        Whether scheduler, workers and client speak TLS, with credentials for this run.
    poll_seconds
        How often SLURM is asked about the jobs.
    """

    jobs: int = 4
    cores: int = 4
    memory: int | str = "8GiB"
    walltime: str = "04:00:00"
    lifetime_seconds: float | None = None
    queue: str | None = None
    account: str | None = None
    interface: str | None = None
    python: str | None = None
    directives: list[str] = []
    prologue: list[str] = []
    log_directory: str | None = None
    local_directory: str | None = None
    tls: bool = True
    poll_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("jobs", "cores", "poll_seconds", "lifetime_seconds"):
            number = getattr(self, name)
            if number is not None and number <= 0:
                msg = f"{name.replace('_', '-')} is {number}: it must be more than 0"
                raise ValueError(msg)
        parsed_bytes("memory", self.memory)
        _walltime_seconds(self.walltime)

    @property
    def job_bytes(self) -> int:
        """Memory of a job."""
        return parsed_bytes("memory", self.memory)

    @property
    def worker_limit_bytes(self) -> int:
        """Memory of one worker process: a share of what the job's own process leaves."""
        return max(self.job_bytes - RESERVE_BYTES, 0) // self.cores

    @property
    def workers(self) -> int:
        """Worker processes when all jobs run."""
        return self.jobs * self.cores

    @property
    def leaving_seconds(self) -> tuple[float, float]:
        """When workers leave, and by how much that varies, so that not all leave at once.

        The latest of them leave a tenth of the walltime, or five minutes, before it ends.
        """
        walltime_seconds = _walltime_seconds(self.walltime)
        margin_seconds = min(walltime_seconds / 10, 300.0)
        if self.lifetime_seconds is not None:
            return self.lifetime_seconds, min(self.lifetime_seconds / 10, margin_seconds)
        return walltime_seconds - 2 * margin_seconds, margin_seconds


def parsed_bytes(name: str, text: int | str) -> int:
    """A size in bytes from what users write.

    Raises
    ------
    ValueError
        It is no size; names it.
    """
    try:
        size = int(parse_bytes(text))
    except (ValueError, OverflowError):  # 1e400 is infinite
        size = -1
    if size < 0:
        msg = f"{name} is {text!r}: a number of bytes, or one with a unit like '4GiB'"
        raise ValueError(msg)
    return size


def _walltime_seconds(text: str) -> float:
    match = _WALLTIME.fullmatch(text)
    if match is None:
        msg = f"walltime is {text!r}: minutes, HH:MM:SS or D-HH:MM:SS, as SLURM has it, in quotes"
        raise ValueError(msg)
    numbers = [int(number) for number in match["fields"].split(":")]
    if match["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # minutes[:seconds]
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60.0 + seconds
