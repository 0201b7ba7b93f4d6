"""Files on scratch appear whole or not at all, and directories belong to one run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from engine import names

from dask_convert.errors import DiskSpaceError
from dask_convert.scratch import (
    MatrixScratch,
    make_scratch,
    published,
    remove_scratch,
    save_array,
    write_all,
)


def test_a_file_has_no_name_before_it_is_complete(tmp_path: Path) -> None:
    """Until the end there is another name, and the old content under the right one."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with published(path) as file:
        write_all(file, b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The error comes through, and neither name stays."""
    with pytest.raises(ZeroDivisionError), published(tmp_path / "file") as file:
        write_all(file, bytes(1 // file.seek(0)))
    assert names(tmp_path) == []


def test_two_attempts_at_the_same_file_do_not_meet(tmp_path: Path) -> None:
    """The one that ends last wins, whole."""
    path = tmp_path / "file"
    with published(path) as first, published(path) as second:
        write_all(first, b"first")
        write_all(second, b"second")
        write_all(first, b" and whole")
    assert path.read_bytes() == b"first and whole"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, number: int) -> None:
    """ENOSPC and EDQUOT become a typed error with the directory."""
    with (
        pytest.raises(DiskSpaceError, match="no space left") as caught,
        published(tmp_path / "file"),
    ):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)


def test_another_error_of_the_system_is_left_as_it_is(tmp_path: Path) -> None:
    """Only a full disk is translated."""
    with pytest.raises(PermissionError), published(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "no")


def test_write_all_goes_on_after_a_short_write() -> None:
    """A pipe takes part of the content at a time."""

    class Trickle:
        def __init__(self) -> None:
            self.content = b""

        def write(self, view: memoryview) -> int:
            taken = bytes(view[:3])
            self.content += taken
            return len(taken)

    trickle = Trickle()
    write_all(trickle, b"0123456789")  # type: ignore[arg-type]
    assert trickle.content == b"0123456789"


def test_each_run_has_its_own_directory(tmp_path: Path) -> None:
    """Parents are made; names begin with a dot and differ; removing twice does no harm."""
    parent = tmp_path / "a" / "b"
    first, second = make_scratch(parent, "x.zarr"), make_scratch(parent, "x.zarr")
    assert first != second
    assert all(
        path.parent == parent and path.name.startswith(".x.zarr") for path in (first, second)
    )
    (first / "0").mkdir()
    (first / "0" / "block").touch()
    remove_scratch(first)
    remove_scratch(first)
    assert names(parent) == [second.name]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is reported as a typed error with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(DiskSpaceError) as caught:
        make_scratch(tmp_path / "file" / "below", "x")
    assert str(tmp_path / "file" / "below") in str(caught.value)


def test_arrays_come_back(tmp_path: Path) -> None:
    """As numpy's own format, which can be mapped into memory."""
    array = np.arange(5, dtype=np.int64)
    save_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)


def test_names_of_a_matrix_do_not_clash(tmp_path: Path) -> None:
    """Each of its files has its own name, below its directory."""
    files = MatrixScratch(str(tmp_path))
    paths = [files.row_ends, files.indptr, files.chunks("data"), files.chunks("indices")]
    paths += [files.block(number) for number in (0, 1, 999_999, 1_000_000)]
    assert len(set(paths)) == len(paths)
    assert all(path.parent == tmp_path for path in paths)
