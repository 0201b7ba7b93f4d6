"""dask_convert against its floor, against reading alone, and against other ways, in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import h5py

from benchmarks import floors, scans
from benchmarks.measuring import (
    Results,
    Row,
    Run,
    converter,
    disk_usage,
    python_module,
    remove_target,
    run_command,
    say,
    step_rows,
)

CONVERT, FLOOR, H5PY = "convert, whole process", "floor", "h5py reads the source"


def ratio(
    results: Results,
    source: Path,
    directory: Path,
    memory: str,
    processes: int,
    repeats: int,
    codec: str,
) -> None:
    """Alternate a conversion, the floor and a read by h5py; add medians and paired ratios.

    Parameters
    ----------
    results
        Where the records go.
    source
        The h5ad file.
    directory
        For the target.
    memory, processes
        Budget of the conversion; cores of the floor and of the conversion.
    repeats
        Rounds; each begins with another of the three, but the very first with the conversion.
    codec
        Of the target.
    """
    target = directory / f"{source.stem}.ratio.zarr"
    command = python_module("dask_convert", "convert", source, target, "--memory", memory)
    command += ["--workers", str(processes), "--codec", codec, "--quiet"]

    def convert() -> float:
        remove_target(target)
        return run_command(command, sampled=False).succeeded().seconds

    halves: list[floors.Floor] = []

    def floor() -> float:
        halves.append(floors.floor(source, target, processes))
        return halves[-1].seconds

    ways: list[tuple[str, Callable[[], float]]] = [
        (CONVERT, convert),
        (FLOOR, floor),
        (H5PY, lambda: floors.h5py_seconds(source)),
    ]
    samples = _alternate(ways, source, repeats)
    nnz = halves[0].nnz
    samples["  of it: inflate"] = [half.inflate_seconds for half in halves]
    samples["  of it: encode"] = [half.encode_seconds for half in halves]
    ratios = {f"convert / {name}": _paired(samples, CONVERT, name) for name in (FLOOR, H5PY)}
    from_disk = max(half.disk_bytes for half in halves) / 2**30
    settings = {"source": source.name, "nnz": nnz, "memory": memory, "cores": processes}
    settings["codec"] = codec
    results.add(
        "Whole process against the floor",
        {**settings, "repeats": repeats, "GiB from disk in the floor": from_disk},
        [
            *(_spread(name, "s", taken, nnz) for name, taken in samples.items()),
            *(_spread(name, "ratio", taken) for name, taken in ratios.items()),
        ],
        samples=samples,
    )
    _steps(results, source, target, settings)


def _alternate(
    ways: list[tuple[str, Callable[[], float]]], source: Path, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every way in every round; each round begins with another."""
    samples: dict[str, list[float]] = {name: [] for name, _ in ways}
    for repeat in range(repeats):
        first = repeat % len(ways)
        for name, measure in [*ways[first:], *ways[:first]]:
            _warm(source)
            samples[name].append(measure())
            say(f"{repeat + 1}/{repeats}  {name}: {samples[name][-1]:.2f} s")
    return samples


def _warm(path: Path) -> None:
    """Read a file into the page cache, so that all begin alike."""
    with path.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass


def _paired(samples: dict[str, list[float]], above: str, below: str) -> list[float]:
    return [a / b for a, b in zip(samples[above], samples[below], strict=True)]


def _spread(what: str, unit: str, values: list[float], nnz: int = 0) -> Row:
    middle = median(values)
    row = {"what": what, "unit": unit, "median": middle, "min": min(values), "max": max(values)}
    return {**row, "wall per nnz_ns": 1e9 * middle / nnz if nnz else None}


def _steps(results: Results, source: Path, target: Path, settings: dict[str, Any]) -> None:
    """One more conversion, for what its tasks say of their steps."""
    remove_target(target)
    _warm(source)
    options = {name: settings[name] for name in ("memory", "codec")}
    options["workers"] = settings["cores"]
    run = run_command(converter("ours", source, target, **options), sampled=False).succeeded()
    remove_target(target)
    rows = step_rows(run, settings["cores"])
    results.add("Where the time goes, over all cores", settings, rows)


def peers(
    results: Results,
    source: Path,
    directory: Path,
    *,
    memory: str,
    processes: int,
    passes: int,
    annizarr_python: Path | None,
    timeout_seconds: float,
) -> None:
    """Run other ways from the same file, each once, after this project; check what they wrote.

    Parameters
    ----------
    results, source, directory, memory, processes
        As for `ratio`.
    passes
        Of the multi-pass script; the rest is projected.
    annizarr_python
        An interpreter that has annizarr; None to leave it out.
    timeout_seconds
        For each of them.
    """
    target = directory / f"{source.stem}.peer.zarr"
    commands: dict[str, list[str | Path]] = {
        "dask_convert": converter("ours", source, target, memory=memory, workers=processes),
        "anndata, in memory": converter("anndata", source, target),
    }
    if annizarr_python is not None:
        annizarr = annizarr_python.parent / "annizarr"
        layout = ["--layout", "csc", "--cpus", str(processes)]
        commands["annizarr"] = [annizarr, "convert", source, "-o", target, *layout]
    rows: list[Row] = []
    for name, command in commands.items():
        run = _fresh(name, command, target, timeout_seconds, ours=name != "annizarr")
        rows.append({"what": name, **_outcome(run)})
        if not run.failure:
            rows[-1] |= dict(zip(("target_bytes", "files"), disk_usage(target), strict=True))
            rows[-1]["equal to source"] = _right(source, target, processes)
    name = f"multi-pass script, projected from {passes}"
    run = _fresh(
        name, converter("multi-pass", source, target, passes=passes), target, timeout_seconds
    )
    rows.append({"what": name, **_outcome(run)})
    if not run.failure:
        rows[-1]["wall_seconds"] += (run.report["all_passes"] - passes) * run.report["pass_seconds"]
    remove_target(target)
    wall = floors.h5py_seconds(source)
    rows.append({"what": "h5py reads the source, nothing else", "wall_seconds": wall})
    for row in rows:
        if row["wall_seconds"] is not None and rows[0]["wall_seconds"]:
            row["times ours"] = row["wall_seconds"] / rows[0]["wall_seconds"]
    with h5py.File(source) as file:
        nnz = int(file["X/data"].shape[0])
    settings = {"source": source.name, "nnz": nnz, "memory": memory, "cores": processes}
    results.add("Other ways", settings, rows)


def _fresh(
    name: str,
    command: list[str | Path],
    target: Path,
    timeout_seconds: float,
    *,
    ours: bool = True,
) -> Run:
    remove_target(target)
    run = run_command(command, timeout_seconds=timeout_seconds, ours=ours)
    say(f"{name}: {run.failure or f'{run.seconds:.1f} s'}")
    return run


def _outcome(run: Run) -> Row:
    return {
        "wall_seconds": None if run.failure else run.seconds,
        "peak_bytes": run.peak_bytes,
        **({"failure": run.failure} if run.failure else {}),
    }


def _right(source: Path, target: Path, processes: int) -> bool:
    found = scans.compare(source, target, genes=20, cells=20, processes=processes)
    say(f"  {found}")
    return all(found.values())
