"""Looping, toroidal background textures: sea, sand, grass, night, snow, bricks.

Each texture is periodic in x, y and time, so that a clip can start at any offset and phase and never ends.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .config import SceneConfig
from .vocabulary import BACKGROUNDS

_Builder = Callable[[int, int, torch.Generator], Tensor]


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Pixel centres y (size, 1), x (1, size) in [0, 1)."""
    centres = (torch.arange(size) + 0.5) / size
    return centres[:, None], centres[None, :]


def _smooth_noise(size: int, sigma_y: float, sigma_x: float, generator: torch.Generator) -> Tensor:
    """Toroidal Gaussian noise (size, size), unit variance; sigmas in pixels of a 64-pixel frame."""
    noise = torch.fft.rfft2(torch.randn(size, size, generator=generator))
    fy = torch.fft.fftfreq(size)[:, None] * size / 64
    fx = torch.fft.rfftfreq(size)[None, :] * size / 64
    gain = torch.exp(-2 * math.pi**2 * ((fy * sigma_y).square() + (fx * sigma_x).square()))
    smooth = torch.fft.irfft2(noise * gain, s=(size, size))
    normal: Tensor = smooth / smooth.std().clamp(min=1e-6)
    return normal


def _mix(amount: Tensor, dark: tuple[int, int, int], light: tuple[int, int, int]) -> Tensor:
    """Colour ramp: amount (..., ) in [0, 1] -> (..., 3) in [0, 255]."""
    low, high = torch.tensor(dark).float(), torch.tensor(light).float()
    return low + amount.clamp(0, 1)[..., None] * (high - low)


def _dots(size: int, positions: Tensor, sigma: float) -> Tensor:
    """Toroidal Gaussian dots: positions (..., N, 2) in [0, 1) as (x, y) -> (..., N, size, size) in [0, 1]."""
    y, x = _grid(size)
    dx = (x[0] - positions[..., 0, None] + 0.5) % 1 - 0.5
    dy = (y[:, 0] - positions[..., 1, None] + 0.5) % 1 - 0.5
    scale = -0.5 * (64 / sigma) ** 2
    return torch.exp(dy.square() * scale)[..., :, None] * torch.exp(dx.square() * scale)[..., None, :]


def _phase(period: int) -> Tensor:
    return (torch.arange(period) / period * 2 * math.pi)[:, None, None]


def _sea(size: int, period: int, generator: torch.Generator) -> Tensor:
    y, x = _grid(size)
    time = _phase(period)
    shift = torch.rand(3, generator=generator) * 2 * math.pi
    bend = 0.9 * torch.sin(2 * math.pi * 2 * x + shift[0] + time) + 0.5 * torch.sin(
        2 * math.pi * 3 * x + shift[1] - time
    )
    crest = torch.sin(2 * math.pi * 6 * y + bend + shift[2])
    lines = ((crest - 0.55) / 0.45).clamp(0, 1)
    swell = 0.5 + 0.12 * _smooth_noise(size, 3, 8, generator)
    return _mix(0.3 * swell + 0.12 * crest + 0.38 * lines, (8, 92, 128), (96, 196, 206))


def _sand(size: int, period: int, generator: torch.Generator) -> Tensor:
    y, x = _grid(size)
    warp = 1.1 * _smooth_noise(size, 7, 7, generator)
    ripple = torch.sin(2 * math.pi * (5 * y + 2 * x) + warp)
    grain = _smooth_noise(size, 0.6, 0.6, generator)
    return _mix(0.5 + 0.2 * ripple + 0.1 * grain, (190, 158, 108), (232, 206, 156))[None]


def _grass(size: int, period: int, generator: torch.Generator) -> Tensor:
    blades = 0.5 + 0.19 * _smooth_noise(size, 3.2, 0.75, generator)
    tufts = 0.12 * _smooth_noise(size, 6, 6, generator)
    y, _ = _grid(size)
    sway = 0.9 / 64 * torch.sin(2 * math.pi * 2 * y + _phase(period)) * torch.ones(1, 1, 1)
    frequency = torch.fft.rfftfreq(size) * size
    turn = torch.polar(torch.ones(1), -2 * math.pi * sway * frequency)
    moved = torch.fft.irfft(torch.fft.rfft(blades + tufts) * turn, n=size)
    return _mix(moved, (34, 78, 26), (104, 150, 58))


def _night(size: int, period: int, generator: torch.Generator) -> Tensor:
    count = 22
    dots = _dots(size, torch.rand(count, 2, generator=generator), 0.62)
    phase = torch.rand(count, generator=generator) * 2 * math.pi
    power = 0.35 + 0.65 * torch.rand(count, generator=generator)
    turns = torch.randint(1, 3, (count,), generator=generator)
    twinkle = power * (0.78 + 0.22 * torch.sin(_phase(period)[:, :, 0] * turns + phase))
    stars = torch.einsum("tn,nhw->thw", twinkle, dots).clamp(0, 1)
    haze = 0.5 + 0.22 * _smooth_noise(size, 9, 9, generator)
    sky = _mix(haze, (8, 8, 30), (26, 24, 66))
    return sky + stars[..., None] * (torch.tensor([232.0, 232.0, 210.0]) - sky) * 0.85


def _snow(size: int, period: int, generator: torch.Generator) -> Tensor:
    drifts = _mix(0.5 + 0.22 * _smooth_noise(size, 4, 10, generator), (164, 184, 212), (206, 220, 236))
    # A field that repeats every half frame falls half a frame per loop: slow flakes in a short loop.
    count = 9
    start = torch.rand(count, 2, generator=generator)
    fall = torch.arange(period)[:, None] / period
    x = start[:, 0] + 1.2 / 64 * torch.sin(2 * math.pi * (fall + start[:, 1]))
    y = (start[:, 1] + fall) % 1 * 0.5
    half = torch.stack([x, y], -1)
    both = torch.cat([half, half + torch.tensor([0.37, 0.5])], 1)
    flakes = _dots(size, both, 0.95).sum(1).clamp(0, 1)
    return drifts + flakes[..., None] * (torch.tensor([255.0, 255.0, 255.0]) - drifts) * 0.9


def _bricks(size: int, period: int, generator: torch.Generator) -> Tensor:
    rows, columns = 8, 4
    y, x = _grid(size)
    row = (y * rows).long()
    shifted = x * columns + 0.5 * (row % 2)
    column = shifted.long() % columns
    tone = torch.rand(rows, columns, generator=generator)[row, column]
    edge_y = torch.minimum(y * rows % 1, 1 - y * rows % 1) * 64 / rows
    edge_x = torch.minimum(shifted % 1, 1 - shifted % 1) * 64 / columns
    mortar = (1.35 - torch.minimum(edge_y.expand(size, size), edge_x)).clamp(0, 1)
    grain = 0.07 * _smooth_noise(size, 0.8, 0.8, generator)
    brick = _mix(0.25 + 0.5 * tone + grain, (104, 52, 42), (140, 78, 62))
    return (brick + mortar[..., None] * (torch.tensor([160.0, 144.0, 134.0]) - brick) * 0.6)[None]


_BUILDERS: dict[str, _Builder] = {
    "sea": _sea,
    "sand": _sand,
    "grass": _grass,
    "night": _night,
    "snow": _snow,
    "bricks": _bricks,
}


def build_textures(config: SceneConfig) -> list[list[Tensor]]:
    """Textures ``[background][variant]`` as packed RGBX pixels.

    ``config.texture_contrast`` scales the deviation from a texture's mean colour: fine texture is what a
    small tokenizer spends its channels on first, and objects should have them.

    Returns int32 tensors (P, size, size), P = ``config.texture_period``, or 1 where nothing moves; the bytes
    of a value are red, green, blue and an unused one.
    """
    size, period, contrast = config.size, config.texture_period, config.texture_contrast
    generator = torch.Generator().manual_seed(config.texture_seed)
    bank = []
    for name in BACKGROUNDS:
        textures = [_BUILDERS[name](size, period, generator) for _ in range(config.texture_variants)]
        means = [texture.mean((0, 1, 2)) for texture in textures]
        bank.append([pack_pixels(m + contrast * (t - m)) for t, m in zip(textures, means, strict=True)])
    return bank


def pack_pixels(rgb: Tensor) -> Tensor:
    """Float RGB (..., 3) in [0, 255] -> int32 (...) with the bytes R, G, B, 0."""
    padded = torch.nn.functional.pad(rgb.clamp(0, 255).round().to(torch.uint8), (0, 1))
    return padded.contiguous().view(torch.int32).squeeze(-1)
