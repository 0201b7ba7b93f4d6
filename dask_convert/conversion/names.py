"""Which paths source, target and scratch may have; others the system would refuse later."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dask_convert.conversion.workspace import Workspace
from dask_convert.errors import ScratchError, SourceError, TargetError

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096 - 512
"""What Linux allows, less the names of what lies below a target or on scratch."""

_TOO_LONG = (
    "its name, or one that is made of it, is too long for the system: choose one that is shorter"
)


def check_names(source: Path | None, target: Path, scratch_parent: Path) -> None:
    """Refuse paths that the system would refuse later on, or for what is made of them.

    Parameters
    ----------
    source
        The h5ad file, if there is one.
    target, scratch_parent
        See `Workspace`.

    Raises
    ------
    SourceError, TargetError, ScratchError
        Says which, and why.
    """
    if source is not None:
        require_text(source)
    if not target.name:
        msg = f"{target} has no name, and what it is made of lies beside it: name a place below it"
        raise TargetError(msg)
    space = Workspace(target, scratch_parent)
    if problem := _problem(space.directory) or _problem(target):
        msg = f"{target} cannot be a target: {problem}"
        raise TargetError(msg)
    if target.parent.is_dir() and not os.access(target.parent, os.W_OK | os.X_OK):
        msg = f"{target} cannot be a target: no permission to write in {target.parent}"
        raise TargetError(msg)
    if problem := _problem(space.scratch):
        msg = f"cannot make a scratch directory in {scratch_parent}: {problem}"
        raise ScratchError(msg)


def _problem(path: Path) -> str:
    """Why nothing of ours can have a path, in words; empty if it can."""
    if not is_text(path):
        return "its name is no UTF-8, or has a NUL: choose another"
    parts = [len(os.fsencode(part)) for part in path.parts]
    if max(parts) > MAX_NAME_BYTES or sum(parts) + len(parts) > MAX_PATH_BYTES:
        return _TOO_LONG
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return _TOO_LONG if error.errno == errno.ENAMETOOLONG else str(error.strerror)
    return ""


def require_text(source: Path) -> None:
    """Refuse a source whose path cannot be told to others.

    Raises
    ------
    SourceError
        Its name is no UTF-8.
    """
    if not is_text(source):
        msg = f"{source}: its name is no UTF-8, in which it is noted and sent: rename it"
        raise SourceError(msg)


def is_text(path: Path) -> bool:
    """Whether a path can be kept as text, and be one of the system's."""
    text = str(path)
    return "\0" not in text and text.encode(errors="replace").decode() == text
