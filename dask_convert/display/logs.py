"""What a run does, by Python's logging: `dask_convert.*` tells, nobody listens unless asked.

The command line's ``--verbose`` and ``--log-file`` listen; programs configure logging themselves.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING

from dask_convert.display.side_files import check_log
from dask_convert.display.telling import tell
from dask_convert.engine.tasks import is_reused
from dask_convert.errors import TargetError

if TYPE_CHECKING:
    from dask_convert.engine.graph import Report
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan

LOGGER = logging.getLogger("dask_convert")
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class LogLines:
    """Logs how a run comes along; a `run.Progress`."""

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        for matrix in plan.matrices:
            LOGGER.info(
                "%s: %d row blocks, %d regions, %d entries",
                matrix.source.name,
                len(matrix.blocks),
                len(matrix.regions),
                matrix.source.nnz,
            )

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        if not LOGGER.isEnabledFor(logging.INFO):
            return
        meters = report.meters
        LOGGER.info(
            "%s: %s in %.2f s by %s%s",
            matrix.source.name,
            type(report).__name__.removesuffix("Report").lower(),
            meters.ended - meters.began,
            meters.process,
            ", was there" if is_reused(report) else "",
        )

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`."""
        LOGGER.info("tasks %s", "ended by an error" if failed else "done")


@contextmanager
def logged(
    path: Path | None,
    *,
    verbose: bool,
    source: Path | None = None,
    target: Path | None = None,
    page: Path | None = None,
) -> Iterator[None]:
    """Log to a file, to the standard error stream, or to neither, while the block runs.

    Parameters
    ----------
    path
        A file that is appended to: times, levels, everything of ours, what dask says in this
        process, its scheduler and nannies among it, and the warnings and errors of all others,
        Python's own among them. Every line is written at once.
    verbose
        Say what happens on the standard error stream.
    source, target, page
        Of the work that is logged; none of them may be written to.

    Raises
    ------
    TargetError
        The file cannot be written, or holds something else than a log. That it cannot be
        written any more costs one line on the standard error stream.
    """
    if path is not None:
        check_log(path, source=source, target=target, page=page)
    with ExitStack() as stack:
        if path is not None or verbose:
            stack.callback(LOGGER.setLevel, LOGGER.level)
            LOGGER.setLevel(logging.INFO)
        if verbose:
            _attach(stack, _Stderr(), [LOGGER])
        if path is not None:
            import distributed  # noqa: F401  (it takes others' handlers off its loggers)

            stack.callback(logging.captureWarnings, False)  # noqa: FBT003  (its only argument)
            logging.captureWarnings(True)  # noqa: FBT003  (its only argument)
            _attach(stack, _file_handler(path), [logging.getLogger(), *_separate()])
        yield


def _attach(stack: ExitStack, handler: logging.Handler, loggers: list[logging.Logger]) -> None:
    stack.callback(handler.close)
    for logger in loggers:
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)


def _file_handler(path: Path) -> logging.Handler:
    try:
        file = _File(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        msg = f"{path}: the log cannot be written: {error.strerror}"
        raise TargetError(msg) from error
    file.setFormatter(logging.Formatter(_FORMAT))
    # dask silences handlers that write to streams, and files count as such: so one stands before.
    return _Passing(file)


def _separate() -> list[logging.Logger]:
    """Loggers that pass nothing on to the root, as dask has made its own."""
    found = logging.Logger.manager.loggerDict.values()
    return [item for item in found if isinstance(item, logging.Logger) and not item.propagate]


class _Passing(MemoryHandler):
    """Passes every record on at once, and closes with what it passes to."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(1, target=target)
        self._file = target

    def close(self) -> None:
        """Close the file as well."""
        super().close()
        self._file.close()


class _File(logging.FileHandler):
    """A log that is refused if its first line fails, and given up if a later one does."""

    _is_begun = _is_given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if self._is_given_up:
            return
        super().emit(record)
        self._is_begun = True

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Tell of it once; the work goes on."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._is_given_up = True
        msg = f"{self.baseFilename}: the log cannot be written: {error.strerror}"
        if not self._is_begun:
            raise TargetError(msg) from error
        tell(f"dask-convert: {msg}")

    def close(self) -> None:
        """Close it; what could not be written is told of already."""
        with suppress(OSError):
            super().close()


class _Stderr(logging.Handler):
    """Writes to what the standard error stream is now, which bars replace while they are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        tell(f"{time.monotonic() - self._started:7.1f} s  {record.getMessage()}")
