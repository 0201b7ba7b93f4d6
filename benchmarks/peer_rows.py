"""What other tools make of the same small files: each row of docs/comparison.md, by running it.

    python -m benchmarks.peer_rows --annizarr-python venv/bin/python --bpcells-python …

Prints the table as markdown. A tool whose interpreter is not given is left out. Answers are words
that follow from what a tool wrote, read or refused; nothing is timed.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import click
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

import dask_convert

N_OBS, N_VARS = 400, 60
FLIPS = 40
ROOT = Path(__file__).parent.parent
LIMIT_BYTES = 4_000
"""Of a file, where the disk is to be full."""
BPCELLS = """
import sys; from bpcells.experimental import DirMatrix
import numpy as np
np.save(sys.argv[3], np.asarray(DirMatrix.from_h5ad(sys.argv[1], sys.argv[2])[:, :].todense()))
"""

Command = Callable[[Path, Path], list[str]]


def commands(annizarr: Path | None, bpcells: Path | None) -> dict[str, Command]:
    """How each tool is told to convert a source to a target."""
    python = sys.executable
    found: dict[str, Command] = {
        "dask_convert": lambda source, target: [
            *(python, "-m", "dask_convert", "convert", str(source), str(target)),
            *("--workers", "0", "--quiet"),
        ],
        "anndata": lambda source, target: [
            *(python, "-m", "benchmarks.converters", "anndata", str(source), str(target), "{}")
        ],
    }
    if annizarr:
        program = str(annizarr.parent / "annizarr")
        found["annizarr"] = lambda source, target: [
            *(program, "convert", str(source), "-o", str(target)),
            *("--layout", "csc", "--cpus", "1"),
        ]
    if bpcells:
        found["BPCells (Python)"] = lambda source, target: [
            *(str(bpcells), "-c", BPCELLS, str(source), str(target), f"{target}.npy")
        ]
    return found


def made(directory: Path) -> Path:
    """A small file with all that files have: counts in float64, a layer, raw, annotations."""
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.6, (N_OBS, N_VARS)).astype(np.float64))
    counts.data[:4] = [0.5, -0.0, np.nan, 2.0**40 + 0.25]
    adata = anndata.AnnData(
        counts,
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(rng.choice(["A", "B"], N_OBS))},
            index=[f"cell{number}" for number in range(N_OBS)],
        ),
        var=pd.DataFrame(index=[f"gene{number}" for number in range(N_VARS)]),
        uns={"nested": {"text": "ä"}},
        obsm={"X_umap": rng.random((N_OBS, 2))},
        layers={"counts": counts.copy()},
    )
    adata.raw = adata.copy()
    path = directory / "cells.h5ad"
    adata.write_h5ad(path, compression="gzip")
    return path


def converted(
    command: Command, source: Path, target: Path, limit: int | None = None
) -> tuple[bool, str]:
    """Whether a tool says that it has succeeded, and its last line.

    Parameters
    ----------
    command
        Of the tool.
    source, target
        What to convert; the target is removed first.
    limit
        Bytes that a file may have, as on a full disk.
    """
    shutil.rmtree(target, ignore_errors=True)
    return ran(command(source, target), limit)


def ran(arguments: list[str], limit: int | None = None) -> tuple[bool, str]:
    """Whether a command ends well, and the last line of its errors."""
    before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit else None
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        preexec_fn=before,
    )
    return done.returncode == 0, (done.stderr.strip().splitlines() or [""])[-1]


def same_bits(matrix: Any, wanted: Any) -> bool:
    """Whether a CSC matrix has these entries, bit by bit, explicit zeros and all."""
    wanted = wanted.tocsc()
    if matrix.dtype != wanted.dtype or matrix.nnz != wanted.nnz:
        return False
    pairs = [(matrix.indptr, wanted.indptr), (matrix.indices, wanted.indices)]
    return all(np.array_equal(a, b) for a, b in pairs) and (
        matrix.data.tobytes() == wanted.data.tobytes()
    )


def what_arrives(command: Command, source: Path, target: Path) -> dict[str, str]:
    """What is in the store that a tool makes of a good file."""
    good, line = converted(command, source, target)
    if not good:
        return {"it converts": f"no: {line}"}
    wanted = anndata.read_h5ad(source)
    numbers = target.with_name(target.name + ".npy")
    if numbers.exists():
        got, dense = np.load(numbers), wanted.X.toarray()
        got = got if got.shape == dense.shape else got.T
        kept = np.array_equal(got, dense, equal_nan=True)
        return {
            "`X` is AnnData zarr, CSC": "no, its own format, by cell as the source",
            "values are the same, bit by bit": "yes" if kept else "no: integers only",
        }
    got = anndata.read_zarr(target)
    formats = {"layers": got.layers.get("counts"), "raw": got.raw.X if got.raw else None}
    rest = got.obs.reset_index().astype(str).equals(wanted.obs.reset_index().astype(str))
    rest = rest and got.uns["nested"] == wanted.uns["nested"]
    rest = rest and np.array_equal(got.obsm["X_umap"], wanted.obsm["X_umap"])
    return {
        "`X` is AnnData zarr, CSC": "yes" if got.X.format == "csc" else got.X.format,
        "values are the same, bit by bit": "yes" if same_bits(got.X, wanted.X) else "no",
        "layers and raw are CSC, too": ", ".join(
            f"{name}: {'lost' if matrix is None else matrix.format}"
            for name, matrix in formats.items()
        ),
        "obs, uns and obsm arrive": "yes" if rest else "no",
    }


def spoilt(source: Path, directory: Path) -> dict[str, Path]:
    """Wrong files: of each kind what it is, and the path."""
    paths = {}
    for name in ("a gene that is not there", "a part that was never written", "a damaged part"):
        paths[name] = Path(shutil.copy(source, directory / f"spoilt{len(paths)}.h5ad"))
    column, missing, damaged = paths.values()
    with h5py.File(column, "r+") as file:
        file["X/indices"][100] = N_VARS + 7
    with h5py.File(missing, "r+") as file:
        data = file["X/data"][:]
        del file["X/data"]
        new = file["X"].create_dataset("data", data.shape, data.dtype, chunks=(1000,))
        new[:5000] = data[:5000]  # the rest reads as zeros
    with h5py.File(damaged) as file:
        chunk = file["X/indices"].id.get_chunk_info(0)
    with damaged.open("r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(b"\xff" * 8)
    return paths


def what_is_refused(command: Command, paths: dict[str, Path], target: Path) -> dict[str, str]:
    """What a tool makes of wrong files."""
    answers = {}
    for name, path in paths.items():
        good, _ = converted(command, path, target)
        left = ", and leaves a store" if target.exists() else ""
        answers[f"source with {name}"] = "**converts it**" if good else f"refuses{left}"
    return answers


def on_a_full_disk(command: Command, source: Path, target: Path) -> dict[str, str]:
    """What is left when writing fails, and whether the same command then succeeds."""
    good, _ = converted(command, source, target, LIMIT_BYTES)
    if good:
        return {"the disk is full on the way": "(its files stay below the limit)"}
    left = "**half a store under its name**" if target.exists() else "no store"
    again, _ = ran(command(source, target))
    return {
        "the disk is full on the way": f"error, {left}",
        "then the same command again": "succeeds" if again else "fails until told to overwrite",
    }


def reading_damage(command: Command, source: Path, target: Path, *, by_us: bool) -> dict[str, str]:
    """Genes from the tool's own store whose chunks are damaged, one byte at a time.

    Parameters
    ----------
    command, source, target
        As for `converted`.
    by_us
        Read with this project, and not with anndata.
    """
    if not converted(command, source, target)[0]:
        return {}
    wanted = all_genes(target, by_us=by_us)
    chunks = sorted(path for path in (target / "X" / "data").rglob("*") if path.is_file())
    chunks = [path for path in chunks if path.name not in {"zarr.json", ".zarray", ".zattrs"}]
    content, silent = chunks[0].read_bytes(), 0
    for position in np.linspace(40, len(content) - 1, FLIPS).astype(int):
        flipped = bytes([content[position] ^ 0x10])
        chunks[0].write_bytes(content[:position] + flipped + content[position + 1 :])
        silent += differs(target, wanted, by_us=by_us)
    chunks[0].unlink()
    lost = differs(target, wanted, by_us=by_us)
    return {
        f"reading genes, {FLIPS} flipped bits": f"{silent} give other numbers without an error",
        "reading genes, a file is missing": "**zeros**" if lost else "an error",
    }


def all_genes(target: Path, *, by_us: bool) -> Any:
    """All of ``X``, through what reads single genes."""
    if by_us:
        return dask_convert.open_store(target).read(slice(None)).data
    group: Any = zarr.open_group(str(target), mode="r")["X"]
    return anndata.io.sparse_dataset(group)[:, :].data


def differs(target: Path, wanted: Any, *, by_us: bool) -> bool:
    """Whether other values than those wanted are read; False if reading fails."""
    try:
        return bool(all_genes(target, by_us=by_us).tobytes() != wanted.tobytes())
    except Exception:  # noqa: BLE001  # zarr and codecs have many kinds
        return False


def rows_of(name: str, command: Command, source: Path, directory: Path) -> dict[str, str]:
    """All answers of one tool."""
    target = directory / f"{name.split(maxsplit=1)[0]}.zarr"
    answers = what_arrives(command, source, target)
    if "BPCells" in name:
        return answers
    answers |= what_is_refused(command, spoilt(source, directory), target)
    answers |= on_a_full_disk(command, source, target)
    return answers | reading_damage(command, source, target, by_us=name == "dask_convert")


@click.command()
@click.option("--annizarr-python", type=click.Path(exists=True, path_type=Path))
@click.option("--bpcells-python", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def main(annizarr_python: Path | None, bpcells_python: Path | None, *, as_json: bool) -> None:
    """Run every row with every tool and print the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source = made(directory)
        columns = {
            tool: rows_of(tool, command, source, directory)
            for tool, command in commands(
                annizarr_python and annizarr_python.absolute(),
                bpcells_python and bpcells_python.absolute(),
            ).items()
        }
    if as_json:
        print(json.dumps(columns, indent=2))
        return
    rows = list(dict.fromkeys(row for answers in columns.values() for row in answers))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {row} | {' | '.join(answers.get(row, '–') for answers in columns.values())} |")


if __name__ == "__main__":
    main()
