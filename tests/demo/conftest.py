"""The browser of the demo's tests."""

import sys
from pathlib import Path

import pytest

from tests import browser
from tests.conftest import shared_folder


@pytest.fixture(scope="session")
def chromium(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a Chromium that starts; installs it where there is none."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n{line}\n")
            sys.stderr.flush()

    folder: Path = shared_folder(request.config, tmp_path_factory.getbasetemp())
    try:
        return browser.ensure(browser.this_machine(), folder, tell)
    except browser.NoBrowserError as error:
        what_to_type = str(error)
    # outside of the handler: one line, not the story of two exceptions
    pytest.fail(what_to_type, pytrace=False)
