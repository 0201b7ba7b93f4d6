"""Fragment files give back what was written, or say that they cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import bits
from strategies import DTYPES, Csr, csr_matrices, random_csr

from dask_convert.errors import FragmentError
from dask_convert.files.fragment_files import (
    Fragment,
    FragmentFile,
    open_ahead,
    write_fragment_file,
)
from dask_convert.planning.layout import FragmentLayout
from dask_convert.planning.memory import READ_PIECE_BYTES
from dask_convert.shuffle.duplicates import order_and_duplicates
from dask_convert.shuffle.fragments import TABLE_DTYPE, Head, RecordKind, encode_head
from dask_convert.shuffle.ordering import BlockColumns, BlockRecords
from dask_convert.shuffle.pages import PagedRecords


@dataclass(frozen=True)
class Written:
    """A fragment file and what it was written from."""

    path: Path
    layout: FragmentLayout
    counts: NDArray[np.uint32]
    words: NDArray[Any]
    n_bytes: int


def write(path: Path, matrix: Csr, column_width: int, *, paged: bool) -> Written:
    """Write a matrix as one row block."""
    row_ends, n_vars = matrix.indptr[1:].astype(np.int64), matrix.shape[1]
    columns = BlockColumns(row_ends, n_vars, paged=paged)
    assert columns.add(0, matrix.indices) < 0
    ascending, _ = order_and_duplicates(columns.columns, row_ends, n_vars)
    block = BlockRecords(columns, matrix.data.dtype, column_width=column_width, ascending=ascending)
    block.add(0, matrix.data)
    layout = FragmentLayout(matrix.shape[1], column_width)
    records = block.records()
    n_bytes = write_fragment_file(path, layout, records, block.counts, block.payload)
    return Written(path, layout, block.counts, as_words([records]), n_bytes)


def as_words(records: Iterable[Any]) -> NDArray[Any]:
    """Records one after the other, out of their pages."""
    words = [r.to_words() if isinstance(r, PagedRecords) else r for r in records]
    return np.concatenate(words) if words else np.empty(0, np.uint32)


def read(written: Written, numbers: range) -> list[Fragment]:
    """Some fragments of a file."""
    with FragmentFile(written.path, written.layout) as file:
        return list(file.expect(numbers).locate().fragments())


def snapshot(written: Written) -> list[tuple[Any, ...]]:
    """All that a combine task would see of a file."""
    fragments = read(written, range(written.layout.n_ranges))
    return [
        (f.columns, f.counts.tobytes(), f.payload, bits(as_words([f.records])).tobytes())
        for f in fragments
    ]


@pytest.fixture(params=[False, True], ids=["words", "paged"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    """Two pages, escapes, and an empty fragment."""
    rng = np.random.default_rng(1)
    row_nnz = np.zeros(300, int)
    row_nnz[[0, 7, 299]] = 60
    matrix = random_csr(rng, (300, 7), row_nnz, "f8", "counts")
    matrix.data[11] = 300
    matrix.indices[matrix.indices == 5] = 4
    matrix.indices[matrix.indices == 6] = 4
    return write(tmp_path / "block", matrix, 2, paged=request.param)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fragments")


@given(csr_matrices(min_obs=1), st.data(), st.booleans())
def test_any_run_of_fragments_comes_back(
    directory: Path, matrix: Csr, data: st.DataObject, paged: bool
) -> None:
    """Records, counts and columns are those written; the head and the length are as planned."""
    width = data.draw(st.integers(1, max(matrix.shape[1], 1)))
    written = write(directory / "block", matrix, width, paged=paged)
    layout = written.layout
    assert written.n_bytes == written.path.stat().st_size
    with FragmentFile(written.path, layout) as file:
        head = file.head()
    np.testing.assert_array_equal(head.counts, written.counts)
    assert head.nnz == matrix.nnz
    if not layout.n_ranges:
        return
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, layout.n_ranges - 1)] * 2)))
    ends = np.cumsum(np.append(0, written.counts), dtype=np.int64)
    fragments = read(written, range(first, last + 1))
    asked = slice(layout.column_range(first).start, layout.column_range(last).stop)
    filled = np.zeros(matrix.shape[1], bool)
    for fragment in fragments:
        columns = slice(fragment.columns.start, fragment.columns.stop)
        expected = written.words[ends[columns.start] : ends[columns.stop]]
        np.testing.assert_array_equal(fragment.counts, written.counts[columns])
        np.testing.assert_array_equal(as_words([fragment.records]), expected)
        assert not filled[columns].any()
        filled[columns] = True
    np.testing.assert_array_equal(np.flatnonzero(filled[: asked.start]), [])
    np.testing.assert_array_equal(np.flatnonzero(filled[asked.stop :]), [])
    assert not written.counts[asked][~filled[asked]].any()  # nothing is left out but what is empty


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("paged", [False, True])
def test_every_type_comes_back(tmp_path: Path, dtype: str, paged: bool) -> None:
    """Whole files, values of any bits."""
    matrix = random_csr(np.random.default_rng(0), (9, 11), np.full(9, 20), dtype, "bits")
    written = write(tmp_path / "block", matrix, 4, paged=paged)
    fragments = read(written, range(written.layout.n_ranges))
    np.testing.assert_array_equal(as_words(f.records for f in fragments), written.words)


def test_every_flipped_bit_is_found_or_harmless(small: Written) -> None:
    """No damage to any byte lets a combine task read something else than was written."""
    content = small.path.read_bytes()
    expected = snapshot(small)
    found = 0
    for position in range(len(content)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(content)
            damaged[position] ^= flip
            small.path.write_bytes(damaged)
            try:
                assert snapshot(small) == expected, f"byte {position} xor {flip}"
            except FragmentError:
                found += 1
    assert found > 8 * (len(content) - small.layout.head_bytes)


def test_every_flipped_bit_of_the_head_is_found(small: Written) -> None:
    """The barrier reads heads as a whole and misses nothing but what it does not use."""
    content = small.path.read_bytes()
    unused = range(12, 16)
    for position in set(range(small.layout.head_bytes)) - set(unused):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        small.path.write_bytes(damaged)
        with (
            FragmentFile(small.path, small.layout) as file,
            pytest.raises(FragmentError, match="block"),
        ):
            file.head()


def test_every_truncation_is_found(small: Written) -> None:
    """A file cut short anywhere is refused, by name."""
    content = small.path.read_bytes()
    for length in range(len(content)):
        small.path.write_bytes(content[:length])
        with pytest.raises(FragmentError, match="block"):
            snapshot(small)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Its path is in the message."""
    with pytest.raises(FragmentError, match=r"nowhere.*missing"):
        FragmentFile(tmp_path / "nowhere", FragmentLayout(3, 2))


def test_a_file_of_another_plan_is_refused(small: Written) -> None:
    """A head of another length does not pass for one of this layout."""
    kind = RecordKind(0, np.dtype("f8"))
    head = Head(0, kind, np.zeros(9, np.uint32), np.zeros(1, TABLE_DTYPE))
    with pytest.raises(FragmentError, match="layout"):
        encode_head(small.layout, head)
    with FragmentFile(small.path, FragmentLayout(9, 9)) as file, pytest.raises(FragmentError):
        file.head()


def test_fragments_larger_than_a_read_come_back(tmp_path: Path) -> None:
    """Neither a fragment of more than one read's size nor many in one read are torn."""
    n = READ_PIECE_BYTES // 16 + 1000
    rng = np.random.default_rng(2)
    matrix = random_csr(rng, (4, 6), [n, n // 4, 10, 0], "c16", "bits")
    matrix.indices[: n - 100] = 2
    written = write(tmp_path / "block", matrix, 1, paged=False)
    fragments = read(written, range(6))
    np.testing.assert_array_equal(as_words(f.records for f in fragments), written.words)


def test_only_what_is_asked_for_is_read(small: Written) -> None:
    """One range costs its own bytes and its share of the head."""
    with FragmentFile(small.path, small.layout) as file:
        list(file.expect(range(3, 4)).locate().fragments())
        one = file.read_bytes
        list(file.expect(range(4)).locate().fragments())
    assert one < (file.read_bytes - one) / 2


def test_files_are_opened_ahead_and_closed(small: Written, tmp_path: Path) -> None:
    """Each file is given once, in order, and none stays open, whether all are taken or not."""
    paths = [small.path] * 40
    before = len(list(Path("/proc/self/fd").iterdir()))
    seen = [as_words(f.records for f in file.fragments()) for file in ahead(paths, small)]
    assert len(seen) == 40
    for words in seen:
        np.testing.assert_array_equal(words, small.words)
    files = ahead(paths, small)
    next(files)
    files.close()
    with pytest.raises(FragmentError, match="missing"):
        list(ahead([small.path, tmp_path / "none"], small))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def ahead(paths: list[Path], written: Written) -> Any:
    """All column ranges of some files."""
    return open_ahead(paths, written.layout, range(written.layout.n_ranges))
