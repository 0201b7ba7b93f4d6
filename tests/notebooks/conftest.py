"""A kernel that finds this package; all of this directory needs Jupyter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import Kernel, kernel

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this directory needs Jupyter; see the marker in pyproject.toml."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.notebooks)


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels import the package that these tests belong to, and leave the user's files alone."""
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{path}" if path else str(ROOT))


@pytest.fixture
def jupyter(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel that works in the test's directory."""
    with kernel(tmp_path) as started:
        yield started
