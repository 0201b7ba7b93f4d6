"""The target's name: who may take it, what must hold before, and what happens if power fails."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dask_convert.conversion.workspace import Workspace, tree_bytes
from dask_convert.errors import DiskSpaceError, StorageError, TargetError
from dask_convert.files.failpoints import reach
from dask_convert.files.scratch import sync
from dask_convert.files.zarr_csc import made_by_us
from dask_convert.planning.plans import ConversionPlan

SYNC_THREADS = 8
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that is a URL, or is there already, unless it is ours and may go.

    Raises
    ------
    TargetError
        Says what is there.
    """
    check_name(target, lambda path: path.is_dir() and made_by_us(path), overwrite=overwrite)
    foreign = next(
        (path for path in sorted(target.rglob("*")) if not _is_zarr_key(path, target)), None
    )
    if foreign is not None:
        name = foreign.relative_to(target)
        msg = f"{target} holds {name}, which is no part of a store: remove it yourself"
        raise TargetError(msg)


def check_name(target: Path, is_ours: Callable[[Path], bool], *, overwrite: bool) -> None:
    """Refuse a target, store or file, that is a URL, or is there and may not go.

    Raises
    ------
    TargetError
        Says what is there.
    """
    _refuse_url(target)
    if not os.path.lexists(target):
        return
    if not overwrite:
        msg = f"{target} exists already: choose another name, or replace it by --overwrite"
        raise TargetError(msg)
    if target.is_symlink():
        msg = f"{target} is a link, which is not replaced: give the name that it leads to"
        raise TargetError(msg)
    if not is_ours(target):
        msg = f"{target} was not made by dask_convert, so it is not replaced: remove it yourself"
        raise TargetError(msg)


def _refuse_url(target: Path) -> None:
    """Refuse ``s3://bucket/genes.zarr``, which as a path is a directory ``s3:`` to be made here."""
    for path in target.parents:
        if _SCHEME.fullmatch(path.name) and not path.exists():
            msg = (
                f"{target} seems to be a URL ({path.name}//…): a target is a directory on a file "
                "system; convert to one, and copy it"
            )
            raise TargetError(msg)


@contextmanager
def new_directories(directory: Path) -> Iterator[None]:
    """Make a directory with its parents; those that stay empty go at the end.

    Raises
    ------
    TargetError
        It cannot be made.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make {directory}: {error.strerror}"
        raise TargetError(msg) from error
    try:
        yield
    finally:
        for path in new:  # innermost first; those in use stay
            with suppress(OSError):
                path.rmdir()


def check_space(plan: ConversionPlan, space: Workspace, token: str) -> None:
    """Refuse to begin where the disk cannot hold what is expected beyond what is there.

    Raises
    ------
    DiskSpaceError
        Says where, how much there is, and how much is needed.
    """
    scratch, store = space.run_scratch(token), space.store(token)
    scratch_bytes = max(plan.scratch_bytes - tree_bytes(scratch), 0)
    target_bytes = max(plan.target_bytes - tree_bytes(store), 0)
    needs = [(space.scratch_parent, scratch_bytes), (space.target.parent, target_bytes)]
    if scratch.stat().st_dev == store.stat().st_dev:
        needs = [(space.target.parent, scratch_bytes + target_bytes)]
    for directory, needed in needs:
        check_free(directory, needed)


def check_free(directory: Path, needed_bytes: int) -> None:
    """Refuse to begin where a disk has less room than is needed.

    Raises
    ------
    DiskSpaceError
        Says where, how much there is, and how much is needed.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        msg = (
            f"{directory} has {free_bytes:,} bytes free, and up to {needed_bytes:,} are needed; "
            "make room, or put scratch or target elsewhere"
        )
        raise DiskSpaceError(msg)


def flush(directory: Path) -> None:
    """Make sure that a directory is on disk with all that is below it."""
    paths = [directory, *directory.rglob("*")]
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(sync, paths))
    reach("target: flushed")


def publish(space: Workspace, store: Path, *, overwrite: bool) -> None:
    """Give the finished store its name; what was there before goes only then.

    Two renames where something is replaced: `recover` undoes the first if there is no second.

    Raises
    ------
    TargetError
        Something has the name that may not go.
    StorageError
        The name cannot be taken; what was there is there again, and the store can be published
        by the same command.
    """
    target = space.target
    check_target(target, overwrite=overwrite)
    replaces = target.exists()
    try:
        if replaces:
            target.rename(space.replaced)
            reach("publish: old set aside")
        store.rename(target)
    except OSError as error:
        if replaces and not target.exists():
            space.replaced.rename(target)
        msg = f"{target}: the finished store cannot take its name: {error.strerror}"
        raise StorageError(msg) from error
    reach("publish: renamed")
    sync(target.parent)
    reach("publish: synced")
    if replaces:
        shutil.rmtree(space.replaced)


def recover(space: Workspace, *, is_published: bool) -> None:
    """Finish or undo a replacement that was cut off.

    Parameters
    ----------
    is_published
        Whether the new store has taken the target's name.

    Raises
    ------
    TargetError
        Between the two renames that replace it, something else has taken the target's name.
    """
    if not space.replaced.is_dir():
        return
    if is_published:
        shutil.rmtree(space.replaced)
    elif os.path.lexists(space.target):
        msg = (
            f"{space.target} was about to be replaced, and something else has its name since then; "
            f"the store that had it is {space.replaced}: move one of them away"
        )
        raise TargetError(msg)
    else:
        space.replaced.rename(space.target)
        sync(space.target.parent)


def _is_zarr_key(path: Path, root: Path) -> bool:
    """Whether a path can be a part of a zarr store: a group, metadata or a chunk."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return True
    metadata = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
    is_chunk = path.name == "c" or path.name.replace(".", "").isdigit()
    return path.name in metadata or (is_chunk and path.parent != root)
