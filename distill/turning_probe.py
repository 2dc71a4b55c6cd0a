"""How well a causal model foresees each motion: its error where paths turn, and where they go straight.

On clips that no training draws from: one object, one caption, no drag, no camera move, all motions equally
often. Each latent frame is made from one high noise level behind the true frames before it, so that what is
asked is the dynamics alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .batches import moved
from .config import Checked, Count, Positive
from .errors import GateError
from .evaluation.intervals import Figure, average
from .flow import FlowMatching
from .latent_cache import CacheConfig, LatentCache, LatentClips
from .plots import draw_bars, panels
from .scenes import MOTIONS, SceneConfig
from .windows import WindowConfig, flow_batch, whole_clips

#: Apart from all seeds of training caches.
_SEED = 909_090
#: Where it is settled which way things go: six of seven drawn noise levels are below it at shift 3.
_SIGMA = 0.95
_BATCH = 16
#: Motions whose paths turn.
TURNING = ("circles", "bounces", "zigzag")


@dataclass(frozen=True)
class TurningGate(Checked, section="turning"):
    """`clips` that are measured; `most`: the largest mean error at turning latent frames that each motion
    with turns may have, and at all others each motion without; null for no gate.
    """

    clips: Count = 192
    most: Positive | None = None


def probe_clips(
    gate: TurningGate,
    cache: CacheConfig,
    scenes: SceneConfig,
    open_cache: Callable[[CacheConfig, SceneConfig], LatentCache],
) -> LatentClips:
    """The clips, made where they are missing, in a folder of their own beside the training's cache."""
    plain = replace(
        scenes,
        object_weights=(1.0, *(0.0 for _ in scenes.object_weights[1:])),
        motion_weights={},
        change_probability=0.0,
        drag_probability=0.0,
        camera_probability=0.0,
    )
    where = replace(
        cache, directory=str(Path(cache.directory) / "probe"), seed=_SEED, clips=gate.clips, images=1
    )
    clips = open_cache(where, plain)
    clips.build(0, 1, next(clips.tokenizer.parameters()).device)
    return clips.load(images=False)


@torch.no_grad()
def turning_errors(network: FlowMatching, clips: LatentClips, config: WindowConfig) -> dict[str, Figure]:
    """Mean squared error of the velocity in cells around the object: `turning <motion>` and `straight
    <motion>`, each the mean over clips with its interval.
    """
    plain = replace(
        config,
        frames=None,
        gap_share=0.0,
        clean_share=1.0,
        text_drop=0.0,
        target_text_drop=0.0,
        target_motion_drop=0.0,
        unknown_words=0.0,
        copies=1,
        # the object alone: cells elsewhere would hide it
        object_weight=1e6,
    )
    device = next(network.parameters()).device
    found: dict[str, list[float]] = {}
    for start in range(0, len(clips.latents), _BATCH):
        part = LatentClips(**{name: value[start : start + _BATCH] for name, value in vars(clips).items()})
        generator = torch.Generator().manual_seed(_SEED + start)
        layout = whole_clips(part, len(part.latents), plain, generator, network.plan)
        layout = replace(layout, rows=torch.arange(len(part.latents)))
        batch = flow_batch(part, layout, plain, (1.0, 0.0), generator, network.plan)
        batch = moved(replace(batch, sigma=torch.full_like(batch.sigma, _SIGMA)), device)
        error = network.errors(batch).float().cpu()
        _sort(error, part, found)
    return {name: average(values) for name, values in sorted(found.items())}


def _sort(error: Tensor, clips: LatentClips, found: dict[str, list[float]]) -> None:
    """Add each clip's mean errors `(B, T)` to those of its motion; its first three latent frames, in which
    nobody can know the way yet, do not count.
    """
    turning = clips.turning[:, 0, : error.shape[1]]
    known = torch.arange(error.shape[1]) >= 3
    for row, motion in enumerate(clips.motions[:, 0, 0].tolist()):
        for name, chosen in (("turning", turning[row] & known), ("straight", ~turning[row] & known)):
            if bool(chosen.any()):
                found.setdefault(f"{name} {MOTIONS[motion]}", []).append(float(error[row][chosen].mean()))


def gated(found: Mapping[str, Figure]) -> dict[str, Figure]:
    """Of `turning_errors` those that a gate looks at: at turns where motions turn, else on straight ways."""
    wanted = [("turning" if motion in TURNING else "straight") + f" {motion}" for motion in MOTIONS]
    return {name: found[name] for name in wanted if name in found}


def check_turning(found: Mapping[str, Figure], gate: TurningGate) -> list[str]:
    """What was found, a line each.

    Raises:
        GateError: a motion's error is above `gate.most`.
    """
    lines = [f"{n}: error {f.value:.3f} [{f.low:.3f}, {f.high:.3f}] ({f.n} clips)" for n, f in found.items()]
    if gate.most is None:
        return lines
    looked_at = gated(found)
    over = {name: f.value for name, f in looked_at.items() if f.value is None or not f.value <= gate.most}
    if over:
        what = ", ".join(f"{name} {value}" for name, value in over.items())
        raise GateError(f"turning probe: expected errors <= {gate.most:g}, found {what}", "turning.most=null")
    return lines


def plot_turning(found: Mapping[str, Figure], path: Path) -> None:
    """Draw the errors as bars with their intervals, straight and turning side by side, into a PNG file; does
    nothing without matplotlib.
    """
    try:
        canvas, (axes,) = panels(9.0, 4.0)
    except ImportError:
        return
    kinds = ("straight", "turning")
    draw_bars(axes, {kind: [found.get(f"{kind} {motion}") for motion in MOTIONS] for kind in kinds}, MOTIONS)
    axes.tick_params("x", rotation=30)
    axes.set_ylabel(f"velocity error at noise {_SIGMA}")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path)
