"""Contact sheets: pictures of fixed clips that show at a glance how a run is doing."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_sheet(originals: Tensor, results: Tensor, path: Path, columns: int = 6, zoom: int = 2) -> None:
    """Write a PNG with, for each clip, a row of original frames over a row of results.

    Both are float (B, T, 3, H, W) in [-1, 1]; `columns` frames are taken at even distances.
    """
    frames = originals.shape[1]
    picked = torch.linspace(0, frames - 1, min(columns, frames)).round().long().tolist()
    rows = []
    for pair in zip(originals, results, strict=True):
        rows += [torch.cat([clip[index] for index in picked], dim=-1) for clip in pair]
    sheet = torch.cat(rows, dim=-2).clamp(-1.0, 1.0).add(1.0).mul(127.5).round().byte()
    pixels = sheet.movedim(0, -1).cpu().numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
