"""HDF5's first look at a file, in a process that may die of it.

The C library was not made for damaged files: a wrong byte can send it round in circles or end the
process. So another process reads the file's structure first (`dask_convert.files.hdf5_walk`). It
takes a fraction of a second, and only a file that it survives is opened in this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from dask_convert.errors import SourceError, StorageError
from dask_convert.files.hdf5_walk import UNREADABLE_EXIT_CODE

STEP_SECONDS = 30
"""Processor time that one object, or 16,384 strings, may take."""

_SCRIPT = Path(__file__).with_name("hdf5_walk.py")


def rehearse(path: Path) -> None:
    """Have another process read the structure of an HDF5 file; O(objects + chunks + strings).

    Raises
    ------
    SourceError
        It did not survive; names the object that it was reading.
    StorageError
        It could not do its work, for a reason that lies in the system.
    """
    hidden = {"HDF5_PLUGIN_PATH", "HDF5_PLUGIN_PRELOAD"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-P", str(_SCRIPT), str(path), str(STEP_SECONDS)]
    # No path of plugins at all: not even HDF5's own, which it would search for an unknown filter.
    environment["HDF5_PLUGIN_PRELOAD"] = "::"
    done = _run(command, environment)
    if done.returncode == 0:
        return
    steps = done.stdout.decode(errors="replace").splitlines()
    if done.returncode == UNREADABLE_EXIT_CODE:
        what = "its strings cannot be read"
    elif done.returncode < 0 and done.returncode != -signal.SIGKILL:
        what = f"HDF5 does not survive reading it (signal {-done.returncode})"
    else:
        raise StorageError(_not_done(path, done))
    msg = (
        f"{path}: {steps[-1] if steps else 'the file itself'}: {what}: the file is damaged there; "
        "copy it again, or write it anew"
    )
    raise SourceError(msg)


def _not_done(path: Path, done: subprocess.CompletedProcess[bytes]) -> str:
    """The message about a process that failed for a reason of its own."""
    if done.returncode == -signal.SIGKILL:
        said = "it was killed, as a system without memory does"
    else:
        lines = done.stderr.decode(errors="replace").split("\n")
        said = f"code {done.returncode}: {' '.join(filter(None, lines[-2:]))}"
    return (
        f"{path}: the process that is to read it first did not come to its end ({said}): that says "
        "nothing of the file; is there a limit on memory or processes?"
    )


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603  (this interpreter, a script of ours)
        command,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
