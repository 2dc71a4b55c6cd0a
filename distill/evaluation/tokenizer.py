"""What the tokenizer alone keeps of the world: the ceiling of every model on top of it."""

from collections.abc import Sequence

import torch

from models.video_tokenizer import VideoTokenizer

from ..stages.tokenizer import moving_cells, to_float
from .measures import Instruments
from .streams import Video

_BATCH = 8


@torch.no_grad()
def tokenizer_figures(
    tokenizer: VideoTokenizer, videos: Sequence[Video], instruments: Instruments
) -> dict[str, float]:
    """PSNR in dB over all pixels and over cells that move, and the share of frames whose shape is still read
    right, of true clips through encoder and decoder.
    """
    errors = torch.zeros(2, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64)
    right = []
    for start in range(0, len(videos), _BATCH):
        batch = videos[start : start + _BATCH]
        clips = to_float(torch.stack([video.frames for video in batch]))
        rebuilt = tokenizer.decode(tokenizer.encode(clips).mean, clips.shape[1]).clamp(-1, 1)
        square = (rebuilt - clips).square().double()
        moving = moving_cells(clips, tokenizer.config.patch).double()
        for row, mask in enumerate((torch.ones_like(square), moving.expand_as(square))):
            errors[row] += (square * mask).sum()
            weights[row] += mask.sum()
        pixels = rebuilt.add(1).mul(127.5).round().to(torch.uint8).movedim(2, -1)
        for video, frames in zip(batch, pixels, strict=True):
            view = instruments.view(Video(video.spec, frames, video.event, video.path))
            right.append(instruments.attributes(view, video.spec.subjects[0])["shape"])
    psnr = 10 * torch.log10(4 * weights.clamp_min(1) / errors.clamp_min(1e-12))
    return {
        "psnr_tokenizer": float(psnr[0]),
        "psnr_moving": float(psnr[1]),
        "shape_through_tokenizer": sum(right) / len(right),
    }
