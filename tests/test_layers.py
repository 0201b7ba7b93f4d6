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
FLOORS = (
    # Plain values, arithmetic and compiled loops: no dask, no zarr, no h5py.
    {"_version", "errors", "layout"},
    {"records", "kernels"},
    {"dtypes", "pages"},
    {"memory"},
    {"plans", "fragments", "ordering", "placing"},
    {"planning"},
    # Files.
    {"scratch", "meters", "annotation_elements", "synthetic_model"},
    {"hdf5", "fragment_files", "shards", "annotations", "synthetic"},
    {"h5ad", "zarr_csc"},
    # Work.
    {"tasks"},
    {"stages"},
    {"graph", "preload"},
    {"run"},
    # What surrounds it.
    {"config", "cluster", "progress", "summary"},
    {"bars"},
    {"api"},
    {"__init__"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
DEFERRED = {
    ("tasks", "stages"),  # tasks are named where they are planned, loaded where they run
    ("progress", "bars"),  # rich is slow to import, and only terminals need it
}
"""Imports that go up, and so may stand in functions only."""
PURE = set().union(*FLOORS[:6])
SLOW = {"anndata", "dask", "distributed", "h5py", "zarr"}
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
MODULES = sorted(path.stem for path in DIRECTORY.glob("*.py"))


def imports(module: str) -> Iterator[tuple[str, str | None]]:
    """Modules of ours that a module imports, wherever in it, and the names it takes from them."""
    tree = ast.parse((DIRECTORY / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield alias.name.partition(".")[2] or "__init__", None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            if node.module == PACKAGE:
                for alias in node.names:
                    is_module = alias.name in MODULES
                    yield (alias.name, None) if is_module else ("__init__", alias.name)
            elif node.module and node.module.startswith(f"{PACKAGE}."):
                for alias in node.names:
                    yield node.module.partition(".")[2], alias.name


def test_every_module_has_a_floor() -> None:
    """Nothing is added without a place, and no name is on two floors."""
    assert [module for module in MODULES if module not in FLOOR_OF] == []
    assert not any(one & other for one, other in itertools.combinations(FLOORS, 2))


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
    tree = ast.parse((DIRECTORY / f"{module}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = [node for node in ast.walk(tree) if _names(node, imported)]
    assert found
    assert all(id(node) in inside for node in found)


def _names(node: ast.AST, imported: str) -> bool:
    """Whether a node imports this module of ours."""
    if not isinstance(node, ast.ImportFrom):
        return False
    by_name = node.module == PACKAGE and any(alias.name == imported for alias in node.names)
    return by_name or node.module == f"{PACKAGE}.{imported}"


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
    tree = ast.parse((DIRECTORY / f"{module}.py").read_text())
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
