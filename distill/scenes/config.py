"""Settings of the procedural world."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .vocabulary import MOTIONS


@dataclass(frozen=True)
class SceneConfig:
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

    size: int = 64
    object_weights: tuple[float, ...] = (0.65, 0.25, 0.1)
    motion_weights: dict[str, float] = field(default_factory=dict)
    tracks: int = 16
    change_probability: float = 0.35
    double_change_probability: float = 0.15
    change_margin: int = 12
    fade_frames: int = 4
    drag_probability: float = 0.3
    camera_probability: float = 0.2
    include_held_out: bool = False
    texture_variants: int = 4
    texture_period: int = 64
    texture_seed: int = 0
    texture_contrast: float = 0.6

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 16:
            raise ValueError(f"size: expected a multiple of 16, at least 32, found {self.size}")
        if (
            not 1 <= len(self.object_weights) <= 3
            or min(self.object_weights) < 0
            or sum(self.object_weights) <= 0
        ):
            raise ValueError(f"object_weights: expected 1 to 3 weights >= 0, found {self.object_weights}")
        for name, weight in self.motion_weights.items():
            if name not in MOTIONS:
                raise ValueError(f"motion_weights: expected some of {', '.join(MOTIONS)}, found {name!r}")
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"motion_weights: expected numbers above 0, found {name} {weight!r}")
        if self.tracks <= len(self.object_weights):
            raise ValueError(f"tracks: expected more than {len(self.object_weights)}, found {self.tracks}")
        for name, value in (
            ("change_probability", self.change_probability),
            ("double_change_probability", self.double_change_probability),
            ("drag_probability", self.drag_probability),
            ("camera_probability", self.camera_probability),
            ("texture_contrast", self.texture_contrast),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], found {value}")
        for name, count in (
            ("change_margin", self.change_margin),
            ("fade_frames", self.fade_frames),
            ("texture_variants", self.texture_variants),
            ("texture_period", self.texture_period),
        ):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, found {count}")

    @property
    def max_objects(self) -> int:
        """Object slots per clip."""
        return len(self.object_weights)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SceneConfig":
        """From a plain mapping (YAML); ValueError for an unknown key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"scenes: unknown key {unknown[0]!r}, expected one of {', '.join(sorted(known))}"
            )
        prepared = dict(values)
        if "object_weights" in prepared:
            prepared["object_weights"] = tuple(float(weight) for weight in prepared["object_weights"])
        return cls(**prepared)
