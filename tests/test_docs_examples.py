"""Every fenced example of the README and of docs/ runs, in order, or says below why it does not.

Each document gets a directory of its own with ``cells.h5ad`` and ``genes.zarr``. Lines of ``sh``
are commands of this program and run in this process; blocks of ``python`` share one namespace.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import dask
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

from benchmarks import peer_rows, sizing
from dask_convert.api import convert
from dask_convert.cli import main
from dask_convert.demo import run_demo
from dask_convert.example.synthetic import write_synthetic_h5ad
from dask_convert.reading.store import open_store

pytestmark = [
    pytest.mark.once,  # what the examples call is tested by itself
    pytest.mark.filterwarnings(
        "ignore:The 'future.infer_string' option",
        "ignore::FutureWarning",  # of scanpy and what it imports, about each other
        "ignore::DeprecationWarning",  # the same
        "ignore::PendingDeprecationWarning",  # the same
    ),
]

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
RUN = {"sh", "python", "console"}
SHOWN = {"", "text", "{eval-rst}", "{toctree}", "{include}"}
"""Languages of blocks that show something, and of those that are Sphinx's own."""

NOT_RUN = {
    "pip install .\ndask-convert ": "installing is .ci/release's business",
    "pip install '.[": "the same",
    "pip install -e": "the same",
    "dask-convert demo\n": ".ci/run does; test_cli.py runs a small one",
    "conda env create": "there is no conda; test_docs.py compares environment.yml",
    "tests/soak/": "takes minutes; by hand",
    "--cluster slurm": "needs SLURM: tests/slurm/test_commands.py",
    'cluster="slurm"': "needs SLURM: tests/slurm/test_jobs.py",
    "sbatch ": "needs SLURM: tests/slurm/test_commands.py",
    "dask scheduler": "starts servers: test_places.py has a scheduler of its own",
    "tcp://127.0.0.1:8786": "the same",
    "python -m pytest  ": "these are the tests",
}
"""Beginnings or parts of blocks that are not run, each with its reason."""


class Example(NamedTuple):
    """A fenced block: its document, line and language, and what is in it."""

    document: str
    line: int
    language: str
    code: str


def examples(path: Path) -> list[Example]:
    """All fenced blocks of a document; of a directive's line its name counts."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Example(
            path.name, text[: block.start()].count("\n") + 1, block[1].partition(" ")[0], block[2]
        )
        for block in found
    ]


def reason_not_to_run(example: Example) -> str | None:
    """Why an example is left out; None if it is not."""
    return next((why for part, why in NOT_RUN.items() if part in example.code), None)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as readers have it: a file with some known genes, and its store."""
    directory = tmp_path_factory.mktemp("template")
    source = directory / "cells.h5ad"
    write_synthetic_h5ad(source, n_obs=300, n_vars=200, n_types=3, processes=1)
    adata = ad.read_h5ad(source)
    genes = ["Gad1", "Gad2", "Gene07587", "Gene06934"]
    known = dict(zip(adata.var_names[100:104], genes, strict=True))
    adata.var_names = [known.get(name, name) for name in adata.var_names]
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(["A", "B", "type_08"])
    adata.write_h5ad(source, compression="gzip")
    convert(source, directory / "genes.zarr", workers=0)
    for name in ("sample-1.h5ad", "sample-2.h5ad"):
        shutil.copy(source, directory / name)
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in; commands start no cluster."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with dask.config.set({"dask-convert.workers": 0}):
        yield tmp_path


def commands(example: Example) -> list[str]:
    """The command lines of a block of shell or of a console session."""
    lines = example.code.replace("\\\n", " ").splitlines()
    if example.language == "console":
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run_command(line: str) -> str:
    """What a line prints that has to be a command of this program and to end well."""
    program, *arguments = shlex.split(
        string.Template(line).safe_substitute(os.environ), comments=True
    )
    assert program == "dask-convert", line
    if arguments[0] == "convert" and not {"--overwrite", "--help", "--help-all"} & {*arguments}:
        shutil.rmtree(arguments[2], ignore_errors=True)  # documents use the same name again
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (line, result.output)
    return result.stdout


def run_python(example: Example, names: dict[str, Any]) -> None:
    """A block, in the names of those before; what it converts has room."""
    if '"genes.zarr"' in example.code and "convert(" in example.code:
        shutil.rmtree("genes.zarr")
    exec(compile(example.code, f"{example.document}:{example.line}", "exec"), names)  # noqa: S102


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.usefixtures("directory")
def test_examples_run(path: Path) -> None:
    """Each of them, one after the other."""
    prepare(path.name)
    names: dict[str, Any] = {"__name__": "__main__"}
    for example in examples(path):
        assert example.language in RUN | SHOWN, f"{example.document}:{example.line}"
        if example.language in SHOWN or reason_not_to_run(example):
            continue
        if example.language == "python":
            run_python(example, names)
        else:
            for line in commands(example):
                run_command(line)


def prepare(document: str) -> None:
    """Make what a document takes for granted."""
    if document == "README.md":
        demo()
    if document == "faq.md":
        write_10x(Path("filtered_feature_bc_matrix.h5"))
        adata = ad.read_h5ad("cells.h5ad")
        adata.raw = adata.copy()
        adata.write_h5ad("cells.h5ad")


def demo() -> str:
    """What the demo prints, a small one that leaves the template's file."""
    lines: list[str] = []
    directory = Path("dask-convert-demo")
    run_demo(directory, 300, 200, memory="1GiB", workers=0, say=lines.append)
    shutil.copy("cells.h5ad", directory)
    return "\n".join(lines)


def write_10x(path: Path) -> None:
    """Write a file as Cell Ranger does."""
    import h5py

    counts = sp.csc_matrix(np.random.default_rng(0).poisson(0.3, (20, 10)))  # genes × cells
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group.update(data=counts.data, indices=counts.indices, indptr=counts.indptr)
        group.update(shape=counts.shape, barcodes=[f"AAAC-{n}".encode() for n in range(10)])
        for name in ("id", "name", "feature_type", "genome"):
            group[f"features/{name}"] = [f"{name}{n}".encode() for n in range(20)]


@pytest.mark.usefixtures("directory")
def test_a_store_says_what_the_page_about_reading_says() -> None:
    """Its first example, that is."""
    shown = repr(open_store("genes.zarr")).replace(str(Path.cwd()), "/...")
    assert f"store  # {shown}" in (ROOT / "docs" / "reading-genes.md").read_text(encoding="utf-8")


def test_every_reason_not_to_run_is_needed() -> None:
    """What is on the list is in some document."""
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [part for part in NOT_RUN if part not in text] == []


def shape_of(text: str) -> list[str]:
    """Printed lines with their numbers, units and paths taken away."""
    without = re.sub(r"/\S+", "PATH", text)
    without = re.sub(r"[\d,.]+( [KMGT]?i?B)?", "#", without)
    return [" ".join(line.split()) for line in without.splitlines() if line.strip()]


@pytest.mark.usefixtures("directory")
def test_what_the_readme_shows_is_what_is_printed() -> None:
    """But for numbers and paths."""
    (text,) = (found.code for found in examples(ROOT / "README.md") if found.language == "text")
    assert shape_of(text) == shape_of(demo())
    shown = [found for found in examples(ROOT / "README.md") if found.language == "console"]
    assert len(shown) == 2
    for example in shown:
        (line,) = commands(example)
        printed = example.code.split("\n", 1)[1]
        assert shape_of(printed) == shape_of(run_command(line)), example.line


@pytest.mark.parametrize("name", ["README.md", "docs/faq.md"])
def test_the_sizing_table_is_what_the_planner_says(name: str) -> None:
    """``python -m benchmarks.sizing DOCUMENT`` changes nothing."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert sizing.with_table(text) == text


def test_the_comparison_says_of_this_project_what_is_so(tmp_path: Path) -> None:
    """Its column is what comes out of running it; those of others change with their versions."""
    lines = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| | dask_convert | anndata | annizarr | BPCells (Python) |")
    table = lines[first + 2 : lines.index("", first)]
    said = {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in table)}
    command = peer_rows.commands(None, None)["dask_convert"]
    source = peer_rows.made(tmp_path)
    assert peer_rows.rows_of("dask_convert", command, source, tmp_path) == said
