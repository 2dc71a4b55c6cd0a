"""What tokenizers make of clips of a camera: the first seconds of video files that no training has seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.video_tokenizer import VideoTokenizer
from streamgen.errors import InputError
from streamgen.video.read import read_clip

from ..pixels import moving_cells, to_pixels
from ..scenes.sheet import contact_sheet, enlarged
from .intervals import Figure, resampled
from .streams import Video
from .tokenizer import decibels, reconstruct

#: As own clips are read: frames per second, and the frames of each clip that are judged, 1 + 8 k.
NATURAL_FPS, NATURAL_FRAMES = 16, 65
#: Frames of a piece, from which intervals are resampled: half a second, since neighbours are much alike.
_PIECE = 8
#: Of each clip on a sheet.
_PICTURES = 12


def read_natural(paths: Sequence[Path], size: int) -> dict[str, Tensor]:
    """By file name without its ending, uint8 (65, size, size, 3): scaled to cover, cropped at the centre.

    Raises:
        InputError: no video, one that is shorter than four seconds, or two of one name.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(f"--clip {path}: expected clips of different names, found {path.stem!r} twice")
        frames = read_clip(path, NATURAL_FPS, size, size, NATURAL_FRAMES)
        if len(frames) < NATURAL_FRAMES:
            expected = f"at least {NATURAL_FRAMES} frames at {NATURAL_FPS} fps"
            raise InputError(f"--clip {path}: expected {expected}, found {len(frames)}")
        found[path.stem] = torch.from_numpy(frames)
    return found


@torch.no_grad()
def natural_figures(tokenizer: VideoTokenizer, clips: Mapping[str, Tensor]) -> dict[str, Figure]:
    """PSNR in dB of each clip, by name, and under `mean` the mean of these.

    Intervals resample the pieces of half a second: they tell how much these few clips vary, not what other
    clips would have.
    """
    errors = torch.stack([_pieces(tokenizer, frames) for frames in clips.values()], 1)
    figures = {
        name: resampled(errors[:, [place]].tolist(), lambda some: decibels(some.mean(1))[:, 0])
        for place, name in enumerate(clips)
    }
    return figures | {"mean": resampled(errors.tolist(), lambda some: decibels(some.mean(1)).mean(1))}


@torch.no_grad()
def world_figures(
    tokenizer: VideoTokenizer, first: VideoTokenizer, videos: Sequence[Video]
) -> dict[str, Figure]:
    """PSNR in dB on clips of the world, over all pixels and over cells that move, and how much more each is
    than with the tokenizer `first` on the same clips; intervals resample the clips.
    """
    rows = torch.tensor([[*_world(tokenizer, video), *_world(first, video)] for video in videos])

    def over(some: Tensor) -> Tensor:
        """dB of all four: the error in pixels and in moving cells, twice."""
        total = some.sum(-2)
        return decibels(total[..., [0, 2, 4, 6]] / total[..., [1, 3, 5, 7]])

    told = {
        "world": lambda some: over(some)[..., 0],
        "world, moving cells": lambda some: over(some)[..., 1],
        "more than the first": lambda some: over(some)[..., 0] - over(some)[..., 2],
        "more in moving cells": lambda some: over(some)[..., 1] - over(some)[..., 3],
    }
    return {name: resampled(rows.tolist(), statistic) for name, statistic in told.items()}


def _world(tokenizer: VideoTokenizer, video: Video) -> list[float]:
    """Of one clip the sum of squared errors and the pixels they are of, then the same of moving cells."""
    before, after = reconstruct(tokenizer, video.frames)
    square = (after - before).square().mean(1, keepdim=True).double()
    mask = moving_cells(before[None], tokenizer.config.patch)[0]
    return [float(square.sum()), float(square.numel()), float((square * mask).sum()), float(mask.sum())]


def coded_sheet(
    tokenizers: Sequence[tuple[str, VideoTokenizer]], clips: Mapping[str, Tensor], path: Path
) -> None:
    """Every clip, and below it what each tokenizer makes of it."""
    videos, captions = [], []
    for name, frames in clips.items():
        coded = [(label, to_pixels(reconstruct(tokenizer, frames)[1])) for label, tokenizer in tokenizers]
        for caption, video in ((name, frames), *coded):
            captions.append(caption)
            videos.append(enlarged(video))
    contact_sheet(videos, captions, path, frames=_PICTURES)


def _pieces(tokenizer: VideoTokenizer, frames: Tensor) -> Tensor:
    """Mean squared error of each piece (8,); frame 0 belongs to the first."""
    before, after = reconstruct(tokenizer, frames)
    square = (after - before).square().mean((1, 2, 3)).double()
    parts = square[1:].unflatten(0, (-1, _PIECE)).mean(1)
    parts[0] = square[: 1 + _PIECE].mean()
    return parts
