"""What all commands have in common: help that fits a screen, logs, errors of one line."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dask_convert import __version__
from dask_convert.errors import INTERRUPTED_EXIT_CODE, DaskConvertError, SourceWarning

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

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, and turn errors into lines and exit codes."""
        _collect_garbage_rarely()
        # What a batch system sends before it kills: end as on Ctrl-C, and clear up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        warnings.simplefilter("ignore", SourceWarning)  # it is in what is printed
        log_file, verbose = (ctx.params.pop(name, None) for name in ("log_file", "verbose"))
        ctx.meta[_JSON] = ctx.params.get("as_json", False)
        if not verbose:  # which tells warnings, too
            _show_warnings(ctx)
        try:
            if log_file is None and not verbose:
                return super().invoke(ctx)
            return self._invoke_logged(ctx, log_file, verbose=bool(verbose))
        except DaskConvertError as error:
            _fail(ctx, error, str(error), error.exit_code)

    def _invoke_logged(self, ctx: click.Context, log_file: Path | None, *, verbose: bool) -> Any:
        """Run it with a log; what goes wrong is in it with its traceback."""
        from dask_convert.display.logs import LOGGER, logged

        source, target = ctx.params.get("source"), ctx.params.get("target")
        with logged(log_file, verbose=verbose, source=source, target=target):
            LOGGER.info("dask_convert %s: %s", __version__, " ".join(sys.argv))
            try:
                result = super().invoke(ctx)
            except BaseException as error:
                if log_file is not None and not isinstance(error, SystemExit):
                    LOGGER.exception("%s", _with_notes(error, type(error).__name__))
                raise
            LOGGER.info("done")
            return result


def json_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--json``: the standard output is JSON and nothing else, also if something fails."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def print_json(fields: object) -> None:
    """Write plain data to the standard output."""
    click.echo(json.dumps(fields, indent=2))


class _Warnings(logging.Handler):
    """Tells our own warnings on standard error; errors are told at the end."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if record.levelno == logging.WARNING:
            click.echo(f"dask-convert: {record.getMessage()}", err=True)


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
    click.echo(f"dask-convert: {_with_notes(error, text)}", err=True)
    if ctx.meta.get(_JSON):
        _print_error(error, text, exit_code, resumable=getattr(error, "resumable", True))
    sys.exit(exit_code)


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
