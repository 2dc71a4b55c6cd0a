"""Streams and clips of the world, made and read in several processes, a row for each."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from streamgen import Pipeline, StreamgenError, load_pipeline

from .measures import Instruments, read_video
from .rows import TRUTH, Row, row_of
from .streams import StreamSpec, render, save_video, stream_name
from .truth import Truth, TruthSuite

T = TypeVar("T")
W = TypeVar("W")


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
        return row_of(spec, read_video(self.instruments, video), self.weights, self.settings_digest, name)

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
    # long ones first, so that none is left alone at the end
    order = sorted(specs, key=lambda pair: -pair[0].frames)
    yield from each(work, _rows, [*suites, *order], processes)


def each(work: W, do: Callable[[W, Any], T], tasks: Sequence[Any], processes: int) -> Iterator[T]:
    """`do(work, task)` of each task as it is done, begun in their order, in several processes of one thread.

    `work` is sent to each process once; `do` is a function of a module. One process is this one: another
    takes seconds to start.

    Raises:
        StreamgenError: a process was killed, as the system does where memory runs out.
    """
    context = multiprocessing.get_context("spawn")
    count = min(processes, len(tasks))
    if count < 2:
        yield from _here(work, do, tasks)
        return
    with ProcessPoolExecutor(count, context, _open_worker, (work,)) as pool:
        try:
            waiting: list[Future[T]] = [pool.submit(_do, do, task) for task in tasks]
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool:
            raise StreamgenError(
                "evaluation: one of its processes was killed (out of memory?); the same command goes on from "
                "what is done, and --processes 1 takes less memory"
            ) from None
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


def _here(work: W, do: Callable[[W, Any], T], tasks: Sequence[Any]) -> Iterator[T]:
    try:
        for task in tasks:
            with one_thread():
                done = do(work, task)
            yield done
    finally:
        # what was made once is of this work
        _worker.clear()


_worker: dict[str, Any] = {}


def _open_worker(work: Any) -> None:
    # Ctrl-C reaches the whole group: a worker just ends, and the main process says what became of the run
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end_with_parent()
    torch.set_num_threads(1)
    _worker.clear()
    _worker.update(work=work)


def _end_with_parent() -> None:
    """Let this process end when the one that started it does: another signal, such as SIGTERM, reaches that
    one alone, and work would be waited for for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _do(do: Callable[[Any, Any], T], task: Any) -> T:
    return do(_worker["work"], task)


def once(name: str, make: Callable[[], T]) -> T:
    """What a process makes when it is first asked for it, and keeps for all its tasks."""
    if name not in _worker:
        _worker[name] = make()
    found: T = _worker[name]
    return found


def _rows(work: Work, task: TruthSuite | tuple[StreamSpec, bool]) -> list[Row]:
    if isinstance(task, TruthSuite):
        return work.truth_rows(task)
    pipeline = once("pipeline", lambda: load_pipeline(work.model))
    return [work.stream_row(pipeline, *task)]
