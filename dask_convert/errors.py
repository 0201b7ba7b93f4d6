"""The exceptions of `dask_convert`: each says what is wrong, where, and what to do.

Every one derives from `DaskConvertError`, so that the command line can turn it into one
readable line and an exit code; anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import errno

SHOWN_DIFFERENCES = 50

INTERRUPTED_EXIT_CODE = 130
"""Of a command that was ended by Ctrl-C or SIGTERM. The same command continues."""

TRANSIENT = frozenset(
    {
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
        *(errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)
"""Numbers of the system's errors that may be gone a moment later."""


class DaskConvertError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1
    resumable = False
    """Whether the same command can go on from what was done before this error."""


class SourceError(DaskConvertError):
    """The source file cannot be converted as it is."""

    exit_code = 3


class AdmissionError(SourceError):
    """The source leads to other files, needs foreign code, or declares more than it holds."""


class StrictError(SourceError):
    """Something unusual, which is kept otherwise, was found where `strict` was asked for."""


class AnnotationError(SourceError):
    """An element beside the converted matrices cannot be copied faithfully."""


class DtypeError(SourceError):
    """A value of the source would change in the data type that was asked for."""


class PlanError(DaskConvertError):
    """The settings contradict each other or name something that is not there."""

    exit_code = 2


class MainGuardError(PlanError):
    """A script starts a conversion where its worker processes would start it again."""


class MemoryBudgetError(PlanError):
    """The memory budget cannot hold even the smallest tasks.

    Parameters
    ----------
    message
        What does not fit.
    least_bytes
        The smallest budget that can be planned for.
    """

    def __init__(self, message: str, least_bytes: int) -> None:
        super().__init__(message, least_bytes)
        self.least_bytes = least_bytes

    def __str__(self) -> str:
        return str(self.args[0])


class TargetError(DaskConvertError):
    """The target cannot be written, or something is in its place."""

    exit_code = 4


class DiskSpaceError(DaskConvertError):
    """Scratch or target directory has too little room."""

    exit_code = 5
    resumable = True


class FragmentError(DaskConvertError):
    """A fragment file, or another one on scratch, is missing, cut short or damaged."""

    exit_code = 6
    resumable = True
    path: str | None = None
    """The fragment file, where one is to blame."""


class ResumeError(DaskConvertError):
    """An unfinished run is in the way, and this command does not continue it."""

    exit_code = 7


class ScratchError(DaskConvertError):
    """Scratch cannot be made where it belongs, or something else is there."""

    exit_code = 12


class LockError(DaskConvertError):
    """Another run works at the same target, or has taken this one's place."""

    exit_code = 8
    resumable = True


class WorkerLostError(DaskConvertError):
    """Workers, or the scheduler, ended while they were needed."""

    exit_code = 9
    resumable = True


class TaskError(DaskConvertError):
    """A task failed in a way that nothing foresaw; names the row block or region."""

    exit_code = 10
    resumable = True


class StorageError(DaskConvertError):
    """The system could not read or write a file."""

    exit_code = 11
    resumable = True


class IntegrityError(DaskConvertError):
    """What was made contradicts the source's own structure: nothing of it is published."""

    exit_code = 13


class VerificationError(DaskConvertError):
    """A store does not hold what its source holds.

    Parameters
    ----------
    target
        The store.
    differences
        What differs, a line each.
    """

    exit_code = 14

    def __init__(self, target: str, differences: tuple[str, ...]) -> None:
        super().__init__(target, differences)
        self.differences = differences

    def __str__(self) -> str:
        shown = [f"  {line}" for line in self.differences[:SHOWN_DIFFERENCES]]
        left = len(self.differences) - len(shown)
        more = [f"  and {left:,} more"] if left else []
        return "\n".join([f"{self.args[0]} differs from its source:", *shown, *more])


class SourceWarning(UserWarning):
    """Something about the source that may be wrong, and cannot be told by looking at it."""


class StoreError(DaskConvertError):
    """The store cannot be read, or not gene by gene."""

    exit_code = 15


class DamagedStoreError(StoreError):
    """A part of the store is missing, cut short, or fails its checksum."""

    what: str | None = None
    """What is wrong, without where, if it is a chunk."""


class SelectionError(DaskConvertError, LookupError):
    """The genes, obs or matrix asked for cannot be told from what was given."""

    exit_code = 16


class UnknownNameError(SelectionError, KeyError):
    """No gene or obs has this name.

    Parameters
    ----------
    message
        What was looked for, and where.
    near
        Names that are there and resemble it.
    """

    def __init__(self, message: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(message, near)
        self.near = near

    def __str__(self) -> str:
        return str(self.args[0])


class AmbiguousNameError(SelectionError):
    """Several genes or obs have this name.

    Parameters
    ----------
    message
        The name, and what it could mean.
    positions
        Of all that have it.
    """

    def __init__(self, message: str, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message, positions)
        self.positions = positions

    def __str__(self) -> str:
        return str(self.args[0])


class ClusterError(DaskConvertError):
    """No cluster can be had, or the one that there is cannot do the work."""

    exit_code = 17
    resumable = True


class NoWorkersError(ClusterError):
    """Workers do not come, or go before they have finished anything."""

    exit_code = 18


class WorkerCheckError(ClusterError):
    """A worker lacks something: source, scratch, memory, a filter or the same packages."""

    exit_code = 19
