"""The exceptions of `dask_convert`: each says what is wrong, where, and what to do.

Every one derives from `DaskConvertError`, so that the command line can turn it into one
readable line and an exit code; anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class DaskConvertError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class SourceError(DaskConvertError):
    """The source file cannot be converted as it is."""

    exit_code = 3


class AnnotationError(SourceError):
    """An element beside the converted matrices cannot be copied faithfully."""


class DtypeError(SourceError):
    """A value of the source would change in the data type that was asked for."""


class PlanError(DaskConvertError):
    """The settings contradict each other or name something that is not there."""

    exit_code = 2


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


class FragmentError(DaskConvertError):
    """A fragment file on scratch is missing, cut short or damaged."""

    exit_code = 6
