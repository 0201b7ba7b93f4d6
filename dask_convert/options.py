"""The options of `plan`, `convert` and `verify`: one name, one meaning, one default for each.

`Options` has them all with their defaults; the typed dicts say which function takes which. They
appear in the functions' signatures one by one, for editors (by the types) and for ``help`` and
documents (by `explicit`).
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import msgspec

from dask_convert.conversion.names import is_text
from dask_convert.errors import PlanError
from dask_convert.places.dashboard_address import require_dashboard_address
from dask_convert.places.local_cluster import runs_locally
from dask_convert.places.main_guard import require_main_guard
from dask_convert.places.places import ClusterKind, Patience, Place, placed
from dask_convert.places.slurm_settings import SlurmSettings, parsed_bytes
from dask_convert.places.worker_start import load_libraries, prepare_workers
from dask_convert.planning.layout import DEFAULT_CODEC, Codec
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import Settings
from dask_convert.planning.profiles import ProfileName, with_profile

if TYPE_CHECKING:
    from distributed import Client

    from dask_convert.conversion.run import Progress
    from dask_convert.verification.matrices import OnPart

Pathish = str | os.PathLike[str]

DEFAULT_MEMORY = "2GiB"
"""Of a run on this machine; and of the driver, where workers are elsewhere."""

_DESCRIPTORS = re.compile(r"/proc/\d+(?:/task/\d+)?/fd")
_MOST_LINKS = 40
"""Which the system follows."""

_LEVELS = {"lz4": 5, "zstd": 1, "gzip": 4, "none": 0}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class PlaceOptions(TypedDict, total=False):
    """What every function takes: where to run, in what memory, and what to trust."""

    memory: int | str | None
    workers: int | None
    client: Client | None
    cluster: ClusterKind | None
    scheduler: str | None
    slurm: SlurmSettings | None
    matrix: str | Iterable[str] | None
    allow_external: Iterable[Pathish]
    allow_plugins: bool


class PlanOptions(PlaceOptions, total=False):
    """What `plan` takes: also how the target is to be stored."""

    profile: ProfileName
    data_dtype: str | None
    zarr_format: Literal[2, 3] | None
    chunk_nnz: int | None
    shard_nnz: int | None
    codec: Codec
    codec_level: int | None
    strict: bool


class ConvertOptions(PlanOptions, total=False):
    """What `convert` takes: also what happens on the way."""

    scratch: Pathish | None
    overwrite: bool
    restart: bool
    verify: bool
    wait_seconds: float
    worker_ttl_seconds: float
    no_workers_seconds: float
    dashboard_address: str | None
    on_dashboard: Callable[[str], object] | None
    before_close: Callable[[], object] | None
    progress: Progress | None
    report: Pathish | None


class VerifyOptions(PlaceOptions, total=False):
    """What `verify` takes."""

    dashboard_address: str | None
    on_dashboard: Callable[[str], object] | None
    before_close: Callable[[], object] | None
    on_part: OnPart | None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All options with their defaults; `dask_convert.convert` says what they mean."""

    memory: int | str | None = None
    workers: int | None = None
    client: Client | None = None
    cluster: ClusterKind | None = None
    scheduler: str | None = None
    slurm: SlurmSettings | None = None
    matrix: str | Iterable[str] | None = None
    allow_external: Iterable[Pathish] = ()
    allow_plugins: bool = False
    profile: ProfileName = "anndata"
    data_dtype: str | None = None
    zarr_format: Literal[2, 3] | None = None
    chunk_nnz: int | None = None
    shard_nnz: int | None = None
    codec: Codec = DEFAULT_CODEC
    codec_level: int | None = None
    strict: bool = False
    scratch: Pathish | None = None
    overwrite: bool = False
    restart: bool = False
    verify: bool = False
    wait_seconds: float = Limits().wait_seconds
    worker_ttl_seconds: float = Limits().worker_ttl_seconds
    no_workers_seconds: float = Patience().no_workers_seconds
    dashboard_address: str | None = "127.0.0.1:0"
    on_dashboard: Callable[[str], object] | None = None
    before_close: Callable[[], object] | None = None
    progress: Progress | None = None
    report: Pathish | None = None
    on_part: OnPart | None = None

    def __post_init__(self) -> None:
        for name in ("wait_seconds", "worker_ttl_seconds", "no_workers_seconds"):
            seconds = getattr(self, name)
            if not 0 <= seconds < math.inf:  # NaN is neither
                msg = f"{name} is {seconds}: a number of seconds"
                raise PlanError(msg)

    @property
    def limits(self) -> Limits:
        """How long to wait for what."""
        return Limits(self.wait_seconds, self.worker_ttl_seconds)

    @property
    def matrices(self) -> list[str] | None:
        """Names of the matrices that were chosen; None for all."""
        if self.matrix is None:
            return None
        return [self.matrix] if isinstance(self.matrix, str) else list(self.matrix)

    def scratch_parent(self, target: Path) -> Path:
        """Where scratch is made."""
        return target.parent if self.scratch is None else absolute(self.scratch)

    def prepare(self, *, verifying: bool) -> None:
        """Begin to load what a run needs, and to start workers, if they are this machine's.

        Raises
        ------
        MainGuardError
            They would run the calling script again.
        """
        if runs_locally(self.workers, self.cluster, self.scheduler, self.client):
            require_main_guard()
            prepare_workers(verifying=verifying)
        load_libraries(*(["zarr"] if self.workers == 0 else ["distributed", "zarr"]))

    def place(self) -> AbstractContextManager[Place]:
        """Where tasks will run; see `dask_convert.places.places.placed`.

        Raises
        ------
        PlanError
            A dashboard cannot listen where it is to.
        """
        shown = None if self.dashboard_address == "none" else self.dashboard_address
        if shown is not None:
            require_dashboard_address(shown)
        return placed(
            cluster=self.cluster,
            scheduler=self.scheduler,
            client=self.client,
            workers=self.workers,
            slurm=self.slurm,
            dashboard_address=shown,
            patience=Patience(self.no_workers_seconds, self.wait_seconds),
            limits=self.limits,
        )

    def settings(self, place: Place) -> Settings:
        """What a plan needs to know, with what there is at a place.

        Raises
        ------
        PlanError
            The memory is no size, or options contradict the profile.
        """
        names = ("data_dtype", "zarr_format", "chunk_nnz", "shard_nnz")
        level = self.codec_level
        return Settings(
            memory=self._memory_bytes(place),
            workers=place.workers,
            worker_memory=place.worker_memory,
            codec=self.codec,
            codec_level=_LEVELS.get(self.codec, 0) if level is None else level,
            verify=self.verify,
            strict=self.strict,
            allow_external=tuple(_text_of(absolute(path)) for path in self.allow_external),
            allow_plugins=self.allow_plugins,
            profile=self.profile,
            **with_profile(self.profile, {name: getattr(self, name) for name in names}),
        )

    def _memory_bytes(self, place: Place) -> int:
        chosen = DEFAULT_MEMORY if self.memory is None else self.memory
        try:
            memory_bytes = parsed_bytes("memory", chosen)
        except ValueError as error:
            raise PlanError(str(error)) from error
        if self.memory is None and place.worker_memory is not None:
            memory_bytes += max(place.worker_memory, 0) * place.workers
        return memory_bytes


def absolute(path: Pathish) -> Path:
    """A path from the root on.

    Raises
    ------
    PlanError
        It is relative to a directory that is not there any more.
    """
    try:
        return Path(path).absolute()
    except OSError as error:
        msg = f"{path}: the current directory is gone: {error.strerror}; change to another"
        raise PlanError(msg) from error


def is_open_file(path: Path) -> bool:
    """Whether a path is one of ``/dev/stdin``, ``/dev/fd/5`` and the like, or leads there."""
    for _ in range(_MOST_LINKS):
        if _DESCRIPTORS.fullmatch(os.path.realpath(path.parent)):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False


def _text_of(directory: Path) -> str:
    """A path that can be kept as text."""
    if not is_text(directory):
        msg = f"allow_external: {directory} is no UTF-8, or has a NUL"
        raise PlanError(msg)
    return str(directory)


def explicit(options: type, **defaults: object) -> Callable[[_Function], _Function]:
    """Spell out in a function's signature which options its ``**options`` are.

    Parameters
    ----------
    options
        The typed dict that it takes.
    defaults
        Those that differ from `Options`.
    """
    usual = msgspec.structs.asdict(Options()) | defaults
    kind = inspect.Parameter.KEYWORD_ONLY
    named = [
        inspect.Parameter(
            name, kind, default=usual[name], annotation=getattr(hint, "__forward_arg__", hint)
        )
        for name, hint in options.__annotations__.items()
    ]

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        positional = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]  # read by inspect
            parameters=[*positional, *named]
        )
        return function

    return decorate
