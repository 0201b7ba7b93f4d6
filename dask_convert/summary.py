"""Plans and results in words: what `plan` and `convert` print."""

from __future__ import annotations

from typing import Any

import msgspec

from dask_convert.plans import ConversionPlan, MatrixPlan
from dask_convert.run import ConversionResult, MatrixResult


def bytes_text(n_bytes: int) -> str:
    """A size for people: ``1.5 GiB``."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def of_plan(plan: ConversionPlan) -> str:
    """A plan as lines of text."""
    settings = plan.settings
    lines = [line for matrix in plan.matrices for line in _matrix_plan_lines(matrix)]
    if not lines:
        lines = ["no CSR matrix: everything will be copied as it is"]
    lines += [
        f"memory     {bytes_text(plan.projected_bytes)} projected of {bytes_text(settings.memory)} "
        f"with {settings.workers} workers; the least is {bytes_text(plan.least_memory_bytes)}",
        f"scratch    up to {bytes_text(plan.scratch_bytes)}",
        f"target     up to {bytes_text(plan.target_bytes)} in {plan.target_files:,} files "
        f"(zarr v{settings.zarr_format}, {settings.codec})",
    ]
    return "\n".join(lines)


def plan_as_json(plan: ConversionPlan) -> dict[str, Any]:
    """A plan as plain data, with the sums that follow from it."""
    fields: dict[str, Any] = msgspec.to_builtins(plan)
    fields["projected"] = {
        "task_bytes": plan.task_bytes,
        "worker_bytes": plan.worker_bytes,
        "total_bytes": plan.projected_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "target_bytes": plan.target_bytes,
        "target_files": plan.target_files,
    }
    return fields


def of_result(result: ConversionResult) -> str:
    """A result as lines of text."""
    lines = [line for matrix in result.matrices for line in _matrix_result_lines(matrix)]
    if not lines:
        lines = ["no CSR matrix: everything was copied as it is"]
    budget = bytes_text(result.plan.settings.memory)
    rate = result.nnz / result.seconds / 1e6 if result.seconds else 0.0
    lines += [
        f"time       {result.seconds:.1f} s, {rate:.1f} million entries per second",
        f"memory     {bytes_text(result.peak_bytes)} at most, of {budget}",
        f"target     {result.target}",
    ]
    return "\n".join(lines)


def _matrix_plan_lines(plan: MatrixPlan) -> list[str]:
    source = plan.source
    layout = plan.target
    stored = source.data.stored_bytes + source.indices.stored_bytes
    per_file = "chunk" if not layout.sharded else f"shard of {layout.shard_nnz:,} entries"
    return [
        f"{source.name:<10} {source.n_obs:,} obs x {source.n_vars:,} vars, {source.nnz:,} entries "
        f"of {source.data.dtype}, {bytes_text(stored)} stored",
        f"  split    {len(plan.blocks):,} row blocks, {bytes_text(plan.split_bytes)} each",
        f"  combine  {len(plan.regions):,} regions, {bytes_text(plan.combine_bytes)} each",
        f"  layout   chunks of {layout.chunk_nnz:,} entries, a file per {per_file}",
    ]


def _matrix_result_lines(matrix: MatrixResult) -> list[str]:
    return [
        f"{matrix.name:<10} {matrix.n_obs:,} obs x {matrix.n_vars:,} vars, {matrix.nnz:,} entries "
        f"of {matrix.data_dtype}",
        f"  split    {matrix.split_seconds:.1f} s, {bytes_text(matrix.source_bytes)} read, "
        f"{bytes_text(matrix.fragment_bytes)} of fragments",
        f"  combine  {matrix.combine_seconds:.1f} s, {bytes_text(matrix.target_bytes)} written",
    ]
