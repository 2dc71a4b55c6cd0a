"""Shapes and motions of objects, recognised by small networks trained on the world itself.

Training takes seconds and is a function of the seed; what the networks are worth on clips they never saw is
part of every report (its control on the truth).
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample

from models.tensor_file import write_tensors
from streamgen.errors import InputError

from ..scenes import MOTIONS, SHAPES, SceneConfig, SceneGenerator
from ..scenes.dynamics import NEVER, MotionPlan, Simulation
from ..scenes.shapes import WORLD_SIZE
from .reading import FrameReader, torus_step

#: Side of the picture of one object's mask.
_CROP = 24
#: Frames between two looks at a position, and looks that tell a motion.
STRIDE = 2
LOOKS = 25
_BATCH = 128
#: Of a kept file: the world that its networks have learned to read.
_WORLD = "world"
Weights = Mapping[str, Tensor]
#: Frames of a motion.
MOTION_FRAMES = STRIDE * (LOOKS - 1) + 1


class ShapeReader:
    """Tells shapes from masks: a small convolutional network on the mask, centred and scaled to a common
    area.

    It learns from `samples` objects as `reader` sees them, held-out pairs among them, since a shape is no
    secret to an instrument; or it takes the weights of a network that has `learned` this before.
    """

    def __init__(
        self,
        reader: FrameReader,
        config: SceneConfig,
        samples: int = 6000,
        seed: int = 0,
        learned: Weights | None = None,
    ) -> None:
        if learned is not None:
            self.network = _with_weights(_shape_net(), learned)
            return
        crops, labels = _shape_examples(reader, config, samples, seed)
        self.network = _train(_shape_net, crops, labels, steps=400, rate=4e-3, seed=seed)

    @torch.no_grad()
    def __call__(self, masks: Tensor, centre: Tensor) -> Tensor:
        """Shape index (N,) of objects with masks (N, H, W) bool around centres (N, 2) normalised; -1 where a
        mask is empty.
        """
        if not len(masks):
            return torch.zeros(0, dtype=torch.long)
        shapes: Tensor = self.network(_normalised(masks, centre)).argmax(1)
        return torch.where(masks.any(-1).any(-1), shapes, -1)


class MotionReader:
    """Tells motions from `MOTION_FRAMES` frames of positions. It learns from `samples` trajectories of each,
    or takes the weights of a network that has `learned` this before.
    """

    def __init__(
        self, config: SceneConfig, samples: int = 2000, seed: int = 0, learned: Weights | None = None
    ) -> None:
        if learned is not None:
            self.network = _with_weights(_motion_net(), learned)
            return
        positions, labels = _motion_examples(config, samples, seed)
        features = _motion_features(positions)
        self.network = _train(_motion_net, features, labels, steps=3000, rate=2e-3, seed=seed)

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Tensor:
        """Motion index (N,) of positions (N, MOTION_FRAMES, 2), normalised; nan where the object is not seen,
        -1 where that is so in half of the frames.
        """
        seen = ~positions.isnan().any(-1)
        motion: Tensor = self.network(_motion_features(_filled(positions, seen)[:, ::STRIDE])).argmax(1)
        return torch.where(seen.float().mean(1) > 0.5, motion, -1)


def write_learned(file: Path, config: SceneConfig, networks: Mapping[str, nn.Module]) -> None:
    """Keep networks, by name, in a safetensors file that appears when it is whole."""
    tensors = {f"{n}/{key}": t for n, network in networks.items() for key, t in network.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    write_tensors(tensors, part, {_WORLD: _world_of(config)})
    os.replace(part, file)


def read_learned(file: Path, config: SceneConfig) -> dict[str, dict[str, Tensor]]:
    """The weights that `write_learned` has kept, by network.

    Raises:
        InputError: they are of another world, or the file is none of these.
    """
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(file, "pt") as opened:
            world = (opened.metadata() or {}).get(_WORLD)
            for name in opened.keys():  # noqa: SIM118 - no mapping
                network, _, key = name.partition("/")
                found.setdefault(network, {})[key] = opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"readers {file}: expected a file that an evaluation has kept, found {error}"
        ) from None
    if world != _world_of(config):
        raise InputError(f"readers {file}: expected those of this world, found others; remove it")
    return found


def _world_of(config: SceneConfig) -> str:
    return json.dumps([asdict(config), list(SHAPES), list(MOTIONS), _CROP, STRIDE, LOOKS], sort_keys=True)


def _with_weights(network: nn.Module, weights: Weights) -> nn.Module:
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _shape_examples(
    reader: FrameReader, config: SceneConfig, samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Masks (N, 1, 24, 24) of single objects, half of them from blurred frames, and shapes (N,)."""
    plain = SceneConfig(size=config.size, texture_contrast=config.texture_contrast).alone()
    world = replace(plain, include_held_out=True)
    scenes = SceneGenerator(world).sample(samples, 1, 7_000_003 + seed)
    frames = scenes.video[:, 0]
    soft = avg_pool2d(frames.float().movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
    frames = torch.where((torch.arange(samples) % 2 == 0)[:, None, None, None], frames.float(), soft)
    reading = reader(frames)
    colour = scenes.labels["colour"][:, 0, 0]
    rows = torch.arange(samples)
    masks, centre = reading.masks[rows, colour], reading.centre[rows, colour]
    kept = reading.area[rows, colour] > 20
    return _normalised(masks[kept], centre[kept]), scenes.labels["shape"][kept, 0, 0]


def _normalised(masks: Tensor, centre: Tensor) -> Tensor:
    """Masks (N, H, W) as (N, 1, 24, 24) float, wrapped around their centres and scaled to a common area."""
    height, width = masks.shape[1:]
    shift = (centre.nan_to_num(0.5) - 0.5) * torch.tensor([width, height])
    rows = (torch.arange(height) + shift[:, 1, None].round().long()) % height
    columns = (torch.arange(width) + shift[:, 0, None].round().long()) % width
    index = torch.arange(len(masks))[:, None, None]
    centred = masks[index, rows[:, :, None], columns[:, None, :]].float()[:, None]
    side = centred.sum((1, 2, 3)).clamp(min=1).sqrt() * 1.1
    theta = torch.zeros(len(masks), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side / width * 2, side / height * 2
    # the part of a pixel that rounding left over
    rest = (shift - shift.round()) / torch.tensor([width, height]) * 2
    theta[:, :, 2] = rest
    grid = affine_grid(theta, [len(masks), 1, _CROP, _CROP], align_corners=False)
    return grid_sample(centred, grid, align_corners=False)


def _motion_examples(config: SceneConfig, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (N, LOOKS, 2), normalised and seen a little inaccurately, and motions (N,)."""
    generator = torch.Generator().manual_seed(8_000_009 + seed)
    motion = torch.arange(len(MOTIONS)).repeat(samples)
    count = len(motion)
    plan = MotionPlan(
        motion=motion[:, None, None].expand(-1, 2, 1),
        change_frame=torch.full((count,), NEVER),
        margin=torch.rand(count, 1, generator=generator) * 9 + 8,
        drag_start=torch.full((count, 1), NEVER),
        drag_frames=torch.zeros(count, 1, dtype=torch.long),
    )
    positions = Simulation(plan, generator).run(MOTION_FRAMES).positions[:, 0, ::STRIDE] / WORLD_SIZE
    jitter = torch.randn(positions.shape, generator=generator) * 0.008
    return (positions + jitter) % 1, motion


def _motion_features(positions: Tensor) -> Tensor:
    """Positions (N, LOOKS, 2): where it is, the way it went and each step, all without jumps at borders."""
    angle = positions * 2 * math.pi
    step = torus_step(positions[:, :-1], positions[:, 1:])
    way = step.cumsum(1)
    parts = (angle.sin(), angle.cos(), 10 * step, 2 * way)
    return torch.cat([part.flatten(1) for part in parts], 1)


def _filled(positions: Tensor, seen: Tensor) -> Tensor:
    """Positions (N, T, 2) with the last seen one where there is none."""
    index = torch.where(seen, torch.arange(positions.shape[1]), -1).cummax(1).values
    first = seen.int().argmax(1, keepdim=True)
    index = torch.where(index < 0, first, index)
    return positions.gather(1, index[..., None].expand(-1, -1, 2)).nan_to_num(0.5)


def _shape_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 36, 64),
        nn.ReLU(),
        nn.Linear(64, len(SHAPES)),
    )


def _motion_net() -> nn.Module:
    features = LOOKS * 4 + (LOOKS - 1) * 4
    return nn.Sequential(
        nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, len(MOTIONS))
    )


def _train(
    build: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, steps: int, rate: float, seed: int
) -> nn.Module:
    """A network from `build()` fitted to labels by AdamW with a falling rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(inputs), (_BATCH,), generator=generator)
            loss = cross_entropy(net(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)
