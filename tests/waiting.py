"""Waiting for what other threads and processes do, on machines that may be busy."""

import time
from collections.abc import Callable

# Seconds; a machine that has nothing else to do needs a small part of it.
PATIENCE = 240.0


def wait_until(condition: Callable[[], object], told: str = "it never came") -> None:
    """Until a condition holds; AssertionError where it does not come to."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, told
        time.sleep(0.01)
