"""What all commands have in common: help that fits a screen, logs, errors of one line."""

from __future__ import annotations

import atexit
import gc
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from dask_convert import __version__
from dask_convert.display.telling import BROKEN, tell
from dask_convert.errors import (
    INTERRUPTED_EXIT_CODE,
    DaskConvertError,
    PlanError,
    SourceWarning,
    StorageError,
)

HELP_COLUMNS = 100
_ALL = "dask_convert.help_all"
_JSON = "dask_convert.json"


class RareOption(click.Option):
    """An option that few need: ``--help`` leaves it out, ``--help-all`` has it."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Its line, if all are wanted."""
        return super().get_help_record(ctx) if ctx.meta.get(_ALL) else None


class Commands(click.Group):
    """All commands; Ctrl-C ends each in a line, also while its arguments are read."""

    def invoke(self, ctx: click.Context) -> Any:
        """Find the command and run it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _fail(ctx, error, "interrupted", INTERRUPTED_EXIT_CODE)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the program; what the system refuses outside of commands is a line as well."""
        _open_standard_streams()
        _require_directory()
        if isinstance(sys.stdout, io.TextIOWrapper):  # words of others may not fit a locale
            sys.stdout.reconfigure(errors="backslashreplace")
        atexit.register(_leave_broken_stream)
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            known = _of_the_system(error)
            tell(f"dask-convert: {known}")
            sys.exit(known.exit_code)


class Command(click.Command):
    """A command whose expected errors are one line and an exit code, not a traceback."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.context_settings = {"max_content_width": HELP_COLUMNS, **self.context_settings}
        if any(isinstance(parameter, RareOption) for parameter in self.params):
            self.params.append(_help_all())

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments; with ``--json`` a mistake in them is JSON, too."""
        as_json = "--json" in args and any(p.name == "as_json" for p in self.params)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if as_json:
                _print_error(error, error.format_message(), error.exit_code, resumable=False)
            raise

    def invoke(self, ctx: click.Context) -> None:
        """Run it, and turn errors into lines and exit codes."""
        _collect_garbage_rarely()
        # What a batch system sends before it kills: end as on Ctrl-C, and clear up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        warnings.simplefilter("ignore", SourceWarning)  # it is in what is printed
        log_file, verbose = (ctx.params.pop(name, None) for name in ("log_file", "verbose"))
        ctx.meta[_JSON] = ctx.params.get("as_json", False)
        if not verbose:  # which tells warnings, too
            _show_warnings(ctx)
        try:
            if log_file is None and not verbose:
                super().invoke(ctx)
            else:
                self._invoke_logged(ctx, log_file, verbose=bool(verbose))
        except DaskConvertError as error:
            _fail(ctx, error, str(error), error.exit_code)
        except BrokenPipeError:
            raise  # see `standard_output`
        except OSError as error:
            known = _of_the_system(error)
            _fail(ctx, known, str(known), known.exit_code)

    def _invoke_logged(self, ctx: click.Context, log_file: Path | None, *, verbose: bool) -> None:
        """Run it with a log; what goes wrong is in it with its traceback."""
        from dask_convert.display.logs import LOGGER, logged

        work = {name: ctx.params.get(name) for name in ("source", "target")}
        page = ctx.params.get("report") or ctx.params.get("html")
        with logged(log_file, verbose=verbose, page=page, **work):
            LOGGER.info("dask_convert %s: %s", __version__, " ".join(sys.argv))
            try:
                super().invoke(ctx)
            except BaseException as error:
                if log_file is not None and not isinstance(error, SystemExit):
                    LOGGER.exception("%s", _with_notes(error, type(error).__name__))
                raise
            LOGGER.info("done")


def json_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--json``: the standard output is JSON and nothing else, also if something fails."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def print_json(fields: object) -> None:
    """Write plain data to the standard output."""
    say(json.dumps(fields, indent=2))


def say(text: str) -> None:
    """Write a result to the standard output."""
    with standard_output():
        click.echo(text)


@contextmanager
def standard_output() -> Iterator[None]:
    """Have all that is written to the standard output arrive there, or the command fail.

    Raises
    ------
    StorageError
        It cannot be written, to a full disk for instance.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever reads has seen enough: click ends without a word
    except OSError as error:
        sys.stdout = None  # would be tried again as the process ends
        msg = f"the standard output cannot be written: {error.strerror}"
        raise StorageError(msg) from error


class _Warnings(logging.Handler):
    """Tells our own warnings on standard error; errors are told at the end."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if record.levelno == logging.WARNING:
            tell(f"dask-convert: {record.getMessage()}")


def _show_warnings(ctx: click.Context) -> None:
    logger, handler = logging.getLogger("dask_convert"), _Warnings()
    logger.addHandler(handler)
    ctx.call_on_close(lambda: logger.removeHandler(handler))


def _help_all() -> click.Option:
    def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            ctx.meta[_ALL] = True
            click.echo(ctx.get_help())
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options, also those that few need.",
    )


def _fail(ctx: click.Context, error: BaseException, text: str, exit_code: int) -> None:
    tell(f"dask-convert: {_with_notes(error, text)}")
    if ctx.meta.get(_JSON):
        with suppress(StorageError):
            _print_error(error, text, exit_code, resumable=getattr(error, "resumable", True))
    sys.exit(exit_code)


def _of_the_system(error: OSError) -> StorageError:
    """An error of the system that nobody has given words to, as one of ours."""
    known = StorageError(f"{error.filename or 'the system'}: {error.strerror or error}")
    for note in getattr(error, "__notes__", ()):
        known.add_note(note)
    return known


def _require_directory() -> None:
    """End where the current directory is gone: neither paths nor workers can be told from it."""
    try:
        Path.cwd()
    except OSError as error:
        tell(f"dask-convert: the current directory is gone ({error.strerror}): change to another")
        sys.exit(PlanError.exit_code)


def _open_standard_streams() -> None:
    """Leave numbers 0 to 2 to no file of ours, which libraries would print into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    if sys.stderr is None:  # libraries take its `write` when they are imported
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _leave_broken_stream() -> None:
    """Have a command end with its own exit code where its words could not be written."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except BROKEN:
        sys.stderr = None


def _print_error(error: BaseException, text: str, exit_code: int, *, resumable: bool) -> None:
    fields = {"type": type(error).__name__, "message": text, "exit_code": exit_code}
    print_json({"error": {**fields, "resumable": resumable}})


def _with_notes(error: BaseException, text: str) -> str:
    """One line of an error and the notes that were added to it."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _collect_garbage_rarely() -> None:
    """Spare a short-lived process most walks through the many objects that libraries are made of.

    Start and end of a conversion take 0.7 s less: at the end all that is left is the system's.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
