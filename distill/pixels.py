"""Pictures of clips as networks have them, as people see them, and where in them something moves."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d


def to_float(video: Tensor) -> Tensor:
    """uint8 (..., H, W, C) as float (..., C, H, W) in [-1, 1]."""
    return video.movedim(-1, -3).float().div(127.5).sub(1.0).contiguous()


def to_pixels(video: Tensor) -> Tensor:
    """Float (..., C, H, W) in [-1, 1] as uint8 (..., H, W, C)."""
    return video.add(1).mul(127.5).round().to(torch.uint8).movedim(-3, -1)


def moving_cells(video: Tensor, cell: int, threshold: float = 0.1) -> Tensor:
    """Float (B, T, 1, H, W): 1 in cells of `cell` pixels in which a frame differs from the one before.

    The first frame has no past and takes the cells of the second.
    """
    if video.shape[1] == 1:
        return torch.zeros_like(video[:, :, :1])
    change = (video[:, 1:] - video[:, :-1]).abs().amax(2, keepdim=True) > threshold
    mask = torch.cat([change[:, :1], change], dim=1).to(video.dtype)
    cells = max_pool2d(mask.flatten(0, 1), cell)
    return interpolate(cells, scale_factor=cell, mode="nearest").unflatten(0, mask.shape[:2])
