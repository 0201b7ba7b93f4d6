"""What users call from Python: `plan`, `convert`, `verify` and `clean`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from dask_convert.conversion.names import check_ending, check_names, check_there, require_text
from dask_convert.conversion.source_plan import plan_conversion
from dask_convert.display.board_feed import BoardFeed
from dask_convert.display.facts import SQUARE_NOTE
from dask_convert.display.logs import LogLines
from dask_convert.display.notebook import default_progress, short_interrupt
from dask_convert.display.progress import Several
from dask_convert.display.report import RunReport
from dask_convert.engine.graph import Executor
from dask_convert.engine.results import ConversionResult, VerificationResult
from dask_convert.errors import SourceError, SourceWarning
from dask_convert.options import (
    ConvertOptions,
    Options,
    Pathish,
    PlanOptions,
    VerifyOptions,
    absolute,
    explicit,
    is_open_file,
)
from dask_convert.places.places import Place, Run
from dask_convert.places.rooms import clear_dead_rooms
from dask_convert.planning.planner import conversion_plan
from dask_convert.planning.plans import ConversionPlan
from dask_convert.surroundings import require_fit, require_fit_zarr

if TYPE_CHECKING:
    from dask_convert.verification.matrices import OnPart


@explicit(PlanOptions)
def plan(source: Pathish, **options: Unpack[PlanOptions]) -> ConversionPlan:
    """Plan a conversion and touch nothing.

    Takes what `convert` takes, and raises what it raises before it starts to work.

    Warns
    -----
    SourceWarning
        A matrix is square, so that nothing but its label tells CSR from CSC.
    """
    chosen = Options(**options, dashboard_address=None)  # nothing runs, so there is none to load
    with chosen.place() as found:
        planned = plan_conversion(Path(source), chosen.settings(found), chosen.matrices)
        _warn(planned)
        return planned


@explicit(ConvertOptions)
def convert(
    source: Pathish, target: Pathish, **options: Unpack[ConvertOptions]
) -> ConversionResult:
    """Convert an h5ad file to an AnnData zarr store with its CSR matrices in CSC.

    An interrupted conversion is continued by the same call; `memory` and `workers` may differ.

    Parameters
    ----------
    source
        The h5ad file.
    target
        The zarr store to make; a directory on a local or shared file system.
    memory
        What all processes together may use, in bytes or as ``"4GiB"``: 2 GiB by default on
        this machine, and what the workers have on a cluster.
    workers
        Worker processes of the local cluster; one per core by default. 0 runs every task in
        this process, without any cluster.
    client
        A client of a running cluster to use instead. Each of its threads counts as a worker,
        with its share of the memory limit. Source, target and scratch must be the same paths
        there, and are checked to be.
    cluster
        ``"local"``, ``"slurm"`` (jobs with workers are submitted) or ``"allocation"`` (workers
        are started in the SLURM job that this runs in). By default the scheduler that dask's
        configuration names (``DASK_SCHEDULER_ADDRESS``), and else local.
    scheduler
        Address (``tcp://…``, ``tls://…``) or file (``….json``) of a scheduler that is there.
    slurm
        What to ask SLURM for; by default what configuration says under ``dask-convert.slurm``.
    no_workers_seconds
        How long to wait, on a cluster, while there is no worker at all.
    matrix
        Name, or names, of the matrices to convert: ``X``, ``layers/counts`` or ``raw/X``; by
        default every CSR matrix. All others are copied as they are.
    profile
        Who will read the target: ``"anndata"``, ``"vitessce"`` (browsers: zarr v2, a file per
        chunk) or ``"cellxgene"`` (an h5ad file, CSC of float32). It sets the defaults of the
        next four.
    data_dtype
        ``"same"`` keeps the type of values, ``"auto"`` takes the smallest that holds every
        one exactly, and a type's name takes that, or raises.
    zarr_format
        3 or 2.
    chunk_nnz
        Entries per chunk of the target, the unit of reading.
    shard_nnz
        Entries per shard (file), a multiple of `chunk_nnz`; 0 for a file per chunk; chosen by
        default.
    codec, codec_level
        How chunks are compressed: ``lz4``, ``zstd``, ``gzip`` or ``none``.
    strict
        Refuse duplicates, stored zeros, NaN and infinities, which are kept and counted
        otherwise.
    allow_external
        Directories that other files may be read from, if the source refers to them by external
        links, external storage or virtual data sets; otherwise those are refused.
    allow_plugins
        Run any HDF5 filter that is installed, those on ``HDF5_PLUGIN_PATH`` included. Otherwise
        HDF5 forgets that path, for good, in the processes that read the source.
    scratch
        Where to make the scratch directory; beside the target by default.
    overwrite
        Replace the target if it exists and was made by this function.
    restart
        Begin afresh, and remove what an earlier, unfinished conversion has kept.
    wait_seconds
        How long a published file may take to become visible on a network file system.
    worker_ttl_seconds
        After how long without a sign of life a worker of the local cluster counts as lost.
    verify
        Compare the store with its source before it gets its name. What the conversion reads is
        digested on the way, so the source is not read again but for one row block in 32.
    dashboard_address
        Host and port of the local cluster's dashboard, None for none; port 0 takes any.
    on_dashboard
        Is told the address of the dashboard's page ``/conversion``, if there is one.
    before_close
        Is called when all is done well, before the dashboard goes: it stays meanwhile.
    progress
        Is told how the run comes along; see `dask_convert.display.progress`, whose `Silent()`
        shows nothing. By default a notebook shows bars and the dashboard's address, and anything
        else shows nothing.
    report
        An HTML file to write at the end, also of a run that fails. Refused beforehand if it cannot
        be written; if it cannot at the end, that is logged as a warning.

    Raises
    ------
    SourceError
        The source is not as it must be, or a value would change in `data_dtype`. Its kinds are
        `AdmissionError`, `AnnotationError`, `DtypeError` and `StrictError`.
    PlanError
        Settings contradict each other, or the memory is too little.
    ClusterError
        No cluster can be had, a worker lacks something, or there are no workers any more.
    TargetError, DiskSpaceError
        Target or report cannot be written, or there is too little room.
    ResumeError, LockError
        An unfinished conversion was to do something else, or another one is running.
    WorkerLostError, TaskError, StorageError
        Workers ended, or the system failed; the same call continues.
    IntegrityError, VerificationError
        What was built is not what it should be; there is no target.

    Examples
    --------
    >>> result = convert("cells.h5ad", "genes.zarr", memory="4GiB")  # doctest: +SKIP
    """
    require_fit()
    chosen = Options(**options)
    chosen.prepare(verifying=chosen.verify)
    source, target = absolute(source), absolute(target)
    check_ending(target, chosen.profile)
    check_names(source, target, chosen.scratch_parent(target))
    record = RunReport(str(source), str(target))
    written = record.written_to(None if chosen.report is None else Path(chosen.report))
    with short_interrupt(), ExitStack() as held, written:
        found = held.enter_context(chosen.place())
        _require_shared(source, found)
        planned = plan_conversion(source, chosen.settings(found), chosen.matrices)
        _warn(planned)
        record.result = _run(source, target, planned, found, chosen, record, held)
        return record.result


def _require_shared(source: Path, place: Place) -> None:
    """Refuse a source that is open in this process, and has no name for others."""
    if place.workers and is_open_file(source):
        msg = (
            f"{source} is a file of this process, which workers cannot open: give its own path, or "
            "do without workers (--workers 0)"
        )
        raise SourceError(msg)


def _run(
    source: Path,
    target: Path,
    planned: ConversionPlan,
    place: Place,
    chosen: Options,
    record: RunReport,
    held: ExitStack,
) -> ConversionResult:
    """Run a plan at a place, with all that watch it."""
    scratch_parent = chosen.scratch_parent(target)
    feed = BoardFeed(str(source), str(target))
    shown, on_dashboard = default_progress(chosen.progress, chosen.on_dashboard)
    observers = [shown, LogLines(), feed, *([record] if chosen.report else ())]

    @contextmanager
    def executor(agreed: ConversionPlan) -> Iterator[Executor]:
        run = Run(source, (scratch_parent, target.parent), agreed)
        tasks_of = _shown(place.executor(run), feed, held, on_dashboard, chosen.before_close)
        with tasks_of as tasks, record.watching(tasks) as watched:
            yield watched

    from dask_convert.conversion.run import run_conversion  # with zarr, which planning spares

    require_fit_zarr()

    def store(path: Path) -> ConversionResult:
        return run_conversion(
            source,
            path,
            planned,
            executor,
            scratch_parent=scratch_parent,
            overwrite=chosen.overwrite,
            progress=Several(*observers),
            on_part=_each(feed.part, record.part),
            restart=chosen.restart,
            limits=chosen.limits,
        )

    if chosen.profile != "cellxgene":
        return store(target)
    from dask_convert.conversion.exporting import export

    return export(
        source,
        target,
        planned,
        store,
        scratch_parent=scratch_parent,
        overwrite=chosen.overwrite,
        restart=chosen.restart,
    )


def clean(target: Pathish, *, scratch: Pathish | None = None) -> list[Path]:
    """Remove what dead conversions to a target have left, and nothing else.

    Parameters
    ----------
    target
        The store that they were to make; it stays as it is, or comes back, if they died while
        they replaced it.
    scratch
        Where their scratch directory is, if it was not beside the target; mostly it is known.

    Returns
    -------
        The directories that were cleared.

    Raises
    ------
    LockError
        One of them is alive.
    ScratchError
        A directory of this name was not made by this package.
    """
    from dask_convert.conversion.exporting import clean_export
    from dask_convert.conversion.resuming import clean_up
    from dask_convert.conversion.workspace import Workspace

    target = absolute(target)
    scratch_parent = Options(scratch=scratch).scratch_parent(target)
    check_names(None, target, scratch_parent)
    cleared = clean_export(target, scratch_parent)
    cleared += clean_up(Workspace(target, scratch_parent))
    beside = [target.parent, scratch_parent, *(path.parent for path in cleared)]
    return cleared + clear_dead_rooms(beside)


def _warn(planned: ConversionPlan) -> None:
    for matrix in planned.matrices:
        if matrix.source.n_obs == matrix.source.n_vars:
            warnings.warn(f"{matrix.source.name}: {SQUARE_NOTE}", SourceWarning, stacklevel=3)
    for line in planned.left_out:
        warnings.warn(f"left out: {line}", SourceWarning, stacklevel=3)


@explicit(VerifyOptions, dashboard_address=None)
def verify(
    source: Pathish, target: Pathish, **options: Unpack[VerifyOptions]
) -> VerificationResult:
    """Compare a store with the file that it was made of: every entry, every element.

    Reads the source with h5py, and the store with a reader that shares nothing with what writes
    stores; zarr-python reads a sample of it again, or all of what that reader does not know. The
    store may be anybody's: of zarr format 2 or 3, with other types, chunks or codecs.

    Parameters
    ----------
    source, target
        The h5ad file, and the directory of the store.
    memory, workers, cluster, scheduler, slurm, client, allow_external, allow_plugins
        As in `convert`, and so `dashboard_address`, `on_dashboard` and `before_close`.
    matrix
        Name, or names, of sparse matrices whose entries to compare; all by default.
    on_part
        Is told the name of a matrix, how many of its parts are done, and of how many.

    Returns
    -------
        What differs, if anything does; `VerificationResult.require_equal` raises then.

    Raises
    ------
    SourceError
        The source cannot be read: nothing can be said of the store.
    StoreError
        There is no store of that name.
    PlanError
        Settings contradict each other, or the memory is too little.

    Examples
    --------
    >>> verify("cells.h5ad", "genes.zarr").require_equal()  # doctest: +SKIP
    """
    require_fit()
    from dask_convert.verification.verifying import verify_store

    require_fit_zarr()
    options.setdefault("dashboard_address", None)
    chosen = Options(**options)
    chosen.prepare(verifying=True)
    source, target = absolute(source), absolute(target)
    require_text(source)
    check_there(target)
    feed = BoardFeed(str(source), str(target))
    with ExitStack() as held:
        found = held.enter_context(chosen.place())
        _require_shared(source, found)
        settings = chosen.settings(found)
        planned = conversion_plan([], settings)
        run = found.executor(Run(source, (target.parent,), planned))
        with _shown(run, feed, held, chosen.on_dashboard, chosen.before_close) as executor:
            feed.start(planned)
            return verify_store(
                source,
                target,
                executor,
                memory_bytes=settings.memory,
                workers=settings.workers,
                matrices=chosen.matrices,
                trust=settings.trust,
                on_part=_each(feed.part, chosen.on_part or _ignore),
            )


def _ignore(_name: str, _done: int, _total: int) -> None:
    """Nobody wants to know."""


def _each(*observers: OnPart) -> OnPart:
    """Tells all of them."""

    def tell(name: str, done: int, total: int) -> None:
        for observer in observers:
            observer(name, done, total)

    return tell


@contextmanager
def _shown(
    run: AbstractContextManager[Executor],
    feed: BoardFeed,
    held: ExitStack,
    on_dashboard: Callable[[str], object] | None,
    before_close: Callable[[], object] | None,
) -> Iterator[Executor]:
    """An executor whose dashboard knows of the run; may be left to `held` to be closed."""

    def is_done(kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None and before_close is not None:
            before_close()

    with ExitStack() as stack:
        tasks = stack.enter_context(run)
        link = None if tasks.client is None else feed.connect(tasks.client)
        if link is not None and on_dashboard is not None:
            on_dashboard(link)
        with feed.ended():
            yield tasks
        if link is not None and before_close is not None:
            held.enter_context(stack.pop_all())
            held.push(is_done)
