"""The run of the tests itself: what runs when, in how many processes, and that a timed test runs alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TESTS = """
import os, time
from pathlib import Path
import pytest

def test_plain(): assert "torch" not in __import__("sys").modules
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.soak
def test_soak(): pass
@pytest.mark.slow
@pytest.mark.soak
def test_both(): pass
"""

THREADS = """
import os, torch
def test_one(): assert torch.get_num_threads() == int(os.environ["EXPECTED"])
def test_two(): assert torch.get_num_threads() == int(os.environ["EXPECTED"])
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
        command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "passed", "left_out"),
    [
        ([], ["plain"], "left out: 2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
        (["-m", "slow"], ["slow"], "left out: 2 soak (pytest -m soak)"),
        (["-m", "soak"], ["soak"], "left out: 2 slow (pytest -m slow)"),
        (["-m", "slow or soak"], ["slow", "soak", "both"], ""),
        (["-m", "not slow"], ["plain"], "left out: 2 soak (pytest -m soak)"),
        (["-n", "0"], ["plain"], "left out: 2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
        (["-p", "no:xdist"], ["plain"], "left out: 2 slow (pytest -m slow), 1 soak (pytest -m soak)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_only_what_was_asked_for_runs_and_the_rest_is_named(
    arguments: list[str], passed: list[str], left_out: str, tmp_path: Path
) -> None:
    out = run(tmp_path, TESTS, "-rA", *arguments)
    assert re.findall(r"^PASSED .*::test_(\w+)", out, re.MULTILINE) == passed, out
    assert re.findall(r"^left out: .*", out, re.MULTILINE) == [left_out] * bool(left_out), out


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        ([], 2),
        (["-n", "1"], 1),
        (["-n", "0"], 0),
        (["-p", "no:xdist"], 0),
        (["-s"], 0),
        (["-m", "soak"], 0),
        (["-m", "gpu"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_two_workers_unless_told_otherwise(arguments: list[str], workers: int, tmp_path: Path) -> None:
    out = run(tmp_path, TESTS, *arguments)
    started = re.search(r"^(\d) workers? \[", out, re.MULTILINE)
    assert (int(started[1]) if started else 0) == workers, out


@pytest.mark.parametrize(
    ("arguments", "variables", "threads"),
    [([], {"OMP_NUM_THREADS": "2"}, "1"), (["-n0"], {"OMP_NUM_THREADS": "2"}, "2"), (["-n0"], {}, "1")],
    ids=["workers", "one process, told", "one process"],
)
def test_workers_have_one_thread_each(
    arguments: list[str], variables: dict[str, str], threads: str, tmp_path: Path
) -> None:
    out = run(tmp_path, THREADS, *arguments, EXPECTED=threads, **variables)
    assert " 2 passed" in out, out


def test_timed_tests_run_alone(tmp_path: Path) -> None:
    """And do not without their marker."""
    assert " 18 passed" in run(tmp_path, TIMED)
    assert " failed" in run(tmp_path, TIMED.replace("@pytest.mark.timed", ""))
