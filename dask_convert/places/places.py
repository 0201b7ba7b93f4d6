"""Where a conversion runs, and what its plan may count on there.

    in this process       no cluster at all
    local                 processes of this machine, made for the run
    slurm                 SLURM jobs that the run submits; `dask_convert.places.slurm`
    allocation            the SLURM job that the run is in; `dask_convert.places.allocation`
    a scheduler           that is there already, by its address, its file, or a client

They differ in where workers come from, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import dask
import msgspec

from dask_convert.engine.graph import ClientExecutor, Executor, SynchronousExecutor
from dask_convert.errors import ClusterError, PlanError
from dask_convert.files.scratch import visible
from dask_convert.places.allocation import allocation_client, current_allocation
from dask_convert.places.config import slurm_settings
from dask_convert.places.credentials import temporary_security
from dask_convert.places.local_cluster import default_workers, local_client
from dask_convert.places.probes import Probes
from dask_convert.places.rooms import private_rooms
from dask_convert.places.slurm import slurm_client
from dask_convert.places.slurm_settings import SlurmSettings
from dask_convert.places.watching import Jobs, NoJobs, Watch, local_watch
from dask_convert.planning import memory
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import ConversionPlan

if TYPE_CHECKING:
    from distributed import Client, Security

ClusterKind = Literal["local", "slurm", "allocation"]

USABLE_SHARE = 0.9
"""Of a worker's limit, of which the nanny takes 95 % as its own."""

FOREIGN_SHARE = 0.7
"""Of a limit on a cluster of somebody else, whose workers may pause at 80 %."""

UNSHARED_BYTES = 150 * memory.MIB
"""What a worker at rest has more on another machine, where it shares no memory with others."""


class Run(msgspec.Struct, frozen=True):
    """The run that a place is to serve.

    Attributes
    ----------
    source
        The h5ad file.
    directories
        Where scratch and target will be: workers must see the same there.
    plan
        What will be done.
    """

    source: Path
    directories: tuple[Path, ...]
    plan: ConversionPlan


class Patience(msgspec.Struct, frozen=True):
    """How long to wait for what.

    Attributes
    ----------
    no_workers_seconds
        Without any worker.
    wait_seconds
        For shared directories to show new files.
    connect_seconds
        For an answer of a scheduler that should be there.
    """

    no_workers_seconds: float = 600.0
    wait_seconds: float = 60.0
    connect_seconds: float = 30.0


class Place(msgspec.Struct, frozen=True):
    """Where tasks will run.

    Attributes
    ----------
    workers
        How many tasks run at a time; 0 in this process.
    worker_memory
        Bytes that a worker has; None where all share one budget.
    executor
        Gives what runs the tasks of a run.
    """

    workers: int
    worker_memory: int | None
    executor: Callable[[Run], AbstractContextManager[Executor]]


@contextmanager
def placed(
    *,
    cluster: ClusterKind | None,
    scheduler: str | None,
    client: Client | None,
    workers: int | None,
    slurm: SlurmSettings | None,
    dashboard_address: str | None,
    patience: Patience,
    limits: Limits,
) -> Iterator[Place]:
    """The place that the options name; a connection to a scheduler lasts as long as the block.

    Raises
    ------
    PlanError
        The options contradict each other.
    ClusterError
        The place is not there.
    """
    named = [
        name
        for name, option in (("cluster", cluster), ("scheduler", scheduler), ("client", client))
        if option is not None
    ]
    if len(named) > 1:
        msg = f"give one of cluster, scheduler and client, not {' and '.join(named)}"
        raise PlanError(msg)
    if not named and workers is None:
        scheduler = dask.config.get("scheduler-address", None)
    elsewhere = client is not None or scheduler is not None or cluster in {"slurm", "allocation"}
    if workers is not None and elsewhere:
        msg = "workers are those of the local cluster: elsewhere leave them out" + (
            ", and set dask-convert.slurm.jobs and cores" if cluster == "slurm" else ""
        )
        raise PlanError(msg)
    with ExitStack() as stack:
        if scheduler is not None:
            client = stack.enter_context(_connected(scheduler, patience))
        if client is not None:
            yield _existing(client, patience)
        elif cluster == "slurm":
            yield _slurm(slurm or slurm_settings(), dashboard_address, patience)
        elif cluster == "allocation":
            yield _allocation(slurm or slurm_settings(), dashboard_address, patience)
        else:
            count = default_workers() if workers is None else workers
            yield _local(count, dashboard_address, limits)


def _local(workers: int, dashboard_address: str | None, limits: Limits) -> Place:
    @contextmanager
    def executor(run: Run) -> Iterator[Executor]:
        if not run.plan.settings.workers:
            yield SynchronousExecutor()
            return
        with local_client(run.plan, dashboard_address, limits) as client:
            tasks = ClientExecutor(client, drain=False)
            with local_watch(client, tasks, limits.worker_ttl_seconds) as watch:
                yield watch

    return Place(workers, None, executor)


def _slurm(settings: SlurmSettings, dashboard_address: str | None, patience: Patience) -> Place:
    @contextmanager
    def executor(run: Run) -> Iterator[Executor]:
        with (
            private_rooms(run.directories) as rooms,
            slurm_client(settings, _security(settings, rooms[0]), rooms[0], dashboard_address) as (
                client,
                jobs,
            ),
            _watched(client, jobs, run, rooms, patience, settings.poll_seconds) as watch,
        ):
            yield watch

    return Place(settings.workers, _usable(settings.worker_limit_bytes), executor)


def _allocation(
    settings: SlurmSettings, dashboard_address: str | None, patience: Patience
) -> Place:
    found = current_allocation()

    @contextmanager
    def executor(run: Run) -> Iterator[Executor]:
        with (
            private_rooms(run.directories) as rooms,
            allocation_client(
                found,
                _security(settings, rooms[0]),
                rooms[0],
                settings.interface,
                dashboard_address,
            ) as (client, step),
            _watched(client, step, run, rooms, patience, settings.poll_seconds) as watch,
        ):
            yield watch

    return Place(found.workers, _usable(found.worker_limit_bytes), executor)


def _existing(client: Client, patience: Patience) -> Place:
    """A cluster of somebody else: its workers as they are, each of their threads one of ours."""
    idle = ClientExecutor(client)
    seconds = patience.no_workers_seconds
    with Watch(client, idle, NoJobs(), no_workers_seconds=seconds, poll_seconds=1.0) as watch:
        watch.wait_for_worker()
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    shares = [w["memory_limit"] // w["nthreads"] for w in found if w["memory_limit"]]
    worker_memory = int(min(shares) * FOREIGN_SHARE) - UNSHARED_BYTES if shares else None

    @contextmanager
    def executor(run: Run) -> Iterator[Executor]:
        with (
            private_rooms(run.directories) as rooms,
            _watched(client, NoJobs(), run, rooms, patience, 5.0) as watch,
        ):
            yield watch

    return Place(sum(w["nthreads"] for w in found), worker_memory, executor)


@contextmanager
def _connected(scheduler: str, patience: Patience) -> Iterator[Client]:
    """A client of a scheduler that is there already."""
    from distributed import Client

    is_file = "://" not in scheduler and Path(scheduler).suffix == ".json"
    where = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
    if is_file and not visible(Path(scheduler), patience.connect_seconds):
        msg = (
            f"{scheduler}: no such scheduler file after {patience.connect_seconds:g} seconds: does "
            "the scheduler run?"
        )
        raise ClusterError(msg)
    try:
        client = Client(**where, timeout=patience.connect_seconds, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        msg = (
            f"no dask scheduler answers at {scheduler} within {patience.connect_seconds:g} "
            f"seconds: {' '.join(str(error).split()) or type(error).__name__}"
        )
        raise ClusterError(msg) from error
    with client:
        yield client


@contextmanager
def _watched(
    client: Client,
    jobs: Jobs,
    run: Run,
    rooms: list[Path],
    patience: Patience,
    poll_seconds: float,
) -> Iterator[Executor]:
    """An executor whose workers were found fit, and are watched."""
    # Imports much that a run without a cluster does without.
    from dask_convert.places.worker_checks import WorkerChecks, require_package, requirements

    owned = not isinstance(jobs, NoJobs)
    with (
        Probes(rooms) as probes,
        Watch(
            client,
            ClientExecutor(client, drain=not owned),
            jobs,
            no_workers_seconds=patience.no_workers_seconds,
            poll_seconds=poll_seconds,
        ) as watch,
    ):
        needed = requirements(run.source, run.plan, probes.questions, patience.wait_seconds)
        checked = False
        while not checked:
            watch.wait_for_worker()
            with suppress(OSError):  # a worker went meanwhile: ask those that are left
                require_package(client)
                checks = WorkerChecks(needed, present=client.nthreads(), owned=owned)
                client.register_plugin(checks)
                checked = True
        try:
            yield watch
        finally:
            if not owned:
                client.unregister_worker_plugin(checks.name)


def _security(settings: SlurmSettings, room: Path) -> Security | None:
    return temporary_security(room / "tls") if settings.tls else None


def _usable(limit_bytes: int) -> int:
    """What the plan may give a worker that shares nothing with others."""
    return int(limit_bytes * USABLE_SHARE) - UNSHARED_BYTES
