"""The processes that make streams for evaluations and exams."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import distill
from distill.evaluation import pool
from distill.evaluation.pool import each
from streamgen import StreamgenError
from tests.waiting import wait_until


def _killed_at(wanted: int, task: int) -> int:
    if task == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.slow
def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(StreamgenError, match="one of its processes was killed") as error:
        list(each(2, _killed_at, range(4), 2))
    assert "\n" not in str(error.value)


def _stays(folder: Path, task: int) -> int:
    """Says which process it is in, and is not done before long."""
    (folder / f"{task}.new").write_text(str(os.getpid()))
    (folder / f"{task}.new").rename(folder / f"{task}.pid")
    time.sleep(600)
    return task


def _forked(run: Callable[[], object]) -> int:
    """The number of a process forked from this one, in which the signals are as in any other."""
    pid = os.fork()
    if pid:
        return pid
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        run()
    finally:
        os._exit(1)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor's SIGTERM reaches `python -m distill.evaluate` alone; its processes once stayed."""
    # workers that are started anew take seconds to import what forked ones have
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda kind: context)
    main = _forked(lambda: list(each(tmp_path, _stays, range(2), 2)))
    workers: list[int] = []
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, "no workers")
        workers = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
        assert len({main, *workers}) == 3
        assert all(map(_lives, workers))
        os.kill(main, number)
        assert os.waitstatus_to_exitcode(os.waitpid(main, 0)[1]) == -number
        wait_until(lambda: not any(map(_lives, workers)), f"workers stay: {workers}")
    finally:
        for pid in filter(_lives, workers):
            os.kill(pid, signal.SIGKILL)


def test_processes_are_started_in_places_that_end_them() -> None:
    """Whoever starts some elsewhere says here what ends them where SIGTERM reaches the main process alone."""
    ended_by = {
        "evaluation/pool.py": "the test above",
        "ablate/cells.py": "test_ablate.py: test_stopping_lets_what_runs_save",
        "recipe.py": "test_recipe.py: test_a_stage_has_saved_when_a_stopped_recipe_ends",
        "__main__.py": "torch's launcher, which passes signals on",
    }
    starts = re.compile(r"Popen\(|ProcessPool\w*\(|\bProcess\(|os\.fork|subprocess\.run|distributed\.run")
    root = Path(distill.__path__[0])
    files = {file.relative_to(root).as_posix(): file.read_text() for file in root.rglob("*.py")}
    assert {name for name, text in files.items() if starts.search(text)} == set(ended_by)
