"""Where a conversion runs: schedulers that are there, what their workers must have, and TLS."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import dask
import msgspec
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from distributed import Client, LocalCluster

from dask_convert import api
from dask_convert.cli import main
from dask_convert.errors import (
    ClusterError,
    MemoryBudgetError,
    NoWorkersError,
    PlanError,
    WorkerCheckError,
)
from dask_convert.places import watching, worker_checks
from dask_convert.places.allocation import Allocation, current_allocation
from dask_convert.places.closing import closing_quietly
from dask_convert.places.config import slurm_settings
from dask_convert.places.credentials import temporary_security
from dask_convert.places.probes import Probes, meet
from dask_convert.places.slurm_settings import SlurmSettings


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file."""
    path = tmp_path / "cells.h5ad"
    counts = sp.random(60, 30, 0.3, format="csr", random_state=1, dtype="f4")
    ad.AnnData(counts).write_h5ad(path, compression="gzip")
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of somebody else."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        memory_limit="4GiB",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as started:
        yield started


def assert_converted(source: Path, target: Path) -> None:
    """The target has what scipy makes of the source, and nothing else is left."""
    expected = ad.read_h5ad(source).X.tocsc()
    found = ad.read_zarr(target).X
    for member in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, member), getattr(expected, member))
    assert not list(source.parent.glob(".*"))


def run(*arguments: object) -> Any:
    """Run a command of dask-convert."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("way", ["address", "file", "environment", "client"])
def test_a_scheduler_that_is_there_does_the_work(
    cluster: LocalCluster, source: Path, tmp_path: Path, way: str
) -> None:
    """By its address, its file, dask's own setting or a client; it is left as it was."""
    target = tmp_path / "genes.zarr"
    address = cluster.scheduler_address
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": address}))
    if way == "client":
        with Client(address, set_as_default=False) as client:
            api.convert(source, target, client=client)
    elif way == "environment":
        with dask.config.set({"scheduler-address": address}):
            assert run("convert", source, target).exit_code == 0
    else:
        scheduler = address if way == "address" else file
        assert run("convert", source, target, "--scheduler", scheduler).exit_code == 0
    assert_converted(source, target)
    assert not [name for name in cluster.scheduler.worker_plugins if "dask-convert" in name]


def test_a_plan_counts_on_what_workers_have(cluster: LocalCluster, source: Path) -> None:
    """Each thread is a worker, with its share of the memory limit and no more."""
    settings = api.plan(source, scheduler=cluster.scheduler_address).settings
    assert settings.workers == 2
    assert settings.worker_memory < 2 * 2**30
    with pytest.raises(MemoryBudgetError, match="give them more memory, or jobs fewer cores"):
        api.plan(source, cluster="slurm", slurm=SlurmSettings(memory="500MiB", cores=4))


def test_a_scheduler_file_may_come_a_little_later(
    cluster: LocalCluster, source: Path, tmp_path: Path
) -> None:
    """Who starts a scheduler and a conversion in one go need not wait between them."""
    file = tmp_path / "scheduler.json"
    text = json.dumps({"address": cluster.scheduler_address})
    later = threading.Timer(0.5, lambda: file.write_text(text))
    later.start()
    try:
        api.convert(source, tmp_path / "genes.zarr", scheduler=str(file))
    finally:
        later.join()
    assert_converted(source, tmp_path / "genes.zarr")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheduler", "tcp://127.0.0.1:1"], "no dask scheduler answers at tcp://127.0.0.1:1"),
        (["--scheduler", "nowhere.json"], "nowhere.json: no such scheduler file"),
        (["--scheduler", "gopher://x"], "no dask scheduler answers at gopher://x"),
        (["--scheduler", "tcp://x:1", "--cluster", "slurm"], "one of cluster, scheduler"),
        (["--cluster", "slurm", "--workers", "2"], "set dask-convert.slurm.jobs and cores"),
        (["--cluster", "allocation"], "no SLURM allocation here"),
        (["--cluster", "slurm", "--slurm", "jbs=2"], "jbs"),
        (["--cluster", "slurm", "--slurm", "jobs=0"], "jobs is 0"),
        (["--cluster", "slurm", "--slurm", "memory=8 apples"], "'8 apples'"),
        (["--cluster", "slurm", "--slurm", "walltime=soon"], "walltime is 'soon'"),
        (["--slurm", "jobs"], "not NAME=VALUE"),
    ],
)
def test_places_that_cannot_be_are_refused(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    """One line that says why, and nothing left behind."""
    monkeypatch.setattr("dask_convert.places.places.Patience.connect_seconds", 0.3, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = sorted(tmp_path.iterdir())
    result = run("convert", source, tmp_path / "genes.zarr", *options)
    assert result.exit_code in {2, 17}, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slurm:\n    jbs: 2", "unknown field `jbs` - at `dask-convert.slurm`"),
        ("slurm:\n    memory: 8 apples", "memory is '8 apples'"),
        ("slurm:\n    walltime: 12:00:00", "`dask-convert.slurm.walltime`"),
        ("memory: much", "memory is 'much'"),
        ("cluster: abacus", "`dask-convert.cluster`"),
    ],
)
def test_wrong_settings_are_refused_by_their_path(
    source: Path, tmp_path: Path, text: str, words: str
) -> None:
    """In a file and in dask's own configuration."""
    config = tmp_path / "my.yaml"
    config.write_text(f"dask-convert:\n  {text}\n")
    result = run("plan", source, "--config", config)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "dask-convert" in result.stderr
    assert "my.yaml" in result.stderr


def test_settings_come_from_dasks_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults, then environment variables; those that nobody set stay."""
    monkeypatch.setenv("DASK_DASK_CONVERT__SLURM__JOBS", "7")
    monkeypatch.setenv("DASK_DASK_CONVERT__SLURM__POLL_SECONDS", "3.5")
    config = dask.config.collect(paths=[])
    with dask.config.set(config):
        settings = slurm_settings()
    assert (settings.jobs, settings.poll_seconds) == (7, 3.5)
    assert settings.cores == SlurmSettings().cores


def test_settings_for_a_while_leave_the_defaults_as_they_are() -> None:
    """Also where they are the first that dask's configuration hears of this package."""
    command = """if True:
        import dask
        from dask_convert.places.config import configured
        with dask.config.set({"dask-convert.workers": 3}):
            assert configured()["workers"] == 3
        assert "workers" not in configured()
        assert configured()["slurm"].jobs == 4
    """
    subprocess.run([sys.executable, "-c", command], check=True)


def test_a_file_changes_some_slurm_settings_and_the_command_line_others(
    source: Path, tmp_path: Path
) -> None:
    """The workers of the plan are jobs times cores, wherever either was said."""
    config = tmp_path / "my.yaml"
    config.write_text("dask-convert:\n  cluster: slurm\n  slurm:\n    jobs: 3\n")
    result = run("plan", source, "--config", config, "--slurm", "cores=2", "--json")
    assert json.loads(result.stdout)["settings"]["workers"] == 6


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("30", 1800), ("30:15", 1815), ("04:00:00", 14400), ("1-12", 129600), ("0-0:1:5", 65)],
)
def test_workers_leave_before_the_walltime(walltime: str, seconds: int) -> None:
    """The latest with a tenth of it to go, or five minutes, in each format that SLURM has."""
    lifetime, stagger = SlurmSettings(walltime=walltime).leaving_seconds
    assert lifetime > 0
    assert lifetime + stagger == pytest.approx(seconds - min(seconds / 10, 300))


def test_the_memory_of_a_job_leaves_room_for_its_own_process() -> None:
    """All workers together may take less than the job."""
    settings = SlurmSettings(memory="4GiB", cores=3)
    assert settings.worker_limit_bytes * 3 <= 4 * 2**30 - 200 * 2**20


def test_an_allocation_is_what_slurm_says() -> None:
    """Nodes, the cores of the smallest, and memory per node or per core."""
    said = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}
    assert current_allocation(said | {"SLURM_MEM_PER_NODE": "4000"}) == Allocation(
        3, 4, 4000 * 2**20
    )
    assert current_allocation(said | {"SLURM_MEM_PER_CPU": "500"}).node_bytes == 2000 * 2**20
    with pytest.raises(ClusterError, match="give sbatch --mem"):
        current_allocation(said)


def requirements_of(source: Path) -> worker_checks.Requirements:
    """What workers must have to convert a file."""
    return worker_checks.requirements(source, api.plan(source, workers=1), (), 0.3)


def test_a_worker_that_has_everything_is_fit(source: Path) -> None:
    """And this process has it."""
    worker_checks.check_worker(requirements_of(source), None)


def test_a_worker_that_lacks_something_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    """Packages, memory and the source: what it has, and what it should."""
    required = requirements_of(source)
    other = tmp_path / "other.h5ad"
    ad.AnnData(sp.random(60, 30, 0.3, format="csr", random_state=2)).write_h5ad(other)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"versions": required.versions | {"numpy": "0.1"}}, "numpy .* here it is 0.1"),
        ({"source": str(tmp_path / "none.h5ad")}, "source cannot be read there.*none.h5ad"),
        ({"source": str(other)}, "is another file there|is not what it was"),
        (
            {"source": str(other), "source_bytes": other.stat().st_size},
            "is another file there|is not what it was",
        ),
    ]
    for change, words in cases:
        with pytest.raises(WorkerCheckError, match=words):
            worker_checks.check_worker(msgspec.structs.replace(required, **change), None)
    with pytest.raises(WorkerCheckError, match="may use 1,000 bytes of memory per task"):
        worker_checks.check_worker(required, 1000)


def test_a_filter_that_is_missing_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first task."""
    required = requirements_of(source)
    monkeypatch.setattr("h5py.h5z.filter_avail", lambda _code: False)
    with pytest.raises(WorkerCheckError, match="HDF5 filter 'gzip' is not available"):
        worker_checks.check_worker(required, None)


def test_workers_with_another_version_of_this_package_are_refused(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for with the standard library alone."""
    with Client(cluster, set_as_default=False) as client:
        worker_checks.require_package(client)
        monkeypatch.setattr(worker_checks, "__version__", "99")
        with pytest.raises(WorkerCheckError, match="in version 99, and there is version"):
            worker_checks.require_package(client)


def test_a_cluster_whose_worker_is_not_fit_is_refused(
    cluster: LocalCluster, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names worker and host, and comes before any task."""

    def refuse(*_arguments: object) -> None:
        msg = "has two left hands"
        raise WorkerCheckError(msg)

    monkeypatch.setattr(worker_checks, "check_worker", refuse)
    with pytest.raises(WorkerCheckError, match=r"worker \S+ on \S+: has two left hands"):
        api.convert(source, tmp_path / "genes.zarr", scheduler=cluster.scheduler_address)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_shared_directory_is_met(tmp_path: Path) -> None:
    """Both sides see what the other one writes; what is met can be met again."""
    with Probes([tmp_path]) as probes:
        for _ in range(2):
            meet(probes.questions[0], 5.0)


def test_directories_that_are_not_the_same_are_told_apart(tmp_path: Path) -> None:
    """Missing; of the same name with another content; readable, but what is written is not seen."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    with Probes([mine]) as probes:
        elsewhere = msgspec.structs.replace(probes.questions[0], directory=str(theirs))
        with pytest.raises(WorkerCheckError, match="is not there on this worker"):
            meet(elsewhere, 0.1)
        (theirs / "question").write_text("something else")
        with pytest.raises(WorkerCheckError, match="another directory of the same name"):
            meet(elsewhere, 0.1)
        (theirs / "question").write_text(elsewhere.word)
        with pytest.raises(WorkerCheckError, match="is not seen elsewhere"):
            meet(elsewhere, 0.5)


def test_only_clients_with_the_certificate_are_let_in(tmp_path: Path) -> None:
    """Not without TLS, nor with a certificate of one's own; the key is nobody else's to read."""
    security = temporary_security(tmp_path / "tls")
    other = temporary_security(tmp_path / "other")
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    for path in (tmp_path / "tls").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with LocalCluster(
        n_workers=0, host="tls://127.0.0.1", security=security, dashboard_address="127.0.0.1:0"
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://")
        with Client(address, security=security, set_as_default=False) as client:
            assert client.nthreads() == {}
        for wrong, at in [
            (None, address.replace("tls://", "tcp://")),
            (other, address),
            (None, address),
        ]:
            with pytest.raises((OSError, TypeError)):
                Client(at, security=wrong, timeout=1, set_as_default=False)


def test_workers_are_forked_from_a_process_that_has_loaded_their_work(tmp_path: Path) -> None:
    """What it cannot find multiprocessing does not mention; workers would only start slowly."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from dask_convert.places.worker_start import prepare_workers\n"
        "def loaded():\n"
        "    return [name in sys.modules for name in sys.argv[1:]]\n"
        "if __name__ == '__main__':\n"
        "    prepare_workers(verifying=True)\n"
        "    with multiprocessing.get_context('forkserver').Pool(1) as pool:\n"
        "        print(*pool.apply(loaded))\n"
    )
    work = ["dask_convert.engine.attempts", "dask_convert.verification.parts", "distributed"]
    environment = {**os.environ, "PYTHONPATH": str(Path(api.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script, *work], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"] * 3


class FakeClient:
    """A client of a scheduler without workers."""

    def nthreads(self) -> dict[str, int]:
        """No worker."""
        return {}

    def get_events(self, _topic: str) -> tuple[Any, ...]:
        """Nothing has happened."""
        return ()

    def cancel(self, futures: list[Any], *, force: bool) -> None:
        """No task is there."""
        assert not futures
        assert force


class FakeJobs:
    """Jobs that end as soon as they have begun."""

    count = 2

    def __init__(self) -> None:
        self.lost = 0

    def replace_lost(self) -> int:
        """All of them."""
        self.lost += self.count
        return self.count

    def describe(self) -> str:
        """In words."""
        return "they are no more"


@pytest.mark.parametrize("jobs", [watching.NoJobs(), FakeJobs()])
def test_a_run_does_not_wait_for_ever_for_workers(jobs: Any) -> None:
    """Neither where none come, nor where they go at once."""
    watch = watching.Watch(
        FakeClient(),  # type: ignore[arg-type]  # a fake
        None,  # type: ignore[arg-type]  # nothing is run
        jobs,
        no_workers_seconds=0.5,
        poll_seconds=0.05,
    )
    words = "no worker for 0.5 seconds: who runs" if jobs.count == 1 else "8 jobs have ended"
    with watch, pytest.raises(NoWorkersError, match=words):
        watch.wait_for_worker()


def test_slurm_that_is_not_here_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or dask-jobqueue that is not installed; nothing is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ClusterError, match=r"SLURM is not here|pip install 'dask_convert\[slurm\]'"
    ):
        api.convert(source, tmp_path / "genes.zarr", cluster="slurm")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_slurm_leaves_ctrl_c_as_it_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask-jobqueue would have it end the process with code 0 and no word, once it is imported."""
    pytest.importorskip("dask_jobqueue")
    before = signal.getsignal(signal.SIGINT)
    for name in [name for name in sys.modules if name.startswith("dask_jobqueue")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="SLURM is not here"):
        api.convert(source, tmp_path / "genes.zarr", cluster="slurm")
    after = signal.signal(signal.SIGINT, before)
    assert after is before


def test_a_plan_error_names_both_options() -> None:
    """Where only one can hold."""
    with pytest.raises(PlanError, match="not scheduler and client"):
        api.plan("none.h5ad", scheduler="tcp://x:1", client=FakeClient())  # type: ignore[arg-type]


def test_what_fails_as_a_cluster_is_closed_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Before and after it is, by loggers that stand below these as well."""
    log = logging.getLogger("distributed.comm")
    with closing_quietly() as hush:
        log.error("before")
        hush()
        log.error("meanwhile")
    log.error("after")
    assert [record.message for record in caplog.records] == ["before", "after"]
