"""Runs the engine as the command line would, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dask_convert.conversion.run import run_conversion
from dask_convert.conversion.source_plan import plan_conversion
from dask_convert.display.progress import Silent
from dask_convert.engine.graph import Executor, SynchronousExecutor
from dask_convert.engine.results import ConversionResult
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import Settings

MEMORY_BYTES = 2**30
TINY = {"chunk_nnz": 8, "shard_nnz": 16, "block_nnz": 20, "region_nnz": 32, "column_width": 4}
"""Settings that cut even a small matrix into many blocks, ranges, regions, shards and chunks."""


def names(directory: Path) -> list[str]:
    """What a directory has, in order."""
    return sorted(path.name for path in directory.iterdir())


def convert(
    source: Path,
    target: Path,
    *,
    executor: Callable[[], Executor] = SynchronousExecutor,
    matrices: Iterable[str] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    scratch_parent: Path | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> ConversionResult:
    """Plan and run a conversion, scratch beside the target."""
    plan = plan_conversion(source, Settings(**{"memory": MEMORY_BYTES, **settings}), matrices)
    return run_conversion(
        source,
        target,
        plan,
        lambda _plan: nullcontext(executor()),
        scratch_parent=scratch_parent or target.parent,
        overwrite=overwrite,
        progress=Silent(),
        restart=restart,
        limits=limits or Limits(wait_seconds=0.05),
    )
