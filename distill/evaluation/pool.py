"""Streams and clips of the world, made and read in several processes, a row for each."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamgen import Pipeline, load_pipeline

from .measures import Instruments, Read, read_video
from .rows import TRUTH, Row, row_of
from .streams import StreamSpec, render, save_video, stream_name
from .truth import Truth, TruthSuite


@dataclass(frozen=True)
class Work:
    """What all processes work with: a model, the settings over its own, where frames are kept, and the
    digests that rows carry; `truth` draws the controls.
    """

    model: str
    settings: Mapping[str, Any]
    directory: Path
    weights: str
    settings_digest: str
    instruments: Instruments
    truth: Truth

    def stream_row(self, pipeline: Pipeline, spec: StreamSpec, keep: bool) -> Row:
        """Make and read one stream; with `keep` its frames stay in `directory`."""
        video = render(pipeline, self.instruments.frames, spec, self.settings)
        name = stream_name(spec, self.weights, self.settings_digest) if keep else None
        if name is not None:
            save_video(video, self.directory / name)
        return self.row(spec, read_video(self.instruments, video), name)

    def row(self, spec: StreamSpec, read: Read, name: str | None = None) -> Row:
        """The row of a stream of this model."""
        return row_of(spec, read, self.weights, self.settings_digest, name)

    def truth_rows(self, suite: TruthSuite) -> list[Row]:
        """The rows of one suite's control."""
        videos = self.truth.videos(suite)
        return [row_of(v.spec, read_video(self.instruments, v), TRUTH, self.settings_digest) for v in videos]


def make_rows(
    work: Work, specs: Sequence[tuple[StreamSpec, bool]], suites: Sequence[TruthSuite], processes: int
) -> Iterator[list[Row]]:
    """Rows as they come to be: of streams, each with whether its frames are to be kept, and of controls.

    What each row says does not depend on `processes`, which work on one thread each: two streams at a time
    are faster than one on two threads.
    """
    context = multiprocessing.get_context("spawn")
    count = min(processes, len(specs) + len(suites))
    if not count:
        return
    with ProcessPoolExecutor(count, context, _open_worker, (work,)) as pool:
        # long ones first, so that none is left alone at the end
        order = sorted(specs, key=lambda pair: -pair[0].frames)
        waiting: list[Future[list[Row]]] = [pool.submit(_truth_rows, suite) for suite in suites]
        waiting += [pool.submit(_stream_rows, spec, keep) for spec, keep in order]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """What is computed inside does not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_worker: dict[str, Any] = {}


def _open_worker(work: Work) -> None:
    # Ctrl-C reaches the whole group: a worker just ends, and the main process says what became of the run
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    _worker.clear()
    _worker.update(work=work)


def _once(name: str, make: Callable[[], Any]) -> Any:
    if name not in _worker:
        _worker[name] = make()
    return _worker[name]


def _stream_rows(spec: StreamSpec, keep: bool) -> list[Row]:
    work: Work = _worker["work"]
    pipeline = _once("pipeline", lambda: load_pipeline(work.model))
    return [work.stream_row(pipeline, spec, keep)]


def _truth_rows(suite: TruthSuite) -> list[Row]:
    work: Work = _worker["work"]
    return work.truth_rows(suite)
