"""What people meet: help, names, JSON, logs, completion, exit codes, colours, scripts."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import anndata
import click
import msgspec
import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner, Result

import dask_convert
from dask_convert import errors
from dask_convert.cli import main
from dask_convert.options import ConvertOptions, Options, PlanOptions, VerifyOptions
from dask_convert.places.config import Options as YamlOptions

ROOT = Path(__file__).parent.parent
PATHS = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMANDS: dict[str, click.Command] = main.commands  # type: ignore[attr-defined]  # a click group


def run(*arguments: object) -> Result:
    """Run a command of dask-convert."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small h5ad file."""
    counts = np.random.default_rng(0).poisson(0.3, (50, 20)).astype(np.float64)
    path = tmp_path_factory.mktemp("surface") / "cells.h5ad"
    anndata.AnnData(scipy.sparse.csr_matrix(counts)).write_h5ad(path)
    return path


# ------------------------------------------------------------------ help and names


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_screen_and_shows_an_example(name: str) -> None:
    """40 lines of 100 characters, for the program and each command."""
    runner = CliRunner()
    text = runner.invoke(main, [*name.split(), "--help"], terminal_width=100).output
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(rf"Example: dask-convert {name}\b" if name else "Example: dask-convert", text)


@pytest.mark.parametrize("name", [*COMMANDS])
def test_every_option_can_be_found(name: str) -> None:
    """What --help leaves out, --help-all has; nothing is without a word of help."""
    command = COMMANDS[name]
    options = [option for option in command.params if isinstance(option, click.Option)]
    rare = "--help-all" in {text for option in options for text in option.opts}
    text = run(name, "--help-all" if rare else "--help").output
    for option in options:
        assert option.opts[0] in text
        assert option.help


def test_options_have_one_name() -> None:
    """In Python, on the command line and in YAML, and the same defaults."""
    own = {"source", "target", "quiet", "verbose", "log_file", "as_json", "html", "config"}
    own |= {"keep_dashboard_open"}  # `before_close`, in Python
    python = {"client", "progress", "on_part", "on_dashboard", "before_close"}
    for name, kind in (
        ("convert", ConvertOptions),
        ("plan", PlanOptions),
        ("verify", VerifyOptions),
    ):
        words = {parameter.name for parameter in COMMANDS[name].params} - own - {"help_all"}
        assert words == set(kind.__annotations__) - python
    never_by_file = {"overwrite", "restart"}
    yaml_names = set(YamlOptions.__struct_fields__)
    assert yaml_names == (
        set(ConvertOptions.__annotations__) - python - never_by_file | {"keep_dashboard_open"}
    )
    defaults = msgspec.structs.asdict(Options())
    for parameter in COMMANDS["convert"].params:
        if parameter.name in defaults and isinstance(parameter, click.Option):
            default = defaults[parameter.name]
            shown = parameter.to_info_dict()["default"]
            assert (shown or None) == (default or None) or str(shown) == str(default)


def test_signatures_spell_out_the_options() -> None:
    """Editors, help() and documents see each option with its default."""
    for function, kind in (
        (dask_convert.convert, ConvertOptions),
        (dask_convert.plan, PlanOptions),
        (dask_convert.verify, VerifyOptions),
    ):
        parameters = inspect.signature(function).parameters
        named = {name for name, p in parameters.items() if p.kind == p.KEYWORD_ONLY}
        assert named == set(kind.__annotations__)
        assert parameters["memory"].default is None
        text = (inspect.getdoc(dask_convert.convert) or "") + (inspect.getdoc(function) or "")
        for name in named:
            assert re.search(rf"^(\w+, )*{name}(, \w+)*$", text, re.MULTILINE), name
    with pytest.raises(TypeError, match="memry"):
        dask_convert.plan("cells.h5ad", memry="1GiB")  # type: ignore[call-arg]  # that is the point


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    """The printed script asks the program, and the program answers with commands and options."""
    script = run("completion", shell)
    assert script.exit_code == 0
    assert "_DASK_CONVERT_COMPLETE" in script.output
    asked = {
        "bash": {"COMP_WORDS": "dask-convert con", "COMP_CWORD": "1"},
        "zsh": {"COMP_WORDS": "dask-convert con", "COMP_CWORD": "1"},
        "fish": {"COMP_WORDS": "dask-convert con", "COMP_CWORD": "con"},
    }
    variables = {"_DASK_CONVERT_COMPLETE": f"{shell}_complete", **asked[shell]}
    answer = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'dask-convert'\n"
         "from dask_convert.cli import main; main(prog_name='dask-convert')"],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "convert" in answer.stdout
    assert answer.stderr == ""


# ------------------------------------------------------------------ JSON, logs, colours


def test_json_is_all_there_is_on_standard_output(source: Path, tmp_path: Path) -> None:
    """Of commands that end well, that find differences, and that fail."""
    target = tmp_path / "genes.zarr"
    made = json.loads(run("convert", source, target, "--workers", 0, "--json").stdout)
    assert (made["target"], made["matrices"][0]["nnz"]) == (
        str(target),
        anndata.read_h5ad(source).X.nnz,
    )
    assert json.loads(run("verify", source, target, "--workers", 0, "--json").stdout)["equal"]
    again = run("convert", source, target, "--workers", 0, "--json")
    assert json.loads(again.stdout)["error"] == {
        "type": "TargetError",
        "message": again.stderr.removeprefix("dask-convert: ").strip(),
        "exit_code": 4,
        "resumable": False,
    }
    assert again.exit_code == 4
    assert json.loads(run("clean", target, "--json").stdout) == {"cleared": []}


def test_the_log_file_has_it_all(source: Path, tmp_path: Path) -> None:
    """Command, tasks, dask's warnings, and the traceback of a failure, each with its time."""
    log = tmp_path / "run.log"
    target = tmp_path / "genes.zarr"
    command = ("convert", source, target, "--workers", 0, "--log-file", log, "--quiet")
    before = {name: list(logging.getLogger(name).handlers) for name in ("", "dask_convert")}
    assert (run(*command).output, run(*command).exit_code) == ("", 4)
    text = log.read_text()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in text.splitlines()[:5]
    )
    for words in ("split", "combine", "done", "Traceback", "exists already"):
        assert words in text
    assert {name: list(logging.getLogger(name).handlers) for name in before} == before
    refused = run("convert", source, target, "--log-file", tmp_path / "no" / "run.log")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (4, 1)


def test_the_log_file_has_what_dask_says(tmp_path: Path) -> None:
    """Also what dask logs while a cluster of ours has silenced its streams."""
    from distributed.utils import silence_logging_cmgr

    from dask_convert.display.logs import logged

    log = tmp_path / "run.log"
    with logged(log, verbose=False), silence_logging_cmgr(logging.ERROR):
        logging.getLogger("distributed.nanny").warning("a worker was killed")
    assert "WARNING distributed.nanny: a worker was killed" in log.read_text()


def test_verbose_tells_every_task(source: Path, tmp_path: Path) -> None:
    """On standard error."""
    result = run("convert", source, tmp_path / "genes.zarr", "--workers", 0, "--verbose")
    assert "split" in result.stderr
    assert "split" not in result.stdout.partition("X ")[0]


def on_a_terminal(variables: dict[str, str], *arguments: object) -> str:
    """What a command writes where standard error is a terminal."""
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "dask_convert", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=follower, env=environment):
        os.close(follower)
        found = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end has gone
                break
            if not part:
                break
            found += part
    os.close(leader)
    return found.decode()


def test_colours_are_for_terminals_that_want_them(source: Path, tmp_path: Path) -> None:
    """NO_COLOR leaves bars without colours; a dumb terminal gets plain lines."""
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    shown = {
        name: on_a_terminal(variables, "convert", source, tmp_path / name, "--workers", 0)
        for name, variables in {
            "colours": {},
            "none": {"NO_COLOR": "1"},
            "dumb": {"TERM": "dumb"},
        }.items()
    }
    assert colour.search(shown["colours"])
    assert not colour.search(shown["none"])
    assert "\x1b" not in shown["dumb"]
    assert "parts" in shown["dumb"]


# ------------------------------------------------------------------ exit codes, scripts


def test_exit_codes_are_documented() -> None:
    """The table has every code with every exception that has it, and nothing else."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.DaskConvertError)
    ]
    codes: dict[int, set[str]] = {0: set(), errors.INTERRUPTED_EXIT_CODE: set()}
    for kind in kinds:
        codes.setdefault(kind.exit_code, set()).add(kind.__name__)
    text = (ROOT / "docs" / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|.*\| (yes|no|) \|$", text, re.MULTILINE)
    table = {int(code): set(re.findall(r"`(\w+)`", names)) for code, names, _ in rows}
    assert table == codes
    for code, _, resumable in rows:
        named = [kind for kind in kinds if kind.exit_code == int(code)]
        if named:
            assert {kind.resumable for kind in named} == {resumable == "yes"}, code


SCRIPTS = {
    "bare": "dask_convert.convert(*paths)\n",
    "in a function": "def go():\n    dask_convert.convert(*paths)\n\ngo()\n",
    "under another condition": "if paths:\n    dask_convert.verify(*paths)\n",
}


@pytest.mark.parametrize("body", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_without_a_guard_gets_one_line(source: Path, tmp_path: Path, body: str) -> None:
    """It names script and line and says what to do; nothing has started, nothing is left."""
    script = tmp_path / "script.py"
    target = tmp_path / "genes.zarr"
    head = f"import dask_convert\npaths = {str(source)!r}, {str(target)!r}\n"
    script.write_text(head + body)
    ended = subprocess.run(
        [sys.executable, script],
        env=PATHS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"dask_convert.errors.MainGuardError: {script}, line ")
    assert 'if __name__ == "__main__":' in last
    assert ended.stderr.count("Traceback") == 1
    assert ended.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_script_with_a_guard_runs(source: Path, tmp_path: Path) -> None:
    """And so does one without, where no worker processes are wanted."""
    script, target = tmp_path / "script.py", tmp_path / "genes.zarr"
    script.write_text(
        f"import dask_convert\npaths = {str(source)!r}, {str(target)!r}\n"
        'if __name__ == "__main__":\n    dask_convert.convert(*paths, workers=1)\n'
        "    dask_convert.convert(*paths, workers=0, overwrite=True)\n"
    )
    subprocess.run([sys.executable, script], env=PATHS, timeout=60, check=True)
    assert target.is_dir()


def test_one_matrix_or_several_can_be_named(source: Path) -> None:
    """A name is a list of one."""
    for chosen in ("X", ["X"], ("X",)):
        assert [m.source.name for m in dask_convert.plan(source, matrix=chosen).matrices] == ["X"]
