"""Of all that want a lock one has it, and the dead do not keep it."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from engine import names

from dask_convert.conversion import locks
from dask_convert.conversion.locks import Holder, RunLock, is_locked
from dask_convert.errors import LockError


def write_lock(directory: Path, silent_seconds: float = 0, number: int = 1, **of: object) -> Path:
    """A lock that somebody left."""
    directory.mkdir(exist_ok=True)
    holder = {
        "host": "elsewhere",
        "nonce": "theirs",
        "machine": "other",
        "pid": 1,
        "started_ticks": 1,
        "since": "once",
    }
    path = directory / f"lock-{number:06d}"
    path.write_bytes(msgspec.json.encode({**holder, **of}))
    then = time.time() - silent_seconds
    os.utime(path, (then, then))
    return path


def ended_pid() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_lock_says_who_holds_it_and_goes_with_its_holder(tmp_path: Path) -> None:
    """A second one is refused by name meanwhile; the directory goes too, unless it is in use."""
    directory = tmp_path / "work"
    with RunLock(directory, tmp_path / "target") as lock:
        lock.check()
        assert is_locked(directory)
        (path,) = directory.iterdir()
        holder = msgspec.json.decode(path.read_bytes(), type=Holder)
        assert holder.pid == os.getpid()
        with pytest.raises(LockError, match=rf"target: .*process {os.getpid()} on .*, since 20"):
            RunLock(directory, tmp_path / "target").__enter__()
        assert names(directory) == ["lock-000001"]
    assert names(tmp_path) == []
    assert not is_locked(directory)
    with RunLock(directory, tmp_path / "target"):
        (directory / "kept").touch()
    assert names(directory) == ["kept"]


@pytest.mark.parametrize("kind", ["dead", "reused", "elsewhere", "unreadable"])
def test_a_dead_lock_is_taken_over(tmp_path: Path, kind: str) -> None:
    """At once on this machine, if the process is gone or another one; elsewhere after silence."""
    here = locks._machine()
    if kind == "dead":
        write_lock(tmp_path, machine=here, pid=ended_pid())
    elif kind == "reused":
        write_lock(tmp_path, machine=here, pid=os.getpid(), started_ticks=1)
    elif kind == "elsewhere":
        write_lock(tmp_path, silent_seconds=121)
    else:
        path = write_lock(tmp_path)
        path.write_bytes(b"")
        os.utime(path, (1, 1))
    assert not is_locked(tmp_path)
    with RunLock(tmp_path, tmp_path / "target"):
        assert names(tmp_path) == ["lock-000002"]


@pytest.mark.parametrize("kind", ["here", "elsewhere", "unreadable"])
def test_a_living_lock_is_not_taken_over(tmp_path: Path, kind: str) -> None:
    """However silent on this machine, and for two minutes elsewhere."""
    if kind == "here":
        ticks = locks._started_ticks(os.getpid())
        here = locks._machine()
        write_lock(tmp_path, 10_000, machine=here, pid=os.getpid(), started_ticks=ticks)
    else:
        path = write_lock(tmp_path, silent_seconds=100)
        if kind == "unreadable":
            path.write_bytes(b"{")
    before = names(tmp_path)
    with pytest.raises(LockError):
        RunLock(tmp_path, tmp_path / "target").__enter__()
    assert names(tmp_path) == before


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_want_it_at_once_one_has_it(tmp_path: Path, stale: bool) -> None:
    """Whether it is free or a dead one's; again and again."""
    holders: list[int] = []
    most: list[int] = []
    ready = threading.Barrier(8)

    def take(number: int) -> int:
        ready.wait()
        taken = 0
        for _ in range(20):
            with suppress(LockError), RunLock(tmp_path / "work", tmp_path / "target"):
                holders.append(number)
                most.append(len(holders))
                time.sleep(0.001)
                holders.remove(number)
                taken += 1
        return taken

    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "kept").touch()
    if stale:
        write_lock(tmp_path / "work", silent_seconds=1000, number=41)
    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(take, range(8)))
    assert max(most) == 1
    assert taken == len(most) > 0
    assert names(tmp_path / "work") == ["kept"]


def test_a_holder_beats_and_notices_that_it_was_robbed(tmp_path: Path) -> None:
    """Its file gets younger; once there is a higher one, or none, it stops."""
    with RunLock(tmp_path, tmp_path / "target", heartbeat_seconds=0.01) as lock:
        (path,) = tmp_path.iterdir()
        os.utime(path, (1, 1))
        while path.stat().st_mtime < 2:
            time.sleep(0.01)
        write_lock(tmp_path, number=7)
        with pytest.raises(LockError, match="taken over"):
            lock.check()
        assert lock.lost
    with RunLock(tmp_path / "other", tmp_path / "target") as lock:
        for found in (tmp_path / "other").iterdir():
            found.unlink()
        with pytest.raises(LockError, match="taken over"):
            lock.check()


@pytest.mark.parametrize("before", [[], [41]])
def test_a_name_that_comes_back_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[int]
) -> None:
    """A holder leaves while it is looked at, and another one takes a lock of the same name."""
    for number in before:
        write_lock(tmp_path, silent_seconds=1000, number=number)
    number = before[-1] + 1 if before else 1
    seen = write_lock(tmp_path, number=number)
    living = locks._living
    gone: list[Path] = []

    def leave_and_come_back(path: Path, now: float, stale_seconds: float) -> str | None:
        if path != seen or gone:
            return living(path, now, stale_seconds)
        gone.append(path)
        path.unlink()
        answer = living(path, now, stale_seconds)
        write_lock(tmp_path, number=number, nonce="another's")
        return answer

    monkeypatch.setattr(locks, "_living", leave_and_come_back)
    with pytest.raises(LockError, match="process 1 on elsewhere"):
        RunLock(tmp_path, tmp_path / "target").__enter__()
    assert gone == [seen]
    assert seen.name in names(tmp_path)
    assert b"another's" in seen.read_bytes()


def test_anothers_lock_of_the_same_name_is_not_ones_own(tmp_path: Path) -> None:
    """A robbed holder stops, and leaves the lock of who came after the robber."""
    lock = RunLock(tmp_path, tmp_path / "target")
    with lock:
        (path,) = tmp_path.iterdir()
        path.unlink()
        write_lock(tmp_path)
        with pytest.raises(LockError, match="taken over"):
            lock.check()
    assert names(tmp_path) == ["lock-000001"]


def test_a_lock_that_cannot_be_written_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may have room for a directory, and none for what is to lie in it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"), RunLock(tmp_path / "lock", tmp_path):
        pass
    assert names(tmp_path) == []
