"""Rasteriser: backgrounds, and anti-aliased sprites composited on small crops.

Pixels are handled as packed RGBX int32 values, so that gathering and scattering move whole pixels;
blending is 16-bit fixed point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .backgrounds import Backgrounds
from .config import SceneConfig
from .shapes import WORLD_SIZE, DistanceTable
from .sprites import ZoomedSprites, build_sprites
from .vocabulary import COLOUR_RGB, SIZE_JITTER, SIZES

#: Sprite pixels blended at once: on a CPU about what the caches hold, on a GPU many.
_CPU_BLOCK = 1 << 18
_GPU_BLOCK = 1 << 25


@dataclass(frozen=True)
class RenderInput:
    """What to draw: B clips of T frames with O object slots. Tensors on the renderer's device.

    Attributes:
        background: (B, 2) index before and after the change.
        texture: (B, 2, 4) long: variant, time phase, y and x offset, reduced modulo their ranges.
        fade: (B, T) float in [0, 1], share of the second segment.
        count: (B,) objects shown.
        shape, colour: (B, 2, O) indices.
        size, jitter: (B, O) indices.
        positions: (B, O, T, 2) world units in [0, 64].
        turn, shift: (B, T, 2) float, the camera's path (``camera.CameraPath``) as pairs of real numbers.
        scale: (B, T) factor of object sizes; 1 throughout in clips without zoom.
    """

    background: Tensor
    texture: Tensor
    fade: Tensor
    count: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    jitter: Tensor
    positions: Tensor
    turn: Tensor
    shift: Tensor
    scale: Tensor


class Renderer:
    """Draws scenes of one frame size on one device; textures and sprites are made once."""

    def __init__(self, config: SceneConfig, device: torch.device) -> None:
        self._size = config.size
        self._device = device
        self._subpixels = 8 if config.size <= 64 else 4
        scale = config.size / WORLD_SIZE
        self._backgrounds = Backgrounds(config, device)
        self._sprites = [build_sprites(index, scale, self._subpixels, device) for index in range(len(SIZES))]
        table = DistanceTable(device)
        self._zoomed = [ZoomedSprites(index, scale, table) for index in range(len(SIZES))]
        self._jitter = torch.tensor(SIZE_JITTER, device=device)
        self._colours = torch.tensor([(*rgb, 0) for rgb in COLOUR_RGB], device=device, dtype=torch.float32)

    def draw(self, scene: RenderInput) -> Tensor:
        """Video uint8 (B, T, H, W, 3)."""
        video = self._backgrounds.draw(scene.background, scene.texture, scene.fade, scene.turn, scene.shift)
        flat = video.view(-1)
        block = _CPU_BLOCK if self._device.type == "cpu" else _GPU_BLOCK
        zooms = (scene.scale != 1).any(1)
        for slot in range(scene.size.shape[1]):
            for index in range(len(SIZES)):
                chosen = (scene.count > slot) & (scene.size[:, slot] == index)
                for zoomed, crop in ((False, self._sprites[index].crop), (True, self._zoomed[index].crop)):
                    clips = torch.nonzero(chosen & (zooms == zoomed)).squeeze(1)
                    step = max(1, block // (scene.fade.shape[1] * crop**2))
                    for part in torch.split(clips, step) if len(clips) else ():
                        self._composite(flat, scene, (slot, index, zoomed), part)
        return video.view(torch.uint8).view(*video.shape, 4)[..., :3].contiguous()

    def _composite(
        self, flat: Tensor, scene: RenderInput, which: tuple[int, int, bool], clips: Tensor
    ) -> None:
        """Draws one object slot of some clips into the packed video.

        ``which`` is the slot, the size class and whether the sprites change in size; all clips have the same.
        """
        slot, size, zoomed = which
        crop = self._zoomed[size].crop if zoomed else self._sprites[size].crop
        frames, side, sub = scene.fade.shape[1], self._size, self._subpixels
        grid = (scene.positions[clips, slot] * (side / WORLD_SIZE * sub)).round().long()
        base, part = grid // sub - crop // 2, grid % sub
        local = torch.arange(crop, device=self._device)
        x = (base[..., 0, None] + local) % side
        y = (base[..., 1, None] + local) % side
        frame = (clips[:, None] * frames + torch.arange(frames, device=self._device))[..., None]
        pixels = (((frame * side + y) * side)[..., :, None] + x[..., None, :]).view(-1)

        fade = scene.fade[clips].view(-1)
        ends = scene.shape[clips, :, slot]
        shapes = [ends[:, segment, None].expand(-1, frames).flatten() for segment in range(2)]
        jitter = scene.jitter[clips, slot, None].expand(-1, frames).flatten()
        scale = self._jitter[jitter] * scene.scale[clips].view(-1)

        def look(shape: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            """Keep and paint of the shapes in some of the frames."""
            offset = part.view(-1, 2)[rows]
            if zoomed:
                return self._zoomed[size].draw(shape, scale[rows], offset / sub)
            sprite = (shape * len(SIZE_JITTER) + jitter[rows]) * sub * sub + offset[:, 1] * sub + offset[:, 0]
            sheet = self._sprites[size]
            return sheet.keep.index_select(0, sprite).short(), sheet.paint.index_select(0, sprite).short()

        keep, paint = look(
            torch.where(fade < 1, shapes[0], shapes[1]), torch.arange(len(fade), device=self._device)
        )
        mixed = (fade > 0) & (fade < 1) & (shapes[0] != shapes[1])
        fading = torch.nonzero(mixed).squeeze(1)
        for row in torch.split(fading, 4096) if len(fading) else ():
            share = fade[row, None]
            new_keep, new_paint = look(shapes[1][row], row)
            keep[row] = torch.lerp(keep[row].float(), new_keep.float(), share).ceil().short()
            paint[row] = torch.lerp(paint[row].float(), new_paint.float(), share).short()

        colours = self._colours[scene.colour[clips, :, slot]]
        share = scene.fade[clips][..., None]
        colour = torch.lerp(colours[:, None, 0], colours[:, None, 1], share).round().to(torch.int16)
        below = flat.index_select(0, pixels).view(torch.uint8).view(*keep.shape, 4).to(torch.int16)
        # At most 255 * 128 + 64, which fits 16 bits since keep + paint <= 128.
        blended = below.mul_(keep[..., None]).add_(paint[..., None] * colour.view(-1, 1, 4)).add_(64)
        packed = blended.bitwise_right_shift_(7).to(torch.uint8).view(torch.int32).view(-1)
        flat.index_copy_(0, pixels, packed)
