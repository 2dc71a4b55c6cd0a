"""What a person would see in rendered frames, read by program: the background, the coloured objects, where
they are.

Everything here looks at pixels alone and knows only the world's palette and textures.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from ..scenes import COLOURS, SceneConfig
from ..scenes.textures import build_textures
from ..scenes.vocabulary import COLOUR_RGB

#: Standard deviation of an object's pixels around its palette colour after a tokenizer, of 255.
_COLOUR_SPREAD = 26.0
#: Added to the textures' own spread: blur and light errors of a model.
_TEXTURE_SPREAD = 10.0
#: A pixel this far from everything known tells nothing (log-likelihood).
_FLOOR = -30.0
#: Of decisions that are to have a gradient: a pixel on an edge is not all of one kind.
_TEMPERATURE = 8.0
#: Pixels of a 64-pixel frame that the smallest object covers at least about half of.
MIN_AREA = 40.0
#: Side of the square of pixels around one of an object that may show something of it.
_EDGE = 5


@dataclass(frozen=True)
class Reading:
    """What T frames show, on the CPU.

    Attributes:
        background: (T,) index of the background.
        masks: (T, C, H, W) bool, pixels of each palette colour that belong to an object.
        area: (T, C) pixels of each colour, as of a 64 x 64 frame.
        centre: (T, C, 2) centre of each colour's pixels, normalised, on the torus; nan where there are none.
    """

    background: Tensor
    masks: Tensor
    area: Tensor
    centre: Tensor

    def colour(self) -> Tensor:
        """(T,) the colour that covers most, -1 where no colour covers enough."""
        area, colour = self.area.max(1)
        return torch.where(area >= MIN_AREA, colour, -1)

    def found(self, colour: int) -> Tensor:
        """(T,) bool: there is an object of this colour."""
        return self.area[:, colour] >= MIN_AREA

    def ground(self) -> Tensor:
        """(T, H, W) bool: pixels that show no object, and none beside."""
        objects = self.masks.any(1, keepdim=True).float()
        return max_pool2d(objects, _EDGE, 1, _EDGE // 2)[:, 0] == 0

    def part(self, start: int, stop: int) -> "Reading":
        """Frames `[start, stop)` alone."""
        return Reading(*(values[start:stop] for values in vars(self).values()))


class FrameReader:
    """Reads backgrounds and objects of frames of one size.

    Pixels are told apart by likelihood: each background is a normal distribution of its textures' pixels,
    each colour one around its palette entry; likelihoods are averaged over 3 x 3 pixels, so that specks and
    the mixed colours of edges do not count as objects.
    """

    def __init__(self, config: SceneConfig) -> None:
        bank = build_textures(config)
        means, covariances, thumbs = [], [], []
        for variants in bank:
            pixels = torch.cat([_unpack(texture).flatten(0, 2) for texture in variants])
            means.append(pixels.mean(0))
            covariances.append(torch.cov(pixels.T) + _TEXTURE_SPREAD**2 * torch.eye(3))
            thumbs.append(_colour_quantiles(pixels[None]).squeeze(0))
        self._means = torch.stack(means)
        self._factors = torch.linalg.cholesky(torch.stack(covariances))
        self._thumbs = torch.stack(thumbs)
        self._palette = torch.tensor(COLOUR_RGB, dtype=torch.float32)

    def __call__(self, frames: Tensor) -> Reading:
        """Read uint8 (T, H, W, 3)."""
        parts = [self._read(part) for part in frames.float().split(64)]
        return Reading(
            *(torch.cat(values) for values in zip(*(vars(p).values() for p in parts), strict=True))
        )

    def _read(self, frames: Tensor) -> Reading:
        _, height, width, _ = frames.shape
        background = self._background(frames)
        best = self._likelihoods(frames, background).argmax(1)
        masks = best[:, None] == torch.arange(1, len(COLOURS) + 1)[:, None, None]
        scale = 64 * 64 / (height * width)
        return Reading(background, masks, masks.sum((2, 3)) * scale, torus_centres(masks.float()))

    def shares(self, frames: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
        """How much of each pixel of float (T, H, W, 3), 0 to 255, belongs to an object of each colour, (T, C,
        H, W) in [0, 1]: the masks before they are decided, with a gradient; the lower the temperature, the
        nearer to them.
        """
        # without the floor: what is like nothing of the world is like something most
        likelihoods = self._likelihoods(frames, self._background(frames.detach()), -math.inf)
        return (likelihoods / temperature).softmax(1)[:, 1:]

    def to(self, device: torch.device) -> "FrameReader":
        """This reader, on a device."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self

    def _likelihoods(self, frames: Tensor, background: Tensor, floor: float = _FLOOR) -> Tensor:
        """(T, 1 + C, H, W) of the background and each colour, over 3 x 3 pixels."""
        ground = self._texture_likelihood(frames, background)
        apart = (frames[:, :, :, None] - self._palette).square().sum(-1)
        colours = -apart / (2 * _COLOUR_SPREAD**2) - 3 * math.log(_COLOUR_SPREAD)
        scores = torch.cat([ground[..., None], colours], -1).clamp(min=floor).permute(0, 3, 1, 2)
        return avg_pool2d(pad(scores, (1, 1, 1, 1), mode="replicate"), 3, 1)

    def _background(self, frames: Tensor) -> Tensor:
        """Nearest background by quantiles of each colour channel, which an object in front hardly moves."""
        found = _colour_quantiles(frames.flatten(1, 2))
        return (found[:, None] - self._thumbs).square().sum((2, 3)).argmin(1)

    def _texture_likelihood(self, frames: Tensor, background: Tensor) -> Tensor:
        apart = (frames - self._means[background][:, None, None]).flatten(1, 2)
        factor = self._factors[background]
        white = torch.linalg.solve_triangular(factor, apart.mT, upper=False)
        spread = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return (-white.square().sum(1) / 2 - spread[:, None]).view(frames.shape[:3])


def _unpack(texture: Tensor) -> Tensor:
    """Packed int32 (T, S, S) as float (T, S, S, 3)."""
    return texture.contiguous().view(torch.uint8).view(*texture.shape, 4)[..., :3].float()


def _colour_quantiles(pixels: Tensor) -> Tensor:
    """(B, P, 3) pixels as (B, 3, 3) quartiles of each channel."""
    step = max(1, pixels.shape[1] // 65536)
    return torch.quantile(
        pixels[:, ::step], torch.tensor([0.25, 0.5, 0.75], device=pixels.device), dim=1
    ).transpose(0, 1)


def torus_centres(masks: Tensor) -> Tensor:
    """Centres (..., 2) as normalised (x, y) of weights (..., H, W) on a torus; nan where all are zero."""
    out = []
    for axis in (-1, -2):
        size = masks.shape[axis]
        angle = (torch.arange(size) + 0.5) / size * 2 * math.pi
        line = masks.sum(-2 if axis == -1 else -1)
        y, x = (line * angle.sin()).sum(-1), (line * angle.cos()).sum(-1)
        out.append((torch.atan2(y, x) / (2 * math.pi)) % 1)
    centre = torch.stack(out, -1)
    return torch.where(masks.sum((-1, -2))[..., None] > 0, centre, torch.nan)


def torus_apart(a: Tensor, b: Tensor) -> Tensor:
    """Distance between normalised points (..., 2) on the torus, in frame widths."""
    return torus_step(a, b).norm(dim=-1)


def torus_step(a: Tensor, b: Tensor) -> Tensor:
    """The shortest step (..., 2) from `a` to `b` on the torus."""
    return (b - a + 0.5).remainder(1.0) - 0.5
