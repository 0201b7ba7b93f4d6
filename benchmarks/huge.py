"""Plans of matrices that nobody has on this machine: what they ask of a scheduler, and of disks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.measuring import ROOT, Results, Row, say
from dask_convert.planning.layout import FRAGMENT_TABLE_BYTES, PAGE_ROWS, ArraySource, MatrixSource
from dask_convert.planning.planner import conversion_plan
from dask_convert.planning.plans import ConversionPlan, RowIndex, Settings

ROW_NNZ = 1_700
SLAB_ROWS = 2**20
SOURCE_CHUNK = 2**17
STORED = {"data": 0.75, "indices": 1.55}
"""Bytes per entry of the sources that were measured, gzip as anndata writes it."""
RECORD_BYTES, TARGET_BYTES = 2, 1.41
"""Bytes per entry: of paged records without their index, and, measured, of the target."""
CORE_SECONDS = 41e-9
"""Of one core per entry, measured at full size: 20.7 ns of wall time on two cores."""


def huge_plan(n_obs: int, n_vars: int, workers: int, worker_bytes: int) -> ConversionPlan:
    """The plan for a matrix of this shape with `ROW_NNZ` entries in each row; there is no file."""
    nnz = n_obs * ROW_NNZ

    def member(dtype: str, name: str) -> ArraySource:
        stored_bytes = int(nnz * STORED[name])
        return ArraySource(dtype, nnz, SOURCE_CHUNK, stored_bytes, ("gzip",), raw=True)

    def row_ends() -> Iterator[NDArray[np.int64]]:
        for start in range(1, n_obs + 1, SLAB_ROWS):
            yield ROW_NNZ * np.arange(start, min(start + SLAB_ROWS, n_obs + 1), dtype=np.int64)

    source = MatrixSource(
        "X", "X", n_obs, n_vars, nnz, member("<f8", "data"), member("<i4", "indices"), "<i8"
    )
    settings = Settings(memory=2**50, workers=workers, worker_memory=worker_bytes)
    return conversion_plan([(source, RowIndex(ROW_NNZ, row_ends))], settings)


def file_system(
    results: Results, sizes: list[int], n_vars: int, nodes: int, cores: int, worker_bytes: int
) -> None:
    """What plans ask of a parallel file system: bytes, requests, files, and at what rates.

    Parameters
    ----------
    results
        Where the record goes.
    sizes
        Numbers of cells.
    n_vars
        Genes.
    nodes, cores, worker_bytes
        Of the cluster: nodes, cores of each, memory for each core's worker.
    """
    workers = nodes * cores
    plans = {n_obs: huge_plan(n_obs, n_vars, workers, worker_bytes) for n_obs in sizes}
    for n_obs, plan in plans.items():
        results.add(
            f"Parallel file system, {n_obs:,} cells",
            {"genes": n_vars, "nnz": n_obs * ROW_NNZ, "nodes": nodes, "cores": cores},
            list(_rows(plan, workers)),
        )


def _rows(plan: ConversionPlan, workers: int) -> Iterator[Row]:
    (matrix,) = plan.matrices
    nnz, blocks, regions = matrix.source.nnz, len(matrix.blocks), len(matrix.regions)
    # Both stages take about as long as each other, if cores are all that counts.
    seconds = nnz * CORE_SECONDS / workers / 2
    shards = 2 * -(-nnz // matrix.target.shard_nnz)
    chunks = 2 * -(-nnz // SOURCE_CHUNK)
    pairs = blocks * regions
    table_bytes = FRAGMENT_TABLE_BYTES * matrix.fragment_layout.n_ranges / regions
    pages = -(-matrix.blocks[0].rows // PAGE_ROWS)
    index_bytes = 2 * pages * matrix.source.n_vars / regions
    slice_bytes = nnz * RECORD_BYTES / pairs

    def row(what: str, n_bytes: float, requests: float, opens: float, files: int) -> Row:
        return {
            "what": what,
            "TB": n_bytes / 1e12,
            "requests": int(requests),
            "mean KiB": n_bytes / requests / 1024,
            "opens": int(opens),
            "new files": files,
            "GB per s": n_bytes / seconds / 1e9,
            "requests per s": int(requests / seconds),
            "opens per s": int(opens / seconds),
        }

    yield row("split: read source", nnz * sum(STORED.values()), chunks + 2 * blocks, 2 * blocks, 0)
    # Writers hand over some MiB at a time; a report, published by a rename, goes with each file.
    written = nnz * RECORD_BYTES + pairs * index_bytes + blocks * matrix.fragment_layout.head_bytes
    yield row("split: write fragments", written, blocks * 64, 2 * blocks, 2 * blocks)
    yield row("combine: read slices", pairs * slice_bytes, pairs, pairs, 0)
    # The first bytes of the head, which are a page of the file system, the table, the index.
    small_bytes = 4096 + table_bytes + index_bytes
    yield row("combine: read heads", pairs * small_bytes, 3 * pairs, 0, 0)
    yield row("combine: write shards", nnz * TARGET_BYTES, nnz * 2 / matrix.target.chunk_nnz,
              shards + regions, shards + regions)  # fmt: skip
    say(
        f"{nnz:.3g} entries: {blocks:,} row blocks of {matrix.blocks[0].nnz:,}, {regions:,} "
        f"regions of {matrix.regions[0].nnz:,}; slices of {nnz // pairs:,} records, "
        f"{slice_bytes / 1024:.0f} KiB; {seconds:.1f} s a stage if cores are the limit; tasks of "
        f"{plan.task_bytes / 2**20:,.0f} MiB"
    )


def scheduler(results: Results, sizes: list[int], n_vars: int, workers: int, planned: int) -> None:
    """Run the graphs of huge plans, of tasks that do nothing, on a scheduler of its own.

    Parameters
    ----------
    results
        Where the record goes.
    sizes
        Numbers of cells.
    n_vars
        Genes.
    workers
        Workers that take the tasks, all in one process.
    planned
        Workers that the plan is for.
    """
    rows = [_scheduled(n_obs, n_vars, workers, planned) for n_obs in sizes]
    results.add("Scheduler", {"genes": n_vars, "workers": workers, "planned for": planned}, rows)


def _scheduled(n_obs: int, n_vars: int, workers: int, planned: int) -> Row:
    from distributed import Client

    from dask_convert.engine.graph import ClientExecutor, conversion_graph
    from dask_convert.engine.tasks import Job

    plan = huge_plan(n_obs, n_vars, planned, 4 * 2**30)
    (matrix,) = plan.matrices
    job = Job("/data/atlas.h5ad", "/scratch/.atlas.zarr.scratch-0123abcd/0123abcd", "/data/x", 0)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "scheduler.json")
        started = [_started("distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1",
                            "--no-dashboard", "--scheduler-file", str(file))]  # fmt: skip
        try:
            while not file.exists():
                time.sleep(0.05)
            address = json.loads(file.read_text())["address"]
            started.append(_started("benchmarks.idle_workers", address, str(workers)))
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=120)
                graph = conversion_graph(job, matrix)
                return _measured(ClientExecutor(client, drain=False), graph, started[0].pid)
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def _measured(executor: Any, graph: Any, pid: int) -> Row:
    """What a scheduler's process takes for a graph, beyond what it takes when idle."""
    process = psutil.Process(pid)
    idle_start = _cpu_seconds(process)
    time.sleep(3)
    idle = (_cpu_seconds(process) - idle_start) / 3
    bytes_before, cpu_before = process.memory_info().rss, _cpu_seconds(process)
    reports = 0

    def count(*_report: object) -> None:
        nonlocal reports
        reports += 1

    began = time.perf_counter()
    executor.run(graph, count)
    wall = time.perf_counter() - began
    busy = _cpu_seconds(process) - cpu_before - idle * wall
    grown = process.memory_info().rss - bytes_before
    if reports != len(graph):
        sys.exit(f"benchmarks: {reports} of {len(graph)} tasks have reported")
    say(f"{reports:,} tasks: {busy:.2f} s of the scheduler in {wall:.2f} s")
    return {
        "tasks": reports,
        "row blocks": sum(key[0].startswith("split") for key in graph),
        "regions": sum(key[0].startswith("combine") for key in graph),
        "wall_seconds": wall,
        "scheduler CPU_seconds": busy,
        "scheduler CPU per task_ms": 1e3 * busy / reports,
        "scheduler KiB per task": grown / reports / 1024,
        "idle, share of a core": idle,
    }


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _started(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
