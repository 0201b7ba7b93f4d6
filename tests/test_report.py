"""The report of a run: it tells of lost workers, retries and the verification, and of failures."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import xml.etree.ElementTree as ET
from contextlib import nullcontext
from html import unescape
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

import dask_convert
from dask_convert.cli import main
from dask_convert.conversion.run import run_conversion
from dask_convert.conversion.source_plan import plan_conversion
from dask_convert.display import side_files
from dask_convert.display.charts import WIDTH, Bar, Mark, lane_chart
from dask_convert.display.losses import NotingExecutor, losses
from dask_convert.display.progress import Silent
from dask_convert.engine.graph import SynchronousExecutor
from dask_convert.errors import DaskConvertError, DiskSpaceError, TargetError
from dask_convert.planning.plans import Settings
from dask_convert.verification import verifying

KEYS = {("split-ab", 3), ("split-ab", 1), ("combine-ab", 7), ("barrier-ab", 0), "others", ("x", 1)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of half a dozen row blocks."""
    path = tmp_path / "cells.h5ad"
    counts = sp.random(60_000, 300, 0.1, format="csr", random_state=1, dtype="f4")
    ad.AnnData(counts).write_h5ad(path)
    return path


def words(report: Path) -> str:
    """What a report says, without its tags."""
    return re.sub(" +", " ", unescape(re.sub(r"<[^>]*>", " ", report.read_text())))


def test_losses_are_read_from_dasks_events() -> None:
    """Only of workers, only from the begin on; only tasks of ours, in words."""
    gone = {"action": "remove-worker", "worker": "tcp://w:1", "processing-tasks": KEYS}
    events: list[Any] = [
        (1.0, gone),
        (5.0, {**gone, "expected": False, "lost-computed-tasks": [["split-ab", 0]]}),
        (6.0, {"action": "add-worker", "worker": "tcp://w:2"}),
        (7.0, "anything"),
        (8.0, {"action": "remove-worker", "worker": "tcp://w:2", "expected": True}),
    ]
    first, second = losses(events, began=2.0, matrices={"ab": "layers/counts"})
    assert (first.time, first.worker, first.expected) == (5.0, "tcp://w:1", False)
    assert first.work == tuple(
        f"{work} of layers/counts"
        for work in ("the barrier", "region 7", "row block 1", "row block 3")
    )
    assert first.lost_results == ("row block 0 of layers/counts",)
    assert (second.expected, second.work) == (True, ())


def test_work_of_a_graph_that_never_reported_has_no_matrix() -> None:
    """Its number is told all the same."""
    gone = {"action": "remove-worker", "worker": "tcp://w:1", "processing-tasks": KEYS}
    assert losses([(3.0, gone)], 2.0, {"other": "X"})[0].work[-1] == "row block 3"


class Killing(Silent):
    """Kills a worker, once the first task is done."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids

    def report(self, *_matrix_and_report: Any) -> None:
        """See `run.Progress`."""
        if self.pids:
            os.kill(self.pids.pop(), signal.SIGKILL)
            self.pids.clear()


def test_a_killed_worker_is_in_the_report(client: Client, source: Path, tmp_path: Path) -> None:
    """When, which, what it had been given; that it was done again, and that all came out equal."""
    pids = list(client.run(os.getpid).values())
    victim = pids[-1]
    report = tmp_path / "run.html"
    dask_convert.convert(
        source,
        tmp_path / "genes.zarr",
        memory="4GiB",
        client=client,
        verify=True,
        report=report,
        progress=Killing(pids),
    )
    text = words(report)
    assert "Conversion done" in text
    lost = re.search(r"(\S+) s\s+(\S+)\s+lost\s+(.+?)\n", text)
    assert lost is not None
    assert float(lost[1]) > 0
    assert lost[2].endswith(f":{victim}") or lost[2].startswith("tcp://")
    assert all(word.endswith(" of X") for word in lost[3].strip().split(", ") if word != "nothing")
    if "row block" in lost[3]:
        assert f"given to another worker: {lost[3].strip()}" in text
    assert "equal to the source" in text
    assert "verify X" in text
    assert 'stroke="#b00020"' in report.read_text()


def test_work_that_was_lost_is_named_with_its_matrix(tmp_path: Path) -> None:
    """Numbers begin anew with every matrix; whose a graph is, the reports tell."""
    counts = sp.random(50, 30, 0.1, format="csr", random_state=1, dtype="f4")
    source = tmp_path / "cells.h5ad"
    ad.AnnData(counts, layers={"twice": 2 * counts}).write_h5ad(source)
    reported: list[str] = []

    class Naming(Silent):
        """Notes which matrix reports."""

        def report(self, matrix: Any, _report: Any) -> None:
            reported.append(matrix.source.name)

    class Keeping(SynchronousExecutor):
        """Notes which keys there are."""

        def __init__(self) -> None:
            self.keys: list[Any] = []

        def run(self, graph: Any, on_report: Any) -> None:
            self.keys += graph
            super().run(graph, on_report)

    kept = Keeping()
    noting = NotingExecutor(kept, lambda: reported[-1])
    run_conversion(
        source,
        tmp_path / "genes.zarr",
        plan_conversion(source, Settings(memory=2**31)),
        lambda _: nullcontext(noting),
        scratch_parent=tmp_path,
        overwrite=False,
        progress=Naming(),
    )
    gone = {"action": "remove-worker", "worker": "tcp://w:1", "processing-tasks": kept.keys}
    (loss,) = losses([(3.0, gone)], 2.0, noting.matrices)
    assert loss.work == tuple(
        f"{work} of {matrix}"
        for matrix in ("X", "layers/twice")
        for work in ("the barrier", "region 0", "row block 0")
    )


def test_a_run_that_fails_its_verification_tells_the_differences(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the report as in the error; and one that fails before says how far it came."""
    monkeypatch.setattr(verifying, "_rest", lambda *_: ["obs: has two heads"])
    report = tmp_path / "run.html"
    with pytest.raises(DaskConvertError):
        dask_convert.convert(source, tmp_path / "t.zarr", workers=0, verify=True, report=report)
    text = words(report)
    assert "Conversion failed" in text
    assert "The store differs from its source:\nobs: has two heads" in text
    assert "No worker was lost" in text
    with pytest.raises(DaskConvertError):
        dask_convert.convert(
            source, tmp_path / "t.zarr", workers=0, verify=True, data_dtype="u1", report=report
        )
    text = words(report)
    assert "asked for, and not come to its end" in text
    assert re.search(r"combine X: 0 of \d+", text)


REFUSED = {
    "no/run.html": "no directory",
    "a directory": "is a directory",
    "cells.h5ad": "is the source",
    "link.h5ad": "is the source",
    "t.zarr": "belongs to the target",
    "t.zarr/run.html": "belongs to the target",
    "/dev/null": "no regular file",
    "/sys/run.html": "cannot be written",
    "long" * 60: "too long",
    "longer" * 50: "too long",
}


@pytest.mark.parametrize(
    ("name", "words_of_it"), REFUSED.items(), ids=[name[:15] for name in REFUSED]
)
def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    source: Path, tmp_path: Path, name: str, words_of_it: str
) -> None:
    """One line, an exit code, nothing made and nothing spoilt."""
    (tmp_path / "a directory").mkdir()
    (tmp_path / "link.h5ad").symlink_to(source)
    before = _what_is_there(tmp_path)
    ended = CliRunner().invoke(
        main,
        ["convert", str(source), str(tmp_path / "t.zarr"), "--report", str(tmp_path / name)],
    )
    if name == "a directory":  # told by the command line itself
        assert ended.exit_code == 2
    else:
        assert (ended.exit_code, len(ended.stderr.splitlines())) == (4, 1)
        assert words_of_it in ended.stderr
    with pytest.raises(TargetError, match=words_of_it):
        dask_convert.convert(source, tmp_path / "t.zarr", workers=0, report=tmp_path / name)
    assert _what_is_there(tmp_path) == before


def test_a_run_that_is_refused_leaves_the_report_of_the_last_one(
    source: Path, tmp_path: Path
) -> None:
    """Nothing has happened that would be worth more; where there is none, it tells why."""
    target, page = tmp_path / "t.zarr", tmp_path / "run.html"
    dask_convert.convert(source, target, workers=0, report=page)
    before = page.read_bytes()
    for report in (page, tmp_path / "other.html"):
        with pytest.raises(TargetError, match="exists already"):
            dask_convert.convert(source, target, workers=0, report=report)
    assert page.read_bytes() == before
    assert "exists already" in words(tmp_path / "other.html")


def _what_is_there(directory: Path) -> dict[Path, tuple[int, int, int]]:
    """All below a directory, with what would change with its content."""
    found = {path: path.stat() for path in directory.rglob("*")}
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns) for path, s in found.items()}


def test_a_full_disk_refuses_the_report_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By trying: other files could still be made there."""
    monkeypatch.setattr(side_files, "write_all", full_disk)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DiskSpaceError, match="no space left"):
        dask_convert.convert(source, tmp_path / "t.zarr", workers=0, report=tmp_path / "run.html")
    assert sorted(tmp_path.iterdir()) == before


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("log", [True, False])
def test_a_report_that_fails_at_the_end_costs_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: bool
) -> None:
    """The conversion counts; one that failed keeps its own error and exit code."""
    monkeypatch.setattr(side_files, "_try_out", lambda _: None)
    monkeypatch.setattr(side_files, "write_all", full_disk)
    target, path = tmp_path / "t.zarr", tmp_path / "run.html"
    command = ["convert", str(source), str(target), "--workers", "0", "--quiet"]
    command += ["--report", str(path), *(["--log-file", str(tmp_path / "run.log")] if log else [])]
    told = f"dask-convert: {path}: the report cannot be written: no space left"
    ended = CliRunner().invoke(main, command)
    assert (ended.exit_code, ended.output.count("\n")) == (0, 1)
    assert ended.stderr.startswith(told)
    assert ad.io.read_zarr(target).X.nnz == ad.read_h5ad(source).X.nnz
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 4
    assert again.stderr.startswith(told)
    assert f"{target} exists already" in again.stderr.splitlines()[1]
    assert not path.exists()
    if log:
        assert (tmp_path / "run.log").read_text().count("WARNING dask_convert.display.report") == 2


def test_a_report_may_lie_where_the_target_will(source: Path, tmp_path: Path) -> None:
    """In a directory that the run makes; also if it fails, and removes what it made."""
    place = tmp_path / "new" / "place"
    path = place / "run.html"
    with pytest.raises(DaskConvertError):
        dask_convert.convert(source, place / "t.zarr", workers=0, data_dtype="u1", report=path)
    assert "Conversion failed" in words(path)
    path.unlink()
    place.rmdir()
    dask_convert.convert(source, place / "t.zarr", workers=0, report=path)
    assert "Conversion done" in words(path)


def test_damaged_fragments_are_told_as_retries(source: Path, tmp_path: Path) -> None:
    """A row block whose fragments vanish is split again, and the report says so."""

    class Removing(Silent):
        left = 1

        def report(self, *_matrix_and_report: Any) -> None:
            for path in tmp_path.glob(".t.zarr.scratch-*/*/*/block-000000"):
                if self.left:
                    path.unlink()
                    self.left = 0

    report = tmp_path / "run.html"
    dask_convert.convert(
        source,
        tmp_path / "t.zarr",
        workers=0,
        report=report,
        progress=Removing(),
        wait_seconds=0.05,
    )
    assert "split X: 1 more, since scratch was damaged" in words(report)


@given(
    lanes=st.lists(st.text("abc<&.:-0123456789", min_size=1, max_size=90), min_size=1, max_size=6),
    kinds=st.lists(st.text("abcdef ", min_size=1, max_size=40), min_size=1, max_size=12),
)
def test_words_of_a_timeline_stay_inside_and_apart(lanes: list[str], kinds: list[str]) -> None:
    """Names of lanes end left of the bars and begin inside; entries of the legend do not meet."""
    bars = [Bar(lanes[n % len(lanes)], n, n + 1.0, kind) for n, kind in enumerate(kinds)]
    tree = ET.fromstring(lane_chart(bars, [Mark(lanes[0], 1.0, "<gone>")]))  # noqa: S314  (ours)
    space = "{http://www.w3.org/2000/svg}"
    texts = [(float(t.attrib["x"]), float(t.attrib["y"]), t) for t in tree.iter(f"{space}text")]
    named = [(x, t.text or "") for x, _, t in texts if t.attrib.get("text-anchor") == "end"]
    first_bar = min(float(r.attrib["x"]) for r in tree.iter(f"{space}rect") if "height" in r.attrib
                    and r.attrib["height"] != "10")  # fmt: skip
    assert all(x < first_bar and x - 6.0 * len(text) >= 0 for x, text in named)
    rows: dict[float, list[tuple[float, float]]] = {}
    for x, y, text in texts:
        if "text-anchor" not in text.attrib:
            rows.setdefault(y, []).append((x, x + 6.0 * len(text.text or "")))
    for row in rows.values():
        assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(row))
        assert row[-1][1] <= WIDTH or len(row) == 1
