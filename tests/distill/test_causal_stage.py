"""The causal stage's checkpoints: what it writes is what it, and the runtime, can start from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import distill.mixture
from distill.config import ConfigError
from distill.errors import GateError
from distill.families.config import NetworkConfig
from distill.families.tiny import (
    build_network,
    checkpoint_config,
    load_networks,
    load_tokenizer,
    write_checkpoint,
)
from distill.flow import FlowMatching, focused
from distill.latent_cache import CacheConfig
from distill.mixture import Kind, MixtureConfig
from distill.scenes import MOTIONS, SceneConfig
from distill.stages.causal import CausalRun, CausalStage
from distill.trainer import Tick
from distill.turning_probe import TurningGate, check_turning, plot_turning
from distill.windows import image_batch
from distill.words.heads import WordsConfig
from models.context import ChunkPlan
from models.text_encoder import Vocabulary
from streamgen import CheckpointError, load_pipeline
from streamgen.checkpoints.digest import tensor_digest
from streamgen.engine.scheduler import add_noise, velocity_target
from tests.tiny_checkpoints import WORDS
from tests.tiny_checkpoints import write_checkpoint as write_random_checkpoint
from tests.tiny_models import assert_needs, randomize

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


def tiny_run(tmp_path: Path, **changes: Any) -> CausalRun:
    source = write_random_checkpoint(tmp_path / "source")
    return CausalRun(
        stage="causal",
        run_dir=str(tmp_path / "run"),
        max_steps=1,
        seed=0,
        tokenizer=str(source),
        network=SIZES,
        plan=ChunkPlan(1, 1, 1, 8),
        scenes=SceneConfig(size=32, change_probability=0.7),
        cache=CacheConfig(directory=str(tmp_path / "cache"), clips=12, frames=57, images=8),
        mixture=MixtureConfig(0.1, Kind(2, 3), Kind(3, 4), Kind(4, 2), Kind(1, 5)),
        turning=TurningGate(clips=24),
        fixed_windows=8,
        **changes,
    )


def test_every_kind_of_batch_gets_its_share_and_has_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred updates, in shares: single frames, beginnings, whole clips, changes; images come first."""
    stage = CausalStage(tiny_run(tmp_path), CPU)

    def check() -> None:
        kinds: dict[str, int] = {}
        for step in range(100):
            batch = stage.draw(Tick(step, 0, 0, 1, 0, 0.5))
            (kind,) = {*stage.config.mixture.kinds} & {*batch.counts}
            assert len(batch.x0) == stage.config.mixture.kinds[kind].batch
            if kind not in kinds:
                loss, metrics = stage.loss(stage.module, batch)
                assert torch.isfinite(loss)
                assert metrics[f"seen/{kind}"] > 0
            kinds[kind] = kinds.get(kind, 0) + 1
        expected = {"images": 20, "beginnings": 30, "clips": 40, "changes": 10}
        assert all(abs(kinds.get(kind, 0) - count) <= 3 for kind, count in expected.items()), kinds
        assert stage.draw(Tick(1, 0, 0, 1, 0, 0.0)).x0.shape[1] == 1

    assert_needs(check, monkeypatch, distill.mixture.Turns, "at", lambda self, number: "clips")


def test_first_frames_read_their_own_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single frame only the caption that it reads is made into keys; its errors are those with all."""
    run = tiny_run(tmp_path)
    stage = CausalStage(run, CPU)
    network = stage.module
    # at its start a head says nothing at all
    torch.nn.init.normal_(network.dit.head.head.weight, std=0.1)
    windows = replace(run.windows, target_text_drop=0.5)
    batch = image_batch(stage.latents.of(0)[1], 8, windows, torch.Generator().manual_seed(0))
    assert 0 < int(batch.segment.sum()) < 8
    noisy = add_noise(batch.targets, batch.noise, batch.sigma)
    motion = torch.zeros(8, 1, SIZES.motion_channels, *noisy.shape[-2:])
    velocity = network.velocity(noisy, batch.sigma, network.text(batch.words, batch.segment), motion)
    squares = (velocity - velocity_target(batch.targets, batch.noise)).square().mean(2)

    def check() -> None:
        torch.testing.assert_close(network.errors(batch), focused(squares, batch.focus))

    first = lambda words, index, dim: words[:, :1]  # noqa: E731
    assert_needs(check, monkeypatch, torch.Tensor, "take_along_dim", first)


def test_what_was_seen_is_counted(tmp_path: Path) -> None:
    """Shares of kinds and of motions sum to one; nothing is state, so any number of processes goes on."""
    stage = CausalStage(tiny_run(tmp_path), CPU)
    for step in range(6):
        _, metrics = stage.loss(stage.module, stage.batch(Tick(step, 0, 0, 1, 0, 0.5)))
    kinds = [metrics[f"seen/{kind}"] for kind in stage.config.mixture.kinds]
    motions = [metrics[f"seen/{motion.replace(' ', '_')}"] for motion in MOTIONS]
    assert sum(kinds) == pytest.approx(1)
    assert sum(motions) == pytest.approx(1)
    assert metrics["seen/targets"] == stage.census.count("targets") > 0
    assert stage.state() is None


def test_the_turning_probe_tells_turns_from_straight_ways(tmp_path: Path) -> None:
    """It looks at latents that no training draws, each motion by itself; a gate on it stops the recipe."""
    stage = CausalStage(tiny_run(tmp_path), CPU)
    found = stage.turning_errors()
    assert {"turning circles", "straight right"} <= {*found}
    assert "turning right" not in found
    assert stage.turning_errors() == found
    lines = check_turning(found, TurningGate(most=None))
    assert len(lines) == len(found)
    with pytest.raises(GateError, match=r"expected errors <= 1e-06, found .*straight right") as error:
        check_turning(found, TurningGate(most=1e-6))
    assert error.value.override == "turning.most=null"
    plot_turning(found, tmp_path / "turning.png")
    assert (tmp_path / "turning.png").stat().st_size > 0
    assert (tmp_path / "cache" / "probe").is_dir()


def test_words_replace_the_encoder_of_a_start(tmp_path: Path) -> None:
    """With `words.start` and an `init` the DiT is that of the init, the text encoder that of the words."""
    run = tiny_run(tmp_path)
    start = tmp_path / "start"
    start.mkdir()
    first = CausalStage(run, CPU)
    randomize(first.network, 3)
    first.export(start)
    words = tmp_path / "words"
    words.mkdir()
    other = CausalStage(replace(run, words=WordsConfig(weight=0.1)), CPU)
    randomize(other.network, 4)
    other.export(words)
    text = {f"text_encoder.{name}": v for name, v in other.module.text_encoder.state_dict().items()}
    heads = {f"heads.{name}": v for name, v in other.module.heads.state_dict().items()}
    save_file(text | heads, words / "words.safetensors")
    both = CausalStage(replace(run, init=str(start), words=WordsConfig(str(words), weight=0.1)), CPU)
    close = {"rtol": 1e-2, "atol": 1e-2}
    one, two = both.module.dit.patch_embedding.weight, first.module.dit.patch_embedding.weight
    torch.testing.assert_close(one, two, **close)
    for name, value in both.module.text_encoder.state_dict().items():
        torch.testing.assert_close(value, other.module.text_encoder.state_dict()[name], **close)


def test_changes_need_chunks_of_one_latent_frame(tmp_path: Path) -> None:
    run = replace(tiny_run(tmp_path), plan=ChunkPlan(3, 3, 3, 3))
    with pytest.raises(
        ConfigError, match=r"mixture\.changes\.share: expected 0 with chunks of 3 latent frames"
    ):
        CausalStage(run, CPU)
