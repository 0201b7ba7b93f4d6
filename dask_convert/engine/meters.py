"""Bytes and seconds of each step, and the memory of processes: what a run tells of itself."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil


class Step:
    """Adds the seconds that its body takes to those of a step; entered once for every chunk."""

    __slots__ = ("_name", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds = seconds
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        taken = time.perf_counter() - self._start
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + taken


class Meters(msgspec.Struct):
    """Counters of one task, added up over many.

    Attributes
    ----------
    seconds
        Spent in each step, by its name.
    bytes
        Moved by each step, by its name.
    began, ended
        Of the task, in seconds since the epoch.
    process
        Where it ran: host and process id.
    worker
        Address of dask's worker there, if it is one.
    peak_bytes
        Most memory that this process has ever had resident, when the task ended.
    """

    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    bytes: dict[str, int] = msgspec.field(default_factory=dict)
    began: float = msgspec.field(default_factory=time.time)
    ended: float = 0.0
    process: str = msgspec.field(default_factory=lambda: f"{platform.node()}:{os.getpid()}")
    worker: str = ""
    peak_bytes: int = 0

    def step(self, name: str) -> Step:
        """Add the time that the body takes."""
        return Step(self.seconds, name)

    def count(self, name: str, n_bytes: int) -> None:
        """Add to the bytes of a step."""
        self.bytes[name] = self.bytes.get(name, 0) + n_bytes

    def add(self, other: Meters) -> None:
        """Add another task's counters."""
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        for name, n_bytes in other.bytes.items():
            self.count(name, n_bytes)


def pss_bytes(pids: Collection[int]) -> int:
    """Memory of some processes together, each shared page counted once; Linux.

    The kernel's *proportional set size*, summed. Processes that have ended count nothing.
    """
    total = 0
    for pid in pids:
        with suppress(OSError, StopIteration, ValueError):
            total += _proc_bytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")
    return total


def own_peak_bytes() -> int:
    """Most memory that this process has ever had resident, shared pages included."""
    with suppress(OSError, StopIteration, ValueError):
        return _proc_bytes(Path("/proc/self/status"), "VmHWM:")
    return 0


def _proc_bytes(path: Path, field: str) -> int:
    """A size that the kernel tells in kB, in a line of its own."""
    lines = path.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def tree_bytes() -> int:
    """Memory of this process and all below it: PSS where the kernel tells it, else RSS."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    if Path("/proc/self/smaps_rollup").exists():
        return pss_bytes([process.pid for process in processes])
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


SAMPLING_SHARE = 0.02
"""Of a core, which sampling memory may take where time matters."""


class PeakMemory:
    """Samples memory in a thread while its body runs.

    Parameters
    ----------
    measure
        Gives the bytes in use now.
    interval_seconds
        Between two samples, at least.
    share
        Of a core, which sampling may take: the kernel takes longer the more memory there is.
    """

    def __init__(
        self,
        measure: Callable[[], int] = tree_bytes,
        interval_seconds: float = 0.1,
        share: float = SAMPLING_SHARE,
    ) -> None:
        self.peak_bytes = 0
        self._measure = measure
        self._interval_seconds = interval_seconds
        self._share = share
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            started = time.perf_counter()
            self.peak_bytes = max(self.peak_bytes, self._measure())
            taken_seconds = time.perf_counter() - started
            if self._done.wait(max(self._interval_seconds, taken_seconds / self._share)):
                return
