"""The house keeps its floors: every module imports from lower ones only."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dask_convert

PACKAGE = "dask_convert"
DIRECTORY = Path(dask_convert.__file__).parent
FLOORS = {
    "": ("_version errors page_cache", "surroundings"),
    # Plain values, arithmetic and compiled loops: no dask, no zarr, no h5py.
    "planning": (
        "cores layout limits sizes",
        "records",
        "dtypes",
        "memory profiles",
        "plans",
        "planner",
    ),
    "shuffle": (
        "compiling",
        "kernels scans digest_kernels",
        "pages narrowing findings integrity digests",
        "duplicates row_checks fragments ordering placing",
    ),
    # Chunks of stores, read by nothing that has written them.
    "chunks": ("chunk_bytes chunk_codecs", "chunk_reader"),
    # Disks.
    "files": (
        "annotation_checks failpoints filters hdf5_errors hdf5_lock hdf5_sink hdf5_walk",
        "annotation_reading chunk_guard rehearsal scratch",
        "admission",
        "annotation_elements hdf5 fragment_files shards",
        "annotation_plan h5ad hdf5_trial zarr_csc",
        "annotations fingerprints store_files h5ad_writer",
    ),
    # Work.
    "engine": ("results meters", "tasks", "stages", "attempts", "graph preload"),
    "verification": (
        "sides arrays",
        "entries samples alike as_anndata",
        "parts elements",
        "preload matrices",
        "verifying",
    ),
    "conversion": (
        "locks source_plan",
        "workspace",
        "publishing names",
        "resuming",
        "matrix_run",
        "run exporting",
    ),
    # Reading stores: by itself, on nothing of the above but cores and sizes.
    "reading": (
        "store_opening gene_files gene_names",
        "csc_reader obs_rows result_kinds",
        "dask_columns gene_stats store_axes",
        "store",
        "describing",
    ),
    # What surrounds it.
    "example": ("synthetic_model", "synthetic"),
    "places": (
        "closing dashboard_address slurm_settings lazy_dashboard nannies worker_start",
        "local_cluster main_guard credentials probes",
        "config slurm watching rooms",
        "allocation worker_checks",
        "places",
    ),
    "display": (
        "board charts dashboard_link facts losses side_files telling",
        "logs progress summary board_plugin",
        "bars board_feed board_page html drawings",
        "notebook report pages",
    ),
    " ": (
        "options",
        "api",
        "__init__ cli_frame",
        "cli_options cli_reading",
        "cli_dashboard",
        "demo",
        "cli",
        "__main__",
    ),
}
"""Packages from the lowest up, and the floors within each; the root is below and above all."""
DEFERRED = {
    ("engine.tasks", "engine.attempts"),  # named where tasks are planned, loaded where they run
    ("display.board_plugin", "display.board_page"),  # bokeh, once somebody looks
    ("planning.plans", "display.html"),  # notebooks alone want to see things
    ("engine.results", "display.html"),
    ("reading.store", "display.html"),
    ("display.progress", "display.bars"),  # rich is slow to import, and only terminals need it
}
"""Imports that go up, and so may stand in functions only."""
ROOMS = [
    {f"{package}.{name}".lstrip(" .") for name in floor.split()}
    for package, floors in FLOORS.items()
    for floor in floors
]
FLOOR_OF = {name: number for number, room in enumerate(ROOMS) for name in room}
PURE = {name for name in FLOOR_OF if name.split(".")[0] in {"errors", "planning", "shuffle"}}
SLOW = {"anndata", "dask", "distributed", "h5py", "zarr"}
PATHS = {
    ".".join(path.relative_to(DIRECTORY).with_suffix("").parts): path
    for path in DIRECTORY.rglob("*.py")
    if path.parent == DIRECTORY or path.stem != "__init__"
}
MODULES = sorted(PATHS)


def imports(module: str) -> Iterator[tuple[str, str | None]]:
    """Modules of ours that a module imports, wherever in it, and the names it takes from them."""
    tree = ast.parse(PATHS[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield alias.name.partition(".")[2] or "__init__", None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            if (node.module or "").split(".")[0] != PACKAGE:
                continue
            home = node.module.partition(".")[2]
            for alias in node.names:
                name = f"{home}.{alias.name}".lstrip(".")
                yield (name, None) if name in PATHS else (home or "__init__", alias.name)


def test_every_module_has_a_floor() -> None:
    """Nothing is added without a place, and no name is on two floors."""
    assert [module for module in MODULES if module not in FLOOR_OF] == []
    assert not any(one & other for one, other in itertools.combinations(ROOMS, 2))
    assert sum(map(len, ROOMS)) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """Not up, and not sideways: so there can be no cycle."""
    # `__version__` is in a module of its own, which `__init__` passes on.
    wrong = [
        (imported, name)
        for imported, name in imports(module)
        if FLOOR_OF[imported] >= FLOOR_OF[module]
        and (imported, name) != ("__init__", "__version__")
        and (module, imported) not in DEFERRED
    ]
    assert wrong == []


@pytest.mark.parametrize(("module", "imported"), sorted(DEFERRED))
def test_imports_that_go_up_are_deferred(module: str, imported: str) -> None:
    """They exist, and stand in functions: loading a module never goes up."""
    tree = ast.parse(PATHS[module].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = [node for node in ast.walk(tree) if _names(node, imported)]
    assert found
    assert all(id(node) in inside for node in found)


def _names(node: ast.AST, imported: str) -> bool:
    """Whether a node imports this module of ours."""
    home, _, name = f"{PACKAGE}.{imported}".rpartition(".")
    return isinstance(node, ast.ImportFrom) and (
        node.module == f"{home}.{name}"
        or (node.module == home and any(alias.name == name for alias in node.names))
    )


def test_what_reads_chunks_knows_nothing_of_what_writes_them() -> None:
    """Nor the other way round: verification holds one against the other."""
    chunks = {module for module in MODULES if module.startswith("chunks.")}
    own = {imported for module in chunks for imported, _ in imports(module)}
    assert own - chunks == {"errors", "page_cache"}
    writers = [module for module in MODULES if module.split(".")[0] in {"files", "engine"}]
    assert not any(imported in chunks for module in writers for imported, _ in imports(module))


def test_what_reads_entries_to_verify_them_uses_no_loop_of_the_engine() -> None:
    """Nor what writes shards, fragments or scratch, or orders and places entries."""
    reading = [f"verification.{name}" for name in ("sides", "entries", "parts", "samples")]
    used = {imported for module in reading for imported, _ in imports(module)}
    allowed = {"errors", "engine.meters", "planning.layout", "shuffle.digests", *reading}
    files = {f"files.{name}" for name in ("h5ad", "hdf5", "hdf5_errors")}
    assert used - allowed == {"chunks.chunk_reader", *files}
    assert {name for name, _ in imports("shuffle.digests")} == {"shuffle.digest_kernels"}


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_is_imported(module: str) -> None:
    """What begins with an underscore stays at home."""
    private = [
        (imported, name)
        for imported, name in imports(module)
        if name and name.startswith("_") and name != "__version__"
    ]
    assert private == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module: str) -> None:
    """No function is longer than 60 lines of code, its docstring not counted."""
    tree = ast.parse(PATHS[module].read_text())
    long = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            long += [(node.name, lines)] if lines > 60 else []
    assert long == []


def test_the_pure_floors_import_without_dask_zarr_or_h5py() -> None:
    """A fresh interpreter that has them all loaded knows nothing of files or clusters."""
    stub = (
        f"import sys, types; p = types.ModuleType({PACKAGE!r}); p.__path__ = [{str(DIRECTORY)!r}]"
    )
    names = ", ".join(f"{PACKAGE}.{name}" for name in sorted(PURE))
    code = f"{stub}; sys.modules[{PACKAGE!r}] = p; import {names}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert {name.split(".")[0] for name in loaded.stdout.split()} & SLOW == set()
