"""Files written beside a conversion, pages and logs: which they may be, and what they spare.

A command that is repeated writes its page again, and a conversion that continues its report: so a
page of ours may be replaced, and nothing else. Source and target are never written to.
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from dask_convert.errors import TargetError
from dask_convert.files.scratch import NO_SPACE, no_space, published, write_all

MARK = b'<meta name="generator" content="dask-convert">'
"""By this a page of ours is known; `templates` have it among their first lines."""

_HEAD_BYTES = 512
_LOGGED = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")

TRIED_BYTES = 2**18
"""What is written, and removed again, to see whether a page can be: about the size of a report."""


def check_page(path: Path, *, source: Path | None = None, target: Path | None = None) -> None:
    """Refuse a name that a page cannot have; before any work.

    Parameters
    ----------
    path
        The page, which may lie in a directory that is made for the target.
    source, target
        Of the work that the page is about, as far as it has them; neither may be written to.

    Raises
    ------
    TargetError, DiskSpaceError
        It would spoil something, or it can be told by trying that it cannot be written.
    """
    real = _place(path, source, target)
    if not real.parent.is_dir():
        return
    try:
        _try_out(real)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(path.parent) from error
        raise _unwritable(path, _words(error)) from error


def write_page(
    path: Path, page: str, *, source: Path | None = None, target: Path | None = None
) -> None:
    """Write a page under its name when it is whole, in the place of one of ours at most.

    Parameters
    ----------
    path, source, target
        See `check_page`.
    page
        HTML that has `MARK` near its begin.

    Raises
    ------
    TargetError, DiskSpaceError
        It cannot be written, or would spoil something.
    """
    real = _place(path, source, target)
    try:
        with published(real) as file:
            write_all(file, page.encode(errors="replace"))
    except OSError as error:
        raise _unwritable(path, _words(error)) from error


def check_log(
    path: Path,
    *,
    source: Path | None = None,
    target: Path | None = None,
    page: Path | None = None,
) -> None:
    """Refuse a file that lines of a log may not be appended to.

    Parameters
    ----------
    path
        The log.
    source, target
        See `check_page`.
    page
        What is written by the same command.

    Raises
    ------
    TargetError
        It is the source, the page, or a part of a store, or holds something else than a log.
    """
    require_apart(path, source=source, target=target)
    if page is not None and _is_same(path, page):
        msg = f"{path} cannot be the log and the page at once; name another file"
        raise TargetError(msg)
    try:
        may_grow = not path.is_file() or _is_log(path)
    except OSError as error:
        msg = f"{path}: the log cannot be written: {_words(error)}"
        raise TargetError(msg) from error
    if not may_grow:
        msg = f"{path} exists already and is no log, so none is appended to it; name another file"
        raise TargetError(msg)


def require_apart(path: Path, *, source: Path | None = None, target: Path | None = None) -> None:
    """Refuse a file that is the source, or a part of the target, by whatever names.

    Raises
    ------
    TargetError
        Says which.
    """
    try:
        problem = _spoilt(path, source, target)
    except (OSError, ValueError) as error:
        problem = _words(error)
    if problem:
        msg = f"{path} cannot be written: {problem}; name another file"
        raise TargetError(msg)


def _spoilt(path: Path, source: Path | None, target: Path | None) -> str:
    """What writing to a path would spoil, in words; empty if nothing."""
    if source is not None and _is_same(path, source):
        return "it is the source"
    if target is not None and _lies_in(path, target):
        return "it belongs to the target"
    if store := _store_around(path):
        return f"it would be a part of the store {store}"
    return ""


def _store_around(path: Path) -> Path | None:
    """The zarr store or group that a path lies in."""
    groups = (
        directory
        for directory in _real(path).parents
        if any((directory / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    )
    return next(groups, None)


def _place(path: Path, source: Path | None, target: Path | None) -> Path:
    """Where a page will be; refuses what it may not replace. A link stays a link."""
    try:
        real = _real(path)
        problem = _spoilt(path, source, target) or _no_file(path, target)
        is_taken = not problem and path.exists() and not _is_ours(path)
    except (OSError, ValueError) as error:
        raise _unwritable(path, _words(error)) from error
    if problem:
        raise _unwritable(path, problem)
    if is_taken:
        msg = (
            f"{path} exists already; remove it, or name another file (only pages that "
            "dask-convert has made are replaced)"
        )
        raise TargetError(msg)
    return real


def _no_file(path: Path, target: Path | None) -> str:
    """Why no file can be there, in words; empty if one can."""
    if path.exists() and not path.is_file():
        return "it is a directory" if path.is_dir() else "it is no regular file"
    made_by_run = () if target is None else target.parents
    if not path.parent.is_dir() and path.parent not in made_by_run:
        return f"there is no directory {path.parent}"
    return ""


def _unwritable(path: Path, problem: str) -> TargetError:
    return TargetError(f"{path}: the page cannot be written there: {problem}; name another file")


def _words(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head.startswith(b"<!DOCTYPE html>") and MARK in head


def _is_log(path: Path) -> bool:
    """Whether a file is empty, or begins with the time of an event as our logs do."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return not head or _LOGGED.match(head) is not None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _lies_in(path: Path, directory: Path) -> bool:
    real = _real(path)
    return any(_is_same(place, directory) for place in (real, *real.parents))


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever names, or would be."""
    if _real(path) == _real(other):
        return True
    return path.exists() and other.exists() and path.samefile(other)


def _try_out(path: Path) -> None:
    """Write as much as a page may need beside its name, and remove it."""
    attempt = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # as long as `published` has it
    try:
        with attempt.open("xb", buffering=0) as file:
            write_all(file, bytes(TRIED_BYTES))
    finally:
        with suppress(OSError):
            attempt.unlink()
