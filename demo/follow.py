"""Following what a viewer pointed at from the picture they saw to the newest one.

A stroke begins on a picture that is older than the next chunk by what is buffered and under way; an object
that moves is elsewhere by then (the authors of MotionStream name this as the weak point of their demo).
"""

from collections.abc import Sequence

import numpy as np

# Half the side of the patch that is looked for, and how far it may go from frame to frame, in parts of the
# picture's width.
_PATCH = 0.08
_REACH = 0.06
# Larger pictures are looked at in about this many columns.
_COLUMNS = 64
# A patch that fits worse than this many 8-bit levels (root mean square) has been lost.
_LOST = 45.0


def follow(frames: Sequence[np.ndarray], point: tuple[float, float]) -> tuple[float, float]:
    """Where the thing at `point` of the first picture is in the last one.

    Args:
        frames: uint8 (H, W, 3) each, in order; one or none leaves the point where it is.
        point: normalised (x, y).

    Returns:
        Normalised (x, y); where the thing is lost, the last place it was seen at.
    """
    if len(frames) < 2:
        return point
    step = max(1, frames[0].shape[1] // _COLUMNS)
    frames = [frame[::step, ::step] for frame in frames]
    height, width = frames[0].shape[:2]
    patch, reach = max(2, round(_PATCH * width)), max(2, round(_REACH * width))
    x = min(max(int(point[0] * width), 0), width - 1)
    y = min(max(int(point[1] * height), 0), height - 1)
    shift_x, shift_y = point[0] * width - x, point[1] * height - y
    pad = patch + reach
    here = _window(_padded(frames[0], pad), x, y, patch, pad)
    for frame in frames[1:]:
        picture = _padded(frame, pad)
        best = min(_around(reach), key=lambda d: _misfit(picture, here, x + d[0], y + d[1], patch, pad))
        if _misfit(picture, here, x + best[0], y + best[1], patch, pad) > _LOST:
            break
        x, y = min(max(x + best[0], 0), width - 1), min(max(y + best[1], 0), height - 1)
        here = _window(picture, x, y, patch, pad)
    return min(max((x + shift_x) / width, 0.0), 1.0), min(max((y + shift_y) / height, 0.0), 1.0)


def _around(reach: int) -> list[tuple[int, int]]:
    """Moves, nearest first: of moves that fit alike, the smallest is taken."""
    moves = [(dx, dy) for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)]
    return sorted(moves, key=lambda d: d[0] ** 2 + d[1] ** 2)


def _padded(frame: np.ndarray, pad: int) -> np.ndarray:
    return np.pad(frame.astype(np.float32), ((pad, pad), (pad, pad), (0, 0)), mode="edge")


def _window(picture: np.ndarray, x: int, y: int, patch: int, pad: int) -> np.ndarray:
    return picture[y + pad - patch : y + pad + patch + 1, x + pad - patch : x + pad + patch + 1]


def _misfit(picture: np.ndarray, here: np.ndarray, x: int, y: int, patch: int, pad: int) -> float:
    there = _window(picture, x, y, patch, pad)
    if there.shape != here.shape:
        return float("inf")
    return float(np.sqrt(np.mean((there - here) ** 2)))
