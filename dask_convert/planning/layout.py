"""The frozen nouns of a conversion: what is where, in integers.

All of them are plain values that survive a round trip through JSON. Positions along the
non-zeros of a matrix are always 64-bit and always named ``…_nnz``; sizes carry their unit.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Codec = Literal["lz4", "zstd", "gzip", "none"]
"""How target chunks are compressed: blosc's lz4 or zstd with a shuffle, plain gzip, or not."""


DEFAULT_CHUNK_NNZ = 2**17
DEFAULT_CODEC: Codec = "zstd"
DEFAULT_CODEC_LEVEL = 1

PAGE_ROWS = 256
"""Rows of a page; see `dask_convert.shuffle.pages`."""

FRAGMENT_FIXED_BYTES = 56
"""Length of a fragment file's head before its arrays; see `dask_convert.shuffle.fragments`."""

FRAGMENT_TABLE_BYTES = 20
"""Length of a row of a fragment file's table."""


class Trust(msgspec.Struct, frozen=True):
    """What the user lets a source file do beyond being read.

    Attributes
    ----------
    allow_external
        Directories that other files may be read from, if the source refers to them.
    allow_plugins
        Whether any HDF5 filter that is installed may run, ``HDF5_PLUGIN_PATH`` included.
    """

    allow_external: tuple[str, ...] = ()
    allow_plugins: bool = False


class RowBlock(msgspec.Struct, frozen=True):
    """Contiguous obs that one split task reads: rows ``[start, stop)``.

    Attributes
    ----------
    start, stop
        Rows of the source matrix.
    start_nnz, stop_nnz
        Positions of these rows in the source's ``data`` and ``indices``.
    """

    start: int
    stop: int
    start_nnz: int
    stop_nnz: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.stop_nnz - self.start_nnz


class ColumnRange(msgspec.Struct, frozen=True):
    """Contiguous var interval ``[start, stop)`` that one fragment covers."""

    start: int
    stop: int


class Region(msgspec.Struct, frozen=True):
    """The slice ``[start_nnz, stop_nnz)`` of the target arrays that one combine task writes.

    It begins on a shard border and ends on one, or at the end of the array.
    """

    start_nnz: int
    stop_nnz: int

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return self.stop_nnz - self.start_nnz


class TargetFile(msgspec.Struct, frozen=True):
    """A file of the target, and by what to know it again.

    Attributes
    ----------
    path
        Within the target.
    n_bytes, crc32c
        Its length and checksum.
    """

    path: str
    n_bytes: int
    crc32c: int


class ArraySource(msgspec.Struct, frozen=True):
    """Where one member array of a source matrix lies and how it is stored.

    Attributes
    ----------
    dtype
        numpy's type string with byte order, as stored.
    length
        Number of elements.
    chunk_length
        Elements per HDF5 chunk; 0 where the data set is contiguous.
    stored_bytes
        Allocated bytes in the file.
    filters
        HDF5 filter names in the order of writing, ``("shuffle", "gzip")`` say.
    raw
        Whether its chunks can be read and inflated without HDF5 (see `dask_convert.files.h5ad`).
    """

    dtype: str
    length: int
    chunk_length: int
    stored_bytes: int
    filters: tuple[str, ...]
    raw: bool


class MatrixSource(msgspec.Struct, frozen=True):
    """A CSR matrix of the source file.

    Attributes
    ----------
    name
        Its path as AnnData names it: ``X``, ``layers/counts``, ``raw/X``.
    path
        Its HDF5 path, which differs from `name` in some legacy files.
    n_obs, n_vars, nnz
        Its shape and number of stored entries.
    data, indices
        Its members, entry by entry.
    indptr_dtype
        numpy's type string of ``indptr`` as stored.
    """

    name: str
    path: str
    n_obs: int
    n_vars: int
    nnz: int
    data: ArraySource
    indices: ArraySource
    indptr_dtype: str

    @property
    def stored_bytes(self) -> int:
        """Of its entries, as stored in the source."""
        return self.data.stored_bytes + self.indices.stored_bytes


class TargetLayout(msgspec.Struct, frozen=True):
    """How the matrices of the target are cut and stored.

    Attributes
    ----------
    zarr_format
        2 or 3.
    chunk_nnz
        Elements per (inner) chunk: the unit of reading.
    shard_nnz
        Elements per file: the unit of writing. Equal to `chunk_nnz` where not sharded.
    codec, codec_level
        How chunks are compressed.
    """

    zarr_format: Literal[2, 3]
    chunk_nnz: int
    shard_nnz: int
    codec: Codec
    codec_level: int

    @property
    def sharded(self) -> bool:
        """Whether several chunks share a file."""
        return self.shard_nnz != self.chunk_nnz


class FragmentLayout(msgspec.Struct, frozen=True):
    """Byte offsets within a fragment file; a function of the plan alone.

    Attributes
    ----------
    n_vars, column_width
        Columns of the matrix, and of each column range but the last.
    """

    n_vars: int
    column_width: int

    @property
    def n_ranges(self) -> int:
        """Number of column ranges, and so of fragments."""
        return -(-self.n_vars // self.column_width)

    def column_range(self, number: int) -> ColumnRange:
        """The columns that the fragment of this number covers."""
        start = number * self.column_width
        return ColumnRange(start, min(start + self.column_width, self.n_vars))

    @property
    def counts_offset(self) -> int:
        """Where the column counts begin."""
        return FRAGMENT_FIXED_BYTES

    @property
    def table_offset(self) -> int:
        """Where the table of fragments begins."""
        return self.counts_offset + 4 * self.n_vars

    @property
    def head_bytes(self) -> int:
        """Length of the head: where the first fragment's index begins."""
        return self.table_offset + FRAGMENT_TABLE_BYTES * self.n_ranges
