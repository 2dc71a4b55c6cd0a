"""The parts of a chunk apart: what a runner does, waiting for the device behind each of them."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from models.video_codec import VideoCodec

from ..engine.decoder import StreamingDecoder
from ..engine.overlap.wave import WaveRunner
from ..engine.runner import PlainRunner
from ..machine import synchronize
from ..stream.session import Session

P = ParamSpec("P")
R = TypeVar("R")


class _TimedDecoder(StreamingDecoder):
    """Decodes, and tells the seconds from the decoded picture to uint8 on the host apart."""

    def __init__(self, codec: VideoCodec, copies: list[float]) -> None:
        super().__init__(codec)
        self.copies = copies

    def to_host(self, video: Tensor) -> Tensor:
        synchronize(video.device)
        started = time.perf_counter()
        frames = super().to_host(video)
        self.copies.append(time.perf_counter() - started)
        return frames


class _WaitingRunner:
    """A runner that waits for the device behind each part, so that host clocks tell parts apart. Around its
    methods, not inside of the network: a compiled network must stay the one that was compiled.
    """

    def __init__(self, runner: PlainRunner, tokenizer: VideoCodec, copies: list[float]) -> None:
        self.name, self.quantize, self.batch = runner.name, runner.quantize, runner.batch
        self.commits_ahead = runner.commits_ahead
        inner = copy.copy(runner)
        inner.decoder = _TimedDecoder(tokenizer, copies)
        # both end with a value on the host: the flags of what is finite, the pictures
        self.denoise, self.decode = inner.denoise, inner.decode
        device = inner.dit.head.head.weight.device
        self.commit, self.rejoin = _waiting(inner.commit, device), _waiting(inner.rejoin, device)


def _waiting(work: Callable[P, R], device: torch.device) -> Callable[P, R]:
    def waited(*args: P.args, **kwargs: P.kwargs) -> R:
        result = work(*args, **kwargs)
        synchronize(device)
        return result

    return waited


@contextmanager
def timed_parts(session: Session, wanted: bool) -> Iterator[list[float]]:
    """While this lasts the parts of a chunk wait for the device; gives the copy times, one per chunk."""
    copies: list[float] = []
    if not wanted:
        yield copies
        return
    runner = session.runner
    assert isinstance(runner, PlainRunner), "all of ours decode through a decoder that can be taken out"
    if isinstance(runner, WaveRunner):
        # its ticks end with values on the host
        timed = copy.copy(runner)
        timed.decoder = _TimedDecoder(session.model.tokenizer, copies)
        session.runner = timed
    else:
        session.runner = _WaitingRunner(runner, session.model.tokenizer, copies)
    try:
        yield copies
    finally:
        session.runner = runner
