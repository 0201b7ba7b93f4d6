"""What there is to say of plans, results and verifications; terminals and notebooks show the same.

summary   lines of text: what the commands print, and what a report has
html      tables, with pictures beside them
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dask_convert.engine.results import (
    ConversionResult,
    MatrixResult,
    VerificationResult,
    VerifiedMatrix,
)
from dask_convert.planning.plans import ConversionPlan, MatrixPlan
from dask_convert.planning.sizes import bytes_text

SQUARE_NOTE = "as many obs as vars: only the label says that this is CSR, and not CSC"


_FORMS = {
    "csr": "CSR, but not chosen",
    "csc": "CSC already",
    "dense": "dense, which is not stored gene by gene",
}


class Fact(NamedTuple):
    """Something to say.

    Attributes
    ----------
    about
        What it is about, in a word, or the name of a matrix.
    said
        What is said of it.
    inner
        Whether it is about a part of what the fact before is about.
    """

    about: str
    said: str
    inner: bool = False


def plan_facts(plan: ConversionPlan, times: str = "x") -> list[Fact]:
    """Of a plan; `times` stands between numbers of obs and vars."""
    settings = plan.settings
    facts = [fact for matrix in plan.matrices for fact in _matrix_plan(matrix, times)]
    if not facts:
        facts = [Fact("matrices", "no CSR matrix: everything will be copied as it is")]
    return [
        *facts,
        *(Fact(name, f"{_FORMS[form]}: will be copied") for name, form in plan.copied.items()),
        *_left_out(plan),
        Fact(
            "memory",
            f"{bytes_text(plan.projected_bytes)} projected of {bytes_text(settings.memory)} with "
            f"{settings.workers} workers; the least is {bytes_text(plan.least_memory_bytes)}",
        ),
        Fact("scratch", f"up to {bytes_text(plan.scratch_bytes)}"),
        Fact("target", _target_of(plan)),
    ]


def result_facts(result: ConversionResult, times: str = "x") -> list[Fact]:
    """Of a conversion that is done."""
    facts = [fact for matrix in result.matrices for fact in _matrix_result(matrix, times)]
    if not facts:
        facts = [Fact("matrices", "no CSR matrix: everything was copied as it is")]
    facts += [Fact(name, f"{_FORMS[form]}: copied") for name, form in result.plan.copied.items()]
    facts += _left_out(result.plan)
    if result.verification is not None:
        facts += verification_facts(result.verification)
    rate = result.nnz / result.seconds / 1e6 if result.seconds else 0.0
    return [
        *facts,
        Fact("time", f"{result.seconds:.1f} s, {rate:.1f} million entries per second"),
        *_memory(result),
        Fact("target", result.target),
        *(
            Fact("abandoned", f"{scratch}; 'dask-convert clean' with that target removes it")
            for scratch in result.abandoned
        ),
    ]


def verification_facts(result: VerificationResult) -> list[Fact]:
    """Of a verification; what differs is not among them."""
    found = "equal to the source"
    if not result.equal:
        found = f"{len(result.differences):,} differences"
    return [
        *(Fact(matrix.name, _compared(matrix)) for matrix in result.matrices),
        Fact("verified", f"{found}, in {result.seconds:.1f} s"),
    ]


def _left_out(plan: ConversionPlan) -> list[Fact]:
    return [Fact("left out", line) for line in plan.left_out]


def _compared(matrix: VerifiedMatrix) -> str:
    samples = [
        f"{nnz:,} with {library}"
        for nnz, library in ((matrix.h5py_nnz, "h5py"), (matrix.zarr_nnz, "zarr-python"))
        if nnz < matrix.nnz
    ]
    again = f"; read again: {', '.join(samples)}" if samples else ""
    return f"{matrix.nnz:,} entries compared{again}"


def _memory(result: ConversionResult) -> Iterator[Fact]:
    """Of this process and those below it; and of workers elsewhere, by what they say themselves."""
    peak, settings = bytes_text(result.peak_bytes), result.plan.settings
    if settings.worker_memory is None:
        yield Fact("memory", f"{peak} at most in samples, of {bytes_text(settings.memory)}")
        return
    yield Fact("memory", f"{peak} at most in samples of this process")
    if result.worker_peaks:
        process, peak_bytes = max(result.worker_peaks.items(), key=lambda item: item[1])
        yield Fact(
            "workers",
            f"{bytes_text(peak_bytes)} at most in one ({process}), of "
            f"{bytes_text(settings.worker_memory)} each; {len(result.worker_peaks):,} processes",
        )


def _target_of(plan: ConversionPlan) -> str:
    settings, size = plan.settings, bytes_text(plan.target_bytes)
    if settings.profile == "cellxgene":
        return f"up to {size} in an h5ad file, and as much meanwhile in the store before it"
    converted = bytes_text(plan.target_bytes - plan.copied_bytes)
    return (
        f"up to {converted} in {plan.target_files:,} files (zarr v{settings.zarr_format}, "
        f"{settings.codec}), and {bytes_text(plan.copied_bytes)} for what is copied"
    )


def _matrix_plan(plan: MatrixPlan, times: str) -> Iterator[Fact]:
    source, layout = plan.source, plan.target
    per_file = f"shard of {layout.shard_nnz:,} entries" if layout.sharded else "chunk"
    yield Fact(
        source.name,
        f"{source.n_obs:,} obs {times} {source.n_vars:,} vars, {source.nnz:,} entries of "
        f"{np.dtype(source.data.dtype).name}, {bytes_text(source.stored_bytes)} stored",
    )
    yield from (
        Fact(about, said, inner=True)
        for about, said in (
            ("split", f"{len(plan.blocks):,} row blocks, {bytes_text(plan.split_bytes)} each"),
            ("combine", f"{len(plan.regions):,} regions, {bytes_text(plan.combine_bytes)} each"),
            ("layout", f"chunks of {layout.chunk_nnz:,} entries, a file per {per_file}"),
        )
    )
    yield from _square_note(source.n_obs, source.n_vars)


def _matrix_result(matrix: MatrixResult, times: str) -> Iterator[Fact]:
    yield Fact(
        matrix.name,
        f"{matrix.n_obs:,} obs {times} {matrix.n_vars:,} vars, {matrix.nnz:,} entries of "
        f"{matrix.data_dtype}",
    )
    split = (
        f"{matrix.split_seconds:.1f} s, {bytes_text(matrix.source_bytes)} read, "
        f"{bytes_text(matrix.fragment_bytes)} of fragments"
    )
    yield Fact("split", split, inner=True)
    written = f"{matrix.combine_seconds:.1f} s, {bytes_text(matrix.target_bytes)} written"
    yield Fact("combine", written, inner=True)
    blocks, regions = matrix.blocks_reused, matrix.regions_reused
    if blocks or regions:
        said = f"{blocks:,} row blocks and {regions:,} regions were there"
        yield Fact("resumed", said, inner=True)
    yield from (Fact("kept", text, inner=True) for text in matrix.findings.texts())
    yield from _square_note(matrix.n_obs, matrix.n_vars)


def _square_note(n_obs: int, n_vars: int) -> Iterator[Fact]:
    if n_obs == n_vars:
        yield Fact("note", SQUARE_NOTE, inner=True)
