"""A loaded model that opens streams."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder, Vocabulary, Words
from models.video_tokenizer import VideoTokenizer

from .checkpoint import (
    MODEL,
    TOKENIZER,
    VOCABULARY,
    CheckpointConfig,
    check_tokenizer,
    load_into,
    part_of,
    read_config,
    read_tensors,
    read_vocabulary,
)
from .decoder import encode_frames
from .digest import tensor_digest
from .errors import CheckpointError, InputError
from .geometry import LatentGeometry
from .motion import TrackSet
from .session import Opening, Session
from .settings import StreamSettings
from .snapshot import check_fits, load_snapshot_state, read_snapshot
from .suggest import unknown_key
from .timeline import Start, StreamEvent, Timeline, check_prompt
from .video_read import read_clip, read_image

WEIGHTS = Path(__file__).parent / "weights"
_CACHED_PROMPTS = 64
_MAX_START_FRAMES = 1 + 16 * 60


@dataclass(frozen=True)
class Networks:
    """The trained parts of a model, in evaluation mode on one device."""

    tokenizer: VideoTokenizer
    dit: CausalDiT
    text_encoder: TextEncoder
    motion_encoder: MotionEncoder


class Pipeline:
    """Opens streams. Sessions share its weights and nothing else; made by `load_pipeline`.

    Attributes:
        name: how the model was asked for.
        config: its `config.yaml`.
        digest: fingerprint of the weights; snapshots and renders name it.
    """

    def __init__(
        self, name: str, config: CheckpointConfig, networks: Networks, vocabulary: Vocabulary, digest: str
    ) -> None:
        self.name, self.config, self.digest, self.vocabulary = name, config, digest, vocabulary
        self.tokenizer, self.dit = networks.tokenizer, networks.dit
        self.text_encoder, self.motion_encoder = networks.text_encoder, networks.motion_encoder
        self.geometry: LatentGeometry = config.geometry()
        self.settings: StreamSettings = config.sampling
        self._texts: OrderedDict[str, TextContext] = OrderedDict()
        self.null_text = self._embed(torch.zeros(1, config.text_encoder.length, dtype=torch.long))

    @property
    def device(self) -> torch.device:
        return self.dit.head.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.head.head.weight.dtype

    @property
    def plan(self) -> ChunkPlan:
        """The chunk plan the model was trained with."""
        return self.config.plan

    def words(self, prompt: str) -> Words:
        """A prompt as the model sees it: which words it does not know, how many did not fit."""
        return self.vocabulary.encode(prompt, self.config.text_encoder.length)

    def text(self, prompt: str) -> TextContext:
        """Cross-attention keys and values of a prompt; the last 64 prompts are kept.

        Raises:
            InputError: an empty or absurdly long prompt.
        """
        check_prompt(prompt)
        # sessions of other threads use the same cache: what was found is held, and never looked up again
        text = self._texts.pop(prompt, None)
        if text is None:
            text = self._embed(self.words(prompt).ids[None])
        self._texts[prompt] = text
        if len(self._texts) > _CACHED_PROMPTS:
            self._texts.popitem(last=False)
        return text

    def open(
        self,
        prompt: str,
        seed: int = 0,
        motion: TrackSet | None = None,
        image: str | Path | Tensor | None = None,
        video: str | Path | Tensor | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Session:
        """Begin a stream.

        Args:
            prompt: what to show.
            seed: every draw of the stream is a function of it.
            motion: tracks from frame 0 on.
            image, video: what the stream starts from (one of them): a file, or uint8 `(H, W, 3)` / `(T, H, W,
                3)`. Of a clip, the frames that fill whole chunks are kept.
            settings: `StreamSettings` by name, over the checkpoint's.

        Raises:
            InputError: bad prompt, settings, image or clip.
        """
        merged = self.settings.updated(settings or {})
        opening = self._opening(image, video)
        if opening.latents is not None and opening.chunk(0, self.plan.length(0)) is None:
            raise InputError(
                f"start: expected at least {self.geometry.frames(self.plan.length(0))} frames for the first "
                f"chunk of this model, found {self.geometry.frames(opening.latents.shape[1])}"
            )
        session = Session(self, prompt, merged, seed, opening)
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

    @torch.no_grad()
    def _embed(self, ids: Tensor) -> TextContext:
        return self.dit.embed_text(self.text_encoder(ids.to(self.device)))

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
    name: str | Path = "tiny", device: str = "auto", dtype: torch.dtype | None = None
) -> Pipeline:
    """Load a model by name (see `model_names`) or from a checkpoint directory.

    Args:
        device: `auto` takes a GPU where there is one.
        dtype: of the diffusion network; default bfloat16 on a GPU, float32 on the CPU. The tokenizer stays
            float32.

    Raises:
        CheckpointError: unknown name, or weights that are missing, damaged or do not fit; InputError: no such
            device.
    """
    directory = find_model(name)
    chosen = _device(device)
    if dtype is None:
        dtype = torch.float32 if chosen.type == "cpu" else torch.bfloat16
    config = read_config(directory)
    tokenizer_tensors = read_tensors(directory / TOKENIZER)
    check_tokenizer(tokenizer_tensors, config, str(directory / TOKENIZER))
    tensors = read_tensors(directory / MODEL)
    # built without memory for random values first: everything is overwritten
    with torch.device(chosen):
        networks = Networks(
            VideoTokenizer(config.tokenizer),
            CausalDiT(config.dit),
            TextEncoder(config.text_encoder),
            MotionEncoder(config.motion_encoder),
        )
    load_into(networks.tokenizer, tokenizer_tensors, str(directory / TOKENIZER))
    for part, module in (
        ("dit", networks.dit),
        ("text_encoder", networks.text_encoder),
        ("motion_encoder", networks.motion_encoder),
    ):
        load_into(module, part_of(tensors, part), f"{directory / MODEL} ({part})")
        module.to(dtype).eval().requires_grad_(False)
    networks.tokenizer.eval().requires_grad_(False)
    vocabulary = read_vocabulary(directory / VOCABULARY, config.text_encoder)
    digest = tensor_digest({**tensors, **{f"tokenizer.{k}": v for k, v in tokenizer_tensors.items()}})
    return Pipeline(str(name), config, networks, vocabulary, digest)


def model_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.yaml"))


def find_model(name: str | Path) -> Path:
    """The directory of a model by name or path.

    Raises:
        CheckpointError: neither a known name nor a directory.
    """
    if str(name) in model_names():
        return WEIGHTS / str(name)
    if Path(name).is_dir():
        return Path(name)
    raise CheckpointError(f"{unknown_key(str(name), model_names(), noun='model')}, and no such directory")


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise InputError(f"device {device}: holds no values, expected cpu or a GPU")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {str(error).splitlines()[0]}") from None
    return chosen


__all__ = ["Networks", "Pipeline", "StreamEvent", "find_model", "load_pipeline", "model_names"]
