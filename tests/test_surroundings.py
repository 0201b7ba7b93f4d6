"""What a process inherits: settings of libraries, streams that break, a locale."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from rich.console import Console

import dask_convert
from dask_convert.display import bars, telling
from dask_convert.errors import PlanError, WorkerCheckError
from dask_convert.places import worker_checks
from dask_convert.surroundings import require_fit, require_fit_zarr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file, with names that are not ASCII."""
    path = tmp_path / "cells.h5ad"
    counts = sp.random(50, 20, 0.2, format="csr", random_state=1, dtype="f4")
    found = ad.AnnData(counts, layers={"größe": counts})
    found.obs["größe"] = np.arange(50.0)
    found.obs_names = [f"zelle-ä{number}" for number in range(50)]
    found.var_names = [f"g{number}" for number in range(20)]
    found.write_h5ad(path)
    return path


def run(
    *arguments: object, streams: str = "", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell, with streams led elsewhere, in an environment of its own."""
    command = [sys.executable, "-m", "dask_convert", *map(str, arguments)]
    return subprocess.run(
        ["/bin/bash", "-c", f'exec "$@" {streams}', "bash", *command],
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
        timeout=120,
    )


UNFIT = [
    ({"PYTHONOPTIMIZE": "1"}, "assertions"),
    ({"NUMBA_NUM_THREADS": "-1"}, "NUMBA_NUM_THREADS is -1"),
    ({"NUMBA_NUM_THREADS": "0"}, "NUMBA_NUM_THREADS is 0"),
    ({"ZARR_ASYNC__CONCURRENCY": "0"}, "ZARR_ASYNC__CONCURRENCY"),
    ({"ZARR_ASYNC__CONCURRENCY": "many"}, "async.concurrency is 'many'"),
    ({"ZARR_THREADING__MAX_WORKERS": "0"}, "threading.max_workers is 0"),
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "PYTHONUTF8=1"),
]


@pytest.mark.parametrize(("variables", "words"), UNFIT, ids=[str(case[0]) for case in UNFIT])
def test_what_libraries_cannot_work_with_is_refused_before_work(
    source: Path, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    """One line, and nothing is left: zarr would wait for ever, lose its assertions or fail."""
    target, store = tmp_path / "genes.zarr", tmp_path / "store.zarr"
    dask_convert.convert(source, store, workers=0)
    before = sorted(tmp_path.iterdir())
    commands = [("convert", source, target, "--workers", 0), ("convert", source, target)]
    commands += [("verify", source, store), ("inspect", store)]
    for command in commands:
        ended = run(*command, **variables)
        assert ended.returncode == PlanError.exit_code, ended.stderr.decode()
        last = ended.stderr.decode().splitlines()[-1]
        assert last.startswith("dask-convert: ")
        assert words in last
        assert b"Traceback" not in ended.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_settings_that_can_work_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what numba itself passes over."""
    for threads in ("1", "64", "many", ""):
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        require_fit()
    for concurrency in (1, 2.5, 64):
        with zarr.config.set({"async.concurrency": concurrency}):
            require_fit_zarr()


def test_a_worker_with_such_settings_is_refused() -> None:
    """Its environment is its own."""
    required = worker_checks.Requirements(
        "", 0, (), dask_convert.planning.layout.Trust(), (), 0, worker_checks._versions(), 0.0
    )
    with (
        zarr.config.set({"async.concurrency": 0}),
        pytest.raises(WorkerCheckError, match=r"async\.concurrency"),
    ):
        worker_checks.check_worker(required, None)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "streams", ["2>/dev/full", "2>&-", "2> >(:)"], ids=["full", "closed", "no reader"]
)
@pytest.mark.parametrize("verbose", ["", "--verbose"], ids=["lines", "verbose"])
def test_a_broken_standard_error_costs_no_conversion(
    source: Path, tmp_path: Path, workers: int, streams: str, verbose: str
) -> None:
    """Progress goes nowhere; the result and its code are as ever."""
    target = tmp_path / "genes.zarr"
    options = ["--verify", *([verbose] if verbose else [])]
    command = ("convert", source, target, "--workers", workers, *options)
    ended = run(*command, streams=streams)
    assert ended.returncode == 0, ended.stdout
    assert b"verified" in ended.stdout
    assert sorted(tmp_path.iterdir()) == [source, target]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_terminal_that_goes_costs_no_conversion(
    source: Path, tmp_path: Path, workers: int
) -> None:
    """Its bars cannot be drawn any more."""
    target = tmp_path / "genes.zarr"
    leader, follower = pty.openpty()
    arguments = ["convert", str(source), str(target), "--workers", str(workers)]
    with subprocess.Popen(
        [sys.executable, "-m", "dask_convert", *arguments],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color"},
    ) as process:
        os.close(follower)
        os.read(leader, 100)
        os.close(leader)
        output, _ = process.communicate(timeout=120)
    assert (process.returncode, b"target" in output) == (0, True)
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_an_error_keeps_its_code_where_it_cannot_be_told(tmp_path: Path) -> None:
    """Python would end with a code of its own, since a stream could not be flushed."""
    ended = run("plan", tmp_path / "none.h5ad", "--json", streams="2>/dev/full")
    assert ended.returncode == 3
    assert json.loads(ended.stdout)["error"]["type"] == "SourceError"


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_a_result_that_cannot_be_printed_is_an_error(
    source: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """In a line; what was done stays done."""
    target = tmp_path / "genes.zarr"
    commands = [
        ("convert", source, target, "--workers", 0, *options),
        ("plan", source, *options),
        ("inspect", target, *options),
        ("gene", target, "g1"),
    ]
    for command in commands:
        ended = run(*command, streams=">/dev/full")
        last = ended.stderr.decode().splitlines()[-1]
        assert last == (
            "dask-convert: the standard output cannot be written: No space left on device"
        )
        assert ended.returncode == 11
    assert run("--help", streams=">/dev/full").returncode == 11
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_bars_go_on_where_a_terminal_has_gone() -> None:
    """A connection was lost: drawing is dropped, and ends."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    steady = telling.Steady(Gone())
    drawn = bars.Bars(Console(file=steady, force_terminal=True))  # type: ignore[arg-type]
    drawn._progress.add_task("read", total=2, moved=0)
    drawn._progress.start()
    drawn._progress.refresh()
    drawn.stop(failed=False)


def test_text_of_files_is_printed_in_every_locale(source: Path, tmp_path: Path) -> None:
    """Letters that it lacks are written as Python writes them; data stay UTF-8."""
    target = tmp_path / "genes.zarr"
    dask_convert.convert(source, target, workers=0)
    shown = run("plan", source, PYTHONIOENCODING="koi8-r")
    assert (shown.returncode, b"layers/gr\\xf6\\xdfe" in shown.stdout) == (0, True)
    shown = run("gene", target, "g1", PYTHONIOENCODING="koi8-r")
    assert "zelle-ä3," in shown.stdout.decode()


def test_no_file_takes_the_number_of_a_stream() -> None:
    """Libraries print to number 2, whatever file that is."""
    code = (
        "import os, sys; from dask_convert.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "open('/dev/null'); print(os.path.realpath('/proc/self/fd/2'))"
    )
    found = subprocess.run(
        ["/bin/sh", "-c", f'{sys.executable} -c "{code}" 2>&-'],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "/dev/null"


@pytest.mark.parametrize("path", ["/dev/fd/5", "/dev/stdin", "/proc/self/fd/5", "link"])
def test_a_source_that_only_this_process_has_is_refused_to_workers(
    source: Path, tmp_path: Path, path: str
) -> None:
    """They would find another file there, or none; without workers there is nobody to find it."""
    (tmp_path / "link").symlink_to("/dev/fd/5")
    place, target = tmp_path / path, tmp_path / "genes.zarr"
    streams = f"5<{source} <{source}"
    for command in (("convert", place, target), ("verify", place, tmp_path)):
        ended = run(*command, "--workers", 1, streams=streams)
        (line,) = ended.stderr.decode().splitlines()
        assert ended.returncode == 3
        assert line == (
            f"dask-convert: {place} is a file of this process, which workers cannot open: give its "
            "own path, or do without workers (--workers 0)"
        )
    assert run("convert", place, target, "--workers", 0, streams=streams).returncode == 0
