"""Samples of a run: what is on the sheet plays in the clip."""

from pathlib import Path

import decord
import numpy as np
import torch

from distill.samples import show


def test_all_videos_play_beside_each_other(tmp_path: Path) -> None:
    """In rows, in order; a shorter one keeps its last picture; places that are left over are black."""
    greys = (60, 120, 180)
    videos = [torch.full((4, 32, 48, 3), grey, dtype=torch.uint8) for grey in greys]
    videos[1] = torch.cat([videos[1][:2], torch.full((1, 32, 48, 3), 240, dtype=torch.uint8)])
    show(videos, ["one", "two", "three"], tmp_path / "few.png", fps=16)
    assert (tmp_path / "few.png").stat().st_size > 100
    reader = decord.VideoReader(str(tmp_path / "few.mp4"))
    clip = np.stack([reader[i].asnumpy() for i in range(len(reader))]).astype(int)
    assert clip.shape == (4, 64, 96, 3)
    assert round(reader.get_avg_fps()) == 16
    quarters = clip.reshape(4, 2, 32, 2, 48, 3).mean((2, 4, 5))
    expected = [[60, 120, 180, 0]] * 2 + [[60, 240, 180, 0]] * 2
    assert np.abs(quarters.reshape(4, 4) - np.array(expected)).max() < 8
