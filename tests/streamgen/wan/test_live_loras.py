"""Live LoRAs: strengths that streams change while they run. Each gives what a merge at it gives, a change
recaches as words do, sessions do not disturb each other, and what cannot be is one line.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.causal_dit import CausalDiT
from models.live_lora import LiveLoras, parse_strengths
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.engine.adapters.live_lora import LiveLoraRunner
from streamgen.engine.runner import PlainRunner
from streamgen.errors import CheckpointError
from streamgen.roofline.parts import timed_parts
from streamgen.stream import step
from streamgen.stream.recache import ByChunk
from streamgen.stream.session import Session
from streamgen.wan.loras import LoraFile
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, lora_tensors, small_config

NAME = "wan-1.3b-self-forcing-steady"
RANK = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two LoRAs for the small network, with alphas."""
    folder = tmp_path_factory.mktemp("loras")
    dit = CausalDiT(small_config(NAME).dit)
    tensors = {name: 4 * x for name, x in lora_tensors(dit, RANK).items()}
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    save_file(
        tensors | {f"{layer}.alpha": torch.tensor(2.0) for layer in layers}, folder / "style.safetensors"
    )
    other = {name: x.flip(0).contiguous() for name, x in tensors.items() if "ffn" in name}
    save_file(other, folder / "pace.safetensors")
    return folder / "style.safetensors", folder / "pace.safetensors"


def opened(merged: dict[Path, float] | None = None, live: dict[Path, float] | None = None) -> Pipeline:
    given = [tuple(LoraFile(str(p), s) for p, s in (files or {}).items()) for files in (merged, live)]
    options = WanOptions(random_weights=True, overrides=SMALL, loras=given[0], live_loras=given[1])
    return load_pipeline(NAME, "cpu", wan=options)


@pytest.fixture(scope="module")
def live(files: tuple[Path, Path]) -> Pipeline:
    return opened(live=dict.fromkeys(files, 1.0))


def latents(session: Session, chunks: int) -> Tensor:
    return torch.cat([next(session).latents for _ in range(chunks)], 1)


@pytest.mark.parametrize("strength", [0.3, 1.0, -0.5])
def test_every_strength_gives_what_a_merge_gives(
    strength: float, files: tuple[Path, Path], live: Pipeline
) -> None:
    style, pace = files
    merged = opened(merged={style: strength, pace: 0.5})
    expected = latents(merged.open("a red boat", 1), 4)
    found = latents(live.open("a red boat", 1, settings={"lora": f"style:{strength}, pace:0.5"}), 4)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    assert (found - latents(live.open("a red boat", 1, settings={"lora": 0}), 4)).abs().max() > 0.01


def test_strength_0_is_the_network_without(live: Pipeline) -> None:
    plain = opened()
    found = live.open("a red boat", 1, settings={"lora": 0})
    assert torch.equal(latents(found, 3), latents(plain.open("a red boat", 1), 3))


@pytest.mark.slow
def test_sessions_with_other_strengths_do_not_disturb_each_other(
    live: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[dict[str, Any]] = [{"lora": "style:0.2"}, {"lora": "style:0.9,pace:0"}]

    def check() -> None:
        alone = [latents(live.open("a red boat", 1, settings=each), 4) for each in settings]
        assert not torch.equal(*alone)
        both = [live.open("a red boat", 1, settings=each) for each in settings]
        turns = [[next(session).latents for session in both] for _ in range(4)]
        for number, expected in enumerate(alone):
            assert torch.equal(torch.cat([turn[number] for turn in turns], 1), expected)

    @contextmanager
    def at_those_of_the_call_before(self: LiveLoraRunner, text: Any) -> Iterator[None]:
        yield
        self.strengths.copy_(text.strengths)

    assert_needs(check, monkeypatch, LiveLoraRunner, "_at", at_those_of_the_call_before)


@pytest.mark.slow
def test_a_change_recaches_as_words_do(
    live: Pipeline, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it the cache is what a merge at the new strength makes of the same chunks."""
    style, pace = files
    merged = opened(merged={style: 1.0, pace: 1.0})

    def check() -> None:
        session = live.open("a red boat", 1, settings={"lora": "0.2"})
        latents(session, 3)
        oracle = merged.open("a red boat", 1)
        latents(oracle, 3)
        state, own = oracle.state, session.state.latents
        chunks = lambda given: tuple(replace(c, text=state.controls.text) for c in given)  # noqa: E731
        swapped = replace(state.latents, context=chunks(own.context), recent=chunks(own.recent))
        oracle._now = replace(oracle._now, state=replace(state, latents=swapped))
        oracle.submit(StreamEvent(cache="recache"))
        receipt = session.submit(StreamEvent(settings={"lora": "1"}))
        torch.testing.assert_close(latents(session, 3), latents(oracle, 3), atol=2e-4, rtol=2e-4)
        assert (receipt.status, receipt.chunk) == ("applied", 3)
        event = session.timeline.events[-1].event
        assert (event.settings, event.cache) == ({"lora": "1"}, "recache")

    def without(self: Any, runner: Any, state: Any, noise: Any, sink: Any, text: Any) -> Any:
        return replace(state, due=False)

    assert_needs(check, monkeypatch, ByChunk, "rebuild", without)


def test_the_cache_may_be_kept(live: Pipeline) -> None:
    session = live.open("a red boat", 1, settings={"lora": "0.2"})
    latents(session, 3)
    twin = session.fork()
    session.submit(StreamEvent(settings={"lora": "1"}, cache="keep"))
    twin.submit(StreamEvent(settings={"lora": "1"}))
    kept, read_again = latents(session, 1), latents(twin, 1)
    assert not torch.equal(kept, read_again)
    assert session.timeline.events[-1].event.cache == "keep"


@pytest.mark.slow
def test_replays_snapshots_and_files_keep_strengths(live: Pipeline, tmp_path: Path) -> None:
    session = live.open("a red boat", 1, settings={"lora": "style:0.3"})
    latents(session, 2)
    session.submit(StreamEvent(settings={"lora": "style:0.8"}))
    latents(session, 1)
    saved, twin = session.snapshot(), session.fork()
    session.save(tmp_path / "stream")
    expected = latents(session, 2)
    assert torch.equal(latents(twin, 2), expected)
    session.restore(saved)
    assert torch.equal(latents(session, 2), expected)
    assert torch.equal(latents(live.resume(tmp_path / "stream"), 2), expected)
    assert torch.equal(latents(live.replay(session.timeline), 5)[:, -6:], expected)
    with pytest.raises(InputError, match="expected model"):
        opened().resume(tmp_path / "stream")


OVER = {"chunks": 3, "every": 2}
# what changes words, and words together with strengths
SCRIPTS: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "over": [(1, {"prompt": "a storm", "over": OVER})],
    "blend": [
        (1, {"blend": {"a storm": 0.4, "a red boat": 0.6}}),
        (3, {"blend": {"a storm": 1.0, "sea": 1.0}}),
    ],
    "blend, over": [(1, {"blend": {"a storm": 0.4, "sea": 0.6}, "over": OVER})],
}


def scripted(session: Session, script: list[tuple[int, dict[str, Any]]], chunks: int = 5) -> Iterator[Tensor]:
    """Latents of chunks, each event submitted before the chunk it is for."""
    for number in range(chunks):
        for at, event in script:
            if at == number:
                session.submit(StreamEvent(**event))
        yield next(session).latents


@pytest.mark.slow
@pytest.mark.parametrize("script", ["over", "blend", "blend, over"])
def test_words_that_come_gradually_are_read_at_the_strength(
    script: str, live: Pipeline, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed prompts, and prompts on the way to others, give what a merge gives; two sessions in turns give
    what each is alone.
    """
    merged = opened(merged={files[0]: 0.4, files[1]: 1.0})

    def check() -> None:
        ours, other = (live.open("a red boat", 1, settings={"lora": f"style:{s}"}) for s in (0.4, 0.9))
        turns = list(zip(scripted(ours, SCRIPTS[script]), scripted(other, SCRIPTS[script]), strict=True))
        expected = list(scripted(merged.open("a red boat", 1), SCRIPTS[script]))
        for (found, _), told in zip(turns, expected, strict=True):
            torch.testing.assert_close(found, told, atol=5e-4, rtol=5e-4)
        alone = live.open("a red boat", 1, settings={"lora": "style:0.9"})
        for (_, found), told in zip(turns, scripted(alone, SCRIPTS[script]), strict=True):
            assert torch.equal(found, told)
        again = live.replay(other.timeline)
        assert all(torch.equal(found, next(again).latents) for _, found in turns)

    read_at = Pipeline.read_at

    def prompts_alone(self: Pipeline, text: Any, strengths: tuple[float, ...]) -> Any:
        if not text.given:
            return read_at(self, text, strengths)
        context = replace(text.context, strengths=torch.tensor(strengths))
        return replace(text, context=context, strengths=strengths)

    assert_needs(check, monkeypatch, Pipeline, "read_at", prompts_alone)


@pytest.mark.slow
@pytest.mark.parametrize("words", [{}, {"prompt": "a storm", "over": {"chunks": 6, "every": 3}}])
def test_a_change_on_the_way_to_other_words_recaches_at_once(
    words: dict[str, Any], live: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the words make the cache anew with every third chunk alone; by itself, and in one event with the
    words that begin.
    """

    def check() -> None:
        first = live.open("a red boat", 1, settings={"lora": "0.2"})
        list(scripted(first, [], 1))
        if not words:
            first.submit(StreamEvent("a storm", over={"chunks": 6, "every": 3}))
        list(scripted(first, [], 1))
        asked, kept = first.fork(), first.fork()
        change: dict[str, Any] = words | {"settings": {"lora": "0.9"}}
        for session, more in ((first, {}), (asked, {"cache": "recache"}), (kept, {"cache": "keep"})):
            session.submit(StreamEvent(**change, **more))  # type: ignore[arg-type]
        by_itself = next(first).latents
        assert torch.equal(by_itself, next(asked).latents)
        assert not torch.equal(by_itself, next(kept).latents)
        list(scripted(first, [], 2))
        replayed = live.replay(first.timeline)
        assert torch.equal(next(first).latents, [next(replayed).latents for _ in range(6)][-1])

    assert_needs(check, monkeypatch, step, "_reads_otherwise", lambda state, controls: False)


def test_guided_streams_read_the_empty_prompt_at_their_strength(
    live: Pipeline, files: tuple[Path, Path]
) -> None:
    style, pace = files
    merged = opened(merged={style: 0.4, pace: 1.0})
    guided = {"text_guidance": 3.0}
    found = latents(live.open("a red boat", 1, settings=guided | {"lora": "style:0.4"}), 2)
    expected = latents(merged.open("a red boat", 1, settings=guided), 2)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mood:1", "setting lora: expected names of style, pace, found mood"),
        ("style:nan", "expected NAME:STRENGTH with a number in -100..100, found 'style:nan'"),
        ("style:1e30", "expected NAME:STRENGTH with a number in -100..100, found 'style:1e30'"),
        (float("inf"), "lora must be in -100..100, found inf"),
        ("style:0.1,style:0.2", "expected each name once, found style twice"),
        ("0.1,0.2", "expected each name once, found a number for all twice"),
        ("style", "expected NAME:STRENGTH"),
        ([1], "setting lora: expected str"),
    ],
)
def test_strengths_that_cannot_be_are_refused_at_every_door(live: Pipeline, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        live.open("a red boat", settings={"lora": value})
    session = live.open("a red boat")
    receipt = session.submit(StreamEvent(settings={"lora": value}))
    assert receipt.status == "refused"
    assert message in str(receipt.reason)


def test_strengths_by_name_for_all_and_by_default() -> None:
    loras = LiveLoras(("a", "b"), (0.5, 1.0), ())
    assert loras.strengths("") == (0.5, 1.0)
    assert loras.strengths("0.2") == (0.2, 0.2)
    assert loras.strengths(" b : -1 ") == (0.5, -1.0)
    assert loras.strengths("a:0,0.3") == (0.0, 0.3)
    assert parse_strengths("x.y:1e-2") == {"x.y": 0.01}


def test_models_and_runners_that_cannot_refuse(live: Pipeline) -> None:
    plain = opened()
    with pytest.raises(InputError, match="has no live LoRAs"):
        plain.open("a red boat", settings={"lora": 0.5})
    for runner in ("onnx", "compile", PlainRunner(live.dit, live.codec)):
        with pytest.raises(InputError, match="cannot change the strengths of LoRAs while it runs"):
            live.open("a red boat", runner=runner)
    session = live.open("a red boat", runner="auto")
    assert isinstance(session.runner, LiveLoraRunner)
    # bench tells its parts apart as those of all others
    with timed_parts(session, True) as copies:
        next(session)
    assert len(copies) == 1


def test_loras_that_can_only_be_merged_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    style, _ = files
    layer, width = "diffusion_model.blocks.0.self_attn.q", 24
    pair = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(width, 1)}
    for name, word in (("dora_scale", "a DoRA"), ("diff_b", "a whole difference")):
        save_file(pair | {f"{layer}.{name}": torch.ones(width)}, tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError, match=f"{word}, which cannot be live: merge it"):
            opened(live={tmp_path / f"{name}.safetensors": 1.0})
    with pytest.raises(InputError, match="given twice"):
        opened(merged={style: 1.0}, live={style: 1.0})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / style.name).write_bytes(style.read_bytes())
    with pytest.raises(InputError, match="two are called style"):
        opened(live={style: 1.0, tmp_path / "sub" / style.name: 1.0})


def test_from_the_command_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [text for pair in SMALL for text in ("--model-set", pair)]
    command = ["render", "a boat", "-o", tmp_path / "out.mp4", "--model", NAME, "--random-weights", *changes]
    done = call(capsys, *command, "--seconds", "0.5", "--live-lora", f"{files[0]}:0.7", "--set", "lora=0.25")
    assert done.code == 0, done.stderr
    assert "style: 20 changes live at strength 0.7" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["lora"] == "0.25"
    assert "strength: expected a number in -100..100, found nan" in call(capsys, *command, "--live-lora", f"{files[0]}:nan").error()
