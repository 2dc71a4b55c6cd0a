"""Sample streams at fixed prompts and seeds, as contact sheets and clips: what a person judges a run by."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from streamgen import Pipeline, StreamEvent
from streamgen.motion.tracks import TrackSet, drag
from streamgen.video.write import VideoFileSink

from .scenes import contact_sheet

PROMPTS = (
    "a small red circle moves right over the sea",
    "a large blue star stays over sand",
    "a medium green square moves left over the snow",
    "a large yellow diamond bounces over the bricks",
    "a small white triangle moves up over the night sky",
    "a medium purple star circles over the grass",
    "a large pink ring moves down over the sea",
    "a medium orange circle zigzags over the sand",
    "a small blue diamond moves left over the bricks",
    "a large white circle stays over the grass",
    "crimson ball drifting left at night",
    "a medium green triangle moves right over the snow",
    "a large purple square bounces over the sea",
    "a small yellow star moves down over the night sky",
    "over the grass, a big pink diamond goes up",
    "a large red ring circles over the sand",
)
SWITCHES = (
    ("a small red circle moves right over the sea", "a large blue star stays over sand"),
    ("a large green square stays over the snow", "a large red square stays over the snow"),
    ("a medium yellow circle moves left over the grass", "a medium yellow star moves left over the grass"),
    ("a large white ring stays over the bricks", "a large white ring stays over the night sky"),
)
DRAGS = (
    ("a large red circle stays over the sand", (0.8, 0.25)),
    ("a medium blue square stays over the snow", (0.2, 0.8)),
    ("a large yellow star stays over the sea", (0.75, 0.75)),
    ("a medium white diamond moves right over the grass", (0.2, 0.2)),
)


def stream(
    pipeline: Pipeline, prompt: str, seed: int, frames: int, switch: tuple[int, StreamEvent] | None = None
) -> Tensor:
    """The first `frames` pictures of a stream, uint8 `(T, H, W, 3)`; `switch` is an event and its earliest
    frame.
    """
    session = pipeline.open(prompt, seed)
    if switch is not None:
        session.submit(switch[1], switch[0])
    parts: list[Tensor] = []
    while sum(len(p) for p in parts) < frames:
        parts.append(next(session).frames)
    return torch.cat(parts)[:frames]


def show(videos: Sequence[Tensor], captions: Sequence[str], path: Path, fps: int, frames: int = 8) -> None:
    """Write a contact sheet `path`, a PNG, and beside it an MP4 of the same name in which all videos play.

    Args:
        videos: uint8 `(T, H, W, 3)` of one size; shorter ones keep their last picture to the end.
        captions: one per video, for the sheet; the clip has the videos in the same order, in rows.
        path: of the sheet.
        fps: frames per second.
        frames: of each video on the sheet.
    """
    contact_sheet(videos, captions, path, frames)
    columns = math.ceil(math.sqrt(len(videos)))
    longest = max(len(video) for video in videos)
    grid = torch.zeros(-(-len(videos) // columns) * columns, longest, *videos[0].shape[1:], dtype=torch.uint8)
    for place, video in zip(grid, videos, strict=False):
        place[: len(video)] = video
        place[len(video) :] = video[-1]
    picture = rearrange(grid, "(r c) t h w d -> t (r h) (c w) d", c=columns)
    with VideoFileSink(path.with_suffix(".mp4"), picture.shape[1], picture.shape[2], fps) as sink:
        sink.write(picture.numpy())


def prompt_sheet(pipeline: Pipeline, out_dir: Path, seconds: float = 2.0) -> None:
    """Show streams of fixed prompts as `prompts.png` and `prompts.mp4`."""
    frames = round(seconds * pipeline.geometry.fps)
    plain = [stream(pipeline, prompt, i, frames) for i, prompt in enumerate(PROMPTS)]
    show(larger(plain), PROMPTS, out_dir / "prompts.png", pipeline.geometry.fps)


def sample_sheets(pipeline: Pipeline, out_dir: Path, seconds: float = 2.0) -> None:
    """Show `prompts`, `switches` and `drags`."""
    prompt_sheet(pipeline, out_dir, seconds)
    frames = round(seconds * pipeline.geometry.fps)
    switched = [
        stream(pipeline, before, i, 2 * frames, (frames, StreamEvent(prompt=after)))
        for i, (before, after) in enumerate(SWITCHES)
    ]
    fps = pipeline.geometry.fps
    show(larger(switched), [f"{a}  ->  {b}" for a, b in SWITCHES], out_dir / "switches.png", fps, frames=12)
    drawn = [dragged(pipeline, prompt, i, target, frames) for i, (prompt, target) in enumerate(DRAGS)]
    names = [f"{prompt}; dragged to {target}" for prompt, target in DRAGS]
    show(larger([marked(v, t) for v, t in drawn]), names, out_dir / "drags.png", fps, frames=12)


def dragged(
    pipeline: Pipeline, prompt: str, seed: int, target: tuple[float, float], frames: int
) -> tuple[Tensor, Tensor]:
    """A stream whose object is taken where it is after half a second and drawn to `target` within `frames`
    frames.

    Returns the pictures and the track `(T, 2)` in pixels (NaN where there is none).
    """
    start = pipeline.geometry.frames(pipeline.geometry.latent_of(pipeline.geometry.fps // 2) + 1)
    before = stream(pipeline, prompt, seed, start)
    place = object_centre(before[-1])
    tracks: TrackSet = drag(place, target, frames)
    video = stream(
        pipeline,
        prompt,
        seed,
        start + frames + pipeline.geometry.fps // 2,
        (start, StreamEvent(motion=tracks)),
    )
    path = torch.full((len(video), 2), float("nan"))
    path[start : start + frames] = tracks.points[0] * video.shape[1]
    return video, path


def object_centre(frame: Tensor) -> tuple[float, float]:
    """Where the most saturated or odd-coloured thing of a picture is: normalised (x, y) of the pixels far
    from the median colour.
    """
    pixels = frame.float()
    distance = (pixels - pixels.flatten(0, 1).median(0).values).abs().sum(-1)
    weight = (distance > 0.6 * distance.max()).float()
    size = frame.shape[0]
    grid = (torch.arange(size) + 0.5) / size
    total = weight.sum()
    return float((weight.sum(0) * grid).sum() / total), float((weight.sum(1) * grid).sum() / total)


def marked(video: Tensor, path: Tensor) -> Tensor:
    """A small cross at the track's place."""
    video = video.clone()
    size = video.shape[1]
    for frame, (x, y) in zip(video, path.tolist(), strict=True):
        if not math.isnan(x):
            column, row = min(int(x), size - 1), min(int(y), size - 1)
            frame[row, max(0, column - 2) : column + 3] = 0
            frame[max(0, row - 2) : row + 3, column] = 0
    return video


def larger(videos: Sequence[Tensor], zoom: int = 2) -> list[Tensor]:
    """Several times the size, for people."""
    return [v.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2) for v in videos]
