"""The runner of streams whose LoRAs change their strength while they run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.kv_cache import CacheCursor
from models.live_lora import LiveLoras, adapted
from models.video_codec import VideoCodec

from ...errors import InputError
from ..runner import CommitTask, DenoiseTask, PlainRunner, Runner


class LiveLoraRunner(PlainRunner):
    """`PlainRunner` with LoRAs beside the weights. Each call computes at the strengths that its words carry,
    so that sessions with other strengths share it; it serves one call at a time.

    Args:
        dit: the network without them, in full precision or in eight bits.
    """

    def __init__(self, dit: CausalDiT, live: LiveLoras, codec: VideoCodec | None = None) -> None:
        network, self.strengths = adapted(dit, live)
        super().__init__(network, codec)
        self._lock = threading.RLock()

    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        with self._at(task.conditioning.text):
            return super().denoise(task)

    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        with self._at(task.text):
            return super().commit(task)

    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        """See `Runner`."""
        with self._at(task.text):
            return super().rejoin(task, keep_sink)

    @contextmanager
    def _at(self, text: TextContext) -> Iterator[None]:
        """The network at the strengths of a text."""
        assert text.strengths is not None, "words of a model with live LoRAs carry their strengths"
        with self._lock:
            self.strengths.copy_(text.strengths)
            yield


def check_can_change(runner: str | Runner | None) -> None:
    """Raise InputError for a runner that was asked for and cannot change strengths while it runs."""
    if isinstance(runner, LiveLoraRunner) or runner in (None, "auto", "plain"):
        return
    name = runner if isinstance(runner, str) else runner.name if runner is not None else ""
    raise InputError(
        f"runner {name}: cannot change the strengths of LoRAs while it runs; take plain, or merge with --lora"
    )
