"""What lies beside weights is found where people have it, and what was found is told in words."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from streamgen import InputError
from streamgen.cli.options import WAN_OPTIONS, wan_options
from streamgen.errors import CheckpointError
from streamgen.wan import adopt as adopting
from streamgen.wan.adopt import AdoptOptions, adopt
from streamgen.wan.config import CONFIGS, read_wan_config
from streamgen.wan.load import prompt_encoder
from streamgen.wan.options import TextOptions
from streamgen.wan.text import UMT5Prompts
from streamgen.wan.weights import placed
from tests.command_line import call
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, tiny_tokenizer, tiny_umt5, write_published

OPTIONS = AdoptOptions(overrides=SMALL)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_published(folder)
    return folder


def bare(published: Path) -> dict[str, torch.Tensor]:
    network = torch.load(published / "self_forcing_dmd.pt", weights_only=True)["generator_ema"]
    return {name.removeprefix("model._fsdp_wrapped_module."): x for name, x in network.items()}


def write_encoder(path: Path) -> Path:
    """A text encoder of one file in the naming of transformers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tiny_umt5().state_dict()
    save_file({n: x.clone() for n, x in state.items() if "embed_tokens" not in n}, path)
    return path


def as_wan(published: Path, root: Path) -> Path:
    """Wan's repository beside a folder of students."""
    for name in ("checkpoints", "Wan2.1-T2V-1.3B"):
        (root / name).mkdir()
    shutil.copy(published / "Wan2.1_VAE.pth", root / "Wan2.1-T2V-1.3B")
    torch.save({"a": torch.zeros(1)}, root / "Wan2.1-T2V-1.3B" / "models_t5_umt5-xxl-enc-bf16.pth")
    return Path(shutil.copy(published / "self_forcing_dmd.pt", root / "checkpoints"))


def as_comfy(published: Path, root: Path) -> Path:
    """ComfyUI's folders of models."""
    for name in ("diffusion_models", "vae"):
        (root / name).mkdir()
    save_file(
        torch.load(published / "Wan2.1_VAE.pth", weights_only=True), root / "vae" / "wan_2.1_vae.safetensors"
    )
    write_encoder(root / "text_encoders" / "umt5_xxl_fp16.safetensors")
    path = root / "diffusion_models" / "self_forcing_dmd.safetensors"
    save_file(bare(published), path)
    return path


@pytest.mark.parametrize(
    ("layout", "vae", "text"),
    [
        (as_wan, "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth", "Wan2.1-T2V-1.3B"),
        (as_comfy, "vae/wan_2.1_vae.safetensors", "text_encoders/umt5_xxl_fp16.safetensors"),
    ],
)
def test_parts_around_a_file(
    layout: object, vae: str, text: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(layout)
    root = tmp_path / "models"
    root.mkdir()
    path = layout(published, root)

    def check() -> None:
        taken = adopt(str(path), options=OPTIONS)["taken"]
        assert taken == {"dit": str(path), "vae": str(root / vae), "text_encoder": str(root / text)}

    assert_needs(check, monkeypatch, adopting, "look_beside", lambda *_: None)
    # --weights FILE finds the same
    config = read_wan_config(CONFIGS / "wan-1.3b-self-forcing.yaml", SMALL)
    assert placed(path, config)[1].sources.vae == (str(root / vae),)
    assert placed(path, config)[1].sources.text_encoder == (str(root / text),)
    report = adopt(str(path), tmp_path / "own", OPTIONS)
    assert report["problems"] == []
    assert report["next"] == f"streamgen render PROMPT --model {tmp_path / 'own'} -o clip.mp4"
    own = read_wan_config(tmp_path / "own" / "config.yaml")
    assert own.sources.vae == (str(root / vae),)


def test_the_encoder_that_was_found_reads_the_prompts(published: Path, tmp_path: Path) -> None:
    path = as_comfy(published, tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    adopt(str(path), tmp_path / "own", AdoptOptions(overrides=(*SMALL, "text.kind=umt5")))
    config = read_wan_config(tmp_path / "own" / "config.yaml")
    prompts = prompt_encoder(config, tmp_path / "own", None, TextOptions(dtype=torch.float32))
    assert isinstance(prompts, UMT5Prompts)
    assert float(prompts.embed("a red boat").abs().max()) > 0
    (tmp_path / "text_encoders" / "umt5_xxl_fp16.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"umt5_xxl_fp16\.safetensors: no such file or folder; --text-enc"
    ):
        prompt_encoder(config, tmp_path / "own", None, TextOptions())


def test_the_encoder_that_is_given(published: Path, tmp_path: Path) -> None:
    path, place = published / "self_forcing_dmd.pt", write_encoder(tmp_path / "words.safetensors")
    for given, expected in (
        (str(place), str(place)),
        (str(tmp_path), str(tmp_path)),
        ("google/umt5-xxl", "google/umt5-xxl"),
    ):
        report = adopt(str(path), options=AdoptOptions(text_encoder=given, overrides=SMALL))
        assert report["taken"]["text_encoder"] == expected
    with pytest.raises(InputError, match="--text-encoder nowhere: no such file or folder, nor owner/repo"):
        adopt(str(path), options=AdoptOptions(text_encoder="nowhere"))


def test_what_streams_with_a_network_alone_is_told(published: Path, tmp_path: Path) -> None:
    for place, option in (
        (published / "Wan2.1_VAE.pth", "--vae"),
        (published / "taew2_1.pth", "--tiny-decoder"),
        (write_encoder(tmp_path / "words.safetensors"), "--text-encoder"),
    ):
        report = adopt(str(place))
        assert report["usable"]
        told = f"alone: it is given as {option} FILE beside a network"
        assert told in report["problems"][0]
        with pytest.raises(CheckpointError, match=told):
            adopt(str(place), tmp_path / "own")


def test_networks_of_other_kinds_are_told(published: Path, tmp_path: Path) -> None:
    """By shapes alone: Wan2.2's image-to-video and 5B models, one with channels for tracks, half a LoRA."""
    network = bare(published)
    patches, head = torch.zeros(24, 36, 1, 2, 2), {"head.head.weight": torch.zeros(192, 24)}
    for name, changes, message in (
        (
            "i2v",
            {"patch_embedding.weight": patches},
            "an image-to-video or control DiT (it reads 36 channels",
        ),
        ("5b", head, "a DiT over the 48 channels of Wan2.2's VAE, which does not stream here"),
        ("tracks", {"patch_embedding.weight": patches[:, :32]}, "for tracks (--like wan-1.3b-motion)"),
        ("lokr", {}, "expected a LoRA, found LoKr"),
    ):
        state = {"blocks.0.ffn.0.lokr_w1": patches} if name == "lokr" else network | changes
        save_file({n: x.clone() for n, x in state.items()}, tmp_path / f"{name}.safetensors")
        report = adopt(str(tmp_path / f"{name}.safetensors"), options=OPTIONS)
        assert message in report["problems"][0 if name != "tracks" else -1], report["problems"]
        assert not any("a LoRA alone" in problem for problem in report["problems"])
        assert report["usable"] == (name == "tracks")
    like = AdoptOptions("wan-1.3b-motion", overrides=SMALL)
    assert adopt(str(tmp_path / "tracks.safetensors"), options=like)["problems"] == []


def test_an_adopted_model_tells_how_its_files_were_read(published: Path, tmp_path: Path) -> None:
    """Without an option of the family nobody was listening."""
    adopt(str(published / "self_forcing_dmd.pt"), tmp_path / "own", OPTIONS)
    given = dict.fromkeys(WAN_OPTIONS) | {"loras": (), "live_loras": (), "model_set": ()}
    told: list[str] = []
    options = wan_options(given | {"model": str(tmp_path / "own")}, told.append)
    assert options is not None
    assert options.note == told.append
    assert wan_options(given | {"model": "tiny"}) is None


def test_the_report_is_for_reading(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line of it is a table's, and each says one thing."""
    small = [text for pair in SMALL for text in ("--model-set", pair)]
    done = call(capsys, "adopt", published / "models", *small)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (
        str(published / "models" / "longlive_base.pt"),
        "    a LoRA, rank 256 in 20 layers, for a DiT of an unpublished size (width 24)",
        f"network: {published / 'models' / 'longlive_base.pt'}",
        f"LoRA: {published / 'models' / 'lora.pt'}",
        "text encoder: hf://Wan-AI/Wan2.1-T2V-1.3B, downloaded when it is needed "
        "(--text-encoder names another)",
        "settings of wan-1.3b-longlive (known as LongLive 1.0 (base) by its name)",
        "    chunk 3, sink 3, window 6 latent frames; 4 steps; positions absolute; 48x32",
        f"next: streamgen adopt {published / 'models'} -o my-model",
    ):
        assert line in lines, done.stdout
    assert max(map(len, lines)) < 250
    (tmp_path / "a.pt").write_bytes(b"<html>no</html>")
    alone = call(capsys, "adopt", tmp_path / "a.pt")
    assert alone.stdout == ""
    assert "an HTML page" in alone.error()
