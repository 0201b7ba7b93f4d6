"""Runs the notebooks top to bottom; as a program, keeps their outputs in them.

    python tests/notebooks/running.py [NAME…]

runs all of ``notebooks/`` or those whose names begin so, each in a directory of its own, the one
about SLURM with a SLURM of its own if the programs are there. What differs from machine to machine
is replaced before outputs are kept.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 240
PLACE = "/home/me"
"""Stands for the directory in which a notebook was run."""

sys.path.insert(0, str(HERE.parent / "slurm"))
from local_slurm import PROGRAMS, local_slurm  # noqa: E402  (beside these tests)


def executed(path: Path, directory: Path) -> NotebookNode:
    """A notebook with the outputs that it has when it is run in an empty directory.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook: NotebookNode = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(directory)}},
    )
    client.execute()
    return notebook


def complaints(notebook: NotebookNode) -> list[str]:
    """What its cells wrote to the standard error stream: warnings, for instance."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return [out.text for out in outputs if out.get("name") == "stderr"]


def shown(notebook: NotebookNode) -> str:
    """All text of its outputs."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return "\n".join(texts)


@contextmanager
def own_slurm(directory: Path) -> Iterator[bool]:
    """A SLURM that this process and those that it starts find, if its programs are there.

    Parameters
    ----------
    directory
        For its state; its name is short.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if any(shutil.which(program, path=path) is None for program in PROGRAMS):
        yield False
        return
    before = os.environ.copy()
    try:
        with local_slurm(directory / "slurm") as slurm:
            os.environ.update(slurm.environment)
            os.environ["DASK_DASK_CONVERT__SLURM__INTERFACE"] = "lo"
            os.environ["DASK_DASK_CONVERT__SLURM__POLL_SECONDS"] = "1"
            yield True
    finally:
        os.environ.clear()
        os.environ.update(before)


def cleaned(notebook: NotebookNode, directory: Path) -> NotebookNode:
    """The same without what is this machine's: paths and ports."""
    import nbformat

    text = nbformat.writes(notebook)
    text = text.replace(str(directory), PLACE)
    text = re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:8787", text)
    clean: NotebookNode = nbformat.reads(text, as_version=4)
    for number, cell in enumerate(clean.cells):
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", ()):
            output.pop("transient", None)
    clean.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return clean


def main(prefixes: list[str]) -> None:
    """Run notebooks and keep their outputs."""
    import nbformat

    os.environ["PYTHONPATH"] = str(ROOT)
    for path in NOTEBOOKS:
        if prefixes and not path.name.startswith(tuple(prefixes)):
            continue
        with tempfile.TemporaryDirectory(prefix="nb-") as name:
            work = Path(name) / "work"
            work.mkdir()
            with own_slurm(Path(name)) if "slurm" in path.name else nullcontext():
                notebook = executed(path, work)
            if complaints(notebook):
                sys.exit(f"{path.name}: {complaints(notebook)}")
            nbformat.write(cleaned(notebook, work), path)


if __name__ == "__main__":
    main(sys.argv[1:])
