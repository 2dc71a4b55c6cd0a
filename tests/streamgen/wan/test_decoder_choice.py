"""`decoder: auto`: TAEHV where its weights are there, else the Wan VAE, and a note of what was taken."""

import shutil
from pathlib import Path

import pytest

import streamgen.wan.load
from models.tiny_decoder import TinyDecoder
from models.wan_vae import WanVAE
from streamgen import Pipeline, load_pipeline
from streamgen.families import inspect_checkpoint
from streamgen.wan.config import WanConfig
from streamgen.wan.convert import convert_weights
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, write_published

NAME = "wan-1.3b-self-forcing"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Published weights with both decoders, and without TAEHV."""
    both = tmp_path_factory.mktemp("weights")
    write_published(both)
    alone = tmp_path_factory.mktemp("alone") / "weights"
    shutil.copytree(both, alone)
    (alone / "taew2_1.pth").unlink()
    return both, alone


def opened(weights: Path | None, *more: str, name: str | Path = NAME) -> Pipeline:
    own = () if isinstance(name, Path) else SMALL
    options = WanOptions(weights=weights, random_weights=weights is None, overrides=(*own, *more))
    return load_pipeline(name, "cpu", wan=options)


def of_decoder(pipeline: Pipeline) -> tuple[str, ...]:
    """What is said of the decoder; that these weights were made for larger pictures is said as well."""
    return tuple(note for note in pipeline.parts.notes if note.startswith("decoder"))


def test_what_is_there_decides(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    both, alone = folders

    def check() -> None:
        quick = opened(both)
        assert isinstance(quick.codec, TinyDecoder)
        assert of_decoder(quick) == (
            "decoder: TAEHV, taew2_1.pth is there (--model-set decoder=vae takes the Wan VAE)",
        )
        assert next(quick.open("a boat", settings={"steps": 1})).frames.float().std() > 1
        asked = opened(both, "decoder=tiny")
        assert (asked.digest, of_decoder(asked)) == (quick.digest, ())
        assert isinstance(quick.config, WanConfig)
        assert quick.config.decoder == "tiny"

    vae = opened(alone)
    assert isinstance(vae.codec, WanVAE)
    assert of_decoder(vae) == ("decoder: the Wan VAE, there is no taew2_1.pth or taew2_1.safetensors",)
    assert isinstance(opened(both, "decoder=vae").codec, WanVAE)
    random = opened(None)
    assert isinstance(random.codec, WanVAE)
    assert of_decoder(random) == ()
    decide = streamgen.wan.load.with_decoder
    nowhere = lambda config, directory: decide(config, None)  # noqa: E731
    assert_needs(check, monkeypatch, streamgen.wan.load, "with_decoder", nowhere)


@pytest.mark.slow
def test_converted_folders_too(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The converted config leaves it open, so a TAEHV that is put there later is taken."""
    for source, kind in zip(folders, (TinyDecoder, WanVAE), strict=True):
        ours = tmp_path / source.parent.name / "ours"
        convert_weights(source, ours, "streamgen", NAME, SMALL)
        assert isinstance(load_pipeline(ours, "cpu").codec, kind)
        report = inspect_checkpoint(ours)
        assert report["problems"] == []
        assert ("TAEHV, tiny_decoder.safetensors" in report["decoder"]) == (kind is TinyDecoder)
    shutil.copyfile(folders[0] / "taew2_1.pth", ours / "taew2_1.pth")
    assert isinstance(load_pipeline(ours, "cpu").codec, TinyDecoder)


@pytest.mark.slow
def test_the_command_says_it(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [x for pair in SMALL for x in ("--model-set", pair)]
    model = ["--model", NAME, "--weights", folders[0], *small]
    done = call(capsys, "render", "a boat", "-o", tmp_path / "a.mp4", *model, "--seconds", 0.5)
    assert done.code == 0, done
    assert "decoder: TAEHV, taew2_1.pth is there" in done.stderr
