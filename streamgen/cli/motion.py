"""`streamgen motion`: look at motion files, and take motion from clips."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(no_args_is_help=True, help="Look at motion files, and take motion from clips.")

_PICTURE, _VIDEO, _ANIMATIONS = ".png", ".mp4", (".gif", ".webp")

Fps = Annotated[float, typer.Option(min=1, max=240, help="Frames per second of the stream.")]
Size = Annotated[str, typer.Option(help="WIDTHxHEIGHT of the stream.")]


@app.command()
def preview(
    motion: Annotated[str, typer.Argument(help="Motion file, .npz, .npy, .pth, or a clip.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=".mp4, .gif or .webp; or .png for one picture of all paths."),
    ],
    over: Annotated[str | None, typer.Option(help="Clip or picture to draw over; grey without.")] = None,
    fps: Fps = 16.0,
    size: Size = "512x512",
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Length where the file has none.")] = 8.0,
) -> None:
    """Draw the tracks of a motion file over a clip, as a video or a picture."""
    from ..motion.file import load_motion
    from ..motion.preview import draw_frames, draw_picture

    width, height = _size(size)
    if output.suffix.lower() not in (_PICTURE, _VIDEO, *_ANIMATIONS):
        raise InputError(f"-o {output}: expected a name that ends in .mp4, .gif, .webp or .png")
    tracks = load_motion(motion, fps, max(round(seconds * fps), 1), width / height)
    frames = _pictures(over, fps, height, width, tracks.num_frames)
    if output.suffix.lower() == _PICTURE:
        _write_animation(draw_picture(frames[0], tracks)[None], output, fps)
    elif output.suffix.lower() == _VIDEO:
        from ..video.write import VideoFileSink

        with VideoFileSink(output, height, width, fps) as sink:
            sink.write(draw_frames(frames, tracks))
    else:
        _write_animation(draw_frames(frames, tracks), output, fps)
    print(output)


@app.command()
def track(
    clip: Annotated[str, typer.Argument(help="The clip whose motion to take.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Tracks as .npz, or .json.")],
    points: Annotated[int, typer.Option(help="Tracks to begin with, 1 to 1024.")] = 64,
    tracker: Annotated[Literal["lucas-kanade", "cotracker"], typer.Option(help="How.")] = "lucas-kanade",
    weights: Annotated[Path | None, typer.Option(help="Weights of cotracker.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, max=120, help="Only that much of it.")] = None,
    fps: Fps = 16.0,
    size: Size = "512x512",
) -> None:
    """Follow points through a clip and write them as a motion file, which can be looked at and edited."""
    from ..motion.arrays import save_tracks
    from ..motion.file import motion_to_json
    from ..motion.from_clip import ClipMotion, tracks_of_clip

    width, height = _size(size)
    if output.suffix.lower() not in (".npz", ".json"):
        raise InputError(f"-o {output}: expected a name that ends in .npz or .json")
    wanted = ClipMotion(seconds, points, tracker, weights)
    try:
        tracks = tracks_of_clip(Path(clip), fps, width / height, wanted)
    except InputError as error:
        raise InputError(f"{clip}: {str(error).removeprefix(f'{clip}: ')}") from None
    if output.suffix.lower() == ".npz":
        save_tracks(tracks, output)
    else:
        _write_text(output, json.dumps(motion_to_json(tracks)))
    print(output)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() and len(part) < 6 for part in parts):
        raise InputError(f"--size: expected WIDTHxHEIGHT, found {text[:60]!r}")
    width, height = (int(part) for part in parts)
    if not (16 <= width <= 8192 and 16 <= height <= 8192) or width % 2 or height % 2:
        raise InputError(f"--size: expected even sides from 16 to 8192, found {text}")
    return width, height


def _pictures(over: str | None, fps: float, height: int, width: int, count: int) -> "np.ndarray":
    from ..motion.from_clip import SUFFIXES
    from ..motion.preview import blank
    from ..video.read import read_clip, read_image

    if over is None:
        return blank(height, width)
    if Path(over).suffix.lower() in SUFFIXES:
        return read_clip(over, fps, height, width, max(count, 1))
    return read_image(over, height, width)[None]


def _write_animation(frames: "np.ndarray", output: Path, fps: float) -> None:
    from PIL import Image

    part = output.with_name(output.name + ".part")
    first, *others = (Image.fromarray(frame) for frame in frames)
    kind = output.suffix.lower().removeprefix(".")
    options = {} if not others else {"save_all": True, "append_images": others, "loop": 0}
    try:
        first.save(part, format=kind, duration=math.ceil(1000 / fps), **options)
        part.replace(output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({(error.strerror or str(error)).lower()})") from None
    finally:
        part.unlink(missing_ok=True)


def _write_text(output: Path, text: str) -> None:
    part = output.with_name(output.name + ".part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({(error.strerror or str(error)).lower()})") from None
