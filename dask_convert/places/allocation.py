"""Workers in the SLURM allocation that this process runs in: one ``srun`` with all of them.

The driver and the scheduler run where the batch script runs; a worker process takes each core of
each node. A process that dies is started again by its nanny, and so is a node's share of
workers by this module, if ``srun`` ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import msgspec

from dask_convert.errors import ClusterError
from dask_convert.places.closing import closing_quietly
from dask_convert.places.slurm import SCHEDULER_SETTINGS, last_line, worker_environment
from dask_convert.places.slurm_settings import RESERVE_BYTES
from dask_convert.planning import memory

if TYPE_CHECKING:
    from distributed import Client, Security

END_SECONDS = 30.0
"""For workers to go before they are killed."""


class Allocation(msgspec.Struct, frozen=True):
    """What SLURM has given to this job, the same on every node.

    Attributes
    ----------
    nodes
        How many.
    cores
        Of a node.
    node_bytes
        Memory of a node.
    """

    nodes: int
    cores: int
    node_bytes: int

    @property
    def workers(self) -> int:
        """One per core."""
        return self.nodes * self.cores

    @property
    def worker_limit_bytes(self) -> int:
        """Memory of one worker: a share of what this process and the nanny leave."""
        left_bytes = self.node_bytes - RESERVE_BYTES - memory.DRIVER_BYTES
        return max(left_bytes, 0) // self.cores


def current_allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """What SLURM's environment variables say.

    Raises
    ------
    ClusterError
        This is no SLURM job, or it has no memory of its own.
    """
    if "SLURM_JOB_ID" not in environment:
        msg = "there is no SLURM allocation here: start this by sbatch, or say --cluster slurm"
        raise ClusterError(msg)
    cores = min(
        int(n) for n in re.findall(r"(\d+)(?:\(|,|$)", environment["SLURM_JOB_CPUS_PER_NODE"])
    )
    megabytes = int(environment.get("SLURM_MEM_PER_NODE", 0))
    megabytes = megabytes or cores * int(environment.get("SLURM_MEM_PER_CPU", 0))
    if not megabytes:
        msg = "the allocation does not say how much memory it has: give sbatch --mem"
        raise ClusterError(msg)
    return Allocation(int(environment["SLURM_JOB_NUM_NODES"]), cores, megabytes * 2**20)


class SrunStep:
    """The step that all workers run in; see `watching.Jobs`."""

    count = 1

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._process = self._start()

    def replace_lost(self) -> int:
        """Start the step again if it has ended; see `watching.Jobs`."""
        if self._process.poll() is None:
            return 0
        self._process = self._start()
        return 1

    def describe(self) -> str:
        """The last line of what srun and the workers say."""
        return f"srun's log ends: {last_line(self._log.parent)}"

    def stop(self) -> None:
        """End the step and wait for it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            try:
                return subprocess.Popen(  # noqa: S603  (no part of it comes from elsewhere)
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | worker_environment(),
                    start_new_session=True,  # Ctrl-C is the driver's to answer
                )
            except OSError as error:
                msg = f"workers cannot be started by srun: {error}"
                raise ClusterError(msg) from error


@contextmanager
def allocation_client(
    allocation: Allocation,
    security: Security | None,
    room: Path,
    interface: str | None,
    dashboard_address: str | None,
) -> Iterator[tuple[Client, SrunStep]]:
    """A scheduler in this process, and workers on all nodes of the allocation.

    Parameters
    ----------
    allocation
        From `current_allocation`.
    security
        Credentials, as files that the nodes can read; None for none.
    room
        A directory of this run, shared with the nodes.
    interface
        Network interface of scheduler and workers.
    dashboard_address
        Host and port of the dashboard; None for no dashboard.
    """
    from distributed import Client, Scheduler, SpecCluster

    protocol = "tcp://" if security is None else "tls://"
    options: dict[str, Any] = {
        "protocol": protocol,
        "security": security,
        "interface": interface,
        "dashboard_address": dashboard_address or "127.0.0.1:0",
        "dashboard": dashboard_address is not None,
    }
    (room / "logs").mkdir()
    with (
        closing_quietly() as hush,
        dask.config.set(SCHEDULER_SETTINGS),
        SpecCluster(
            scheduler={"cls": Scheduler, "options": options},
            security=security,
            silence_logs="error",
        ) as cluster,
        Client(cluster, security=security, set_as_default=False) as client,
    ):
        command = _worker_command(allocation, cluster.scheduler_address, security, interface)
        step = SrunStep(command, room / "logs" / "srun.log")
        try:
            yield client, step
        finally:
            hush()
            step.stop()


def _worker_command(
    allocation: Allocation, address: str, security: Security | None, interface: str | None
) -> list[str]:
    tls = {} if security is None else security.get_tls_config_for_role("worker")
    return [
        *("srun", f"--nodes={allocation.nodes}", f"--ntasks={allocation.nodes}"),
        *("--ntasks-per-node=1", f"--cpus-per-task={allocation.cores}", "--cpu-bind=none"),
        *("--kill-on-bad-exit=0", "--overlap"),
        *(sys.executable, "-m", "distributed.cli.dask_worker", address),
        *("--nworkers", str(allocation.cores), "--nthreads", "1"),
        *("--memory-limit", str(allocation.worker_limit_bytes), "--death-timeout", "60"),
        *("--dashboard-address", "127.0.0.1:0"),
        *(("--interface", interface) if interface else ()),
        *(
            word
            for name in ("ca_file", "cert", "key")
            if tls
            for word in (f"--tls-{name.replace('_', '-')}", tls[name])
        ),
    ]
