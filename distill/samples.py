"""Sample streams at fixed prompts and seeds, as contact sheets and clips: what a person judges a run by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from streamgen import Pipeline, StreamEvent
from streamgen.motion.tracks import TrackSet, drag
from streamgen.video.write import VideoFileSink

from .config import CONFIGS, Bound, Checked, build, read_mapping, require
from .scenes.sheet import contact_sheet, enlarged, marked

#: Sheets, in the order in which they are drawn.
SHEETS = ("prompts", "switches", "drags")
_Few = Annotated[int, Bound("1 to 100", lambda count: 1 <= count <= 100)]


@dataclass(frozen=True)
class Shown:
    """A stream of a prompt."""

    seed: int
    prompt: str


@dataclass(frozen=True)
class Switched:
    """A stream of a prompt and, in its middle, another one."""

    seed: int
    prompt: str
    then: str


@dataclass(frozen=True)
class Dragged:
    """A stream whose object is taken where it is and drawn to a place, normalised (x, y)."""

    seed: int
    prompt: str
    to: tuple[float, float]

    def __post_init__(self) -> None:
        require(all(0 <= place <= 1 for place in self.to), "drags.to", "x and y in [0, 1]", self.to)


@dataclass(frozen=True)
class Columns(Checked, section="columns"):
    """Pictures of each stream on a sheet."""

    prompts: _Few
    switches: _Few
    drags: _Few


@dataclass(frozen=True)
class SampleConfig(Checked):
    """Streams that are shown.

    Attributes:
        zoom: how many times larger pictures are than frames.
        seconds: of a stream, and of each part of one that is switched.
        columns: pictures of each stream.
        prompts, switches, drags: the streams, each with its seed; a sheet without any is not drawn.
    """

    zoom: Annotated[int, Bound("1 to 16", lambda zoom: 1 <= zoom <= 16)]
    seconds: Annotated[float, Bound("0.1 to 60", lambda seconds: 0.1 <= seconds <= 60)]
    columns: Columns
    prompts: tuple[Shown, ...]
    switches: tuple[Switched, ...]
    drags: tuple[Dragged, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for seed in self.seeds:
            require(0 <= seed < 2**62, "seed", ">= 0", seed)

    @property
    def seeds(self) -> list[int]:
        """Those of all streams, in their order."""
        return [row.seed for rows in (self.prompts, self.switches, self.drags) for row in rows]

    def streams(self, pipeline: Pipeline, name: str) -> tuple[list[Tensor], list[str]]:
        """The enlarged streams of the sheet `name`, uint8 `(T, H, W, 3)`, and what is said of each."""
        frames = max(2, round(self.seconds * pipeline.geometry.fps))
        if name == "prompts":
            videos = [stream(pipeline, row.prompt, row.seed, frames) for row in self.prompts]
            captions = [row.prompt for row in self.prompts]
        elif name == "switches":
            videos = [
                stream(pipeline, row.prompt, row.seed, 2 * frames, (frames, StreamEvent(prompt=row.then)))
                for row in self.switches
            ]
            captions = [f"{row.prompt}  ->  {row.then}" for row in self.switches]
        else:
            drawn = [dragged(pipeline, row.prompt, row.seed, row.to, frames) for row in self.drags]
            videos = [marked(video, track) for video, track in drawn]
            captions = [f"{row.prompt}; dragged to {row.to}" for row in self.drags]
        return [enlarged(video, self.zoom) for video in videos], captions


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
    """Write a contact sheet `path`, a PNG, and beside it an MP4 of the same name in which all videos play in
    rows. They are uint8 `(T, H, W, 3)` of one size; shorter ones keep their last picture to the end.
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


def sample_sheets(pipeline: Pipeline, out_dir: Path, names: Sequence[str] = SHEETS) -> None:
    """Show the sheets `names` of `configs/samples.yaml`."""
    config = build(SampleConfig, read_mapping(CONFIGS / "samples.yaml"))
    for name in names:
        videos, captions = config.streams(pipeline, name)
        show(videos, captions, out_dir / f"{name}.png", pipeline.geometry.fps, vars(config.columns)[name])


def dragged(
    pipeline: Pipeline, prompt: str, seed: int, target: tuple[float, float], frames: int
) -> tuple[Tensor, Tensor]:
    """A stream whose object is taken where it is after half a second and drawn to `target` within `frames`
    frames.

    Returns the pictures and the track `(T, 2)`, normalised (NaN where there is none).
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
    path[start : start + frames] = tracks.points[0]
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
