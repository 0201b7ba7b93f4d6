"""Runs that are cut off anywhere: the same command ends in the same store, and wastes nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import zarr
from engine import convert, names
from faults import (
    CUTS,
    blocks_done,
    contents,
    failpoint,
    finish,
    leftovers,
    make_source,
    regions_done,
    run_here,
    start,
)
from oracle import assert_converted
from strategies import Csr, away, random_csr, write_h5ad

from dask_convert import api
from dask_convert.conversion import resuming, run
from dask_convert.conversion.locks import RunLock
from dask_convert.conversion.workspace import Workspace
from dask_convert.engine import stages
from dask_convert.engine.graph import Graph, OnReport, SynchronousExecutor
from dask_convert.engine.results import ConversionResult
from dask_convert.errors import (
    DtypeError,
    FragmentError,
    LockError,
    ResumeError,
    ScratchError,
    SourceError,
    StorageError,
    TargetError,
)
from dask_convert.files import failpoints, hdf5
from dask_convert.files.scratch import MatrixScratch, load_struct, save_struct
from dask_convert.planning.layout import Trust
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import ConversionPlan

# anndata 0.13 warns so about itself with pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

KILLED = -9


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Csr, dict[str, bytes]]:
    """A source, its matrix, and the files of the store that an undisturbed run makes of it."""
    directory = tmp_path_factory.mktemp("shared")
    source = directory / "source.h5ad"
    matrix = make_source(source)
    convert(source, directory / "undisturbed.zarr", **CUTS)
    assert_converted(directory / "undisturbed.zarr", matrix)
    return source, matrix, contents(directory / "undisturbed.zarr")


@pytest.fixture
def source(shared: tuple[Path, Csr, dict[str, bytes]], tmp_path: Path) -> Path:
    """A copy of the source, with its time."""
    return Path(shutil.copy2(shared[0], tmp_path / "source.h5ad"))


@pytest.fixture
def expected(shared: tuple[Path, Csr, dict[str, bytes]]) -> dict[str, bytes]:
    return shared[2]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target.zarr"


def killed_at(rule: str, source: Path, target: Path, **settings: Any) -> None:
    """Begin a conversion that dies at a failpoint."""
    process = start(run_here, source, target, settings, environment=failpoint(f"{rule}=kill"))
    assert finish(process) == KILLED


def again(source: Path, target: Path, **settings: Any) -> ConversionResult:
    """The same command."""
    return convert(source, target, **{**CUTS, **settings})


class Counting:
    """Counts how often stages do their work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = {"split": 0, "combine": 0}
        for name in self.calls:
            monkeypatch.setattr(stages, name, self._counted(name, getattr(stages, name)))

    def _counted(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.calls[name] += 1
            return work(*arguments)

        return counted


# A run that begins clears up first, so that it comes by these names a second time.
LATE = [name for name in failpoints.NAMES if name.startswith("clear: ")]
EARLY = [name for name in failpoints.NAMES if name != "publish: old set aside"]
REPEATED = ["state: renamed", "array: renamed", "fragment: renamed", "block report: renamed"]
REPEATED += ["shard: renamed", "region report: renamed"]
RULES = EARLY + [f"{name}@2" for name in LATE] + [f"{name}@3" for name in REPEATED]


@pytest.mark.once
@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_is_killed_anywhere_can_be_continued(
    source: Path, target: Path, expected: dict[str, bytes], rule: str
) -> None:
    """Killed at each failpoint, the same command ends in the same bytes and leaves nothing."""
    killed_at(rule, source, target)
    if rule == "clear: state removed@2":  # nothing tells any more that the store is this run's
        with pytest.raises(TargetError, match="exists already"):
            again(source, target)
        api.clean(target)
    else:
        again(source, target)
    assert contents(target) == expected
    assert leftovers(target) == []


@pytest.mark.once
@pytest.mark.parametrize(
    "rule",
    [
        "publish: old set aside",
        "publish: renamed",
        "target: flushed",
        "clear: scratch removed@2",
        "state: renamed@3",
    ],
)
@pytest.mark.parametrize("clean", [False, True])
def test_a_replacement_that_is_cut_off_loses_neither_store(
    source: Path, target: Path, expected: dict[str, bytes], rule: str, clean: bool
) -> None:
    """Either the old store is there or the new one, whichever way it is cleared up."""
    again(source, target, codec="gzip", codec_level=1)
    old = contents(target)
    killed_at(rule, source, target, overwrite=True)
    if clean:
        api.clean(target)
        assert contents(target) in (old, expected)
        assert (contents(target) == expected) == (
            rule not in {"publish: old set aside", "target: flushed", "state: renamed@3"}
        )
    else:
        again(source, target, overwrite=True)
        assert contents(target) == expected
    assert leftovers(target) == []


def test_a_store_that_was_cleared_is_not_taken_for_published(
    source: Path, target: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearing that is cut off leaves no claim that the store at the target is the new one."""
    again(source, target, codec="gzip", codec_level=1)
    killed_at("publish: old set aside", source, target, overwrite=True)
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, f"clear: store removed=error:{errno.EIO}")
        with pytest.raises(OSError, match="Input/output error"):
            api.clean(target)
    assert contents(target) != expected
    again(source, target, overwrite=True)
    assert contents(target) == expected
    assert leftovers(target) == []


def test_an_error_after_the_name_was_taken_is_mended(
    source: Path, target: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new store is there, the old one goes the next time, and nothing is converted again."""
    again(source, target, codec="gzip", codec_level=1)
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, f"publish: renamed=error:{errno.EIO}")
        with pytest.raises(StorageError, match="Input/output error"):
            again(source, target, overwrite=True)
    assert contents(target) == expected
    counting = Counting(monkeypatch)
    again(source, target, overwrite=True)
    assert counting.calls == {"split": 0, "combine": 0}
    assert contents(target) == expected
    assert leftovers(target) == []


def test_a_name_that_was_taken_between_two_renames_is_refused(source: Path, target: Path) -> None:
    """Both stores stay, and the message says where they are."""
    again(source, target, codec="gzip", codec_level=1)
    killed_at("publish: old set aside", source, target, overwrite=True)
    target.mkdir()
    for command in (lambda: again(source, target, overwrite=True), lambda: api.clean(target)):
        with pytest.raises(TargetError, match="move one of them away"):
            command()
    target.rmdir()
    api.clean(target)
    assert target.is_dir()
    assert leftovers(target) == []


def test_a_finished_matrix_without_its_indptr_is_mended(
    source: Path, target: Path, expected: dict[str, bytes]
) -> None:
    """Blocks are read again; files of entries that are intact stay."""
    killed_at("target: described", source, target)
    (indptr,) = target.parent.rglob("indptr.npy")
    indptr.write_bytes(indptr.read_bytes()[:-8])
    (matrix,) = again(source, target).matrices
    assert matrix.regions_reused == 10
    assert contents(target) == expected
    assert leftovers(target) == []


def test_every_failpoint_is_in_the_code() -> None:
    """The list and the places agree."""
    directory = Path(failpoints.__file__).parents[1]
    text = "".join(path.read_text() for path in directory.rglob("*.py"))
    for name in failpoints.NAMES:
        kind, step = name.split(": ")
        if kind in failpoints.FILE_KINDS:
            assert f"{{kind}}: {step}" in text
            assert f'"{kind}"' in text
        else:
            assert f'reach("{name}")' in text


@pytest.mark.parametrize(
    ("rule", "n_blocks", "n_regions"),
    [
        ("block report: renamed@9", 9, 0),
        ("region report: renamed@4", 21, 4),
        ("matrix report: renamed", 0, 10),
        ("target: finalised", 0, 10),
    ],
)
def test_finished_work_is_not_done_again(
    source: Path,
    target: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    n_blocks: int,
    n_regions: int,
) -> None:
    """Exactly the other blocks and regions are done, and the result says so."""
    killed_at(rule, source, target)
    counting = Counting(monkeypatch)
    (matrix,) = again(source, target).matrices
    assert (matrix.blocks_reused, matrix.regions_reused) == (n_blocks, n_regions)
    all_blocks = 0 if n_regions == 10 else 21
    assert counting.calls == {"split": all_blocks - n_blocks, "combine": 10 - n_regions}
    assert contents(target) == expected
    (undisturbed,) = convert(source, target, overwrite=True, **CUTS).matrices
    assert matrix.source_bytes == undisturbed.source_bytes
    assert matrix.target_bytes == undisturbed.target_bytes


def test_many_short_runs_come_to_an_end(
    source: Path, target: Path, expected: dict[str, bytes]
) -> None:
    """Each of them gets a bit further."""
    progress = []
    for rule in ["block report: renamed@8"] * 2 + ["region report: renamed@4"] * 2:
        killed_at(rule, source, target)
        progress.append((blocks_done(target), regions_done(target)))
    assert progress == [(8, 0), (16, 0), (21, 4), (21, 8)]
    again(source, target)
    assert contents(target) == expected


def test_stores_of_the_old_format_are_continued_too(
    source: Path, target: Path, tmp_path: Path
) -> None:
    """Their chunks lie elsewhere."""
    old = {"zarr_format": 2, "shard_nnz": 0, "region_nnz": 5_000}
    again(source, tmp_path / "undisturbed.zarr", **old)
    killed_at("region report: renamed@4", source, target, **old)
    (matrix,) = again(source, target, **old).matrices
    assert matrix.regions_reused == 4
    assert contents(target) == contents(tmp_path / "undisturbed.zarr")


def test_a_run_that_was_replaced_leaves_the_others_files_alone(
    source: Path, target: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it ends by, once it has lost the lock; the other one has a token of its own."""
    space = Workspace(target, target.parent)

    def replaced(_run: Any, _executor: Any) -> None:
        (space.directory / "lock-000007").write_bytes(b"{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run._Run, "_run_matrices", replaced)
        with pytest.raises(KeyboardInterrupt):
            again(source, target)
    assert space.state.exists()
    assert space.scratch.is_dir()
    (space.directory / "lock-000007").unlink()
    again(source, target)
    assert contents(target) == expected


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_a_source_that_cannot_be_opened_for_a_moment_costs_no_work(
    source: Path,
    target: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """HDF5 tells the system's error in words; what was finished is kept."""
    killed_at("region report: renamed@3", source, target)

    def fails(*_arguments: Any, **_options: Any) -> None:
        msg = f"Unable to synchronously open file (unable to open file: errno = {number}, ...)"
        raise OSError(msg)

    def fails_to_open(path: Path, trust: Trust) -> h5py.File:
        with monkeypatch.context() as patched:
            patched.setattr(h5py, "File", fails)
            return hdf5.reopen_source(path, trust)

    with monkeypatch.context() as patched:
        patched.setattr(run, "reopen_source", fails_to_open)
        with pytest.raises(StorageError) as caught:
            again(source, target)
    assert "what is finished is kept" in caught.value.__notes__[0]
    assert again(source, target).matrices[0].regions_reused
    assert contents(target) == expected


def edit(path: Path, member: str, position: int) -> None:
    """Change one value of a source, and neither its size nor its time."""
    found = path.stat()
    with h5py.File(path, "r+") as file:
        dataset = file[f"X/{member}"]
        length = dataset.chunks[0]
        start = position // length * length
        _, chunk = dataset.id.read_direct_chunk((start,))
        place = dataset.id.get_chunk_info_by_coord((start,)).byte_offset
        assert len(chunk) > 20
    with path.open("r+b") as raw:
        raw.seek(place + 12)
        byte = raw.read(1)
        raw.seek(place + 12)
        raw.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.stat().st_mtime_ns == found.st_mtime_ns


def without_locks(directory: Path) -> dict[str, bytes]:
    """Every file below a directory but locks, which the dead leave and the living remove."""
    return {name: text for name, text in contents(directory).items() if "lock-" not in name}


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def grow(path: Path) -> None:
    found = path.stat()
    with path.open("ab") as file:
        file.write(bytes(8))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (touch, r"source\.mtime_ns was .* and is 0"),
        (grow, r"source\.size_bytes was"),
        (lambda path: edit(path, "data", 0), r"source\.matrices\[0\]\.sample_hash was"),
        (lambda path: edit(path, "indices", 59_000), r"source\.matrices\[0\]\.sample_hash was"),
        (lambda path: edit(path, "indptr", 1_000), r"X/indptr|indptr_hash was"),
    ],
)
def test_a_source_that_has_changed_is_not_continued(
    source: Path, target: Path, change: Callable[[Path], None], words: str
) -> None:
    """The difference is told, and what was kept stays."""
    killed_at("block report: renamed@9", source, target)
    kept = without_locks(target.parent)
    change(source)
    with pytest.raises((ResumeError, SourceError), match=words):
        again(source, target)
    after = without_locks(target.parent)
    assert after.keys() == kept.keys()
    assert {name for name in kept if after[name] != kept[name]} <= {"source.h5ad"}


def double(path: Path, matrix: Csr) -> None:
    """Change the values in a file that has them contiguous, and so its time; its size stays."""
    before, content = matrix.data.tobytes(), path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, (2 * matrix.data).tobytes()))


ELSEWHERE = [("link", "part.h5"), ("group", "part.h5"), ("storage", "raw"), ("virtual", "part.h5")]
"""Ways to have values in another file, and its name."""


@pytest.mark.parametrize(("kind", "name"), ELSEWHERE)
@pytest.mark.parametrize("change", ["mtime_ns", "size_bytes"])
def test_a_source_of_which_another_file_has_changed_is_not_continued(
    source: Path, target: Path, shared: Any, kind: str, name: str, change: str
) -> None:
    """It is named, and the difference told."""
    other = away(source, shared[1], kind) / name
    allowed = {"allow_external": (str(other.parent),)}
    killed_at("block report: renamed@9", source, target, **allowed)
    if change == "size_bytes":
        grow(other)
    else:
        double(other, shared[1])
    words = rf"source\.others\['{re.escape(str(other))}'\]\.{change} was"
    with pytest.raises(ResumeError, match=words):
        again(source, target, **allowed)
    again(source, target, restart=True, **allowed)
    assert leftovers(target) == []


@pytest.mark.parametrize("kind", [kind for kind, _ in ELSEWHERE])
def test_a_source_of_which_no_other_file_has_changed_is_continued(
    source: Path, target: Path, shared: Any, kind: str
) -> None:
    """Wherever its values are."""
    allowed = {"allow_external": (str(away(source, shared[1], kind)),)}
    killed_at("block report: renamed@9", source, target, **allowed)
    (matrix,) = again(source, target, **allowed).matrices
    assert matrix.blocks_reused == 9
    assert_converted(target, shared[1])


def test_samples_are_of_the_file_that_a_link_leads_to(
    source: Path, target: Path, shared: Any
) -> None:
    """Neither its size nor its time tell."""
    other = away(source, shared[1], "link") / "part.h5"
    allowed = {"allow_external": (str(other.parent),)}
    killed_at("block report: renamed@9", source, target, **allowed)
    found = other.stat()
    double(other, shared[1])
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(ResumeError, match=r"source\.matrices\[0\]\.sample_hash was"):
        again(source, target, **allowed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"codec": "lz4"}, "settings.codec was 'zstd' and is 'lz4'"),
        ({"chunk_nnz": 750}, "settings.chunk_nnz was 500 and is 750"),
        ({"data_dtype": "auto"}, "settings.data_dtype was 'same' and is 'auto'"),
        ({"matrices": []}, "source.matrices"),
    ],
)
def test_other_settings_are_refused_by_name_until_restart(
    source: Path, target: Path, shared: Any, changed: dict[str, Any], words: str
) -> None:
    """--restart begins afresh and leaves nothing of the other run."""
    killed_at("block report: renamed@9", source, target)
    with pytest.raises(ResumeError) as caught:
        again(source, target, **changed)
    message = str(caught.value)
    assert [
        word for word in (words, "--restart", "clean", str(target)) if word not in message
    ] == []
    (space,) = target.parent.glob(".target.zarr.scratch-*")
    assert str(space) in message
    result = again(source, target, restart=True, **changed)
    assert not any(matrix.blocks_reused for matrix in result.matrices)
    assert leftovers(target) == []
    if changed != {"matrices": []}:
        dtype = result.matrices[0].data_dtype
        assert_converted(target, shared[1], dtype=dtype)


def test_another_version_is_refused_by_name(
    source: Path, target: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formats may have changed."""
    killed_at("block report: renamed@9", source, target)
    with monkeypatch.context() as patched:
        patched.setattr(resuming, "__version__", "99.0")
        with pytest.raises(ResumeError, match=r"was 0\..* and is 99\.0"):
            again(source, target)
    again(source, target)
    assert contents(target) == expected


def test_workers_and_memory_may_change_while_tasks_fit(
    source: Path, target: Path, expected: dict[str, bytes]
) -> None:
    """They say how, not what; but tasks of the kept plan must fit."""
    killed_at("block report: renamed@9", source, target)
    (path,) = target.parent.glob(".*scratch*/*/plan.json")
    plan = load_struct(path, ConversionPlan)
    assert plan is not None
    large = msgspec.structs.replace(plan.matrices[0], split_bytes=2**28)
    save_struct(path, "plan", msgspec.structs.replace(plan, matrices=(large,)))
    with pytest.raises(ResumeError, match=r"tasks need [\d,]+ MiB with 4 workers"):
        again(source, target, workers=4, memory=2**30)
    (matrix,) = again(source, target, workers=1, memory=2**31).matrices
    assert matrix.blocks_reused == 9
    assert contents(target) == expected


def test_another_scratch_is_refused_and_the_old_one_named(
    source: Path, target: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Fragments are looked for where they are, not where they are not."""
    killed_at("block report: renamed@9", source, target)
    (kept,) = tmp_path.glob(".target.zarr.scratch-*")
    with pytest.raises(ResumeError, match=f"scratch was '{kept}'"):
        again(source, target, scratch_parent=tmp_path / "elsewhere")
    again(source, target, scratch_parent=tmp_path / "elsewhere", restart=True)
    assert contents(target) == expected
    assert leftovers(target) == []
    assert not (tmp_path / "elsewhere").exists()


def test_abandoned_scratch_of_others_is_named(source: Path, target: Path, tmp_path: Path) -> None:
    """A run tells of dead ones beside it, and leaves them alone."""
    other = tmp_path / "other.zarr"
    killed_at("block report: renamed@9", source, other)
    (kept,) = tmp_path.glob(".other.zarr.scratch-*")
    before = contents(kept)
    assert again(source, target).abandoned == (f"{kept} of {other}",)
    assert contents(kept) == before
    with RunLock(Workspace(other, tmp_path).directory, other):
        assert again(source, target, overwrite=True).abandoned == ()


# ---------------------------------------------------------------- damage


def flip(path: Path) -> None:
    """Bits of half of it: whichever regions have been written, there is one that will notice."""
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 2, len(content), 16):
        content[position] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = [flip, truncate, empty, Path.unlink]
SCRATCH = ".*scratch*/*/0/"
FRAGMENT, SHARD = f"{SCRATCH}block-000003", ".*/*/store/X/data/c/*"
KEPT = [".*/run.json", ".*scratch*/owner.json", ".*scratch*/*/plan.json", f"{FRAGMENT}.json"]
KEPT += [f"{SCRATCH}{name}" for name in ("row_ends.npy", "data.chunks.npy", "indptr.npy")]
KEPT += [f"{SCRATCH}region-*.json", ".*/*/store/X/indices/c/*"]
HARMS = [(pattern, damage) for pattern in (FRAGMENT, SHARD) for damage in DAMAGES]
HARMS += [(pattern, damage) for pattern in KEPT for damage in (flip, Path.unlink)]


@pytest.fixture(scope="module")
def half_done(shared: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What a run leaves that died after four regions, and where it must be to be continued."""
    directory = tmp_path_factory.mktemp("half_done")
    place, template = directory / "place", directory / "template"
    place.mkdir()
    shutil.copy2(shared[0], place / "source.h5ad")
    killed_at("region report: renamed@4", place / "source.h5ad", place / "target.zarr")
    shutil.copytree(place, template, copy_function=shutil.copy2)
    return template, place


@pytest.mark.once
@pytest.mark.parametrize(("pattern", "damage"), HARMS)
def test_what_was_damaged_between_two_runs_is_made_again(
    half_done: tuple[Path, Path],
    expected: dict[str, bytes],
    pattern: str,
    damage: Callable[[Path], None],
) -> None:
    """Each kind of file that is kept, damaged in each way."""
    template, place = half_done
    shutil.rmtree(place)
    shutil.copytree(template, place, copy_function=shutil.copy2)
    damage(next(iter(sorted(place.glob(pattern)))))
    again(place / "source.h5ad", place / "target.zarr")
    assert contents(place / "target.zarr") == expected
    assert leftovers(place / "target.zarr") == []


class Damaging(SynchronousExecutor):
    """Does something to scratch after the n-th report, as often as it is allowed to."""

    def __init__(self, target: Path, n_reports: int, damage: Callable[[MatrixScratch], None]):
        self._target, self._n_reports, self._damage = target, n_reports, damage
        self.times = 1

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`."""
        count = 0

        def counted(key: Any, report: Any) -> None:
            nonlocal count
            on_report(key, report)
            count += 1
            if self.times and (count == self._n_reports or len(graph) < self._n_reports):
                self.times -= 1
                self._damage(scratch_of(self._target))

        super().run(graph, counted)


def scratch_of(target: Path) -> MatrixScratch:
    """The scratch files of a target's first matrix."""
    (directory,) = target.parent.glob(f".{target.name}.scratch-*/*/0")
    return MatrixScratch(str(directory))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("n_reports", [21, 22, 26], ids=["split", "barrier", "combine"])
def test_a_fragment_that_is_damaged_meanwhile_is_made_again(
    source: Path,
    target: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    n_reports: int,
) -> None:
    """Only that row block is split again, and no region twice."""
    counting = Counting(monkeypatch)
    executor = Damaging(target, n_reports, lambda files: damage(files.block(7)))
    again(source, target, executor=lambda: executor)
    assert contents(target) == expected
    assert executor.times == 0
    assert counting.calls["split"] == 22
    assert counting.calls["combine"] <= 11


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["indptr", "row_ends"])
def test_what_the_driver_wrote_is_made_again(
    source: Path, target: Path, expected: dict[str, bytes], name: str, damage: Any
) -> None:
    """Arrays on scratch are checked before they are used, and written anew."""
    n_reports = {"indptr": 22, "row_ends": 2}[name]
    executor = Damaging(target, n_reports, lambda files: damage(getattr(files, name)))
    again(source, target, executor=lambda: executor)
    assert contents(target) == expected
    assert executor.times == 0


def test_all_fragments_may_be_lost(
    source: Path, target: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all that is missing is made again, at once."""

    def lose(files: MatrixScratch) -> None:
        for path in Path(files.directory).glob("block-*"):
            path.unlink()

    counting = Counting(monkeypatch)
    executor = Damaging(target, 24, lose)
    again(source, target, executor=lambda: executor)
    assert contents(target) == expected
    assert counting.calls["split"] == 42


def test_a_block_that_is_damaged_again_and_again_is_named(source: Path, target: Path) -> None:
    """Not tried for ever; the next run, on a sound disk, continues."""
    executor = Damaging(target, 21, lambda files: empty(files.block(7)))
    executor.times = 100
    with pytest.raises(
        FragmentError, match=r"row block 7 of X, rows \d+ to \d+.*3 times"
    ) as caught:
        again(source, target, executor=lambda: executor)
    assert "same command continues" in caught.value.__notes__[0]
    (matrix,) = again(source, target).matrices
    assert matrix.blocks_reused == 20


def test_a_region_file_that_is_lost_with_all_fragments_gone_is_made_again(
    source: Path, target: Path, expected: dict[str, bytes]
) -> None:
    """Even a matrix that was done begins again where it must."""
    killed_at("matrix: fragments removed", source, target)
    (path,) = target.parent.glob(".*/*/store/X/data/c/5")
    flip(path)
    (matrix,) = again(source, target).matrices
    assert matrix.regions_reused == 9
    assert contents(target) == expected


@pytest.mark.parametrize("seconds", [0.0, 0.6])
def test_files_that_become_visible_late_are_waited_for(
    source: Path,
    target: Path,
    expected: dict[str, bytes],
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Network file systems may deny for a while that a file is there; it is not taken for empty."""
    timers = []
    counting = Counting(monkeypatch)

    def hide(files: MatrixScratch) -> None:
        for path in (files.block(3), files.block(11)):
            path.rename(path.with_suffix(".hidden"))
            timers.append(threading.Timer(seconds, path.with_suffix(".hidden").rename, [path]))
            timers[-1].start()

    executor = Damaging(target, 21, hide)
    again(source, target, executor=lambda: executor, limits=Limits(wait_seconds=20))
    assert contents(target) == expected
    assert counting.calls["split"] == 21
    for timer in timers:
        timer.join()


# ---------------------------------------------------------------- twice, at once


class AtOnce(SynchronousExecutor):
    """Runs every task two times, at the same time."""

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`."""
        super().run({key: (at_once, *task) for key, task in graph.items()}, on_report)


def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function twice, in two threads that start together."""
    ready = threading.Barrier(2)

    def call() -> Any:
        ready.wait()
        return work(*arguments)

    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(call), pool.submit(call)]][1]


def test_tasks_that_run_twice_at_once_do_no_harm(
    source: Path, target: Path, expected: dict[str, bytes]
) -> None:
    """The store is the same, byte by byte, and nothing else is in it."""
    again(source, target, executor=AtOnce)
    assert contents(target) == expected
    assert leftovers(target) == []


# ---------------------------------------------------------------- what is left, and clean


def test_a_second_run_is_refused_while_the_first_lives(source: Path, target: Path) -> None:
    """Host, process and time are told; the first one is not disturbed."""
    seen = []

    class Meddling(SynchronousExecutor):
        def run(self, graph: Graph, on_report: OnReport) -> None:
            before = contents(Workspace(target, target.parent).scratch)
            for second in (
                lambda: again(source, target),
                lambda: again(source, target, restart=True),
                lambda: api.clean(target),
            ):
                with pytest.raises(LockError, match=rf"process {os.getpid()} on .*, since 20"):
                    second()
                seen.append(contents(Workspace(target, target.parent).scratch) == before)
            super().run(graph, on_report)

    again(source, target, executor=Meddling)
    assert seen == [True] * 3


def test_a_run_that_lost_its_lock_stops_before_it_publishes(source: Path, target: Path) -> None:
    """It was suspended, and another one has taken over: its files are not this one's any more."""

    class Robbed(SynchronousExecutor):
        def run(self, graph: Graph, on_report: OnReport) -> None:
            super().run(graph, on_report)
            (lock,) = target.parent.glob(".*/lock-*")
            lock.with_name("lock-000099").write_bytes(lock.read_bytes())

    with pytest.raises(LockError, match="taken over"):
        again(source, target, executor=Robbed)
    assert not target.exists()
    assert len(leftovers(target)) == 2


@pytest.mark.parametrize("rule", ["lock: linked", "scratch: made", "block report: renamed@9"])
def test_clean_removes_what_a_dead_run_has_left(source: Path, target: Path, rule: str) -> None:
    """All of it, and nothing that it did not make; a second time does nothing."""
    killed_at(rule, source, target)
    mine = target.with_name(".target.zarr.notes")
    mine.write_text("mine")
    before = source.read_bytes()
    assert api.clean(target)
    assert leftovers(target) == [".target.zarr.notes"]
    assert source.read_bytes() == before
    assert api.clean(target) == []
    again(source, target)


def test_clean_finds_scratch_elsewhere(source: Path, target: Path, tmp_path: Path) -> None:
    """The run has noted where it was, and what it had made around it."""
    killed_at("block report: renamed@9", source, target, scratch_parent=tmp_path / "far" / "off")
    assert len(api.clean(target)) == 2
    assert not (tmp_path / "far").exists()
    assert leftovers(target) == []


def test_clean_leaves_foreign_files_in_our_directories(source: Path, target: Path) -> None:
    """What somebody put there stays."""
    killed_at("block report: renamed@9", source, target)
    for directory in target.parent.glob(".target.zarr.*"):
        (directory / "notes.txt").write_text("mine")
    api.clean(target)
    left = [path.name for path in target.parent.glob(".target.zarr.*/*")]
    assert left == ["notes.txt"] * 2


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_scratch_that_is_not_ours_is_refused(
    source: Path, target: Path, tmp_path: Path, kind: str
) -> None:
    """A directory with our name and other content, or a link to one, stays as it is."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "12345678").mkdir()
    (foreign / "12345678" / "data").write_text("mine")
    scratch = Workspace(target, tmp_path).scratch
    if kind == "link":
        (foreign / "owner.json").write_text("{}")
        scratch.symlink_to(foreign)
    else:
        foreign.rename(scratch)
    before = contents(scratch)
    with pytest.raises(ScratchError, match="was not made by dask_convert"):
        again(source, target)
    with pytest.raises(ScratchError):
        api.clean(target)
    assert contents(scratch) == before
    assert not target.exists()


def test_errors_of_the_source_leave_nothing_even_of_a_continued_run(
    source: Path, target: Path
) -> None:
    """A conversion that cannot end well is not kept."""
    with h5py.File(source, "r+") as file:
        file["X/data"][-1] = 0.5
    with pytest.raises(DtypeError):
        again(source, target, data_dtype="uint16")
    assert leftovers(target) == []
    killed_at("block report: renamed@1", source, target, data_dtype="uint16")
    with pytest.raises(DtypeError):
        again(source, target, data_dtype="uint16")
    assert leftovers(target) == []


def test_a_source_that_changes_meanwhile_is_refused(source: Path, target: Path) -> None:
    """What was read may be neither the one nor the other."""

    class Touching(SynchronousExecutor):
        def run(self, graph: Graph, on_report: OnReport) -> None:
            super().run(graph, on_report)
            touch(source)

    with pytest.raises(SourceError, match="was changed while"):
        again(source, target, executor=Touching)
    assert leftovers(target) == []
    assert not target.exists()


@pytest.mark.parametrize("replaced", ["X/data", "X/indptr", "all"])
def test_a_source_that_is_replaced_by_one_of_its_size_and_time_is_refused(
    tmp_path: Path, replaced: str
) -> None:
    """As a copy that keeps times can do: half of the entries would be of either."""
    source, other = (
        write_h5ad(
            tmp_path / name, random_csr(np.random.default_rng(seed), (30, 9), np.full(30, 4), "f4")
        )
        for seed, name in enumerate(("source.h5ad", "other.h5ad"))
    )
    if replaced != "all":
        shutil.copy(source, other)
        with h5py.File(other, "r+") as file:
            array = file[replaced][:]
            array[5] += 1
            file[replaced][:] = array
    assert other.stat().st_size == source.stat().st_size
    found = source.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))

    class Replacing(SynchronousExecutor):
        def run(self, graph: Graph, on_report: OnReport) -> None:
            super().run(graph, on_report)
            if other.exists():
                other.rename(source)

    with pytest.raises(SourceError, match=r"source\.h5ad was changed while"):
        convert(source, tmp_path / "target.zarr", executor=Replacing)
    assert names(tmp_path) == ["source.h5ad"]


@pytest.mark.parametrize(("kind", "name"), ELSEWHERE)
def test_a_source_of_which_another_file_changes_meanwhile_is_refused(
    source: Path, target: Path, shared: Any, kind: str, name: str
) -> None:
    """Its values may be old ones and new ones."""
    other = away(source, shared[1], kind) / name

    class Doubling(SynchronousExecutor):
        def run(self, graph: Graph, on_report: OnReport) -> None:
            super().run(graph, on_report)
            double(other, shared[1])

    with pytest.raises(SourceError, match=f"{re.escape(str(other))} was changed while"):
        again(source, target, executor=Doubling, allow_external=(str(other.parent),))
    assert leftovers(target) == []
    assert not target.exists()


def test_scratch_is_private(source: Path, target: Path) -> None:
    """Nobody else can read fragments, or put some there."""
    killed_at("block report: renamed@9", source, target)
    modes = {path.stat().st_mode & 0o777 for path in target.parent.glob(".target.zarr.*")}
    assert modes == {0o700}


def test_a_store_of_two_matrices_continues_in_the_second(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is done and stays so."""
    with h5py.File(source, "r+") as file:
        file.create_group("layers").attrs.update(
            {"encoding-type": "dict", "encoding-version": "0.1.0"}
        )
        file.copy("X", file["layers"], "counts")
    again(source, tmp_path / "undisturbed.zarr")
    killed_at("block report: renamed@30", source, target)
    counting = Counting(monkeypatch)
    again(source, target)
    assert counting.calls == {"split": 12, "combine": 10}
    assert contents(target) == contents(tmp_path / "undisturbed.zarr")
    assert zarr.open_group(target, mode="r")["layers/counts"].attrs["encoding-type"] == "csc_matrix"
