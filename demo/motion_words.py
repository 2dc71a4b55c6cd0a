"""Motion in words, for the strip: what was taken hold of, and where it went."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np

from .messages import Camera

# Hues in degrees, each up to the next.
_HUES = (
    (15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (195, "cyan"), (260, "blue"),
    (300, "purple"), (340, "pink"), (361, "red"),
)  # fmt: skip
# Of the picture's width, about a point.
_LOOK = 0.03
# Rates of a camera that are told; sizes that count as another one.
_LEAST_PAN, _LEAST_TURN, _LEAST_ZOOM, _LEAST_GROWTH = 0.01, 1.0, 1.02, 1.08


def place_name(x: float, y: float) -> str:
    """A place in the picture, in words: "the upper left"."""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    row = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else ""
    if row and column:
        return f"the {row} {column}"
    if row:
        return "the top" if row == "upper" else "the bottom"
    return f"the {column or 'middle'}"


def colour_name(picture: np.ndarray | None, x: float, y: float) -> str:
    """What is at a point of a picture, uint8 (H, W, 3), by its colour; "something" where there is none."""
    if picture is None:
        return "something"
    height, width = picture.shape[:2]
    reach = max(1, round(_LOOK * width))
    column, row = min(int(x * width), width - 1), min(int(y * height), height - 1)
    part = picture[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
    red, green, blue = np.median(part.reshape(-1, 3), axis=0) / 255
    hue, saturation, value = colorsys.rgb_to_hsv(float(red), float(green), float(blue))
    if value < 0.2:
        return "something black"
    if saturation < 0.2:
        return f"something {'white' if value > 0.8 else 'grey'}"
    return f"something {next(name for most, name in _HUES if 360 * hue < most)}"


def way_name(thing: str, first: Sequence[float], last: Sequence[float] | None) -> str:
    """What went from one point (x, y) to another; where to is open while None."""
    begin = place_name(first[0], first[1])
    if last is None:
        return f"{thing}, from {begin}"
    end = place_name(last[0], last[1])
    if end != begin:
        return f"{thing}, from {begin} to {end}"
    return (
        f"{thing}, within {begin}" if math.dist(first[:2], last[:2]) > 0.02 else f"{thing}, held at {begin}"
    )


def box_name(thing: str, first: Sequence[float], last: Sequence[float]) -> str:
    """What went from one (left, top, right, bottom) to another."""
    places = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (first, last)]
    sides = [math.sqrt((b[2] - b[0]) * (b[3] - b[1])) for b in (first, last)]
    growth = sides[1] / sides[0]
    told = way_name(thing, *places)
    if max(growth, 1 / growth) < _LEAST_GROWTH:
        return told
    return f"{told}, {'grows' if growth > 1 else 'shrinks'} to {100 * growth:.0f} %"


def pins_name(points: Sequence[Sequence[float]]) -> str:
    """What holds still."""
    places = list(dict.fromkeys(place_name(point[0], point[1]) for point in points))
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{len(points)} held at {', '.join(places[:3])}{more}"


def camera_name(move: Camera) -> str:
    """Where a camera goes."""
    (x, y), parts = move.pan, []
    if max(abs(x), abs(y)) >= _LEAST_PAN:
        ways = [("right" if x > 0 else "left") * (abs(x) >= _LEAST_PAN)]
        ways.append(("down" if y > 0 else "up") * (abs(y) >= _LEAST_PAN))
        parts.append(f"pans {' and '.join(filter(None, ways))}")
    if max(move.zoom, 1 / move.zoom) >= _LEAST_ZOOM:
        parts.append(f"zooms {'in' if move.zoom > 1 else 'out'}")
    if abs(move.rotate) >= _LEAST_TURN:
        parts.append(f"turns {'right' if move.rotate > 0 else 'left'}")
    told = ", ".join(parts) or "hardly moves"
    return f"{told}, {move.seconds:g} s" if move.seconds else told
