"""A loaded model that opens streams."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .engine.decoder import encode_frames
from .engine.noise import NoiseSource
from .errors import InputError
from .families import load_parts
from .motion.tracks import TrackSet
from .stream.model import StreamModel
from .stream.session import Opening, Session
from .stream.snapshot import check_fits, load_snapshot_state, read_snapshot
from .stream.timeline import Start, Timeline
from .video.read import read_clip, read_image
from .wan.options import WanOptions

_MAX_START_FRAMES = 1 + 16 * 60


class Pipeline(StreamModel):
    """Opens streams. Sessions share its weights and nothing else; made by `load_pipeline`."""

    def open(
        self,
        prompt: str,
        seed: int = 0,
        motion: TrackSet | None = None,
        image: str | Path | Tensor | None = None,
        video: str | Path | Tensor | None = None,
        settings: Mapping[str, Any] | None = None,
        noise: NoiseSource | None = None,
    ) -> Session:
        """Begin a stream.

        Args:
            prompt: what to show.
            seed: every draw of the stream is a function of it.
            motion: tracks from frame 0 on.
            image, video: what the stream starts from (one of them): a file, or uint8 `(H, W, 3)` / `(T, H, W,
                3)`. Of a clip, the frames that fill whole chunks are kept.
            settings: `StreamSettings` by name, over the checkpoint's.
            noise: where all draws come from instead of the seed, recorded ones for instance.

        Raises:
            InputError: bad prompt, settings, image or clip, or tracks for a model that knows none.
            CheckpointError: a window that does not fit into memory.
        """
        if motion is not None and not motion.is_empty and self.motion_encoder is None:
            raise InputError(f"motion: {self.name} was not trained with tracks")
        merged = self.settings.updated(settings or {})
        if self.parts.check_memory is not None:
            self.parts.check_memory(merged.plan(self.plan))
        opening = self._opening(image, video)
        if opening.latents is not None and opening.chunk(0, self.plan.length(0)) is None:
            raise InputError(
                f"start: expected at least {self.geometry.frames(self.plan.length(0))} frames for the first "
                f"chunk of this model, found {self.geometry.frames(opening.latents.shape[1])}"
            )
        session = Session(self, prompt, merged, seed, opening, noise)
        if motion is not None and not motion.is_empty:
            session.controls.motion = motion
        return session

    def resume(self, path: str | Path) -> Session:
        """Go on with a stream that `Session.save` wrote.

        Raises:
            InputError: missing or damaged file, or one of another model.
        """
        snapshot, _ = read_snapshot(Path(path), self.device)
        check_fits(snapshot.meta, self)
        session = Session(self, snapshot.meta["prompt"], self.settings, snapshot.meta["seed"])
        load_snapshot_state(session, snapshot)
        return session

    def replay(
        self,
        timeline: Timeline,
        image: str | Path | Tensor | None = None,
        video: str | Path | Tensor | None = None,
    ) -> Session:
        """A session that goes through a recorded timeline again; pictures are bit-exact on the same device
        and threads. A timeline does not hold pictures: `image` or `video` is what the stream started from.

        Raises:
            InputError: a timeline without an opening event, or other pictures than the stream started from.
        """
        if not timeline.events or timeline.events[0].event.prompt is None:
            raise InputError("timeline: expected an opening event with a prompt, found none")
        opening = timeline.events[0].event
        session = self.open(
            str(opening.prompt), timeline.seed, opening.motion, image, video, opening.settings
        )
        expected, found = timeline.start, session.timeline.start
        if expected != found:
            raise InputError(
                f"timeline: image or video: expected {expected or 'none'}, found {found or 'none'}"
            )
        for entry in timeline.events[1:]:
            receipt = session.submit(entry.event, entry.frame)
            if receipt.status == "refused":
                raise InputError(f"timeline: event at frame {entry.frame}: {receipt.reason}")
        return session

    def start_pictures(
        self, image: str | Path | Tensor | None = None, video: str | Path | Tensor | None = None
    ) -> Tensor | None:
        """The pictures that a stream with this image or clip starts from, uint8 `(T, H, W, 3)`; None without
        either.

        Raises:
            InputError: both are given, or one that cannot be read or does not fit.
        """
        if image is not None and video is not None:
            raise InputError("start: expected an image or a clip, found both")
        if image is None and video is None:
            return None
        height, width = self.geometry.height, self.geometry.width
        if isinstance(image, Tensor):
            frames = image[None]
        elif image is not None:
            frames = torch.from_numpy(read_image(image, height, width))[None]
        elif isinstance(video, Tensor):
            frames = video
        else:
            clip = read_clip(str(video), self.geometry.fps, height, width, _MAX_START_FRAMES)
            frames = torch.from_numpy(np.ascontiguousarray(clip))
        fits = frames.dim() == 4 and len(frames) > 0 and tuple(frames.shape[1:]) == (height, width, 3)
        if frames.dtype != torch.uint8 or not fits:
            raise InputError(
                f"start: expected uint8 frames of {height}x{width}x3, found {frames.dtype} "
                f"{tuple(frames.shape)}"
            )
        # whole latent frames only: a padded tail would freeze the picture for up to three frames
        return frames[: 1 + (len(frames) - 1) // self.geometry.temporal * self.geometry.temporal]

    def _opening(self, image: str | Path | Tensor | None, video: str | Path | Tensor | None) -> Opening:
        frames = self.start_pictures(image, video)
        if frames is None:
            return Opening()
        return Opening(encode_frames(self.tokenizer, frames).to(self.dtype), Start.of(frames))


def load_pipeline(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    wan: WanOptions | None = None,
) -> Pipeline:
    """Load a model by name (see `model_names`) or from a checkpoint directory.

    Args:
        device: `auto` takes a GPU where there is one.
        dtype: of the diffusion network; default bfloat16 on a GPU, float32 on the CPU. The tiny family's
            tokenizer stays float32.
        wan: for a model of the Wan family (`wan_model_names`), where its weights are.

    Raises:
        CheckpointError: unknown name, or weights that are missing, damaged or do not fit; InputError: no such
            device.
    """
    return Pipeline(load_parts(name, device, dtype, wan))
