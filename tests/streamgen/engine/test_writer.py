"""Models with a writer: chunks are committed and recached by weights of their own, whatever computes them."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamgen.engine.adapters.writer as adapter
from models.causal_dit import CausalDiT, CausalDiTConfig, committing
from models.kv_cache import CacheCursor
from models.writer import WrittenLinear, written
from streamgen import Pipeline, StreamEvent, load_pipeline
from streamgen.engine.quantize import quantization, quantized
from streamgen.engine.runner import CommitTask, PlainRunner
from streamgen.errors import CheckpointError, InputError
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs, tiny_dit

RANK = 2


def with_writer(directory: Path, out: Path, size: float, rank: int = RANK) -> Path:
    """The same checkpoint with a writer; one of size 0 changes nothing."""
    shutil.copytree(directory, out)
    config = OmegaConf.load(out / "config.yaml")
    config.dit.writer = rank
    OmegaConf.save(config, out / "config.yaml")
    tensors = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    sizes = CausalDiTConfig(**OmegaConf.to_container(config.dit))
    for name, fresh in CausalDiT(sizes).state_dict().items():
        if ".writer_" in name:
            scale = size if name.endswith("up") else fresh.shape[1] ** -0.5
            tensors[f"dit.{name}"] = scale * torch.randn(fresh.shape, generator=generator)
    save_file(tensors, out / "model.safetensors")
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "m")


@pytest.fixture(scope="module")
def writing(plain: Path) -> Path:
    return with_writer(plain, plain.parent / "writing", 0.5)


def streamed(pipeline: Pipeline, runner: str | PlainRunner = "plain", **settings: object) -> list[Tensor]:
    """Latents of six chunks, with other words from the fourth one on."""
    session = pipeline.open("a red circle", 1, runner=runner, settings=settings, decode=False)
    chunks = []
    for number in range(6):
        if number == 3:
            session.submit(StreamEvent(prompt="a blue star over the sea"))
        chunks.append(next(session).latents)
    return chunks


def test_a_writer_of_nothing_changes_no_bit(plain: Path, tmp_path: Path) -> None:
    nothing = with_writer(plain, tmp_path / "nothing", 0.0)
    for mine, other in zip(streamed(load_pipeline(nothing)), streamed(load_pipeline(plain)), strict=True):
        assert torch.equal(mine, other)


class Unmerged(PlainRunner):
    """What commits with the writer beside the weights."""

    def commit(self, task: CommitTask) -> CacheCursor:
        with written(torch.ones(task.frames)):
            return super().commit(task)

    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        with written(torch.ones(task.frames)):
            return super().rejoin(task, keep_sink)


@pytest.mark.parametrize("mode", ["chunks", "joint"])
def test_it_writes_in_commits_and_recaches_alone(
    plain: Path, writing: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the low-rank part beside the weights; what is denoised behind nothing is as it was."""
    oracle = load_pipeline(writing)
    expected = streamed(oracle, Unmerged(oracle.dit), recache_mode=mode)
    without = streamed(load_pipeline(plain), recache_mode=mode)

    def check() -> None:
        found = streamed(load_pipeline(writing), recache_mode=mode)
        assert torch.equal(found[0], without[0])
        assert not torch.allclose(found[1], without[1], atol=1e-2)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)

    merged = WrittenLinear.merged

    def unchanged(self: WrittenLinear) -> torch.nn.Linear:
        layer = merged(self)
        layer.weight = self.weight
        return layer

    assert_needs(check, monkeypatch, WrittenLinear, "merged", unchanged)


def test_other_runners_write_too(writing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime as the plain runner does."""
    expected = streamed(load_pipeline(writing))
    pytest.importorskip("onnxruntime")

    def check() -> None:
        for mine, other in zip(streamed(load_pipeline(writing), "onnx"), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)

    assert_needs(check, monkeypatch, adapter, "committing", lambda dit: dit)


def test_eight_bits_are_those_of_the_written_weights() -> None:
    dit = tiny_dit(dim=32, writer=RANK)
    rounded = quantized(dit, "int8")
    other = adapter.committing_in(dit, PlainRunner(rounded))
    assert (quantization(rounded), quantization(other)) == ("int8", "int8")
    weights = [network.blocks[0].self_attn.k.weight for network in (rounded, other)]
    assert not torch.equal(*weights)
    expected = quantized(committing(dit), "int8").blocks[0].self_attn.k.weight
    assert torch.equal(weights[1], expected)


def test_what_a_writer_cannot_be_had_with_is_one_line(writing: Path) -> None:
    pipeline = load_pipeline(writing)
    with pytest.raises(InputError, match=r"has a writer of commits.* streams at once"):
        pipeline.gathering(2)
    for options, what in (
        ({"quantize": "cache"}, "a cache in eight bits"),
        ({"runner": "ahead"}, "runner ahead"),
    ):
        with pytest.raises(InputError, match=rf"has a writer of commits.* {what}"):
            pipeline.open("a red circle", **options)
    with pytest.raises(InputError, match=r"has a writer of commits.* runner wave-2"):
        pipeline.open("a red circle", runner="wave-2", settings={"steps": 2})
    with pytest.raises(InputError, match=r"context_noise: .* made for commits at 0, found 0\.1"):
        pipeline.open("a red circle", settings={"context_noise": 0.1})


def test_a_writer_of_another_rank_is_named(writing: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(writing, other)
    config = OmegaConf.load(other / "config.yaml")
    config.dit.writer = RANK + 1
    OmegaConf.save(config, other / "config.yaml")
    with pytest.raises(CheckpointError, match=r"writer_down: expected shape \(3, 24\), found \(2, 24\)"):
        load_pipeline(other)


def test_all_but_the_written_layers_is_shared(writing: Path) -> None:
    dit = load_pipeline(writing).dit
    other = committing(dit)
    assert other.config.writer == 0
    assert other.patch_embedding.weight is dit.patch_embedding.weight
    assert not any(isinstance(module, WrittenLinear) for module in other.modules())
    assert sum(isinstance(module, WrittenLinear) for module in dit.modules()) == 12
