"""Features of what streams show in pictures, and of clips, in one measure: for objectives without scores."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.video_codec import VideoCodec

from .latent_cache import LatentClips
from .objectives import Moments, Shown

#: Clips that are decoded at once.
_BATCH = 16


class Pictured:
    """What a frozen codec decodes of latents, by features of pictures.

    Each feature is measured by its mean and deviation over clips: those that hardly vary there count as much
    as those that do.

    Args:
        codec: turns latents into pictures; its error is in both, so that it is no difference.
        features: video `(B, T, 3, H, W)` to features `(B, T - 1, F)`.
        clips: latents of clips, of which `count` windows of `frames` latent frames are taken.
    """

    def __init__(
        self, codec: VideoCodec, features: nn.Module, clips: LatentClips, frames: int, count: int, seed: int
    ) -> None:
        self.codec, self.features = codec, features
        with torch.no_grad():
            found = torch.cat([self._features(video) for video in self._clips(clips, frames, count, seed)])
        self.mean = found.mean(0)
        self.scale = found.std(0).clamp_min(1e-3)
        self.clips = Moments.of((found - self.mean) / self.scale)

    def shown(self, seen: Tensor, fresh: Tensor, places: Tensor) -> Shown:
        """Of streams: `fresh (B, n, C, h, w)` latents, with their gradient, behind the others of `seen (B, P,
        C, h, w)`, whose last ones they are, at latent frames `places (P,)`.
        """
        past = unbroken(seen, fresh.shape[1], places)
        before, pictures = decoded(self.codec, past, fresh, int(places[-fresh.shape[1]]))
        video = torch.cat([before[:, -1:], pictures], 1)
        return Shown((self._features(video) - self.mean) / self.scale, self.clips)

    def _features(self, video: Tensor) -> Tensor:
        found: Tensor = self.features(video)
        return found.flatten(0, 1)

    def _clips(self, clips: LatentClips, frames: int, count: int, seed: int) -> Iterator[Tensor]:
        """Windows of clips, decoded from the beginning of each."""
        draws, device = torch.Generator().manual_seed(seed), self.codec.latent_mean.device
        rows = torch.randperm(len(clips.latents), generator=draws)[:count]
        for part in rows.split(_BATCH):
            latents = clips.latents[part, :frames].float().to(device)
            yield decoded(self.codec, latents[:, :0], latents, 0)[1]


def unbroken(seen: Tensor, new: int, places: Tensor) -> Tensor:
    """Of what streams see, `(B, P, C, h, w)` at latent frames `places (P,)`, the part that runs without a gap
    up to the last `new`: a sink that lies far back tells nothing of the pictures that come now.
    """
    count = len(places) - new
    past, before = seen[:, :count], places[:count]
    joined = int((before == before[-1] - torch.arange(count).flip(0)).sum()) if count else 0
    return past[:, count - joined :]


def decoded(codec: VideoCodec, past: Tensor, fresh: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Pictures `(B, T, 3, H, W)` of the `past`, without a gradient, and of `fresh` latents behind it, from
    latent frame `start` on. The first of the past is decoded as a first frame: only later ones are as they
    were shown.
    """
    weight = codec.latent_mean

    def raw(latents: Tensor, at: int) -> Tensor:
        return codec.denormalize(latents.to(weight.dtype), at)

    state = codec.initial_state(len(fresh), fresh.device, weight.dtype)
    # in the codec's own digits, whatever the student is trained in
    with torch.autocast(fresh.device.type, enabled=False):
        if not past.shape[1]:
            pictures, _ = codec.decode_chunk(raw(fresh, start), state)
            return pictures[:, :0], pictures
        with torch.no_grad():
            before, state = codec.decode_chunk(raw(past, start - past.shape[1]), state)
        return before, codec.decode_chunk(raw(fresh, start), state)[0]
