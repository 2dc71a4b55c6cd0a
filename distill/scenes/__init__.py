"""The procedural world: clips of moving shapes with exact captions, tracks and labels."""

from .camera import CAMERA_KINDS
from .captions import caption_vocabulary
from .config import SceneConfig
from .generator import SceneBatch, SceneGenerator
from .sheet import contact_sheet
from .vocabulary import BACKGROUNDS, COLOURS, HELD_OUT, MOTIONS, SHAPES, SIZES

__all__ = [
    "BACKGROUNDS",
    "CAMERA_KINDS",
    "COLOURS",
    "HELD_OUT",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "SceneBatch",
    "SceneConfig",
    "SceneGenerator",
    "caption_vocabulary",
    "contact_sheet",
]
