"""The command line: ``dask-convert convert``, ``plan`` and ``demo``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dask_convert import __version__
from dask_convert.cluster import prepare_workers
from dask_convert.errors import DaskConvertError
from dask_convert.layout import DEFAULT_CHUNK_NNZ, DEFAULT_CODEC

INTERRUPTED_EXIT_CODE = 130


class _Command(click.Command):
    """A command whose expected errors are one line and an exit code, not a traceback."""

    def invoke(self, context: click.Context) -> Any:
        # What a batch system sends before it kills: end as on Ctrl-C, and clear up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return super().invoke(context)
        except DaskConvertError as error:
            click.echo(f"dask-convert: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("dask-convert: interrupted; nothing was left behind", err=True)
            sys.exit(INTERRUPTED_EXIT_CODE)


def _configure(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Make what configuration says the defaults of the other options."""
    from dask_convert.config import configured

    try:
        context.default_map = {**(context.default_map or {}), **configured(path)}
    except DaskConvertError as error:
        click.echo(f"dask-convert: {error}", err=True)
        sys.exit(error.exit_code)


def _plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `plan` and `convert` share."""
    options = (
        click.option(
            "--config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="YAML file with a dask-convert section.",
        ),
        click.option(
            "--memory",
            default="2GiB",
            show_default=True,
            help="What all processes together may use.",
        ),
        click.option(
            "--workers", type=int, help="Worker processes; 0 for none.  [default: one per core]"
        ),
        click.option(
            "--matrix",
            "matrices",
            multiple=True,
            metavar="NAME",
            help="Convert only this matrix: X, layers/NAME or raw/X. Repeatable.",
        ),
        click.option(
            "--data-dtype",
            default="same",
            show_default=True,
            help="Type of values: same, auto (smallest exact) or a name.",
        ),
        click.option(
            "--zarr-format", type=click.Choice(["2", "3"]), default="3", show_default=True
        ),
        click.option(
            "--chunk-nnz",
            type=int,
            default=DEFAULT_CHUNK_NNZ,
            show_default=True,
            help="Entries per chunk.",
        ),
        click.option(
            "--shard-nnz",
            type=int,
            help="Entries per file; 0: one chunk per file.  [default: chosen]",
        ),
        click.option(
            "--codec",
            type=click.Choice(["lz4", "zstd", "gzip", "none"]),
            default=DEFAULT_CODEC,
            show_default=True,
        ),
        click.option("--codec-level", type=int, help="[default: lz4 5, zstd 1, gzip 4]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dask-convert")
def main() -> None:
    """Turn a cell-by-gene h5ad file into a zarr store that reads genes in milliseconds."""


@main.command(cls=_Command)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@_plan_options
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="Where to keep fragments.  [default: beside TARGET]",
)
@click.option("--overwrite", is_flag=True, help="Replace TARGET if dask-convert made it.")
@click.option(
    "--dashboard-address",
    default="127.0.0.1:0",
    show_default=True,
    help="Host and port of the dask dashboard; 'none' for no dashboard.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def convert(
    source: Path, target: Path, dashboard_address: str, quiet: bool, **options: Any
) -> None:
    """Convert SOURCE (.h5ad) to TARGET (.zarr).

    Example: dask-convert convert cells.h5ad genes.zarr --memory 4GiB
    """
    if options["workers"] != 0:
        prepare_workers()
    from dask_convert import api, progress, summary  # slow to import: after the workers' start

    result = api.convert(
        source,
        target,
        dashboard_address=None if dashboard_address == "none" else dashboard_address,
        progress=progress.for_terminal(quiet=quiet),
        **_typed(options),
    )
    if not quiet:
        click.echo(summary.of_result(result))


@main.command(cls=_Command)
@click.argument("source", type=click.Path(path_type=Path))
@_plan_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
def plan(source: Path, as_json: bool, **options: Any) -> None:
    """Show what converting SOURCE would take; touches nothing.

    Example: dask-convert plan cells.h5ad --memory 4GiB
    """
    from dask_convert import api, summary

    planned = api.plan(source, **_typed(options))
    if as_json:
        click.echo(json.dumps(summary.plan_as_json(planned), indent=2))
    else:
        click.echo(summary.of_plan(planned))


@main.command(cls=_Command)
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
    "--memory", default="2GiB", show_default=True, help="What all processes together may use."
)
@click.option("--workers", type=int, help="Worker processes; 0 for none.  [default: one per core]")
def demo(directory: Path, n_obs: int, n_vars: int, memory: str, workers: int | None) -> None:
    """Make an example, convert it, check it against scipy and read a gene.

    Everything goes into DIRECTORY, which must not exist yet.
    """
    from dask_convert.demo import run_demo

    run_demo(directory, n_obs, n_vars, memory=memory, workers=workers, say=click.echo)


def _typed(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the functions of `api` take them."""
    matrices = options.pop("matrices") or None
    zarr_format = int(options.pop("zarr_format"))
    return {**options, "matrices": matrices, "zarr_format": zarr_format}
