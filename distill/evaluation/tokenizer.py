"""What the tokenizer alone keeps of the world: the ceiling of every model on top of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig

from ..pixels import moving_cells, to_float, to_pixels
from ..scenes import SHAPES
from ..widen import begin_as_pca
from .intervals import Figure, average, resampled, share
from .measures import Instruments, Read
from .streams import Video

_BATCH = 8
ROUND_TRIPS = (1, 5, 10)
Codec = Callable[[Tensor], Tensor]


@torch.no_grad()
def tokenizer_reads(
    tokenizer: VideoTokenizer, videos: Sequence[Video], fitting: Sequence[Video], instruments: Instruments
) -> list[Read]:
    """What encoder and decoder make of true clips, one mapping for each clip.

    `square` mean squared error of pixels in [-1, 1]; `moving` its sum over cells that move, and their number
    of pixels; `by_frame` the error of frame 0, then of the first to the last frame of later chunks; `steps`
    the mean absolute error of the step from frame to frame at chunk borders and inside chunks (of 255);
    `trips`, of the first clips, the error after several round trips; `shape` the share of frames whose shape
    is still read right; and the first two of a linear `pca`, fitted to the clips `fitting`, and of `bilinear`
    resizing, with as many numbers.
    """
    config, found = tokenizer.config, []
    codecs = {"": _through(tokenizer), "pca": _through(_pca(config, fitting)), "bilinear": _bilinear(config)}
    for number, part in enumerate(_batches(videos)):
        clip = to_float(torch.stack([video.frames for video in part]))
        coded = {name: codec(clip) for name, codec in codecs.items()}
        errors = {name: _errors(clip, other, config.patch) for name, other in coded.items()}
        shapes, steps = _shapes(part, coded[""], instruments), _steps(clip, coded[""], config.temporal)
        frames = _by_frame(clip, coded[""], config.temporal)
        trips = _round_trips(tokenizer, clip) if number == 0 else [None] * len(part)
        found += [
            {
                **errors[""][i],
                "by_frame": frames[i],
                "steps": steps[i],
                "trips": trips[i],
                "shape": shapes[i],
                "pca": errors["pca"][i],
                "bilinear": errors["bilinear"][i],
            }
            for i in range(len(part))
        ]
    return found


def tokenizer_figures(reads: Sequence[Read]) -> dict[str, Figure]:
    """Figures by dotted name of what `tokenizer_reads` found: PSNR in dB, over all pixels and over cells that
    move, by place in the chunk, after round trips and of the baselines; shapes; steps.
    """

    def plain(values: Sequence[float]) -> Figure:
        return resampled([(value, 1.0) for value in values], _db)

    found = {
        "psnr_tokenizer": plain([read["square"] for read in reads]),
        "psnr_moving": resampled([read["moving"] for read in reads], _db),
        "shape_through_tokenizer": share([read["shape"] for read in reads]),
    }
    for name in ("pca", "bilinear"):
        found[f"tokenizer.baselines.{name}.psnr"] = plain([read[name]["square"] for read in reads])
        moving = [read[name]["moving"] for read in reads]
        found[f"tokenizer.baselines.{name}.psnr_moving"] = resampled(moving, _db)
    for place in range(len(reads[0]["by_frame"])):
        key = f"tokenizer.psnr_by_frame.{place}"
        found[key] = plain([read["by_frame"][place] for read in reads])
    for place, name in enumerate(("border", "inside")):
        found[f"tokenizer.step_error.{name}"] = average([read["steps"][place] for read in reads])
    for trip in ROUND_TRIPS:
        some = [read["trips"][str(trip)] for read in reads if read["trips"]]
        found[f"tokenizer.psnr_round_trips.{trip}"] = plain(some)
    return found


def by_clip(reads: Sequence[Read]) -> dict[str, list[list[float]]]:
    """What figures are made of, clip by clip, for `tokenizers_apart`."""
    return {
        "psnr_tokenizer": [[read["square"], 1.0] for read in reads],
        "psnr_moving": [read["moving"] for read in reads],
        "shape_through_tokenizer": [[read["shape"]] for read in reads],
    }


def tokenizers_apart(
    name: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> Figure:
    """How much more a figure is of the second tokenizer than of the first, by what `by_clip` has of both over
    the same clips: clips are drawn anew in pairs.
    """
    statistic = _mean if name == "shape_through_tokenizer" else _db
    pairs = [[*one, *other] for one, other in zip(first, second, strict=True)]
    half = len(first[0])
    return resampled(pairs, lambda rows: statistic(rows[..., half:]) - statistic(rows[..., :half]))


def _db(rows: Tensor) -> Tensor:
    """PSNR of sums of squared errors and of what they are over, `(R, n, 2)`."""
    return decibels(rows[..., 0].sum(-1) / rows[..., 1].sum(-1))


def _mean(rows: Tensor) -> Tensor:
    return rows[..., 0].mean(-1)


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
    linear = VideoTokenizer(replace(config, bottleneck="kl", fsq_levels=(), vq_codes=None, vq_groups=1))
    clips = (torch.stack([video.frames for video in part]) for part in _batches(videos))
    whole = 1 + (len(videos[0].frames) - 1) // config.temporal * config.temporal
    begin_as_pca(linear, (to_float(frames[:, :whole]) for frames in clips))
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


def _errors(clip: Tensor, other: Tensor, cell: int) -> list[Read]:
    """Of each clip (B, T, C, H, W) the squared error over all pixels, and over cells that move."""
    square = (other - clip).square().mean(2, keepdim=True).double()
    mask = moving_cells(clip, cell).double().expand_as(square)
    inside, count = (square * mask).flatten(1).sum(1), mask.flatten(1).sum(1)
    return [
        {"square": float(square[i].mean()), "moving": [float(inside[i]), float(count[i])]}
        for i in range(len(clip))
    ]


def _by_frame(clip: Tensor, other: Tensor, temporal: int) -> list[list[float]]:
    """Error of frame 0, then of the first to the last frame of later chunks."""
    square = (other - clip).square().mean((2, 3, 4))
    later = [square[:, 1 + place :: temporal].mean(1) for place in range(temporal)]
    found: list[list[float]] = torch.stack([square[:, 0], *later], 1).tolist()
    return found


def _steps(clip: Tensor, other: Tensor, temporal: int) -> list[list[float]]:
    """How far the step between two frames is off, where a chunk begins and elsewhere, of 255."""
    off = (other.diff(dim=1) - clip.diff(dim=1)).abs().mean((2, 3, 4)) * 127.5
    # the step into frame 1 + temporal * k is the first of a chunk
    border = torch.arange(off.shape[1]) % temporal == 0
    found: list[list[float]] = torch.stack([off[:, border].mean(1), off[:, ~border].mean(1)], 1).tolist()
    return found


def _round_trips(tokenizer: VideoTokenizer, original: Tensor) -> list[dict[str, float]]:
    """Error against the original after coding the coded clip again and again."""
    out: list[dict[str, float]] = [{} for _ in original]
    clip = original
    for trip in range(1, max(ROUND_TRIPS) + 1):
        clip = _through(tokenizer)(clip)
        if trip in ROUND_TRIPS:
            for row, error in zip(out, (clip - original).square().flatten(1).mean(1).tolist(), strict=True):
                row[str(trip)] = error
    return out


def _shapes(videos: Sequence[Video], coded: Tensor, instruments: Instruments) -> list[float]:
    """Of each clip the share of frames whose shape is right after coding."""
    found = []
    for video, frames in zip(videos, to_pixels(coded), strict=True):
        shown = instruments.shown(instruments.view(replace(video, frames=frames)))
        found.append(float(shown["shape"].get(SHAPES[video.spec.subjects[0].shape], 0.0)))
    return found
