"""What the evaluation's reader sees, as numbers with a gradient: for losses that compare pictures by it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ..scenes import COLOURS, SceneConfig
from .reading import FrameReader

#: Rows and columns of the coarse map of where objects are.
_GRID = 4


class ReaderFeatures(nn.Module):
    """Features of pictures by the frame reader, which knows the world's palette and textures and nothing
    else. It has no parameters; of other videos it sees their colours and what moves.
    """

    #: Numbers of a picture, and beside them of its change from the one before.
    of_a_picture = len(COLOURS) + _GRID**2 + 2 + 6
    of_a_change = _GRID**2 + 1

    def __init__(self, config: SceneConfig, device: torch.device) -> None:
        super().__init__()
        self.reader = FrameReader(config).to(device)

    def maps(self, pictures: Tensor) -> Tensor:
        """Shares of pixels (N, C, H, W) that belong to objects of each colour, of pictures (N, 3, H, W) in
        [-1, 1].
        """
        # likelihoods need more digits than half precision has
        with torch.autocast(pictures.device.type, enabled=False):
            return self.reader.shares(pictures.float().add(1).mul(127.5).movedim(1, -1))

    def forward(self, video: Tensor) -> Tensor:
        """Features (B, T - 1, F) of all pictures of (B, T, 3, H, W) but the first, and of how they differ
        from the one before: how much is of each colour, where objects are, how long their edges are, the
        background's colours; what changes where, and the whole.
        """
        shares = self.maps(video.flatten(0, 1))
        there = shares.sum(1, keepdim=True)
        cells = adaptive_avg_pool2d(there, _GRID).flatten(1)
        areas = shares.mean((2, 3)).clamp_min(1e-6).sqrt()
        edges = [there.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3)]
        ground = _moments(video.flatten(0, 1).float(), (1 - there).clamp_min(0))
        still = torch.cat([areas, cells, torch.stack(edges, 1), ground], 1).unflatten(0, video.shape[:2])
        moved = there.unflatten(0, video.shape[:2]).diff(dim=1).abs().flatten(0, 1)
        where = adaptive_avg_pool2d(moved, _GRID).flatten(1).unflatten(0, (len(video), -1))
        changed = video.float().diff(dim=1).abs().mean((2, 3, 4))[..., None]
        return torch.cat([still[:, 1:], where, changed], 2)


def _moments(pictures: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean and deviation (N, 6) of the channels of (N, 3, H, W)."""
    total = weight.sum((2, 3)).clamp_min(1e-3)
    mean = (pictures * weight).sum((2, 3)) / total
    apart = (pictures - mean[..., None, None]).square() * weight
    return torch.cat([mean, (apart.sum((2, 3)) / total + 1e-4).sqrt()], 1)
