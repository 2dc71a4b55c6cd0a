"""Beginnings of clips that streams go on from: what they show, and that it moves, is known and under way."""

from dataclasses import replace

import torch
from torch import Tensor

from models.text_encoder import Vocabulary
from models.video_codec import VideoCodec

from ..latent_cache import encode_clips
from ..scenes import SceneConfig, SceneGenerator
from ..scenes.generator import SceneBatch
from ..words.told import ATTRIBUTES, ToldBatch, is_test

#: Clips that a run keeps to choose from.
COUNT = 512
#: Clips that are drawn at once.
_AT_ONCE = 64
_SEED = 6_000_047


class Openings:
    """Clips of the world in which nothing changes, nothing is dragged and the camera rests.

    Args:
        scenes: the world.
        codec: frozen, encodes clips.
        vocabulary, length: of the text encoder, as in `words.told`.
        frames: latent frames of each.
        count: clips to choose from.
        device: of the codec.
    """

    def __init__(
        self,
        scenes: SceneConfig,
        codec: VideoCodec,
        vocabulary: Vocabulary,
        length: int,
        frames: int,
        device: torch.device,
        count: int,
    ) -> None:
        quiet = replace(
            scenes,
            change_probability=0.0,
            drag_probability=0.0,
            camera_probability=0.0,
            include_held_out=False,
        )
        generator, seed = SceneGenerator(quiet, device), _SEED
        latents: list[Tensor] = []
        ids: list[Tensor] = []
        labels: list[dict[str, Tensor]] = []
        while len(ids) < count:
            scene = generator.sample(_AT_ONCE, 4 * frames - 3, seed)
            seed += 1
            captions = [told[0] for told in scene.captions]
            rows = torch.tensor([row for row, caption in enumerate(captions) if not is_test(caption)])
            ids += [vocabulary.encode(captions[row], length).ids for row in rows.tolist()]
            latents.append(encode_clips(codec, scene.video[rows.to(device)], device))
            labels.append({name: label[rows] for name, label in _shown(scene).items()})
        self.latents, self.ids = torch.cat(latents), torch.stack(ids)
        self.labels = {name: torch.cat([part[name] for part in labels]) for name in ATTRIBUTES}

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, ToldBatch]:
        """Clean latents `(size, T, C, h, w)` and captions, whose labels are all that the clips show, whether
        the caption says it or not. All on the CPU.
        """
        rows = torch.randint(len(self.ids), (size,), generator=generator)
        labels = {name: label[rows] for name, label in self.labels.items()}
        nowhere = torch.full_like(labels["shape"], -1)
        return self.latents[rows].float(), ToldBatch(self.ids[rows], nowhere, labels)


def _shown(scene: SceneBatch) -> dict[str, Tensor]:
    """What clips show of each object, classes `(B, O)` by attribute, the number of classes for no object."""
    found, used = {}, scene.labels["shape"][:, 0].cpu() >= 0
    for name, classes in ATTRIBUTES.items():
        label = scene.labels[name][:, 0].cpu()
        label = label[:, None].expand_as(used) if name == "background" else label
        found[name] = torch.where(used, label, len(classes))
    return found
