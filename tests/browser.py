"""Chromium for the tests that drive the demo: found on this machine, or else installed, once a run.

Debian's package where apt-get is there and may be used, Playwright's own build elsewhere. Where neither can
be had, the tests fail with one line that says what to type; nothing is skipped.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Seconds. The package and its dependencies are some 150 MB.
_INSTALL_SECONDS = 900.0
_START_SECONDS = 60.0
# Another run may be installing, too.
_APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
_PACKAGES = ("chromium", "fonts-dejavu-core")
_PLAYWRIGHT = (sys.executable, "-m", "playwright", "install", "chromium")


class NoBrowserError(RuntimeError):
    """No Chromium, and no way to get one; its text is one line that says what to type."""


@dataclass(frozen=True)
class Machine:
    """What the search asks of a machine; tests give it another one.

    Attributes:
        environment: its variables.
        which: the path of a command; None where there is none.
        run: runs a command to its end within so many seconds and says whether it succeeded.
        own_browser: where Playwright would have its own Chromium, there or not.
        root: whether this process may install packages without asking anybody.
        lock: the file by which all runs on the machine install one after the other.
    """

    environment: Mapping[str, str]
    which: Callable[[str], str | None]
    run: Callable[[Sequence[str], float], bool]
    own_browser: Callable[[], str]
    root: bool
    lock: Path


def this_machine() -> Machine:
    """The one these tests run on."""
    user = os.geteuid() if hasattr(os, "geteuid") else -1
    lock = Path(tempfile.gettempdir()) / f"streamgen-browser-{user}.lock"
    return Machine(os.environ, shutil.which, _run, _own_browser, root=user == 0, lock=lock)


def find(machine: Machine) -> str | None:
    """A Chromium that starts: the one that CHROMIUM names, one on the path, or Playwright's own.

    Raises:
        NoBrowserError: CHROMIUM names one that does not start.
    """
    named = machine.environment.get("CHROMIUM")
    if named:
        found = machine.which(named)
        if not found or not _starts(machine, found):
            raise NoBrowserError(f"CHROMIUM={named}: expected a browser that starts; correct or unset it")
        return found
    for name in NAMES:
        found = machine.which(name)
        # Ubuntu's chromium-browser may be a stub that asks for a snap
        if found and _starts(machine, found):
            return found
    own = machine.own_browser()
    return own if machine.which(own) and _starts(machine, own) else None


def ways(machine: Machine) -> list[list[list[str]]]:
    """How one may be installed here, best first: lists of commands."""
    found: list[list[list[str]]] = []
    if machine.which("apt-get"):
        rights: list[str] | None = [] if machine.root else None
        if rights is None and machine.which("sudo") and machine.run(["sudo", "-n", "true"], _START_SECONDS):
            rights = ["sudo", "-n"]
        if rights is not None:
            apt = [*rights, "env", "DEBIAN_FRONTEND=noninteractive", *_APT]
            found.append([[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *_PACKAGES]])
    found.append([[*_PLAYWRIGHT]])
    return found


def ensure(machine: Machine, folder: Path, tell: Callable[[str], None]) -> str:
    """The path of a Chromium that starts, installed if there is none.

    Args:
        machine: where to look.
        folder: one that all workers of a run have in common: what came of the search is noted there, so that
            an installation that fails is tried once.
        tell: is given a line before something is installed, and one after.

    Raises:
        NoBrowserError: there is none and none can be installed.
    """
    outcome = folder / "browser.txt"
    with FileLock(machine.lock):
        if not outcome.exists():
            try:
                path = find(machine) or _install(machine, tell)
                outcome.write_text(f"found\n{path}", encoding="utf-8")
            except NoBrowserError as error:
                outcome.write_text(f"none\n{error}", encoding="utf-8")
        kind, text = outcome.read_text(encoding="utf-8").split("\n", 1)
    if kind == "none":
        raise NoBrowserError(text)
    return text


def _install(machine: Machine, tell: Callable[[str], None]) -> str:
    for commands in ways(machine):
        tell(f"no Chromium here, installing one: {shlex.join(commands[-1])}")
        # an index that is not refreshed in full may still do
        done = [machine.run(command, _INSTALL_SECONDS) for command in commands]
        found = find(machine) if done[-1] else None
        tell(f"Chromium installed: {found}" if found else "that did not bring a Chromium that starts")
        if found:
            return found
    raise NoBrowserError(
        f"no Chromium, and none could be installed; type: {advice(machine)} (or let CHROMIUM name one)"
    )


def advice(machine: Machine) -> str:
    """What to type where nothing worked by itself."""
    if machine.which("apt-get"):
        rights = "" if machine.root else "sudo "
        return f"{rights}apt-get update && {rights}apt-get install -y {' '.join(_PACKAGES)}"
    return "python -m playwright install --with-deps chromium"


def _starts(machine: Machine, path: str) -> bool:
    """Whether its libraries are there; a window is not opened."""
    return machine.run([path, "--version"], _START_SECONDS)


def _run(command: Sequence[str], seconds: float) -> bool:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{shlex.join(command)}: {error}\n")
        return False
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "")
        sys.stderr.write(f"{shlex.join(command)}: exit code {done.returncode}: {said}\n")
    return done.returncode == 0


def _own_browser() -> str:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path
