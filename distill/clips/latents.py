"""Own clips as the diffusion stages take them: encoded once, with words and tracks."""

import torch
from torch import Tensor

from models.video_codec import VideoCodec

from ..latent_cache import LatentClips, encode_clips
from .folder import ClipFolder, UsableClip, require_length
from .store import Tensors
from .tracks import ClipTracks
from .words import CaptionIds

# 16 clips of 81 frames of 64 x 64.
_PIXELS_AT_ONCE = 16 * 81 * 64 * 64


class OwnLatents:
    """The clips of a folder, cut to pieces and encoded with one tokenizer and its captions as ids.

    Of `share (i, n)` every n-th clip from the i-th on is loaded (all where there are too few): what processes
    that divide large latents among them have in memory.
    """

    def __init__(
        self,
        folder: ClipFolder,
        tokenizer: VideoCodec,
        tokenizer_digest: str,
        texts: CaptionIds,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        config = folder.config
        self.folder, self.config, self.tokenizer = folder, config, tokenizer
        self.shelf = folder.shelf("latents", tokenizer_digest, config.frames, config.step, config.images)
        self.tracks = ClipTracks(folder)
        self.texts, self.share = texts, share
        self._usable: list[UsableClip] | None = None

    def build(self, rank: int, world: int, device: torch.device) -> None:
        """Encode this process' share of what is missing: clips, words and tracks."""

        def compute(frames: Tensor) -> Tensors:
            require_length(frames, self.config)
            return self._encode(frames, device)

        self.folder.build(self.shelf, compute, rank, world)
        self.tracks.build(rank, world)
        self.texts.build(self.folder.captions, rank, world)

    def load(self, images: bool) -> LatentClips:
        """The share's pieces (or single frames of them) in memory, in the order of the listing.

        Raises:
            InputError: no clip is usable, or a file of the cache is damaged.
        """
        if self._usable is None:
            self._usable = self.folder.settle(self.shelf, self.tracks.problems())
        number, of = self.share
        usable = self._usable[number::of] or self._usable
        words = self.texts.load([clip.entry.caption for clip in usable])
        rows = [self._clip(clip, ids, images) for clip, ids in zip(usable, words, strict=True)]
        return LatentClips(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]})

    def _clip(self, clip: UsableClip, words: Tensor, images: bool) -> Tensors:
        """The fields of `LatentClips` for one clip."""
        stored = self.shelf.load(clip.key)
        starts = stored["starts"].tolist()
        fields = self.tracks.load(clip, starts)
        fields["latents"] = stored["images"] if images else stored["latents"]
        if images:
            at = image_frames(self.config.frames, self.config.images)
            # a row for each image, of one frame
            for name in ("points", "visible"):
                fields[name] = fields[name].index_select(2, at).transpose(1, 2).flatten(0, 1).unsqueeze(2)
            for name in ("background", "pinned"):
                fields[name] = fields[name].repeat_interleave(len(at), 0)
        total = fields["latents"].shape[:2]
        # own clips have no drags and no camera moves
        fields["dragged"] = torch.zeros_like(fields["visible"])
        fields["camera"] = torch.zeros_like(fields["visible"][:, 0])
        fields["words"] = words.expand(total[0], 2, -1).clone()
        fields["switch"] = torch.full((total[0],), total[1], dtype=torch.int16)
        # nobody has named what moves in own clips
        fields["motions"] = torch.full((total[0], 2, 1), -1, dtype=torch.int8)
        fields["turning"] = torch.zeros(total[0], 1, total[1], dtype=torch.bool)
        return fields

    def _encode(self, frames: Tensor, device: torch.device) -> Tensors:
        """`latents (P, T, C, h, w)` of the pieces, `images (P * I, 1, C, h, w)` of single frames of them, and
        `starts (P,)`.
        """
        starts = self.config.starts(len(frames))
        pieces = torch.stack([frames[start : start + self.config.frames] for start in starts])
        single = pieces[:, image_frames(self.config.frames, self.config.images)].flatten(0, 1)[:, None]
        return {
            "latents": encode_clips(self.tokenizer, pieces, device, _at_once(pieces)),
            "images": encode_clips(self.tokenizer, single, device, _at_once(single)),
            "starts": torch.tensor(starts),
        }


def image_frames(frames: int, images: int) -> Tensor:
    """Which frames `(I,)` of a piece are taken as single images; fewer than `images` of short pieces."""
    return torch.linspace(0, frames - 1, images).round().long().unique()


def _at_once(videos: Tensor) -> int:
    """How many clips `(N, F, H, W, 3)` are encoded together: 16 small ones, of large ones fewer."""
    return max(1, min(16, _PIXELS_AT_ONCE // max(1, videos[0, ..., 0].numel())))
