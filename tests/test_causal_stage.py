"""The causal stage's checkpoints: what it writes is what it, and the runtime, can start from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.stages.causal import (
    CausalRun,
    NetworkConfig,
    build_network,
    checkpoint_config,
    load_networks,
    load_tokenizer,
    write_checkpoint,
)
from models.context import ChunkPlan
from models.text_encoder import Vocabulary
from streamgen import CheckpointError, load_pipeline
from streamgen.digest import tensor_digest
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
        build_network(SIZES, tokenizer.config, len(vocabulary), ChunkPlan(), seed) for seed in (1, 2)
    )
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(checkpoint_config(run, first, tokenizer, digest), first, vocabulary, source, out)
    load_networks(second, out)
    halved = {name: value.to(torch.bfloat16).float() for name, value in first.state_dict().items()}
    assert tensor_digest(halved) == tensor_digest(second.state_dict())
    assert load_tokenizer(out, CPU)[1] == digest
    # 64 pixels a side is the config's default world
    assert next(load_pipeline(out).open("a red circle")).frames.shape == (1, 64, 64, 3)


def test_a_start_of_other_sizes_is_refused(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "source")
    network = build_network(SIZES, load_tokenizer(source, CPU)[0].config, len(WORDS) + 2, ChunkPlan(), 0)
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(dit\)"):
        load_networks(network, source)
    save_file({}, source / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="missing tensors"):
        load_tokenizer(source, CPU)
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path / "nowhere", CPU)
