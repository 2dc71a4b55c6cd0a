"""Configs of the stages for Wan-shaped models of a few thousand numbers, on made-up clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tests.clip_folders
from distill.clips.config import ClipFolderConfig
from distill.config import CheckpointConfig, OptimConfig, PreviewConfig
from distill.families.config import WanTraining
from distill.mixture import Kind, MixtureConfig
from distill.running import ScriptConfig
from distill.stages.causal import CausalRun
from distill.stages.init import InitConfig, InitRun
from distill.stages.self_forcing_config import CriticConfig, RolloutConfig, SelfForcingRun
from distill.stages.teacher import TeacherData, TeacherRun
from distill.windows import WindowConfig
from models.context import ChunkPlan
from streamgen.motion.arrays import save_tracks
from streamgen.motion.tracks import TrackSet
from tests.clip_folders import metadata, small, with_reader
from tests.tiny_wan import SMALL, write_published

CPU = torch.device("cpu")
CAPTIONS = ("a zebra walks", "a red boat")
PLAN = ChunkPlan(3, 3, 3, 3)
WHOLE = ChunkPlan(6, 6, 0, 0)
WINDOWS = WindowConfig(frames=6, min_gap_prefix=3, unknown_words=0.0, no_motion=0.2)
MIXTURE = MixtureConfig(0.0, images=Kind(0.0), beginnings=Kind(0.3, 2), clips=Kind(0.7, 2), changes=Kind(0.0))


def write_clips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clips of 24 frames, read without a decoder, with a file of tracks each."""
    monkeypatch.setattr(tests.clip_folders, "FRAMES", 24)
    with_reader(monkeypatch)
    rows = [{"video": f"{i}.mp4", "caption": text, "tracks": f"{i}.npz"} for i, text in enumerate(CAPTIONS)]
    metadata(folder, rows)
    for i in range(len(CAPTIONS)):
        (folder / f"{i}.mp4").write_bytes(bytes([i]))
        places = np.linspace(0.2, 0.8, 24 * 3 * 2).reshape(3, 24, 2).astype("float32")
        state = torch.ones(3, 24, dtype=torch.int8)
        tracks = TrackSet.from_points(torch.from_numpy(places), state, torch.zeros(3, dtype=torch.bool))
        save_tracks(tracks, folder / f"{i}.npz")
    return folder


def published(directory: Path) -> Path:
    """A weights folder of random numbers in the published formats."""
    if not directory.exists():
        write_published(directory)
    return directory


def options(tmp_path: Path, name: str, clips: Path | None, **changes: Any) -> dict[str, Any]:
    """What the configs of all stages share."""
    weights = published(tmp_path / "weights")
    return {
        "stage": name,
        "run_dir": str(tmp_path / name),
        "max_steps": 2,
        "seed": 1,
        "wan": WanTraining(str(weights), overrides=SMALL, text_cache=str(tmp_path / "prompts")),
        "init": str(weights),
        "plan": PLAN,
        "clips": None if clips is None else clip_config(clips, tmp_path),
        "windows": WINDOWS,
        "log_every": 1,
        "trackers": (),
        "optim": OptimConfig(matrices="adamw", lr=1e-3, warmup_steps=0, decay="none"),
        "checkpoint": CheckpointConfig(every_steps=None, every_minutes=None),
        "preview": PreviewConfig(every_minutes=None, at_start=False, at_end=False),
        **changes,
    }


def clip_config(clips: Path, tmp_path: Path, **changes: object) -> ClipFolderConfig:
    """Pieces of 21 frames, which are six latent ones."""
    return small(clips, tmp_path / "cache", **({"frames": 21} | changes))


def teacher_run(tmp_path: Path, clips: Path | None, **changes: Any) -> TeacherRun:
    """A teacher of six latent frames."""
    data = TeacherData(
        video_batch=2, short_batch=2, short_frames=3, image_batch=2, image_share=0.0, held_out=2
    )
    return TeacherRun(**options(tmp_path, "teacher", clips, **{"plan": WHOLE, "data": data} | changes))


def causal_run(tmp_path: Path, clips: Path | None, **changes: Any) -> CausalRun:
    """A causal model in chunks of three."""
    return CausalRun(
        **options(tmp_path, "causal", clips, **{"mixture": MIXTURE, "fixed_windows": 8} | changes)
    )


def init_run(tmp_path: Path, clips: Path | None, **changes: Any) -> InitRun:
    """A student of published weights, and a teacher of the same."""
    teacher = str(published(tmp_path / "weights"))
    values = {"mixture": MIXTURE, "teacher": teacher, "distillation": InitConfig(steps=4, student_steps=2)}
    return InitRun(**options(tmp_path, "init", clips, **values | changes))


def self_forcing_run(tmp_path: Path, clips: Path | None, **changes: Any) -> SelfForcingRun:
    """Streams of chunks of three, scored in windows of six."""
    values = {
        "teacher": str(published(tmp_path / "weights")),
        "rollout": RolloutConfig(
            batch=2, window_frames=6, fresh_frames=3, max_frames=6, long_from=0.0, steps=2, context_noise=0.0
        ),
        "critic": CriticConfig(updates=1, warmup=0),
        "script": ScriptConfig(switch_share=0.0),
        "sampling": {"steps": 2, "rope": "relative", "recache_mode": "chunks", "sink_policy": "refresh"},
    }
    return SelfForcingRun(**options(tmp_path, "self_forcing", clips, **values | changes))
