"""Backgrounds of clips: textures at any offset and phase, blended at a change, carried by the camera.

Pixels are packed RGBX int32 values.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .config import SceneConfig
from .shapes import WORLD_SIZE
from .textures import build_textures

#: Pixels resampled at once: on a CPU about what the caches hold, on a GPU many.
_CPU_BLOCK = 1 << 18
_GPU_BLOCK = 1 << 23


class Backgrounds:
    """All textures of one frame size on one device.

    Frames of all textures lie in one bank, each row of pixels twice in succession, so that a frame at any
    offset on the torus is a gather of whole rows.
    """

    def __init__(self, config: SceneConfig, device: torch.device) -> None:
        bank = build_textures(config)
        textures = [texture for variants in bank for texture in variants]
        lengths = torch.tensor([len(texture) for texture in textures])
        frames = torch.cat(textures)
        self._size = config.size
        self._rows = torch.cat([frames, frames], 2).flatten(0, 1).to(device)
        self._first = (lengths.cumsum(0) - lengths).view(len(bank), -1).to(device)
        self._period = lengths.view(len(bank), -1)[:, 0].to(device)
        self._block = _CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK

    def draw(self, background: Tensor, texture: Tensor, fade: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        """Packed int32 (B, T, S, S).

        Args:
            background: (B, 2) index before and after the change.
            texture: (B, 2, 4) long: variant, time phase, y and x offset, reduced modulo their ranges.
            fade: (B, T) float in [0, 1], share of the second segment.
            turn, shift: (B, T, 2) float, ``camera.CameraPath`` as pairs of real numbers.
        """
        batch, frames = fade.shape
        changes = (background[:, 0] != background[:, 1])[:, None]
        after = (changes & (fade >= 1)).long().flatten()
        clip = torch.arange(batch, device=fade.device).repeat_interleave(frames)
        time = torch.arange(frames, device=fade.device).repeat(batch)
        video = self._still(background[clip, after], texture[clip, after], time)
        still = torch.tensor([1.0, 0.0, 0.0, 0.0], device=fade.device)
        view = torch.cat([turn, shift], -1).flatten(0, 1)
        moved = (view != still).any(-1)
        for part in self._parts(moved):
            rows = (clip[part], after[part])
            video[part] = self._moved(background[rows], texture[rows], time[part], view[part])

        mixed = (changes & (fade > 0) & (fade < 1)).flatten()
        for part in self._parts(mixed & ~moved):
            target = self._still(background[clip[part], 1], texture[clip[part], 1], time[part])
            video[part] = _blend(video[part], target, fade.flatten()[part])
        for part in self._parts(mixed & moved):
            target = self._moved(background[clip[part], 1], texture[clip[part], 1], time[part], view[part])
            video[part] = _blend(video[part], target, fade.flatten()[part])
        return video.view(batch, frames, self._size, self._size)

    def _parts(self, chosen: Tensor) -> tuple[Tensor, ...]:
        """Indices of the true entries, in blocks of frames."""
        return torch.nonzero(chosen).squeeze(1).split(max(1, self._block // self._size**2))

    def _still(self, background: Tensor, texture: Tensor, time: Tensor) -> Tensor:
        """Packed (K, S, S): textures (K, 4) of backgrounds (K,) at times (K,), at their offsets."""
        size = self._size
        y = (torch.arange(size, device=time.device) - texture[:, 2:3]) % size
        row = self._frame(background, texture, time)[:, None] * size + y
        return self._rows.unfold(1, size, 1)[row, (-texture[:, 3:4]) % size]

    def _moved(self, background: Tensor, texture: Tensor, time: Tensor, view: Tensor) -> Tensor:
        """The same as the camera (K, 4: turn, shift) sees it: bilinear, on the torus."""
        size = self._size
        frames = self._rows.view(-1, size, 2 * size)[:, :, :size]
        packed = frames[self._frame(background, texture, time)]
        pixels = torch.stack([packed.bitwise_right_shift(8 * byte) & 255 for byte in range(3)], 1).float()
        pixels = functional.pad(pixels, (1, 1, 1, 1), mode="circular")
        colours = functional.grid_sample(pixels, self._places(texture, view), align_corners=False)
        red, green, blue = colours.add_(0.5).int().unbind(1)
        return red | green.bitwise_left_shift(8) | blue.bitwise_left_shift(16)

    def _places(self, texture: Tensor, view: Tensor) -> Tensor:
        """Where each pixel lies in its padded texture, (K, S, S, 2) in the units of ``grid_sample``.

        The picture is taken back to before the move, as complex numbers from its centre: (p - shift) / turn.
        """
        size = self._size
        unit = 2 / (size + 2)
        line = torch.arange(size, device=view.device) + 0.5 - size / 2
        x, y = (line - view[:, 2:3] * (size / WORLD_SIZE), line - view[:, 3:] * (size / WORLD_SIZE))
        factor = unit / view[:, :2].square().sum(1, keepdim=True)
        cos, sin = (view[:, :1] * factor)[:, None], (view[:, 1:2] * factor)[:, None]
        origin = (size / 2 - texture[:, [3, 2]]) * unit
        x, y = x[:, None, :], y[:, :, None]
        u = (x * cos + origin[:, :1, None]) + y * sin
        v = (x * -sin + origin[:, 1:, None]) + y * cos
        return torch.stack([u, v], -1).remainder_(size * unit).add_(unit - 1)

    def _frame(self, background: Tensor, texture: Tensor, time: Tensor) -> Tensor:
        """(K,) frames in the bank."""
        first = self._first[background, texture[:, 0] % self._first.shape[1]]
        return first + (time + texture[:, 1]) % self._period[background]


def _blend(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """Packed (K, S, S) mixed from two, ``share`` (K,) of the second."""
    ends = [packed.view(torch.uint8).view(*packed.shape, 4).float() for packed in (old, new)]
    mixed = torch.lerp(ends[0], ends[1], share[:, None, None, None]).round().to(torch.uint8)
    return mixed.view(torch.int32).squeeze(-1)
