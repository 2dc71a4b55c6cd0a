"""Words: captions with what they say, heads that learn whose it is, gates, and the term that keeps it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.__main__ import main
from distill.config import CheckpointConfig, OptimConfig, PreviewConfig, write_yaml
from distill.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    SIZES,
    SceneConfig,
    caption_vocabulary,
)
from distill.scenes.captions import object_places
from distill.scenes.vocabulary import COLOUR_WORDS, SIZE_WORDS
from distill.stage import Tick
from distill.stages.causal import CausalStage
from distill.stages.diffusion import DiffusionStage
from distill.stages.init import InitStage
from distill.stages.self_forcing import SelfForcingStage
from distill.stages.teacher import TeacherStage
from distill.stages.words import TextSizes, WordsRun, WordsStage
from distill.words import told
from distill.words.heads import AttributeHeads, WordsConfig, at_objects
from distill.words.probes import binding_probes, told_accuracies
from distill.words.told import ATTRIBUTES, CaptionSampler, ToldBatch, Which, is_test
from models.text_encoder import Vocabulary
from streamgen.structured import to_plain
from tests.tiny_models import assert_needs
from tests.tiny_stages import CPU, NETWORK, causal_run, init_run, self_forcing_run, teacher_run

WORLD = Vocabulary(caption_vocabulary())
SCENES = SceneConfig(object_weights=(0.3, 0.4, 0.3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(which: Which, count: int = 300, seed: int = 0) -> list[str]:
    sampler = CaptionSampler(WORLD, 24, SCENES)
    return [caption for caption, _, _ in sampler._captions(count, generator(seed), which)]


def test_no_training_caption_is_a_test_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same generator would draw both: without the check, one in twenty of training's is one."""

    def check() -> None:
        train = {caption for seed in range(3) for caption in texts("train", 1000, seed)}
        assert not any(is_test(caption) for caption in train)

    assert_needs(check, monkeypatch, told, "is_test", lambda caption: False)
    test = texts("test")
    assert all(is_test(caption) for caption in test)
    assert len(set(test)) > 250


def test_held_out_pairs_are_drawn_only_when_asked_for() -> None:
    """Even from a world that has them."""
    sampler = CaptionSampler(WORLD, 24, replace(SCENES, include_held_out=True))
    for which in ("train", "test"):
        drawn = sampler.draw(500, generator(), which)  # type: ignore[arg-type]
        assert not pairs_of(drawn) & HELD_OUT
    assert pairs_of(sampler.draw(200, generator(), "held_out")) >= HELD_OUT


def pairs_of(drawn: ToldBatch) -> set[tuple[str, str]]:
    _, labels = at_objects(drawn.ids[..., None].float(), drawn)
    pairs = zip(labels["colour"].tolist(), labels["shape"].tolist(), strict=True)
    return {(COLOURS[c], SHAPES[s]) for c, s in pairs if c < len(COLOURS)}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle moves left and a ball rises over the sea", ["circle", "ball"]),
        ("in a starry sky, star circling", ["star"]),
    ],
)
def test_objects_stand_where_their_shape_is_said(prompt: str, expected: list[str]) -> None:
    words = prompt.replace(",", "").split()
    assert [words[i] for i in object_places(prompt)] == expected


def test_labels_are_what_the_caption_says() -> None:
    """Words of a class that a caption is said to name stand in it, and none of a size or colour it is not."""
    sampler = CaptionSampler(WORLD, 24, SCENES)
    found = sampler._captions(400, generator(), "train")
    drawn = sampler.draw(400, generator(), "train")
    for row, (caption, objects, said) in enumerate(found):
        words = caption.replace(",", "").split()
        for slot, (colour, shape, size, motion, background) in enumerate(objects):
            at = int(drawn.place[row, slot])
            labels = {name: int(values[row, slot]) for name, values in drawn.labels.items()}
            assert labels["shape"] == shape
            assert labels["background"] == (background if said.background else len(BACKGROUNDS))
            assert labels["motion"] == (motion if said.motion[slot] else len(MOTIONS))
            before = words[at - 1] if at else ""
            assert (before in COLOUR_WORDS[COLOURS[colour]]) == (labels["colour"] < len(COLOURS))
            near = " ".join(words[max(0, at - 3) : at])
            sized = any(near.endswith(f"{w} {before}") or near.endswith(w) for w in SIZE_WORDS[SIZES[size]])
            assert sized == (labels["size"] < len(SIZES)), caption
        assert (drawn.place[row] >= 0).sum() == len(objects)


def test_a_vocabulary_without_a_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORLD.words if word != "zigzags"]
    file = tmp_path / "words.txt"
    file.write_text("\n".join(words) + "\n")
    config = tmp_path / "words.yaml"
    write_yaml(to_plain(words_run(tmp_path, vocabulary=str(file))), config)
    assert main([str(config)]) == 2
    error = capsys.readouterr().err
    assert "none for the motion 'zigzag' ('zigzags' is missing)" in error
    assert error.strip().count("\n") == 0


def words_run(tmp_path: Path, **changes: Any) -> WordsRun:
    """A small encoder for a few updates."""
    settings: dict[str, Any] = {
        "stage": "words",
        "run_dir": str(tmp_path / "words"),
        "max_steps": 3,
        "seed": 0,
        "trackers": (),
        "text": TextSizes(dim=NETWORK.text_dim, layers=NETWORK.text_layers),
        "scenes": SCENES,
        "batch": 16,
        "test": 40,
        "log_every": 1,
        "optim": OptimConfig(matrices="adamw", warmup_steps=1, decay="none"),
        "checkpoint": CheckpointConfig(every_steps=None, every_minutes=None),
        "preview": PreviewConfig(every_minutes=None, at_start=False, at_end=False),
        **changes,
    }
    return WordsRun(**settings)


@pytest.mark.slow
def test_a_missed_gate_ends_the_stage_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is exported, so that a recipe stops; the command that is named exports what there is."""
    config = tmp_path / "words.yaml"
    write_yaml(to_plain(words_run(tmp_path)), config)
    assert main([str(config)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: words, captions never trained on: colour 0.")
    assert "objects)" in error
    assert "expected >= 0.99" in error
    command = f"python -m distill {config} gate=0"
    assert error.endswith(f"To go on anyway: {command}")
    assert not list((tmp_path / "words" / "export").glob("*.safetensors"))
    assert main([str(config), "gate=0"]) == 0
    lines = capsys.readouterr().err
    assert "test captions: motion" in lines
    assert "captions with held-out pairs: colour" in lines
    assert {p.name for p in (tmp_path / "words" / "export").iterdir()} == {
        *("words.safetensors", "vocabulary.txt", "words.yaml")
    }


def learn(parameters: Any, loss: Callable[[int], Tensor], steps: int, rate: float = 1e-2) -> list[float]:
    optimizer = torch.optim.AdamW(list(parameters), lr=rate)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


@pytest.mark.slow
def test_captions_teach_whose_attributes_are_whose(tmp_path: Path) -> None:
    """A small encoder, seconds: colours and motions of objects among others, on captions never trained on."""
    run = words_run(tmp_path, text=TextSizes(dim=32, layers=2), batch=48)
    stage = WordsStage(run, CPU)
    learn(
        stage.module.parameters(),
        lambda step: stage.loss(stage.module, stage.batch(tick(step)))[0],
        150,
        6e-3,
    )
    found = stage.measured(200)
    assert set(found) == set(ATTRIBUTES)
    # chance is at most a ninth and a thirteenth
    for name in ("colour", "motion"):
        assert (found[name].value or 0) > 0.5, found
    assert found["motion"].n > 200


def tick(step: int) -> Tick:
    return Tick(step, 0, 0, 1, 0, 0.5)


def test_the_export_is_where_later_stages_start(tmp_path: Path) -> None:
    stage = WordsStage(words_run(tmp_path), CPU)
    with torch.no_grad():
        for parameter in stage.module.parameters():
            parameter.add_(0.1)
    out = tmp_path / "out"
    out.mkdir()
    stage.export(out)
    causal = CausalStage(causal_run(tmp_path, words=WordsConfig(str(out), weight=0.1)), CPU)
    assert causal.module.heads is not None
    assert_same(causal.module.text_encoder, stage.module.encoder)
    assert_same(causal.module.heads, stage.module.heads)
    # the next stage takes both from the checkpoint, or from another start, and without a weight only what
    # streams need
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    with torch.no_grad():
        for parameter in causal.module.parameters():
            parameter.copy_(parameter.bfloat16())
    causal.export(checkpoint)
    words = WordsConfig(weight=0.2)
    teacher = TeacherStage(teacher_run(tmp_path, init=str(checkpoint), words=words), CPU)
    assert_same(teacher.module.heads, causal.module.heads)
    assert_same(teacher.module.text_encoder, causal.module.text_encoder)
    words = WordsConfig(str(out), weight=0.2)
    teacher = TeacherStage(teacher_run(tmp_path, init=str(checkpoint), words=words), CPU)
    assert_same(teacher.module.heads, stage.module.heads)
    assert_same(teacher.module.text_encoder, stage.module.encoder)
    plain = TeacherStage(teacher_run(tmp_path, init=str(checkpoint)), CPU)
    assert plain.module.heads is None


def assert_same(one: Any, other: Any) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(("stage", "run"), [(CausalStage, causal_run), (TeacherStage, teacher_run)])
def test_later_stages_keep_the_encoder_telling_objects_apart(
    stage: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own updates, on captions that no update has: the heads' loss falls only with the term."""
    words = WordsConfig(weight=1.0, batch=16)
    network = replace(NETWORK, text_length=24, text_dim=32)
    made = stage(run(tmp_path, words=words, network=network), CPU)
    test = CaptionSampler(WORLD, 24, SCENES).draw(60, generator(), "test")
    start = {name: value.clone() for name, value in made.module.state_dict().items()}

    def check() -> None:
        made.module.load_state_dict(start)
        before = float(made.module.told_loss(test)[0].detach())
        losses = learn(
            made.module.parameters(), lambda step: made.loss(made.module, made.batch(tick(step)))[0], 25
        )
        assert all(map(math.isfinite, losses))
        assert float(made.module.told_loss(test)[0].detach()) < 0.85 * before

    def nothing(
        self: AttributeHeads, embeddings: Tensor, drawn: ToldBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, right = forward(self, embeddings, drawn)
        return (loss if drawn is test else loss * 0), right

    forward = AttributeHeads.forward
    assert_needs(check, monkeypatch, AttributeHeads, "forward", nothing)
    assert "words_loss" in made.loss(made.module, made.batch(tick(0)))[1]


@pytest.mark.parametrize(("stage", "run"), [(InitStage, init_run), (SelfForcingStage, self_forcing_run)])
def test_students_keep_the_encoder_telling_objects_apart(
    stage: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's loss has the heads' on captions of the update; neither average nor critic has heads."""
    words = WordsConfig(weight=1.0, batch=16)
    made = stage(run(tmp_path, words=words), CPU)
    step = next(step for step in range(9) if made.target(step) == "student")

    def check() -> None:
        made.student.zero_grad(set_to_none=True)
        loss, metrics = made.loss(made.student, made.batch(tick(step)))
        assert "words_loss" in metrics
        loss.backward()
        assert made.student.heads.maps["motion"].weight.grad.abs().sum() > 0

    assert_needs(check, monkeypatch, DiffusionStage, "told", lambda self, at: None)
    if isinstance(made, SelfForcingStage):
        assert made.critic.heads is None


@pytest.mark.slow
def test_later_stages_end_with_binding_probes_and_their_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "causal.yaml"
    write_yaml(to_plain(causal_run(tmp_path, trackers=(), words=WordsConfig(gate=0.95))), config)
    assert main([str(config)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: causal, binding probes: ")
    assert error.endswith(f"To go on anyway: python -m distill {config} words.gate=0")
    assert main([str(config), "words.gate=0"]) == 0
    assert "binding probe: motion" in capsys.readouterr().err


def test_probes_leave_the_encoder_alone_and_repeat(tmp_path: Path) -> None:
    stage = WordsStage(words_run(tmp_path), CPU)
    kept = {name: value.clone() for name, value in stage.module.state_dict().items()}
    first, second = (binding_probes(stage.module.encoder, WORLD) for _ in range(2))
    assert first == second
    assert all(torch.equal(kept[name], value) for name, value in stage.module.state_dict().items())
    assert json.dumps({name: vars(figure) for name, figure in first.items()})
    drawn = stage.sampler.draw(30, generator(), "test")
    assert set(told_accuracies(stage.module.encoder, stage.module.heads, drawn)) == set(first)


def test_captions_that_follow_one_another_differ_in_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = CaptionSampler(WORLD, 24, SCENES)

    def check() -> None:
        before, after = sampler.draw_changes(300, generator(4))
        differ = torch.stack(
            [
                (before.labels[name] != after.labels[name]) & (before.labels[name] < len(classes))
                for name, classes in ATTRIBUTES.items()
            ]
        )
        # of one object, but for the background, which all have
        assert bool((differ[:-1].sum((0, 2)) + differ[-1].any(1) == 1).all())
        assert all(bool(differ[place].any()) for place in (0, 1, 3, 4))
        assert not differ[2].any(), "sizes stay"
        # what was said and stays is not forgotten where the second caption leaves it out
        for name, classes in ATTRIBUTES.items():
            said = before.labels[name] < len(classes)
            assert bool((after.labels[name] < len(classes))[said].all()), name

    drawn = told.sample_attributes
    twice = lambda config, *rest: drawn(replace(config, double_change_probability=1.0), *rest)  # noqa: E731
    assert_needs(check, monkeypatch, told, "sample_attributes", twice)
    monkeypatch.setattr(told, "is_test", lambda caption: "star" in caption)
    (star,) = WORLD.encode("star", 1).ids.tolist()
    assert not any((batch.ids == star).any() for batch in sampler.draw_changes(100, generator(5)))
