"""What the tests of training have in common."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_plots() -> Iterator[None]:
    """A run ends with a picture of every metric, which takes longer than its updates do here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.tracking.write_plots", lambda *_: [])
        yield
