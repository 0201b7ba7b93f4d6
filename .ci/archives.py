"""Says what is missing from a wheel or an sdist, or should not be in it.

    python .ci/archives.py DIST

The reference is what git tracks or does not ignore. The exit code is 1 if anything is wrong.
"""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
REQUIRED = {"dask_convert/py.typed", "dask_convert/defaults.yaml"}
BY_BUILD = {"PKG-INFO"}


def tracked() -> set[str]:
    """The files of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return {name for name in listed.stdout.decode().splitlines() if (ROOT / name).exists()}


def in_wheel(directory: Path) -> set[str]:
    """Files of the one wheel, but those that describe it."""
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    about = {name for name in names if ".dist-info/" in name}
    for required in ("licenses/LICENSE", "METADATA", "entry_points.txt"):
        if not any(name.endswith(f".dist-info/{required}") for name in about):
            sys.exit(f"{path.name} has no {required}")
    return names - about


def in_sdist(directory: Path) -> set[str]:
    """Files of the one sdist, below its directory."""
    (path,) = directory.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = (name.partition("/")[2] for name in sdist.getnames())
        return {name for name in names if name} - BY_BUILD


def differences(what: str, got: set[str], wanted: set[str]) -> list[str]:
    """A line for each file too many or too few."""
    missing = [f"{what} lacks {name}" for name in sorted(wanted - got)]
    return missing + [f"{what} should not have {name}" for name in sorted(got - wanted)]


def main() -> None:
    """Compare both archives with the repository."""
    directory, files = Path(sys.argv[1]), tracked()
    package = {name for name in files if name.startswith("dask_convert/")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    left_out = tuple(
        name.lstrip("/")
        for name in project["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"]
    )
    found = [f"git does not track {name}" for name in sorted(REQUIRED - package)]
    found += differences("wheel", in_wheel(directory), package)
    source = {name for name in files if not name.startswith(left_out)}
    found += differences("sdist", in_sdist(directory), source)
    print("\n".join(found) or f"wheel: {len(package)} files, sdist: {len(source)} files")
    sys.exit(bool(found))


main()
