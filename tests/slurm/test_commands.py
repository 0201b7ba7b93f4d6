"""The commands of docs/running.md on a real SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import assert_equal
from local_slurm import LocalSlurm, wait_until

import dask_convert

ROOT = Path(dask_convert.__file__).parent.parent
PAGE = (ROOT / "docs" / "running.md").read_text()


def documented(word: str) -> list[str]:
    """The words of the documented command that has a certain word, and none of the shell's."""
    text = PAGE.replace("\\\n", " ")
    (command,) = [
        line for line in text.splitlines() if line.startswith("dask-convert ") and word in line
    ]
    return re.sub(r"\s+", " ", command).split()


def start(command: list[str], directory: Path) -> subprocess.Popen[str]:
    """Run a documented command in a directory, over the loopback."""
    loopback = {
        "DASK_DASK_CONVERT__SLURM__INTERFACE": "lo",
        "DASK_DASK_CONVERT__SLURM__POLL_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "dask_convert", *command[1:]],
        cwd=directory,
        env=os.environ | loopback,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_conversions_side_by_side(slurm: LocalSlurm, source: Path, tmp_path: Path) -> None:
    """Both are right, know nothing of each other, and leave no job and no file."""
    command = documented("convert cells.h5ad genes.zarr --cluster slurm")
    other = tmp_path / "other" / "cells.h5ad"
    other.parent.mkdir()
    other.write_bytes(source.read_bytes())
    both = [start(command, path.parent) for path in (source, other)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert not [text for text in errors if "Traceback" in text]
    assert_equal(source)
    assert_equal(other)
    wait_until(lambda: not slurm.run("squeue", "--noheader"), 20)


def test_one_allocation(
    slurm: LocalSlurm, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sbatch script as it is, on both nodes, but for the size of the test's nodes."""
    monkeypatch.setenv("DASK_CONVERT_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DASK_DASK_CONVERT__SLURM__INTERFACE", "lo")
    log = tmp_path / "log"
    slurm.run(
        *("sbatch", "--cpus-per-task=2", "--mem=2500M", "--time=10", f"--output={log}"),
        *(f"--chdir={source.parent}", str(ROOT / "configs" / "one-allocation.sbatch")),
        *("cells.h5ad", "genes.zarr"),
    )
    wait_until(lambda: not slurm.run("squeue", "--noheader"), 90, log.read_text)
    assert "Traceback" not in log.read_text()
    assert_equal(source)
