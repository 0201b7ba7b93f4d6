"""What verification costs, relative to the conversion that it judges."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.measuring import Results, python_module, remove_target, run_command, say

WAYS = ("convert", "convert --verify", "verify")


def verification(
    results: Results, source: Path, directory: Path, memory: str, processes: int, repeats: int
) -> None:
    """Time each way in turn, round after round; ratios are taken within a round.

    Parameters
    ----------
    results
        Where the record goes.
    source
        The h5ad file.
    directory
        For the target.
    memory, processes
        Budget and workers of all of them.
    repeats
        Rounds.
    """
    target = directory / f"{source.stem}.verified.zarr"
    options = ["--memory", memory, "--workers", str(processes), "--quiet"]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(repeats):
        for way in WAYS:
            command, *flags = way.split()
            if command == "convert":
                remove_target(target)
            arguments = [command, source, target, *options, *flags]
            run = run_command(python_module("dask_convert", *arguments), sampled=False)
            seconds[way].append(run.succeeded().seconds)
            say(f"round {number + 1}: {way} {seconds[way][-1]:.1f} s")
    remove_target(target)
    plain = seconds["convert"]
    rows = [
        {
            "command": way,
            "wall time_seconds": median(seconds[way]),
            "of the conversion": median(
                one / other for one, other in zip(seconds[way], plain, strict=True)
            ),
        }
        for way in WAYS
    ]
    settings = {"source": source.name, "workers": processes, "rounds": repeats}
    results.add("Verification", settings, rows)
