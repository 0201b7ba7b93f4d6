"""Ways from a CSR h5ad to a CSC zarr, each run as a process of its own.

    python -m benchmarks.converters NAME SOURCE TARGET '{"option": value}'

The last line of output is a JSON object: what the converter says of itself. Nothing slow is
imported up here: workers of a local cluster import the main module too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASS_COLUMNS = 1000
ROWS_AT_ONCE = 10_000


def ours(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    """What is measured here, just as its command line runs it."""
    if options.get("workers") != 0:
        from dask_convert.places.worker_start import prepare_workers

        prepare_workers()
    from dask_convert import api
    from dask_convert.display import progress

    result = api.convert(source, target, progress=progress.Silent(), **options)
    matrix = next(found for found in result.matrices if found.name == "X")
    return {
        "seconds": result.seconds,
        "split_seconds": matrix.split_seconds,
        "combine_seconds": matrix.combine_seconds,
        "nnz": matrix.nnz,
        "workers": max(result.plan.settings.workers, 1),
        "projected_bytes": result.plan.projected_bytes,
        "least_memory_bytes": result.plan.least_memory_bytes,
        "fragment_bytes": matrix.fragment_bytes,
        "target_bytes": matrix.target_bytes,
        "steps": matrix.steps,
    }


def streamed(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    """The same, with dask's task stream: when each task ran, and where."""
    from dask_convert.places.worker_start import prepare_workers

    prepare_workers()
    from dask_convert import api
    from dask_convert.display import progress

    tasks: list[dict[str, Any]] = []

    class Streamed(progress.Silent):
        def start(self, plan: Any) -> None:  # noqa: ARG002  (of any plan)
            _task_stream()

        def stop(self, *, failed: bool) -> None:  # noqa: ARG002  (of any run)
            tasks.extend(_task_stream())

    api.convert(source, target, progress=Streamed(), **options)
    return {"tasks": tasks}


def _task_stream() -> list[dict[str, Any]]:
    """What dask has noted of tasks since this was called first."""
    from distributed import default_client

    return [
        {"worker": task["worker"], "kind": task["key"][0].split("-")[0], **span}
        for task in default_client().get_task_stream()
        for span in task["startstops"]
        if span["action"] == "compute"
    ]


def anndata_in_memory(source: Path, target: Path) -> dict[str, Any]:
    """What the documentation of anndata suggests: everything in memory."""
    import anndata

    data = anndata.read_h5ad(source)
    data.X = data.X.tocsc()
    data.write_zarr(target)
    return {}


def multi_pass(source: Path, target: Path, *, passes: int) -> dict[str, Any]:
    """The script of many: for each 1,000 columns scan the whole file and keep those.

    Parameters
    ----------
    source, target
        The file, and where the columns of the first passes go.
    passes
        How many to make; the caller projects from them.
    """
    import anndata
    import scipy.sparse as sp
    import zarr

    data = anndata.read_h5ad(source, backed="r")
    n_obs, n_vars = data.shape
    root = zarr.open_group(str(target), mode="w")
    seconds = []
    for number in range(passes):
        started = time.perf_counter()
        columns = slice(number * PASS_COLUMNS, min((number + 1) * PASS_COLUMNS, n_vars))
        blocks = [
            sp.csr_matrix(data.X[start : start + ROWS_AT_ONCE])[:, columns]
            for start in range(0, n_obs, ROWS_AT_ONCE)
        ]
        anndata.io.write_elem(root, f"columns-{columns.start}", sp.vstack(blocks).tocsc())
        seconds.append(time.perf_counter() - started)
    return {"pass_seconds": sum(seconds) / passes, "all_passes": -(-n_vars // PASS_COLUMNS)}


CONVERTERS: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": ours,
    "streamed": streamed,
    "anndata": anndata_in_memory,
    "multi-pass": multi_pass,
}

if __name__ == "__main__":
    name, source, target, options = sys.argv[1:]
    report = CONVERTERS[name](Path(source), Path(target), **json.loads(options))
    print(json.dumps(report))
