"""Proof that a directory is the same one here and on every worker, by questions and answers.

    DIRECTORY/question           a word that nobody can guess, written here
    DIRECTORY/hello-<worker>     the word backwards, written by a worker that has read it
    DIRECTORY/answer-<worker>    written here when the worker's file was seen and right

So what either side writes, the other one reads. It goes through files alone, and so works for
workers that come when the conversion has been running for hours.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from dask_convert.errors import WorkerCheckError

ANSWER_SECONDS = 0.2
"""How often this side looks for files of workers, and workers for their answers."""


class Question(msgspec.Struct, frozen=True):
    """What a worker is told of a directory: where it should be, and the word in it."""

    directory: str
    word: str


class Probes:
    """Asks questions in some directories, and answers, until it is left.

    Parameters
    ----------
    directories
        They exist, belong to this run, and are removed with it.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        self.questions = tuple(Question(str(path), secrets.token_hex(16)) for path in directories)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="probes", daemon=True)

    def __enter__(self) -> Self:
        for question in self.questions:
            _write(Path(question.directory), "question", question.word)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _answer(self) -> None:
        while not self._done.wait(ANSWER_SECONDS):
            for question in self.questions:
                with suppress(OSError):  # seen next time
                    _answer_new(Path(question.directory), question.word)


def meet(question: Question, wait_seconds: float) -> None:
    """On a worker: read the question, say hello, wait for the answer.

    Raises
    ------
    WorkerCheckError
        The directory is another one here, or cannot be read or written.
    """
    directory = Path(question.directory)
    remedy = "it must be on a file system that all nodes share"
    name = uuid.uuid4().hex
    try:
        found = _wait(directory / "question", wait_seconds)
        if found != question.word:
            what = "is not there" if found is None else "is another directory of the same name"
            msg = f"{directory} {what} on this worker: {remedy}"
            raise WorkerCheckError(msg)
        _write(directory, f"hello-{name}", question.word[::-1])
        if _wait(directory / f"answer-{name}", wait_seconds) is None:
            msg = f"what this worker writes into {directory} is not seen elsewhere: {remedy}"
            raise WorkerCheckError(msg)
    except OSError as error:
        msg = f"{directory} cannot be read and written on this worker: {error.strerror}"
        raise WorkerCheckError(msg) from error


def _answer_new(directory: Path, word: str) -> None:
    for path in directory.glob("hello-*"):
        if path.read_text() == word[::-1]:
            _write(directory, path.name.replace("hello-", "answer-"), "seen")
            path.unlink()


def _wait(path: Path, wait_seconds: float) -> str | None:
    """What a file has, as soon as it is there; network file systems show new files late."""
    deadline = time.monotonic() + wait_seconds
    while True:
        with suppress(FileNotFoundError):
            return path.read_text()
        if time.monotonic() > deadline:
            return None
        time.sleep(ANSWER_SECONDS)


def _write(directory: Path, name: str, text: str) -> None:
    """Write a file that appears whole."""
    attempt = directory / f".{name}.{uuid.uuid4().hex}"
    attempt.write_text(text)
    attempt.rename(directory / name)
