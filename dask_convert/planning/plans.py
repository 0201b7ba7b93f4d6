"""The plan as frozen values: what the user chose, what will be done, what it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.planning import memory
from dask_convert.planning.layout import (
    DEFAULT_CHUNK_NNZ,
    DEFAULT_CODEC,
    DEFAULT_CODEC_LEVEL,
    Codec,
    FragmentLayout,
    MatrixSource,
    Region,
    RowBlock,
    TargetLayout,
    Trust,
)
from dask_convert.planning.profiles import ProfileName
from dask_convert.planning.sizes import bytes_text


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user may choose; the names are those of the command line and of Python.

    Attributes
    ----------
    memory
        Bytes that all processes together may use.
    workers
        Worker processes; 0 for none, everything in the calling process.
    worker_memory
        Bytes that each worker process may use besides, where they are on machines of their own.
    data_dtype
        ``same``, ``auto`` (the smallest type that holds every value) or a type's name.
    zarr_format
        2 or 3.
    chunk_nnz
        Elements per chunk of the target.
    shard_nnz
        Elements per shard, a multiple of `chunk_nnz`; 0 for no shards; None to choose.
    codec, codec_level
        How chunks are compressed.
    verify
        Whether the store is compared with its source before it gets its name.
    strict
        Refuse duplicates, stored zeros, NaN and infinities.
    allow_external, allow_plugins
        See `Trust`.
    profile
        Whose defaults were taken; see `dask_convert.planning.profiles`.
    block_nnz, region_nnz, column_width
        For tests and experiments: override what the planner would choose.
    """

    memory: int
    workers: int = 0
    worker_memory: int | None = None
    data_dtype: str = "same"
    zarr_format: Literal[2, 3] = 3
    chunk_nnz: int = DEFAULT_CHUNK_NNZ
    shard_nnz: int | None = None
    codec: Codec = DEFAULT_CODEC
    codec_level: int = DEFAULT_CODEC_LEVEL
    verify: bool = False
    strict: bool = False
    allow_external: tuple[str, ...] = ()
    allow_plugins: bool = False
    profile: ProfileName = "anndata"
    block_nnz: int | None = None
    region_nnz: int | None = None
    column_width: int | None = None

    @property
    def trust(self) -> Trust:
        """What the source may do beyond being read."""
        return Trust(self.allow_external, self.allow_plugins)


class RowIndex(msgspec.Struct, frozen=True):
    """What planning must know of a matrix's indptr, which may be too long to be held.

    Attributes
    ----------
    longest_row_nnz
        Entries of the fullest row.
    row_ends
        Gives ``indptr[1:]``, checked, as int64 in consecutive slabs; can be called again.
    """

    longest_row_nnz: int
    row_ends: Callable[[], Iterable[NDArray[np.int64]]]


class MatrixPlan(msgspec.Struct, frozen=True):
    """The tasks of one matrix.

    Attributes
    ----------
    source, target
        What is read and how it will be stored.
    column_width
        Columns per column range; the last may have fewer.
    paged
        Whether records may be paged; see `dask_convert.shuffle.pages`.
    blocks
        One split task each; they tile the rows.
    regions
        One combine task each; they tile the non-zeros.
    split_bytes, combine_bytes
        Projected peak of the largest task of each kind.
    scratch_bytes, target_bytes
        Expected size on disk: bounded by what the source takes, where it is compressed.
    """

    source: MatrixSource
    target: TargetLayout
    column_width: int
    paged: bool
    blocks: tuple[RowBlock, ...]
    regions: tuple[Region, ...]
    split_bytes: int
    combine_bytes: int
    scratch_bytes: int
    target_bytes: int

    def __repr__(self) -> str:
        tasks = f"{len(self.blocks):,} row blocks, {len(self.regions):,} regions"
        return f"<MatrixPlan of {self.source.name}: {tasks}>"

    @property
    def fragment_layout(self) -> FragmentLayout:
        """Where things are in the matrix's fragment files."""
        return FragmentLayout(self.source.n_vars, self.column_width)

    @property
    def target_files(self) -> int:
        """Files of the matrix in the target, metadata included."""
        return 2 * -(-self.source.nnz // self.target.shard_nnz) + 1 + 4


class ConversionPlan(msgspec.Struct, frozen=True):
    """Everything that will be done, and what it will take, before anything is done.

    Attributes
    ----------
    settings
        What the user chose.
    matrices
        The matrices to convert, in order.
    copied
        The other matrices with one row per obs, which are copied: by name ``csr`` (not chosen),
        ``csc`` or ``dense``.
    left_out
        A line for each attribute and element that AnnData does not know and zarr cannot hold.
    annotation_bytes
        Projected memory for copying everything else.
    copied_bytes
        What everything else takes in the target at most.
    least_memory_bytes
        The smallest budget that could be planned for.
    """

    settings: Settings
    matrices: tuple[MatrixPlan, ...]
    copied: dict[str, str]
    left_out: tuple[str, ...]
    annotation_bytes: int
    copied_bytes: int
    least_memory_bytes: int

    def __repr__(self) -> str:
        matrices = ", ".join(f"{m.source.name} of {m.source.nnz:,} entries" for m in self.matrices)
        return (
            f"<ConversionPlan: {matrices or 'no CSR matrix'}; {bytes_text(self.projected_bytes)} "
            f"of {bytes_text(self.settings.memory)} with {self.settings.workers} workers>"
        )

    def _repr_html_(self) -> str:
        from dask_convert.display.html import plan_html

        return plan_html(self)

    @property
    def task_bytes(self) -> int:
        """Projected peak of the largest task."""
        return max((max(m.split_bytes, m.combine_bytes) for m in self.matrices), default=0)

    @property
    def worker_bytes(self) -> int:
        """Projected peak of one worker process."""
        return memory.WORKER_BYTES + self.task_bytes

    @property
    def projected_bytes(self) -> int:
        """Projected peak of all processes together."""
        return memory.total_bytes(self.task_bytes, self.settings.workers, self.annotation_bytes)

    @property
    def scratch_bytes(self) -> int:
        """Scratch needed at once; matrices are converted one after the other."""
        return max((m.scratch_bytes for m in self.matrices), default=0)

    @property
    def target_bytes(self) -> int:
        """What the target takes at most, with what is copied."""
        return sum(m.target_bytes for m in self.matrices) + self.copied_bytes

    @property
    def target_files(self) -> int:
        """Files of the converted matrices in the target."""
        return sum(m.target_files for m in self.matrices)
