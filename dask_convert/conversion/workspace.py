"""The names of a run, what it leaves for the next one, and how that goes away again.

    .TARGET.dask-convert/        beside the target, on its file system
        lock-000001              see `dask_convert.conversion.locks`
        run.json                 which source, settings and versions: what can be continued;
                                 with the result, from just before the store takes its name
        <token>/store/           the store while it is being built
        <token>/attempts/        files of it while they are written
        replaced/                what had the target's name, until the store has it
    SCRATCH/.TARGET.scratch-<hash of the target's path>/
        owner.json               whose it is
        <token>/                 see `dask_convert.files.scratch`

Names follow from target and scratch alone, so that the same command finds them. The token is
random: a task of an earlier run that somebody forgot to end finds none of its directories.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dask_convert.conversion.locks import is_locked
from dask_convert.engine.results import ConversionResult
from dask_convert.errors import ScratchError
from dask_convert.files.failpoints import reach
from dask_convert.files.fingerprints import SourcePrint
from dask_convert.files.scratch import load_struct, save_struct
from dask_convert.planning.plans import ConversionPlan, Settings

STATE_FORMAT = 1
SHOWN_DIFFERENCES = 6

_TOKEN = re.compile(r"[0-9a-f]{8}")
_ATTEMPT = re.compile(r"\..+\.[0-9a-f]{32}")


class RunState(msgspec.Struct, frozen=True):
    """What an unfinished run was to do; another one continues it if it is to do the same.

    Attributes
    ----------
    format
        Of what is kept on disk.
    version
        Of this package.
    token
        Names the directories of what was begun.
    scratch
        The scratch directory.
    source
        What the source looked like.
    settings
        The user's choices.
    outcome
        The result, from just before the store takes the target's name.
    """

    format: int
    version: str
    token: str
    scratch: str
    source: SourcePrint
    settings: Settings
    outcome: ConversionResult | None = None


class StateVersion(msgspec.Struct, frozen=True):
    """The part of a `RunState` that every version can read."""

    format: int
    version: str


class Owner(msgspec.Struct, frozen=True):
    """Whose a scratch directory is.

    Attributes
    ----------
    target
        Of the run.
    made
        Directories around it that were made for it, innermost first; they go with it.
    """

    target: str
    made: tuple[str, ...] = ()


class Workspace(msgspec.Struct, frozen=True):
    """The names that belong to a target.

    Attributes
    ----------
    target
        The store to make; absolute.
    scratch_parent
        Where scratch is; absolute.
    """

    target: Path
    scratch_parent: Path

    @property
    def directory(self) -> Path:
        """Beside the target."""
        return self.target.with_name(f".{self.target.name}.dask-convert")

    @property
    def scratch(self) -> Path:
        """On scratch."""
        digest = hashlib.blake2b(os.fsencode(self.target), digest_size=4).hexdigest()
        return self.scratch_parent / f".{self.target.name}.scratch-{digest}"

    @property
    def state(self) -> Path:
        """What an unfinished run was to do."""
        return self.directory / "run.json"

    @property
    def replaced(self) -> Path:
        """What had the target's name before."""
        return self.directory / "replaced"

    def store(self, token: str) -> Path:
        """The store while it is being built."""
        return self.directory / token / "store"

    def run_scratch(self, token: str) -> Path:
        """A run's files on scratch."""
        return self.scratch / token


def new_token() -> str:
    """A name for what is begun."""
    return uuid.uuid4().hex[:8]


def begin(space: Workspace, state: RunState) -> None:
    """Make the directories of a new run, private, and then say what it is to do.

    Raises
    ------
    ScratchError
        They cannot be made or lie in the target, or something that is not ours has their names.
    """
    if Path(os.path.realpath(space.scratch_parent)).is_relative_to(os.path.realpath(space.target)):
        msg = f"scratch, {space.scratch_parent}, lies in the target, {space.target}: name another"
        raise ScratchError(msg)
    around = (space.scratch_parent, *space.scratch_parent.parents)
    made = [str(path) for path in around if not path.exists()]
    try:
        _make_scratch(space, made)
        space.run_scratch(state.token).mkdir(mode=0o700)
        reach("scratch: made")
        store = space.store(state.token)
        store.parent.mkdir(mode=0o700)
        store.mkdir()
        store.with_name("attempts").mkdir()
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        msg = f"cannot make a scratch directory in {space.scratch_parent}: {error.strerror}"
        raise ScratchError(msg) from error
    reach("store: made")
    save_struct(space.state, "state", state, durable=True)


def _make_scratch(space: Workspace, made: list[str]) -> None:
    """Make the scratch directory with those around it, and note whose they are."""
    try:
        space.scratch_parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            space.scratch.mkdir(mode=0o700)
        check_ours(space.scratch)
        mark(space, made)
    except BaseException:
        if made and not (space.scratch / "owner.json").exists():  # else they go when it does
            _remove_empty([str(space.scratch), *made])
        raise


def mark(space: Workspace, made: Iterable[str] = ()) -> None:
    """Note in the scratch directory whose it is, and which directories were made for it."""
    path = space.scratch / "owner.json"
    known = load_struct(path, Owner)
    save_struct(path, "state", Owner(str(space.target), (*made, *(known.made if known else ()))))


def _remove_empty(directories: Iterable[str]) -> None:
    for path in directories:
        with suppress(OSError):  # something is in it, or somebody was faster
            Path(path).rmdir()


def check_ours(scratch: Path) -> None:
    """Refuse a scratch directory that somebody else made, or that leads elsewhere.

    Raises
    ------
    ScratchError
        Says which.
    """
    found = scratch.lstat()
    names = list(scratch.iterdir()) if stat.S_ISDIR(found.st_mode) else []
    marked = (scratch / "owner.json").is_file() or all(_ATTEMPT.fullmatch(n.name) for n in names)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not marked:
        msg = f"{scratch} was not made by dask_convert: remove it, or name another scratch"
        raise ScratchError(msg)


def differences(kept: RunState, wanted: RunState) -> list[str]:
    """Where two runs differ, but for memory and workers, which say how and not what.

    What is said of the whole comes before what is said of parts, of which there may be many.
    """
    before, now = (
        dict(_flat(msgspec.structs.replace(state, outcome=None))) for state in (kept, wanted)
    )
    free = {
        *("token", "outcome"),
        *("settings.memory", "settings.workers", "settings.worker_memory"),
    }
    changed = [
        name
        for name in sorted({**before, **now}, key=lambda name: (name.count("."), name))
        if name not in free and before.get(name) != now.get(name)
    ]
    shown = changed[:SHOWN_DIFFERENCES]
    lines = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in shown]
    more = len(changed) - len(shown)
    return [*lines, f"{more} more differ"] if more else lines


def has_finished_work(space: Workspace, token: str) -> bool:
    """Whether any task of a run has ended."""
    return any(space.run_scratch(token).glob("*/*.json"))


def is_shard(path: Path, store: Path, plan: ConversionPlan) -> bool:
    """Whether a path can be a file of a converted matrix's entries."""
    inner = "c" if plan.settings.zarr_format == 3 else "."
    members = {
        store / matrix.source.name / member / inner
        for matrix in plan.matrices
        for member in ("data", "indices")
    }
    return path.name.isdigit() and path.parent in members


def clear_store(store: Path, plan: ConversionPlan) -> None:
    """Remove all of a half-built store but files of entries, which are checked one by one."""
    for directory, _, names in os.walk(store, topdown=False):
        for name in names:
            path = Path(directory, name)
            if not is_shard(path, store, plan):
                path.unlink()
        if Path(directory) != store:
            with suppress(OSError):  # not empty
                Path(directory).rmdir()


def clear_attempts(space: Workspace, token: str) -> None:
    """Remove what killed writers left."""
    for directory in (space.store(token).with_name("attempts"), *_below(space.run_scratch(token))):
        for path in directory.iterdir():
            if _ATTEMPT.fullmatch(path.name):
                path.unlink(missing_ok=True)


def clear(space: Workspace) -> list[Path]:
    """Remove all that runs at this target have left, but for locks and foreign names.

    Returns
    -------
        The directories in which there was something.
    """
    kept = load_struct(space.state, RunState)
    if kept is not None and kept.outcome is not None and space.store(kept.token).exists():
        # Its store goes unpublished: nobody who finds the state alone must think otherwise.
        withdrawn = msgspec.structs.replace(kept, outcome=None)
        save_struct(space.state, "state", withdrawn, durable=True)
    scratches = {space.scratch, *([Path(kept.scratch)] if kept else [])}
    found = [path for path in sorted(scratches) if _clear_scratch(path, space.target)]
    reach("clear: scratch removed")
    mine = [path for path in _below(space.directory) if _TOKEN.fullmatch(path.name)]
    for path in mine:
        shutil.rmtree(path)
    reach("clear: store removed")
    if mine or space.state.exists():
        found.append(space.directory)
    space.state.unlink(missing_ok=True)
    reach("clear: state removed")
    for path in space.directory.glob(".*"):
        if _ATTEMPT.fullmatch(path.name) and not path.name.startswith(".lock."):
            path.unlink(missing_ok=True)
    return found


def abandoned(space: Workspace) -> list[tuple[Path, str]]:
    """Scratch directories beside ours that belong to no living run, and their targets."""
    found = []
    for path in sorted(space.scratch_parent.glob(".*.scratch-*")):
        owner = load_struct(path / "owner.json", Owner)
        if path != space.scratch and owner is not None:
            theirs = Workspace(Path(owner.target), space.scratch_parent)
            if not is_locked(theirs.directory):
                found.append((path, owner.target))
    return found


def tree_bytes(directory: Path) -> int:
    """Size of all files below a directory."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _clear_scratch(scratch: Path, target: Path) -> bool:
    if not os.path.lexists(scratch):
        return False
    check_ours(scratch)
    owner = load_struct(scratch / "owner.json", Owner)
    if owner is not None and owner.target != str(target):
        msg = f"{scratch} belongs to a run at {owner.target}, so it is not removed"
        raise ScratchError(msg)
    for path in scratch.iterdir():
        if _TOKEN.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path)
        elif _ATTEMPT.fullmatch(path.name):
            path.unlink()
    (scratch / "owner.json").unlink(missing_ok=True)
    with suppress(OSError):  # holds something that is not ours
        scratch.rmdir()
    _remove_empty(owner.made if owner is not None else ())
    return True


def _below(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested structs, by their dotted names."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _flat(getattr(value, name), f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, tuple) and any(isinstance(item, msgspec.Struct) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{prefix}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}[{key!r}]")
    else:
        yield prefix, value
