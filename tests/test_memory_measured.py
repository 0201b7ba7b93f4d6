"""Memory is what the plan says, measured over all processes while a file is converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import dask_convert
from dask_convert.example.synthetic import write_synthetic_h5ad

MIB = 2**20
N_VARS = 20_000
N_OBS = {"small": 1500, "large": 15_000}
EXTRA_BYTES = 32 * MIB
SCRIPT = Path(__file__).with_name("measured_conversion.py")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two files of count data, one with ten times the entries of the other."""
    directory = tmp_path_factory.mktemp("sources")
    paths = {size: directory / f"{size}.h5ad" for size in N_OBS}
    for size, path in paths.items():
        write_synthetic_h5ad(path, n_obs=N_OBS[size], n_vars=N_VARS, compression_level=1)
    return paths


@pytest.fixture(scope="module")
def measured(
    sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], dict[str, int]]:
    """Converts a source with so many workers, once."""

    @cache
    def converted(size: str, workers: int) -> dict[str, int]:
        target = tmp_path_factory.mktemp("measured") / "target.zarr"
        return measured_conversion(sources[size], target, workers)

    return converted


def measured_conversion(source: Path, target: Path, workers: int) -> dict[str, int]:
    """Convert in a process of its own, in little more than the least memory."""
    command = [
        sys.executable,
        str(SCRIPT),
        str(source),
        str(target),
        str(EXTRA_BYTES),
        str(workers),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(dask_convert.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("workers", [0, 2])
def test_the_measured_peak_is_within_the_projection(
    measured: Callable[[str, int], dict[str, int]], workers: int
) -> None:
    """Of all processes together, with the budget binding."""
    result = measured("large", workers)
    assert result["peak"] <= result["projected"] <= result["budget"], result
    assert result["peak"] > result["projected"] / 5, "nothing was measured"
    assert result["blocks"] > 10, result


def test_ten_times_the_entries_leave_the_peak_as_it_is(
    measured: Callable[[str, int], dict[str, int]],
) -> None:
    """But for 7 %; measured were 224 and 232 MiB, the reason for the difference is open.

    Resident memory: shares of libraries depend on what else runs on the machine.
    """
    small, large = (measured(size, 0) for size in ("small", "large"))
    assert large["nnz"] > 9 * small["nnz"]
    assert large["blocks"] > 5 * small["blocks"] > 5, (small, large)
    assert large["resident"] <= 1.07 * small["resident"], (small, large)
