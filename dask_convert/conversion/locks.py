"""One run at a time at a target: a lock that says who holds it, and that outlives nobody.

    DIRECTORY/lock-000001      run, host, process and its start; touched every few seconds

Files are made by hard link, which fails if the name is there: that holds on network file systems
too, where locks of the system (flock) cannot be relied upon. Locks have generations, and the
highest counts. To take over a dead run's lock is to make the next one, so that of two who try
one fails; a holder that was merely suspended sees it when it wakes, and stops.

A name comes back: when a holder leaves, the next begins at 1 again. So what was seen under a name
says nothing about it a moment later. Whoever has linked a lock looks at all others once more, the
dead ones included, and of two who did that at once the later one sees the earlier; and a lock is
one's own by what is in it, not by its name.

On the same machine a holder is dead when its process is. Elsewhere only its silence tells.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from dask_convert.errors import LockError
from dask_convert.files.failpoints import reach

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
_TRIES = 20


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock.

    Attributes
    ----------
    host
        Name of the machine, for people.
    nonce
        Random; tells apart those that one process makes.
    machine
        Tells machines, their restarts and containers apart: only on the same one does `pid`
        mean anything.
    pid, started_ticks
        The process, and when it started: pids are used again.
    since
        When the lock was taken, for people.
    """

    host: str
    nonce: str
    machine: str
    pid: int
    started_ticks: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """The lock in a directory; a context manager that holds it.

    Parameters
    ----------
    directory
        Made if it is not there; removed at the end if nothing else is in it.
    subject
        What it protects, for messages.
    heartbeat_seconds, stale_seconds
        How often the holder gives a sign of life, and after what silence it counts as dead.

    Raises
    ------
    LockError
        Another run holds it.
    """

    def __init__(
        self,
        directory: Path,
        subject: Path,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self._directory = directory
        self._subject = subject
        self._heartbeat_seconds = heartbeat_seconds
        self._stale_seconds = stale_seconds
        self._own = directory
        self._content = b""
        self._lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._own = self._acquire()
        except BaseException:
            with suppress(OSError):  # somebody is in it
                self._directory.rmdir()
            raise
        reach("lock: linked")
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()
        if self._is_own():
            self._own.unlink(missing_ok=True)
        with suppress(OSError):  # something is kept in it
            self._directory.rmdir()

    def check(self) -> None:
        """Give a sign of life, and stop if somebody has taken over.

        Raises
        ------
        LockError
            The lock is lost.
        """
        if not self.is_held():
            msg = (
                f"{self._subject}: another run has taken over while this one was suspended, "
                "so this one stops"
            )
            raise LockError(msg)

    def is_held(self) -> bool:
        """Give a sign of life; whether nobody has taken over."""
        self._touch()
        return not self._lost

    @property
    def lost(self) -> bool:
        """Whether the last heartbeat found that somebody has taken over."""
        return self._lost

    def _beat(self) -> None:
        while not self._done.wait(self._heartbeat_seconds):
            self._touch()

    def _touch(self) -> None:
        try:
            os.utime(self._own)
            is_highest = _locks(self._directory)[-1] == self._own
            self._lost = self._lost or not (is_highest and self._is_own())
        except (FileNotFoundError, IndexError):
            self._lost = True
        except OSError:
            pass  # a file system that fails for a moment: the next beat tells

    def _is_own(self) -> bool:
        try:
            return self._own.read_bytes() == self._content
        except FileNotFoundError:
            return False

    def _acquire(self) -> Path:
        self._content = msgspec.json.encode(_myself())
        for _ in range(_TRIES):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            attempt = self._directory / f".lock.{uuid.uuid4().hex}"
            try:
                attempt.write_bytes(self._content)
                own = self._link(attempt)
            except FileNotFoundError:
                continue  # the directory has gone with the run before
            finally:
                attempt.unlink(missing_ok=True)
            if own is not None:
                return own
            time.sleep(0.01)
        msg = f"{self._subject}: its lock in {self._directory} cannot be taken; try again"
        raise LockError(msg)

    def _link(self, attempt: Path) -> Path | None:
        """Make the next lock, if all that are there are dead; None if somebody was faster."""
        now = attempt.stat().st_mtime  # by the clock of the file system, as those of all locks
        dead = _locks(self._directory)
        self._refuse(dead, now)
        own = self._directory / f"lock-{_generation(dead[-1]) + 1 if dead else 1:06d}"
        try:
            own.hardlink_to(attempt)
        except FileExistsError:
            return None
        # Whoever came meanwhile did not see ours: a holder may have left, and others begun anew,
        # under a name that we took for a dead one's.
        others = [path for path in _locks(self._directory) if path != own]
        try:
            self._refuse(others, now)
        except LockError:
            own.unlink(missing_ok=True)
            raise
        for path in others:
            path.unlink(missing_ok=True)
        return own

    def _refuse(self, paths: list[Path], now: float) -> None:
        for path in paths:
            holder = _living(path, now, self._stale_seconds)
            if holder is not None:
                msg = (
                    f"{self._subject}: another run works at it ({holder}): wait for it, or end it "
                    "first"
                )
                raise LockError(msg)


def is_locked(directory: Path, now: float | None = None) -> bool:
    """Whether a living run holds the lock in a directory; `now` by its file system's clock."""
    locks = _locks(directory)
    now = time.time() if now is None else now
    return any(_living(path, now, STALE_SECONDS) is not None for path in locks)


def _locks(directory: Path) -> list[Path]:
    """Locks, the highest generation last."""
    try:
        return sorted(path for path in directory.iterdir() if path.name.startswith("lock-"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _generation(path: Path) -> int:
    digits = path.name.removeprefix("lock-")
    return int(digits) if digits.isdigit() else 0


def _living(path: Path, now: float, stale_seconds: float) -> str | None:
    """Who holds a lock, if they live."""
    try:
        silent_seconds = now - path.stat().st_mtime
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        holder = msgspec.json.decode(content, type=Holder)
    except msgspec.DecodeError:  # cut off by a loss of power
        return "an unreadable lock" if silent_seconds < stale_seconds else None
    if holder.machine == _machine():
        return str(holder) if _started_ticks(holder.pid) == holder.started_ticks else None
    return str(holder) if silent_seconds < stale_seconds else None


def _myself() -> Holder:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    started_ticks = _started_ticks(os.getpid())
    return Holder(
        host=platform.node(),
        nonce=uuid.uuid4().hex,
        machine=_machine(),
        pid=os.getpid(),
        started_ticks=started_ticks or 0,
        since=since,
    )


def _machine() -> str:
    """The machine, its present start, and the numbering of processes that we see."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started_ticks(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
