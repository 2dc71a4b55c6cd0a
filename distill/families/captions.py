"""Captions of a frozen text encoder: encoded once, then looked up by number.

The Wan family reads UMT5-XXL, which is frozen and larger than the diffusion network. So each caption is
encoded once, into the prompt cache on disk, the encoder is freed, and what the networks of a stage have for a
text encoder is a table of captions: a caption's id is one number, and its embedding is read when needed.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from streamgen.wan.text import HashedPrompts, UMT5Prompts

from ..clips.store import write_whole
from ..clips.words import kept_by_run
from ..command import say

_FILE = "captions.json"
_SAY_EVERY = 256

CaptionEncoder = UMT5Prompts | HashedPrompts


class CaptionTable(nn.Module):
    """Ids of captions `(..., 1)` to their embeddings, as the encoder's `embed` gives them at inference.

    Id 0 is no text. It has no parameters, and networks of a stage share one; nothing but a few recent
    embeddings is held in memory.
    """

    def __init__(self, prompts: CaptionEncoder, no_text: str = "", run_dir: Path | None = None) -> None:
        super().__init__()
        self.prompts, self.run_dir = prompts, run_dir
        self.captions: list[str] = [no_text]
        self._ids: dict[str, int] = {}
        if run_dir is not None:
            self._number(run_captions(run_dir))

    def __deepcopy__(self, memo: dict[int, Any]) -> "CaptionTable":
        # nothing of it is trained, and copies of a network must know captions that come later, too
        return self

    def add(self, captions: Iterable[str]) -> None:
        """Take up captions and encode them; called by all processes together, with the same ones.

        A run that goes on keeps the numbers it has given: streams that run on refer to them.

        Raises:
            CheckpointError: the text encoder is needed and cannot be loaded, or its cache cannot be written.
        """
        process = PartialState()
        wanted = list(dict.fromkeys(captions))
        self._number(wanted)
        mine = [self.captions[0], *wanted][process.process_index :: process.num_processes]
        for done, caption in enumerate(mine, 1):
            self.prompts.prepare(caption)
            if process.is_main_process and done % _SAY_EVERY == 0:
                say(f"captions: {done} of {len(mine)} encoded")
        self.prompts.free()
        if self.run_dir is not None and process.is_main_process:
            text = json.dumps(self.captions[1:], ensure_ascii=False, indent=0)
            write_whole(self.run_dir / _FILE, lambda part: part.write_text(text, encoding="utf-8"))
        process.wait_for_everyone()

    def ids(self, caption: str) -> Tensor:
        """The id `(1,)` of a caption that was added."""
        return torch.tensor([self._ids[caption]])

    def build(self, captions: Sequence[str], rank: int, world: int) -> None:
        """See `distill.clips.words.CaptionIds`: all is done by `add`."""

    def load(self, captions: Sequence[str]) -> list[Tensor]:
        return [self.ids(caption) for caption in captions]

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings `(..., words, dim)` of ids `(..., 1)`, float32, zero past the end of each caption."""
        numbers = ids[..., 0].flatten().tolist()
        found = {i: self.prompts.embed(self.captions[i]).to(ids.device) for i in set(numbers)}
        return torch.cat([found[i] for i in numbers]).unflatten(0, ids.shape[:-1])

    def _number(self, captions: Iterable[str]) -> None:
        for caption in captions:
            if caption not in self._ids:
                self._ids[caption] = len(self.captions)
                self.captions.append(caption)


def run_captions(run_dir: Path) -> list[str]:
    """The captions of a run that has checkpoints, in the order of their numbers; none of a new one.

    Raises:
        CheckpointError: the run has checkpoints whose captions cannot be read.
    """
    return kept_by_run(run_dir / _FILE, _texts) or []


def _texts(text: str) -> list[str]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(caption, str) for caption in found):
        raise ValueError("expected a list of texts")
    return found
