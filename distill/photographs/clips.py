"""Clips of photographs that move, zoom and turn, with patches of others in front: cheap stand-ins for natural
video, in which what comes in is always new.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from .config import PhotographConfig
from .motion import Draw, Path, draw_light, draw_outline, draw_path

#: Each level of a pyramid is so much smaller than the one before.
_STEP = 2**0.5
#: Seeds of a batch's clips are so far apart.
_STRIDE = 1_000_003
#: Grey photographs are drawn so much less often than coloured ones.
_GREY_SHARE = 0.35


class PhotographClips:
    """Draws clips from pictures.

    Args:
        pictures: uint8 (3, H, W) each, at least 32 pixels high and wide.

    Raises:
        ValueError: no picture, or one that is smaller.
    """

    def __init__(self, pictures: Sequence[Tensor], config: PhotographConfig) -> None:
        if not pictures or any(min(picture.shape[-2:]) < 32 for picture in pictures):
            raise ValueError("pictures: expected at least one, each of at least 32x32 pixels")
        self.config = config
        self._pyramids = [_pyramid(picture) for picture in pictures]
        # grey ones are gravel and the like: far more to err in than in most videos
        self._weights = torch.tensor([_GREY_SHARE if _is_grey(picture) else 1.0 for picture in pictures])

    def sample(self, batch: int, frames: int, size: int, seed: int) -> Tensor:
        """Float (B, T, 3, size, size) in [-1, 1], a function of (pictures, config, arguments)."""
        return torch.stack(
            [self._clip(Draw((seed + _STRIDE * row) % 2**63), frames, size) for row in range(batch)]
        )

    def _clip(self, draw: Draw, frames: int, size: int) -> Tensor:
        cut = 1 + draw.below(frames - 1) if frames > 1 and draw.chance(self.config.cut) else frames
        parts = [self._scene(draw, 0, cut, size)]
        if cut < frames:
            parts.append(self._scene(draw, cut, frames, size))
        return torch.cat(parts)

    def _scene(self, draw: Draw, first: int, last: int, size: int) -> Tensor:
        """Frames `first` to `last` of one scene (T, 3, size, size): a photograph, and patches before it."""
        # an open shutter: where a frame is the mean of three moments, what is fast is blurred
        blurred = last - first > 1 and draw.chance(0.3)
        shutter = torch.tensor([-0.3, 0.0, 0.3]) * draw.uniform(0.3, 1.0) if blurred else torch.zeros(1)
        moments = (torch.arange(last - first)[:, None] + shutter).flatten()
        grid = _grid(size)
        camera = draw_path(draw, moments, self.config.fastest, self.config.still)
        places = _seen(grid, camera)
        if draw.chance(0.25):
            places = _bent(draw, places, moments)
        picture = self._texture(draw, places, size, float(camera.size.min()))
        for _ in range(draw.below(self.config.objects + 1)):
            picture = self._covered(draw, picture, grid, moments)
        picture = picture * draw_light(draw, moments, grid)
        video = picture.unflatten(0, (last - first, len(shutter))).mean(1)
        return video.clamp(0, 1) * 2 - 1

    def _covered(self, draw: Draw, picture: Tensor, grid: Tensor, moments: Tensor) -> Tensor:
        """`picture` with a patch of another photograph before it, on a way of its own."""
        size = picture.shape[-1]
        path = draw_path(draw, moments, self.config.fastest, self.config.still)
        # it is somewhere, perhaps outside, at the middle moment
        there = torch.tensor([draw.uniform(-1.3, 1.3), draw.uniform(-1.3, 1.3)])
        path = Path(path.place - path.place[len(moments) // 2] + there, path.turn, path.size)
        turned = Path(path.place, path.turn + draw.uniform(0, 2 * math.pi), path.size)
        own = _within(grid, turned)
        mask = draw_outline(draw).inside(own, 2 / size / path.size)[:, None]
        if not bool((mask > 0).any()):
            return picture
        return torch.lerp(picture, self._texture(draw, own, size, 1 / float(path.size.max())), mask)

    def _texture(self, draw: Draw, places: Tensor, size: int, smallest: float) -> Tensor:
        """What a photograph shows (T, 3, H, W), in [0, 1], at `places (T, H, W, 2)` in half widths of what is
        seen at first; `smallest` is how much narrower the view gets.
        """
        levels = self._pyramids[draw.one_of(self._weights)]
        height, width = levels[0].shape[-2:]
        # pixels of the photograph for one of the clip: from its own size to the whole of it
        most = max(1.2, min(height, width) / size)
        ratio = draw.logarithmic(0.9, most)
        soft = draw.uniform(0.55, 1.1)
        level = round(2 * math.log2(max(1.0, ratio * smallest * soft)))
        source = levels[min(level, len(levels) - 1)]
        centre = torch.tensor([draw.uniform(-0.9, 0.9), draw.uniform(-0.9, 0.9)])
        if draw.chance(0.5):
            places = places * torch.tensor([-1.0, 1.0])
        view = centre + places * ratio * size / torch.tensor([width, height])
        flat = view.flatten(0, 1)[None]
        seen = grid_sample(source[None], flat, padding_mode="reflection", align_corners=False)[0]
        return _coloured(draw, seen.unflatten(1, places.shape[:2]).movedim(1, 0))


def _is_grey(picture: Tensor) -> bool:
    return bool((picture == picture[:1]).all())


def _pyramid(picture: Tensor) -> list[Tensor]:
    """Float (3, h, w) in [0, 1], each a root of two smaller, down to 16 pixels."""
    whole = picture.float()[None] / 255
    levels = [whole[0]]
    side = min(picture.shape[-2:]) / _STEP
    while side >= 16:
        scale = side / min(picture.shape[-2:])
        shape = [max(1, round(length * scale)) for length in picture.shape[-2:]]
        levels.append(interpolate(whole, shape, mode="bilinear", antialias=True)[0])
        side /= _STEP
    return levels


def _grid(size: int) -> Tensor:
    """Middles of pixels (size, size, 2), (x, y) in [-1, 1]."""
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def _rotated(places: Tensor, turn: Tensor) -> Tensor:
    """`places (T or 1, H, W, 2)` turned by `turn (T,)`."""
    cosine, sine = turn.cos()[:, None, None], turn.sin()[:, None, None]
    x, y = places.unbind(-1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


def _seen(grid: Tensor, camera: Path) -> Tensor:
    """Where a camera on this path sees the pixels of a picture (T, H, W, 2)."""
    near = _rotated(grid[None], camera.turn) * camera.size[:, None, None, None]
    return near + camera.place[:, None, None]


def _within(grid: Tensor, path: Path) -> Tensor:
    """Places of the picture's pixels on a plane that is on this path (T, H, W, 2)."""
    away = grid - path.place[:, None, None]
    return _rotated(away, -path.turn) / path.size[:, None, None, None]


def _bent(draw: Draw, places: Tensor, moments: Tensor) -> Tensor:
    """Places moved by a slow wave: what bends."""
    reach, period = draw.logarithmic(0.01, 0.08), draw.uniform(8, 40)
    waves = 3 * draw.normal(2, 2)
    phase = 2 * math.pi * (moments / period + draw.uniform(0, 1))
    return places + reach * torch.sin(places @ waves + phase[:, None, None, None])


def _coloured(draw: Draw, picture: Tensor) -> Tensor:
    """Other colours and contrast, the same ones in all frames (T, 3, H, W)."""
    if draw.chance(0.3):
        picture = picture[:, torch.randperm(3, generator=draw.generator)]
    if draw.chance(0.5):
        grey = picture.mean(1, keepdim=True)
        picture = grey + (picture - grey) * draw.uniform(0.3, 1.4)
    gains = draw.uniform(0.6, 1.2) * (1 + 0.08 * draw.normal(3, 1, 1))
    return (picture * gains + draw.uniform(-0.08, 0.12)).clamp(0, 1)
