"""A reward with a gradient: whether a first picture shows the objects that its caption tells of.

The procedural world makes it exact. The evaluation's frame reader tells how much of each pixel belongs to an
object of each colour; those shares are compared with every shape of the world, drawn where and as large as it
fits them best, by the Dice coefficient (as a loss: arXiv 1606.04797). The reward is the log-likelihood of the
shape that was told under these comparisons, less what is of any object's colour and lies beside the shapes:
a classifier that is written down, not learned, so that there is little in it to be exploited. It goes through
the frozen decoder to the student's clean estimate, as rewards of few-step generators do (ReFL, arXiv
2304.05977; DRaFT, arXiv 2309.17400).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, max_pool2d, pad

from models.video_codec import VideoCodec

from ..config import Checked, NonNegative, Positive, Share
from ..evaluation.reading import FrameReader
from ..pictured import decoded
from ..scenes import COLOURS, SHAPES, SIZES, SceneConfig
from ..scenes.shapes import WORLD_SIZE, DistanceTable
from ..scenes.vocabulary import SIZE_RADII
from ..words.told import ToldBatch

#: What captions say of each object: classes `(B, O)` by attribute, the number of classes for nothing.
Labels = Mapping[str, Tensor]
#: Radii that are tried, of a size class' own: an outline takes of an object's colour, jitter adds to it.
_FACTORS = (0.8, 0.88, 0.96)
#: Of the reader's decisions (it reads at 0): the background, most of a picture, must not add up to an object.
_TEMPERATURE = 0.7
#: Pixels of 64 around a shape that may have its outline's colours.
_NEAR = 3
#: Pixels of 64 x 64 of what lies beside that count half; and such as weigh as nothing in a comparison.
_BESIDE, _LEAST = 200.0, 1.0


@dataclass(frozen=True)
class RewardConfig(Checked, section="reward"):
    """A `share` of the student's updates on first frames has the reward beside the objective, `weight` times;
    `sharpness` divides the comparisons with the shapes, so that one that fits by as much better is e times as
    likely; what lies beside the shapes counts `beside` times.

    A `share` of the `streams` is judged all along: what their pictures show, `way` times how objects move,
    `steps` times how unsteadily, and `place` times where they are while they are dragged; of those without a
    switch a share has `drags` (see `distill.reward.streams`), and of those that last for more than an update
    a share goes on from `openings`, the beginnings of clips.
    """

    share: Share = 0.0
    weight: NonNegative = 0.03
    sharpness: Positive = 0.02
    beside: NonNegative = 1.0
    streams: Share = 0.0
    drags: Share = 0.4
    openings: Share = 0.0
    way: NonNegative = 2.0
    steps: NonNegative = 0.0
    place: NonNegative = 1.0


@dataclass(frozen=True)
class Shown:
    """What B pictures show of what they were told, with a gradient.

    Attributes:
        fits: `(B, O, S)` Dice coefficients in [0, 1] of the pixels of each object's colour with each shape.
        beside: `(B,)` in [0, 1) how much is of any object's colour and belongs to none that was told.
        there: `(B, O)` objects that were told of, in pictures that can be judged: whose captions give each
            object a colour, and no two the same.
        shape: `(B, O)` shape that was told of each.
    """

    fits: Tensor
    beside: Tensor
    there: Tensor
    shape: Tensor


class PictureReward:
    """Judges pictures of the world by what was told of them.

    Args:
        config: the reward's.
        scenes: the world; pictures are as large as its frames.
        codec: frozen, decodes the first latent frame of a stream into a picture.
        device: of the pictures.
    """

    def __init__(
        self, config: RewardConfig, scenes: SceneConfig, codec: VideoCodec, device: torch.device
    ) -> None:
        self.config, self.codec = config, codec
        self._reader = FrameReader(scenes).to(device)
        self._drawn = _drawn(scenes.size, device)
        self._spectra = torch.fft.rfft2(self._drawn)
        self._area = self._drawn.sum((-2, -1))

    def loss(self, latents: Tensor, told: ToldBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What is to be added to the student's loss for first latents `(B, 1, C, h, w)`, and what `judged`
        says.
        """
        _, pictures = decoded(self.codec, latents[:, :0], latents, 0)
        loss, found = self.judged(pictures[:, 0], told.labels)
        return self.config.weight * loss, found

    def judged(self, pictures: Tensor, told: Labels) -> tuple[Tensor, Mapping[str, Tensor]]:
        """How little pictures `(B, 3, H, W)` show what they were told, and of the objects the share whose
        shape fits best (`reward/right`) and what lies `reward/beside` them; 0 where none can be judged.
        """
        shown, config = self.shown(pictures, told), self.config
        there = shown.there
        if not bool(there.any()):
            return pictures.sum() * 0, {}
        fits, shape = shown.fits[there], shown.shape[there]
        beside = shown.beside[there.any(1)].mean()
        loss = cross_entropy(fits / config.sharpness, shape) + config.beside * beside
        right = (fits.argmax(1) == shape).float().mean()
        return loss, {"reward/right": right, "reward/beside": beside.detach(), "reward/loss": loss.detach()}

    def shares(self, pictures: Tensor) -> Tensor:
        """How much of each pixel of `(B, 3, H, W)` in [-1, 1] is each colour's objects, `(B, C, H, W)`."""
        # likelihoods need more digits than half precision has
        frames = pictures.float().add(1).mul(127.5).movedim(1, -1)
        return self._reader.shares(frames, _TEMPERATURE)

    def shown(self, pictures: Tensor, told: Labels) -> Shown:
        """What pictures `(B, 3, H, W)` in [-1, 1] show of what captions say of each object."""
        labels = {name: told[name].to(pictures.device) for name in ("colour", "shape", "size")}
        there = judgeable(labels)
        shares = self.shares(pictures)
        colour, shape = (
            labels[name].clamp(max=len(classes) - 1)
            for name, classes in (("colour", COLOURS), ("shape", SHAPES))
        )
        masks = shares.gather(1, colour[..., None, None].expand(-1, -1, *shares.shape[2:]))
        drawn = self._fitting(masks.detach(), labels["size"])
        both = (masks[:, :, None] * drawn).sum((-2, -1))
        fits = 2 * both / (masks.sum((-2, -1))[:, :, None] + drawn.sum((-2, -1)) + _LEAST)
        told_ones = shape[..., None, None, None].expand(-1, -1, 1, *drawn.shape[3:])
        own = (drawn.gather(2, told_ones)[:, :, 0] * there[..., None, None]).amax(1)
        far = (shares.sum(1) * (1 - _widened(own))).sum((-2, -1))
        much = _BESIDE * (pictures.shape[-1] / WORLD_SIZE) ** 2
        return Shown(fits, far / (far + much), there, shape)

    def _fitting(self, masks: Tensor, size: Tensor) -> Tensor:
        """For each of the masks `(B, O, H, W)` every shape, `(B, O, S, H, W)`, drawn where and as large as
        fits best, of the radii that its `size (B, O)` allows (all where it is not told).
        """
        height, width = masks.shape[-2:]
        spectra = torch.fft.rfft2(masks)[:, :, None, None] * self._spectra.conj()
        overlap = torch.fft.irfft2(spectra, s=(height, width))
        areas = masks.sum((-2, -1))[:, :, None, None] + self._area + _LEAST
        fits = 2 * overlap / areas[..., None, None]
        classes = torch.arange(self._drawn.shape[1], device=size.device) // len(_FACTORS)
        allowed = (classes == size[..., None]) | (size == len(SIZES))[..., None]
        best = fits.masked_fill(~allowed[:, :, None, :, None, None], -1.0).flatten(3).argmax(-1)
        radius, place = best // (height * width), best % (height * width)
        drawn = self._drawn[torch.arange(len(SHAPES), device=size.device), radius]
        # rolled to its place
        rows = (torch.arange(height, device=size.device) - (place // width)[..., None]) % height
        columns = (torch.arange(width, device=size.device) - (place % width)[..., None]) % width
        drawn = drawn.gather(3, rows[..., None].expand_as(drawn))
        return drawn.gather(4, columns[..., None, :].expand_as(drawn))


def judgeable(labels: Labels) -> Tensor:
    """Objects `(B, O)` whose pixels can be told apart by what captions say, classes `(B, O)` by attribute."""
    there = labels["shape"] < len(SHAPES)
    return there & _told_apart(labels["colour"], there)[:, None]


def _told_apart(colour: Tensor, there: Tensor) -> Tensor:
    """Captions `(B,)` that give each of their objects a colour of its own, of classes `(B, O)`."""
    said = ((colour < len(COLOURS)) | ~there).all(1)
    alike = (colour[:, :, None] == colour[:, None]) & there[:, :, None] & there[:, None]
    return said & (alike.sum((1, 2)) == there.sum(1))


def _widened(shapes: Tensor) -> Tensor:
    """Shapes `(B, H, W)` and `_NEAR` pixels of 64 around them, on the torus."""
    near = round(_NEAR * shapes.shape[-1] / WORLD_SIZE)
    return max_pool2d(pad(shapes[:, None], (near,) * 4, mode="circular"), 2 * near + 1, 1)[:, 0]


def _drawn(side: int, device: torch.device) -> Tensor:
    """Each shape at each radius, `(S, R, side, side)` shares of pixels, around pixel (0, 0) of the torus."""
    table, scale = DistanceTable(device), side / WORLD_SIZE
    line = torch.arange(side, device=device)
    away = (line + side // 2) % side - side // 2
    pictures = []
    for shape in range(len(SHAPES)):
        index = torch.tensor(shape, device=device)
        for radius in (size * factor * scale for size in SIZE_RADII for factor in _FACTORS):
            distance = table.distances(index, away[None, :] / radius, away[:, None] / radius)
            pictures.append((0.5 - distance * radius).clamp(0, 1))
    return torch.stack(pictures).view(len(SHAPES), -1, side, side)
