"""Files on scratch appear whole or not at all, and directories belong to one run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from engine import names

from dask_convert.conversion.workspace import Owner
from dask_convert.errors import DiskSpaceError, FragmentError
from dask_convert.files.scratch import (
    MatrixScratch,
    load_array,
    load_struct,
    no_space,
    published,
    save_array,
    save_slabs,
    save_struct,
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


def test_attempts_may_be_elsewhere(tmp_path: Path) -> None:
    """A file is written in one directory and appears in another; a lost target is an error."""
    attempts, place = tmp_path / "attempts", tmp_path / "place"
    attempts.mkdir()
    place.mkdir()
    with published(place / "file", attempts=attempts) as file:
        write_all(file, b"new")
        assert names(place) == []
        assert len(names(attempts)) == 1
    assert (names(place), names(attempts)) == (["file"], [])
    (place / "file").unlink()
    with pytest.raises(FileNotFoundError), published(place / "file", attempts=attempts):
        place.rmdir()
    assert names(attempts) == []


def test_arrays_come_back(tmp_path: Path) -> None:
    """As numpy's own format, which can be mapped into memory."""
    array = np.arange(5, dtype=np.int64)
    save_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), array)
    save_slabs(tmp_path / "b.npy", 5, iter([array[:2], array[2:]]))
    np.testing.assert_array_equal(load_array(tmp_path / "b.npy"), array)


@pytest.mark.parametrize("kind", ["array", "struct"])
def test_every_damage_is_found(tmp_path: Path, kind: str) -> None:
    """Any flipped bit and any truncation, and a file that is not there."""
    path = tmp_path / "file"
    if kind == "array":
        save_array(path, np.arange(40))
    else:
        save_struct(path, "state", Owner("somewhere"))
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    for position in range(len(content)):
        damaged.append(bytearray(content))
        damaged[-1][position] ^= 1 << position % 8
    for number, text in enumerate(damaged):
        path.unlink()
        path.write_bytes(text)
        os.utime(path, ns=(number, number))
        if kind == "array":
            with pytest.raises(FragmentError, match="missing or damaged"):
                load_array(path)
        else:
            assert load_struct(path, Owner) in {None, Owner("somewhere")}
            assert load_struct(path, Owner) is None or text[8:9] != b"\n"
    path.unlink()
    if kind == "array":
        with pytest.raises(FragmentError):
            load_array(path)
    else:
        assert load_struct(path, Owner) is None


def test_names_of_a_matrix_do_not_clash(tmp_path: Path) -> None:
    """Each of its files has its own name, below its directory."""
    files = MatrixScratch(str(tmp_path))
    paths = [files.row_ends, files.indptr, files.chunks("data"), files.chunks("indices")]
    paths += [files.block(number) for number in (0, 1, 999_999, 1_000_000)]
    assert len(set(paths)) == len(paths)
    assert all(path.parent == tmp_path for path in paths)


@pytest.mark.parametrize(
    ("inodes", "free_inodes", "words"),
    [
        (0, 0, "no space left in {}: 104,857,600 bytes are free"),  # of file systems without inodes
        (1 << 20, 1 << 19, "no space left in {}: 104,857,600 bytes are free"),
        (1 << 20, 0, "no inodes left in {}: 104,857,600 bytes and 0 inodes"),
        (1 << 20, 7, "no space left in {}: 104,857,600 bytes and 7 inodes"),
    ],
)
def test_a_full_disk_says_what_it_lacks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inodes: int,
    free_inodes: int,
    words: str,
) -> None:
    """Bytes can be free where no file can be made."""
    blocks = 100 * 2**20 // 4096
    found = (4096, 4096, 2 * blocks, blocks, blocks, inodes, free_inodes, free_inodes, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(found))
    assert str(no_space(tmp_path)).startswith(words.format(tmp_path))
