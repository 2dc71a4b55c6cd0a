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
        count = fresh.shape[1]
        past, before = seen[:, :-count], places[:-count]
        # a sink that lies far back tells nothing of the pictures that come now
        unbroken = int((before == before[-1] - torch.arange(len(before)).flip(0)).sum()) if len(before) else 0
        past, before = past[:, len(before) - unbroken :], before[len(before) - unbroken :]
        video = self._decoded(past, fresh, int(places[-count]))
        return Shown((self._features(video) - self.mean) / self.scale, self.clips)

    def _decoded(self, past: Tensor, fresh: Tensor, start: int) -> Tensor:
        """Pictures `(B, T, 3, H, W)` of `fresh` latents from latent frame `start` on, and the last one before
        them; what a decoder keeps of the `past` has no gradient.
        """
        weight = self.codec.latent_mean
        state = self.codec.initial_state(len(fresh), fresh.device, weight.dtype)
        with torch.autocast(fresh.device.type, enabled=False):
            if not past.shape[1]:
                return self.codec.decode_chunk(self._raw(fresh, start), state)[0]
            with torch.no_grad():
                # the first of them is decoded as a first frame: only what comes later is looked at
                raw = self._raw(past, start - past.shape[1])
                pictures, state = self.codec.decode_chunk(raw, state)
            return torch.cat(
                [pictures[:, -1:], self.codec.decode_chunk(self._raw(fresh, start), state)[0]], 1
            )

    def _raw(self, latents: Tensor, start: int) -> Tensor:
        return self.codec.denormalize(latents.to(self.codec.latent_mean.dtype), start)

    def _features(self, video: Tensor) -> Tensor:
        found: Tensor = self.features(video)
        return found.flatten(0, 1)

    def _clips(self, clips: LatentClips, frames: int, count: int, seed: int) -> Iterator[Tensor]:
        """Windows of clips, decoded from the beginning of each."""
        draws, device = torch.Generator().manual_seed(seed), self.codec.latent_mean.device
        rows = torch.randperm(len(clips.latents), generator=draws)[:count]
        for part in rows.split(_BATCH):
            latents = clips.latents[part, :frames].float().to(device)
            yield self._decoded(latents[:, :0], latents, 0)
