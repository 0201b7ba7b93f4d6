"""Converts in a process of its own, whose memory is then that of the conversion.

    python measured_conversion.py SOURCE TARGET EXTRA_BYTES WORKERS

The budget is the least that the file needs and EXTRA_BYTES more. Prints projected and measured
bytes, as JSON.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import dask_convert
from dask_convert.conversion import run
from dask_convert.engine.meters import PeakMemory
from dask_convert.errors import MemoryBudgetError


def least_bytes(source: str, workers: int) -> int:
    """The smallest budget that can be planned for."""
    try:
        dask_convert.plan(source, memory=1, workers=workers)
    except MemoryBudgetError as error:
        return error.least_bytes
    return 1


def resident_bytes() -> int:
    """Most memory that this process has had resident, by the kernel, which misses no moment."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    source, target, extra_bytes, workers = sys.argv[1:]
    # Such a short run is over before many samples are taken.
    run.PeakMemory = partial(PeakMemory, share=1.0)  # type: ignore[misc]
    budget = least_bytes(source, int(workers)) + int(extra_bytes)
    result = dask_convert.convert(source, target, memory=budget, workers=int(workers))
    measured = {
        "budget": budget,
        "projected": result.plan.projected_bytes,
        "peak": result.peak_bytes,
        "resident": resident_bytes(),
        "blocks": len(result.plan.matrices[0].blocks),
        "regions": len(result.plan.matrices[0].regions),
        "nnz": result.nnz,
    }
    print(json.dumps(measured))
