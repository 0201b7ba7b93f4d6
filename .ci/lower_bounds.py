"""Prints pip constraints that hold every dependency at the oldest version that is promised."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["slurm"]:
    print(requirement.replace(">=", "=="))

print("pandas<3")  # the oldest anndata cannot write what pandas 3 makes of strings
