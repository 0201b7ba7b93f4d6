"""Private directories of a run on a cluster: credentials, logs of jobs, and proofs of sharing.

    DIRECTORY/.dask-convert-abcd1234/     beside scratch, and beside the target
        lock-000001                       see `dask_convert.conversion.locks`

They go with the run. A driver that is killed leaves its own; its lock tells that it is dead.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dask_convert.conversion.locks import RunLock, is_locked

_PREFIX = ".dask-convert-"
_NAME = re.compile(rf"{re.escape(_PREFIX)}[a-z0-9_]{{8}}")


@contextmanager
def private_rooms(directories: Iterable[Path]) -> Iterator[list[Path]]:
    """Make a room in each directory, for as long as the block lasts; dead ones there go."""
    places = list(dict.fromkeys(directories))
    clear_dead_rooms(places)
    with ExitStack() as stack:
        made = [Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place)) for place in places]
        for room in made:
            stack.enter_context(RunLock(room, room))
            stack.callback(_empty, room)
        yield made


def clear_dead_rooms(directories: Iterable[Path]) -> list[Path]:
    """Remove rooms of this user whose runs are dead; others, and what only looks so, stay.

    Returns
    -------
        What was removed.
    """
    found = [
        path
        for directory in dict.fromkeys(directories)
        for path in sorted(directory.glob(f"{_PREFIX}*"))
        if _NAME.fullmatch(path.name) and _is_dead(path)
    ]
    for path in found:
        _empty(path)
        shutil.rmtree(path, ignore_errors=True)
    return found


def _is_dead(path: Path) -> bool:
    """Whether there was a run, and is none any more; one that has no lock yet may just begin."""
    with suppress(OSError):
        about = path.lstat()
        ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
        if ours and any(path.glob("lock-*")):
            with tempfile.TemporaryFile(dir=path) as file:
                now = os.fstat(file.fileno()).st_mtime  # by the clock that its lock goes by
            return not is_locked(path, now)
    return False


def _empty(room: Path) -> None:
    """Remove all but the lock, which goes last: without it nobody would know whose it is."""
    with suppress(OSError):
        for path in room.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith("lock-"):
                path.unlink(missing_ok=True)
