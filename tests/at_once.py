"""An executor that needs no processes."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class AtOnce(Executor):
    """Does the work when it is submitted, in this process: a process of its own takes seconds to start."""

    def __init__(
        self, processes: int, context: object, begin: Callable[..., None], given: tuple[Any, ...]
    ) -> None:
        begin(*given)

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*given, **named))
        return done
