"""How memory follows the budget, how time follows the size, and what layouts cost and give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

import dask_convert
from benchmarks import reading
from benchmarks.measuring import (
    Results,
    Row,
    Run,
    converter,
    disk_usage,
    remove_target,
    run_command,
    say,
)
from dask_convert import open_store
from dask_convert.example.synthetic import write_synthetic_h5ad

PLENTY = "1 TiB"


def memory(
    results: Results,
    sources: Sequence[Path],
    directory: Path,
    budgets: Sequence[str],
    workers: int,
    repeats: int,
) -> None:
    """Convert every source in every budget; hold the measured peak against it.

    Parameters
    ----------
    results
        Where the record goes.
    sources
        The h5ad files.
    directory
        For targets.
    budgets
        ``2GiB`` and the like; ``least`` for the least that can be planned for.
    workers
        Processes of each conversion.
    repeats
        Conversions of each source in each budget; the median of their peaks counts.
    """
    rows: list[Row] = []
    for source in sources:
        least = dask_convert.plan(source, memory=PLENTY, workers=workers).least_memory_bytes
        for budget in budgets:
            budget_bytes = least if budget == "least" else _parsed(budget)
            row: Row = {"source": source.name, "asked": budget, "budget_bytes": budget_bytes}
            rows.append({**row, "least_bytes": least})
            if budget_bytes < least:
                rows[-1]["within"] = "refused"
                continue
            options = {"memory": budget_bytes, "workers": workers}
            runs = [_converted(source, directory, closely=True, **options) for _ in range(repeats)]
            peaks = [run.peak_bytes for run in runs]
            rows[-1] |= {
                "projected_bytes": runs[0].report["projected_bytes"],
                "peak_bytes": median(peaks),
                "least peak_bytes": min(peaks),
                "most peak_bytes": max(peaks),
                "peak / budget": median(peaks) / budget_bytes,
                "within": "yes" if max(peaks) <= budget_bytes else "**NO**",
                "nnz": runs[0].report["nnz"],
            }
            say(f"{source.name} in {budget}: {median(peaks) / 2**20:,.0f} MiB")
    results.add("Memory", {"workers": workers, "repeats": repeats}, rows)


def growth(
    results: Results,
    directory: Path,
    sizes: Sequence[int],
    *,
    n_vars: int,
    density: float,
    budget: str,
    workers: int,
    repeats: int,
) -> None:
    """Convert files of several sizes, made where missing; time per non-zero must not grow.

    Parameters
    ----------
    results
        Where the record goes.
    directory
        For sources, which stay, and targets.
    sizes
        Numbers of cells.
    n_vars, density
        Of every file.
    budget, workers
        Of each conversion.
    repeats
        Rounds over all sizes.
    """
    sources = {n_obs: made(directory, n_obs, n_vars, density) for n_obs in sizes}
    runs: dict[int, list[Run]] = {n_obs: [] for n_obs in sizes}
    for repeat in range(repeats):
        for n_obs, source in sources.items():
            runs[n_obs].append(_converted(source, directory, memory=budget, workers=workers))
            say(f"{repeat + 1}/{repeats}  {n_obs:,} cells: {runs[n_obs][-1].seconds:.2f} s")
    results.add(
        "Growth",
        {"memory": budget, "workers": workers, "repeats": repeats},
        [_growth_row(n_obs, n_vars, found, workers) for n_obs, found in runs.items()],
        samples={str(n_obs): [run.seconds for run in found] for n_obs, found in runs.items()},
    )


def _growth_row(n_obs: int, n_vars: int, runs: list[Run], workers: int) -> Row:
    nnz = runs[0].report["nnz"]
    wall = median(run.seconds for run in runs)
    graph = median(run.report["split_seconds"] + run.report["combine_seconds"] for run in runs)
    return {
        "cells": n_obs,
        "genes": n_vars,
        "nnz": nnz,
        "wall_seconds": wall,
        "graph_seconds": graph,
        "start and end_seconds": wall - graph,
        "wall per nnz_ns": 1e9 * wall / nnz,
        "graph per nnz_ns": 1e9 * graph / nnz,
        "graph × cores per nnz_ns": 1e9 * graph * workers / nnz,
        "peak_bytes": max(run.peak_bytes for run in runs),
    }


def made(directory: Path, n_obs: int, n_vars: int, density: float) -> Path:
    """A synthetic file of this shape, written unless it is there already."""
    path = directory / f"synthetic-{n_obs}x{n_vars}-{density:g}.h5ad"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        say(f"making {path.name}")
        write_synthetic_h5ad(path, n_obs=n_obs, n_vars=n_vars, density=density)
    return path


def layouts(
    results: Results,
    source: Path,
    directory: Path,
    chunk_sizes: Sequence[int],
    shard_sizes: Sequence[int],
    codecs: Sequence[tuple[str, int]],
    *,
    budget: str,
    workers: int,
    genes: int,
) -> None:
    """Convert into several layouts; time it, weigh it, and read random genes from it.

    Parameters
    ----------
    results
        Where the record goes.
    source, directory
        The h5ad file; for targets.
    chunk_sizes, shard_sizes
        Entries per chunk and per file, in all combinations that there can be; 0 for a file per
        chunk, and no shard sizes at all for the default.
    codecs
        Names and levels.
    budget, workers
        Of each conversion.
    genes
        How many to read.
    """
    rows: list[Row] = []
    target = directory / f"{source.stem}.layout.zarr"
    for (codec, level), chunk_nnz, shard_nnz in product(codecs, chunk_sizes, shard_sizes or [None]):
        if shard_nnz and shard_nnz % chunk_nnz:
            continue
        options = {"chunk_nnz": chunk_nnz, "codec": codec, "codec_level": level}
        options |= {} if shard_nnz is None else {"shard_nnz": shard_nnz}
        remove_target(target)
        command = converter("ours", source, target, memory=budget, workers=workers, **options)
        run = run_command(command, sampled=False).succeeded()
        size_bytes, files = disk_usage(target)
        rows.append(
            {
                "codec": f"{codec}-{level}",
                "chunk nnz": chunk_nnz,
                "shard nnz": "default" if shard_nnz is None else shard_nnz,
                "convert_seconds": run.seconds,
                "target_bytes": size_bytes,
                "bytes per nnz": size_bytes / run.report["nnz"],
                "files": files,
                **_gene_milliseconds(target, genes),
            }
        )
        say(f"{codec}-{level}, chunks of {chunk_nnz:,}, files of {shard_nnz}: {run.seconds:.2f} s")
        remove_target(target)
    settings = {"source": source.name, "memory": budget, "workers": workers, "genes read": genes}
    results.add("Layouts", settings, rows)


def _gene_milliseconds(target: Path, genes: int, seed: int = 0) -> Row:
    """Times of reading random genes with this tool and with anndata, warm, and with it cold."""
    os.sync()
    chosen = np.random.default_rng(seed).integers(0, open_store(target).n_vars, genes)
    cold = reading.cold_milliseconds(reading.ours, target, chosen[: reading.COLD])
    warm = reading.warm_milliseconds(reading.ours(target), chosen)
    theirs = reading.warm_milliseconds(reading.anndatas(target), chosen)
    return {
        "gene p50_ms": float(np.percentile(warm, 50)),
        "gene p95_ms": float(np.percentile(warm, 95)),
        "cold p50_ms": float(np.percentile(cold, 50)),
        "anndata p50_ms": float(np.percentile(theirs, 50)),
    }


def _converted(source: Path, directory: Path, *, closely: bool = False, **options: object) -> Run:
    """A watched run of this project; its target is removed."""
    target = directory / f"{source.stem}.scaling.zarr"
    remove_target(target)
    try:
        command = converter("ours", source, target, **options)
        return run_command(command, closely=closely).succeeded()
    finally:
        remove_target(target)


def _parsed(size: str) -> int:
    from dask.utils import parse_bytes

    return int(parse_bytes(size))
