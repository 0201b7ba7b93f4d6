"""Every notebook runs from top to bottom in an empty directory, without errors and warnings."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import NOTEBOOKS, complaints, executed, own_slurm, shown

SLURM = "03-slurm.ipynb"


@pytest.fixture
def slurm() -> Iterator[bool]:
    """Whether there is a SLURM; its own, if its programs are there."""
    directory = Path(tempfile.mkdtemp(prefix="nb-"))  # names of sockets must be short
    try:
        with own_slurm(directory) as is_there:
            yield is_there
    finally:
        shutil.rmtree(directory)


def test_there_are_notebooks() -> None:
    """Those that the documents name."""
    names = [path.name for path in NOTEBOOKS]
    assert names == ["01-convert-and-look.ipynb", "02-genes-to-biology.ipynb", SLURM]


@pytest.mark.parametrize("path", NOTEBOOKS[:-1], ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    """No cell fails, and none complains."""
    assert complaints(executed(path, tmp_path)) == []


def test_the_notebook_about_slurm_runs(slurm: bool, tmp_path: Path) -> None:
    """On a SLURM, whose queue then knows its jobs, or on the stand-in; it says which."""
    (path,) = [path for path in NOTEBOOKS if path.name == SLURM]
    notebook = executed(path, tmp_path)
    assert complaints(notebook) == []
    text = shown(notebook)
    assert ("Jobs go to SLURM." in text) == slurm
    assert ("No SLURM is here" in text) != slurm
    jobs = re.findall(r"dask-convert-\w+ +(?:COMPLET|CANCEL)", text)
    assert bool(jobs) == slurm
