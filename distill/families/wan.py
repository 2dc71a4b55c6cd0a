"""The Wan family: published or converted weights with track channels, on own clips or prompts alone."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder
from models.wan_vae import WanVAE
from streamgen.checkpoints.directory import load_into
from streamgen.engine.networks import Networks
from streamgen.pipeline import Pipeline
from streamgen.stream.model import ModelParts
from streamgen.stream.settings import StreamSettings
from streamgen.wan.config import WanConfig, config_file, read_wan_config, wan_model_names
from streamgen.wan.convert import write_model
from streamgen.wan.load import load_vae, prompt_encoder
from streamgen.wan.options import TextOptions
from streamgen.wan.weights import WanTensors, gather

from ..clips.folder import ClipFolder
from ..clips.latents import OwnLatents
from ..clips.prompts import prompt_pairs, read_prompts
from ..clips.training import LatentMix, caption_sheet
from ..config import ConfigError, require
from ..flow import FlowNetwork
from .captions import CaptionTable
from .config import DiffusionRun, WanTraining
from .family import Family, N, NetworkSpec, with_fresh


class WanFamily(Family):
    """See `Family`; `model` are the sizes of all parts."""

    codec: WanVAE

    def __init__(self, config: DiffusionRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.model = model_config(config)
        check_run(config, self.model)
        self.options = section_of(config)
        self.folder = None if config.clips is None else ClipFolder(config.clips)
        self.codec, self.digest = load_vae(self.model, Path(self.options.weights), device)
        self.captions = caption_table(self.options, self.model, Path(config.run_dir))
        if config.precision == "bf16":
            # what autocast makes of keys and values anyway
            self.cache_dtype = torch.bfloat16

    @classmethod
    def blank(cls, config: DiffusionRun, specs: Mapping[str, NetworkSpec[Any]]) -> dict[str, nn.Module]:
        model = model_config(config)
        table = caption_table(section_of(config), model)
        return {
            name: build_network(spec, config, model_of(spec, config, model), table)
            for name, spec in specs.items()
        }

    @classmethod
    def blank_codec(cls, config: DiffusionRun) -> nn.Module:
        return WanVAE(model_config(config).vae)

    @property
    def grid(self) -> tuple[int, int]:
        geometry = self.model.geometry()
        return geometry.latent_height, geometry.latent_width

    def fresh(self, spec: NetworkSpec[N], place: torch.device) -> N:
        """See `Family`; on a GPU drawing 1.4 G numbers takes no time."""
        with place:
            return build_network(spec, self.run, model_of(spec, self.run, self.model), self.captions)

    def load(self, network: FlowNetwork, spec: NetworkSpec[Any]) -> None:
        """See `Family`: a LoRA is merged; new track channels are zero, and so is the influence of guidance
        strengths, so that published weights compute what they did.
        """
        assert spec.start is not None
        directory = Path(spec.start)
        model = self.model_for(network, model_of(spec, self.run, self.model))
        found = gather(model, directory, ("dit",))
        assert found.dit is not None
        where = f"weights {directory} (dit)"
        load_into(network.dit, with_fresh(found.dit, network, where), where)
        if found.motion_encoder is not None:
            where = f"weights {directory} (motion_encoder)"
            load_into(network.motion_encoder, found.motion_encoder, where)

    def plan_of(self, directory: Path) -> ChunkPlan | None:
        """See `Family`; published files do not say."""
        path = config_file(directory)
        return None if path is None else read_wan_config(path).plan

    def clips(self) -> LatentMix:
        """See `Family`; own ones alone."""
        assert self.folder is not None
        self.captions.add(self.folder.captions)
        process = PartialState()
        # five megabytes a clip: each process trains on its share of them, or with others on theirs
        sequence = self.run.sequence
        share = (process.process_index // sequence, process.num_processes // sequence)
        own = OwnLatents(self.folder, self.codec, self.digest, self.captions, share)
        return LatentMix(None, own, self.run.clips, self.device)

    def prompts(self, path: str) -> list[tuple[Tensor, Tensor]]:
        prompts = read_prompts(path)
        self.captions.add(itertools.chain(*prompts))
        return prompt_pairs(prompts, self.captions.ids)

    def pipeline(self, network: FlowNetwork) -> Pipeline:
        networks = Networks(self.codec, network.dit, None, network.motion_encoder)
        model, prompts = self.model_for(network), self.captions.prompts
        # weights change: the plain runner keeps no copy of them
        return Pipeline(ModelParts("in training", model, networks, prompts, "in training"), "plain")

    def preview(self, pipeline: Pipeline, out_dir: Path, streams: bool) -> None:
        """See `Family`: streams from captions, or from prompts where there are no clips."""
        half = self.run.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            caption_sheet(pipeline, self.captions.captions[1:], out_dir)

    def export(self, network: FlowNetwork, directory: Path) -> None:
        """Write the folder that `streamgen convert` would: networks in bfloat16, the VAE as it was read."""
        dit, motion = (
            {name: value.detach().to("cpu", torch.bfloat16) for name, value in module.state_dict().items()}
            for module in (network.dit, network.motion_encoder)
        )
        tensors = WanTensors(dit=dit, vae=self.codec.state_dict(), motion_encoder=motion)
        write_model(tensors, self.model_for(network), directory)

    def model_for(self, network: FlowNetwork, model: WanConfig | None = None) -> WanConfig:
        """What a checkpoint of a network says of itself, with the other parts of a `model` or the run's."""
        base = self.model if model is None else model
        return replace(
            base,
            dit=network.dit.config,
            motion_encoder=network.motion_encoder.config,
            plan=network.plan,
            sampling=sampling_of(self.run, base),
        )


def section_of(config: DiffusionRun) -> WanTraining:
    """The section of this family, which its configs have."""
    assert config.wan is not None
    return config.wan


def model_config(config: DiffusionRun) -> WanConfig:
    """The model of a run, with the changes that the run makes.

    Raises:
        ConfigError: an unknown model, or one without tracks.
        CheckpointError: a model's config that cannot be read, or a change that does not fit.
    """
    section = section_of(config)
    return _read_model("wan.model", section.model, section.overrides)


def model_of(spec: NetworkSpec[Any], config: DiffusionRun, model: WanConfig) -> WanConfig:
    """The model whose sizes a network of a run has, see `NetworkSpec.sizes`.

    Raises:
        ConfigError: one that does not read the run's latents and captions, or without tracks.
        CheckpointError: a config that cannot be read.
    """
    teacher = section_of(config).teacher
    if spec.start is None or spec.sizes == "run":
        return model
    if config_file(Path(spec.start)) is not None:
        found = _read_model(spec.start, spec.start, ())
    elif spec.sizes == "teacher" and teacher is not None:
        found = _read_model("wan.teacher.model", teacher.model, teacher.overrides)
    else:
        return model
    shared = [(m.dit.latent_channels, m.text.length, m.text.dim) for m in (model, found)]
    what = "as many latent channels, words and numbers of a word as the run's model, {} x {} x {}"
    require(shared[0] == shared[1], spec.start, what.format(*shared[0]), " x ".join(map(str, shared[1])))
    return found


def _read_model(key: str, name: str, overrides: Sequence[str]) -> WanConfig:
    path = config_file(name)
    if path is None:
        known = ", ".join(wan_model_names())
        raise ConfigError(f"{key}: expected one of {known}, or a folder of one, found {name}")
    model = read_wan_config(path, overrides)
    require(model.motion_encoder is not None, key, "one with tracks (motion_encoder)", name)
    return model


def check_run(config: DiffusionRun, model: WanConfig) -> None:
    """Raise ConfigError for settings of the tiny family, whose clips and words this one has no use for."""
    clips = config.clips
    if clips is None:
        require(
            not config.needs_clips,
            "clips",
            "a folder of own clips for a model of the Wan family, whose stages have no procedural world",
            None,
        )
    else:
        expected, found = (model.height, model.width, model.fps), (clips.height, clips.width, clips.fps)
        require(found == expected, "clips.height, width, fps", f"the model's {expected}", found)
        require(clips.share == 1, "clips.share", "1 for a model of the Wan family", clips.share)
    sampling_of(config, model)
    words = config.words
    require(
        (words.start, words.weight, words.gate) == (None, 0, 0),
        "words",
        "none for a model whose text encoder is frozen",
        words,
    )
    unknown = config.windows.unknown_words
    require(unknown == 0, "windows.unknown_words", "0 for a model that reads any text", unknown)


def sampling_of(config: DiffusionRun, model: WanConfig) -> StreamSettings:
    """What the result streams with: the model's settings under the run's plan, with the run's changes.

    Raises:
        InputError: a setting that does not exist or fit.
    """
    reach = {"sink_frames": config.plan.sink_frames, "window_frames": config.plan.window_frames}
    return model.sampling.updated(reach | config.sampling)


def caption_table(options: WanTraining, model: WanConfig, run_dir: Path | None = None) -> CaptionTable:
    """The captions of a run, none yet but those that it began with; no text encoder is loaded."""
    text = TextOptions(options.text_device, cache=Path(options.text_cache))
    encoder = prompt_encoder(model, Path(options.weights), options.text_encoder, text)
    return CaptionTable(encoder, options.no_text, run_dir)


def build_network(spec: NetworkSpec[N], config: DiffusionRun, model: WanConfig, table: CaptionTable) -> N:
    """A freshly initialised network; a function of the config's sizes and seed."""
    assert model.motion_encoder is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        motion = MotionEncoder(model.motion_encoder)
        dit = CausalDiT(replace(model.dit, guidance=spec.guidance, writer=spec.writer))
    return spec.kind(dit, table, motion, spec.plan or config.plan)
