"""What the stages of diffusion models share, whatever the family of the model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamgen.pipeline import Pipeline

from ..clips.training import LatentMix
from ..families import DiffusionRun, NetworkSpec, family_of
from ..families.family import N
from ..flow import FlowNetwork
from ..latent_cache import LatentClips
from ..optim import ParameterGroups, split_parameters

# Inputs, outputs, embeddings and modulations: not maps between hidden spaces, so not for Muon.
EDGES = (
    "patch_embedding",
    "head",
    "modulation",
    "embedding.weight",
    "guidance_embedding.0",
    "temporal",
    "projection",
    "time_",
    "norm",
)


class DiffusionStage(ABC):
    """The family of the model and the encoded clips of a stage; `network` is what it exports.

    Raises:
        ConfigError, CheckpointError, InputError: see `distill.families.Family`.
    """

    network: FlowNetwork
    latents: LatentMix
    clips: LatentClips
    images: LatentClips

    def __init__(self, config: DiffusionRun, device: torch.device) -> None:
        self.run, self.device = config, device
        self.family = family_of(config)(config, device)

    @classmethod
    @abstractmethod
    def specs(cls, config: Any) -> Mapping[str, NetworkSpec[Any]]:
        """The networks of the stage by name."""

    @classmethod
    def networks(cls, config: DiffusionRun) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """See `distill.stage.NetworkStage`; the codec is one of the frozen ones."""
        family, specs = family_of(config), cls.specs(config)
        made = family.blank(config, specs)
        frozen = {name: module for name, module in made.items() if specs[name].frozen}
        trained = {name: module for name, module in made.items() if not specs[name].frozen}
        return trained, frozen | {"codec": family.blank_codec(config)}

    def build(self, spec: NetworkSpec[N]) -> N:
        """A network on the device, from its start."""
        network = self.family.network(spec)
        return network.requires_grad_(False).eval() if spec.frozen else network

    def load_clips(self) -> None:
        """Take the clips from the latent cache, which is built where it is missing.

        `latents` has all of them; `clips` and `images` are the own ones where there are some.
        """
        self.latents = self.family.clips()
        self.clips, self.images, _ = self.latents.main

    def pipeline(self) -> Pipeline:
        """The network as it is now, as a pipeline that opens streams."""
        return self.family.pipeline(self.network)

    def preview(self, out_dir: Path, streams: bool = True) -> None:
        """Write contact sheets of the network as it is now; `streams`: as one that streams."""
        self.family.preview(self.pipeline(), out_dir, streams)

    def export(self, directory: Path) -> None:
        """Write a checkpoint directory that `streamgen.load_pipeline` opens."""
        self.family.export(self.network, directory)


def optimizer_groups(module: nn.Module) -> ParameterGroups:
    """Hidden matrices apart from embeddings, modulations and outputs."""
    return split_parameters(module, EDGES)
