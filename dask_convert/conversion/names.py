"""Which paths source, target and scratch may have; others the system would refuse later."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dask_convert.conversion.workspace import Workspace
from dask_convert.errors import PlanError, ScratchError, SourceError, StoreError, TargetError

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


def check_ending(target: Path, profile: str) -> None:
    """Refuse a name that says that the target is what it will not be.

    Raises
    ------
    PlanError
        Says what is made.
    """
    ending = target.suffix.lower()
    if profile == "cellxgene" and ending == ".zarr":
        msg = f"{target}: the profile cellxgene makes an h5ad file; let its name end in .h5ad"
        raise PlanError(msg)
    if profile != "cellxgene" and ending in {".h5ad", ".h5"}:
        msg = (
            f"{target}: a zarr store is what is made; let its name end in .zarr (the profile "
            "cellxgene makes an h5ad file)"
        )
        raise PlanError(msg)


def check_there(target: Path) -> None:
    """Refuse a name that no store has: a mistyped name is no store that differs.

    Raises
    ------
    StoreError
        Says why it has none.
    """
    try:
        target.lstat()
        problem = "" if target.exists() else "it is a link that leads nowhere"
        problem = problem if is_text(target) else "its name is no UTF-8: rename it"
    except (FileNotFoundError, NotADirectoryError):
        problem = "no such store"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    if problem:
        msg = f"{target}: {problem}"
        raise StoreError(msg)


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
