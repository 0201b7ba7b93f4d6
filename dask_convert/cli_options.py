"""The options of the command line, by the names that they have in Python and in YAML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from dask_convert.cli_frame import RareOption
from dask_convert.display.telling import tell
from dask_convert.errors import DaskConvertError, PlanError
from dask_convert.planning.layout import DEFAULT_CODEC, Codec
from dask_convert.planning.limits import Limits
from dask_convert.planning.profiles import ProfileName

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_SLURM = "dask_convert.places.slurm"
_FILE = click.Path(path_type=Path, dir_okay=False)


def group_of(*options: _Decorator) -> _Decorator:
    """One decorator of several, in the order of the help."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def rare(*names: str, **settings: Any) -> _Decorator:
    """An option that ``--help`` leaves out and ``--help-all`` has."""
    return click.option(*names, cls=RareOption, **settings)


def typed(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the functions of `api` take them."""
    from dask_convert.places.config import with_changes

    found = {**options, "matrix": options["matrix"] or None}
    if found.get("zarr_format") is not None:
        found["zarr_format"] = int(found["zarr_format"])
    if found["slurm"] and found.get("cluster") != "slurm":
        msg = "--slurm changes the jobs that --cluster slurm starts: give both, or neither"
        raise PlanError(msg)
    configured = click.get_current_context().meta[_SLURM]
    found["slurm"] = with_changes(configured, found["slurm"])
    return found


def _configure(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Make what configuration says the defaults of the other options."""
    from dask_convert.places.config import configured

    try:
        options = configured(path)
    except DaskConvertError as error:
        if context.resilient_parsing:  # the shell completes a line
            return
        tell(f"dask-convert: {error}")
        sys.exit(error.exit_code)
    context.meta[_SLURM] = options.pop("slurm")
    context.default_map = {**(context.default_map or {}), **options}


def _slurm_changes(
    _context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """Names and values of ``name=value``."""
    changes = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            msg = f"{pair!r} is not NAME=VALUE"
            raise click.BadParameter(msg)
        changes[name] = text
    return changes


MEMORY = click.option(
    "--memory",
    metavar="SIZE",
    help="For all processes together, such as 4GiB.  [default: 2GiB; on a cluster what workers "
    "have]",
)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Worker processes; 0 for none.  [default: one per core]",
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")

LOG = group_of(
    click.option("--verbose", "-v", is_flag=True, help="Tell every step, to standard error."),
    click.option(
        "--log-file",
        type=_FILE,
        metavar="FILE",
        help="Append all that happens, with times, warnings and tracebacks.",
    ),
)

PLACE = group_of(
    click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_configure,
        metavar="FILE",
        help="YAML file with a dask-convert section: all of these options by their names.",
    ),
    MEMORY,
    WORKERS,
    click.option(
        "--cluster",
        type=click.Choice(["local", "slurm", "allocation"]),
        help="Where workers are: here, in SLURM jobs that are submitted, or in the SLURM job that "
        "this runs in.  [default: local]",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="A dask scheduler: tcp://…, tls://… or FILE.json.  [default: $DASK_SCHEDULER_ADDRESS]",
    ),
    rare(
        "--slurm",
        multiple=True,
        callback=_slurm_changes,
        metavar="NAME=VALUE",
        help="A setting of SLURM jobs, such as jobs=8 or queue=long. Repeatable.",
    ),
)

TRUST = group_of(
    rare(
        "--allow-external",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Read other files below DIR if SOURCE refers to them. Repeatable.",
    ),
    rare(
        "--allow-plugins",
        is_flag=True,
        default=False,
        help="Run any HDF5 filter that is installed, HDF5_PLUGIN_PATH included.",
    ),
)


def matrix_option(text: str) -> _Decorator:
    """``--matrix``, which means somewhat different things to those who write and compare."""
    return click.option("--matrix", multiple=True, metavar="NAME", help=text)


LAYOUT = group_of(
    matrix_option("Convert only this matrix: X, layers/NAME or raw/X. Repeatable."),
    click.option(
        "--profile",
        type=click.Choice(get_args(ProfileName)),
        default="anndata",
        show_default=True,
        help="Who reads TARGET: anndata, browsers (zarr v2), or cellxgene (an h5ad file).",
    ),
    click.option(
        "--data-dtype",
        metavar="TYPE",
        help="Type of values: same, auto (smallest exact) or a name.  [default: the profile's]",
    ),
    click.option(
        "--strict",
        is_flag=True,
        default=False,
        help="Refuse duplicates, stored zeros, NaN and infinities.",
    ),
    rare("--zarr-format", type=click.Choice(["2", "3"]), help="[default: 3, or the profile's]"),
    rare(
        "--chunk-nnz",
        type=int,
        metavar="N",
        help="Entries per chunk, the least that is read.  [default: 131072, or the profile's]",
    ),
    rare(
        "--shard-nnz",
        type=int,
        metavar="N",
        help="Entries per file; 0: one chunk per file.  [default: chosen, or the profile's]",
    ),
    rare(
        "--codec",
        type=click.Choice(get_args(Codec)),
        default=DEFAULT_CODEC,
        show_default=True,
        help="How chunks are compressed.",
    ),
    rare("--codec-level", type=int, metavar="N", help="[default: lz4 5, zstd 1, gzip 4]"),
)

RUN = group_of(
    click.option(
        "--scratch",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where to keep fragments.  [default: beside TARGET]",
    ),
    click.option("--overwrite", is_flag=True, help="Replace TARGET if dask-convert made it."),
    click.option(
        "--restart", is_flag=True, help="Begin afresh; remove what an unfinished run has kept."
    ),
    click.option(
        "--verify",
        is_flag=True,
        default=False,
        help="Compare every entry with SOURCE before TARGET gets its name.",
    ),
    click.option(
        "--report", type=_FILE, metavar="FILE", help="Write an HTML report, also of a failed run."
    ),
    rare(
        "--no-workers-seconds",
        type=click.FloatRange(min=1),
        default=600.0,
        show_default=True,
        metavar="S",
        help="How long to wait, on a cluster, while there is no worker.",
    ),
    rare(
        "--wait-seconds",
        type=click.FloatRange(min=0),
        default=Limits().wait_seconds,
        show_default=True,
        metavar="S",
        help="For new files to become visible on a network file system.",
    ),
    rare(
        "--worker-ttl-seconds",
        type=click.FloatRange(min=5),
        default=Limits().worker_ttl_seconds,
        show_default=True,
        metavar="S",
        help="Silence after which a local worker counts as lost.",
    ),
)
