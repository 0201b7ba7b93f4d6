"""Faults while a cluster works: a byte-identical store, or an error that can be recovered from."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from engine import convert
from faults import (
    CUTS,
    blocks_done,
    contents,
    disturb,
    failpoint,
    finish,
    group,
    leftovers,
    make_source,
    run_cluster,
    run_here,
    start,
    wait_for,
    workers_of,
)
from oracle import assert_converted
from strategies import Csr

from dask_convert.engine import attempts, stages
from dask_convert.engine.graph import ClientExecutor, Graph, OnReport
from dask_convert.errors import DiskSpaceError, StorageError, TaskError, WorkerLostError
from dask_convert.files import failpoints
from dask_convert.places.watching import local_watch

# anndata 0.13 warns so about itself with pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

KILLED, INTERRUPTED = -9, 130
SLOW = "block report: opened=sleep:0.1;region report: opened=sleep:0.1"
"""Makes a run last long enough to be disturbed, by a machine that has much else to do as well."""

Source = tuple[Path, Csr, dict[str, bytes]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A source, its matrix, and the files of the store that an undisturbed run makes of it."""
    directory = tmp_path_factory.mktemp("shared")
    matrix = make_source(directory / "source.h5ad")
    convert(directory / "source.h5ad", directory / "undisturbed.zarr", **CUTS)
    assert_converted(directory / "undisturbed.zarr", matrix)
    return directory / "source.h5ad", matrix, contents(directory / "undisturbed.zarr")


@pytest.fixture
def source(shared: Source) -> Path:
    return shared[0]


@pytest.fixture
def expected(shared: Source) -> dict[str, bytes]:
    return shared[2]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target.zarr"


def begun(target: Path, n_blocks: int = 1) -> bool:
    """Whether some row blocks are done."""
    return blocks_done(target) >= n_blocks


@pytest.mark.parametrize("seed", range(3))
def test_workers_may_be_killed(
    source: Path, target: Path, expected: dict[str, bytes], seed: int
) -> None:
    """At random moments, twice: their tasks run again elsewhere, and the run ends well."""
    dice = random.Random(seed)
    process = start(run_cluster, source, target, {}, environment=failpoint(SLOW))
    wait_for(lambda: begun(target))
    for _ in range(2):
        time.sleep(dice.random() * 0.6)
        disturb(process, dice, "worker")
    assert finish(process) == 0
    assert contents(target) == expected
    assert leftovers(target) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_driver_may_be_killed(
    source: Path, target: Path, expected: dict[str, bytes], seed: int
) -> None:
    """With it dies the scheduler; workers end by themselves, and the same command continues."""
    dice = random.Random(seed)
    process = start(run_cluster, source, target, {}, environment=failpoint(SLOW))
    wait_for(lambda: begun(target))
    time.sleep(dice.random() * 0.75)
    disturb(process, dice, "driver")
    assert finish(process) == KILLED
    wait_for(lambda: not group(process.pid or 0), 30)
    n_blocks = blocks_done(target)
    (matrix,) = convert(source, target, **CUTS).matrices
    assert matrix.blocks_reused in {n_blocks, 0}  # none if the matrix was done
    assert contents(target) == expected
    assert leftovers(target) == []


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_interrupted_is_continued(
    source: Path, target: Path, expected: dict[str, bytes], kind: str
) -> None:
    """No process stays, finished work does."""
    process = start(run_cluster, source, target, {}, environment=failpoint(SLOW))
    wait_for(lambda: begun(target, 5))
    disturb(process, random.Random(0), kind)
    assert finish(process) == INTERRUPTED
    wait_for(lambda: not group(process.pid or 0), 30)
    (matrix,) = convert(source, target, **CUTS).matrices
    assert matrix.blocks_reused >= 5
    assert contents(target) == expected


def test_a_worker_that_hangs_is_replaced(
    source: Path, target: Path, expected: dict[str, bytes]
) -> None:
    """Without a sign of life for a while it counts as lost, and its nanny ends it."""
    process = start(
        run_cluster, source, target, {"worker_ttl_seconds": 5.0}, environment=failpoint(SLOW)
    )
    wait_for(lambda: begun(target))
    disturb(process, random.Random(0), "SIGSTOP")
    assert finish(process) == 0
    assert contents(target) == expected
    wait_for(lambda: not group(process.pid or 0), 30)


def test_a_worker_that_is_killed_at_the_worst_moment(
    source: Path, target: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Between a file and its report, and between two files of a region."""
    rules = []
    for name in ("fragment: renamed", "shard: renamed", "region report: opened"):
        once = tmp_path / name.replace(": ", "-").replace(" ", "-")
        once.touch()
        rules.append(f"{name}=kill-once:{once}")
    process = start(run_cluster, source, target, {}, environment=failpoint(";".join(rules)))
    assert finish(process) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["target.zarr"]
    assert contents(target) == expected


def test_a_worker_that_takes_too_much_memory_is_replaced(
    source: Path, target: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Its nanny ends it before the machine does, and long before it would go on by itself."""
    (tmp_path / "once").touch()
    rule = f"fragment: opened=hoard-once:{tmp_path / 'once'}"
    process = start(run_cluster, source, target, {}, environment=failpoint(rule))
    assert finish(process, failpoints.HOARDING_SECONDS / 4) == 0
    assert not (tmp_path / "once").exists()
    assert contents(target) == expected


def test_a_row_block_that_kills_every_worker_is_named(
    source: Path, target: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """After four of them there is an end; without the poison the same command continues."""
    rule = "fragment: opened=kill"
    process = start(run_cluster, source, target, {}, environment=failpoint(rule))
    assert finish(process, 120) == WorkerLostError.exit_code
    message = (tmp_path / "message").read_text()
    assert re.search(r"row block \d+ of X, rows \d+ to \d+: ended 4 workers", message)
    wait_for(lambda: not group(process.pid or 0), 30)
    assert leftovers(target) == []  # no block was finished
    convert(source, target, **CUTS)
    assert contents(target) == expected


@pytest.mark.parametrize(
    ("error", "words"), [(ValueError("boom"), "ValueError: boom"), (MemoryError(), "more memory")]
)
def test_a_row_block_that_fails_in_an_unforeseen_way_is_named(
    source: Path,
    target: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    """With its rows, what it was and where; the same command continues."""
    original = stages.split

    def split(job: Any, number: int) -> Any:
        if number == 3:
            raise error
        return original(job, number)

    with monkeypatch.context() as patched:
        patched.setattr(stages, "split", split)
        with pytest.raises(TaskError, match=r"row block 3 of X, rows \d+ to \d+: ") as caught:
            convert(source, target, **CUTS)
    assert words in str(caught.value)
    convert(source, target, **CUTS)
    assert contents(target) == expected


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN])
def test_errors_that_pass_are_tried_again(
    source: Path,
    target: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """Twice they fail, and then not any more; if they stay, they are told."""
    monkeypatch.setattr(attempts, "PAUSE_SECONDS", 0.0)
    original = stages.combine
    failures = [OSError(number, os.strerror(number), "file")] * 2

    def combine(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(*arguments)

    monkeypatch.setattr(stages, "combine", combine)
    convert(source, target, **CUTS)
    assert contents(target) == expected
    failures += [OSError(number, os.strerror(number), "file")] * 3
    with pytest.raises(StorageError, match=f"region .* of X.*file: {os.strerror(number)}"):
        convert(source, target, overwrite=True, **CUTS)
    assert contents(target) == expected


@pytest.mark.parametrize("when", ["before", "on its way", "after"])
def test_a_cluster_without_workers_is_not_waited_for_for_ever(
    source: Path, target: Path, when: str
) -> None:
    """They may all have failed to start again; others may wait for machines.

    Whether that shows before the graph is handed over, while it is, or when it has been.
    """
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        executor = ClientExecutor(client, drain=False)
        watch = local_watch(client, executor, 5.0 if when == "after" else 0.5)

        def given_up() -> None:
            while watch._error is None:
                time.sleep(0.05)

        def run(graph: Graph, on_report: OnReport) -> None:
            if when == "on its way":
                given_up()
            ClientExecutor.run(executor, graph, on_report)

        executor.run = run
        with watch:
            if when == "before":
                given_up()
            with pytest.raises(WorkerLostError, match="last of its workers"):
                convert(source, target, executor=lambda: watch, **CUTS)
    assert leftovers(target) == []


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=lambda n: n.name)
def test_a_worker_that_cannot_start_ends_the_run(
    source: Path, target: Path, expected: dict[str, bytes], number: signal.Signals
) -> None:
    """Stopped or killed before it is there: an error, soon, and the same command continues."""
    options = {"start_seconds": 5.0, "worker_ttl_seconds": 5.0}
    process = start(run_cluster, source, target, options)
    wait_for(lambda: workers_of(process) or process.exitcode is not None)
    for worker in workers_of(process):
        worker.send_signal(number)
    assert finish(process) in {WorkerLostError.exit_code, 0}
    convert(source, target, overwrite=True, **CUTS)
    assert contents(target) == expected


# ---------------------------------------------------------------- full disks


@pytest.mark.once
@pytest.mark.parametrize(
    "rule",
    [
        *(f"{kind}: written" for kind in failpoints.FILE_KINDS),
        "fragment: opened",
        "shard: renamed",
        "plan: synced",
        "annotations: copied",
        "target: described",
        "target: flushed",
    ],
)
def test_a_full_disk_is_told_and_the_same_command_continues(
    source: Path, target: Path, expected: dict[str, bytes], rule: str
) -> None:
    """Whichever file it is that does not fit."""
    rules = failpoint(f"{rule}=error:{errno.ENOSPC}")
    process = start(run_here, source, target, {}, environment=rules)
    assert finish(process) == DiskSpaceError.exit_code
    assert not target.exists()
    convert(source, target, **CUTS)
    assert contents(target) == expected
    assert leftovers(target) == []


def limited(source: Path, target: Path, limit_bytes: int) -> None:
    """Convert with a bound on the size of files, at which the system fails to write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    run_here(source, target, {})


@pytest.mark.parametrize("limit_bytes", [500, 6_000])
def test_a_real_write_that_fails_is_told(
    source: Path, target: Path, expected: dict[str, bytes], limit_bytes: int
) -> None:
    """The system itself refuses to write on: the same as a full disk."""
    assert finish(start(limited, source, target, limit_bytes)) == DiskSpaceError.exit_code
    convert(source, target, **CUTS)
    assert contents(target) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full, where the system lets us make one.

    Elsewhere it is a plain directory: then the run ends well at once, as it must.
    """
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield directory
    if mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("where", ["scratch", "target"])
def test_a_small_disk_fills_up(
    source: Path,
    tmp_path: Path,
    small_disk: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Path and need are told; with room again, the same command continues."""
    monkeypatch.setattr("dask_convert.conversion.run.check_space", lambda *_: None)
    target = (small_disk if where == "target" else tmp_path) / "target.zarr"
    scratch = small_disk if where == "scratch" else tmp_path
    filler = small_disk / "filler"
    if small_disk.is_mount():
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 120_000))
        with pytest.raises(DiskSpaceError, match=f"no space left in {small_disk}"):
            convert(source, target, scratch_parent=scratch, **CUTS)
        assert not target.exists()
        filler.unlink()
    convert(source, target, scratch_parent=scratch, **CUTS)
    assert contents(target) == expected
    assert leftovers(target) == []


# ---------------------------------------------------------------- a cluster of the user's own


def test_the_scheduler_of_a_client_may_be_killed(
    source: Path, target: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A typed error, soon; the same call with another cluster continues."""
    address_file = tmp_path / "scheduler.json"
    environment = {**os.environ, **failpoint("block report: opened=sleep:0.2")}
    commands = [
        ["scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard"],
        ["worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "10"],
    ]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "distributed.cli.dask_" + name,
                *options,
                "--scheduler-file",
                str(address_file),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=tmp_path,
        )
        for name, *options in commands
    ]
    try:
        wait_for(address_file.exists)
        with Client(scheduler_file=str(address_file), timeout=30, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=30)
            killer = threading.Thread(
                target=lambda: (wait_for(lambda: begun(target, 2)), processes[0].kill())
            )
            killer.start()
            with pytest.raises(WorkerLostError, match="dask scheduler, or") as caught:
                convert(
                    source, target, executor=lambda: ClientExecutor(client, drain=False), **CUTS
                )
            killer.join()
            assert "same command continues" in caught.value.__notes__[0]
        assert processes[1].wait(30) is not None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    (matrix,) = convert(source, target, **CUTS).matrices
    assert matrix.blocks_reused >= 2
    assert contents(target) == expected
