"""What matrices of some sizes will take: the planner's own answers, as the README's table.

    python -m benchmarks.sizing            # prints the table
    python -m benchmarks.sizing README.md  # puts it into a document, between the marks

Nothing is measured and no file is read: the planner gets the shape of a matrix and says what
`dask-convert plan` would say of it. A test holds the documents to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_convert.files.annotation_elements import FIXED_BYTES
from dask_convert.planning.layout import ArraySource, MatrixSource
from dask_convert.planning.planner import conversion_plan
from dask_convert.planning.plans import ConversionPlan, RowIndex, Settings

MARKS = "<!-- sizing: python -m benchmarks.sizing -->", "<!-- end of sizing -->"
SHAPES = ((100_000, 32_285), (1_000_000, 32_285), (10_000_000, 32_285), (1_000_000, 60_664))
WORKERS = (2, 8, 32)
ROW_NNZ = 4_900
"""Genes seen in a cell, on average: as many as in the reference data set."""
STORED_BYTES_PER_NNZ = 2.3
"""Of a gzip file with counts, as anndata writes it."""
ANNOTATION_BYTES = 64 * 2**20 + FIXED_BYTES
"""obs, var and the rest go in slabs: one of numbers and one of text, 32 MiB each."""
PLENTY = 2**50


def plan_of(n_obs: int, n_vars: int, workers: int) -> ConversionPlan:
    """Plan for a file of this shape, with float64 counts and int32 indices in gzip chunks."""
    nnz = n_obs * ROW_NNZ
    stored = int(nnz * STORED_BYTES_PER_NNZ) // 2
    # anndata leaves the size of chunks to h5py, which takes 1 MiB at most.
    data = ArraySource("<f8", nnz, 2**17, stored, ("gzip",), raw=True)
    indices = ArraySource("<i4", nnz, 2**18, stored, ("gzip",), raw=True)
    source = MatrixSource("X", "X", n_obs, n_vars, nnz, data, indices, "<i8")
    settings = Settings(memory=PLENTY, workers=workers)
    rows = RowIndex(2 * ROW_NNZ, lambda: _row_ends(n_obs))
    return conversion_plan([(source, rows)], settings, annotation_bytes=ANNOTATION_BYTES)


def _row_ends(n_obs: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, n_obs, 2**20):
        yield ROW_NNZ * np.arange(start + 1, min(start + 2**20, n_obs) + 1)


def table() -> str:
    """The table as markdown: of each shape, the least and the comfortable budget, and scratch."""
    lines = [
        "| cells × genes | non-zeros "
        f"| {' | '.join(f'{n} workers, GiB' for n in WORKERS)} | scratch, GiB |",
        f"|---|---:|{'---:|' * (len(WORKERS) + 1)}",
    ]
    for n_obs, n_vars in SHAPES:
        plans = [plan_of(n_obs, n_vars, workers) for workers in WORKERS]
        budgets = (
            f"{_gib(plan.least_memory_bytes)} – {_gib(plan.projected_bytes)}" for plan in plans
        )
        lines.append(
            f"| {n_obs:,} × {n_vars:,} | {n_obs * ROW_NNZ / 1e9:.2g} billion "
            f"| {' | '.join(budgets)} | {_gib(plans[0].scratch_bytes)} |"
        )
    return "\n".join(lines)


def _gib(n_bytes: int) -> str:
    """In GiB, rounded up: a budget that is written down must do."""
    return f"{-(-n_bytes * 10 // 2**30) / 10:,.1f}"


def with_table(text: str) -> str:
    """A document with the table between its marks."""
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}"


if __name__ == "__main__":
    if sys.argv[1:]:
        document = Path(sys.argv[1])
        document.write_text(with_table(document.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
