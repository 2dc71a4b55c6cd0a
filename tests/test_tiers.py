"""The run of the tests itself: what runs when, in how many processes, and that a timed test runs alone."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TESTS = """
import os, sys
import pytest

def test_plain():
    # told before anything could import torch
    assert "torch" not in sys.modules and os.environ["OMP_NUM_THREADS"] == os.environ["EXPECTED"]
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.soak
def test_soak(): pass
@pytest.mark.slow
@pytest.mark.soak
def test_both(): pass
"""

# Plain tests overlap each other. A worker leaves a mark while it is in a test; timed tests look for others'.
TIMED = """
import os, time
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.fixture(autouse=True)
def mark(request):
    file = HERE / f"at-work-{os.environ['PYTEST_XDIST_WORKER']}"
    file.touch()
    yield
    time.sleep(0.05)
    file.unlink()

@pytest.mark.parametrize("turn", range(12))
def test_plain(turn):
    time.sleep(0.05)

@pytest.mark.timed
@pytest.mark.parametrize("turn", range(6))
def test_timed(turn):
    for _ in range(10):
        assert len(list(HERE.glob("at-work-*"))) == 1
        time.sleep(0.01)
"""


def run(folder: Path, text: str, *arguments: str, **variables: str) -> str:
    """Run these tests under our conftest and configuration; what was printed."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "tests" / "conftest.py", folder / "conftest.py")
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OMP_", "COV_"))
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False, timeout=300
    )
    return done.stdout + done.stderr


def check(folder: Path, arguments: str, workers: int, passed: str, left_out: str) -> None:
    """Run TESTS where two threads are set from outside: a single process keeps to it, workers do not."""
    threads = "1" if workers else "2"
    out = run(folder, TESTS, "-rA", *shlex.split(arguments), OMP_NUM_THREADS="2", EXPECTED=threads)
    started = re.search(r"^(\d) workers? \[", out, re.MULTILINE)
    assert (int(started[1]) if started else 0) == workers, out
    assert " ".join(sorted(re.findall(r"^PASSED .*::test_(\w+)", out, re.MULTILINE))) == passed, out
    assert re.findall(r"^left out: (.*)", out, re.MULTILINE) == [left_out] * bool(left_out), out


def test_two_workers_run_the_everyday_tests_and_the_rest_is_named(tmp_path: Path) -> None:
    check(tmp_path, "", 2, "plain", "2 slow (pytest -m slow), 1 soak (pytest -m soak)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "workers", "passed", "left_out"),
    [
        ("-n 1", 1, "plain", "2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
        ("-n 0", 0, "plain", "2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
        ("-p no:xdist", 0, "plain", "2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
        ("-s", 0, "plain", "2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
        ("-m slow", 2, "slow", "2 soak (pytest -m soak)"),
        ("-m 'not slow'", 2, "plain", "2 soak (pytest -m soak)"),
        ("-m 'not soak'", 2, "plain", "2 slow (pytest -m slow)"),
        ("-m soak", 0, "soak", "2 slow (pytest -m slow)"),
        ("-m 'slow or soak'", 0, "both slow soak", ""),
        ("-m gpu", 0, "", "2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
    ],
)
def test_what_is_asked_for_runs_and_where(
    arguments: str, workers: int, passed: str, left_out: str, tmp_path: Path
) -> None:
    check(tmp_path, arguments, workers, passed, left_out)


@pytest.mark.slow
def test_timed_tests_run_alone(tmp_path: Path) -> None:
    """And do not without their marker."""
    assert " 18 passed" in run(tmp_path, TIMED)
    assert " failed" in run(tmp_path, TIMED.replace("@pytest.mark.timed", ""))
