"""Clips of the procedural world, encoded once: latents, captions and tracks in shards on disk.

A diffusion stage sees each clip many times at random offsets, so encoding is paid once. A shard is a function
of (fingerprint, index) alone; it is written beside its final name and renamed, so that an interrupted build
goes on where it stopped.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.tensor_file import write_tensors
from models.text_encoder import Vocabulary
from models.video_codec import VideoCodec
from models.video_tokenizer import VideoTokenizer
from streamgen.engine.geometry import LatentGeometry

from .command import say
from .config import Checked, ClipFrames, Count, Natural, differing_keys
from .files import write_json
from .pixels import to_float
from .precision import multiplies_bfloat16
from .scenes import SceneBatch, SceneConfig, SceneGenerator
from .scenes.turnings import turning_latents

_SHARD = 128
#: To be raised when shards get other fields or other values.
_REVISION = 2
#: What a cache was made of, beside its shards.
_MADE_OF = "world.json"


@dataclass(frozen=True)
class CacheConfig(Checked, section="cache"):
    """What to encode: `clips` clips of `frames` frames (1 + 4k), and `images` single frames, from `seed`."""

    directory: str = "runs/cache"
    clips: Count = 12288
    frames: ClipFrames = 81
    images: Count = 24576
    seed: Natural = 1000


@dataclass(frozen=True)
class LatentClips:
    """Encoded clips on the host.

    `latents (N, T, C, h, w)` float16, normalised; `words (N, 2, L)` ids of the captions before and after the
    change; `switch (N,)` the latent frame from which the second caption holds (T if none); `points (N, K, F,
    2)` float16, outside [0, 1] where the picture has lost one; `visible`, `dragged (N, K, F)` bool over F
    pixel frames; `camera (N, F)` bool where the camera moves; `background` and, of those, `pinned (N, K)`
    bool; `motions (N, 2, O)` int8 index into `scenes.MOTIONS` of each object before and after the change, -1
    for no object or one that nobody has named; `turning (N, O, T)` bool where an object's own path turns.
    """

    latents: Tensor
    words: Tensor
    switch: Tensor
    points: Tensor
    visible: Tensor
    dragged: Tensor
    camera: Tensor
    background: Tensor
    pinned: Tensor
    motions: Tensor
    turning: Tensor


class LatentCache:
    """Builds and loads the cache for one tokenizer, vocabulary and world."""

    def __init__(
        self,
        config: CacheConfig,
        scenes: SceneConfig,
        tokenizer: VideoTokenizer,
        tokenizer_digest: str,
        vocabulary: Vocabulary,
        text_length: int,
    ) -> None:
        self.config, self.scenes = config, scenes
        self.tokenizer, self.vocabulary, self.text_length = tokenizer, vocabulary, text_length
        self.made_of = {
            "revision": _REVISION,
            "tokenizer": tokenizer_digest,
            "scenes": asdict(scenes),
            "vocabulary": hashlib.sha256(" ".join(vocabulary.words).encode()).hexdigest()[:16],
            "text_length": text_length,
            "seed": config.seed,
            "frames": config.frames,
        }
        key = json.dumps(self.made_of, sort_keys=True)
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.directory = Path(config.directory) / self.fingerprint

    def build(self, rank: int, world: int, device: torch.device) -> None:
        """Encode this process' share of the missing shards; says which other caches lie beside."""
        if rank == 0 and not self.directory.exists():
            for line in self.others():
                say(line)
        self.directory.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            write_json(self.directory / _MADE_OF, self.made_of)
        generator = SceneGenerator(self.scenes, device)
        # shared out before looking: others write meanwhile, so what is missing differs between processes
        mine = [shard for shard in self._shards()[rank::world] if not shard[0].exists()]
        for done, (path, count, frames, seed) in enumerate(mine):
            tensors = self._encode(generator.sample(count, frames, seed))
            part = path.with_suffix(f".{os.getpid()}.part")
            write_tensors({name: value.contiguous() for name, value in tensors.items()}, part)
            part.rename(path)
            if rank == 0 and (done + 1) % 16 == 0:
                say(f"latent cache {self.fingerprint}: {done + 1} of {len(mine)} shards")

    def others(self) -> list[str]:
        """A line for each cache in the same folder that was made of something else, with what differs: they
        are not used.
        """
        lines = []
        for file in sorted(self.directory.parent.glob(f"*/{_MADE_OF}")):
            if file.parent == self.directory:
                continue
            try:
                other = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                other = {}
            differing = differing_keys(other, json.loads(json.dumps(self.made_of)))
            what = "; ".join(f"{key} there {old}, here {new}" for key, (old, new) in differing.items())
            lines.append(f"latent cache {file.parent} is of another mixture and not used: {what}")
        return lines

    def load(self, images: bool) -> LatentClips:
        """All clips (or single frames) in memory."""
        wanted = [path for path, _, frames, _ in self._shards() if (frames == 1) == images]
        shards = [load_file(path) for path in wanted]
        return LatentClips(**{name: torch.cat([shard[name] for shard in shards]) for name in shards[0]})

    def _shards(self) -> list[tuple[Path, int, int, int]]:
        """(path, clips, frames, scene seed) of every shard."""
        out = []
        for kind, total, frames in (
            ("clips", self.config.clips, self.config.frames),
            ("images", self.config.images, 1),
        ):
            size = _SHARD if frames > 1 else _SHARD * 16
            for index, start in enumerate(range(0, total, size)):
                seed = self.config.seed * 1_000_003 + index * 2 + (frames == 1)
                out.append(
                    (
                        self.directory / f"{kind}-{index:05d}.safetensors",
                        min(size, total - start),
                        frames,
                        seed,
                    )
                )
        return out

    @torch.no_grad()
    def _encode(self, scene: SceneBatch) -> dict[str, Tensor]:
        geometry = LatentGeometry(scene.video.shape[2], scene.video.shape[3])
        frames = scene.video.shape[1]
        words = [
            torch.stack(
                [self.vocabulary.encode(text, self.text_length).ids for text in (captions[0], captions[-1])]
            )
            for captions in scene.captions
        ]
        changed = scene.segment_start[:, 1].cpu()
        switch = torch.tensor(
            [geometry.latent_of(int(f)) if f < frames else geometry.latent_frames(frames) for f in changed]
        )
        return {
            "latents": encode_clips(self.tokenizer, scene.video, scene.video.device),
            "words": torch.stack(words).to(torch.int16),
            "switch": switch.to(torch.int16),
            "points": scene.points.half().cpu(),
            "visible": scene.visible.cpu(),
            "dragged": scene.dragged.cpu(),
            "camera": scene.camera.cpu(),
            "background": (scene.track_object < 0).cpu(),
            "pinned": scene.pinned.cpu(),
            "motions": scene.labels["motion"].to(torch.int8).cpu(),
            "turning": turning_latents(scene.centres, _own_way(scene)).cpu(),
        }


def _own_way(scene: SceneBatch) -> Tensor:
    """Where each object `(B, O, F)` is there and neither dragged nor carried by the camera."""
    slots = torch.arange(scene.centres.shape[1], device=scene.centres.device)
    is_its = scene.track_object[:, None] == slots[:, None]
    dragged = (scene.dragged[:, None] & is_its[..., None]).any(2)
    used = slots < scene.labels["count"][:, None].to(slots.device)
    return used[..., None] & ~dragged & ~scene.camera[:, None]


@torch.no_grad()
def encode_clips(tokenizer: VideoCodec, videos: Tensor, device: torch.device, at_once: int = 4) -> Tensor:
    """Normalised latents, float16 `(N, T, C, h, w)` on the CPU, of clips uint8 `(N, F, H, W, 3)`."""
    latents = []
    for video in videos.split(at_once):
        pixels = to_float(video.to(device))
        # half the time where it is not emulated; the posterior mean itself stays float32
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=multiplies_bfloat16(pixels.device)):
            mean = tokenizer.encode(pixels).mean.float()
        latents.append(tokenizer.normalize(mean, 0).half().cpu())
    return torch.cat(latents)
