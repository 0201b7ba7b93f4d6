"""Settings from YAML: the ``dask-convert`` section of dask's own configuration.

What dask reads anyway (``~/.config/dask/*.yaml``, ``DASK_DASK_CONVERT__MEMORY=4GiB`` and so on)
counts, then a file that was named, then the command line. Nothing is written anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import dask
import msgspec
import yaml

from dask_convert.errors import PlanError
from dask_convert.layout import Codec

SECTION = "dask-convert"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The options that a file may hold; named, and meant, as on the command line."""

    memory: int | str | None = None
    workers: int | None = None
    matrix: list[str] | None = None
    data_dtype: str | None = None
    zarr_format: Literal[2, 3] | None = None
    chunk_nnz: int | None = None
    shard_nnz: int | None = None
    codec: Codec | None = None
    codec_level: int | None = None
    scratch: str | None = None
    dashboard_address: str | None = None


def configured(path: Path | None) -> dict[str, Any]:
    """The options that configuration sets, by the names of the command line's parameters.

    Parameters
    ----------
    path
        A YAML file with a ``dask-convert`` section; it goes before dask's own configuration.

    Raises
    ------
    PlanError
        The file cannot be read, or an option is unknown or of the wrong type; names its path.
    """
    section = _normal(dask.config.get(SECTION, {}) or {}, "dask's configuration")
    if path is not None:
        section |= _normal(_read(path).get(SECTION) or {}, str(path))
    options = msgspec.structs.asdict(msgspec.convert(section, Options))
    options["matrices"] = options.pop("matrix")
    return {name: value for name, value in options.items() if value is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        msg = f"{path}: cannot be read as YAML: {error}"
        raise PlanError(msg) from error
    if not isinstance(content, dict) or SECTION not in content:
        msg = f"{path}: has no section '{SECTION}'"
        raise PlanError(msg)
    return content


def _normal(section: Any, where: str) -> dict[str, Any]:
    """A section's options, checked, by their names with hyphens."""
    if isinstance(section, dict):
        section = {str(name).replace("_", "-"): value for name, value in section.items()}
    try:
        msgspec.convert(section, Options)
    except msgspec.ValidationError as error:
        text = str(error).replace("`$", f"`{SECTION}")
        msg = f"{where}: {text}"
        raise PlanError(msg) from error
    return dict(section)
