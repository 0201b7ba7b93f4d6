"""What the documents and the packaging say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dask_convert.cli import main
from dask_convert.config import configured

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]


def test_environment_yml_names_what_pyproject_names() -> None:
    """Conda users get the same dependencies, with the same bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert [name for name in pip if name != "."] == project["dependencies"]
    assert f"python{project['requires-python']}" in environment["dependencies"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_configs_are_valid(path: Path) -> None:
    """Every file that we ship can be given as --config."""
    assert configured(path)


def test_the_default_config_says_what_the_defaults_are() -> None:
    """Options in configs/default.yaml have the values that they have without it."""
    command = main.commands["convert"]  # type: ignore[attr-defined]  # a click group
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for name, value in configured(ROOT / "configs" / "default.yaml").items():
        assert str(defaults[name]) == str(value), name


def test_documented_options_exist() -> None:
    """Every --option that a document mentions for dask-convert is one of a command's."""
    runner = CliRunner()
    helps = "".join(runner.invoke(main, [name, "--help"]).output for name in main.commands)  # type: ignore[attr-defined]  # a click group
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "configs/default.yaml"))
    for option in set(re.findall(r"dask-convert [a-z]+ .*?(--[a-z-]+)", text)):
        assert option in helps, option


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links of every document name files that are there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
