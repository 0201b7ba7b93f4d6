"""A file of the reference data set's size: made, converted, checked, held against the floor.

Every step can be run by itself, in this order: what they share is on disk, in the directory and
in the file of results. The check and the floor may be repeated, and the conversion too.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import floors, scans
from benchmarks.measuring import (
    Results,
    Row,
    clocked,
    converter,
    cores,
    disk_usage,
    remove_target,
    run_command,
    say,
    step_rows,
)
from dask_convert.example.synthetic import write_synthetic_h5ad

N_OBS, N_VARS, DENSITY = 1_162_565, 32_285, 0.152
NEEDED_BYTES_PER_NNZ = 8.0
"""Room for the source (2.4), for its fragments and for the target (as much, at most)."""

STEPS = ("make", "convert", "check", "floor", "clean")


@dataclass(frozen=True)
class FullSize:
    """What the steps work on.

    Attributes
    ----------
    results
        Where each step adds a record.
    directory
        For source and target.
    fraction
        Of the reference's cells.
    memory
        Budget of the conversion.
    genes, cells
        How many the check compares bit by bit.
    processes
        Cores of every step.
    """

    results: Results
    directory: Path
    fraction: float = 1.0
    memory: str = "4GiB"
    genes: int = 50
    cells: int = 50
    processes: int = cores()

    @property
    def n_obs(self) -> int:
        """Cells."""
        return round(N_OBS * self.fraction)

    @property
    def source(self) -> Path:
        """The h5ad file."""
        return self.directory / f"full-size-{self.fraction:g}.h5ad"

    @property
    def target(self) -> Path:
        """The store."""
        return self.source.with_suffix(".zarr")

    @property
    def settings(self) -> dict[str, float | str]:
        """What records tell of the settings."""
        return {"fraction": self.fraction, "memory": self.memory, "cores": self.processes}

    def run(self, step: str) -> None:
        """Run one of `STEPS`."""
        seconds, row = clocked(getattr(self, step))
        say(f"{step}: {seconds:.1f} s")
        if row:
            self.results.add(f"Full size: {step}", self.settings, [row])

    def make(self) -> Row:
        """Write the source, if there is room for it and for what is made of it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        needed = int(NEEDED_BYTES_PER_NNZ * self.n_obs * N_VARS * DENSITY)
        if free < needed:
            sys.exit(f"benchmarks: {self.directory} has {free:,} bytes free, {needed:,} are needed")
        seconds, nnz = clocked(
            lambda: write_synthetic_h5ad(
                self.source,
                n_obs=self.n_obs,
                n_vars=N_VARS,
                density=DENSITY,
                processes=self.processes,
                overwrite=True,
            )
        )
        return {
            "cells": self.n_obs,
            "genes": N_VARS,
            "nnz": nnz,
            "source_bytes": self.source.stat().st_size,
            "make_seconds": seconds,
        }

    def convert(self) -> Row:
        """Convert the source, watched."""
        remove_target(self.target)
        options = {"memory": self.memory, "workers": self.processes}
        run = run_command(converter("ours", self.source, self.target, **options)).succeeded()
        report = run.report
        rows = step_rows(run, self.processes)
        self.results.add("Full size: where the time goes", self.settings, rows)
        size_bytes, files = disk_usage(self.target)
        return {
            "nnz": report["nnz"],
            "wall_seconds": run.seconds,
            "split_seconds": report["split_seconds"],
            "combine_seconds": report["combine_seconds"],
            "wall per nnz_ns": 1e9 * run.seconds / report["nnz"],
            "projected_bytes": report["projected_bytes"],
            "peak_bytes": run.peak_bytes,
            "fragment_bytes": report["fragment_bytes"],
            "target_bytes": size_bytes,
            "files": files,
        }

    def check(self) -> Row:
        """Compare the target with the source, by `scans.compare`."""
        seconds, found = clocked(
            lambda: scans.compare(
                self.source,
                self.target,
                genes=self.genes,
                cells=self.cells,
                processes=self.processes,
            )
        )
        return {**found, "check_seconds": seconds}

    def floor(self) -> Row:
        """Measure the floor, and compare it with the last conversion of this size."""
        found = floors.floor(self.source, self.target, self.processes)
        row: Row = {
            "nnz": found.nnz,
            "inflate_seconds": found.inflate_seconds,
            "encode_seconds": found.encode_seconds,
            "floor_seconds": found.seconds,
            "inflated_bytes": found.inflated_bytes,
            "encoded_bytes": found.encoded_bytes,
            "from disk_bytes": found.disk_bytes,
        }
        converted = [
            record["rows"][0]["wall_seconds"]
            for record in self.results.records()
            if record["benchmark"] == "Full size: convert"
            and record["settings"]["fraction"] == self.fraction
        ]
        if converted:
            row |= {"wall_seconds": converted[-1], "wall / floor": converted[-1] / found.seconds}
        return row

    def clean(self) -> None:
        """Remove source and target."""
        self.source.unlink(missing_ok=True)
        remove_target(self.target)
