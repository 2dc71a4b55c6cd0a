"""A loaded model that opens streams."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder, Vocabulary, Words
from models.video_codec import VideoCodec
from models.video_tokenizer import VideoTokenizer

from .checkpoint import (
    MODEL,
    TOKENIZER,
    VOCABULARY,
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
from .noise import NoiseSource
from .prompts import PromptEncoder, WordPrompts
from .session import Opening, Session
from .settings import StreamSettings
from .snapshot import check_fits, load_snapshot_state, read_snapshot
from .suggest import unknown_key
from .timeline import Start, StreamEvent, Timeline, check_prompt
from .video_read import read_clip, read_image
from .wan.config import config_file, wan_model_names

if TYPE_CHECKING:
    from .wan.load import WanOptions

WEIGHTS = Path(__file__).parent / "weights"
_CACHED_PROMPTS = 64
# keys and values of one prompt take 95 MB at Wan size in bfloat16
_CACHED_PROMPT_BYTES = 2**29
_MAX_START_FRAMES = 1 + 16 * 60


@dataclass(frozen=True)
class Networks:
    """The trained parts of a model, in evaluation mode on one device. A model without tracks has no motion
    encoder; `text_encoder` is None where prompts are encoded elsewhere.
    """

    tokenizer: VideoCodec
    dit: CausalDiT
    text_encoder: TextEncoder | None
    motion_encoder: MotionEncoder | None


class StreamConfig(Protocol):
    """What a pipeline reads of a model's config, whatever its family."""

    @property
    def plan(self) -> ChunkPlan:
        """Chunks, sink and window that the model was trained with."""
        ...

    @property
    def sampling(self) -> StreamSettings:
        """The settings that a stream opens with."""
        ...

    def geometry(self) -> LatentGeometry:
        """Picture and latent sizes."""
        ...


class Pipeline:
    """Opens streams. Sessions share its weights and nothing else; made by `load_pipeline`.

    Attributes:
        name: how the model was asked for.
        config: its `config.yaml`.
        prompts: what encodes its prompts.
        digest: fingerprint of the weights; snapshots and renders name it.
    """

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        networks: Networks,
        prompts: PromptEncoder | Vocabulary,
        digest: str,
    ) -> None:
        self.name, self.config, self.digest = name, config, digest
        if isinstance(prompts, Vocabulary):
            assert networks.text_encoder is not None
            prompts = WordPrompts(networks.text_encoder, prompts)
        self.prompts: PromptEncoder = prompts
        self.tokenizer, self.dit = networks.tokenizer, networks.dit
        self.text_encoder, self.motion_encoder = networks.text_encoder, networks.motion_encoder
        self.geometry: LatentGeometry = config.geometry()
        self.settings: StreamSettings = config.sampling
        self._texts: OrderedDict[str, TextContext] = OrderedDict()
        self._null_text: TextContext | None = None

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

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of a word-level model.

        Raises:
            InputError: the model reads any text.
        """
        if not isinstance(self.prompts, WordPrompts):
            raise InputError(f"model {self.name}: has no vocabulary, it reads any text")
        return self.prompts.vocabulary

    @property
    def null_text(self) -> TextContext:
        """Cross-attention keys and values of no prompt, for guidance; made when first asked for."""
        if self._null_text is None:
            self._null_text = self._embed(self.prompts.null())
        return self._null_text

    def words(self, prompt: str) -> Words:
        """A prompt as the model sees it: which words it does not know, how many did not fit."""
        return self.prompts.words(prompt)

    def text(self, prompt: str) -> TextContext:
        """Cross-attention keys and values of a prompt; the last 64 prompts are kept.

        Raises:
            InputError: an empty or absurdly long prompt.
        """
        check_prompt(prompt)
        # sessions of other threads use the same cache: what was found is held, and never looked up again
        text = self._texts.pop(prompt, None)
        if text is None:
            text = self._embed(self.prompts.embed(prompt))
        self._texts[prompt] = text
        room = _CACHED_PROMPT_BYTES // max(1, text.size_bytes())
        if len(self._texts) > max(2, min(_CACHED_PROMPTS, room)):
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
        """
        if motion is not None and not motion.is_empty and self.motion_encoder is None:
            raise InputError(f"motion: {self.name} was not trained with tracks")
        merged = self.settings.updated(settings or {})
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

    @torch.no_grad()
    def _embed(self, embedding: Tensor) -> TextContext:
        return self.dit.embed_text(embedding.to(self.device, self.dtype))

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
    wan: "WanOptions | None" = None,
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
    directory = find_model(name)
    chosen = _device(device)
    if dtype is None:
        dtype = torch.float32 if chosen.type == "cpu" else torch.bfloat16
    wan_config = config_file(name)
    if wan_config is not None:
        from .wan.load import load_wan_pipeline

        return load_wan_pipeline(str(name), wan_config, chosen, dtype, wan)
    if wan is not None:
        raise InputError(f"model {name}: is not of the Wan family, it takes no weights or overrides")
    config = read_config(directory)
    tokenizer_tensors = read_tensors(directory / TOKENIZER)
    check_tokenizer(tokenizer_tensors, config, str(directory / TOKENIZER))
    tensors = read_tensors(directory / MODEL)
    # built without memory for random values first: everything is overwritten
    with torch.device(chosen):
        tokenizer, dit = VideoTokenizer(config.tokenizer), CausalDiT(config.dit)
        text, motion = TextEncoder(config.text_encoder), MotionEncoder(config.motion_encoder)
    load_into(tokenizer, tokenizer_tensors, str(directory / TOKENIZER))
    for part, module in (
        ("dit", dit),
        ("text_encoder", text),
        ("motion_encoder", motion),
    ):
        load_into(module, part_of(tensors, part), f"{directory / MODEL} ({part})")
        module.to(dtype).eval().requires_grad_(False)
    tokenizer.eval().requires_grad_(False)
    vocabulary = read_vocabulary(directory / VOCABULARY, config.text_encoder)
    digest = tensor_digest({**tensors, **{f"tokenizer.{k}": v for k, v in tokenizer_tensors.items()}})
    return Pipeline(str(name), config, Networks(tokenizer, dit, text, motion), vocabulary, digest)


def model_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.yaml"))


def find_model(name: str | Path) -> Path:
    """The directory of a model by name or path; of a Wan-family name, its config file.

    Raises:
        CheckpointError: neither a known name nor a directory.
    """
    if str(name) in model_names():
        return WEIGHTS / str(name)
    if Path(name).is_dir():
        return Path(name)
    found = config_file(name)
    if found is not None:
        return found
    known = [*model_names(), *wan_model_names()]
    raise CheckpointError(f"{unknown_key(str(name), known, noun='model')}, and no such directory")


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
