"""``python -m benchmarks NAME ...``; see README.md beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.measuring import Results, cores
from dask_convert.planning.layout import DEFAULT_CODEC

SOURCE = click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True)
DIRECTORY = click.Path(file_okay=False, path_type=Path, resolve_path=True)


def _sizes(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    """Turn ``1000,2000`` into numbers."""
    return [int(word) for word in text.replace("_", "").split(",")]


def _codecs(
    _context: click.Context, _parameter: click.Parameter, text: str
) -> list[tuple[str, int]]:
    """Turn ``lz4-5,zstd-1`` into names and levels."""
    named = [word.rsplit("-", 1) for word in text.split(",")]
    return [(codec, int(level)) for codec, level in named]


directory = click.option(
    "--directory",
    type=DIRECTORY,
    default="benchmark-data",
    show_default=True,
    help="For what is made.",
)
memory = click.option("--memory", default="2GiB", show_default=True, help="Budget.")
processes = click.option(
    "--processes", type=int, default=cores(), show_default="one per core", help="Cores to use."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path, resolve_path=True),
    default="benchmark-results.json",
    help="Records are appended to it.",
)
@click.pass_context
def main(context: click.Context, results: Path) -> None:
    """Measure dask_convert."""
    context.obj = Results(results)


def _benchmark(*options: Callable[..., Any]) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand with these parameters, which gets the results first."""

    def decorated(function: Callable[..., None]) -> click.Command:
        for option in reversed(options):
            function = option(function)
        return main.command()(click.pass_obj(function))

    return decorated


@_benchmark(
    click.argument("source", type=SOURCE),
    click.argument("target", type=click.Path(exists=True, path_type=Path, resolve_path=True)),
    processes,
    click.option("--h5py/--no-h5py", "with_h5py", default=True, help="Time a read by h5py too."),
)
def floor(results: Results, source: Path, target: Path, processes: int, *, with_h5py: bool) -> None:
    """Inflate SOURCE once and encode TARGET, made of it, once: what no conversion can beat."""
    from benchmarks import floors

    found = floors.floor(source, target, processes)
    row = {
        "inflate_seconds": found.inflate_seconds,
        "encode_seconds": found.encode_seconds,
        "floor_seconds": found.seconds,
        "floor per nnz_ns": 1e9 * found.seconds / found.nnz,
        "inflated_bytes": found.inflated_bytes,
        "encoded_bytes": found.encoded_bytes,
        "from disk_bytes": found.disk_bytes,
        "h5py_seconds": floors.h5py_seconds(source) if with_h5py else None,
    }
    settings = {"source": source.name, "nnz": found.nnz, "cores": processes}
    results.add("Floor", settings, [row])


@_benchmark(
    click.argument("source", type=SOURCE),
    directory,
    memory,
    processes,
    click.option("--repeats", type=int, default=3),
    click.option("--codec", default=DEFAULT_CODEC, show_default=True),
)
def ratio(
    results: Results,
    source: Path,
    directory: Path,
    memory: str,
    processes: int,
    repeats: int,
    codec: str,
) -> None:
    """Alternate conversion of SOURCE, floor and read by h5py; ratios are taken round by round."""
    from benchmarks import comparing

    directory.mkdir(parents=True, exist_ok=True)
    comparing.ratio(results, source, directory, memory, processes, repeats, codec)


@_benchmark(
    click.argument("source", type=SOURCE),
    directory,
    memory,
    processes,
    click.option("--repeats", type=int, default=3),
)
def verification(
    results: Results, source: Path, directory: Path, memory: str, processes: int, repeats: int
) -> None:
    """Alternate converting SOURCE, the same with --verify, and verify; paired ratios."""
    from benchmarks import verifying

    directory.mkdir(parents=True, exist_ok=True)
    verifying.verification(results, source, directory, memory, processes, repeats)


@_benchmark(
    click.argument("source", type=SOURCE),
    directory,
    memory,
    processes,
    click.option("--passes", type=int, default=1, help="Of the multi-pass script."),
    click.option(
        "--annizarr-python",
        type=click.Path(exists=True, path_type=Path),
        help="A Python that has annizarr.  [default: leave it out]",
    ),
    click.option("--timeout", type=float, default=3600.0, help="Seconds for each of them."),
)
def peers(
    results: Results,
    source: Path,
    directory: Path,
    memory: str,
    processes: int,
    passes: int,
    annizarr_python: Path | None,
    timeout: float,
) -> None:
    """Convert SOURCE in other ways too; time, memory, size, and whether it is right."""
    from benchmarks import comparing

    directory.mkdir(parents=True, exist_ok=True)
    comparing.peers(
        results,
        source,
        directory,
        memory=memory,
        processes=processes,
        passes=passes,
        annizarr_python=annizarr_python and annizarr_python.absolute(),
        timeout_seconds=timeout,
    )


@_benchmark(
    click.argument("sources", type=SOURCE, nargs=-1, required=True),
    directory,
    click.option(
        "--memory",
        "budgets",
        multiple=True,
        default=("least", "1GiB", "2GiB", "4GiB"),
        help="Budgets; 'least' for the least that can be planned for. Repeatable.",
    ),
    processes,
    click.option("--repeats", type=int, default=3),
)
def memory_budgets(
    results: Results,
    sources: tuple[Path, ...],
    directory: Path,
    budgets: tuple[str, ...],
    processes: int,
    repeats: int,
) -> None:
    """Convert all SOURCES in all budgets; the measured peak against budget and projection."""
    from benchmarks import scaling

    directory.mkdir(parents=True, exist_ok=True)
    scaling.memory(results, sources, directory, budgets, processes, repeats)


@_benchmark(
    directory,
    click.option("--sizes", callback=_sizes, default="20000,100000,400000", help="Cells."),
    click.option("--n-vars", type=int, default=32_285, help="Genes."),
    click.option("--density", type=float, default=0.152),
    memory,
    processes,
    click.option("--repeats", type=int, default=3),
)
def growth(
    results: Results,
    directory: Path,
    sizes: list[int],
    n_vars: int,
    density: float,
    memory: str,
    processes: int,
    repeats: int,
) -> None:
    """Time per non-zero of files of several sizes, which are made where missing and stay."""
    from benchmarks import scaling

    scaling.growth(
        results,
        directory,
        sizes,
        n_vars=n_vars,
        density=density,
        budget=memory,
        workers=processes,
        repeats=repeats,
    )


@_benchmark(
    click.argument("source", type=SOURCE),
    directory,
    memory,
    processes,
    click.option(
        "--chunk-sizes", callback=_sizes, default="32768,131072,524288", help="Entries per chunk."
    ),
    click.option(
        "--shard-sizes",
        callback=lambda *given: _sizes(*given) if given[2] else [],
        default="",
        help="Entries per file; 0: a file per chunk.  [default: as converted by default]",
    ),
    click.option("--codecs", callback=_codecs, default="lz4-1,lz4-5,zstd-1,zstd-3"),
    click.option("--genes", type=int, default=200, help="To read."),
)
def layouts(
    results: Results,
    source: Path,
    directory: Path,
    memory: str,
    processes: int,
    chunk_sizes: list[int],
    shard_sizes: list[int],
    codecs: list[tuple[str, int]],
    genes: int,
) -> None:
    """Chunk sizes, file sizes and codecs: time to convert, size, time to read a gene."""
    from benchmarks import scaling

    directory.mkdir(parents=True, exist_ok=True)
    scaling.layouts(
        results,
        source,
        directory,
        chunk_sizes,
        shard_sizes,
        codecs,
        budget=memory,
        workers=processes,
        genes=genes,
    )


@_benchmark(
    click.argument("store", type=click.Path(exists=True, path_type=Path, resolve_path=True)),
    click.option("--source", type=SOURCE, help="What it was made of, for anndata's own store."),
    directory,
    click.option("--genes", type=int, default=200, help="To read."),
    click.option("--repeats", type=int, default=3),
    click.option("--delay-ms", type=float, default=20.0, help="Of a distant storage's answers."),
)
def reading(
    results: Results,
    store: Path,
    source: Path | None,
    directory: Path,
    genes: int,
    repeats: int,
    delay_ms: float,
) -> None:
    """Read genes from STORE, and from anndata's own of the same file, by this tool and anndata."""
    from benchmarks.reading import reading as run

    directory.mkdir(parents=True, exist_ok=True)
    run(results, store, source, directory, genes=genes, repeats=repeats, delay_ms=delay_ms)


@_benchmark(
    click.argument("steps", nargs=-1),
    directory,
    click.option("--fraction", type=float, default=1.0, help="Of 1,162,565 cells."),
    click.option("--memory", default="4GiB", help="Budget."),
    click.option("--genes", type=int, default=50, help="Compared bit by bit."),
    click.option("--cells", type=int, default=50, help="Compared bit by bit."),
    processes,
    click.option("--keep", is_flag=True, help="Do not clean at the end."),
)
def full_size(results: Results, steps: tuple[str, ...], *, keep: bool, **settings: Any) -> None:
    """Run STEPS, of make, convert, check, floor and clean: all by default."""
    from benchmarks.full_size import STEPS, FullSize

    unknown = set(steps) - set(STEPS)
    if unknown:
        msg = f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}"
        raise click.UsageError(msg)
    work = FullSize(results, **settings)
    for step in steps or (STEPS[:-1] if keep else STEPS):
        work.run(step)


@_benchmark(
    click.argument("source", type=SOURCE),
    directory,
    memory,
    click.option("--counts", callback=_sizes, default="1,2", help="Numbers of workers."),
    click.option("--repeats", type=int, default=3),
)
def workers(
    results: Results, source: Path, directory: Path, memory: str, counts: list[int], repeats: int
) -> None:
    """Convert SOURCE with more and more workers; speed-up, and what they do while they idle."""
    from benchmarks import idling

    directory.mkdir(parents=True, exist_ok=True)
    idling.workers(results, source, directory, memory, counts, repeats)


n_vars = click.option("--n-vars", type=int, default=60_000, help="Genes.")


@_benchmark(
    click.option("--sizes", callback=_sizes, default="1000000,10000000,100000000", help="Cells."),
    n_vars,
    click.option("--workers", type=int, default=100, help="That take tasks and do nothing."),
    click.option("--planned", type=int, default=1600, help="Workers that the plan is for."),
)
def scheduler(results: Results, sizes: list[int], n_vars: int, workers: int, planned: int) -> None:
    """Graphs of huge plans, of tasks that do nothing, on a real scheduler: its time and memory."""
    from benchmarks import huge

    huge.scheduler(results, sizes, n_vars, workers, planned)


@_benchmark(
    click.option("--sizes", callback=_sizes, default="1000000,10000000,100000000", help="Cells."),
    n_vars,
    click.option("--nodes", type=int, default=50),
    click.option("--cores", type=int, default=32, help="Of a node."),
    click.option("--worker-memory", type=int, default=4 * 2**30, help="Bytes, of each core."),
)
def parallel_file_system(
    results: Results, sizes: list[int], n_vars: int, nodes: int, cores: int, worker_memory: int
) -> None:
    """What a run on many nodes asks of a parallel file system, by its plan; nothing is run."""
    from benchmarks import huge

    huge.file_system(results, sizes, n_vars, nodes, cores, worker_memory)


@main.command()
@click.argument("paths", type=SOURCE, nargs=-1, required=True)
def tables(paths: tuple[Path, ...]) -> None:
    """Print the records of some files of results as markdown."""
    from benchmarks.tables import of_records

    print(of_records(record for path in paths for record in Results(path).records()))


if __name__ == "__main__":
    main()
