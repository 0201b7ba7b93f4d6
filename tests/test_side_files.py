"""Pages and logs beside a conversion: they replace and spoil nothing but pages of ours."""

from __future__ import annotations

import errno
import itertools
import logging
from pathlib import Path

import anndata as ad
import pytest
import scipy.sparse as sp
from click.testing import CliRunner, Result

import dask_convert
from dask_convert.cli import main
from dask_convert.display import logs, side_files
from dask_convert.errors import TargetError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file."""
    path = tmp_path / "cells.h5ad"
    ad.AnnData(sp.random(50, 20, 0.2, format="csr", random_state=1, dtype="f4")).write_h5ad(path)
    return path


@pytest.fixture
def target(source: Path, tmp_path: Path) -> Path:
    """A store of it."""
    path = tmp_path / "genes.zarr"
    dask_convert.convert(source, path, workers=0)
    return path


def run(*arguments: object) -> Result:
    """Run a command of dask-convert."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def content(directory: Path) -> dict[Path, bytes]:
    """All files below a directory."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def commands(source: Path, target: Path, page: Path) -> list[tuple[object, ...]]:
    """All that write pages."""
    other = target.with_name("other.zarr")
    return [
        ("plan", source, "--html", page),
        ("inspect", target, "--html", page),
        ("convert", source, other, "--workers", 0, "--overwrite", "--report", page),
    ]


@pytest.mark.parametrize("number", range(3), ids=["plan", "inspect", "convert"])
def test_a_page_replaces_pages_of_ours_alone(source: Path, target: Path, number: int) -> None:
    """The same command can be given again; notes, data and pages of others stay as they are."""
    page = source.with_name("page.html")
    command = commands(source, target, page)[number]
    for _ in range(2):
        assert run(*command).exit_code == 0
    link = source.with_name("link.html")
    link.symlink_to(page)
    page.write_text(page.read_text() + "<!-- old -->")
    assert run(*commands(source, target, link)[number]).exit_code == 0
    assert link.is_symlink()
    assert "<!-- old -->" not in page.read_text()
    for text in ("", "my notes", "<!DOCTYPE html>\n<html></html>"):
        page.write_text(text)
        before = content(source.parent)
        result = run(*command)
        assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1), result.output
        assert f"{page} exists already; remove it, or name another file" in result.stderr
        assert content(source.parent) == before


@pytest.mark.parametrize("number", range(3), ids=["plan", "inspect", "convert"])
def test_a_page_is_never_the_source_nor_in_the_target(
    source: Path, target: Path, number: int
) -> None:
    """By whatever names; refused before any work."""
    place = source.parent
    (place / "link.h5ad").symlink_to(source)
    (place / "hard.h5ad").hardlink_to(source)
    (place / "link.zarr").symlink_to(target)
    (place / "dangling.html").symlink_to(target / "page.html")
    (place / "other.zarr").symlink_to(target)
    for name in ("cells.h5ad", "link.h5ad", "hard.h5ad", "genes.zarr", "genes.zarr/X/page.html",
                 "link.zarr/page.html", "dangling.html"):  # fmt: skip
        if number == 0 and not name.endswith("h5ad"):
            continue  # a plan has no target
        before = content(place)
        result = run(*commands(source, target, place / name)[number])
        assert result.exit_code in {2, 4}, (name, result.output)  # 2 for what click refuses itself
        assert content(place) == before
    assert run("inspect", f"file://{target}", "--html", target / "page.html").exit_code == 4
    assert not (target / "page.html").exists()


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "no/page.html", "long" * 70])
def test_what_cannot_be_a_page_is_refused_before_any_work(
    source: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and nothing is left; a device stays a device."""
    monkeypatch.setattr("dask_convert.api.plan", None)  # would be a crash
    before = content(source.parent)
    result = run("plan", source, "--html", source.parent / name)
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1)
    assert "cannot be written" in result.stderr or "exists already" in result.stderr
    assert content(source.parent) == before
    assert not Path("/dev/null").is_file()


def test_a_name_with_a_nul_is_refused() -> None:
    """From Python: no argument of a command can have one."""
    with pytest.raises(TargetError, match="embedded null"):
        side_files.check_page(Path("page\0.html"))


def test_what_appears_while_a_conversion_runs_is_not_replaced(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The report is given up, the conversion is not."""
    page = tmp_path / "run.html"

    class Writing(dask_convert.display.progress.Silent):  # type: ignore[name-defined]
        def start(self, _plan: object) -> None:
            page.write_text("mine")

    dask_convert.convert(source, tmp_path / "t.zarr", workers=0, report=page, progress=Writing())
    assert page.read_text() == "mine"
    assert "exists already" in caplog.text


def test_a_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays, and nothing lies beside it."""
    page = tmp_path / "page.html"
    text = f"<!DOCTYPE html>{side_files.MARK.decode()}"
    side_files.write_page(page, text)

    def half(file: object, written: bytes) -> None:
        file.write(written[:5])  # type: ignore[attr-defined]
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(side_files, "write_all", half)
    with pytest.raises(TargetError, match="Input/output error"):
        side_files.write_page(page, text + "more")
    assert page.read_text() == text
    assert list(tmp_path.iterdir()) == [page]


def test_genes_are_not_written_into_their_store(target: Path) -> None:
    """It would have a file that is no part of it."""
    before = content(target)
    result = run("gene", target, "0", "--out", target / "gene.csv")
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1)
    assert "it belongs to the target" in result.stderr
    assert run("gene", f"file://{target}", "0", "--out", target / "gene.csv").exit_code == 4
    assert run("plan", target.with_name("cells.h5ad"), "--html", target / "p.html").exit_code == 4
    assert content(target) == before


def logging_commands(source: Path, target: Path, log: Path) -> list[tuple[object, ...]]:
    """All that write logs."""
    other = target.with_name("other.zarr")
    return [
        ("convert", source, other, "--workers", 0, "--log-file", log),
        ("plan", source, "--log-file", log),
        ("verify", source, target, "--workers", 0, "--log-file", log),
    ]


@pytest.mark.parametrize("number", range(3), ids=["convert", "plan", "verify"])
def test_a_log_is_appended_to_no_data(source: Path, target: Path, number: int) -> None:
    """Neither source nor target, by whatever names, nor anything else that is no log."""
    place = source.parent
    (place / "link.h5ad").symlink_to(source)
    (place / "hard.h5ad").hardlink_to(source)
    (place / "nul.txt").write_bytes(b"text, and then \0")
    (place / "genes.csv").write_text("cell,Gad1\n")
    names = dict.fromkeys(("cells.h5ad", "link.h5ad", "hard.h5ad"), "it is the source")
    names |= dict.fromkeys(("nul.txt", "genes.csv"), "exists already and is no log")
    if number != 2:
        names |= {"genes.zarr/zarr.json": "it would be a part of the store"}
        names |= {"genes.zarr/X/new.log": f"it would be a part of the store {target / 'X'}"}
    if number == 0:
        names |= {"other.zarr": "it belongs to the target", "other.zarr/log": "it belongs to"}
    if number == 2:
        names |= dict.fromkeys(("genes.zarr/zarr.json", "genes.zarr/x"), "belongs to the target")
    for name, words in names.items():
        before = content(place)
        result = run(*logging_commands(source, target, place / name)[number])
        assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1), (name, result.output)
        assert words in result.stderr
        assert content(place) == before


def test_a_log_is_appended_to_logs(source: Path) -> None:
    """To one of ours, to one of others that has times, to an empty file."""
    log = source.with_name("run.log")
    for text in ("", "2026-01-31 12:00:00 begin\n"):
        log.write_text(text)
        for count in (1, 2):
            assert run("plan", source, "--log-file", log).exit_code == 0
            assert log.read_text().startswith(text)
            assert log.read_text().count(" done\n") == count


@pytest.mark.parametrize("there", [False, True])
def test_a_log_and_a_page_are_two_files(source: Path, there: bool) -> None:
    """One would replace the other."""
    page = source.with_name("page.html")
    if there:
        assert run("plan", source, "--html", page).exit_code == 0
    before = content(source.parent)
    result = run("plan", source, "--html", page, "--log-file", page)
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1)
    assert "cannot be the log and the page at once" in result.stderr
    assert content(source.parent) == before


def test_a_log_without_room_is_refused_at_its_first_line(source: Path) -> None:
    """Nothing is begun."""
    result = run("plan", source, "--log-file", "/dev/full")
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1)
    assert "/dev/full: the log cannot be written: No space left" in result.stderr
    assert result.stdout == ""


def test_a_log_that_fails_later_is_given_up_with_a_line(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion goes on."""
    flush = logging.FileHandler.flush
    calls = itertools.count()

    def full(handler: logging.FileHandler) -> None:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handler)

    monkeypatch.setattr(logs._File, "flush", full, raising=False)
    log, target = source.with_name("run.log"), source.with_name("genes.zarr")
    result = run("convert", source, target, "--workers", 0, "--quiet", "--log-file", log)
    assert result.exit_code == 0, result.output
    assert (
        result.stderr
        == f"dask-convert: {log}: the log cannot be written: No space left on device\n"
    )
    assert target.is_dir()
