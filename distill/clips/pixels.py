"""Own clips as the tokenizer stage takes them: windows of pictures at any place."""

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional

from ..config import require
from ..pixels import to_float
from .folder import ClipFolder, require_length
from .store import Tensors


class OwnPixels:
    """The pictures of a folder's clips, kept decoded on disk; a batch reads only what it needs of them.

    Part of the clips are held out, chosen by their content, so that another clip in the folder changes little
    and no process differs: at least one where there are two and `clips.held_out` is above 0.
    """

    def __init__(self, folder: ClipFolder) -> None:
        self.folder, self.config = folder, folder.config
        # the shelf is shared by all lengths of pieces, but what is too short is a failure of one of them
        self._shelf = folder.shelf("pixels", self.config.frames)
        self._training: list[tuple[str, int]] = []
        self._held_out: list[tuple[str, int]] = []

    def build(self, rank: int, world: int) -> None:
        """Decode this process' share of what is missing."""

        def compute(frames: Tensor) -> Tensors:
            require_length(frames, self.config)
            return {"video": frames}

        self.folder.build(self._shelf, compute, rank, world)

    def open(self) -> None:
        """Find what there is, once all processes have built; raises InputError where nothing is usable."""
        keys = sorted({clip.key for clip in self.folder.settle(self._shelf)})
        clips = [(key, self._shelf.length(key, "video")) for key in keys]
        # keys are digests, so their order is as good as drawn
        count = round(self.config.held_out * len(clips))
        count = min(max(count, int(self.config.held_out > 0)), len(clips) - 1)
        self._held_out, self._training = clips[:count] or clips, clips[count:]

    def sample(
        self, batch: int, frames: int, seed: int, height: int | None = None, held_out: bool = False
    ) -> Tensor:
        """Windows of `frames` frames at any place of any clip, long clips more often; a function of `seed`.

        Returns:
            float `(B, T, 3, H, W)` in [-1, 1]; with `height` scaled to it, the width a multiple of 16.

        `frames` is at most `clips.frames`.
        """
        clips = self._held_out if held_out else self._training
        generator = torch.Generator().manual_seed(seed)
        rooms = torch.tensor([length - frames + 1 for _, length in clips])
        places = torch.randint(int(rooms.sum()), (batch,), generator=generator)
        ends = rooms.cumsum(0)
        rows = torch.searchsorted(ends, places, right=True)
        starts = places - (ends - rooms)[rows]
        windows = [
            self._shelf.part(clips[row][0], "video", start, start + frames)
            for row, start in zip(rows.tolist(), starts.tolist(), strict=True)
        ]
        video = to_float(torch.stack(windows))
        return video if height in (None, self.config.height) else _scaled(video, int(height or 0))


def open_pixels(folder: ClipFolder, frames: int) -> OwnPixels:
    """The pictures of a folder, decoded by all processes together, for windows of up to `frames` frames.

    Raises:
        ConfigError: pieces of clips are shorter than that.
        InputError: no clip is usable.
    """
    longest = folder.config.frames
    require(frames <= longest, "data.frames", f"<= clips.frames ({longest})", frames)
    pixels, process = OwnPixels(folder), PartialState()
    pixels.build(process.process_index, process.num_processes)
    process.wait_for_everyone()
    pixels.open()
    return pixels


def _scaled(video: Tensor, height: int) -> Tensor:
    rows, columns = video.shape[-2:]
    width = max(16, round(height * columns / rows / 16) * 16)
    flat = functional.interpolate(video.flatten(0, 1), (height, width), mode="bilinear", antialias=True)
    return flat.clamp(-1.0, 1.0).unflatten(0, video.shape[:2])
