"""Checkpoint directories with random weights, for tests of everything above the networks."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder, MotionEncoderConfig
from models.text_encoder import TextEncoder, TextEncoderConfig, Vocabulary
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.checkpoints.digest import tensor_digest
from streamgen.stream.settings import StreamSettings
from tests.tiny_models import randomize

WORDS = ["a", "blue", "circle", "drifts", "red", "right", "sea", "star", "stays", "the", "over", "sand"]


def write_checkpoint(
    directory: Path,
    plan: ChunkPlan | None = None,
    steps: int = 2,
    seed: int = 0,
    words: Sequence[str] = tuple(WORDS),
    patch_stride: int | None = None,
) -> Path:
    """A complete checkpoint of a 32x32 model with a few thousand random weights."""
    plan = plan or ChunkPlan(1, 1, 1, 3)
    tokenizer = VideoTokenizer(
        VideoTokenizerConfig(
            latent_channels=4,
            dim=16,
            heads=2,
            window=2,
            temporal_context=2,
            encoder_spatial=1,
            encoder_temporal=1,
            decoder_temporal=1,
            decoder_spatial=1,
            refine_channels=4,
        )
    )
    dit = CausalDiT(
        CausalDiTConfig(
            dim=24,
            layers=2,
            heads=2,
            ffn_dim=32,
            latent_channels=4,
            motion_channels=4,
            text_dim=8,
            freq_dim=16,
            patch_stride=patch_stride,
        )
    )
    reads = TextEncoderConfig(vocabulary=len(Vocabulary(words)), dim=8, layers=1, heads=2, length=6)
    text = TextEncoder(reads)
    motion = MotionEncoder(MotionEncoderConfig(channels=4, id_dim=8, hidden=6))
    for i, module in enumerate((tokenizer, dit, text, motion)):
        randomize(module, seed * 10 + i)
    directory.mkdir(parents=True, exist_ok=True)
    tokens = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    parts = {"dit": dit, "text_encoder": text, "motion_encoder": motion}
    state = {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    for name, part in (("model", state), ("tokenizer", tokens)):
        save_file(part, directory / f"{name}.safetensors")
    (directory / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = StreamSettings(steps=steps, sink_frames=plan.sink_frames, window_frames=plan.window_frames)
    config = {
        "format": 1,
        "family": "tiny",
        "height": 32,
        "width": 32,
        "fps": 16,
        "tokenizer": asdict(tokenizer.config),
        "tokenizer_digest": tensor_digest(tokens),
        "dit": asdict(dit.config),
        "text_encoder": asdict(text.config),
        "motion_encoder": asdict(motion.config),
        "plan": asdict(plan),
        "sampling": settings.to_json(),
    }
    OmegaConf.save(OmegaConf.create(config), directory / "config.yaml")
    return directory


def generator_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
