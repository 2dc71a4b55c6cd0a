"""Clips of moving photographs, beside the procedural world: what natural video is like, without any."""

from .clips import PhotographClips
from .config import PhotographConfig
from .found import PHOTOGRAPHS, photograph_paths, read_photographs

__all__ = ["PHOTOGRAPHS", "PhotographClips", "PhotographConfig", "photograph_paths", "read_photographs"]
