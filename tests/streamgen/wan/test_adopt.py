"""`streamgen adopt`, and weights by their names on the hub: what a file is, a config that streams it,
downloads that are cached, gone on with and compared; no network but a server of this machine.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from streamgen import InputError, load_pipeline
from streamgen.checkpoints import foreign, hub
from streamgen.checkpoints.hub import HubSource, fetch, list_files, parse_hub, pinned
from streamgen.errors import CheckpointError
from streamgen.wan.adopt import AdoptOptions, adopt
from streamgen.wan.config import read_wan_config
from streamgen.wan.loras import LoraFile, with_loras
from streamgen.wan.options import WanOptions
from streamgen.wan.releases import RELEASES, find_release
from tests.command_line import call
from tests.foreign_layouts import Layout, plain, write, write_shards
from tests.hub_server import COMMIT, Hub, asked_hub
from tests.lora_files import NAMINGS
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, write_published

REPO = "hf://owner/repo"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_published(folder / "owner" / "repo")
    return folder


@pytest.fixture
def server(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(published, tmp_path / "cache", monkeypatch) as found:
        yield found


def small(*more: str) -> AdoptOptions:
    return AdoptOptions(overrides=(*SMALL, *more))


def loading(weights: object, *more: str) -> WanOptions:
    return WanOptions(weights=str(weights), overrides=(*SMALL, *more), check_memory=False)


def first_frames(model: object, options: WanOptions | None = None) -> torch.Tensor:
    options = options or WanOptions(check_memory=False)
    return next(load_pipeline(str(model), "cpu", wan=options).open("a boat", seed=1)).frames


def digest(options: WanOptions) -> str:
    return load_pipeline("wan-1.3b-self-forcing", "cpu", wan=options).parts.digest


def test_a_folder_is_told_and_streams(published: Path, tmp_path: Path) -> None:
    """Known by name: LongLive's base with its LoRA, its settings, the VAE beside it."""
    folder = tmp_path / "weights"
    (folder / "models").mkdir(parents=True)
    for name in ("models/longlive_base.pt", "models/lora.pt", "Wan2.1_VAE.pth"):
        (folder / name).write_bytes((published / "owner" / "repo" / name).read_bytes())
    encoder = {"token_embedding.weight": torch.zeros(3, 2), "blocks.0.attn.q.weight": torch.zeros(2, 2)}
    torch.save(encoder, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    report = adopt(str(folder), tmp_path / "own", small())
    assert report["problems"] == []
    assert read_wan_config(tmp_path / "own" / "config.yaml").sources.text_encoder == (str(folder),)
    assert report["settings_of"].startswith("wan-1.3b-longlive (known as LongLive 1.0 (base)")
    assert {Path(place).name for place in report["taken"].values()} == {
        "longlive_base.pt", "lora.pt", "Wan2.1_VAE.pth", "weights",
    }  # fmt: skip
    assert torch.equal(first_frames(tmp_path / "own"), first_frames("wan-1.3b-longlive", loading(folder)))
    assert json.loads((tmp_path / "own" / "adopted.json").read_text())["taken"] == report["taken"]


def test_no_number_is_read(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        report = adopt(str(published / "owner" / "repo"))
        assert report["usable"]

    def loads(*args: object, **options: object) -> None:
        raise AssertionError("numbers were read")

    monkeypatch.setattr(foreign, "load_file", loads)
    real = torch.load

    def meta_alone(*args: object, **options: object) -> object:
        assert options["map_location"] == "meta"
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", meta_alone)
    real_names = foreign.read_payload
    from streamgen.wan import adopt as adopting

    assert_needs(check, monkeypatch, adopting, "read_names", lambda place: real_names(Path(place)))


def test_unknown_weights_say_what_is_assumed(published: Path, tmp_path: Path) -> None:
    """Quantised, of no known name: sizes from the tensors, settings assumed and changed by options."""
    path = write(tmp_path / "mine.safetensors", Layout("scaled_fp8", prefix="net.").payload())
    report = adopt(str(path))
    (told,) = report["files"].values()
    assert (told["kind"], told["prefix"], told["quantisation"]) == ("a Wan DiT", "net.", "fp8 (scaled)")
    assert told["size"].startswith("an unpublished size: width 24, 2 layers")
    assert "assumed" in report["settings_of"]
    assert set(report["published"]) == {"vae", "text_encoder"}
    index = write_shards(tmp_path / "sharded", Layout().payload(), ("a-00001.safetensors",))
    # a shard that is not called after its index is a file of its own
    assert [Path(place).name for place in adopt(str(index.parent))["files"]][-1] == index.name


def test_options_are_taken(published: Path, tmp_path: Path) -> None:
    source = published / "owner" / "repo"
    options = AdoptOptions(
        "wan-1.3b-causal-forcing-frame",
        str(source / "Wan2.1_VAE.pth"),
        overrides=(*SMALL, "plan.window_frames=4", "sampling.steps=2", "sampling.rope=relative"),
    )
    adopt(str(source / "self_forcing_dmd.pt"), tmp_path / "own", options)
    pipeline = load_pipeline(tmp_path / "own", "cpu", wan=WanOptions(check_memory=False))
    assert (pipeline.plan.chunk_frames, pipeline.plan.window_frames) == (1, 4)
    assert (pipeline.settings.steps, pipeline.settings.rope) == (2, "relative")


def test_a_whole_checkpoint_brings_its_vae(published: Path, tmp_path: Path) -> None:
    """ComfyUI's: network, VAE and more in one file, which is all that is needed."""
    source = published / "owner" / "repo"
    network = torch.load(source / "chunkwise" / "causal_forcing.pt", weights_only=True)["generator"]
    whole = {n.replace("model.", "model.diffusion_model.", 1): x for n, x in network.items()}
    vae = torch.load(source / "Wan2.1_VAE.pth", weights_only=True)
    save_file(whole | {f"vae.{name}": x for name, x in vae.items()}, tmp_path / "all.safetensors")
    report = adopt(str(tmp_path / "all.safetensors"), tmp_path / "own", small())
    assert report["problems"] == []
    # the folder has TAEHV beside it, the one file has not
    expected = first_frames("wan-1.3b-causal-forcing-chunk", loading(source, "decoder=vae"))
    assert torch.equal(first_frames(tmp_path / "own"), expected)


def test_a_release_changes_what_it_is_known_for(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "framewise" / "ar" / "model.pt"
    source.parent.mkdir(parents=True)
    source.write_bytes((published / "owner" / "repo" / "self_forcing_dmd.pt").read_bytes())
    report = adopt(str(source), tmp_path / "own", small("decoder=none"))
    (told,) = report["files"].values()
    assert "four steps are assumed" in told["release_note"]
    plan = load_pipeline(tmp_path / "own", "cpu").plan
    assert (plan.chunk_frames, plan.sink_frames, plan.window_frames) == (1, 4, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AdoptOptions("wan-9"), "--like wan-9: expected one of wan-1.3b-"),
        (small("dit.widht=3"), "adopted config: unknown key 'dit.widht'"),
        (AdoptOptions(vae="nothing.pt"), "--vae nothing.pt: expected a Wan VAE: weights .*no such"),
        (AdoptOptions(overrides=("x",)), "adopted config: "),
    ],
)
def test_unfit_options_are_one_line(
    options: AdoptOptions, message: str, published: Path, tmp_path: Path
) -> None:
    source = published / "owner" / "repo" / "self_forcing_dmd.pt"
    with pytest.raises((InputError, CheckpointError), match=message) as caught:
        adopt(str(source), tmp_path / "own", options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "own").exists()


def test_the_command(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = published / "owner" / "repo"
    done = call(capsys, "adopt", source / "models" / "lora.pt", "--json")
    report = json.loads(done.stdout)
    assert report["files"][str(source / "models" / "lora.pt")]["rank"] == [256]
    assert "given as --lora" in report["problems"][0]
    (tmp_path / "page.pt").write_bytes(b"<html>no</html>")
    assert "an HTML page, not weights" in call(capsys, "adopt", tmp_path / "page.pt").error()
    assert "no such file or folder" in call(capsys, "adopt", tmp_path / "none").error()
    (tmp_path / "empty").mkdir()
    assert "expected weights files" in call(capsys, "adopt", tmp_path / "empty").error()
    refused = call(capsys, "adopt", source, "-o", tmp_path)
    assert "expected a folder that is empty" in refused.error()


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a help text are markup, and a closing one without its beginning was a traceback."""
    for command, words in (("adopt", "hf://owner/repo"), ("render", "FILE:STRENGTH")):
        done = call(capsys, command, "--help")
        assert done.code == 0
        assert words in done.stdout


RCM = "Causal_rCM_Wan2.1_T2V_1.3B_480p_TF-dCM-init"


@pytest.mark.parametrize(
    ("name", "steps", "chunk"), [("c3-3_step4", 4, 3), ("c3-3_step2", 2, 3), ("c1-1_step1", 1, 1)]
)
def test_a_release_says_what_of_its_config_is_other(
    name: str, steps: int, chunk: int, published: Path, tmp_path: Path
) -> None:
    """rCM's files differ in their steps, which stand in their names."""
    state = torch.load(published / "owner" / "repo" / "self_forcing_dmd.pt", weights_only=True)
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / f"{RCM}_SF-DMD_{name}.pt"
    weights = {key.replace("model.", "net.", 1): x for key, x in state["generator"].items()}
    weights["net.patch_embedding.weight"] = weights["net.patch_embedding.weight"].flatten(1)
    torch.save(weights | {"net.accum_iteration": torch.tensor(3)}, path)
    vae = published / "owner" / "repo" / "Wan2.1_VAE.pth"
    report = adopt(str(path), tmp_path / "own", replace(small("decoder=vae"), vae=str(vae)))
    assert report["problems"] == []
    first_frames(tmp_path / "own")
    assert report["settings_of"].startswith(f"wan-1.3b-rcm-{'chunk' if chunk == 3 else 'frame'}")
    config = read_wan_config(tmp_path / "own" / "config.yaml")
    assert (config.sampling.steps, config.plan.chunk_frames) == (steps, chunk)
    other = replace(small(), vae=str(vae), like="wan-1.3b-self-forcing")
    adopt(str(path), tmp_path / "like", other)
    assert read_wan_config(tmp_path / "like" / "config.yaml").sampling.steps == 4


def test_a_file_where_a_model_is_asked_for_is_told_what_to_type(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published / "owner" / "repo"
    out = ["-o", tmp_path / "a.mp4"]
    file = call(capsys, "render", "a boat", *out, "--model", folder / "self_forcing_dmd.pt").error()
    assert "found a file; streamgen adopt FILE -o DIR makes a model of it" in file
    for door in (["render", "a boat", *out, "--model", folder], ["inspect", folder]):
        assert "streamgen adopt makes one of published Wan weights" in call(capsys, *door).error()
    tiny = [text for pair in SMALL for text in ("--model-set", pair)]
    other = ["--model", "wan-1.3b-one-forcing", "--weights", folder, *tiny]
    assert (
        "streamgen adopt makes a config for files of other names"
        in call(capsys, "render", "a boat", *out, *other).error()
    )


def test_a_checkpoint_of_our_own_is_told_to_be_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    line = call(capsys, "adopt", folder / "model.safetensors").error()
    assert f"a checkpoint of streamgen itself: --model {folder} takes its folder" in line


def test_refusals_name_the_file(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not only the folder in which it lies."""
    state = torch.load(published / "owner" / "repo" / "self_forcing_dmd.pt", weights_only=True)["generator"]
    bias, patch = "model.head.head.bias", "model.patch_embedding.weight"
    cases: dict[str, dict[str, torch.Tensor]] = {
        "missing": {name: x for name, x in state.items() if name != bias},
        "shape": state | {bias: torch.zeros(3)},
        "nan": state | {bias: state[bias] * float("nan")},
        "another size": state | {patch: torch.zeros(40, 16, 1, 2, 2)},
        "image to video": state | {"model.blocks.0.cross_attn.k_img.weight": torch.zeros(24, 24)},
    }
    vae = f"sources.vae=[{published / 'owner' / 'repo' / 'Wan2.1_VAE.pth'}]"
    for name, weights in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"generator": weights}, path)
        with pytest.raises(CheckpointError, match=f"{name}.pt") as caught:
            load_pipeline("wan-1.3b-self-forcing", "cpu", wan=loading(path, "decoder=vae", vae))
        assert "\n" not in str(caught.value)
    report = call(capsys, "adopt", tmp_path / "missing.pt").error()
    assert "missing.pt: 1 tensors are missing (head.head.bias" in report


def test_releases_are_told_apart() -> None:
    for place, config in (
        ("gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt", "wan-1.3b-self-forcing"),
        ("zhuhz22/Causal-Forcing/framewise/causal_forcing.pt", "wan-1.3b-causal-forcing-frame"),
        ("/x/chunkwise/causal_forcing.pt", "wan-1.3b-causal-forcing-chunk"),
        ("C:\\x\\causal_forcing-framewise.safetensors", "wan-1.3b-causal-forcing-frame"),
        ("a/models/longlive_base.pt", "wan-1.3b-longlive"),
        ("JunhaoZhuang/Self_Gradient_Forcing/chunkwise/ar/model.pt", "wan-1.3b-self-gradient-forcing-chunk"),
        ("/x/framewise/ar/model.pt", "wan-1.3b-self-gradient-forcing-frame"),
        ("zhuhz22/Causal-Forcing/causal-forcing++/framewise-2step.pt", "wan-1.3b-causal-forcing-2step"),
        ("framewise-1step.pt", "wan-1.3b-causal-forcing-1step"),
        ("JaydenLu666/Reward-Forcing-T2V-1.3B/rewardforcing.pt", "wan-1.3b-reward-forcing"),
        ("JiaqiFeng/OneForcing/checkpoints/one_forcing.pt", "wan-1.3b-one-forcing"),
        ("worstcoder/rcm-Wan/Causal_rCM_Wan2.1_T2V_1.3B_480p_TF-dCM_c3-3.pt", "wan-1.3b-rcm-chunk"),
        (f"{RCM}_SF-DMD_c3-3_step4.pt", "wan-1.3b-rcm-chunk"),
        (f"{RCM}_SF-DMD_c1-1_step2.pt", "wan-1.3b-rcm-frame"),
        ("/x/Causal_rCM_Wan2.1_T2V_1.3B_480p_TF_Diffusion_c3-3.pt", None),
        ("rCM_Wan2.1_T2V_1.3B_480p.pt", None),
        ("Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors", None),
    ):
        release = find_release(place)
        assert release is not None, place
        assert release.config == config
    assert find_release("a/b.pt") is None
    assert all(re.compile(release.pattern) for release in RELEASES)


def test_weights_by_name_on_the_hub(server: Hub, published: Path, tmp_path: Path) -> None:
    """Adopted without a download, streamed from the cache; the same as from the folder."""
    report = adopt(f"{REPO}/self_forcing_dmd.pt@main", tmp_path / "own", small())
    assert report["settings_of"].startswith("wan-1.3b-self-forcing")
    assert not (tmp_path / "cache").exists()
    expected = digest(loading(published / "owner" / "repo", "decoder=tiny"))
    assert digest(loading(REPO, "decoder=tiny")) == expected
    asked = len(server.requests)
    assert digest(loading(f"{REPO}/self_forcing_dmd.pt", "decoder=tiny")) == expected
    assert all(method == "HEAD" or span for method, _, span in server.requests[asked:])


def test_names_of_a_remote_file_cost_little(server: Hub, published: Path) -> None:
    folder = published / "owner" / "big"
    folder.mkdir(exist_ok=True)
    state = Layout().payload() | {"vae.encoder.conv1.weight": torch.zeros(2**21)}
    save_file(state, folder / "a.safetensors")
    list_files.cache_clear()
    report = adopt("hf://owner/big")
    assert report["files"][f"hf://owner/big/a.safetensors@{COMMIT}"]["kind"] == "a Wan DiT"
    assert server.sent < 2.2 * 2**20 < (folder / "a.safetensors").stat().st_size


def test_loras_by_name_on_the_hub(server: Hub, published: Path) -> None:
    """By their file or their repository alone; what PEFT wrote of their training comes with them."""
    folder = published / "owner" / "style"
    folder.mkdir(exist_ok=True)
    save_file(NAMINGS["PEFT, no alpha"](), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}), encoding="utf-8")
    list_files.cache_clear()
    expected = with_loras(plain(), [LoraFile(str(folder / "adapter_model.safetensors"))])[0]
    for place in (
        "hf://owner/style/adapter_model.safetensors",
        "hf://owner/style",
        f"hf://owner/style@{COMMIT}",
    ):
        found = with_loras(plain(), [LoraFile(place)])[0]
        assert all(torch.equal(found[name], x) for name, x in expected.items()), place
    save_file(NAMINGS["PEFT, no alpha"](), folder / "other.safetensors")
    save_file(NAMINGS["PEFT, no alpha"](), folder / "third.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    list_files.cache_clear()
    with pytest.raises(CheckpointError, match=r"--lora hf://owner/style: expected one LoRA file .*found 2"):
        with_loras(plain(), [LoraFile("hf://owner/style")])


def test_what_the_hub_has_in_place_of_weights_is_told(server: Hub, published: Path) -> None:
    folder = published / "owner" / "wrong"
    folder.mkdir(exist_ok=True)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5600000000\n"
    for name, content, message in (
        ("a.safetensors", pointer, "a Git LFS pointer of 5.6 GB"),
        ("a.pt", "<!doctype html><html></html>", "an HTML page, not weights"),
        ("b.pt", "Entry not found", "a text, not weights"),
        ("c.gguf", "GGUF", "GGUF is not read"),
    ):
        (folder / name).write_text(content, encoding="utf-8")
        report = adopt(f"hf://owner/wrong/{name}")
        assert message in report["problems"][0], name
        assert not report["usable"]


def test_the_cache_is_enough_offline(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a listing, once files are there."""
    source = HubSource("owner/repo", "taew2_1.pth")
    path = fetch(source)
    list_files.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.requests)
    assert fetch(source) == path
    assert list_files("owner/repo", None) == ("taew2_1.pth",)
    assert pinned(source).revision == COMMIT
    assert len(server.requests) == asked
    with pytest.raises(CheckpointError, match="not in the cache, and the hub cannot be reached"):
        fetch(HubSource("owner/repo", "Wan2.1_VAE.pth"))


def test_a_download_goes_on_where_it_broke_off(
    server: Hub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    server.cut = 30_000
    path = fetch(HubSource("owner/repo", "taew2_1.pth"))
    assert path.read_bytes() == (published / "owner" / "repo" / "taew2_1.pth").read_bytes()
    assert "bytes=30000-" in {span for _, _, span in server.requests}


def test_damage_on_the_way_is_found(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.damaged = True

    def check() -> None:
        text = ""
        try:
            fetch(HubSource("owner/repo", "taew2_1.pth"))
        except CheckpointError as error:
            text = str(error)
        assert "damaged on the way (its sha256 is not" in text

    assert_needs(check, monkeypatch, hub, "_check_sum", lambda source, path: None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://owner", "expected hf://owner/repo"),
        ("hf://owner/repo/../x.pt", "expected hf://owner/repo"),
        ("hf://owner/none/x.pt", "no such repository, or a private one"),
        ("hf://owner/none", "no such repository, or a private one"),
        ("hf://owner/repo/none.pt", "no such file in the repository"),
        ("hf://owner/repo/taew2_1.pth@old", "no such revision"),
        ("hf://owner/repo/models@main/x", "expected a file that ends in|no such|expected weights files"),
    ],
)
def test_unfit_names_are_one_line(
    source: str, message: str, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, call(capsys, "adopt", source).error())


def test_names_on_the_hub() -> None:
    assert parse_hub("hf://a/b/c/d.pt@v1") == HubSource("a/b", "c/d.pt", "v1")
    assert parse_hub("hf:/a/b") == HubSource("a/b")
    assert str(parse_hub(f"hf://a/b.c/x@{COMMIT}")) == f"hf://a/b.c/x@{COMMIT}"
