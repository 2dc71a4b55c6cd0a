"""The causal stage's checkpoints: what it writes is what it, and the runtime, can start from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distill.config import ConfigError
from distill.families import NetworkConfig
from distill.families.tiny import (
    build_network,
    checkpoint_config,
    load_networks,
    load_tokenizer,
    write_checkpoint,
)
from distill.flow import FlowMatching
from distill.latent_cache import CacheConfig
from distill.scenes import SceneConfig
from distill.stages.causal import CausalRun, CausalStage, DataConfig
from distill.trainer import Tick
from distill.windows import WindowConfig
from models.context import ChunkPlan
from models.text_encoder import Vocabulary
from streamgen import CheckpointError, load_pipeline
from streamgen.checkpoints.digest import tensor_digest
from tests.tiny_checkpoints import WORDS
from tests.tiny_checkpoints import write_checkpoint as write_random_checkpoint

SIZES = NetworkConfig(
    dim=32, layers=1, heads=2, ffn_dim=32, text_dim=16, text_layers=1, text_length=6, motion_channels=4
)
CPU = torch.device("cpu")


def test_a_checkpoint_is_a_tokenizer_and_a_start(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source")
    tokenizer, digest = load_tokenizer(source, CPU)
    vocabulary = Vocabulary(WORDS)
    run = CausalRun(
        stage="causal", run_dir="unused", max_steps=1, seed=0, tokenizer=str(source), network=SIZES
    )
    first, second = (
        build_network(FlowMatching, replace(run, seed=seed), tokenizer.config, len(vocabulary))
        for seed in (1, 2)
    )
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(checkpoint_config(run, first, tokenizer, digest), first, vocabulary, source, out)
    load_networks(second, out, vocabulary)
    halved = {name: value.to(torch.bfloat16).float() for name, value in first.state_dict().items()}
    assert tensor_digest(halved) == tensor_digest(second.state_dict())
    assert load_tokenizer(out, CPU)[1] == digest
    # 64 pixels a side is the config's default world
    assert next(load_pipeline(out).open("a red circle")).frames.shape == (1, 64, 64, 3)


def test_a_start_of_other_sizes_is_refused(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source")
    run = CausalRun(
        stage="causal", run_dir="unused", max_steps=1, seed=0, tokenizer=str(source), network=SIZES
    )
    network = build_network(FlowMatching, run, load_tokenizer(source, CPU)[0].config, len(WORDS) + 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(dit\)"):
        load_networks(network, source, Vocabulary(WORDS))
    save_file({}, source / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="missing tensors"):
        load_tokenizer(source, CPU)
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path / "nowhere", CPU)


def test_a_start_with_other_words_keeps_those_it_knows(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source")
    tokenizer, digest = load_tokenizer(source, CPU)
    run = CausalRun(
        stage="causal", run_dir="unused", max_steps=1, seed=0, tokenizer=str(source), network=SIZES
    )
    known, wanted = Vocabulary(("red", "circle", "sea")), Vocabulary(("a", "circle", "drifts", "red"))
    old = build_network(FlowMatching, run, tokenizer.config, len(known))
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(checkpoint_config(run, old, tokenizer, digest), old, known, source, out)
    new = build_network(FlowMatching, replace(run, seed=2), tokenizer.config, len(wanted))
    fresh = new.text_encoder.embedding.weight.detach().clone()
    load_networks(new, out, wanted)
    rows, given = new.text_encoder.embedding.weight, old.text_encoder.embedding.weight.bfloat16().float()
    # padding, unknown, a, circle, drifts, red from padding, unknown, -, circle, -, red
    assert torch.equal(rows[[0, 1, 3, 5]], given[[0, 1, 3, 2]])
    assert torch.equal(rows[[2, 4]], fresh[[2, 4]])


def tiny_run(tmp_path: Path, **data: Any) -> CausalRun:
    source = write_random_checkpoint(tmp_path / "source")
    return CausalRun(
        stage="causal",
        run_dir="unused",
        max_steps=1,
        seed=0,
        tokenizer=str(source),
        network=SIZES,
        plan=ChunkPlan(1, 1, 1, 8),
        scenes=SceneConfig(size=32, change_probability=0.7),
        cache=CacheConfig(directory=str(tmp_path / "cache"), clips=12, frames=41, images=8),
        data=replace(DataConfig(video_batch=2, image_batch=3, start_batch=4, turn_batch=5), **data),
    )


def test_every_kind_of_batch_gets_its_share_and_has_a_loss(tmp_path: Path) -> None:
    """Of a hundred updates, in shares: single frames, beginnings, turnings, windows."""
    stage = CausalStage(tiny_run(tmp_path, image_share=0.2, start_share=0.3, turn_share=0.1), CPU)
    kinds: dict[tuple[int, int], int] = {}
    for step in range(100):
        batch = stage.batch(Tick(step, 0, 0, 1, 0, 0.5))
        kind = (batch.x0.shape[0], batch.x0.shape[1])
        if kind not in kinds:
            loss, _ = stage.loss(stage.module, batch)
            assert torch.isfinite(loss)
        kinds[kind] = kinds.get(kind, 0) + 1
    assert set(kinds) == {(3, 1), (4, 3), (5, 8), (2, 10)}
    expected = {(3, 1): 20, (4, 3): 30, (5, 8): 10, (2, 10): 40}
    assert all(abs(kinds[kind] - count) <= 3 for kind, count in expected.items()), kinds
    assert stage.batch(Tick(1, 0, 0, 1, 0, 0.0)).x0.shape[1] == 1


def test_windows_longer_than_the_attention_are_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    for windows in (WindowConfig(frames=11), WindowConfig(turning_frames=11)):
        with pytest.raises(ConfigError, match=r"frames: expected <= plan\.attention_frames"):
            CausalStage(replace(run, windows=windows), CPU)
