"""What is streamed for an evaluation, and the streaming of it: in several processes, kept on disk, so that an
evaluation that was cut goes on where it stopped.
"""

import hashlib
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamgen import Pipeline, Receipt, Session, StreamEvent, load_pipeline
from streamgen.motion.tracks import TrackSet

from ..scenes import SceneConfig
from .reading import FrameReader, torus_step

Policy = Literal["recache", "keep", "clear"]
#: Part of the frame that a drag keeps to.
_INSIDE = (0.16, 0.84)
_TRAVEL = (0.35, 0.6)
#: Frames from which an object's own direction is read before it is dragged.
_LOOK_BACK = 9


@dataclass(frozen=True)
class Subject:
    """One object and its background, as indices of the world's vocabulary."""

    size: int
    colour: int
    shape: int
    motion: int
    background: int


@dataclass(frozen=True)
class Drag:
    """A drag of the first object: planned when `start` frames have been seen, `frames` long.

    It leads away from where the object is going. With `told` false the path is planned and no track given:
    the control of the measure.
    """

    start: int
    frames: int
    told: bool = True


@dataclass(frozen=True)
class Switch:
    """A new prompt, submitted when `start` frames have been seen; `kind` says what differs."""

    start: int
    prompt: str
    after: Subject
    kind: str
    policy: Policy = "recache"


@dataclass(frozen=True)
class StreamSpec:
    """One stream: everything that its frames are a function of, besides the weights and the settings."""

    suite: str
    prompt: str
    seed: int
    frames: int
    subjects: tuple[Subject, ...]
    drag: Drag | None = None
    switch: Switch | None = None


@dataclass(frozen=True)
class Video:
    """What a stream gave.

    Attributes:
        spec: what was asked for.
        frames: uint8 (T, H, W, 3).
        event: first frame under the switch or the drag, from its receipt; T without one.
        path: (P, 2) normalised places the dragged object should be at from frame `event` on; empty without.
    """

    spec: StreamSpec
    frames: Tensor
    event: int
    path: Tensor


def render(pipeline: Pipeline, reader: FrameReader, spec: StreamSpec, settings: Mapping[str, Any]) -> Video:
    """Stream one spec."""
    session = pipeline.open(spec.prompt, spec.seed, settings=dict(settings))
    parts: list[Tensor] = []
    event, path = spec.frames, torch.zeros(0, 2)
    waiting, receipt = True, None
    while (seen := sum(len(part) for part in parts)) < spec.frames:
        if waiting and spec.switch is not None and seen >= spec.switch.start:
            receipt = session.submit(StreamEvent(prompt=spec.switch.prompt, policy=spec.switch.policy))
            event, waiting = seen, False
        if waiting and spec.drag is not None and seen >= spec.drag.start:
            path = _plan_drag(torch.cat(parts), reader, spec)
            receipt = _start_drag(session, path) if spec.drag.told else None
            event, waiting = seen, False
        parts.append(next(session).frames)
    # its own receipt: other events of the stream take effect elsewhere
    if receipt is not None and receipt.frame is not None:
        event = receipt.frame
    return Video(spec, torch.cat(parts)[: spec.frames].cpu(), event, path)


def _start_drag(session: Session, path: Tensor) -> Receipt:
    return session.submit(StreamEvent(motion=TrackSet.from_points(path[None])))


def _plan_drag(frames: Tensor, reader: FrameReader, spec: StreamSpec) -> Tensor:
    """A straight path (P, 2) from where the first object is, away from where it goes."""
    assert spec.drag is not None
    reading = reader(frames[-_LOOK_BACK:])
    track = reading.centre[:, spec.subjects[0].colour]
    track = track[~track.isnan().any(-1)]
    # an object that is not there cannot be dragged: the middle of the picture stands in, and the error tells
    here = track[-1] if len(track) else torch.tensor([0.5, 0.5])
    here = here.clamp(*_INSIDE)
    way = torus_step(track[:-1], track[1:]).sum(0) if len(track) > 1 else torch.zeros(2)
    generator = torch.Generator().manual_seed(spec.seed)
    draws = torch.rand(64, 2, generator=generator)
    if float(way.norm()) > 0.02:
        heading = math.atan2(float(-way[1]), float(-way[0])) + (draws[:, 0] - 0.5) * math.pi / 2
    else:
        heading = draws[:, 0] * 2 * math.pi
    travel = _TRAVEL[0] + (_TRAVEL[1] - _TRAVEL[0]) * draws[:, 1]
    ends = (here + travel[:, None] * torch.stack([heading.cos(), heading.sin()], -1)).clamp(*_INSIDE)
    reach = (ends - here).norm(dim=-1)
    # the first way that stays inside, else the longest
    best = int(torch.where(reach >= _TRAVEL[0], 10.0 - torch.arange(64) / 64, reach).argmax())
    return torch.lerp(here, ends[best], torch.linspace(0, 1, spec.drag.frames)[:, None])


class StreamStore:
    """Streams specs of one model and keeps what they give under `directory`.

    Args:
        model: name or checkpoint directory.
        settings: over the checkpoint's own.
        directory: kept streams; one file each, named by everything they are a function of.
        processes: that stream at the same time, one thread each.
    """

    def __init__(
        self, model: str, digest: str, settings: Mapping[str, Any], directory: Path, processes: int
    ) -> None:
        self._model, self._digest, self._settings = model, digest, dict(settings)
        self._directory, self._processes = directory, processes
        directory.mkdir(parents=True, exist_ok=True)

    def videos(self, specs: Sequence[StreamSpec], progress: Callable[[int], None]) -> Iterator[Video]:
        """Videos in the order of `specs`; `progress` is told of every stream that is there."""
        missing = [spec for spec in specs if not self.file(spec).exists()]
        progress(len(specs) - len(missing))
        if missing:
            self._render(missing, progress)
        for spec in specs:
            kept = load_file(self.file(spec))
            yield Video(spec, kept["frames"], int(kept["event"]), kept["path"])

    def _render(self, specs: Sequence[StreamSpec], progress: Callable[[int], None]) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(self._processes, len(specs)), context, _open_worker, (self._model, self._settings)
        ) as pool:
            # long ones first, so that none is left alone at the end
            order = sorted(specs, key=lambda spec: -spec.frames)
            waiting = [pool.submit(_work, spec, str(self.file(spec))) for spec in order]
            try:
                for done in as_completed(waiting):
                    done.result()
                    progress(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def file(self, spec: StreamSpec) -> Path:
        """Where a stream is kept, or will be."""
        key = json.dumps([asdict(spec), self._digest, self._settings], sort_keys=True, default=str)
        return self._directory / f"{spec.suite}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


_worker: dict[str, Any] = {}


def _open_worker(model: str, settings: dict[str, Any]) -> None:
    """Each process streams on one thread: two streams at a time are faster than one on two threads."""
    # Ctrl-C reaches the whole group: a worker just ends, and the main process says what became of the run
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    pipeline = load_pipeline(model)
    _worker.update(
        pipeline=pipeline, reader=FrameReader(SceneConfig(size=pipeline.geometry.height)), settings=settings
    )


def _work(spec: StreamSpec, file: str) -> None:
    video = render(_worker["pipeline"], _worker["reader"], spec, _worker["settings"])
    part = f"{file}.{os.getpid()}.part"
    save_file(
        {"frames": video.frames, "event": torch.tensor(video.event), "path": video.path.contiguous()}, part
    )
    os.replace(part, file)
