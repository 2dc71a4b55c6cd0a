"""What the tokenizer alone keeps of the world: the ceiling of every model on top of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig

from ..stages.tokenizer import moving_cells, to_float
from .measures import Instruments
from .streams import Video

_BATCH = 8
ROUND_TRIPS = (1, 5, 10)
Codec = Callable[[Tensor], Tensor]


@torch.no_grad()
def tokenizer_figures(
    tokenizer: VideoTokenizer, videos: Sequence[Video], fitting: Sequence[Video], instruments: Instruments
) -> dict[str, Any]:
    """Figures of true clips through encoder and decoder.

    `psnr_tokenizer` and `psnr_moving` in dB over all pixels and over cells that move;
    `shape_through_tokenizer` the share of frames whose shape is still read right; under `tokenizer` PSNR by
    place in the chunk (frame 0 first), the mean absolute error of the step from frame to frame at chunk
    borders and inside chunks (of 255), PSNR after several round trips, and the same PSNR of a linear PCA and
    of bilinear resizing with as many numbers. The PCA is fitted to the clips `fitting`.
    """
    clips = [to_float(torch.stack([v.frames for v in part])) for part in _batches(videos)]
    coded = [_through(tokenizer)(clip) for clip in clips]
    psnr, moving = _psnr(clips, coded, tokenizer.config.patch)
    pca = _through(_pca(tokenizer.config, fitting))
    resized = _bilinear(tokenizer.config)
    baselines = {
        name: dict(
            zip(
                ("psnr", "psnr_moving"),
                _psnr(clips, [c(x) for x in clips], tokenizer.config.patch),
                strict=True,
            )
        )
        for name, c in (("pca", pca), ("bilinear", resized))
    }
    return {
        "psnr_tokenizer": psnr,
        "psnr_moving": moving,
        "shape_through_tokenizer": _shapes(videos, coded, instruments),
        "tokenizer": {
            "psnr_by_frame": _by_frame(clips, coded, tokenizer.config.temporal),
            "step_error": _step_errors(clips, coded, tokenizer.config.temporal),
            "psnr_round_trips": _round_trips(tokenizer, clips),
            "baselines": baselines,
        },
    }


def reconstruct(tokenizer: VideoTokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
    """One clip, uint8 (T, H, W, 3), before and after coding: float (T, 3, H, W) in [-1, 1] each."""
    clip = to_float(frames[None])
    return clip[0], _through(tokenizer)(clip)[0]


def _batches(videos: Sequence[Video]) -> list[Sequence[Video]]:
    return [videos[start : start + _BATCH] for start in range(0, len(videos), _BATCH)]


def _through(tokenizer: VideoTokenizer) -> Codec:
    return lambda clip: tokenizer.decode(tokenizer.encode(clip).mean, clip.shape[1]).clamp(-1, 1)


def _pca(config: VideoTokenizerConfig, videos: Sequence[Video]) -> VideoTokenizer:
    """A tokenizer of the same latent size that is a linear PCA and nothing else."""
    linear = VideoTokenizer(replace(config, bottleneck="kl", fsq_levels=()))
    first, groups = [], []
    for part in _batches(videos):
        frames = torch.stack([video.frames for video in part])
        whole = 1 + (frames.shape[1] - 1) // config.temporal * config.temporal
        image, group = linear.patchify(to_float(frames[:, :whole]))
        assert image is not None
        first.append(image.flatten(0, -2))
        groups.append(group.flatten(0, -2))
    linear.initialize_from_pca(torch.cat(first), torch.cat(groups))
    return linear.eval()


def _bilinear(config: VideoTokenizerConfig) -> Codec:
    """Mean over each chunk's frames, then a picture small enough to have as many numbers as the latent."""

    def resize(frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        share = (config.latent_channels / config.in_channels) ** 0.5 / config.patch
        small = (max(1, int(height * share)), max(1, int(width * share)))
        down = interpolate(frames, small, mode="bilinear", antialias=True)
        return interpolate(down, (height, width), mode="bilinear")

    def code(clip: Tensor) -> Tensor:
        parts = [resize(clip[:, 0])[:, None]]
        for start in range(1, clip.shape[1], config.temporal):
            group = clip[:, start : start + config.temporal]
            parts.append(resize(group.mean(1))[:, None].expand_as(group))
        return torch.cat(parts, 1)

    return code


def decibels(square: Tensor) -> Tensor:
    """PSNR of mean squared errors of pixels in [-1, 1]."""
    return 10 * torch.log10(4 / square.clamp(min=1e-12))


def _psnr(clips: Sequence[Tensor], coded: Sequence[Tensor], cell: int) -> tuple[float, float]:
    """Over all pixels, and over cells that move."""
    errors, weights = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for clip, other in zip(clips, coded, strict=True):
        square = (other - clip).square().mean(2, keepdim=True).double()
        for row, mask in enumerate((torch.ones_like(square), moving_cells(clip, cell).double())):
            errors[row] += (square * mask).sum()
            weights[row] += mask.sum()
    everywhere, moving = decibels(errors / weights.clamp(min=1)).tolist()
    return everywhere, moving


def _by_frame(clips: Sequence[Tensor], coded: Sequence[Tensor], temporal: int) -> list[float]:
    """PSNR of frame 0, then of the first to the last frame of later chunks."""
    square = torch.cat([(b - a).square().mean((2, 3, 4)) for a, b in zip(clips, coded, strict=True)]).mean(0)
    later = [square[1 + place :: temporal].mean() for place in range(temporal)]
    return [float(decibels(value)) for value in (square[0], *later)]


def _step_errors(clips: Sequence[Tensor], coded: Sequence[Tensor], temporal: int) -> dict[str, float]:
    """How far the step between two frames is off, where a chunk begins and elsewhere, of 255."""
    off = torch.cat(
        [(b.diff(dim=1) - a.diff(dim=1)).abs().mean((2, 3, 4)) for a, b in zip(clips, coded, strict=True)]
    ).mean(0)
    # the step into frame 1 + temporal * k is the first of a chunk
    border = torch.arange(len(off)) % temporal == 0
    return {"border": float(off[border].mean()) * 127.5, "inside": float(off[~border].mean()) * 127.5}


def _round_trips(tokenizer: VideoTokenizer, clips: Sequence[Tensor]) -> dict[str, float]:
    """PSNR against the original after coding the coded clip again and again; of the first batch."""
    out, clip = {}, clips[0]
    for trip in range(1, max(ROUND_TRIPS) + 1):
        clip = _through(tokenizer)(clip)
        if trip in ROUND_TRIPS:
            out[str(trip)] = float(decibels((clip - clips[0]).square().mean()))
    return out


def _shapes(videos: Sequence[Video], coded: Sequence[Tensor], instruments: Instruments) -> float:
    """Share of frames whose shape is right after coding."""
    right = []
    for part, batch in zip(_batches(videos), coded, strict=True):
        pixels = batch.add(1).mul(127.5).round().to(torch.uint8).movedim(2, -1)
        for video, frames in zip(part, pixels, strict=True):
            view = instruments.view(replace(video, frames=frames))
            right.append(instruments.attributes(view, video.spec.subjects[0])["shape"])
    return sum(right) / len(right)
