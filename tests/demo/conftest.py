"""The browser of the demo's tests, a page over a fake engine, and its server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests import browser as installed
from tests.conftest import shared_folder
from tests.demo_pages import Stage, context_of, no_errors, open_page, served


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
        return installed.ensure(installed.this_machine(), folder, tell)
    except installed.NoBrowserError as error:
        what_to_type = str(error)
    # outside of the handler: one line, not the story of two exceptions
    pytest.fail(what_to_type, pytrace=False)


@pytest.fixture(scope="module")
def browser(chromium: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Chromium, with what a module says in `BROWSER_ARGUMENTS` besides. Not for the whole run: asyncio has no
    place beside Playwright, and other modules need it.
    """
    more = vars(request.module).get("BROWSER_ARGUMENTS", ())
    arguments = ["--no-sandbox", "--disable-gpu", *more]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The demo over a fake engine; modules that need other rules have one of their own."""
    with served(tmp_path_factory.mktemp("shelf")) as made:
        yield made


@pytest.fixture
def page(browser: Browser, stage: Stage) -> Iterator[Page]:
    """A page whose stream plays; an error of its scripts fails the test."""
    with context_of(browser) as context:
        made = open_page(context, stage)
        with no_errors(made):
            yield made
