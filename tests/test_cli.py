"""The command line as people use it: output, exit codes, configuration."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import anndata
import h5py
import numpy as np
import psutil
import pytest
import scipy.sparse
from click.testing import CliRunner, Result

import dask_convert
from dask_convert import cli
from dask_convert.cli import main
from dask_convert.display.progress import Silent
from dask_convert.errors import DtypeError, PlanError, ScratchError
from dask_convert.example.synthetic import write_synthetic_h5ad
from dask_convert.files import failpoints
from dask_convert.places.dashboard_address import require_dashboard_address


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (50, 20)).astype(np.float64)
    path = tmp_path / "cells.h5ad"
    anndata.AnnData(scipy.sparse.csr_matrix(counts)).write_h5ad(path, compression="gzip")
    return path


def run(*arguments: object) -> Result:
    """Run a command of dask-convert."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_convert_writes_a_store_that_anndata_reads(source: Path, tmp_path: Path) -> None:
    """The store equals the source, and the summary says where it is."""
    target = tmp_path / "genes.zarr"
    result = run("convert", source, target, "--workers", 0, "--memory", "1GiB")
    assert result.exit_code == 0, result.output
    assert str(target) in result.output
    expected = anndata.read_h5ad(source).X.toarray()
    np.testing.assert_array_equal(anndata.read_zarr(target).X.toarray(), expected)


def test_quiet_prints_nothing(source: Path, tmp_path: Path) -> None:
    """--quiet leaves both streams empty."""
    result = run("convert", source, tmp_path / "genes.zarr", "--workers", 0, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_plan_touches_nothing(source: Path, tmp_path: Path) -> None:
    """Its JSON has the numbers that its text has, and no file appears."""
    before = sorted(tmp_path.iterdir())
    text = run("plan", source, "--workers", 2)
    plan = json.loads(run("plan", source, "--workers", 2, "--json").stdout)
    assert text.exit_code == 0
    assert plan["matrices"][0]["source"]["nnz"] == anndata.read_h5ad(source).X.nnz
    assert plan["projected"]["total_bytes"] <= plan["settings"]["memory"]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "verifying"),
    [
        ((), [False]),
        (("--verify",), [True]),
        (("--help",), []),
        (("--workers=0",), []),
        (("--workers", "0"), []),
        (("--cluster", "slurm"), []),
        (("--scheduler", "tcp://127.0.0.1:1"), []),
        (("--config", "none.yaml"), []),
    ],
)
def test_workers_start_before_options_are_read_unless_those_may_say_otherwise(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], verifying: list[bool]
) -> None:
    """They are what takes longest; where none are wanted, none start."""
    started: list[bool] = []
    monkeypatch.setattr(cli, "prepare_workers", lambda *, verifying: started.append(verifying))
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    run("convert", *options, "--no-such-option")  # is told of when options are read
    assert started == verifying
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    run("convert", *options, "--no-such-option")
    assert started == verifying


def test_a_plan_loads_neither_dask_clusters_nor_zarr(source: Path) -> None:
    """Nothing is started and nothing is written."""
    code = "import sys, dask_convert; dask_convert.plan(sys.argv[1]); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(failpoints.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, source],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "h5py" in done.stdout.split()
    assert not {"distributed", "zarr", "bokeh", "anndata", "pandas"} & set(done.stdout.split())


def test_errors_are_one_line_and_an_exit_code(source: Path, tmp_path: Path) -> None:
    """Each kind has its own code, none a traceback, and nothing is left behind."""
    there = tmp_path / "there"
    there.mkdir()
    tenx = tmp_path / "10x.h5"
    with h5py.File(tenx, "w") as file:
        file["matrix/barcodes"] = [b"AAAC-1"]
    before = sorted(tmp_path.iterdir())
    cases = [
        (("plan", tmp_path / "none.h5ad"), 3, "no such file"),
        (("plan", source, "--memory", "100MiB"), 2, "the least is"),
        (("plan", source, "--memory", "many"), 2, "memory is 'many'"),
        (("plan", source, "--memory", "1e400"), 2, "memory is '1e400'"),
        (("plan", source, "--memory", "1e400GiB"), 2, "memory is '1e400GiB'"),
        (("plan", source, "--data-dtype", "(2,"), 2, "data_dtype is '(2,'"),
        (("plan", source, "--config", source), 2, "cannot be read as YAML"),
        (("plan", source, "--matrix", "layers/none"), 2, "there are: X"),
        (("plan", source, "--shard-nnz", 7), 2, "shard_nnz is 7"),
        (("plan", source, "--slurm", "jobs=2"), 2, "--cluster slurm"),
        (("verify", source, tmp_path / "none.zarr"), 15, "no such store"),
        (("convert", source, there, "--workers", 0), 4, "exists already"),
        (("convert", source, "s3://bucket/genes.zarr", "--workers", 0), 4, "s3://…): a target is"),
        (
            ("convert", source, "s3://b/out.h5ad", "--workers", 0, "--profile", "cellxgene"),
            4,
            "s3://…): a target is",
        ),
        (("convert", tenx, tmp_path / "x", "--workers", 0), 3, "scanpy.read_10x_h5"),
        (("convert", source, there, "--workers", 0, "--overwrite"), 4, "not made by"),
        (("convert", source, tmp_path / "x", "--workers", 0, "--data-dtype", "bool"), 3, "bool"),
    ]
    for arguments, code, words in cases:
        result = run(*arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert words in result.stderr
        assert result.stderr.startswith("dask-convert: ")
        assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_config_file_sets_defaults(source: Path, tmp_path: Path) -> None:
    """The command line goes before the file, the file before the defaults."""
    config = tmp_path / "my.yaml"
    config.write_text("dask-convert:\n  memory: 3GiB\n  codec: gzip\n  workers: 1\n")
    result = run("plan", source, "--config", config, "--workers", 2, "--json")
    settings = json.loads(result.stdout)["settings"]
    assert (settings["memory"], settings["codec"], settings["workers"]) == (3 * 2**30, "gzip", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dask-convert:\n  memry: 3GiB\n", "memry"),
        ("dask-convert:\n  workers: many\n", "dask-convert.workers"),
        ("other: 1\n", "no section"),
        ("dask-convert: [\n", "cannot be read as YAML"),
        ('dask-convert:\n  scratch: "a\\0b"\n', "scratch has a NUL"),
        ('dask-convert:\n  allow-external: ["a\\0b"]\n', "allow_external has a NUL"),
    ],
)
def test_a_wrong_config_file_is_refused(
    source: Path, tmp_path: Path, text: str, words: str
) -> None:
    """The message names file and option."""
    config = tmp_path / "my.yaml"
    config.write_text(text)
    result = run("plan", source, "--config", config)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "my.yaml" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_interrupt_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a run with one line, code 130, and no file."""

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dask_convert.engine.stages.split", interrupted)
    before = sorted(tmp_path.iterdir())
    result = run("convert", source, tmp_path / "genes.zarr", "--workers", 0)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_that_may_pass_says_how_to_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the remedy; the same command continues, and tells that it did."""
    target = tmp_path / "genes.zarr"
    command = ("convert", source, target, "--workers", 0)
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, f"region report: opened=error:{errno.ENOSPC}")
        result = run(*command)
    assert result.exit_code == 5
    line = result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert line.startswith("dask-convert: no space left in")
    assert f"the same command continues, and 'dask-convert clean {target}' removes it" in line
    assert run(*command, "--codec", "gzip").exit_code == 7
    result = run(*command)
    assert result.exit_code == 0
    assert "resumed  1 row blocks and 0 regions were there" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    expected = anndata.read_h5ad(source).X.toarray()
    np.testing.assert_array_equal(anndata.read_zarr(target).X.toarray(), expected)


def session(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    living = []
    for process in psutil.process_iter(["status"]):
        with suppress(OSError):
            if os.getsid(process.pid) == leader and process.info["status"] != "zombie":
                living.append(process)
    return living


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM], ids=lambda n: n.name
)
def test_a_running_conversion_can_be_ended(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, of which all processes get a signal, a closed terminal, and SIGTERM.

    One line, code 130, no process.
    """
    source = tmp_path / "cells.h5ad"
    # Several row blocks, so that much is left to do when the first one is done.
    write_synthetic_h5ad(source, n_obs=60_000, n_vars=2_000, processes=1)
    before = sorted(tmp_path.iterdir())
    command = ["env", "--default-signal=HUP"]  # these tests may have been started by nohup
    command += [sys.executable, "-m", "dask_convert", "convert", source, tmp_path / "genes.zarr"]
    command += ["--memory", "800MiB"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not list(tmp_path.glob(".*scratch*/*/0/block-*.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate()
    assert errors.splitlines()[-1] == (
        "dask-convert: interrupted; what is finished is kept: the same command continues, and "
        f"'dask-convert clean {tmp_path / 'genes.zarr'}' removes it"
    )
    assert "Traceback" not in errors, errors
    assert process.returncode == 130
    assert len(sorted(tmp_path.iterdir())) == len(before) + 2
    cleared = run("clean", tmp_path / "genes.zarr")
    assert cleared.exit_code == 0
    assert len(cleared.output.splitlines()) == 2
    assert sorted(tmp_path.iterdir()) == before
    assert not psutil.wait_procs(session(process.pid), timeout=20)[1]


@pytest.mark.parametrize("address", ["foo", "127.0.0.1:99999", "http://127.0.0.1:0", "8.8.8.8:0"])
def test_a_dashboard_that_cannot_listen_is_refused_before_work(
    source: Path, tmp_path: Path, address: str
) -> None:
    """The cluster would fail to start, and guess why."""
    arguments = ("convert", source, tmp_path / "genes.zarr", "--workers", 1)
    result = run(*arguments, "--dashboard-address", address)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert f"dashboard_address is '{address}'" in result.stderr
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("address", ["", "8787", ":0", "127.0.0.1", "localhost:0", "0.0.0.0:8787"])
def test_a_dashboard_may_listen_at_hosts_and_ports(address: str) -> None:
    """In all forms that dask knows."""
    require_dashboard_address(address)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["wait", "worker-ttl", "no-workers"])
def test_times_are_numbers(source: Path, tmp_path: Path, name: str, seconds: str) -> None:
    """Which NaN is not, though it is below no bound; and nobody waits for ever."""
    arguments = ("convert", source, tmp_path / "genes.zarr", "--workers", 0)
    result = run(*arguments, f"--{name}-seconds={seconds}")
    assert result.exit_code == 2
    assert seconds in result.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_clean_says_that_there_was_nothing(tmp_path: Path) -> None:
    """A name that was mistyped is not silently taken for one that is clean."""
    result = run("clean", tmp_path / "gnes.zarr")
    assert (result.exit_code, len(result.output.splitlines())) == (0, 1)
    assert (
        f"found nothing that a dead conversion to {tmp_path / 'gnes.zarr'} has left"
        in result.output
    )


@pytest.mark.parametrize(
    ("name", "profile", "remedy"),
    [
        ("genes.h5ad", "anndata", ".zarr"),
        ("genes.H5", "vitessce", ".zarr"),
        ("genes.zarr", "cellxgene", ".h5ad"),
    ],
)
def test_a_target_is_named_as_what_it_will_be(
    source: Path, tmp_path: Path, name: str, profile: str, remedy: str
) -> None:
    """A store is no h5ad file, and an h5ad file is no store; nothing is made of either."""
    before = sorted(tmp_path.iterdir())
    result = run("convert", source, tmp_path / name, "--workers", 0, "--profile", profile)
    assert result.exit_code == 2
    assert f"let its name end in {remedy}" in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments", [["convert", "--json"], ["plan", "cells.h5ad", "--json", "--workers", "some"]]
)
def test_mistakes_in_arguments_are_json_where_json_is_asked_for(arguments: list[str]) -> None:
    """What click itself refuses has the form of all errors, and its own exit code."""
    result = run(*arguments)
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == error["exit_code"] == 2
    assert error["message"] in result.stderr.replace("\n", " ")
    assert error["resumable"] is False


@pytest.mark.parametrize("below", [".", "scratch"])
def test_scratch_in_the_target_is_refused_before_work(
    source: Path, tmp_path: Path, below: str
) -> None:
    """It would be in the way at the end; nothing is made."""
    target = tmp_path / "target.zarr"
    with pytest.raises(ScratchError, match="lies in the target"):
        dask_convert.convert(source, target, scratch=target / below, workers=0)
    assert not target.exists()


def test_scratch_that_cannot_be_made_is_refused(source: Path, tmp_path: Path) -> None:
    """By an error of its own: room on disk is not what is missing, and trying again is no help."""
    result = run(
        "convert", source, tmp_path / "genes.zarr", "--workers", 0, "--scratch", source / "below"
    )
    assert (result.exit_code, "cannot make a scratch directory" in result.output) == (12, True)


def tree(directory: Path) -> list[Path]:
    """All that lies below a directory."""
    return sorted(directory.rglob("*"))


@pytest.mark.parametrize("profile", ["anndata", "cellxgene"])
def test_directories_made_for_scratch_go_with_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    """After success and failure, by the run that goes on, and by clean; what others use stays."""
    target = tmp_path / ("genes.h5ad" if profile == "cellxgene" else "genes.zarr")
    before = tree(tmp_path)
    command = ("convert", source, target, "--workers", 0, "--profile", profile)
    command += ("--scratch", tmp_path / "q" / "w" / "e")
    if profile == "anndata":  # the other one has a type of its own
        assert run(*command, "--data-dtype", "bool").exit_code == 3
        assert tree(tmp_path) == before
    for end in (("clean", target), command):
        with monkeypatch.context() as patched:
            patched.setenv(failpoints.VARIABLE, f"region report: opened=error:{errno.ENOSPC}")
            assert run(*command).exit_code == 5
        assert list(tmp_path.glob("q/w/e/.*scratch*/owner.json"))
        assert run(*end).exit_code == 0
        assert not (tmp_path / "q").exists()
    assert [path for path in tree(tmp_path) if target not in path.parents] == [*before, target]


def test_directories_around_scratch_that_are_used_stay(source: Path, tmp_path: Path) -> None:
    """By whoever: those that were there before, and those that hold something else by now."""
    (tmp_path / "q").mkdir()

    class Using(Silent):
        def start(self, _plan: object) -> None:
            (tmp_path / "q" / "w" / "mine").touch()

    options = {"scratch": tmp_path / "q" / "w" / "e", "workers": 0}
    dask_convert.convert(source, tmp_path / "one.zarr", **options)
    assert not list((tmp_path / "q").iterdir())
    dask_convert.convert(source, tmp_path / "two.zarr", progress=Using(), **options)
    assert tree(tmp_path / "q") == [tmp_path / "q" / "w", tmp_path / "q" / "w" / "mine"]


@pytest.mark.parametrize("rule", ["scratch: made", "state: opened", "store: made"])
def test_scratch_that_fails_as_it_is_made_leaves_no_directories(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Whether or not it was noted yet whose they are."""
    before = tree(tmp_path)
    monkeypatch.setenv(failpoints.VARIABLE, f"{rule}=error:{errno.EIO}")
    arguments = ("convert", source, tmp_path / "genes.zarr", "--workers", 0)
    assert run(*arguments, "--scratch", tmp_path / "q" / "w").exit_code == 11
    assert tree(tmp_path) == before


def test_what_a_worker_refuses_is_one_line(source: Path, tmp_path: Path) -> None:
    """Dask's own report of a task that failed has twenty, with a traceback."""
    with h5py.File(source, "a") as file:
        file["X/data"][0] = 0.5
    arguments = ("convert", source, tmp_path / "genes.zarr", "--data-dtype", "uint8", "--quiet")
    found = subprocess.run(
        [sys.executable, "-m", "dask_convert", *map(str, arguments), "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == DtypeError.exit_code
    (line,) = found.stderr.splitlines()
    assert "X/data[0] is 0.5" in line


def test_ctrl_c_while_arguments_are_read_ends_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local workers are started then."""

    def interrupted(**_options: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "prepare_workers", interrupted)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    result = run("convert", "cells.h5ad", "genes.zarr")
    assert (result.exit_code, result.stderr) == (130, "dask-convert: interrupted\n")


def test_demo_tells_its_story(tmp_path: Path) -> None:
    """It makes, converts, compares and reads; a second one at the same place is refused."""
    directory = tmp_path / "demo"
    arguments = ("demo", directory, "--n-obs", 300, "--n-vars", 200, "--workers", 0)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "equal, bit by bit" in result.output
    assert "read in" in result.output
    assert run(*arguments).exit_code == 4


@pytest.mark.parametrize(
    ("options", "exit_code"), [(("--memory", "much"), PlanError.exit_code), (("--workers", -1), 2)]
)
def test_demo_refuses_options_before_it_makes_anything(
    tmp_path: Path, options: tuple[object, ...], exit_code: int
) -> None:
    """Nothing appears, and nobody has waited for an example."""
    result = run("demo", tmp_path / "demo", *options)
    assert result.exit_code == exit_code
    assert str(options[1]) in result.stderr
    assert not list(tmp_path.iterdir())


def test_demo_would_notice_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its comparison fails if a value in the store is another one."""
    from dask_convert.shuffle import ordering

    original = ordering.BlockRecords.add

    def add_wrong(self: ordering.BlockRecords, position: int, values: np.ndarray) -> np.ndarray:
        return original(self, position, values + (position == 0))

    monkeypatch.setattr(ordering.BlockRecords, "add", add_wrong)
    result = run("demo", tmp_path / "demo", "--n-obs", 300, "--n-vars", 200, "--workers", 0)
    assert result.exit_code == 1
    assert "differs from scipy" in result.stderr
