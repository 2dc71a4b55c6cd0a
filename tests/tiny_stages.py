"""Configs and random checkpoints of the diffusion stages at a size of seconds."""

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distill.config import CheckpointConfig, OptimConfig, PreviewConfig
from distill.families.config import NetworkConfig
from distill.latent_cache import CacheConfig
from distill.mixture import Kind, MixtureConfig
from distill.scenes import SceneConfig
from distill.stages.causal import CausalRun, CausalStage
from distill.stages.diffusion import DiffusionStage
from distill.stages.init import InitConfig, InitRun
from distill.stages.self_forcing_config import CriticConfig, RolloutConfig, SelfForcingRun
from distill.stages.teacher import TeacherData, TeacherRun, TeacherStage
from distill.windows import WindowConfig
from models.context import ChunkPlan
from tests.tiny_checkpoints import write_checkpoint as write_random_checkpoint
from tests.tiny_models import randomize

CPU = torch.device("cpu")
PLAN = ChunkPlan(1, 1, 1, 3)
NETWORK = NetworkConfig(
    dim=24, layers=2, heads=2, ffn_dim=16, text_dim=8, text_layers=1, text_length=6, motion_channels=4
)
MIXTURE = MixtureConfig(0.1, Kind(0.25, 3), Kind(0.25, 2), Kind(0.25, 2), Kind(0.25, 2))
WINDOWS = WindowConfig(frames=6, min_gap_prefix=2, change_frames=2)


def options(tmp_path: Path, name: str, **changes: Any) -> dict[str, Any]:
    """What the configs of all diffusion stages share."""
    tokenizer = tmp_path / "tokenizer"
    if not tokenizer.exists():
        write_random_checkpoint(tokenizer)
    return {
        "stage": name,
        "run_dir": str(tmp_path / name),
        "max_steps": 3,
        "seed": 1,
        "tokenizer": str(tokenizer),
        "network": NETWORK,
        "plan": PLAN,
        "log_every": 1,
        "trackers": (),
        "scenes": SceneConfig(size=32, change_probability=0.6, drag_probability=0.4),
        "cache": CacheConfig(directory=str(tmp_path / "cache"), clips=16, frames=33, images=8),
        "optim": OptimConfig(matrices="adamw", warmup_steps=1, decay="none"),
        "checkpoint": CheckpointConfig(every_steps=None, every_minutes=None),
        "preview": PreviewConfig(every_minutes=None, at_start=False, at_end=False),
        **changes,
    }


def export(stage: DiffusionStage, directory: Path, seed: int) -> Path:
    """The stage's checkpoint with every parameter randomised."""
    randomize(stage.network, seed)
    directory.mkdir(parents=True)
    stage.export(directory)
    return directory


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="streamgen-starts-")


def _start(directory: Path, stage: Callable[[], DiffusionStage], seed: int) -> None:
    """A random checkpoint that runs start from; all of one name are alike: one is made, the others copied."""
    kept = Path(_kept().name, directory.name)
    if not kept.exists():
        export(stage(), directory, seed)
        shutil.copytree(directory, kept)
        return
    shutil.copytree(kept, directory)


def causal_run(tmp_path: Path, **changes: Any) -> CausalRun:
    """A causal stage."""
    return CausalRun(
        **options(
            tmp_path, "causal", **{"mixture": MIXTURE, "windows": WINDOWS, "fixed_windows": 8, **changes}
        )
    )


def teacher_run(tmp_path: Path, **changes: Any) -> TeacherRun:
    """A teacher of five latent frames."""
    data = TeacherData(video_batch=2, short_batch=2, short_frames=3, image_batch=3, held_out=2)
    plan = ChunkPlan(5, 5, 0, 0)
    return TeacherRun(**options(tmp_path, "teacher", plan=plan, data=data, windows=WINDOWS, **changes))


def init_run(tmp_path: Path, **changes: Any) -> InitRun:
    """The init stage from a random causal checkpoint."""
    start = tmp_path / "causal_export"
    if not start.exists():
        _start(start, lambda: CausalStage(causal_run(tmp_path), CPU), 3)
    settings: dict[str, Any] = {
        "mixture": MIXTURE,
        "windows": WINDOWS,
        "init": str(start),
        "teacher": str(start),
        "distillation": InitConfig(steps=4, student_steps=2),
        "sampling": {"sampler": "renoise", "steps": 2},
        **changes,
    }
    return InitRun(**options(tmp_path, "init", **settings))


def self_forcing_run(tmp_path: Path, **changes: Any) -> SelfForcingRun:
    """The self_forcing stage from random checkpoints of student and teacher."""
    student, teacher = init_run(tmp_path).teacher, tmp_path / "teacher_export"
    if not teacher.exists():
        _start(teacher, lambda: TeacherStage(teacher_run(tmp_path), CPU), 4)
    settings: dict[str, Any] = {
        "windows": WINDOWS,
        "init": student,
        "teacher": str(teacher),
        "rollout": RolloutConfig(
            batch=2, window_frames=5, fresh_frames=3, max_frames=11, long_from=0.0, steps=2
        ),
        "critic": CriticConfig(updates=1, warmup=1),
        "sampling": {"sampler": "renoise", "steps": 2},
        **changes,
    }
    return SelfForcingRun(**options(tmp_path, "self_forcing", **settings))


def with_steps(config: Any, steps: int) -> Any:
    """The same config, to run longer."""
    return replace(config, max_steps=steps)
