"""Where the browser of the demo's tests comes from: every way, on machines made up for it."""

import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.browser import NAMES, Machine, NoBrowserError, ensure, find

OWN = "/own/chrome"
APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
UPDATE = [*APT, "update"]
INSTALL = [*APT, "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
PLAYWRIGHT = [sys.executable, "-m", "playwright", "install", "chromium"]


class Fake:
    """A machine with these commands, on which these run to success; `brings` says what a command installs."""

    def __init__(
        self,
        *commands: str,
        root: bool = False,
        broken: Sequence[str] = (),
        brings: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.there = set(commands)
        self.broken = set(broken)
        self.brings = brings or {}
        self.ran: list[list[str]] = []
        self.told: list[str] = []
        self.machine = Machine(
            environment or {}, self._which, self._run, lambda: OWN, root, lock=Path("/nowhere")
        )

    def ensure(self, folder: Path) -> str:
        machine = dataclasses.replace(self.machine, lock=folder / "lock")
        return ensure(machine, folder, self.told.append)

    def installed_with(self) -> list[list[str]]:
        return [command for command in self.ran if "--version" not in command and "true" not in command]

    def _which(self, name: str) -> str | None:
        if name not in self.there:
            return None
        return name if name.startswith("/") else f"/bin/{name}"

    def _run(self, command: Sequence[str], seconds: float) -> bool:
        self.ran.append([*command])
        if command[-1] == "--version":
            return command[0].removeprefix("/bin/") not in self.broken
        said = " ".join(command)
        works = next((brought for key, brought in self.brings.items() if key in said), None)
        if works:
            self.there.add(works)
        return works is not None


def test_the_browser_that_is_named_comes_first() -> None:
    assert find(Fake("/opt/mine", *NAMES, environment={"CHROMIUM": "/opt/mine"}).machine) == "/opt/mine"
    assert find(Fake("mine", *NAMES, environment={"CHROMIUM": "mine"}).machine) == "/bin/mine"


@pytest.mark.parametrize("broken", [(), ("/opt/mine",)])
def test_a_named_browser_that_does_not_start_is_an_error(broken: tuple[str, ...], tmp_path: Path) -> None:
    """Another one in its place would hide the mistake."""
    fake = Fake(*broken, *NAMES, broken=broken, environment={"CHROMIUM": "/opt/mine"})
    with pytest.raises(NoBrowserError, match=r"^CHROMIUM=/opt/mine: expected a browser that starts"):
        fake.ensure(tmp_path)
    assert fake.installed_with() == []


@pytest.mark.parametrize("name", NAMES)
def test_every_usual_name_is_found(name: str, tmp_path: Path) -> None:
    fake = Fake(name, "apt-get", root=True)
    assert fake.ensure(tmp_path) == f"/bin/{name}"
    assert (fake.installed_with(), fake.told) == ([], [])


def test_one_that_does_not_start_is_passed_over(tmp_path: Path) -> None:
    """Ubuntu's `chromium-browser` may be a stub that asks for a snap."""
    assert Fake("chromium-browser", "google-chrome", broken=["chromium-browser"]).ensure(tmp_path) == (
        "/bin/google-chrome"
    )


def test_playwrights_own_is_found(tmp_path: Path) -> None:
    fake = Fake(OWN, "apt-get", root=True)
    assert fake.ensure(tmp_path) == OWN
    assert fake.installed_with() == []


def test_root_installs_debians_package(tmp_path: Path) -> None:
    fake = Fake("apt-get", root=True, brings={"update": "index", "apt-get": "chromium"})
    assert fake.ensure(tmp_path) == "/bin/chromium"
    assert fake.installed_with() == [UPDATE, INSTALL]
    before, after = fake.told
    assert "apt-get" in before
    assert after == "Chromium installed: /bin/chromium"


def test_an_index_that_is_not_refreshed_does_not_stop_it(tmp_path: Path) -> None:
    assert Fake("apt-get", root=True, brings={"install": "chromium"}).ensure(tmp_path) == "/bin/chromium"


def test_others_install_it_with_sudo_where_it_asks_nothing(tmp_path: Path) -> None:
    brings = {"sudo -n true": "sudo", "update": "index", "apt-get": "chromium"}
    fake = Fake("apt-get", "sudo", brings=brings)
    assert fake.ensure(tmp_path) == "/bin/chromium"
    assert fake.installed_with() == [["sudo", "-n", *UPDATE], ["sudo", "-n", *INSTALL]]


@pytest.mark.parametrize(
    "commands", [("apt-get", "sudo"), ("apt-get",), ()], ids=["sudo asks", "no sudo", "no apt"]
)
def test_playwright_brings_its_own_elsewhere(commands: tuple[str, ...], tmp_path: Path) -> None:
    fake = Fake(*commands, brings={"playwright": OWN})
    assert fake.ensure(tmp_path) == OWN
    assert fake.installed_with() == [PLAYWRIGHT]


@pytest.mark.parametrize("brings", [{}, {"apt-get": "chromium-browser"}], ids=["fails", "brings a stub"])
def test_playwright_is_tried_where_apt_does_not_help(brings: dict[str, str], tmp_path: Path) -> None:
    fake = Fake("apt-get", root=True, broken=["chromium-browser"], brings={**brings, "playwright": OWN})
    assert fake.ensure(tmp_path) == OWN
    assert fake.installed_with() == [UPDATE, INSTALL, PLAYWRIGHT]


@pytest.mark.parametrize(
    ("make", "typed"),
    [
        (
            lambda: Fake("apt-get", root=True),
            "type: apt-get update && apt-get install -y chromium fonts-dejavu-core",
        ),
        (
            lambda: Fake("apt-get"),
            "type: sudo apt-get update && sudo apt-get install -y chromium fonts-dejavu-core",
        ),
        (Fake, "type: python -m playwright install --with-deps chromium"),
    ],
    ids=["root", "not root", "no apt"],
)
def test_where_nothing_works_one_line_says_what_to_type(
    make: Callable[[], Fake], typed: str, tmp_path: Path
) -> None:
    fake = make()
    with pytest.raises(NoBrowserError) as failed:
        fake.ensure(tmp_path)
    assert typed in str(failed.value)
    assert "\n" not in str(failed.value)


def test_workers_of_a_run_try_once(tmp_path: Path) -> None:
    """The second one waits and takes what the first one found, be it nothing."""
    fakes = [Fake("apt-get", root=True) for _ in range(2)]
    errors: list[str] = []

    def search(fake: Fake) -> None:
        with pytest.raises(NoBrowserError) as failed:
            fake.ensure(tmp_path)
        errors.append(str(failed.value))

    threads = [threading.Thread(target=search, args=(fake,)) for fake in fakes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(fake.installed_with()) for fake in fakes) == len([UPDATE, INSTALL, PLAYWRIGHT])
    assert errors[0] == errors[1]
