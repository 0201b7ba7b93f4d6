"""The commands that read stores: ``dask-convert gene`` and ``inspect``."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dask_convert.cli_frame import json_option, print_json, say, standard_output
from dask_convert.errors import SelectionError

if TYPE_CHECKING:
    from dask_convert.reading.gene_files import Format

_FORMATS: tuple[Format, ...] = ("csv", "parquet", "npz")


def add_commands(group: click.Group, command_class: type[click.Command]) -> None:
    """Add the commands to the program.

    Parameters
    ----------
    group
        The program.
    command_class
        Turns expected errors into a line and an exit code.
    """
    for command in (_gene_parameters(gene), _inspect_parameters(inspect)):
        group.add_command(click.command(cls=command_class)(command))


def gene(
    target: str,
    names: tuple[str, ...],
    by: str | None,
    matrix: str,
    obs: str | None,
    file_format: Format | None,
    out: Path | None,
) -> None:
    """Read genes, by NAMES, from the store TARGET, a path or URL.

    Example: dask-convert gene genes.zarr Gad1 Gad2 --obs "cell_type == 'B'" --out gad.csv
    """
    from dask_convert.display.side_files import require_apart
    from dask_convert.reading import gene_files
    from dask_convert.reading.store import open_store
    from dask_convert.reading.store_opening import local_path

    chosen = file_format or _format_of(out)
    if chosen != "csv" and out is None:
        msg = f"{chosen} goes into a file: say which by --out FILE"
        raise SelectionError(msg)
    if out is not None:
        require_apart(out, target=local_path(target))
    store = open_store(target)
    selection: dict[str, Any] = {"by": by, "obs": obs, "matrix": matrix}
    if chosen == "npz" and out is not None:
        index, columns = store.labels(list(names), **selection)
        gene_files.save_npz(store.read(list(names), **selection), index, columns, out)
        return
    frame = store.read(list(names), kind="frame", **selection)
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # data are the same in every locale
            sys.stdout.reconfigure(encoding="utf-8", errors="strict")
        with standard_output():
            gene_files.write_csv(frame, sys.stdout)
    else:
        gene_files.save_frame(frame, out, chosen)


def inspect(target: str, *, html: Path | None, as_json: bool) -> None:
    """Show what is in the store TARGET, a path or URL, and what reading a gene takes.

    Example: dask-convert inspect genes.zarr
    """
    import msgspec

    from dask_convert.display.side_files import check_page, write_page
    from dask_convert.reading.describing import described, of_description
    from dask_convert.reading.store import open_store
    from dask_convert.reading.store_opening import local_path

    if html is not None:
        check_page(html, target=local_path(target))
    store = open_store(target)
    found = described(store)
    if html is not None:
        from dask_convert.display.pages import store_page

        write_page(html, store_page(store, found), target=local_path(target))
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif html is None:
        say(of_description(found))


def _gene_parameters(command: Callable[..., Any]) -> Callable[..., Any]:
    parameters = (
        click.argument("target"),
        click.argument("names", nargs=-1, required=True, metavar="NAME..."),
        click.option("--by", metavar="COLUMN", help="Column of var that has the names."),
        click.option(
            "--matrix",
            default="X",
            show_default=True,
            metavar="NAME",
            help="X, layers/NAME or raw/X.",
        ),
        click.option("--obs", metavar="QUERY", help="Condition on columns of obs; see pandas."),
        click.option(
            "--format",
            "file_format",
            type=click.Choice(_FORMATS),
            help="[default: what FILE ends with, or else csv]",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Where to write.  [default: csv to standard output]",
        ),
    )
    for parameter in reversed(parameters):
        command = parameter(command)
    return command


def _inspect_parameters(command: Callable[..., Any]) -> Callable[..., Any]:
    html = click.option(
        "--html",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write a page with pictures instead.",
    )
    as_json = json_option("Print it all as JSON.")
    return click.argument("target")(html(as_json(command)))


def _format_of(out: Path | None) -> Format:
    """What the name of a file says."""
    if out is None:
        return "csv"
    for known in _FORMATS:
        if out.suffix == f".{known}":
            return known
    msg = f"{out}: its ending is none of {', '.join(_FORMATS)}: say which by --format"
    raise SelectionError(msg)
