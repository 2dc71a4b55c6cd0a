"""Text encoders side by side: an old network goes on as it was beside the words stage's encoder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill.families.tiny
from distill.scenes.captions import MAX_WORDS
from distill.stages.causal import CausalStage
from distill.stages.words import TextSizes, WordsStage
from distill.words.heads import WordsConfig, at_objects
from distill.words.told import ATTRIBUTES
from models.text_encoder import TextEncoder, TextEncoderConfig
from tests.distill.test_words import tick, words_run
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, NETWORK, causal_run


def test_towers_are_encoders_of_their_own() -> None:
    config = TextEncoderConfig(vocabulary=11, dim=24, layers=2, heads=2, length=6, towers=3)
    whole = TextEncoder(config)
    randomize(whole, 1)
    alone = TextEncoder(replace(config, dim=8, towers=1))
    ids = torch.tensor([[3, 4, 5, 0, 0, 0], [10, 2, 1, 7, 9, 6], [0, 0, 0, 0, 0, 0]])
    parts = whole(ids).split(8, -1)
    for part, tower in zip(parts, [whole, *whole.beside], strict=True):
        alone.load_state_dict({n: v for n, v in tower.state_dict().items() if not n.startswith("beside.")})
        assert torch.equal(part, alone(ids))
        assert not part[0, 3:].any()
        assert not part[2].any()
    with pytest.raises(ValueError, match=r"heads \(2\) times towers \(3\), found 20"):
        replace(config, dim=20)
    with pytest.raises(ValueError, match="towers must be at least 1, found 0"):
        replace(config, towers=0)


def test_an_old_network_goes_on_beside_the_words_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes what it did, and what it does not read yet says whose words are whose."""
    source = CausalStage(causal_run(tmp_path), CPU)
    randomize(source.network, 3)
    with torch.no_grad():
        for parameter in source.network.parameters():
            parameter.copy_(parameter.bfloat16())
    start, out = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    source.export(start)
    text = TextSizes(NETWORK.text_dim, NETWORK.text_layers, MAX_WORDS)
    made = WordsStage(words_run(tmp_path, text=text), CPU)
    out.mkdir()
    made.export(out)
    wide = replace(NETWORK, text_dim=2 * NETWORK.text_dim, text_towers=2)
    told = made.batch(tick(5))

    def check() -> None:
        words = WordsConfig(str(out), weight=0.1)
        run = causal_run(tmp_path, init=str(start), words=words, network=wide)
        module = CausalStage(run, CPU).module
        said, old = module.text_encoder(told.ids), source.network.text_encoder(told.ids)
        torch.testing.assert_close(said[..., : NETWORK.text_dim], old)
        assert torch.equal(said[..., NETWORK.text_dim :], made.module.encoder(told.ids))
        found, expected = module.dit.embed_text(said), source.network.dit.embed_text(old)
        for one, other in zip(found.keys + found.values, expected.keys + expected.values, strict=True):
            torch.testing.assert_close(one, other)
        # the heads read what they were taught to, in its new place
        assert module.heads is not None
        at, before = at_objects(said, told)[0], at_objects(made.module.encoder(told.ids), told)[0]
        for name in ATTRIBUTES:
            torch.testing.assert_close(module.heads.maps[name](at), made.module.heads.maps[name](before))

    def mixed(tensors: dict[str, torch.Tensor], fresh: torch.nn.Module) -> dict[str, torch.Tensor]:
        key = "text_embedding.0.weight"
        return {**tensors, key: torch.cat([tensors[key]] * 2, 1)}

    assert_needs(check, monkeypatch, distill.families.tiny, "widen_text", mixed)


def test_a_checkpoint_with_towers_opens_again(tmp_path: Path) -> None:
    wide = replace(NETWORK, text_dim=2 * NETWORK.text_dim, text_towers=2)
    stage = CausalStage(causal_run(tmp_path, network=wide), CPU)
    randomize(stage.network, 4)
    with torch.no_grad():
        for parameter in stage.network.parameters():
            parameter.copy_(parameter.bfloat16())
    start = tmp_path / "start"
    start.mkdir()
    stage.export(start)
    again = CausalStage(causal_run(tmp_path, init=str(start), network=wide), CPU)
    for (name, one), other in zip(stage.network.named_parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other), name
