"""Settings from YAML: the ``dask-convert`` section of dask's own configuration.

The defaults come with the package (``defaults.yaml``); before them goes what dask reads anyway
(``~/.config/dask/*.yaml``, ``DASK_DASK_CONVERT__MEMORY=4GiB`` and so on), then a file that was
named, then the command line. Nothing is written anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import dask
import msgspec
import yaml

from dask_convert.errors import PlanError
from dask_convert.places.slurm_settings import SlurmSettings, parsed_bytes
from dask_convert.planning.layout import Codec
from dask_convert.planning.profiles import ProfileName

SECTION = "dask-convert"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The options that a file may hold; named, and meant, as on the command line."""

    memory: int | str | None = None
    workers: int | None = None
    cluster: Literal["local", "slurm", "allocation"] | None = None
    scheduler: str | None = None
    no_workers_seconds: float | None = None
    slurm: SlurmSettings | None = None
    matrix: str | list[str] | None = None
    profile: ProfileName | None = None
    data_dtype: str | None = None
    zarr_format: Literal[2, 3] | None = None
    chunk_nnz: int | None = None
    shard_nnz: int | None = None
    codec: Codec | None = None
    codec_level: int | None = None
    strict: bool | None = None
    allow_external: list[str] | None = None
    allow_plugins: bool | None = None
    scratch: str | None = None
    wait_seconds: float | None = None
    worker_ttl_seconds: float | None = None
    verify: bool | None = None
    dashboard_address: str | None = None
    keep_dashboard_open: bool | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        if self.memory is not None:
            parsed_bytes("memory", self.memory)
        for name in self.__struct_fields__:
            _refuse_nul(name, getattr(self, name))


def configured(path: Path | None = None) -> dict[str, Any]:
    """The options that configuration sets, by the names of the command line's parameters.

    Parameters
    ----------
    path
        A YAML file with a ``dask-convert`` section; it goes before dask's own configuration.

    Raises
    ------
    PlanError
        The file cannot be read, or an option is unknown or of the wrong type or unit; names
        its path.
    """
    section = _normal(dask.config.get(SECTION, {}) or {}, "dask's configuration")
    section = dask.config.merge(_defaults(), section)
    if path is not None:
        own = _normal(_read(path).get(SECTION) or {}, str(path))
        section = dask.config.merge(section, own)
    # With all parts together a value that one part has, and another one not, counts.
    options = msgspec.structs.asdict(_options(section, "the configuration"))
    if isinstance(options["matrix"], str):
        options["matrix"] = [options["matrix"]]
    return {name: value for name, value in options.items() if value is not None}


def slurm_settings() -> SlurmSettings:
    """What configuration says about SLURM.

    Raises
    ------
    PlanError
        An option is unknown or wrong; names its path.
    """
    found: SlurmSettings = configured()["slurm"]
    return found


def with_changes(settings: SlurmSettings, changes: Mapping[str, str]) -> SlurmSettings:
    """Settings with some of them replaced, by their names in the configuration.

    Values are text, as on a command line; a list is written as in YAML.

    Raises
    ------
    PlanError
        A name is unknown or a value is wrong; names its path.
    """
    if not changes:
        return settings
    texts = {
        name: yaml.safe_load(text) if text.startswith("[") else text
        for name, text in changes.items()
    }
    section = msgspec.to_builtins(settings) | _hyphened(texts)
    changed = _options({"slurm": section}, "the command line", strict=False).slurm
    return changed or settings


def _refuse_nul(name: str, value: object) -> None:
    texts = value if isinstance(value, list) else [value]
    if any("\0" in text for text in texts if isinstance(text, str)):
        msg = f"{name} has a NUL, which the system allows in no name"
        raise ValueError(msg)


@cache
def _defaults() -> dict[str, Any]:
    """The package's own section, to be laid below all that dask knows.

    It is not put into dask's configuration: what is changed there for a while, by
    ``dask.config.set``, is changed back as a whole, and would take the defaults with it.
    """
    text = (files("dask_convert") / "defaults.yaml").read_text()
    section: dict[str, Any] = yaml.safe_load(text)[SECTION]
    return section


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        msg = f"{path}: cannot be read as YAML: {' '.join(str(error).split())}"
        raise PlanError(msg) from error
    if not isinstance(content, dict) or SECTION not in content:
        msg = f"{path}: has no section '{SECTION}'"
        raise PlanError(msg)
    return content


def _normal(section: Any, where: str) -> dict[str, Any]:
    """A section's options, checked, by their names with hyphens."""
    section = _hyphened(section)
    _options(section, where)
    return dict(section)


def _hyphened(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {str(name).replace("_", "-"): _hyphened(value) for name, value in section.items()}


def _options(section: Any, where: str, *, strict: bool = True) -> Options:
    try:
        return msgspec.convert(section, Options, strict=strict)
    except msgspec.ValidationError as error:
        text = str(error).replace("`$", f"`{SECTION}")
        text = text if SECTION in text else f"{text} - at `{SECTION}`"
        msg = f"{where}: {text}"
        raise PlanError(msg) from error
