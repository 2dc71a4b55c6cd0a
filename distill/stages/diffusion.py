"""What the stages of diffusion models share, whatever the family of the model."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.text_encoder import TextEncoder
from streamgen.pipeline import Pipeline

from ..clips.training import LatentMix
from ..config import require
from ..evaluation.intervals import Figure
from ..families import DiffusionRun, NetworkSpec, TinyFamily, family_of
from ..families.family import N
from ..flow import FlowNetwork
from ..latent_cache import LatentClips
from ..stage import Stage, Tick
from ..words.probes import binding_probes, check_gate, in_words, is_of_the_world
from ..words.told import CaptionSampler, ToldBatch

# Objects of the captions that a text encoder is kept telling apart: one to three, about as often.
_OBJECTS = (0.3, 0.4, 0.3)


class DiffusionStage(Stage):
    """The family of the model and the encoded clips of a stage; `network` is what it exports.

    Raises:
        ConfigError, CheckpointError, InputError: see `distill.families.Family`.
    """

    # inputs, outputs, embeddings and modulations
    edges = (
        *("patch_embedding", "head", "modulation", "embedding.weight", "guidance_embedding.0"),
        *("temporal", "projection", "time_", "norm", "writer_"),
    )
    #: Whether the stage adds `told_loss` to its own, as `words.weight` asks for.
    keeps_words = False
    network: FlowNetwork
    latents: LatentMix
    clips: LatentClips
    images: LatentClips

    def __init__(self, config: DiffusionRun, device: torch.device) -> None:
        self.run, self.device = config, device
        require(
            self.keeps_words or config.words.weight == 0,
            "words.weight",
            "0 in this stage, which has no such term",
            config.words.weight,
        )
        self.family = family_of(config)(config, device)
        self._captions: CaptionSampler | None = None

    @classmethod
    @abstractmethod
    def specs(cls, config: Any) -> Mapping[str, NetworkSpec[Any]]:
        """The networks of the stage by name."""

    @classmethod
    def networks(cls, config: DiffusionRun) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """See `Stage`; the codec is one of the frozen ones."""
        family, specs = family_of(config), cls.specs(config)
        made = family.blank(config, specs)
        frozen = {name: module for name, module in made.items() if specs[name].frozen}
        trained = {name: module for name, module in made.items() if not specs[name].frozen}
        return trained, frozen | {"codec": family.blank_codec(config)}

    def build(self, name: str, spec: NetworkSpec[N]) -> N:
        """The network `name`, on the device or as frozen ones are held, from its start."""
        if not spec.frozen:
            return self.family.network(spec)
        return self.family.network(spec, self.run.frozen.of(name)).requires_grad_(False).eval()

    def load_clips(self) -> None:
        """Take the clips from the latent cache, which is built where it is missing.

        `latents` has all of them; `clips` and `images` are the own ones where there are some.
        """
        self.latents = self.family.clips()
        self.clips, self.images, _ = self.latents.main

    def modules(self) -> dict[str, nn.Module]:
        """See `Stage`: the first of the networks, which the stage exports."""
        return {next(iter(self.specs(self.run))): self.network}

    def told(self, tick: Tick) -> ToldBatch | None:
        """Captions for the heads of a text encoder that is trained along; None where there are none."""
        words, family = self.run.words, self.family
        if not words.weight or not isinstance(family, TinyFamily):
            return None
        if self._captions is None:
            scenes = replace(self.run.scenes, object_weights=_OBJECTS)
            length = self.run.network.text_length
            self._captions = CaptionSampler(family.vocabulary, length, scenes)
        generator = torch.Generator().manual_seed(tick.generator_seed("words"))
        return self._captions.draw(words.batch, generator)

    def binding(self) -> dict[str, Figure]:
        """The binding probes of the text encoder as it is now; none for one of other words than the world's,
        or one that is frozen.
        """
        family, encoder = self.family, self.network.text_encoder
        if not isinstance(family, TinyFamily) or not isinstance(encoder, TextEncoder):
            return {}
        return binding_probes(encoder, family.vocabulary) if is_of_the_world(family.vocabulary) else {}

    def check(self) -> list[str]:
        """See `Stage`: what the binding probes found; the gate is `words.gate`."""
        found = self.binding()
        check_gate(f"{self.run.stage}, binding probes", found, self.run.words.gate, "words.gate")
        return [f"binding probe: {line}" for line in in_words(found)]

    def pipeline(self) -> Pipeline:
        """The network as it is now, as a pipeline that opens streams."""
        return self.family.pipeline(self.network)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Contact sheets of fixed streams as the network streams them."""
        self.preview(out_dir)
        return {}

    def preview(self, out_dir: Path, streams: bool = True) -> None:
        """Write contact sheets of the network as it is now; `streams`: as one that streams."""
        self.family.preview(self.pipeline(), out_dir, streams)

    def export(self, directory: Path) -> None:
        """Write a checkpoint directory that `streamgen.load_pipeline` opens."""
        self.family.export(self.network, directory)
