"""Tracks drawn over pictures, to see what a motion file says before rendering with it."""

import colorsys
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .tracks import OCCLUDED, UNSPECIFIED, TrackSet

_TAIL_FRAMES = 12
_GREY = 64

Colour = tuple[int, int, int]


def draw_frames(frames: np.ndarray, tracks: TrackSet) -> np.ndarray:
    """A video with the tracks over it: where each point is now, and where it was in the last 12 frames.

    Free points are discs, pinned ones squares; those that are occluded are hollow, those that are unspecified
    are not drawn.

    Args:
        frames: uint8 RGB (T, H, W, 3); after the last one it is repeated.
        tracks: drawn for as many frames as they have.

    Returns:
        uint8 RGB (max(T, tracks.num_frames), H, W, 3).
    """
    count = max(len(frames), tracks.num_frames)
    drawn = []
    for number in range(count):
        image = Image.fromarray(frames[min(number, len(frames) - 1)])
        if number < tracks.num_frames:
            _draw(image, tracks, number, _TAIL_FRAMES)
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def draw_picture(frame: np.ndarray, tracks: TrackSet) -> np.ndarray:
    """One picture with each track from its first point to its last, which is marked.

    Args:
        frame: uint8 RGB (H, W, 3).
        tracks: drawn over it.

    Returns:
        uint8 RGB (H, W, 3).
    """
    image = Image.fromarray(frame)
    pencil = ImageDraw.Draw(image)
    for track in range(tracks.num_tracks):
        known = (tracks.state[track] != UNSPECIFIED).nonzero().flatten().tolist()
        if known:
            _line(pencil, image, tracks, track, known)
            _mark(pencil, image, tracks, track, known[-1])
    return np.asarray(image)


def blank(height: int, width: int) -> np.ndarray:
    """One grey frame to draw on, uint8 RGB (1, height, width, 3)."""
    return np.full((1, height, width, 3), _GREY, np.uint8)


def _draw(image: Image.Image, tracks: TrackSet, number: int, tail: int) -> None:
    pencil = ImageDraw.Draw(image)
    for track in range(tracks.num_tracks):
        states = tracks.state[track]
        if states[number] == UNSPECIFIED:
            continue
        start = number
        while start > max(0, number - tail) and states[start - 1] != UNSPECIFIED:
            start -= 1
        _line(pencil, image, tracks, track, range(start, number + 1))
        _mark(pencil, image, tracks, track, number)


def _line(
    pencil: ImageDraw.ImageDraw, image: Image.Image, tracks: TrackSet, track: int, frames: Sequence[int]
) -> None:
    width = max(round(_radius(image) / 2), 1)
    for first, second in itertools.pairwise(frames):
        if second == first + 1:
            ends = [_place(image, tracks, track, first), _place(image, tracks, track, second)]
            pencil.line(ends, fill=_colour(tracks, track), width=width)


def _mark(pencil: ImageDraw.ImageDraw, image: Image.Image, tracks: TrackSet, track: int, number: int) -> None:
    x, y = _place(image, tracks, track, number)
    radius = _radius(image)
    box = (x - radius, y - radius, x + radius, y + radius)
    colour = _colour(tracks, track)
    fill = None if tracks.state[track, number] == OCCLUDED else colour
    outline = colour if fill is None else (255, 255, 255)
    shape = pencil.rectangle if tracks.pinned[track] else pencil.ellipse
    shape(box, fill=fill, outline=outline)


def _place(image: Image.Image, tracks: TrackSet, track: int, number: int) -> tuple[float, float]:
    x, y = tracks.points[track, number].tolist()
    return x * image.width - 0.5, y * image.height - 0.5


def _radius(image: Image.Image) -> float:
    return max(min(image.size) / 64, 1.5)


def _colour(tracks: TrackSet, track: int) -> Colour:
    """Neighbouring ids get colours far apart on the wheel."""
    hue = int(tracks.ids[track]) * 0.618034 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
