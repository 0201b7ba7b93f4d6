"""A conversion whose target is an h5ad file: first a store, then a file of it, then its name.

    .TARGET.dask-convert/        beside the target
        lock-000001              one run at a time
        store.zarr               the finished store, which the file is written from
        finished.json            that it is finished, and of what
        file.h5ad                the file while it is written
        publishing.json          what it is, and the result, from just before it gets its name

The store is made by `dask_convert.conversion.run`, so it is continued as every conversion. A run
that dies while it writes the file leaves the store, and the same command writes the file again.
Once the file has its name, the same command has only to clear up.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import msgspec
import zarr

from dask_convert.conversion.locks import RunLock
from dask_convert.conversion.publishing import check_free, check_name, new_directories
from dask_convert.conversion.resuming import clean_up, wanted_state
from dask_convert.conversion.workspace import RunState, Workspace, differences, tree_bytes
from dask_convert.engine.results import ConversionResult
from dask_convert.errors import DaskConvertError, TargetError
from dask_convert.files.failpoints import reach
from dask_convert.files.h5ad_writer import check_matrices, made_by_us, write_h5ad
from dask_convert.files.hdf5 import reopen_source
from dask_convert.files.hdf5_sink import write_hdf5
from dask_convert.files.scratch import load_struct, save_struct, storage_errors, sync
from dask_convert.planning.plans import ConversionPlan

MakeStore = Callable[[Path], ConversionResult]


def export(
    source: Path,
    target: Path,
    plan: ConversionPlan,
    make_store: MakeStore,
    *,
    scratch_parent: Path,
    overwrite: bool,
    restart: bool,
) -> ConversionResult:
    """Make an h5ad file whose converted matrices are CSC.

    Parameters
    ----------
    source, target
        Both h5ad files; absolute.
    plan
        Of the conversion to a store.
    make_store
        Converts to a store at the path that it is given, or continues to.
    scratch_parent, overwrite, restart
        See `run.run_conversion`.

    Raises
    ------
    DaskConvertError
        Of the kind that fits. There is then no target. Where the disk has too little room for
        store and file it is a `DiskSpaceError`, before any work.
    """
    started = time.perf_counter()
    room = Workspace(target, scratch_parent).directory
    _refuse_source(source, target)
    if not (room / "publishing.json").exists():
        _check_target(target, overwrite=overwrite)  # before anything is made
    with new_directories(target.parent), RunLock(room, target) as lock:
        try:
            with storage_errors(target.parent):
                wanted = _wanted(source, room, plan, scratch_parent)
                result = None if restart else _published(room, target, wanted)
                if result is None:
                    _check_target(target, overwrite=overwrite)
                    (room / "publishing.json").unlink(missing_ok=True)
                    result = None if restart else _finished(room, wanted)
                    _check_space(room, plan, scratch_parent, is_finished=result is not None)
                    result = result or _made(room, wanted, make_store)
                    _write(room, plan)
                    lock.check()
                    _check_target(target, overwrite=overwrite)
                    seconds = time.perf_counter() - started
                    result = _publish(room, target, wanted, result, seconds)
        except BaseException as error:
            if lock.is_held():  # else it belongs to another run now
                _leave(room, target, error)
            raise
        _remove(room)
    return result


def clean_export(target: Path, scratch_parent: Path) -> list[Path]:
    """Remove what dead exports to a target have left.

    Raises
    ------
    LockError
        One of them is alive.
    """
    room = Workspace(target, scratch_parent).directory
    inner = Workspace(room / "store.zarr", scratch_parent)
    names = ("finished.json", "file.h5ad", "publishing.json")
    left = [inner.directory, inner.target, *(room / name for name in names)]
    if not any(os.path.lexists(path) for path in left):
        return []
    with RunLock(room, target):
        cleared = clean_up(inner)
        _remove(room)
    return [room, *(path for path in cleared if path.parent != room)]


def _refuse_source(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        msg = f"{target} is the source itself: choose another name"
        raise TargetError(msg)


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that may not be made."""
    check_name(target, lambda path: path.is_file() and made_by_us(path), overwrite=overwrite)


def _check_space(
    room: Path, plan: ConversionPlan, scratch_parent: Path, *, is_finished: bool
) -> None:
    """Refuse to begin where the disk cannot hold the file, and the store before it, if that is new.

    Scratch is gone by the time that the file is written; the run that needs it counts it.
    """
    store, file = room / "store.zarr", room / "file.h5ad"
    there_bytes = file.stat().st_size if file.exists() else 0
    if is_finished:
        check_free(room.parent, plan.target_bytes - there_bytes)
        return
    there_bytes += tree_bytes(store) + tree_bytes(Workspace(store, scratch_parent).directory)
    check_free(room.parent, 2 * plan.target_bytes - there_bytes)


def _wanted(source: Path, room: Path, plan: ConversionPlan, scratch_parent: Path) -> RunState:
    """What this run is to do."""
    space = Workspace(room / "store.zarr", scratch_parent)
    with reopen_source(source, plan.settings.trust) as opened:
        return wanted_state(source, opened, space, plan)


def _published(room: Path, target: Path, wanted: RunState) -> ConversionResult | None:
    """The result of a run whose file, which is what is wanted now, has got its name."""
    if (room / "file.h5ad").exists() or not target.exists():
        return None
    return _kept_result(room / "publishing.json", wanted)


def _finished(room: Path, wanted: RunState) -> ConversionResult | None:
    """The result of a conversion to a store that is there and is what is wanted now."""
    if not (room / "store.zarr").is_dir():
        return None
    return _kept_result(room / "finished.json", wanted)


def _kept_result(path: Path, wanted: RunState) -> ConversionResult | None:
    kept = load_struct(path, RunState)
    return None if kept is None or differences(kept, wanted) else kept.outcome


def _made(room: Path, wanted: RunState, make_store: MakeStore) -> ConversionResult:
    """Make the store, and note of what it is the store."""
    _remove(room)
    result = make_store(room / "store.zarr")
    done = msgspec.structs.replace(wanted, outcome=result)
    save_struct(room / "finished.json", "state", done, durable=True)
    reach("export: store finished")
    return result


def _write(room: Path, plan: ConversionPlan) -> None:
    """Write the file and push it to the disk."""
    store, file = room / "store.zarr", room / "file.h5ad"
    root = zarr.open_group(str(store), mode="r")
    compressed = plan.settings.codec != "none"
    write_hdf5(
        file, lambda opened, check: write_h5ad(root, opened, compressed=compressed, check=check)
    )
    reach("export: file written")
    sync(file)
    if plan.settings.verify:
        with h5py.File(file, "r") as opened:
            check_matrices(root, opened)


def _publish(
    room: Path, target: Path, wanted: RunState, stored: ConversionResult, seconds: float
) -> ConversionResult:
    """Give the file its name, after a note by which another run knows that it has it."""
    result = msgspec.structs.replace(stored, target=str(target), seconds=seconds)
    done = msgspec.structs.replace(wanted, outcome=result)
    save_struct(room / "publishing.json", "state", done, durable=True)
    reach("export: file described")
    (room / "file.h5ad").rename(target)
    reach("export: renamed")
    sync(target.parent)
    return result


def _leave(room: Path, target: Path, error: BaseException) -> None:
    """Keep a finished store if the same command can go on from it, or remove everything."""
    _remove_file(room)
    if not (room / "finished.json").exists():
        return  # the conversion to a store has kept what it can
    if isinstance(error, DaskConvertError) and not error.resumable:
        _remove(room)
    else:
        error.add_note(
            "the conversion is kept: the same command continues, and 'dask-convert clean "
            f"{target}' removes it"
        )


def _remove(room: Path) -> None:
    """Remove a finished store; what an unfinished conversion to one has kept stays."""
    _remove_file(room)
    (room / "finished.json").unlink(missing_ok=True)
    reach("export: state removed")
    with suppress(FileNotFoundError):
        shutil.rmtree(room / "store.zarr")
    reach("export: store removed")
    (room / "publishing.json").unlink(missing_ok=True)  # last: until then the same command goes on


def _remove_file(room: Path) -> None:
    """Remove a file that has not got its name; without it, the note would say that it has."""
    if (room / "file.h5ad").exists():
        (room / "publishing.json").unlink(missing_ok=True)
        (room / "file.h5ad").unlink()
