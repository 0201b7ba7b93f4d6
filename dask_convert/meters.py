"""Bytes and seconds of each step, and the memory of processes: what a run tells of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil


class Meters(msgspec.Struct):
    """Counters of one task, added up over many.

    Attributes
    ----------
    seconds
        Spent in each step, by its name.
    bytes
        Moved by each step, by its name.
    """

    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    bytes: dict[str, int] = msgspec.field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time that the body takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

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
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total


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


class PeakMemory:
    """Samples memory in a thread while its body runs.

    Parameters
    ----------
    measure
        Gives the bytes in use now.
    interval_seconds
        Between two samples.
    """

    def __init__(
        self, measure: Callable[[], int] = tree_bytes, interval_seconds: float = 0.2
    ) -> None:
        self.peak_bytes = 0
        self._measure = measure
        self._interval_seconds = interval_seconds
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
            self.peak_bytes = max(self.peak_bytes, self._measure())
            if self._done.wait(self._interval_seconds):
                return
