"""Folders on the hub: sharded networks with their shards, text encoders wherever a repository has them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streamgen.checkpoints.foreign import read_foreign
from streamgen.checkpoints.hub import fetch
from streamgen.errors import CheckpointError
from streamgen.wan import text, weights
from streamgen.wan.adopt import adopt
from streamgen.wan.config import TextConfig
from tests.foreign_layouts import plain, write_shards
from tests.hub_server import COMMIT, Hub, asked_hub
from tests.tiny_models import assert_needs


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(tmp_path / "hub", tmp_path / "cache", monkeypatch) as found:
        yield found


def test_an_index_comes_with_its_shards(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came alone, and its shards were said to be missing. The folder is called like a file."""
    places = ("model-00001-of-00002.safetensors", "below/model-00002-of-00002.safetensors")
    index = write_shards(tmp_path / "hub" / "owner" / "sharded" / "v1.0", plain(), places)
    place = f"hf://owner/sharded/v1.0/{index.name}@{COMMIT}"
    assert adopt("hf://owner/sharded/v1.0")["taken"]["dit"] == place

    def check() -> None:
        shutil.rmtree(tmp_path / "cache")
        path = weights.existing(None, (place,))
        assert path is not None
        try:
            found = read_foreign(path, ("",)).tensors
        except CheckpointError as error:
            raise AssertionError(str(error)) from None
        assert all(torch.equal(found[name], x) for name, x in plain().items())

    assert_needs(check, monkeypatch, weights, "fetch_weights", fetch)


BOTH, INNER = "owner/both", "text_encoder"


@pytest.mark.parametrize(
    ("source", "tokenizer", "encoder"),
    [
        ("hf://owner/both", (BOTH, "tokenizer", "main"), (BOTH, INNER, "main")),
        (f"hf://owner/both/text_encoder@{COMMIT}", (BOTH, "tokenizer", COMMIT), (BOTH, INNER, COMMIT)),
        ("hf://owner/bare", ("owner/bare", "", "main"), ("owner/bare", "", "main")),
        ("hf://owner/wan", ("owner/wan", "google/umt5-xxl", "main"), None),
        ("hf://owner/wan/models_t5_a.pth", ("google/umt5-xxl", None, None), None),
        ("owner/plain", ("owner/plain", None, None), ("owner/plain", None, None)),
    ],
)  # fmt: skip
def test_text_encoders(
    source: str,
    tokenizer: tuple[str | None, ...],
    encoder: tuple[str | None, ...] | None,
    server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What transformers is asked for, of repositories of diffusers, transformers and Wan, and of a file."""
    for name in (
        *("both/text_encoder/config.json", "both/tokenizer/a.json", "bare/config.json"),
        *("wan/models_t5_a.pth", "wan/google/umt5-xxl/a.json"),
    ):
        (tmp_path / "hub" / "owner" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / "owner" / name).write_text("{}", encoding="utf-8")
    asked: list[tuple[object, ...]] = []

    def load(kind: str, place: str, **options: object) -> None:
        asked.append((place, options.get("subfolder"), options.get("revision")))
        raise CheckpointError("enough")

    monkeypatch.setattr(text, "_from_pretrained", load)
    prompts = text.UMT5Prompts(source, TextConfig(dim=16, length=6))
    with pytest.raises(CheckpointError, match="enough"):
        prompts.words("a boat")
    assert asked == [tokenizer]
    with pytest.raises(CheckpointError, match="enough" if encoder else r"models_t5_a\.pth"):
        prompts._load()
    assert asked[1:] == ([] if encoder is None else [encoder])
