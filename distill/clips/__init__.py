"""One's own clips and prompts as the training stages take them, from a folder of videos or a list."""

from .config import ClipFolderConfig
from .folder import QUARANTINE, ClipFolder
from .listing import ClipEntry, Listing, Problem, list_clips
from .prompts import PromptList, PromptScript, prompt_pairs, read_prompts

__all__ = [
    "QUARANTINE",
    "ClipEntry",
    "ClipFolder",
    "ClipFolderConfig",
    "Listing",
    "Problem",
    "PromptList",
    "PromptScript",
    "list_clips",
    "prompt_pairs",
    "read_prompts",
]
