"""Settings of the procedural world."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

from ..config import Bound, Checked, Count, Share, require
from .vocabulary import MOTIONS


@dataclass(frozen=True)
class SceneConfig(Checked, section="scenes"):
    """What a :class:`SceneGenerator` draws.

    Attributes:
        size: side of the square frame in pixels, a multiple of 16.
        object_weights: relative frequency of clips with 1, 2, 3 ... objects; its length is the number of
            object slots (at most 3).
        motion_weights: relative frequency of motions by name, 1 for those that are not named: what takes long
            to be learned may be shown more often.
        tracks: point tracks per clip, more than the number of object slots; 16 cover the picture of a camera
            move as ``streamgen.motion.tracks.camera`` does.
        change_probability: share of clips in which something changes in the middle.
        double_change_probability: share of those in which two things change at once.
        change_margin: frames before and after the change, at least.
        fade_frames: frames a change takes.
        drag_probability: share of clips in which one object is dragged for a while.
        camera_probability: share of clips in which the camera moves for a while.
        include_held_out: also draw the held-out (colour, shape) pairs.
        texture_variants: textures per background; each clip sees one at a random offset and phase.
        texture_period: frames of the texture loop.
        texture_seed: seed of the textures.
        texture_contrast: contrast of the textures around their mean colour, 1 as drawn, 0 flat.
    """

    size: Annotated[int, Bound("a multiple of 16, at least 32", lambda n: n >= 32 and n % 16 == 0)] = 64
    object_weights: tuple[float, ...] = (0.65, 0.25, 0.1)
    motion_weights: dict[str, float] = field(default_factory=dict)
    tracks: int = 16
    change_probability: Share = 0.35
    double_change_probability: Share = 0.15
    change_margin: Count = 12
    fade_frames: Count = 4
    drag_probability: Share = 0.3
    camera_probability: Share = 0.2
    include_held_out: bool = False
    texture_variants: Count = 4
    texture_period: Count = 64
    texture_seed: int = 0
    texture_contrast: Share = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        weights, slots = self.object_weights, len(self.object_weights)
        fits = 1 <= slots <= 3 and min(weights) >= 0 and sum(weights) > 0
        require(fits, "scenes.object_weights", "1 to 3 weights >= 0, not all 0", weights)
        require(self.tracks > slots, "scenes.tracks", f"more than {slots}", self.tracks)
        for name, weight in self.motion_weights.items():
            require(name in MOTIONS, "scenes.motion_weights", f"some of {', '.join(MOTIONS)}", repr(name))
            fits = isinstance(weight, int | float) and 0 < weight < math.inf
            require(fits, "scenes.motion_weights", "numbers above 0", f"{name} {weight!r}")

    def alone(self) -> "SceneConfig":
        """This world with one object, to which nothing happens: no change, no drag, no camera move."""
        return replace(
            self, object_weights=(1.0,), change_probability=0.0, drag_probability=0.0, camera_probability=0.0
        )

    @property
    def max_objects(self) -> int:
        """Object slots per clip."""
        return len(self.object_weights)
