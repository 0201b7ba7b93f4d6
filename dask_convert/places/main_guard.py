"""Scripts that local workers would run again, told before any worker starts.

A worker process imports the script that the user started, as multiprocessing has it. Whatever is
not below ``if __name__ == "__main__":`` runs there a second time; a conversion would start workers
of its own, which multiprocessing ends with a long traceback. So the calling script is looked at:
is the statement from which the call came guarded?
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from dask_convert.errors import MainGuardError

_GUARDS = {"__name__", "parent_process", "current_process"}
"""Names by which a condition tells the main process from its children."""


def require_main_guard() -> None:
    """Refuse to start workers from a statement that they would run again.

    Scripts that cannot be read, and interactive sessions, which are not imported by workers, pass.

    Raises
    ------
    MainGuardError
        Names script and line.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise MainGuardError(
            _message(str(getattr(sys.modules["__main__"], "__file__", "script")), 0)
        )
    script = _imported_script()
    frame = None if script is None else _statement(script)
    if script is None or frame is None:
        return
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    if not any(_tells_processes(test) for test in _conditions(tree, frame.f_lineno)):
        raise MainGuardError(_message(script, frame.f_lineno))


def _imported_script() -> str | None:
    """The file that workers import as main; None if they import none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    path: str | None = getattr(main, "__file__", None)
    # As multiprocessing does: packages' __main__ and IPython's are left alone.
    if path is None or (spec is not None and spec.name.rpartition(".")[2] == "__main__"):
        return None
    return None if Path(path).stem == "ipython" else path


def _statement(script: str) -> FrameType | None:
    """The frame in which the script's own statements run, if the call comes from there."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  (as inspect does)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            return frame if _same(code.co_filename, script) else None
        frame = frame.f_back
    return None


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _conditions(tree: ast.Module, line: int) -> Iterator[ast.expr]:
    """The conditions around a line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or line):
            yield node.test


def _tells_processes(test: ast.expr) -> bool:
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    return bool(names & _GUARDS) or any(
        isinstance(node, ast.Attribute) and node.attr in _GUARDS for node in ast.walk(test)
    )


def _message(script: str, line: int) -> str:
    where = f"{script}, line {line}" if line else script
    return (
        f'{where}: put this call below if __name__ == "__main__": because each worker process '
        "imports the script and would start it again; workers=0 needs no worker processes"
    )
