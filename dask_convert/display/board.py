"""What the dashboard, Prometheus and the report show of running conversions: sums, over time.

    client   BoardFeed, a `run.Progress`  ── events ──►  scheduler   ConversionPlugin → Board
                                                                     page /conversion, Prometheus

A conversion's client tells of every task that is done; nobody else counts. So the work of a
worker that is killed half-way is neither lost, since its finished tasks have been told of, nor
counted twice, since the others have not.

This module is plain data and arithmetic; time is passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

TOPIC = "dask-convert"
"""Dask's name for the stream of events."""

HISTORY_SAMPLES = 2_000
"""Samples that are kept of what changes over time; then every other one is dropped."""

RATE_SECONDS = 10.0
"""What a rate is an average over."""

STEPS = {"source": "read", "fragments": "fragments", "target": "written"}
"""The bytes that people watch: counter of `Meters` to the word for it."""


class MatrixTasks(msgspec.Struct, frozen=True):
    """How much there is to do for one matrix."""

    name: str
    blocks: int
    regions: int
    source_bytes: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """A conversion begins."""

    run: str
    source: str
    target: str
    memory_bytes: int
    worker_bytes: int
    matrices: tuple[MatrixTasks, ...]


class TaskDone(msgspec.Struct, frozen=True, tag=True):
    """A task of it is done, with what it moved."""

    run: str
    matrix: str
    stage: str
    bytes: dict[str, int]


class PartsDone(msgspec.Struct, frozen=True, tag=True):
    """So many parts of a matrix are compared with the source, of so many."""

    run: str
    matrix: str
    done: int
    total: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A conversion has ended, well or not."""

    run: str
    state: str


Event = Started | TaskDone | PartsDone | Ended


class Series:
    """Values of a growing set of names over time, thinned out where there are too many."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._rows: list[dict[str, float]] = []
        self._every = 1
        self._seen = 0

    def add(self, seconds: float, values: dict[str, float]) -> None:
        """Note the values at a time."""
        number, self._seen = self._seen, self._seen + 1
        if number % self._every:
            return
        self.seconds.append(seconds)
        self._rows.append(values)
        if len(self.seconds) > HISTORY_SAMPLES:
            self._every *= 2
            del self.seconds[1::2]
            del self._rows[1::2]

    def of(self, name: str) -> tuple[list[float], list[float]]:
        """Times and values of one name, where it has any."""
        pairs = zip(self.seconds, self._rows, strict=True)
        found = [(seconds, row[name]) for seconds, row in pairs if name in row]
        return [seconds for seconds, _ in found], [value for _, value in found]

    def names(self) -> list[str]:
        """All names that had a value at some time, in order of appearance."""
        return list(dict.fromkeys(name for row in self._rows for name in row))

    def rows(self) -> Iterator[tuple[float, dict[str, float]]]:
        """Times with the values noted then."""
        return zip(self.seconds, self._rows, strict=True)


class Run:
    """One conversion as the dashboard sees it.

    Attributes
    ----------
    started
        What it is.
    done
        Tasks done, by matrix and stage.
    compared
        Parts compared, and all of them, by matrix.
    bytes
        Moved so far, by counter.
    moved, memory
        Bytes moved, and bytes in use by each worker, over the seconds since the start.
    lost_workers
        Workers that went away before the end.
    state
        ``running``, ``done`` or ``failed``.
    """

    def __init__(self, started: Started, now: float) -> None:
        self.started = started
        self.began = now
        self.ended: float | None = None
        self.done: dict[tuple[str, str], int] = {}
        self.compared: dict[str, tuple[int, int]] = {}
        self.bytes: dict[str, int] = dict.fromkeys(STEPS, 0)
        self.moved = Series()
        self.memory = Series()
        self.lost_workers = 0
        self.state = "running"
        self._recent: deque[tuple[float, dict[str, int]]] = deque()

    def seconds(self, now: float) -> float:
        """Since the start, or from start to end."""
        return (now if self.ended is None else self.ended) - self.began

    def stages(self) -> Iterator[tuple[str, int, int]]:
        """Every stage of every matrix: its name, its tasks done, and all of them."""
        for matrix in self.started.matrices:
            for stage, total in (("split", matrix.blocks), ("combine", matrix.regions)):
                yield f"{stage} {matrix.name}", self.done.get((matrix.name, stage), 0), total
        for name, (done, total) in self.compared.items():
            yield f"verify {name}", done, total

    def sample(self, now: float, worker_bytes: dict[str, float]) -> None:
        """Note how things are now."""
        seconds = self.seconds(now)
        self.moved.add(seconds, {name: float(n) for name, n in self.bytes.items()})
        self.memory.add(seconds, worker_bytes)
        self._recent.append((now, dict(self.bytes)))
        while now - self._recent[0][0] > RATE_SECONDS:
            self._recent.popleft()

    def rate(self, name: str) -> float:
        """Bytes per second, lately."""
        if len(self._recent) < 2:
            return 0.0
        (before, old), (now, new) = self._recent[0], self._recent[-1]
        return (new[name] - old[name]) / (now - before) if now > before else 0.0

    def seconds_left(self, now: float) -> float | None:
        """A guess: stages take as long as one another, tasks of a stage too. None: too early."""
        shares = [done / total for _, done, total in self.stages() if total]
        share = sum(shares) / len(shares) if shares else 1.0
        return None if share < 0.02 else self.seconds(now) * (1 - share) / share


class Board:
    """All conversions that a scheduler has heard of.

    Attributes
    ----------
    runs
        By their ids, newest last; the oldest are forgotten.
    total_bytes
        Moved by all of them, also by those forgotten, by counter.
    """

    KEPT = 20

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.total_bytes: dict[str, int] = {}

    def apply(self, event: Event, now: float) -> None:
        """Take note of what a client tells."""
        if isinstance(event, Started):
            self.runs[event.run] = Run(event, now)
            while len(self.runs) > self.KEPT:
                self.runs.pop(next(iter(self.runs)))
            return
        run = self.runs.get(event.run)
        if run is None:  # told of before this scheduler was there
            return
        if isinstance(event, Ended):
            run.state, run.ended = event.state, now
            return
        if isinstance(event, PartsDone):
            run.compared[event.matrix] = (event.done, event.total)
            return
        where = (event.matrix, event.stage)
        run.done[where] = run.done.get(where, 0) + 1
        for name, n_bytes in event.bytes.items():
            run.bytes[name] = run.bytes.get(name, 0) + n_bytes
            self.total_bytes[name] = self.total_bytes.get(name, 0) + n_bytes

    def running(self) -> list[Run]:
        """The runs that have not ended."""
        return [run for run in self.runs.values() if run.ended is None]

    def newest(self) -> Run | None:
        """The run that began last."""
        return next(reversed(self.runs.values()), None)
