"""Published files of the Wan family, in small: they load, stream, switch, convert and are inspected; what
does not fit is one line that names the key, what was expected and what was found.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.kv_cache import CacheCursor
from models.lora import lora_pairs, merge_lora
from streamgen import InputError, Pipeline, StreamEvent, TrackSet, load_pipeline
from streamgen.engine.noise import SeededNoise
from streamgen.errors import CheckpointError
from streamgen.families import inspect_checkpoint
from streamgen.stream.session import Session
from streamgen.wan.config import CONFIGS, read_wan_config, wan_model_names
from streamgen.wan.convert import convert_weights
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.tiny_wan import SMALL, small_config, write_newer, write_published

LONGLIVE = "wan-1.3b-longlive"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    write_published(directory)
    write_newer(directory)
    return directory


def opened(name: str, weights: Path | None, *more: str) -> Pipeline:
    options = WanOptions(weights=weights, random_weights=weights is None, overrides=(*SMALL, *more))
    return load_pipeline(name, "cpu", wan=options)


@pytest.fixture(scope="module")
def longlive(published: Path) -> Pipeline:
    return opened(LONGLIVE, published)


def pictures(session: Any, chunks: int) -> torch.Tensor:
    return torch.cat([next(session).frames for _ in range(chunks)])


def test_published_settings_of_every_config() -> None:
    assert set(wan_model_names()) >= {
        f"wan-1.3b-{name}"
        for name in ("self-forcing", "longlive", "causal-forcing-chunk", "causal-forcing-frame")
    }
    for name in wan_model_names():
        config = read_wan_config(CONFIGS / f"{name}.yaml")
        settings, plan = config.sampling, config.plan
        few = {"causal-forcing-2step": 2, "causal-forcing-1step": 1, "one-forcing": 1}
        steps = few.get(name.removeprefix("wan-1.3b-"), 4)
        levels = {4: (1, 0.9375, 5 / 6, 0.625, 0), 2: (1, 5 / 6, 0), 1: (1, 0)}
        assert settings.sampling().sigmas == pytest.approx(levels[steps], abs=1e-12)
        first = settings.sampling(settings.steps_of(True, False), settings).sigmas
        assert first == pytest.approx(levels[1 if name.endswith("one-forcing") else 4], abs=1e-12)
        steady = name.endswith("steady")
        rope = "relative" if steady else "absolute"
        assert (settings.rope, settings.context_noise, settings.sampler) == (rope, 0.0, "renoise")
        assert settings.guidance().is_off(motion=False)
        assert config.geometry().token_grid == (30, 52)
        long = "longlive" in name or "motion" in name
        newer = {"self-gradient-forcing-chunk": (12, 3), "self-gradient-forcing-frame": (21, 4)}
        newer["reward-forcing"] = (9, 3)
        plain = (12 if long else 21, 3 if long or steady else 0)
        span = newer.get(name.removeprefix("wan-1.3b-"), plain)
        assert (plan.attention_frames, plan.sink_frames) == span
        assert (settings.recache_mode, settings.sink_policy) == (
            ("joint", "keep") if long else ("chunks", "refresh")
        )


@pytest.mark.parametrize("name", sorted(set(wan_model_names())))
@pytest.mark.parametrize("decoder", ["vae", "tiny"])
def test_every_model_streams_its_published_files(name: str, decoder: str, published: Path) -> None:
    more = ["dit.motion_channels=16"] if name.endswith("motion") else []
    pipeline = opened(name, published, f"decoder={decoder}", *more)
    chunk = pipeline.plan.chunk_frames
    session = pipeline.open("a red boat", seed=1)
    first, second = next(session), next(session)
    assert first.frames.shape == (1 + 4 * (chunk - 1), 32, 48, 3)
    assert second.frames.shape == (4 * chunk, 32, 48, 3)
    assert second.frames.float().std() > 1
    assert not torch.equal(first.frames, next(pipeline.open("a blue boat", seed=1)).frames)


def test_lora_is_merged_and_ema_is_preferred(published: Path, longlive: Pipeline) -> None:
    payload = torch.load(published / "models" / "longlive_base.pt", weights_only=True)["generator"]
    base = {name.removeprefix("model."): value for name, value in payload.items()}
    lora = torch.load(published / "models" / "lora.pt", weights_only=True)["generator_lora"]
    merged = merge_lora(base, lora_pairs(lora))
    state = longlive.dit.state_dict()
    assert all(torch.equal(state[name], merged[name]) for name in state)
    assert not torch.equal(state["blocks.1.ffn.2.weight"], base["blocks.1.ffn.2.weight"])
    ema = opened("wan-1.3b-self-forcing", published).dit.state_dict()
    assert torch.equal(ema["head.modulation"], base["head.modulation"] + 0.01)
    plain = opened("wan-1.3b-causal-forcing-chunk", published).dit.state_dict()
    assert torch.equal(plain["head.modulation"], base["head.modulation"])


def test_a_switch_by_joint_recache(longlive: Pipeline) -> None:
    """In a session: recorded, replayed and restored bit-exactly."""
    session = longlive.open("a red boat", seed=3)
    pictures(session, 5)
    twin, saved = session.fork(), session.snapshot()
    receipt = session.submit(StreamEvent(prompt="a blue boat"))
    expected = pictures(session, 2)
    assert receipt.status == "applied"
    assert session.timeline.events[-1].event.sink == "keep"
    assert torch.equal(pictures(longlive.replay(session.timeline), 7)[-24:], expected)
    session.restore(saved)
    session.submit(StreamEvent(prompt="a blue boat"))
    assert torch.equal(pictures(session, 2), expected)
    assert not torch.equal(pictures(twin, 2), expected)


class Loud(SeededNoise):
    """Another source of draws."""

    identity = "loud"

    def initial(self, chunk: int, shape: tuple[int, ...]) -> torch.Tensor:
        return 0.5 * super().initial(chunk, shape)


def test_draws_come_from_the_given_source(longlive: Pipeline) -> None:
    """Recorded draws take the place of the seed, also in a fork and after a restore."""
    cpu = torch.device("cpu")
    same = longlive.open("a red boat", seed=9, noise=SeededNoise(3, cpu))
    assert torch.equal(pictures(same, 1), pictures(longlive.open("a red boat", seed=3), 1))
    other = longlive.open("a red boat", seed=3, noise=Loud(3, cpu))
    assert not torch.equal(pictures(other, 1), pictures(longlive.open("a red boat", seed=3), 1))
    assert torch.equal(pictures(other.fork(), 1), pictures(other, 1))


def at_end(session: Session) -> None:
    """Set a new stream's clock to the end of the table of positions."""
    latents = replace(session.state.latents, cursor=CacheCursor(1024))
    session._now = replace(session._now, state=replace(session.state, latents=latents))


def test_absolute_positions_end_with_one_line(published: Path) -> None:
    session = opened("wan-1.3b-causal-forcing-frame", published).open("a boat")
    at_end(session)
    with pytest.raises(InputError, match=r"absolute positions end after 1024 latent frames.*rope relative"):
        next(session)
    relative = opened("wan-1.3b-causal-forcing-frame", published).open(
        "a boat", settings={"rope": "relative"}
    )
    at_end(relative)
    assert len(next(relative).frames) == 1


def test_image_start_where_the_chunk_is_one_frame(published: Path) -> None:
    image = torch.randint(0, 255, (32, 48, 3), dtype=torch.uint8)
    pipeline = opened("wan-1.3b-causal-forcing-frame", published)
    session = pipeline.open("a boat", image=image)
    latents = session.state.opening
    assert latents is not None
    raw = pipeline.tokenizer.denormalize(latents, 0)
    through = pipeline.tokenizer.decode(raw).add(1).mul(127.5).round().clamp(0, 255)
    assert torch.equal(next(session).frames.float(), through[0].movedim(1, -1))


def test_tracks_need_a_model_with_tracks(published: Path, longlive: Pipeline) -> None:
    """Published weights in a widened network: without tracks they give what they gave, and with tracks too
    until they are trained.
    """
    points = torch.rand(1, 200, 2)
    tracks = TrackSet(
        points, torch.ones(1, 200, dtype=torch.int8), torch.zeros(1, dtype=torch.bool), torch.tensor([5])
    )
    with pytest.raises(InputError, match="was not trained with tracks"):
        longlive.open("a boat", motion=tracks)
    receipt = longlive.open("a boat").submit(StreamEvent(motion=tracks))
    assert (receipt.status, "not trained with tracks" in str(receipt.reason)) == ("refused", True)
    wide = opened("wan-1.3b-motion", published)
    plain = pictures(longlive.open("a boat"), 2).float()
    for motion in (None, tracks):
        assert (pictures(wide.open("a boat", motion=motion), 2).float() - plain).abs().max() <= 1
    # random, since the same number in all dimensions would be taken away by the norms
    trained = torch.randn(24, 16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    wide.dit.patch_embedding.weight.data[:, 16:] = trained
    assert (pictures(wide.open("a boat", motion=tracks), 2).float() - plain).abs().max() > 2


def test_random_weights_need_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [x for pair in SMALL for x in ("--model-set", pair)]
    options = ["--model", LONGLIVE, "--random-weights", *small, "--seconds", "1", "--device", "cpu"]
    done = call(capsys, "render", "a boat", "-o", tmp_path / "a.mp4", "--at", "0.5:a train", *options)
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [event["sink"] for event in record["timeline"]["events"] if "sink" in event][-1] == "keep"
    refused = call(capsys, "render", "a boat", "-o", tmp_path / "b.mp4", "--model", LONGLIVE)
    assert "needs its published weights, --weights DIR" in refused.error()


def test_conversion_round_trip(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Published files to ours and on to both namings: nothing changes but the merged LoRA."""
    small = [x for pair in SMALL for x in ("--model-set", pair)]
    ours = tmp_path / "ours"
    done = call(capsys, "convert", published, "-o", ours, "--model", LONGLIVE, *small, "--json")
    assert done.code == 0, done.stderr
    card = json.loads(done.stdout)
    assert card == json.loads((ours / "card.json").read_text(encoding="utf-8"))
    assert card["lora_merged"]
    assert {file["part"]: len(file["sha256"]) for file in card["sources"]} == {
        "dit": 64, "lora": 64, "vae": 64, "tiny_decoder": 64,
    }  # fmt: skip
    assert set(card["files"]) == {"model.safetensors", "tokenizer.safetensors", "tiny_decoder.safetensors"}
    direct, loaded = opened(LONGLIVE, published), load_pipeline(ours, "cpu")
    assert torch.equal(pictures(direct.open("a boat"), 2), pictures(loaded.open("a boat"), 2))
    for to in ("wan", "diffusers"):
        convert_weights(ours, tmp_path / to, to)  # type: ignore[arg-type]
    from diffusers import AutoencoderKLWan

    vae_folder = tmp_path / "diffusers" / "vae"
    theirs = AutoencoderKLWan.from_pretrained(vae_folder, local_files_only=True)
    assert theirs.config.z_dim == 16
    transformer = json.loads((tmp_path / "diffusers" / "transformer" / "config.json").read_text())
    assert (transformer["num_attention_heads"], transformer["attention_head_dim"]) == (2, 12)
    back = convert_weights(tmp_path / "diffusers" / "transformer" / "diffusion_pytorch_model.safetensors",
                           tmp_path / "back", "wan")  # fmt: skip
    assert back["sources"][0]["kind"] == "wan_dit"
    first = load_file(tmp_path / "wan" / "diffusion_pytorch_model.safetensors")
    second = load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    own = {n.removeprefix("dit."): x for n, x in load_file(ours / "model.safetensors").items()}
    assert set(first) == set(second) == set(own)
    assert all(torch.equal(first[n], own[n]) and torch.equal(second[n], own[n]) for n in own)
    vae = torch.load(tmp_path / "wan" / "Wan2.1_VAE.pth", weights_only=True)
    convert_weights(
        tmp_path / "diffusers" / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "v", "wan"
    )
    again = torch.load(tmp_path / "v" / "Wan2.1_VAE.pth", weights_only=True)
    assert set(vae) == set(again)
    assert all(torch.equal(vae[name], again[name]) for name in vae)
    with pytest.raises(InputError, match="expected a folder that is empty"):
        convert_weights(ours, tmp_path / "wan", "wan")
    with pytest.raises(InputError, match="missing --model"):
        convert_weights(published, tmp_path / "none")


def test_inspect_says_what_a_file_is(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = inspect_checkpoint(published / "models" / "longlive_base.pt")
    assert (base["kind"], base["section_read"], base["problems"]) == ("a Wan DiT", "generator", [])
    assert base["shape"]["dim"] == 24
    lora = inspect_checkpoint(published / "models" / "lora.pt")
    assert (lora["kind"], lora["rank"], lora["layers"]) == ("a LoRA", [256], 20)
    vae = inspect_checkpoint(published / "Wan2.1_VAE.pth")
    assert (vae["kind"], vae["problems"]) == ("a Wan VAE", [])
    tiny = inspect_checkpoint(published / "taew2_1.pth")
    assert (tiny["kind"], tiny["problems"]) == ("a TAEHV tiny autoencoder", [])
    partial = torch.load(published / "models" / "longlive_base.pt", weights_only=True)
    del partial["generator"]["model.blocks.1.ffn.2.bias"]
    torch.save(partial, published / "partial.pt")
    found = call(capsys, "inspect", published / "partial.pt")
    assert found.code == 2
    assert "1 tensors missing: blocks.1.ffn.2.bias" in found.stderr
    report = inspect_checkpoint(CONFIGS / f"{LONGLIVE}.yaml")
    assert report["memory_gib"]["all"] > 5


class Foreign:
    """An object that a pickle must not bring in."""


def broken(kind: str, directory: Path) -> None:
    """Damage one published file in one way."""
    base, lora, vae = (
        directory / name for name in ("models/longlive_base.pt", "models/lora.pt", "Wan2.1_VAE.pth")
    )
    payload, bias = torch.load(base, weights_only=True), "model.head.head.bias"
    state, linear = payload["generator"], "model.blocks.0.ffn.0.weight"
    codes = state[linear].to(torch.int8)
    changed: dict[str, Any] = {
        "missing": {"generator": {n: x for n, x in state.items() if n != bias}},
        "shape": {"generator": state | {bias: torch.zeros(3)}},
        "int8": {"generator": state | {linear: codes}},
        "whole numbers": {"generator": state | {bias: torch.zeros(64, dtype=torch.int64)}},
        "another size": {"generator": state | {"model.patch_embedding.weight": torch.zeros(40, 16, 1, 2, 2)}},
        "image to video": {
            "generator": state | {"model.blocks.0.cross_attn.k_img.weight": torch.zeros(24, 24)}
        },
        "nan": {"generator": state | {bias: state[bias] * float("nan")}},
        "section": {"critic": state},
        "family": torch.load(vae, weights_only=True),
        "pickle": {"generator": state, "args": Foreign()},
    }
    if kind in changed:
        torch.save(changed[kind], base)
    elif kind == "truncated":
        base.write_bytes(base.read_bytes()[:3000])
    elif kind == "lora rank":
        write_published(directory, rank=8)
    elif kind == "lora shape":
        tensors = torch.load(lora, weights_only=True)
        tensors["generator_lora"]["base_model.model.blocks.0.ffn.0.lora_B.weight"] = torch.zeros(30, 256)
        torch.save(tensors, lora)
    elif kind == "lora missing":
        lora.unlink()
    elif kind == "vae width":
        torch.save(torch.load(vae, weights_only=True) | {"conv2.weight": torch.zeros(48, 48, 1, 1, 1)}, vae)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"1 missing tensors \(head\.head\.bias\)"),
        ("shape", r"head\.head\.bias: expected shape \(64,\), found \(3,\)"),
        ("int8", r"blocks\.0\.ffn\.0\.weight: int8 numbers without their scale"),
        ("whole numbers", r"head\.head\.bias: expected float32, float16 or bfloat16, found int64"),
        ("another size", r"a DiT of an unpublished size \(width 40\), this model's config is of"),
        ("image to video", r"an image-to-video DiT \(k_img\), which no text-to-video model is"),
        ("nan", r"head\.head\.bias: expected finite numbers, found NaN or infinity"),
        ("section", "expected one of the sections generator, model"),
        ("family", "longlive_base.pt: expected a Wan DiT, found a Wan VAE"),
        ("pickle", "longlive_base.pt: expected tensors alone, found .*Foreign"),
        ("truncated", "longlive_base.pt: truncated or not a file of torch.save"),
        ("lora rank", r"blocks\.0\.self_attn\.q: expected a LoRA of rank 256, found 8"),
        ("lora shape", r"blocks\.0\.ffn\.0: expected a LoRA for shape \(32, 24\), found one for \(30, 24\)"),
        ("lora missing", r"lora: expected models/lora\.pt or lora\.pt or .*, found none"),
        ("vae width", r"conv2\.weight: expected shape \(16, 16, 1, 1, 1\), found \(48, 48, 1, 1, 1\)"),
    ],
)
def test_unfit_weights_are_one_line(
    kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_published(tmp_path)
    broken(kind, tmp_path)
    small = [x for pair in (*SMALL, "decoder=vae") for x in ("--model-set", pair)]
    options = ["--model", LONGLIVE, "--weights", tmp_path, *small, "--device", "cpu"]
    done = call(capsys, "render", "a boat", "-o", tmp_path / "a.mp4", *options)
    assert done.code == 2
    assert re.search(message, done.error()), done.error()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("height=40", "picture size must be a multiple of 16 pixels, found 40x48"),
        ("text.dim=8", "text.dim: expected 16 to fit the other parts, found 8"),
        ("vae.latent_channels=8", "latent_mean must have 8 numbers, found 16"),
        ("dit.latent_channels=8", "dit.latent_channels: expected 16 to fit the other parts, found 8"),
        ("dit.motion_channels=4", "dit.motion_channels: expected 0 to fit the other parts, found 4"),
        ("dit.widht=3", "unknown key 'dit.widht'"),
    ],
)
def test_unfit_configs_are_one_line(override: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        small_config(LONGLIVE, override)
    assert "\n" not in str(caught.value)


def test_safetensors_and_directories(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a directory, found none"):
        opened(LONGLIVE, tmp_path / "no")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "longlive_base.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"truncated or not a file of torch\.save"):
        opened(LONGLIVE, tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    config = replace(small_config(), sources=replace(small_config().sources, dit=("x.safetensors",)))
    from streamgen.wan.weights import gather

    with pytest.raises(CheckpointError, match="expected a Wan DiT, a Wan VAE, TAEHV, UMT5 or LoRA weights"):
        gather(config, tmp_path, ("dit",))
