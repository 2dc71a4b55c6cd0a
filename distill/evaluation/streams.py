"""What is streamed for an evaluation, and the streaming of one such stream."""

import hashlib
import json
import math
import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.tensor_file import write_tensors
from streamgen import Picture, Pipeline, StreamEvent
from streamgen.motion.tracks import TrackSet

from .edits import world_clip
from .reading import FrameReader, torus_step

Policy = Literal["recache", "keep", "clear"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
#: What becomes of the sink of a long stream: it stays, or another early picture takes its place now and
#: then, or one from behind a switch does.
SinkWay = Literal["stays", "rolls", "anchors"]
#: Of a sink that rolls: the chunk from which on it does, every how many, and over how many of the first.
_ROLL_FROM, _ROLL_EVERY, _ROLL_OVER = 22, 4, 21
#: Of an anchor: which chunk under the new words it is, and before which it takes its place. By the one a
#: switch has come about; before the other it has left a window of eight.
_ANCHOR, _ANCHORED = 3, 12
#: Part of the frame that a drag keeps to.
_INSIDE = (0.16, 0.84)
_TRAVEL = (0.35, 0.6)
#: Frames from which an object's own direction is read before it is dragged.
_LOOK_BACK = 9
#: Of kept files; another number makes streams anew.
_FORMAT = 2


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
class Edit:
    """A clip of the world as live input, `number` of `edits.world_clip`, made anew at a strength under a
    prompt that differs in one thing, which the spec's `kind` says; `shows` is the clip in words, where the
    stream is told.
    """

    number: int
    strength: float
    shows: str = ""


@dataclass(frozen=True)
class StreamSpec:
    """One stream: everything that its frames are a function of, besides the weights and the settings.

    `variant` tells streams of a suite apart that are paired, such as the same switch under two policies;
    `kind` is the group its figures are also given for.
    """

    suite: str
    prompt: str
    seed: int
    frames: int
    subjects: tuple[Subject, ...]
    drag: Drag | None = None
    switch: Switch | None = None
    variant: str = "plain"
    kind: str = ""
    edit: Edit | None = None
    sink: SinkWay = "stays"


@dataclass(frozen=True)
class Video:
    """What a stream gave.

    Attributes:
        spec: what was asked for.
        frames: uint8 (T, H, W, 3).
        event: first frame under the switch or the drag, from its receipt; T without one.
        path: (P, 2) normalised places the dragged object should be at from frame `event` on; empty without.
        borders: first frames of its chunks, without frame 0.
        source: the clip that it was made from, as many frames; None of most. Kept frames have it above them.
    """

    spec: StreamSpec
    frames: Tensor
    event: int
    path: Tensor
    borders: tuple[int, ...] = ()
    source: Tensor | None = None


def render(pipeline: Pipeline, reader: FrameReader, spec: StreamSpec, settings: Mapping[str, Any]) -> Video:
    """Stream one spec; the path of one that listens to a clip is where the clip's object is."""
    opened, clip = dict(settings), None
    event, path = spec.frames, torch.zeros(0, 2)
    if spec.edit is not None:
        clip = world_clip(pipeline.geometry.height, spec.edit.number, spec.frames)
        opened |= {"strength": spec.edit.strength, "input_prompt": spec.edit.shows}
        event, path = 0, clip.path
    session = pipeline.open(spec.prompt, spec.seed, settings=opened)
    if clip is not None:
        session.listen(clip.frames)
    parts: list[Tensor] = []
    borders: list[int] = []
    # the length grows with the frame of the event, so that as much is to be seen behind it
    waiting, receipt, length = True, None, spec.frames
    while (seen := sum(len(part) for part in parts)) < length:
        if waiting and spec.switch is not None and seen >= spec.switch.start:
            receipt = session.submit(StreamEvent(prompt=spec.switch.prompt, policy=spec.switch.policy))
            event, waiting, length = seen, False, length + seen - spec.switch.start
        if waiting and spec.drag is not None and seen >= spec.drag.start:
            path = _plan_drag(torch.cat(parts), reader, spec)
            if spec.drag.told:
                receipt = session.submit(StreamEvent(motion=TrackSet.from_points(path[None])))
            event, waiting, length = seen, False, length + seen - spec.drag.start
        early = rolled_to(len(parts)) if spec.sink == "rolls" else None
        if spec.sink == "anchors" and len(parts) == bisect_left(borders, event) + _ANCHORED:
            early = len(parts) - _ANCHORED + _ANCHOR
        if early is not None:
            session.submit(StreamEvent(picture=Picture(parts[early][-1], use="reference")))
        borders.append(seen)
        parts.append(next(session).frames)
        # its own receipt: other events of the stream take effect elsewhere
        if receipt is not None and receipt.frame is not None:
            # where chunks overlap it takes effect later
            length += receipt.frame - event
            event = receipt.frame
    frames, source = torch.cat(parts)[:length].cpu(), None if clip is None else clip.frames
    return Video(spec, frames, event, path, tuple(borders[1:]), source)


def rolled_to(chunk: int) -> int | None:
    """Which early chunk's last picture takes the sink's place before a chunk, where the sink rolls; None
    before most. There and back over the first ones (after Rolling Sink, arXiv 2602.07775), each as a still
    picture, which is what a sink is made from.
    """
    past = chunk - _ROLL_FROM
    if past < 0 or past % _ROLL_EVERY:
        return None
    place = (past // _ROLL_EVERY + 1) % (2 * _ROLL_OVER - 2)
    return min(place, 2 * _ROLL_OVER - 2 - place)


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


def stream_name(spec: StreamSpec, weights: str, settings: str) -> str:
    """A file name for a stream, made of everything it is a function of."""
    seldom = {"edit": None, "sink": "stays"}
    told = {n: value for n, value in asdict(spec).items() if n not in seldom or value != seldom[n]}
    key = json.dumps([_FORMAT, told, weights, settings], sort_keys=True)
    return f"{spec.suite}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def save_video(video: Video, file: Path) -> None:
    """Keep a video; its file appears when it is whole."""
    part = file.with_suffix(f".{os.getpid()}.part")
    tensors = {"frames": video.frames, "path": video.path.contiguous()}
    if video.source is not None:
        # to look at: above each other
        tensors = {"frames": torch.cat([video.source, video.frames], 1), "path": torch.zeros(0, 2)}
    write_tensors(
        {**tensors, "event": torch.tensor(video.event), "borders": torch.tensor(video.borders)}, part
    )
    part.replace(file)


def load_video(spec: StreamSpec, file: Path) -> Video:
    """What `save_video` kept of a spec's stream."""
    kept = load_file(file)
    return Video(spec, kept["frames"], int(kept["event"]), kept["path"], tuple(kept["borders"].tolist()))
