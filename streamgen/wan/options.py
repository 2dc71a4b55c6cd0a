"""How to load a model of the Wan family: where its weights are, and where its text encoder runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .loras import LoraFile


@dataclass(frozen=True)
class TextOptions:
    """Where the text encoder runs, and what becomes of it.

    Attributes:
        device: `cpu`, `cuda:1`, ...; embeddings are moved to the network's device.
        dtype: of its weights.
        keep: False frees it after each prompt that was not cached (it loads again for the next one).
        cache: a folder for embeddings by prompt, which need no encoder at all the next time.
        int8: its linear layers in eight bits: half the memory of bfloat16.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    keep: bool = True
    cache: Path | None = None
    int8: bool = False

    @property
    def stored(self) -> torch.dtype:
        """What nearly all of its numbers are stored as."""
        return torch.int8 if self.int8 else self.dtype


@dataclass(frozen=True)
class WanOptions:
    """How to load a model of this family.

    Attributes:
        weights: the directory of published or converted files, one file with the network in it, or either on
            the hub (`hf://owner/repo[/file][@revision]`); a converted model's own directory by default.
        random_weights: run without any download, on weights that mean nothing.
        loras: merged into the network one after the other.
        live_loras: kept beside it; streams change their strengths (setting `lora`).
        overrides: changes of the config, dotted `key=value`.
        text_encoder: a folder or hub name, over what the weights directory and the config say.
        text: where the text encoder runs.
        fit: GiB that the model and one stream may take: decoder and window are chosen so; None: as the config
            says.
        check_memory: refuse what does not fit before allocating it.
        note: called with a line for each thing that a user should know of how files were read.
        progress: called with what is being done, and which share in 0..1 of it is; None where nobody knows.
    """

    weights: str | Path | None = None
    random_weights: bool = False
    overrides: tuple[str, ...] = ()
    text_encoder: str | None = None
    text: TextOptions = field(default_factory=TextOptions)
    check_memory: bool = True
    note: Callable[[str], None] | None = None
    loras: tuple[LoraFile, ...] = ()
    live_loras: tuple[LoraFile, ...] = ()
    fit: float | None = None
    progress: Callable[[str, float | None], None] | None = None

    def tell(self, what: str, share: float | None = None) -> None:
        """Say how far loading is, to whoever asked."""
        if self.progress is not None:
            self.progress(what, share)
