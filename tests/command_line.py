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


def spawn(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start in a process of its own, started anew: seconds of imports. See `tests.forked`."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamgen.cli.app", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call_process(*arguments: object, cwd: Path) -> Outcome:
    """Run in a process of its own."""
    process = spawn(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)
