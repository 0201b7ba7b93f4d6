"""Paths that the system, or what is made of them, cannot have: refused in a line, before work."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

import dask_convert
from dask_convert.cli import main
from dask_convert.errors import PlanError, ScratchError, SourceError, StoreError, TargetError

LATIN = os.fsdecode("größe".encode("latin-1"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file."""
    path = tmp_path / "cells.h5ad"
    ad.AnnData(sp.random(50, 20, 0.2, format="csr", random_state=1, dtype="f4")).write_h5ad(path)
    return path


def refused(place: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and line of a command that leaves everything as it is."""
    before = sorted(place.rglob("*"))
    ended = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(ended.exception, SystemExit), ended.exception
    (line,) = ended.stderr.splitlines()
    assert sorted(place.rglob("*")) == before
    return ended.exit_code, line


@pytest.mark.parametrize("length", [238, 242, 245, 255, 300])
@pytest.mark.parametrize("below", [".", "new"])
def test_a_target_whose_name_leaves_no_room_is_refused(
    source: Path, tmp_path: Path, length: int, below: str
) -> None:
    """Lock, scratch and half-built store have names that are longer than its own."""
    target = tmp_path / below / ("g" * (length - 5) + ".zarr")
    code, line = refused(tmp_path, "convert", source, target, "--workers", 0)
    assert code == (4 if length > 241 else 12)
    assert "too long" in line
    assert refused(tmp_path, "clean", target)[0] == code
    if length > 255:
        assert refused(tmp_path, "verify", source, target)[0] == 15


def test_the_longest_name_that_has_room_is_taken(source: Path, tmp_path: Path) -> None:
    """In bytes, not in letters."""
    target = tmp_path / ("ä" * 116 + ".zarr")
    dask_convert.convert(source, target, workers=0)
    assert ad.io.read_zarr(target).n_obs == 50
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_paths_without_end_are_refused(source: Path, tmp_path: Path) -> None:
    """Of target and scratch."""
    far = tmp_path / Path(*["d"] * 2100)
    assert refused(tmp_path, "convert", source, far / "g.zarr", "--workers", 0)[0] == 4
    there = tmp_path / "g.zarr"
    assert refused(tmp_path, "convert", source, there, "--workers", 0, "--scratch", far)[0] == 12


def test_a_target_has_a_name(source: Path, tmp_path: Path) -> None:
    """The root of a file system has none."""
    for command in (("convert", source, "/", "--workers", 0), ("clean", "/")):
        code, line = refused(tmp_path, *command)
        assert (code, "/ has no name" in line) == (4, True)


def test_names_that_are_no_utf8_are_refused(source: Path, tmp_path: Path) -> None:
    """They could be noted in no file of JSON, and told no other process."""
    target, other = tmp_path / "genes.zarr", tmp_path / f"{LATIN}.h5ad"
    other.write_bytes(source.read_bytes())
    store = tmp_path / f"{LATIN}.zarr"
    cases = [
        (("convert", other, target), 3),
        (("convert", source, store), 4),
        (("convert", source, target, "--scratch", tmp_path / LATIN), 12),
        (("convert", source, target, "--allow-external", tmp_path / LATIN), 2),
        (("verify", other, tmp_path), 3),
    ]
    for command, expected in cases:
        code, line = refused(tmp_path, *command, "--workers", 0)
        assert (code, "no UTF-8" in line) == (expected, True), (command, line)
    dask_convert.convert(source, target, workers=0)
    target.rename(store)
    assert refused(tmp_path, "verify", source, store, "--workers", 0)[0] == 15
    ended = CliRunner().invoke(main, ["inspect", str(store)])
    assert ended.exit_code == 0, ended.output


def test_side_files_may_have_names_that_are_no_utf8(source: Path, tmp_path: Path) -> None:
    """Nobody notes them."""
    log, report = tmp_path / f"{LATIN}.log", tmp_path / f"{LATIN}.html"
    command = ["convert", source, tmp_path / "genes.zarr", "--workers", 0]
    command += ["--log-file", log, "--report", report, "--quiet"]
    ended = CliRunner().invoke(main, [str(argument) for argument in command])
    assert (ended.exit_code, ended.output) == (0, "")
    assert "done" in log.read_text()
    assert report.is_file()


def test_names_with_a_nul_are_refused(source: Path, tmp_path: Path) -> None:
    """From Python: no argument of a command can have one."""
    target, bad = tmp_path / "genes.zarr", tmp_path / "a\0b"
    with pytest.raises(SourceError):
        dask_convert.plan(bad)
    with pytest.raises(SourceError):
        dask_convert.convert(bad, target, workers=0)
    with pytest.raises(TargetError, match="NUL"):
        dask_convert.convert(source, bad, workers=0)
    with pytest.raises(ScratchError, match="NUL"):
        dask_convert.convert(source, target, scratch=bad, workers=0)
    with pytest.raises(TargetError):
        dask_convert.convert(source, target, report=bad, workers=0)
    with pytest.raises(PlanError, match="NUL"):
        dask_convert.convert(source, target, allow_external=[bad], workers=0)
    with pytest.raises(StoreError):
        dask_convert.verify(source, bad, workers=0)
    with pytest.raises(TargetError):
        dask_convert.clean(bad)
    with pytest.raises(StoreError):
        dask_convert.open_store(bad)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(os.geteuid() == 0, reason="no directory is closed to root")
def test_a_directory_that_may_not_be_entered_is_refused(source: Path, tmp_path: Path) -> None:
    """With the code of what lies in it."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    inside, target = closed / "inside", tmp_path / "genes.zarr"
    cases = [
        (("plan", inside), 3),
        (("convert", source, inside, "--workers", 0), 4),
        (("convert", source, target, "--workers", 0, "--scratch", inside), 12),
        (("convert", source, target, "--workers", 0, "--report", inside), 4),
        (("verify", source, inside, "--workers", 0), 15),
        (("inspect", inside), 15),
        (("clean", inside), 4),
    ]
    for command, expected in cases:
        ended = CliRunner().invoke(main, [str(argument) for argument in command])
        found = (ended.exit_code, len(ended.stderr.splitlines()))
        assert found == (expected, 1), (command, ended.output)
        assert "Permission denied" in ended.stderr
    closed.chmod(0o500)
    ended = CliRunner().invoke(main, ["convert", str(source), str(inside), "--workers=0"])
    assert (ended.exit_code, "no permission to write" in ended.stderr) == (4, True)
    assert not list(closed.iterdir())
    closed.chmod(0o700)


def test_a_relative_path_needs_a_directory(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is gone is told of, from Python as on the command line."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PlanError, match="current directory is gone"):
        dask_convert.convert(source, "genes.zarr", workers=0)
    for command in (("plan", "cells.h5ad"), ("convert", source, tmp_path / "t"), ("clean", "t")):
        code, line = refused(tmp_path, *command)
        assert (code, "the current directory is gone" in line) == (2, True)
