"""What stages call to train on own clips, on the procedural world, or on both by turns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState

from models.text_encoder import Vocabulary
from streamgen.pipeline import Pipeline

from ..config import require
from ..latent_cache import LatentCache, LatentClips
from ..mixture import PLASTIC, Turns
from ..samples import SHEETS, sample_sheets, show, stream
from ..scenes import caption_vocabulary
from .config import ClipFolderConfig
from .folder import ClipFolder
from .latents import OwnLatents
from .words import caption_words, run_vocabulary

_WORLD_FPS = 16
_SHEET_CLIPS = 8
#: Of a vocabulary; the rarest are left out. Ids of words are stored in 16 bits.
_MOST_WORDS = 30_000


class LatentData(NamedTuple):
    """What one kind of source has: `turns` says whether clips may have turnings (see `distill.windows`)."""

    clips: LatentClips
    images: LatentClips
    turns: bool


class LatentMix:
    """The world's clips, own ones, or both by turns; built by all processes together. `world` may be None
    where all are own ones.

    Raises:
        InputError: there are no usable own clips.
    """

    def __init__(
        self,
        world: LatentCache | None,
        own: OwnLatents | None,
        config: ClipFolderConfig | None,
        device: torch.device,
    ) -> None:
        self._share = 0.0 if config is None else config.share
        self._own = None if own is None else LatentData(*_loaded(own, device), turns=False)
        self._world = None
        if self._share < 1:
            assert world is not None
            self._world = LatentData(*_loaded(world, device), turns=True)

    @property
    def main(self) -> LatentData:
        """The own clips where there are some, else the world's."""
        return self.of(0)

    def of(self, step: int) -> LatentData:
        """What update `step` draws from, alike on all processes."""
        data = self._own if draws_own(self._share, step) else self._world
        assert data is not None
        return data


def open_folder(config: ClipFolderConfig | None, world_size: int) -> ClipFolder | None:
    """The folder of a stage's config, None where it has none.

    Raises:
        ConfigError: clips that share a model with the world have another size or rate.
        InputError: nothing usable in the folder.
    """
    if config is None:
        return None
    if config.share < 1:
        expected, found = (world_size, world_size, _WORLD_FPS), (config.height, config.width, config.fps)
        require(found == expected, "clips.height, width, fps", f"the world's {expected} at share < 1", found)
    return ClipFolder(config)


def stage_vocabulary(folder: ClipFolder | None, run_dir: str, start: Sequence[str] = ()) -> Vocabulary:
    """The words of the world, of the start of the training, and of own captions, as the clips' config has it;
    raises as `run_vocabulary`.
    """
    world = caption_vocabulary()
    if folder is None:
        return Vocabulary(tuple(dict.fromkeys((*world, *start))))
    config = folder.config
    known = world if config.world_words or config.share < 1 else []
    known = list(dict.fromkeys((*known, *start)))
    words = caption_words(folder.captions, known, config.min_count, _MOST_WORDS)
    return run_vocabulary(Path(run_dir), words, PartialState().is_main_process)


def picture_size(config: ClipFolderConfig | None, world_size: int) -> tuple[int, int, int]:
    """Height, width and frames per second of what a model is trained on."""
    if config is None:
        return world_size, world_size, _WORLD_FPS
    return config.height, config.width, config.fps


def clip_frames(config: ClipFolderConfig | None, world_frames: int) -> int:
    """Frames that every clip has of which a model may be trained."""
    if config is None:
        return world_frames
    return config.frames if config.share == 1 else min(config.frames, world_frames)


def draws_own(share: float, number: int) -> bool:
    """Whether update `number` draws own clips: `share` of all, spread evenly."""
    # not the stride by which kinds take turns: own clips are to get all kinds
    return Turns({"own": share, "world": 1 - share}, PLASTIC).at(number) == "own"


def preview_sheets(
    pipeline: Pipeline, folder: ClipFolder | None, out_dir: Path, streams: bool = True
) -> None:
    """Write contact sheets and clips: from the world's prompts, from own captions, or from both; `streams`
    says whether the model makes streams that can be switched and dragged.
    """
    if folder is not None:
        caption_sheet(pipeline, folder.captions, out_dir)
    if folder is None or folder.config.share < 1:
        sample_sheets(pipeline, out_dir, SHEETS if streams else ("prompts",))


def caption_sheet(pipeline: Pipeline, captions: Sequence[str], out_dir: Path, seconds: float = 2.0) -> None:
    """Write `captions.png`: streams from some of the captions, always the same ones."""
    distinct = list(dict.fromkeys(captions))
    chosen = distinct[:: max(1, len(distinct) // _SHEET_CLIPS)][:_SHEET_CLIPS]
    frames = max(1, round(seconds * pipeline.geometry.fps))
    videos = [stream(pipeline, caption, seed, frames) for seed, caption in enumerate(chosen)]
    show(videos, chosen, out_dir / "captions.png", pipeline.geometry.fps)


def without_objects(metrics: Mapping[str, float], config: ClipFolderConfig | None) -> dict[str, float]:
    """Metrics without those of objects, which nobody has marked in own clips."""
    own = config is not None and config.share == 1
    return {name: value for name, value in metrics.items() if not (own and "object" in name)}


def _loaded(source: LatentCache | OwnLatents, device: torch.device) -> tuple[LatentClips, LatentClips]:
    process = PartialState()
    source.build(process.process_index, process.num_processes, device)
    process.wait_for_everyone()
    return source.load(images=False), source.load(images=True)
