"""What a worker must have before it is given work, and how that is found out.

A plugin runs the checks where a worker runs: on those that are there before the first task is
sent, and on each later one, a replacement of a lost one for instance, while it starts. That the
package itself is there, in the same version, is asked first, with nothing but the standard
library, because nothing else could be sent.
"""

from __future__ import annotations

import asyncio
import pkgutil
import platform
import socket
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import msgspec
import numpy as np
from distributed import WorkerPlugin

from dask_convert import __version__
from dask_convert.errors import DaskConvertError, PlanError, SourceError, WorkerCheckError
from dask_convert.files.hdf5 import member_dataset, reopen_source
from dask_convert.places.probes import Question, meet
from dask_convert.places.watching import REFUSALS
from dask_convert.planning.layout import ArraySource, Trust
from dask_convert.planning.plans import ConversionPlan
from dask_convert.surroundings import require_fit, require_fit_zarr

if TYPE_CHECKING:
    from distributed import Client, Worker


_PACKAGES = ("dask", "distributed", "h5py", "hdf5plugin", "msgspec", "numba", "numpy", "zarr")


class Sample(msgspec.Struct, frozen=True):
    """The begin of a data set, which can be read only with all its filters.

    Attributes
    ----------
    name, array
        Which data set, and how it is stored.
    checksum
        Of the first element.
    """

    name: str
    array: ArraySource
    checksum: int = 0


class Requirements(msgspec.Struct, frozen=True):
    """What a worker must have.

    Attributes
    ----------
    source
        Path of the h5ad file.
    source_bytes
        Its size.
    samples
        Of each data set that will be read.
    trust
        What the file may do beyond being read.
    questions
        In the directories that must be shared.
    worker_bytes
        What a task of the plan, and the process around it, may take.
    versions
        Of Python and packages.
    wait_seconds
        How long shared directories may take to show new files.
    """

    source: str
    source_bytes: int
    samples: tuple[Sample, ...]
    trust: Trust
    questions: tuple[Question, ...]
    worker_bytes: int
    versions: dict[str, str]
    wait_seconds: float


class WorkerChecks(WorkerPlugin):
    """Refuses a worker that does not meet the requirements.

    Parameters
    ----------
    required
        What it must have.
    present
        Addresses of the workers that are there, and whose refusal ends the run.
    owned
        Whether one that comes later and is refused may be sent away, because the cluster is
        this run's own.
    """

    def __init__(self, required: Requirements, *, present: Collection[str], owned: bool) -> None:
        # Several runs may share a cluster.
        self.name = f"dask-convert-checks-{uuid.uuid4().hex[:8]}"
        self._required = required
        self._present = tuple(present)
        self._owned = owned

    async def setup(self, worker: Worker) -> None:
        """Run the checks; called by dask when the worker gets to know the plugin.

        Raises
        ------
        WorkerCheckError
            Names the worker, what it lacks, and the remedy.
        """
        limit = worker.memory_manager.memory_limit
        share_bytes = limit // worker.state.nthreads if limit else None
        try:
            await asyncio.to_thread(check_worker, self._required, share_bytes)
        except DaskConvertError as error:
            msg = f"worker {worker.address} on {socket.gethostname()}: {error}"
            await worker.scheduler.log_event(topic=REFUSALS, msg=msg)
            if self._owned and worker.address not in self._present:
                # The scheduler forgets it before it has seen a task. It cannot close here: its
                # nanny would wait for it to start, and it for the nanny.
                await worker.scheduler.retire_workers(
                    workers=[worker.address], close_workers=False, remove=True, stimulus_id=REFUSALS
                )
                worker.loop.add_callback(worker.close, reason=msg)
            raise WorkerCheckError(msg) from error


def requirements(
    source: Path, plan: ConversionPlan, questions: tuple[Question, ...], wait_seconds: float
) -> Requirements:
    """What workers must have for a plan."""
    return Requirements(
        str(source),
        source.stat().st_size,
        _readable_samples(source, plan),
        plan.settings.trust,
        questions,
        plan.worker_bytes,
        _versions(),
        wait_seconds,
    )


def require_package(client: Client) -> None:
    """Refuse workers on which this package is not there, or another version of it.

    Raises
    ------
    WorkerCheckError
        Names the worker.
    """
    where = "dask_convert._version:__version__"
    found = client.run(pkgutil.resolve_name, where, on_error="return")
    for address, version in found.items():
        if isinstance(version, OSError):
            continue  # the worker is gone
        if version != __version__:
            said = f"version {version}" if isinstance(version, str) else f"none ({version})"
            msg = (
                f"worker {address}: dask_convert must be there in version {__version__}, and there "
                f"is {said}: give workers the same environment"
            )
            raise WorkerCheckError(msg)


def check_worker(required: Requirements, share_bytes: int | None) -> None:
    """Compare this process with what is required of it.

    Parameters
    ----------
    required
        What there must be.
    share_bytes
        The memory that this worker may use per task; None if nothing limits it.

    Raises
    ------
    WorkerCheckError
        Says what is missing.
    """
    _check_versions(required.versions)
    try:
        require_fit()
        require_fit_zarr()
    except PlanError as error:
        raise WorkerCheckError(str(error)) from error
    if share_bytes is not None and share_bytes < required.worker_bytes:
        msg = (
            f"may use {share_bytes:,} bytes of memory per task, and the plan needs "
            f"{required.worker_bytes:,}: give workers more, or plan with less memory"
        )
        raise WorkerCheckError(msg)
    for question in required.questions:
        meet(question, required.wait_seconds)
    _check_source(required)


def _check_versions(required: Mapping[str, str]) -> None:
    for name, version in _versions().items():
        if version != required[name]:
            msg = (
                f"has {name} {version}, and here it is {required[name]}: give workers the same "
                "environment"
            )
            raise WorkerCheckError(msg)


def _check_source(required: Requirements) -> None:
    path = Path(required.source)
    try:
        size = path.stat().st_size
        samples = _samples(path, required.samples, required.trust)
    except (OSError, SourceError) as error:
        msg = f"the source cannot be read there: {error}"
        raise WorkerCheckError(msg) from error
    if size != required.source_bytes or samples != required.samples:
        msg = f"{path} is another file there, of {size:,} bytes: all nodes must see the same source"
        raise WorkerCheckError(msg)


def _readable_samples(source: Path, plan: ConversionPlan) -> tuple[Sample, ...]:
    """Samples of a source; none where it is damaged, which is the tasks' to tell."""
    wanted = [
        Sample(f"{matrix.source.path}/{member}", getattr(matrix.source, member))
        for matrix in plan.matrices
        for member in ("data", "indices")
        if matrix.source.nnz
    ]
    try:
        return _samples(source, wanted, plan.settings.trust)
    except (OSError, SourceError):
        return ()


def _samples(source: Path, wanted: Iterable[Sample], trust: Trust) -> tuple[Sample, ...]:
    with reopen_source(source, trust) as file:
        return tuple(_sample(file, sample, trust) for sample in wanted)


def _sample(file: h5py.File, sample: Sample, trust: Trust) -> Sample:
    first = member_dataset(file, sample.name, sample.array, trust)[:1]
    checksum = zlib.crc32(np.ascontiguousarray(first).tobytes())
    return msgspec.structs.replace(sample, checksum=checksum)


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }
