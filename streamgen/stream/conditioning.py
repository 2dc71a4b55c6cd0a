"""What steers a stream now, and what that means for one chunk."""

from dataclasses import dataclass, replace

from torch import Tensor

from models.causal_dit import Negative
from models.motion_encoder import Tracks

from ..engine.guidance import Conditioning
from ..motion.gestures import Gesture, tracks_between
from .latents import LatentState
from .model import StreamModel
from .prompts import Passage, Text
from .settings import StreamSettings


@dataclass(frozen=True, eq=False)
class Controls:
    """What steers a stream: its text, its settings, the gestures in force, the way its text is on, and of
    live input the mask `(h, w)` on the latent grid.
    """

    text: Text
    settings: StreamSettings
    gestures: tuple[Gesture, ...] = ()
    passage: Passage | None = None
    mask: Tensor | None = None

    @property
    def prompt(self) -> str:
        """The words."""
        return self.text.prompt


def chunk_conditioning(model: StreamModel, controls: Controls, state: LatentState) -> Conditioning:
    """Conditioning of the next chunk: text, motion and guidance strengths."""
    motion = motion_latents(model, controls.gestures, state)
    guidance = controls.settings.guidance()
    text = controls.text.context
    unguided = model.dit.config.guidance or guidance.is_off(motion is not None)
    negative = model.negative_text(controls.settings)
    if not unguided:
        null = model.null_at(controls.text.strengths) if negative is None else negative.context
        return Conditioning(text, null, motion, guidance)
    if negative is not None and controls.settings.negative_scale > 1:
        away = Negative(negative.context.keys, negative.context.values, controls.settings.negative_scale)
        text = replace(text, negative=away)
    return Conditioning(text, text, motion, guidance)


def motion_latents(model: StreamModel, gestures: tuple[Gesture, ...], state: LatentState) -> Tensor | None:
    """Motion latents `(1, T, channels, h, w)` of the next chunk; None where no track says anything."""
    geometry = model.geometry
    start, stop = geometry.frame_range(state.start, state.length)
    tracks = tracks_between(gestures, start, stop)
    if tracks is None:
        return None
    encoder = model.motion_encoder
    assert encoder is not None, "tracks are refused where they come in"
    parts = (tracks.points, tracks.state, tracks.pinned, tracks.ids)
    batch = Tracks(*(x[None].to(model.device, non_blocking=True) for x in parts))
    grid = (geometry.latent_height, geometry.latent_width)
    latents: Tensor = encoder(batch, grid, first=start == 0)
    return latents.to(model.dtype)
