"""More workers: what they gain, and what they do while they do nothing, from dask's task stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import Results, Row, converter, remove_target, run_command, say

WHAT = (
    "split and combine",
    "start: until its first task",
    "between two tasks",
    "barrier: others' row blocks",
    "barrier: sums",
    "barrier: until its first region",
    "end: others' regions",
    "end: publish and exit",
)


def workers(
    results: Results,
    source: Path,
    directory: Path,
    budget: str,
    counts: Sequence[int],
    repeats: int,
) -> None:
    """Convert with several numbers of workers in turn; speed-up, and the share of time they idle.

    Parameters
    ----------
    results
        Where the record goes.
    source, directory
        The h5ad file; for targets.
    budget
        Of each conversion.
    counts
        Numbers of workers.
    repeats
        Rounds over all of them.
    """
    target = directory / f"{source.stem}.workers.zarr"
    taken: dict[int, list[float]] = {count: [] for count in counts}
    shares: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for repeat in range(repeats):
        for count in counts:
            remove_target(target)
            command = converter("streamed", source, target, memory=budget, workers=count)
            began = time.time()
            run = run_command(command, sampled=False).succeeded()
            taken[count].append(run.seconds)
            shares[count].append(_shares(run.report["tasks"], began, began + run.seconds, count))
            say(f"{repeat + 1}/{repeats}  {count} workers: {run.seconds:.2f} s")
    remove_target(target)
    first = median(taken[counts[0]])
    rows: list[Row] = [
        {
            "workers": count,
            "wall_seconds": median(taken[count]),
            "min_seconds": min(taken[count]),
            "max_seconds": max(taken[count]),
            "speed-up": first / median(taken[count]),
        }
        for count in counts
    ]
    settings = {"source": source.name, "memory": budget, "repeats": repeats}
    results.add("Workers", settings, rows)
    what = [
        {"where workers' time goes": name}
        | {f"{count} workers, %": 100 * median(s[name] for s in shares[count]) for count in counts}
        | {f"{count} workers_seconds": _seconds(shares, taken, count, name) for count in counts}
        for name in WHAT
    ]
    results.add("Workers: idle", settings, what)


def _seconds(
    shares: dict[int, list[dict[str, float]]], taken: dict[int, list[float]], count: int, name: str
) -> float:
    """Of each worker, the median over runs."""
    pairs = zip(shares[count], taken[count], strict=True)
    return median(share[name] * seconds for share, seconds in pairs)


def _shares(
    tasks: list[dict[str, Any]], began: float, ended: float, count: int
) -> dict[str, float]:
    """Shares of wall time times workers, by what they did or waited for."""
    found = dict.fromkeys(WHAT, 0.0)
    by_worker: dict[str, list[dict[str, Any]]] = {}
    for task in sorted(tasks, key=lambda task: float(task["start"])):
        by_worker.setdefault(task["worker"], []).append(task)
    barrier = next(task for task in tasks if task["kind"] == "barrier")
    last_region = max(task["stop"] for task in tasks)
    for own in by_worker.values():
        found["start: until its first task"] += own[0]["start"] - began
        found["end: others' regions"] += last_region - own[-1]["stop"]
        found["end: publish and exit"] += ended - last_region
        for task in own:
            what = "barrier: sums" if task is barrier else "split and combine"
            found[what] += task["stop"] - task["start"]
        for before, after in itertools.pairwise(own):
            _add_gap(found, before["stop"], after["start"], barrier)
    # A worker that got nothing to do idled all the time.
    found["start: until its first task"] += (count - len(by_worker)) * (ended - began)
    return {name: seconds / (ended - began) / count for name, seconds in found.items()}


def _add_gap(found: dict[str, float], start: float, stop: float, barrier: dict[str, Any]) -> None:
    """Name the parts of a time between two tasks of a worker."""
    if stop < barrier["start"] or start > barrier["stop"]:
        found["between two tasks"] += stop - start
    else:
        found["barrier: others' row blocks"] += max(min(stop, barrier["start"]) - start, 0.0)
        found["barrier: sums"] += max(
            min(stop, barrier["stop"]) - max(start, barrier["start"]), 0.0
        )
        found["barrier: until its first region"] += max(stop - max(start, barrier["stop"]), 0.0)
