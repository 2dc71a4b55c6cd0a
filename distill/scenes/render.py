"""Rasteriser: looping background textures, anti-aliased sprites composited on small crops.

Pixels are handled as packed RGBX int32 values, so that gathering and scattering move whole pixels;
blending is 16-bit fixed point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SceneConfig
from .shapes import WORLD_SIZE, build_sprites
from .textures import build_textures
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


class Renderer:
    """Draws scenes of one frame size on one device; textures and sprites are made once."""

    def __init__(self, config: SceneConfig, device: torch.device) -> None:
        self._size = config.size
        self._device = device
        self._subpixels = 8 if config.size <= 64 else 4
        scale = config.size / WORLD_SIZE
        bank = build_textures(
            config.size,
            config.texture_period,
            config.texture_variants,
            config.texture_seed,
            config.texture_contrast,
        )
        self._textures = [[texture.to(device) for texture in variants] for variants in bank]
        self._sprites = [build_sprites(index, scale, self._subpixels, device) for index in range(len(SIZES))]
        self._colours = torch.tensor([(*rgb, 0) for rgb in COLOUR_RGB], device=device, dtype=torch.float32)

    def draw(self, scene: RenderInput) -> Tensor:
        """Video uint8 (B, T, H, W, 3)."""
        video = self._backgrounds(scene)
        flat = video.view(-1)
        block = _CPU_BLOCK if self._device.type == "cpu" else _GPU_BLOCK
        for slot in range(scene.size.shape[1]):
            shown = scene.count > slot
            for index, sheet in enumerate(self._sprites):
                clips = torch.nonzero(shown & (scene.size[:, slot] == index)).squeeze(1)
                step = max(1, block // (scene.fade.shape[1] * sheet.crop**2))
                for part in torch.split(clips, step):
                    self._composite(flat, scene, slot, index, part)
        return video.view(torch.uint8).view(*video.shape, 4)[..., :3].contiguous()

    def _texture(self, background: int, draw: list[int], frames: Tensor) -> Tensor:
        """Packed frames (len(frames), S, S) of one texture."""
        variants = self._textures[background]
        texture = variants[draw[0] % len(variants)]
        if texture.shape[0] > 1:
            texture = texture.index_select(0, (frames + draw[1]) % texture.shape[0])
        return torch.roll(texture, (draw[2] % self._size, draw[3] % self._size), (1, 2))

    def _backgrounds(self, scene: RenderInput) -> Tensor:
        """Packed int32 (B, T, S, S)."""
        batch, frames = scene.fade.shape
        video = torch.empty(batch, frames, self._size, self._size, dtype=torch.int32, device=self._device)
        times = torch.arange(frames, device=self._device)
        first_mixed = (scene.fade <= 0).sum(1).tolist()
        first_after = (scene.fade < 1).sum(1).tolist()
        kinds, draws = scene.background.tolist(), scene.texture.tolist()
        for clip in range(batch):
            before, after = kinds[clip]
            if before == after:
                video[clip] = self._texture(before, draws[clip][0], times)
                continue
            start, stop = first_mixed[clip], first_after[clip]
            video[clip, :stop] = self._texture(before, draws[clip][0], times[:stop])
            video[clip, stop:] = self._texture(after, draws[clip][1], times[stop:])
            if stop > start:
                old = video[clip, start:stop].view(torch.uint8).view(stop - start, -1)
                target = self._texture(after, draws[clip][1], times[start:stop])
                new = (
                    target.expand(stop - start, -1, -1).contiguous().view(torch.uint8).view(stop - start, -1)
                )
                share = scene.fade[clip, start:stop, None]
                old.copy_(torch.lerp(old.float(), new.float(), share).round())
        return video

    def _composite(self, flat: Tensor, scene: RenderInput, slot: int, size: int, clips: Tensor) -> None:
        """Draws one object slot of some clips (all of one size class) into the packed video."""
        sheet = self._sprites[size]
        frames, side, sub = scene.fade.shape[1], self._size, self._subpixels
        grid = (scene.positions[clips, slot] * (side / WORLD_SIZE * sub)).round().long()
        base, part = grid // sub - sheet.crop // 2, grid % sub
        local = torch.arange(sheet.crop, device=self._device)
        x = (base[..., 0, None] + local) % side
        y = (base[..., 1, None] + local) % side
        frame = (clips[:, None] * frames + torch.arange(frames, device=self._device))[..., None]
        pixels = (((frame * side + y) * side)[..., :, None] + x[..., None, :]).view(-1)

        fade = scene.fade[clips]
        offset = part[..., 1] * sub + part[..., 0]
        jitter = scene.jitter[clips, slot]
        sprite = (scene.shape[clips, :, slot] * len(SIZE_JITTER) + jitter[:, None]) * sub * sub
        rows = [(sprite[:, segment, None] + offset).view(-1) for segment in range(2)]
        chosen = torch.where(fade.reshape(-1) < 1, rows[0], rows[1])
        keep = sheet.keep.index_select(0, chosen).to(torch.int16)
        paint = sheet.paint.index_select(0, chosen).to(torch.int16)
        mixed = ((fade > 0) & (fade < 1)).view(-1) & (rows[0] != rows[1])
        for row in torch.split(torch.nonzero(mixed).squeeze(1), 4096):
            share = fade.reshape(-1)[row, None]
            keep[row] = torch.lerp(keep[row].float(), sheet.keep[rows[1][row]].float(), share).ceil().short()
            paint[row] = torch.lerp(paint[row].float(), sheet.paint[rows[1][row]].float(), share).short()

        ends = self._colours[scene.colour[clips, :, slot]]
        colour = torch.lerp(ends[:, None, 0], ends[:, None, 1], fade[..., None]).round().to(torch.int16)
        below = flat.index_select(0, pixels).view(torch.uint8).view(*keep.shape, 4).to(torch.int16)
        # At most 255 * 128 + 64, which fits 16 bits since keep + paint <= 128.
        blended = below.mul_(keep[..., None]).add_(paint[..., None] * colour.view(-1, 1, 4)).add_(64)
        packed = blended.bitwise_right_shift_(7).to(torch.uint8).view(torch.int32).view(-1)
        flat.index_copy_(0, pixels, packed)
