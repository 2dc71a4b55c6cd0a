"""A model that is loaded while the page is served already."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from streamgen.stream.timeline import Timeline

from .engine import Engine, Loading, ModelInfo, Stream

# Says what is being done, and the share of it that is.
Tell = Callable[[str, float | None], None]
_CHUNKS = 3


class LateEngine:
    """An engine that is there before its model is.

    Args:
        info: what the model's config tells.
        load: loads it, saying how far it is.
    """

    def __init__(self, info: ModelInfo, load: Callable[[Tell], Engine]) -> None:
        self._info, self._load = info, load
        self._loading: Loading | None = Loading("beginning")
        self._failure: Exception | None = None
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="streamgen-loading", daemon=True)

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until it is loaded or has failed, so long at most."""
        self._thread.join(seconds)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def loading(self) -> Loading | None:
        return self._loading

    @property
    def failure(self) -> Exception | None:
        return self._failure

    def encode(self, prompt: str, settings: Mapping[str, Any]) -> tuple[Future[Any], ...]:
        return self._loaded().encode(prompt, settings)

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> Stream:
        return self._loaded().open(prompt, seed, settings, pictures)

    def replay(self, opening: Timeline, pictures: np.ndarray | None) -> Stream:
        return self._loaded().replay(opening, pictures)

    def resume(self, path: Path) -> Stream:
        return self._loaded().resume(path)

    def timeline_of(self, path: Path) -> dict[str, Any]:
        return self._loaded().timeline_of(path)

    def _loaded(self) -> Engine:
        assert self._engine is not None, "sessions begin when the model is there"
        return self._engine

    def _run(self) -> None:
        try:
            engine = self._load(self._tell)
            self._tell("making the first pictures", None)
            warm_up(engine)
        except Exception as error:  # told to the pages and to whoever started the server
            self._failure = error
            return
        self._engine, self._loading = engine, None

    def _tell(self, text: str, share: float | None) -> None:
        self._loading = Loading(text, share)


def warm_up(engine: Engine) -> None:
    """Make a few chunks, so that the first viewer does not wait for what happens only once."""
    stream = engine.open(engine.info.examples[0], 0, {}, None)
    for _ in range(_CHUNKS):
        stream.step()
