"""Picture sizes in whole tokens, as a user asks for them or as a picture to start from has them."""

import math
import re

from ..errors import InputError
from ..suggest import shorten

# Pixels of a token's side: the VAE's 8 times the network's 2.
GRID = 16
_LARGEST = 4096
_SIZE = re.compile(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", re.IGNORECASE)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from `WIDTHxHEIGHT`, as they are written.

    Raises:
        InputError: no such text, or sizes that no picture here has.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"--size {shorten(text)}: expected WIDTHxHEIGHT such as 480x832, or picture")
    width, height = int(match[1]), int(match[2])
    if not all(GRID <= side <= _LARGEST for side in (width, height)):
        raise InputError(f"--size {text}: expected sides of {GRID} to {_LARGEST} pixels")
    return width, height


def on_grid(width: float, height: float) -> tuple[int, int]:
    """The nearest sides of whole tokens."""
    return max(GRID, round(width / GRID) * GRID), max(GRID, round(height / GRID) * GRID)


def shaped_like(picture: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
    """Width and height with about as many pixels as a model's own and the shape of a picture."""
    aspect, pixels = picture[0] / picture[1], own[0] * own[1]
    width, height = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
    return on_grid(min(width, _LARGEST), min(height, _LARGEST))


def size_note(found: tuple[int, int], own: tuple[int, int]) -> str | None:
    """One line where pictures are of another size than a model's config has; None where they are not."""
    if found == own:
        return None
    return (
        f"pictures of {found[0]}x{found[1]}: these weights were made for {own[0]}x{own[1]}, what they do at "
        "another size is not known"
    )
