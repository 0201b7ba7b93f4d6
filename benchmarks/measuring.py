"""Runs a command and says what it took; describes the machine; keeps results as JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks import tables
from dask_convert.engine.meters import SAMPLING_SHARE, PeakMemory, pss_bytes

ROOT = Path(__file__).parents[1]
PACKAGES = ("dask_convert", "anndata", "dask", "deflate", "h5py", "numba", "numcodecs", "zarr")

Row = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """What a command did.

    Attributes
    ----------
    seconds
        Wall time from its start to its end.
    peak_bytes
        Most memory seen in its process tree; 0 if not sampled.
    output
        What it wrote to standard output.
    failure
        Why it has no result; empty if it has one.
    """

    seconds: float
    peak_bytes: int
    output: str
    failure: str

    @property
    def report(self) -> dict[str, Any]:
        """The JSON object on the last line of the output."""
        report: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return report

    def succeeded(self) -> Run:
        """The same, or an end of the program that says what went wrong."""
        if self.failure:
            sys.exit(f"benchmarks: {self.failure}")
        return self


def run_command(
    command: Sequence[str | Path],
    *,
    sampled: bool = True,
    closely: bool = False,
    timeout_seconds: float | None = None,
    ours: bool = True,
) -> Run:
    """Run a command to its end, with all the processes that it starts.

    Parameters
    ----------
    command
        Program and arguments.
    sampled
        Whether to watch memory: the sum of PSS over the tree, every 0.1 s while that takes no
        more than 2 % of a core.
    closely
        Whether to watch it every 20 ms instead, whatever that takes: times mean little then.
    timeout_seconds
        After which the command and all below it are killed.
    ours
        Whether it imports from this repository.
    """
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")] if ours else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    interval_seconds, share = (0.02, 1.0) if closely else (0.1, SAMPLING_SHARE)
    memory = PeakMemory(lambda: _tree_bytes(process.pid), interval_seconds, share)
    try:
        with memory if sampled else nullcontext():
            output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        failure = f"not done after {timeout_seconds:.0f} s"
        output = ""
    else:
        failure = f"exit code {process.returncode}" if process.returncode else ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    return Run(seconds, memory.peak_bytes, output, failure)


def _tree_bytes(pid: int) -> int:
    try:
        root = psutil.Process(pid)
        return pss_bytes([pid, *(child.pid for child in root.children(recursive=True))])
    except psutil.Error:
        return 0


def step_rows(run: Run, workers: int) -> list[Row]:
    """Where the time of a conversion went, by its own report, over all cores; as a table."""
    steps, nnz = run.report["steps"], run.report["nnz"]
    rest = run.seconds * workers - sum(steps.values())
    return [
        {"step": name, "core_seconds": seconds, "core per nnz_ns": 1e9 * seconds / nnz}
        for name, seconds in [*steps.items(), ("all else: start, end, waiting", rest)]
    ]


def python_module(module: str, *arguments: str | Path) -> list[str | Path]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def converter(name: str, source: Path, target: Path, **options: Any) -> list[str | Path]:
    """The command that runs one of `benchmarks.converters`."""
    return python_module("benchmarks.converters", name, source, target, json.dumps(options))


def remove_target(target: Path) -> None:
    """Remove a store, and what a killed conversion left beside it."""
    name = target.name
    for pattern in (name, f".{name}.dask-convert", f".{name}.scratch-*"):
        for path in target.parent.glob(pattern):
            shutil.rmtree(path)


def disk_usage(directory: Path) -> tuple[int, int]:
    """Bytes and number of the files below a directory."""
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "cores": str(cores()),
        "CPU": _cpu_model(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str:
    if package == "dask_convert":
        from dask_convert import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class Results:
    """A JSON file with a list of records, one per benchmark that was run.

    Parameters
    ----------
    path
        Made when the first record comes; later ones are appended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def records(self) -> list[dict[str, Any]]:
        """All records so far, the oldest first."""
        if not self._path.exists():
            return []
        records: list[dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
        return records

    def add(self, benchmark: str, settings: dict[str, Any], rows: list[Row], **more: Any) -> None:
        """Append a record, and print its rows as a table.

        Parameters
        ----------
        benchmark
            Its title.
        settings
            What was chosen.
        rows
            Rows of its table.
        more
            Kept with the record, in no table.
        """
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record: dict[str, Any] = {
            "benchmark": benchmark,
            "when": when,
            "machine": machine(),
            "settings": settings,
        }
        record |= {"rows": rows, **more}
        written = self._path.with_name(f"{self._path.name}.partial")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps([*self.records(), record], indent=1), encoding="utf-8")
        written.replace(self._path)
        print(f"\n{tables.of_record(record)}\n", flush=True)


def say(message: str) -> None:
    """A line of progress."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {message}", file=sys.stderr, flush=True)


def clocked(body: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that `body` takes, and what it returns."""
    started = time.perf_counter()
    result = body()
    return time.perf_counter() - started, result
