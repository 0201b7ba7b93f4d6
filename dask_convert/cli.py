"""The command line: what each command does. Its options are in `cli_options`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from dask_convert import __version__, cli_dashboard, cli_reading
from dask_convert.cli_frame import HELP_COLUMNS, Command, Commands, json_option, print_json, say
from dask_convert.cli_options import (
    LAYOUT,
    LOG,
    PLACE,
    QUIET,
    RUN,
    TRUST,
    WORKERS,
    matrix_option,
    typed,
)
from dask_convert.errors import VerificationError
from dask_convert.places.worker_start import prepare_workers

_PATH = click.Path(path_type=Path)
_SHELLS = ("bash", "zsh", "fish")
_SETTLED_LATER = ("-h", "--help", "--config", "--workers", "--cluster", "--scheduler")
"""With these, and with dask's own variable, all options must be read to know where workers are."""


class _WorkersFirst(Command):
    """A command that starts local workers before it reads its options, which takes a tenth as long.

    Where dask's configuration names a cluster, that was in vain, and ends with the command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments."""
        settled = args and not ctx.resilient_parsing and "DASK_SCHEDULER_ADDRESS" not in os.environ
        if settled and not any(argument.startswith(_SETTLED_LATER) for argument in args):
            prepare_workers(verifying=self.name == "verify" or "--verify" in args)
        return super().parse_args(ctx, args)


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": HELP_COLUMNS,
    },
)
@click.version_option(__version__, prog_name="dask-convert")
def main() -> None:
    """Turn a cell-by-gene h5ad file into a zarr store that reads genes in milliseconds.

    Example: dask-convert convert cells.h5ad genes.zarr --memory 4GiB
    """
    # No command multiplies matrices, but numpy's OpenBLAS starts a thread for each core, and they
    # spin for a tenth of a second while this process and those of the workers start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@main.command(cls=_WorkersFirst)
@click.argument("source", type=_PATH)
@click.argument("target", type=_PATH)
@PLACE
@LAYOUT
@TRUST
@RUN
@cli_dashboard.with_dashboard
@LOG
@QUIET
@json_option("Print the result as JSON.")
def convert(source: Path, target: Path, *, quiet: bool, as_json: bool, **options: Any) -> None:
    """Convert SOURCE (.h5ad) to TARGET (.zarr), or continue where the same command stopped.

    Example: dask-convert convert cells.h5ad genes.zarr --memory 4GiB
    """
    _prepare(options, verifying=options["verify"])
    from dask_convert import api  # slow to import: after the workers' start
    from dask_convert.display import progress, summary  # slow to import: after the workers' start

    shown = progress.for_terminal(quiet=quiet, plain=as_json)
    dashboard = cli_dashboard.arguments(options, quiet=quiet)
    result = api.convert(source, target, progress=shown, **dashboard, **typed(options))
    if as_json:
        print_json(summary.result_as_json(result))
    elif not quiet:
        say(summary.of_result(result))


@main.command(cls=Command)
@click.argument("source", type=_PATH)
@PLACE
@LAYOUT
@TRUST
@LOG
@click.option("--html", type=_PATH, metavar="FILE", help="Write a page with pictures instead.")
@json_option("Print the whole plan as JSON.")
def plan(source: Path, *, html: Path | None, as_json: bool, **options: Any) -> None:
    """Show what converting SOURCE would take; touches nothing.

    Example: dask-convert plan cells.h5ad --memory 4GiB
    """
    from dask_convert import api
    from dask_convert.display import summary
    from dask_convert.display.side_files import check_page, write_page

    if html is not None:
        check_page(html, source=source)
    planned = api.plan(source, **typed(options))
    if html is not None:
        from dask_convert.display.pages import plan_page

        write_page(html, plan_page(planned, str(source)), source=source)
    if as_json:
        print_json(summary.plan_as_json(planned))
    elif html is None:
        say(summary.of_plan(planned))


@main.command(cls=Command)
@click.argument("target", type=_PATH)
@click.option(
    "--scratch",
    type=_PATH,
    metavar="DIR",
    help="Where its fragments were kept, if that is not known any more.",
)
@json_option("Print the directories that were cleared as JSON.")
def clean(target: Path, scratch: Path | None, *, as_json: bool) -> None:
    """Remove what a dead conversion to TARGET has left; refuses while one is alive.

    TARGET itself stays as it is.

    Example: dask-convert clean genes.zarr
    """
    from dask_convert import api

    cleared = [str(directory) for directory in api.clean(target, scratch=scratch)]
    if as_json:
        print_json({"cleared": cleared})
        return
    for directory in cleared:
        say(f"cleared {directory}")
    if not cleared:
        say(f"found nothing that a dead conversion to {target} has left")


@main.command(cls=_WorkersFirst)
@click.argument("source", type=_PATH)
@click.argument("target", type=_PATH)
@PLACE
@matrix_option("Compare the entries of this sparse matrix only. Repeatable.")
@TRUST
@cli_dashboard.with_dashboard
@LOG
@QUIET
@json_option("Print what was found as JSON.")
def verify(source: Path, target: Path, *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Compare the zarr store TARGET with SOURCE (.h5ad): every entry, every element.

    TARGET may be anybody's work. Ends with code 0 if nothing differs, and 14 if something does.

    Example: dask-convert verify cells.h5ad genes.zarr
    """
    _prepare(options, verifying=True)
    from dask_convert import api
    from dask_convert.display import progress, summary

    on_part = progress.PartLines(quiet=quiet or as_json)
    dashboard = cli_dashboard.arguments(options, quiet=quiet)
    result = api.verify(source, target, on_part=on_part, **dashboard, **typed(options))
    if as_json:
        print_json(summary.verification_as_json(result))
        sys.exit(0 if result.equal else VerificationError.exit_code)
    result.require_equal()
    if not quiet:
        say(summary.of_verification(result))


@main.command(cls=Command)
@click.argument(
    "directory", type=click.Path(path_type=Path, file_okay=False), default=Path("dask-convert-demo")
)
@click.option(
    "--n-obs", type=click.IntRange(min=1), default=20_000, show_default=True, help="Cells."
)
@click.option(
    "--n-vars", type=click.IntRange(min=1), default=8_000, show_default=True, help="Genes."
)
@click.option(
    "--memory",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="What all processes together may use.",
)
@WORKERS
@LOG
def demo(directory: Path, n_obs: int, n_vars: int, memory: str, workers: int | None) -> None:
    """Make an example, convert it, check it against scipy and read a gene.

    Everything goes into DIRECTORY, which must not exist yet.

    Example: dask-convert demo
    """
    from dask_convert.demo import run_demo

    run_demo(directory, n_obs, n_vars, memory=memory, workers=workers, say=say)


@main.command(cls=Command)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands and options of dask-convert.

    Example: dask-convert completion bash >> ~/.bashrc  (or: eval "$(...)" there)
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None  # noqa: S101  (click has had these since version 8)
    say(script(main, {}, "dask-convert", "_DASK_CONVERT_COMPLETE").source())


cli_reading.add_commands(main, Command)


def _prepare(options: dict[str, Any], *, verifying: bool) -> None:
    """Begin to start local workers while everything else is still loading."""
    from dask_convert.places.local_cluster import runs_locally

    if runs_locally(options["workers"], options["cluster"], options["scheduler"], None):
        prepare_workers(verifying=verifying)
