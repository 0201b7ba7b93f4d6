"""Conversions on a real SLURM, whose jobs and nodes are taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_equal, job_settings
from local_slurm import LocalSlurm, wait_until

from dask_convert.errors import ClusterError, DaskConvertError, NoWorkersError, WorkerCheckError

Convert = Callable[..., Any]
SPLIT, COMBINE = "SplitReport", "CombineReport"


def running(slurm: LocalSlurm) -> list[str]:
    """The jobs that run."""
    return slurm.run("squeue", "--noheader", "--format=%i", "--states=running").split()


def names(directory: Path) -> list[str]:
    """What a directory has."""
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def two_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up sooner than users would want."""
    monkeypatch.setattr("dask_convert.places.watching.GENERATIONS", 2)


@pytest.mark.parametrize("lost", ["one", "all"])
def test_lost_jobs_are_replaced(
    slurm: LocalSlurm, convert: Convert, source: Path, lost: str
) -> None:
    """`scancel` of a worker job, or of all at once, in split and in combine: others take over."""
    cancelled: dict[str, list[str]] = {}

    def cancel(kind: str) -> None:
        if kind in {SPLIT, COMBINE}:
            cancelled[kind] = running(slurm)[: 1 if lost == "one" else None]
            slurm.run("scancel", *cancelled[kind])

    convert(cancel)
    assert all(cancelled[kind] for kind in (SPLIT, COMBINE))
    assert_equal(source)


def test_a_node_that_goes_down_is_done_without(
    slurm: LocalSlurm, convert: Convert, source: Path
) -> None:
    """Its job is lost, and a new one goes to the node that is left."""
    down = []

    def set_down(kind: str) -> None:
        if kind == SPLIT:
            states = slurm.run("squeue", "--noheader", "--format=%N", "--states=running")
            down.append(states.split()[0])
            slurm.run("scontrol", "update", f"NodeName={down[0]}", "State=DOWN", "Reason=test")

    try:
        convert(set_down)
    finally:
        for node in down:
            slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            wait_until(lambda: "down" not in slurm.run("sinfo", "--noheader"), 20)
    assert down
    assert_equal(source)


def test_a_job_over_its_memory_is_replaced(convert: Convert, source: Path, control: Path) -> None:
    """Once is bad luck."""
    (control / "hog-once").touch()
    convert(memory="700MiB")
    assert not (control / "hog-once").exists()
    assert_equal(source)


@pytest.mark.usefixtures("two_generations")
def test_jobs_always_over_their_memory_end_the_run(
    convert: Convert, source: Path, control: Path
) -> None:
    """A task that no job survives is told, instead of being tried for ever."""
    (control / "hog").touch()
    with pytest.raises(DaskConvertError, match="memory"):
        convert(memory="700MiB")
    assert names(source.parent) == ["cells.h5ad"]


def test_a_walltime_that_is_too_short_takes_several_generations(
    slurm: LocalSlurm, convert: Convert, source: Path, control: Path
) -> None:
    """Workers leave, new ones come, and what was finished stays finished."""
    seen: set[str] = set()
    (control / "seconds").write_text("0.3")
    convert(lifetime_seconds=5.0, on_any_report=lambda: seen.update(running(slurm)))
    assert len(seen) > 2
    assert_equal(source)


def test_a_walltime_in_which_no_task_ends_is_refused(
    convert: Convert, source: Path, control: Path
) -> None:
    """Generations of jobs without a single finished task are told, with what SLURM says."""
    (control / "seconds").write_text("100")
    # SLURM's own shortest walltime is a minute; a job that ends itself after 4 s is ended alike.
    short = [*job_settings(control)["prologue"], "(sleep 4; scancel $SLURM_JOB_ID) &"]
    with pytest.raises(NoWorkersError, match=r"walltime too short.*squeue says"):
        convert(jobs=1, prologue=short)
    assert names(source.parent) == ["cells.h5ad"]


@contextmanager
def partition_down(slurm: LocalSlurm) -> Iterator[None]:
    """A queue that takes jobs and starts none."""
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        yield
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")


def test_jobs_that_never_start_are_an_error_that_says_why(
    slurm: LocalSlurm, convert: Convert, source: Path
) -> None:
    """The queue's own words; no job is left in it."""
    words = r"no worker for 3 seconds: squeue says: job \d+ is PENDING \(PartitionDown\)"
    with partition_down(slurm), pytest.raises(NoWorkersError, match=words):
        convert(no_workers_seconds=3.0)
    assert names(source.parent) == ["cells.h5ad"]


def test_a_job_that_slurm_does_not_take_is_an_error_in_its_words(
    convert: Convert, source: Path
) -> None:
    """At once, not after a wait."""
    with pytest.raises(ClusterError, match="invalid partition specified: nowhere"):
        convert(queue="nowhere")
    assert names(source.parent) == ["cells.h5ad"]


def test_jobs_that_end_at_once_are_an_error_with_their_last_words(
    convert: Convert, source: Path
) -> None:
    """An interpreter that is not on the nodes, for instance."""
    with pytest.raises(NoWorkersError, match="/nowhere/python"):
        convert(python="/nowhere/python", jobs=1)
    assert names(source.parent) == ["cells.h5ad"]


def test_a_directory_that_is_not_shared_is_refused_before_work_begins(
    convert: Convert, source: Path, control: Path
) -> None:
    """The message names worker, directory and remedy."""
    (control / "elsewhere").mkdir()
    told: list[str] = []
    with pytest.raises(WorkerCheckError, match=r"worker tls://.* is not there .*all nodes share"):
        convert(told.append)
    assert told == []
    assert names(source.parent) == ["cells.h5ad"]


@pytest.mark.usefixtures("two_generations")
def test_a_replacement_that_is_not_fit_is_refused_as_well(
    slurm: LocalSlurm, convert: Convert, source: Path, control: Path
) -> None:
    """Before it has run a task; and when the nodes are in order again, the same call continues."""

    def replace_by_unfit(kind: str) -> None:
        if kind == SPLIT:
            (control / "elsewhere").mkdir()
            slurm.run("scancel", *running(slurm))

    with pytest.raises(WorkerCheckError, match=r"is not there .*all nodes share"):
        convert(replace_by_unfit, jobs=1)
    (control / "elsewhere").rmdir()
    convert()
    assert_equal(source)


def test_more_workers_than_one_per_job(slurm: LocalSlurm, convert: Convert, source: Path) -> None:
    """Both cores of a job work, and a job that is lost comes back with both."""
    convert(lambda kind: kind == SPLIT and slurm.run("scancel", *running(slurm)), jobs=1, cores=2)
    assert_equal(source)
