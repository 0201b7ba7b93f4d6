"""Spoilt files end in a typed error or in an equal store: nothing else, whatever the fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from corruption import CORRUPTIONS, STRUCTURED, corruption_of

SCRIPT = Path(__file__).parent / "soak" / "bad_input.py"
CASES = 3 * len(STRUCTURED) // 2 + 2
"""Every structured corruption at least once, and half as many random ones."""


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What came of every case, each in a process of its own."""
    command = [sys.executable, str(SCRIPT), "--cases", str(CASES), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_corruption_is_tried() -> None:
    """The seeds of a default run cover all of the list."""
    assert {corruption_of(seed) for seed in range(CASES)} == set(CORRUPTIONS)


def test_a_spoilt_file_is_refused_or_converted_right(results: list[dict[str, Any]]) -> None:
    """No crash, no hang, no other exception, no silent change, nothing left behind."""
    assert len(results) == CASES
    assert [case for case in results if case["outcome"] not in {"equal", "refused"}] == []


def test_each_structured_corruption_has_its_outcome(results: list[dict[str, Any]]) -> None:
    """What must be refused is, and what is allowed arrives."""
    outcomes = {case["kind"]: case["outcome"] for case in results if case["kind"] in STRUCTURED}
    assert outcomes == {name: corruption.outcome for name, corruption in STRUCTURED.items()}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("indptr wraps", ["X/indptr[", "32-bit overflow", "int64"]),
        ("indptr ends early", ["X/indptr[", "entries would be lost"]),
        ("index negative", ["X/indices[", "is -1", "in row", "n_vars"]),
        ("index of 64 bits", ["X/indices[", str(2**64 - 1), "in row"]),
        ("indices of floats", ["X/indices", "float32", "integer"]),
        ("data short", ["X", "data was cut short"]),
        ("CSR called CSC", ["X/indptr", "this is CSR", "encoding-type"]),
        ("CSC called CSR", ["X/indptr", "this is CSC", "encoding-type"]),
        ("obs short", ["X", "along obs", "must agree"]),
        ("data unwritten", ["X/data", "never written", "zeros"]),
        ("obs of 2**50", ["obs/batch", "never written"]),
        ("gzip bomb", ["obs/batch, chunk at 0", "declared"]),
        ("lzf of less", ["X/data", "inflates to", "declared"]),
        ("zstd that lies", ["X/data", "inflate"]),
        ("external link in uns", ["uns/out", "other.h5", "--allow-external"]),
        ("virtual obs", ["obs/score", "virtual", "--allow-external"]),
        ("external storage of obs", ["obs/batch", "/etc/passwd", "--allow-external"]),
        ("filter on trial", ["obs/bad", "'6'", "--allow-plugins"]),
        ("named ..", ["uns", "'..'", "rename"]),
        ("text", ["source.h5ad", "no HDF5 file"]),
        ("directory", ["source.h5ad", "not a file"]),
    ],
)
def test_messages_say_where_and_why(
    results: list[dict[str, Any]], kind: str, words: list[str]
) -> None:
    """Data set, position, value, rule or remedy: what there is to say of it."""
    message = next(case["message"] for case in results if case["kind"] == kind)
    assert [word for word in words if word not in message] == [], message
