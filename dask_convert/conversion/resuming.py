"""Whether a run begins, continues, or has nothing left to do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import h5py
import msgspec

from dask_convert import __version__
from dask_convert.conversion.locks import RunLock
from dask_convert.conversion.publishing import check_target, recover
from dask_convert.conversion.workspace import (
    STATE_FORMAT,
    RunState,
    StateVersion,
    Workspace,
    begin,
    clear,
    differences,
    mark,
    new_token,
)
from dask_convert.errors import ResumeError, ScratchError
from dask_convert.files.fingerprints import source_print
from dask_convert.files.hdf5 import reopen_source
from dask_convert.files.scratch import load_struct
from dask_convert.planning import memory
from dask_convert.planning.plans import ConversionPlan


def start(
    source: Path, space: Workspace, plan: ConversionPlan, *, overwrite: bool, restart: bool
) -> tuple[RunState, ConversionPlan]:
    """Begin a run, or take up one that did not come to its end; the lock must be held.

    Parameters
    ----------
    source
        The h5ad file.
    space
        The names of what is kept.
    plan
        What the command asks for.
    overwrite
        Whether a target of ours may be replaced.
    restart
        Begin afresh, whatever is there.

    Returns
    -------
        What the run is to do, and the plan to do it by: that of the run it continues. The state
        has an outcome if that one came so far as to publish its store.

    Raises
    ------
    ResumeError
        An unfinished run was to do something else; says what.
    TargetError
        The target exists.
    """
    with reopen_source(source, plan.settings.trust) as file:
        wanted = wanted_state(source, file, space, plan)
    kept = _kept(space, restart=restart)
    is_published = kept is not None and _is_published(space, kept)
    recover(space, is_published=is_published)
    if kept is not None and not is_published:
        check_target(space.target, overwrite=overwrite)
        _refuse_differences(space, kept, wanted)
        continued = _continued(space, kept, wanted, plan)
        if continued is not None:
            mark(space)
            return msgspec.structs.replace(kept, settings=plan.settings, outcome=None), continued
    elif kept is not None and not restart and not differences(kept, wanted):
        return kept, plan
    check_target(space.target, overwrite=overwrite)
    clear(space)
    try:
        begin(space, wanted)
    except BaseException:
        with suppress(ScratchError):
            clear(space)
        raise
    return wanted, plan


def clean_up(space: Workspace) -> list[Path]:
    """Remove what dead runs have left; finishes or undoes a replacement that was cut off.

    Returns
    -------
        The directories in which there was something.

    Raises
    ------
    LockError
        A run is alive.
    ScratchError
        A directory was not made by this package.
    """
    left_locks = space.directory.exists()
    if not space.target.parent.is_dir():
        return []
    with RunLock(space.directory, space.target):
        kept = load_struct(space.state, RunState)
        recover(space, is_published=kept is not None and _is_published(space, kept))
        cleared = clear(space)
    return cleared or ([space.directory] if left_locks else [])


def wanted_state(source: Path, file: h5py.File, space: Workspace, plan: ConversionPlan) -> RunState:
    """What a run that begins now is to do."""
    matrices = [matrix.source for matrix in plan.matrices]
    seen = source_print(source, file, matrices, plan.settings.trust)
    return RunState(STATE_FORMAT, __version__, new_token(), str(space.scratch), seen, plan.settings)


def _kept(space: Workspace, *, restart: bool) -> RunState | None:
    """What an earlier run left; None if nothing, or if it cannot be read."""
    version = load_struct(space.state, StateVersion)
    current = StateVersion(STATE_FORMAT, __version__)
    if version is not None and version != current and not restart:
        msg = f"dask_convert was {version.version} and is {current.version}"
        raise _refusal(space, [msg], None)
    kept = load_struct(space.state, RunState)
    if kept is not None and restart and not _is_published(space, kept):
        return None
    return kept


def _is_published(space: Workspace, kept: RunState) -> bool:
    """Whether a run's store has taken the target's name, and only clearing up was left."""
    return (
        kept.outcome is not None and not space.store(kept.token).exists() and space.target.exists()
    )


def _refuse_differences(space: Workspace, kept: RunState, wanted: RunState) -> None:
    different = differences(kept, wanted)
    if different:
        raise _refusal(space, different, kept.scratch)


def _refusal(space: Workspace, different: list[str], scratch: str | None) -> ResumeError:
    msg = (
        f"{space.target}: an unfinished run is kept in {space.directory}"
        f"{f' and {scratch}' if scratch else ''}, but {'; '.join(different)}: give the same "
        "command to continue it, or --restart to begin afresh; 'dask-convert clean "
        f"{space.target}' removes it"
    )
    return ResumeError(msg)


def _continued(
    space: Workspace, kept: RunState, wanted: RunState, plan: ConversionPlan
) -> ConversionPlan | None:
    """The plan of an unfinished run, for the workers and the memory of now; None if it is lost.

    Other workers or another budget would be planned for differently, and what is finished would
    be of no use. So the plan stays, as long as its tasks fit.
    """
    old = load_struct(Path(kept.scratch, kept.token, "plan.json"), ConversionPlan)
    if old is None or not space.store(kept.token).is_dir():
        return None
    now = wanted.settings
    needed = memory.total_bytes(old.task_bytes, now.workers, plan.annotation_bytes)
    if (now.memory, now.workers) != (kept.settings.memory, kept.settings.workers) and (
        needed > now.memory
    ):
        different = (
            f"its tasks need {-(-needed // memory.MIB):,} MiB with {now.workers} workers, and "
            f"memory is {now.memory // memory.MIB:,} MiB"
        )
        raise _refusal(space, [different], kept.scratch)
    return msgspec.structs.replace(old, settings=now)
