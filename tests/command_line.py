"""Running the command line in tests: in this process, where it is quick, or in one of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamgen.cli.app import run

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was written to the two streams."""

    code: int
    stdout: str
    stderr: str

    def error(self) -> str:
        """The one error line of a refusal; asserts that it is one, with exit code 2 and no traceback."""
        assert self.code == 2, self
        assert "Traceback" not in self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.stderr
        return lines[0]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def environment() -> dict[str, str]:
    """For a process of its own: this checkout, one thread."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


# Permissions hold for root, too, in the program that this becomes: it may neither write (1) nor read (2)
# against them. 24 is PR_CAPBSET_DROP.
_WITHOUT_ROOT_POWERS = """
import ctypes, os, sys
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def spawn(*arguments: object, cwd: Path, largest_file: int | None = None) -> subprocess.Popen[str]:
    """Start in a process of its own, in which no file may grow beyond `largest_file` bytes and permissions
    hold for everybody.
    """
    command = ["-m", "streamgen.cli.app"]
    if largest_file is not None:
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file}))"
        command = ["-c", f"import resource; from streamgen.cli.app import main; {limit}; main()"]
    plain = ["-c", _WITHOUT_ROOT_POWERS] if sys.platform == "linux" else []
    return subprocess.Popen(
        [sys.executable, *plain, *command, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call_process(*arguments: object, cwd: Path, largest_file: int | None = None) -> Outcome:
    """Run in a process of its own."""
    process = spawn(*arguments, cwd=cwd, largest_file=largest_file)
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)
