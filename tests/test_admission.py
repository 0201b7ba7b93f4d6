"""What a file may lead to: other files, foreign code, memory that it does not hold."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from engine import convert, names
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_converted
from strategies import FILTERS, Csr, away, random_csr, write_h5ad

from dask_convert.cli import main
from dask_convert.engine.graph import Graph, OnReport, SynchronousExecutor
from dask_convert.errors import (
    AdmissionError,
    AnnotationError,
    DaskConvertError,
    SourceError,
    StorageError,
)
from dask_convert.files import annotation_elements
from dask_convert.files.admission import ignore_plugin_paths
from dask_convert.files.chunk_guard import ChunkGuard
from dask_convert.files.filters import FILTERS as KNOWN
from dask_convert.files.filters import FilterStep, pipeline, wrong_size
from dask_convert.files.hdf5 import open_source
from dask_convert.files.hdf5_errors import reading
from dask_convert.files.hdf5_lock import h5py_lock, read_chunk, write_chunk
from dask_convert.files.rehearsal import rehearse
from dask_convert.planning.layout import Trust
from dask_convert.shuffle import scans


@pytest.fixture
def matrix() -> Csr:
    return random_csr(np.random.default_rng(0), (30, 9), np.full(30, 4), "f4")


@pytest.fixture
def path(tmp_path: Path, matrix: Csr) -> Path:
    return write_h5ad(tmp_path / "source.h5ad", matrix)


@pytest.mark.parametrize("kind", ["link", "group", "storage", "virtual"])
def test_other_files_are_read_where_they_are_allowed(
    path: Path, matrix: Csr, tmp_path: Path, kind: str
) -> None:
    """Below the directory that was named, and nowhere else, by their true path."""
    parts = away(path, matrix, kind)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(parts)
    for allowed in ((), (str(tmp_path / "elsewhere"),)):
        with pytest.raises(AdmissionError, match=r"X.*--allow-external"):
            convert(path, tmp_path / "target.zarr", allow_external=allowed)
        assert "target.zarr" not in names(tmp_path)
    convert(path, tmp_path / "target.zarr", allow_external=(str(parts),))
    assert_converted(tmp_path / "target.zarr", matrix)


def test_an_allowed_file_may_not_lead_further(path: Path, matrix: Csr, tmp_path: Path) -> None:
    """What it links to is held to the same rule."""
    parts = away(path, matrix, "link")
    with h5py.File(parts / "part.h5", "r+") as file:
        file["more"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(AdmissionError, match=r"part\.h5:more: a link to another file"):
        convert(path, tmp_path / "target.zarr", allow_external=(str(parts),))


@pytest.mark.parametrize("kind", ["virtual", "storage"])
def test_parts_that_are_missing_are_refused(
    path: Path, matrix: Csr, tmp_path: Path, kind: str
) -> None:
    """HDF5 would read zeros."""
    parts = away(path, matrix, kind)
    if kind == "storage":
        os.truncate(parts / "raw", 8)
    else:
        with h5py.File(parts / "part.h5", "r+") as file:
            del file["values"]
            file["values"] = matrix.data[:-1]
    with pytest.raises(SourceError, match=r"X/data.*too short.*zeros"):
        convert(path, tmp_path / "target.zarr", allow_external=(str(parts),))


def test_a_virtual_data_set_with_a_hole_is_refused(path: Path, tmp_path: Path) -> None:
    """Elements that no part covers would be zeros."""
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout((20,), "f4")
        layout[:9] = h5py.VirtualSource(".", "X/data", (120,))[:9]
        file["obs"].create_virtual_dataset("score", layout)
    with pytest.raises(AdmissionError, match="obs/score: its parts do not cover it"):
        open_source(path, Trust((str(tmp_path),)))


def test_a_prefix_in_the_environment_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could lead elsewhere than where was looked."""
    monkeypatch.setenv("HDF5_VDS_PREFIX", "/somewhere")
    with pytest.raises(AdmissionError, match="HDF5_VDS_PREFIX is set"):
        open_source(path, Trust((str(tmp_path),)))


@pytest.mark.parametrize("allowed", [False, True])
def test_an_inherited_plugin_path_is_ignored(path: Path, tmp_path: Path, allowed: bool) -> None:
    """HDF5 has no path to load code from, unless it was asked for."""
    code = (
        "import h5py, sys, pathlib\n"
        "from dask_convert.files.hdf5 import open_source\n"
        "from dask_convert.planning.layout import Trust\n"
        f"open_source(pathlib.Path(sys.argv[1]), Trust(allow_plugins={allowed})).close()\n"
        "print([h5py.h5pl.get(n).decode() for n in range(h5py.h5pl.size())])"
    )
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (str(tmp_path) in done.stdout) == allowed
    assert allowed or done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), StorageError),
        (
            OSError("Can't read data (file read failed: errno = 5, error message = 'I/O')"),
            StorageError,
        ),
        (
            OSError("Can't read data (file read failed: errno = 22, error message = '')"),
            SourceError,
        ),
        (OSError("Can't read data (inflate() failed)"), SourceError),
        (OSError(errno.EMFILE, "Too many open files"), StorageError),
        (MemoryError("Unable to allocate 8.00 MiB"), StorageError),
    ],
)
def test_a_failing_file_system_is_not_a_damaged_file(
    error: Exception, kind: type[DaskConvertError]
) -> None:
    """What may pass is resumable, also where HDF5 tells the system's error in words."""
    with pytest.raises(kind, match=r"X/data: .*\(.*\)") as caught, reading("X/data"):
        raise error
    assert caught.value.resumable == (kind is StorageError)


@pytest.mark.parametrize("action", ["forget plugins", "read a chunk", "write a chunk"])
def test_what_h5py_leaves_unlocked_waits_for_other_threads(tmp_path: Path, action: str) -> None:
    """HDF5 knows nothing of threads: what is under way would fail, or damage the file."""
    with h5py.File(tmp_path / "file.h5", "w") as file:
        dataset = file.create_dataset("data", data=np.arange(10), chunks=(5,))
        content = read_chunk(dataset, (0,))
        actions: dict[str, Callable[[], object]] = {
            "forget plugins": ignore_plugin_paths,
            "read a chunk": lambda: read_chunk(dataset, (0,)),
            "write a chunk": lambda: write_chunk(dataset, (0,), content),
        }
        with h5py_lock:
            acting = threading.Thread(target=actions[action])
            acting.start()
            acting.join(0.2)
            assert acting.is_alive()
        acting.join(10)
        assert not acting.is_alive()


@given(st.binary(max_size=3000), st.integers(1, 50))
def test_lzf_is_measured_without_inflating_it(content: bytes, repeats: int) -> None:
    """What h5py's filter made becomes as long as it was."""
    values = np.frombuffer(content * repeats + b"x", np.uint8)
    with h5py.File("lzf.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=values, chunks=values.shape, compression="lzf")
        file.flush()
        mask, encoded = dataset.id.read_direct_chunk((0,))
    if not mask:
        found = scans.lzf_bytes(np.frombuffer(encoded, np.uint8))
        assert found == values.size
        assert scans.lzf_bytes(np.frombuffer(encoded[:-1], np.uint8)) != values.size


@pytest.mark.parametrize("filters", [name for name in FILTERS if name != "none"])
@given(st.integers(0, 2**32 - 1), st.integers(2, 2000))
def test_chunks_that_hdf5_wrote_have_the_right_size(filters: str, seed: int, size: int) -> None:
    """No good file is refused, and one that declares a byte more or less is."""
    values = np.random.default_rng(seed).geometric(0.4, size).astype("f8")
    with h5py.File("any.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=values, chunks=(size,), **FILTERS[filters])
        file.flush()
        steps = pipeline(dataset)
        mask, encoded = dataset.id.read_direct_chunk((0,))
    told = [
        wrong_size(steps, mask, encoded, len(encoded), values.nbytes + more) for more in (0, -8, 8)
    ]
    assert told[0] is None
    assert all(told[1:])


def test_every_known_filter_is_there() -> None:
    """Those that come with h5py, and with hdf5plugin."""
    assert hdf5plugin.version
    assert all(h5py.h5z.filter_avail(code) for code in KNOWN)


@pytest.mark.parametrize("head", [b"", b"\0", b"\x28\xb5\x2f\xfd", bytes(40), b"\xff" * 40])
def test_damaged_heads_of_chunks_are_told(head: bytes) -> None:
    """Whatever the filter, and however short."""
    for code in (1, 32000, 32001, 32004, 32015):
        assert wrong_size((FilterStep(code, ()),), 0, head, len(head), 10_000) is not None


def test_a_chunk_is_never_inflated_beyond_what_it_declares(tmp_path: Path) -> None:
    """HDF5 would: a gigabyte for a thousand bytes."""
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        bomb = file.create_dataset("x", (1000,), "u1", chunks=(1000,), compression="gzip")
        bomb.id.write_direct_chunk((0,), zlib.compress(bytes(2**20)))
        file.flush()
        with pytest.raises(SourceError, match=r"x, chunk at 0: cannot be inflated.*1000 bytes"):
            ChunkGuard(bomb, "x").check()


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["UNPICKLED"],)


def test_nothing_is_unpickled(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle in an attribute or an array is bytes, and stored with no codec of Python objects."""
    monkeypatch.setenv("UNPICKLED", str(tmp_path / "unpickled"))
    content = pickle.dumps(Bomb())
    with h5py.File(path, "r+") as file:
        file["uns/opaque"] = np.frombuffer(content, "u1")
        file["uns/text"] = np.array([content.hex()], object)
        file["uns"].attrs["pickle"] = content.hex()
    for zarr_format in (2, 3):
        target = tmp_path / f"target{zarr_format}.zarr"
        convert(path, target, zarr_format=zarr_format, shard_nnz=0)
        assert bytes(zarr.open_group(target, mode="r")["uns/opaque"][:]) == content
        root = zarr.open_group(target, mode="r")
        arrays = [array for _, array in root.members(max_depth=None) if hasattr(array, "dtype")]
        codecs = [str((array.filters, array.compressors)) for array in arrays]
        assert len(codecs) > 5
        assert not any("pickle" in codec.lower() for codec in codecs)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name", ["target.zarr", "a b", "é", "...zarr"])
def test_scratch_is_private(path: Path, tmp_path: Path, name: str) -> None:
    """Nobody else reads, writes or lists what a conversion keeps while it runs."""
    seen: dict[str, int] = {}

    class Looking(SynchronousExecutor):
        def run(self, graph: Graph, on_report: OnReport) -> None:
            seen.update((p.name, p.stat().st_mode & 0o777) for p in place.iterdir())
            super().run(graph, on_report)

    place = tmp_path / "place"
    place.mkdir()
    convert(path, place / name, executor=Looking)
    assert len(seen) == 2
    assert set(seen.values()) == {0o700}
    assert all(found.startswith(f".{name}.") for found in seen)


def test_a_file_that_may_not_be_read_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, before HDF5 sees it. The superuser may read all: hence the patch."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SourceError, match=r"source\.h5ad: no permission to read it"):
        open_source(path)


def test_a_file_that_hdf5_does_not_survive_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that looks first dies, this one goes on, and says where it was."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal; print('/obs/bad', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    monkeypatch.setattr("dask_convert.files.rehearsal._SCRIPT", script)
    with pytest.raises(SourceError, match=r"/obs/bad: HDF5 does not survive .*signal 11"):
        rehearse(path)


def rehearsed_elsewhere(path: Path, before: str) -> str:
    """Errors of a process that does something, and has the file read first."""
    code = (
        "import resource, sys; from pathlib import Path; from dask_convert.files import rehearsal; "
        f"{before}; rehearsal.rehearse(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment
    ).stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('no memory')", "(code 1: ImportError: no memory)"),
        ("import os; os.kill(os.getpid(), 9)", "(it was killed"),
    ],
)
def test_a_process_that_cannot_look_first_says_nothing_of_the_file(
    path: Path, tmp_path: Path, code: str, said: str
) -> None:
    """What the system lacks may be there a moment later."""
    script = tmp_path / "fails.py"
    script.write_text(code)
    told = rehearsed_elsewhere(path, f"rehearsal._SCRIPT = {str(script)!r}")
    assert "errors.StorageError: " in told
    assert f"did not come to its end {said}" in told


def test_a_limit_on_memory_is_not_a_damaged_file(path: Path) -> None:
    """`ulimit -v` sets one that nobody can raise again."""
    limit = f"({600_000 * 1024},) * 2"
    assert rehearsed_elsewhere(path, f"resource.setrlimit(resource.RLIMIT_AS, {limit})") == ""


def test_names_that_the_file_system_takes_for_one_are_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it knows them apart, both arrive."""
    with h5py.File(path, "r+") as file:
        file["uns/Sex"], file["uns/sex"] = 1, 2
    convert(path, tmp_path / "target.zarr")
    root = zarr.open_group(tmp_path / "target.zarr", mode="r")
    assert (root["uns/Sex"][()], root["uns/sex"][()]) == (1, 2)
    monkeypatch.setattr(annotation_elements, "_kept_apart", lambda *_: False)
    with pytest.raises(AnnotationError, match="uns/sex: the target's file system"):
        convert(path, tmp_path / "other.zarr")
    assert "other.zarr" not in names(tmp_path)


def test_the_options_are_there() -> None:
    """On the command line as in Python."""
    for command in ("convert", "plan"):
        options = {option for p in main.commands[command].params for option in p.opts}  # type: ignore[attr-defined]  # a click group
        assert {"--strict", "--allow-external", "--allow-plugins"} <= options
