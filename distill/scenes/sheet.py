"""Contact sheets: rows of frames with their captions, for people to look at."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 3
_LINE_HEIGHT = 13


def contact_sheet(
    videos: Sequence[Tensor] | Tensor, captions: Sequence[str], path: str | Path, frames: int = 8
) -> None:
    """Writes a PNG with one row per clip: evenly spaced frames, the caption above.

    Args:
        videos: clips, each uint8 (T, H, W, 3); lengths and sizes may differ.
        captions: one text per clip; a line break starts a new line.
        path: the PNG; its folder must exist.
        frames: frames per row; shorter clips show all they have.

    Raises:
        ValueError: no clips, or clips and captions differ in number, or a clip is no uint8 (T, H, W, 3).
    """
    clips = [clip.detach().cpu() for clip in videos]
    if not clips or len(clips) != len(captions) or frames < 1:
        raise ValueError(
            f"contact sheet: expected as many captions as clips and at least one of each (and of frames), "
            f"found {len(captions)} captions, {len(clips)} clips, {frames} frames"
        )
    rows = [_row(clip, frames) for clip in clips]
    heights = [
        row.height + _LINE_HEIGHT * len(text.splitlines() or [""])
        for row, text in zip(rows, captions, strict=True)
    ]
    width = max(row.width for row in rows) + 2 * _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    top = _GAP
    for row, text, height in zip(rows, captions, heights, strict=True):
        pen.multiline_text((_GAP, top), text, fill=(235, 235, 235), font=font, spacing=2)
        sheet.paste(row, (_GAP, top + height - row.height))
        top += height + _GAP
    sheet.save(path, format="PNG")


def enlarged(video: Tensor, zoom: int = 2) -> Tensor:
    """A clip (T, H, W, 3), each of its pixels as `zoom` x `zoom`."""
    return video.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)


def marked(video: Tensor, places: Tensor) -> Tensor:
    """A clip uint8 (T, H, W, 3) with a small cross at each frame's place (T, 2), normalised; none at nan."""
    video = video.clone()
    side = torch.tensor([video.shape[2], video.shape[1]])
    for frame, place in zip(video, places, strict=True):
        if not bool(place.isnan().any()):
            column, row = (place * side).long().clamp(min=2).minimum(side - 3).tolist()
            frame[row, column - 2 : column + 3] = 0
            frame[row - 2 : row + 3, column] = 0
    return video


def _row(clip: Tensor, frames: int) -> Image.Image:
    """Evenly spaced frames of one clip side by side."""
    if clip.dim() != 4 or clip.shape[-1] != 3 or clip.dtype != torch.uint8 or clip.shape[0] < 1:
        raise ValueError(
            f"contact sheet: expected uint8 (T, H, W, 3), found {clip.dtype} {tuple(clip.shape)}"
        )
    picks = torch.linspace(0, clip.shape[0] - 1, min(frames, clip.shape[0])).round().long()
    height, width = int(clip.shape[1]), int(clip.shape[2])
    row = Image.new("RGB", ((width + _GAP) * len(picks) - _GAP, height), (24, 24, 24))
    for column, pick in enumerate(picks.tolist()):
        row.paste(Image.fromarray(clip[pick].contiguous().numpy()), (column * (width + _GAP), 0))
    return row
