"""What the documents and the packaging say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dask_convert import __version__
from dask_convert.cli import main
from dask_convert.places.config import configured
from dask_convert.places.slurm_settings import SlurmSettings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]


def test_environment_yml_names_what_pyproject_names() -> None:
    """Conda users get the same dependencies, with the same bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    extras = project["optional-dependencies"]
    expected = project["dependencies"] + extras["slurm"] + extras["notebooks"]
    assert [name for name in pip if name != "."] == expected
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_the_citation_names_the_version_that_the_changelog_leads_to() -> None:
    """One version everywhere: the released one, or the one that comes."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert newest.startswith("[Unreleased]")
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"{__version__} will be" in newest or f"\n## [{__version__}]" in text


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_configs_are_valid(path: Path) -> None:
    """Every file that we ship can be given as --config."""
    assert configured(path)


def test_the_default_config_says_what_the_defaults_are() -> None:
    """Options in dask_convert/defaults.yaml have the values that they have without it."""
    command = main.commands["convert"]  # type: ignore[attr-defined]  # a click group
    defaults = {parameter.name: parameter.default for parameter in command.params}
    options = configured()
    assert options.pop("slurm") == SlurmSettings()
    for name, value in options.items():
        assert str(defaults[name]) == str(value), name


def test_documented_options_exist() -> None:
    """Every --option that a document mentions for dask-convert is one of a command's."""
    runner = CliRunner()
    commands = main.commands  # type: ignore[attr-defined]  # a click group
    helps = "".join(
        runner.invoke(main, [name, flag]).output
        for name in commands
        for flag in ("--help", "--help-all")
    )
    names = ("README.md", "docs/running.md", "dask_convert/defaults.yaml", "configs/slurm.yaml")
    text = "\n".join((ROOT / name).read_text() for name in names)
    for option in set(re.findall(r"dask-convert [a-z]+ .*?(--[a-z-]+)", text)):
        assert option in helps, option


def test_tests_that_documents_name_exist() -> None:
    """Every promise in docs/faults.md names a test, or says "spoilt", and that test is there."""
    text = (ROOT / "docs" / "faults.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row.split(" | ")[0] not in {"| input", "| fault"}]
    assert len(rows) > 30
    for row in rows:
        held_by = row.rpartition(" | ")[2]
        names = re.findall(r"\b(test_\w+)(?!\w*\.py)`", held_by)
        assert names or "spoilt" in held_by, row
        assert [name for name in names if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links of every document name files that are there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_tests_that_faults_md_names_exist() -> None:
    """Every promise in the table of faults is held by a test that is there."""
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", (ROOT / "docs" / "faults.md").read_text())
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
