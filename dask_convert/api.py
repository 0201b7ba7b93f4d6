"""What users call from Python: `plan` and `convert`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dask.utils import parse_bytes

from dask_convert.cluster import default_workers, local_client, prepare_workers
from dask_convert.errors import PlanError
from dask_convert.graph import ClientExecutor, Executor, SynchronousExecutor
from dask_convert.layout import DEFAULT_CHUNK_NNZ, DEFAULT_CODEC, Codec
from dask_convert.plans import ConversionPlan, Settings
from dask_convert.progress import Silent
from dask_convert.run import ConversionResult, Progress, plan_conversion, run_conversion

if TYPE_CHECKING:
    from distributed import Client

Pathish = str | os.PathLike[str]

DEFAULT_MEMORY = "2GiB"


def plan(
    source: Pathish,
    *,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    matrices: Iterable[str] | None = None,
    data_dtype: str = "same",
    zarr_format: Literal[2, 3] = 3,
    chunk_nnz: int = DEFAULT_CHUNK_NNZ,
    shard_nnz: int | None = None,
    codec: Codec = DEFAULT_CODEC,
    codec_level: int | None = None,
) -> ConversionPlan:
    """Plan a conversion and touch nothing.

    Takes what `convert` takes, and raises what it raises before it starts to work.
    """
    settings = _settings(
        memory=memory,
        workers=default_workers() if workers is None else workers,
        data_dtype=data_dtype,
        zarr_format=zarr_format,
        chunk_nnz=chunk_nnz,
        shard_nnz=shard_nnz,
        codec=codec,
        codec_level=codec_level,
    )
    return plan_conversion(Path(source), settings, matrices)


def convert(
    source: Pathish,
    target: Pathish,
    *,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    client: Client | None = None,
    matrices: Iterable[str] | None = None,
    data_dtype: str = "same",
    zarr_format: Literal[2, 3] = 3,
    chunk_nnz: int = DEFAULT_CHUNK_NNZ,
    shard_nnz: int | None = None,
    codec: Codec = DEFAULT_CODEC,
    codec_level: int | None = None,
    scratch: Pathish | None = None,
    overwrite: bool = False,
    dashboard_address: str | None = "127.0.0.1:0",
    progress: Progress | None = None,
) -> ConversionResult:
    """Convert an h5ad file to an AnnData zarr store with its CSR matrices in CSC.

    Parameters
    ----------
    source
        The h5ad file.
    target
        The zarr store to make; a directory on a local or shared file system.
    memory
        What all processes together may use, in bytes or as ``"4GiB"``.
    workers
        Worker processes of the local cluster; one per core by default. 0 runs every task in
        this process, without any cluster.
    client
        A client of a running cluster to use instead. Each of its threads counts as a worker
        in the memory budget. Source, target and scratch must be the same paths there.
    matrices
        Names of the matrices to convert, ``X``, ``layers/counts`` or ``raw/X``; by default
        every CSR matrix. All others are copied as they are.
    data_dtype
        ``"same"`` keeps the type of values, ``"auto"`` takes the smallest that holds every
        one exactly, and a type's name takes that, or raises.
    zarr_format
        3 or 2.
    chunk_nnz
        Entries per chunk of the target, the unit of reading.
    shard_nnz
        Entries per shard (file), a multiple of `chunk_nnz`; 0 for a file per chunk; chosen by
        default.
    codec, codec_level
        How chunks are compressed: ``lz4``, ``zstd``, ``gzip`` or ``none``.
    scratch
        Where to make the scratch directory; beside the target by default.
    overwrite
        Replace the target if it exists and was made by this function.
    dashboard_address
        Host and port of the local cluster's dashboard, None for none; port 0 takes any.
    progress
        Is told how the run comes along; see `dask_convert.progress`.

    Raises
    ------
    SourceError
        The source is not as it must be, or a value would change in `data_dtype`.
    PlanError
        Settings contradict each other, or the memory is too little.
    TargetError, DiskSpaceError
        The target cannot be written, or there is too little room.

    Examples
    --------
    >>> result = convert("cells.h5ad", "genes.zarr", memory="4GiB")  # doctest: +SKIP
    """
    if client is not None:
        if workers is not None:
            msg = "give workers or a client, not both: a client's cluster has the workers it has"
            raise PlanError(msg)
        workers = sum(client.nthreads().values())
    elif workers != 0:
        prepare_workers()
    planned = plan(
        source,
        memory=memory,
        workers=workers,
        matrices=matrices,
        data_dtype=data_dtype,
        zarr_format=zarr_format,
        chunk_nnz=chunk_nnz,
        shard_nnz=shard_nnz,
        codec=codec,
        codec_level=codec_level,
    )
    target = Path(target).absolute()

    @contextmanager
    def executor() -> Iterator[Executor]:
        if client is not None:
            yield ClientExecutor(client)
        elif planned.settings.workers == 0:
            yield SynchronousExecutor()
        else:
            with local_client(planned, dashboard_address) as own:
                yield ClientExecutor(own, drain=False)

    return run_conversion(
        Path(source).absolute(),
        target,
        planned,
        executor,
        scratch_parent=target.parent if scratch is None else Path(scratch).absolute(),
        overwrite=overwrite,
        progress=Silent() if progress is None else progress,
    )


def _settings(
    *, memory: int | str, codec: Codec, codec_level: int | None, **others: object
) -> Settings:
    """Settings from what users write."""
    try:
        memory_bytes = parse_bytes(memory)
    except ValueError as error:
        msg = f"memory is {memory!r}: a number of bytes, or one with a unit like '4GiB'"
        raise PlanError(msg) from error
    if codec_level is None:
        codec_level = {"lz4": 5, "zstd": 1, "gzip": 4, "none": 0}.get(codec, 0)
    return Settings(memory=memory_bytes, codec=codec, codec_level=codec_level, **others)  # type: ignore[arg-type]  # checked by planning.check_settings
