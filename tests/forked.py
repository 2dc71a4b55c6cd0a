"""The command line in a process that is forked from the tests' own: nothing is imported again, which is
nearly all that a process started anew takes. It has the pipes, signals, limits and permissions of one.
"""

import ctypes
import importlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from streamgen.cli.app import main
from tests.command_line import Outcome, environment

# What the command imports when it needs it, and a process that ends has imported for itself alone.
_NEEDED = ("cli.render", "cli.batch", "families", "tiny.load", "engine.choice", "live.open", "render.page")

# Against permissions: to write (1) and to read (2); 24 is PR_CAPBSET_DROP, the number is of version 3.
_POWERS, _DROP, _VERSION = (1, 2), 24, 0x20080522


class Forked:
    """As `subprocess.Popen` with two pipes, as far as tests need it; permissions hold for root, too.

    Args:
        arguments: of `streamgen`.
        cwd: where it runs.
        largest_file: bytes beyond which no file may grow.
        before: is called in the process, before the command.
        command: what is run in place of `streamgen`.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        largest_file: int | None = None,
        before: Callable[[], object] = lambda: None,
        command: Callable[[list[str]], object] = main,
    ) -> None:
        for name in _NEEDED:
            importlib.import_module(f"streamgen.{name}")
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.stdout, self.stderr = (os.fdopen(end, encoding="utf-8") for end in (out, err))
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            given = [str(argument) for argument in arguments]
            run = lambda: command(given)  # noqa: E731
            os._exit(_ended(lambda: _run(run, cwd, largest_file, before, out_end, err_end)))
        for end in (out_end, err_end):
            os.close(end)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("streamgen", timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _ended(run: Callable[[], object]) -> int:
    """The exit code of what ends with `sys.exit`; what else it raises is printed."""
    try:
        run()
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def call_forked(
    *arguments: object,
    cwd: Path,
    largest_file: int | None = None,
    before: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run to its end, in 300 seconds at most."""
    process = Forked(*arguments, cwd=cwd, largest_file=largest_file, before=before)
    said: dict[str, str] = {}
    pipes = {"out": process.stdout, "err": process.stderr}
    readers = [
        threading.Thread(target=lambda name=name: said.update({name: pipes[name].read()})) for name in pipes
    ]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(300)
    finally:
        process.kill()
        for reader in readers:
            reader.join()
    return Outcome(code, said["out"], said["err"])


def _run(
    command: Callable[[], object],
    cwd: Path,
    largest_file: int | None,
    before: Callable[[], object],
    out: int,
    err: int,
) -> None:
    """What a process started anew finds; then the command."""
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end, number)
        os.close(end)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    # neither a log nor a warning is caught by pytest
    logging.getLogger().handlers.clear()
    warnings.showwarning = lambda message, kind, *_: sys.stderr.write(f"{kind.__name__}: {message}\n")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(environment())
    os.chdir(cwd)
    # threads of the tests' process are not here
    torch.set_num_threads(1)
    if sys.platform == "linux":
        _without_root_powers()
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    before()
    command()


def _without_root_powers() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for power in _POWERS:
        libc.prctl(_DROP, power, 0, 0, 0)
        # effective, permitted, inheritable
        for kind in range(3):
            sets[kind] &= ~(1 << power) & 0xFFFFFFFF
    assert libc.capset(header, sets) == 0
