"""The procedural world: reproducible, and honest in its captions about what it shows."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

import distill.scenes.attributes
from distill.config import ConfigError, build
from distill.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    SIZES,
    SceneBatch,
    SceneConfig,
    SceneGenerator,
    caption_vocabulary,
    contact_sheet,
)
from distill.scenes.attributes import CHANGE_KINDS, sample_attributes
from distill.scenes.captions import MAX_WORDS, ObjectWords, canonical_caption
from distill.scenes.gallery import write_gallery
from distill.scenes.vocabulary import (
    BACKGROUND_PHRASES,
    BACKGROUND_TAGS,
    COLOUR_WORDS,
    MOTION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
)
from tests.tiny_models import assert_needs

FRAMES = 49


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    """A batch in which much happens, with up to three objects."""
    config = SceneConfig(
        object_weights=(1, 1, 1), change_probability=0.7, drag_probability=0.7, camera_probability=0.5
    )
    return SceneGenerator(config).sample(96, FRAMES, seed=5)


@pytest.fixture(scope="module")
def generator() -> SceneGenerator:
    return SceneGenerator(SceneConfig())


def said(caption: str, phrases: Iterable[tuple[str, str]]) -> set[str]:
    """Names whose phrases a caption uses; longer phrases first, so that "moves up left" is not "moves up"."""
    text, names = f" {caption.replace(',', '')} ", set()
    for phrase, name in sorted(phrases, key=lambda pair: -len(pair[0])):
        if f" {phrase} " in text:
            text = text.replace(f" {phrase} ", " | ")
            names.add(name)
    return names


def phrases_of(label: str) -> list[tuple[str, str]]:
    """(phrase, name) of everything a caption may say of a label."""
    if label == "motion":
        return [(form, name) for name, pairs in MOTION_PHRASES.items() for pair in pairs for form in pair]
    tables = {
        "shape": [SHAPE_WORDS],
        "colour": [COLOUR_WORDS],
        "size": [SIZE_WORDS],
        "background": [BACKGROUND_PHRASES, BACKGROUND_TAGS],
    }
    return [(word, name) for table in tables[label] for name, words in table.items() for word in words]


def test_shapes_and_ranges(batch: SceneBatch) -> None:
    assert batch.video.shape == (96, FRAMES, 64, 64, 3)
    assert batch.video.dtype == torch.uint8
    assert batch.points.shape == (96, 16, FRAMES, 2)
    assert batch.visible.shape == batch.dragged.shape == (96, 16, FRAMES)
    assert batch.camera.shape == (96, FRAMES)
    assert batch.radii.shape == batch.centres.shape[:3] == (96, 3, FRAMES)
    for slot in range(3):
        owns = (batch.track_object == slot).any(1)
        assert torch.equal(owns, batch.labels["count"] > slot)
        assert torch.equal((batch.radii[:, slot] > 0).all(1), owns)
    background = batch.track_object < 0
    assert (background.sum(1) >= 7).all()
    assert torch.equal(batch.pinned, background & ~batch.camera.any(1, keepdim=True))
    assert not batch.points[batch.pinned].diff(dim=1).any()
    assert not batch.dragged[background].any()
    on_object = batch.points[~background]
    assert on_object.min() >= 0
    assert on_object.max() <= 1


def test_deterministic_in_seed(generator: SceneGenerator) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (generator.sample(8, 30, seed) for seed in (1, 1, 2))
    fresh = SceneGenerator(SceneConfig()).sample(8, 30, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for same in (again, fresh):
        assert torch.equal(first.video, same.video)
        assert torch.equal(first.points, same.points)
        assert torch.equal(first.camera_move, same.camera_move)
        assert first.captions == same.captions
    assert first.captions != other.captions
    assert not torch.equal(first.video, other.video)


def test_a_single_scene_is_deterministic(generator: SceneGenerator) -> None:
    one, again = (generator.sample(1, 33, 11) for _ in range(2))
    assert torch.equal(one.video, again.video)
    assert one.captions == again.captions
    assert len({generator.sample(1, 1, seed).captions[0][0] for seed in range(8)}) > 6


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 24, 60])
def test_any_length(generator: SceneGenerator, frames: int) -> None:
    batch = generator.sample(16, frames, 3)
    assert batch.video.shape[1] == frames
    for captions, start in zip(batch.captions, batch.segment_start[:, 1].tolist(), strict=True):
        assert (start == frames) == (len(captions) == 1)
        assert start == frames or 12 <= start <= frames - 12


def test_other_sizes() -> None:
    batch = SceneGenerator(SceneConfig(size=128, texture_period=16, texture_variants=1)).sample(2, 20, 0)
    assert batch.video.shape == (2, 20, 128, 128, 3)


@pytest.mark.gpu
def test_a_gpu_draws_the_same_scenes() -> None:
    """All draws are made on the CPU; pixels differ by rounding alone."""
    config = SceneConfig(object_weights=(1, 1, 1), change_probability=0.7, camera_probability=0.5)
    ours, theirs = (SceneGenerator(config, device).sample(48, FRAMES, 9) for device in ("cpu", "cuda"))
    assert theirs.video.is_cuda
    assert ours.captions == theirs.captions
    for name in ("points", "visible", "camera", "camera_move", "centres", "radii", "pinned"):
        assert torch.equal(vars(ours)[name], vars(theirs)[name].cpu()), name
    apart = (ours.video.int() - theirs.video.cpu().int()).abs()
    assert (apart > 2).float().mean() < 1e-3
    assert apart.float().mean() < 0.05


def test_held_out_pairs_never_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {(COLOURS.index(colour), SHAPES.index(shape)) for colour, shape in HELD_OUT}
    config = SceneConfig(change_probability=1.0, double_change_probability=0.5)

    def pairs(settings: SceneConfig) -> list[set[tuple[int, int]]]:
        """Before and after the change."""
        drawn = sample_attributes(settings, 100_000, torch.Generator().manual_seed(0))
        codes = (drawn.colour * len(SHAPES) + drawn.shape).unbind(1)
        return [{divmod(code, len(SHAPES)) for code in torch.unique(part).tolist()} for part in codes]

    def check() -> None:
        for found in pairs(config):
            assert not found & held
            assert len(found) == len(COLOURS) * len(SHAPES) - len(held)

    assert_needs(check, monkeypatch, distill.scenes.attributes, "held_out_indices", lambda: ())
    everything = pairs(SceneConfig(include_held_out=True))
    assert held <= everything[0] & everything[1]


def test_changes_change_what_they_say() -> None:
    config = SceneConfig(change_probability=0.5, object_weights=(0.5, 0.5))
    drawn = sample_attributes(config, 20_000, torch.Generator().manual_seed(1))
    rows = torch.arange(20_000)
    target = drawn.changed_object
    for index, kind in enumerate(CHANGE_KINDS):
        values = drawn.background if kind == "background" else getattr(drawn, kind)[rows, :, target]
        assert torch.equal(values[:, 0] != values[:, 1], drawn.changes[:, index])
    changed = drawn.changes.any(1)
    assert abs(changed.float().mean() - 0.5) < 0.02
    assert (target < drawn.count).all()
    assert abs((drawn.changes.sum(1) == 2).float().sum() / changed.sum() - 0.15) < 0.02
    assert (drawn.changes.sum(1) <= 2).all()
    both = drawn.colour[drawn.count == 2]
    assert (both[:, :, 0] != both[:, :, 1]).all()


def test_object_counts_follow_the_weights() -> None:
    count = sample_attributes(SceneConfig(), 20_000, torch.Generator().manual_seed(2)).count
    shares = torch.bincount(count, minlength=4)[1:] / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.65, 0.25, 0.1]), rtol=0, atol=0.015)


def test_captions_differ_between_segments(batch: SceneBatch) -> None:
    changed = batch.segment_start[:, 1] < FRAMES
    for captions, change in zip(batch.captions, changed.tolist(), strict=True):
        assert len(captions) == 1 + change
        assert len(set(captions)) == len(captions)


def test_captions_mention_only_what_is_there(batch: SceneBatch) -> None:
    labels = {
        "shape": SHAPES,
        "colour": COLOURS,
        "size": SIZES,
        "background": BACKGROUNDS,
        "motion": MOTIONS,
    }
    phrases = {label: phrases_of(label) for label in labels}
    vocabulary = set(caption_vocabulary())
    for clip, captions in enumerate(batch.captions):
        kinds = batch.labels["changed"][clip]
        for segment, caption in enumerate(captions):
            assert set(caption.replace(",", "").split()) <= vocabulary
            assert len(caption.split()) <= MAX_WORDS
            assert caption == caption.lower()
            for label, names in labels.items():
                values = batch.labels[label][clip, segment].reshape(-1).tolist()
                true = {names[value] for value in values if value >= 0}
                mentioned = said(caption, phrases[label])
                assert mentioned <= true, (caption, label)
                if label == "shape":
                    assert mentioned == true
                if label not in CHANGE_KINDS or not kinds[CHANGE_KINDS.index(label)]:
                    continue
                if label == "background":
                    assert mentioned == true
                else:
                    assert names[values[int(batch.labels["changed_object"][clip])]] in mentioned


def test_every_caption_of_three_objects_fits() -> None:
    """The longest of all, three diagonals at night, gives up sizes rather than words at its end."""
    diagonal = MOTIONS.index("down right")
    things = [ObjectWords(shape=2, colour=colour, size=1, motion=diagonal) for colour in range(3)]
    caption = canonical_caption(things, BACKGROUNDS.index("night"))
    assert len(caption.split()) <= MAX_WORDS
    assert caption.count("triangle moves down right") == 3
    assert caption.endswith("over the night sky")
    assert canonical_caption(things[:2], 0) == (
        "a medium red triangle moves down right and a medium orange triangle moves down right over the sea"
    )
    config = SceneConfig(
        size=32, texture_period=1, texture_variants=1, object_weights=(0, 0, 1), change_probability=0
    )
    captions = [texts[0] for texts in SceneGenerator(config).sample(1000, 1, 0).captions]
    assert max(len(caption.split()) for caption in captions) <= MAX_WORDS
    assert sum(caption.startswith("a ") and caption.count(" and a ") == 2 for caption in captions) < 500


def test_camera_moves_are_not_told_by_captions() -> None:
    """Tracks tell of them; all that is drawn besides is the same with and without."""
    without, always = (
        SceneGenerator(SceneConfig(camera_probability=share, size=32)).sample(16, FRAMES, 4)
        for share in (0, 1)
    )
    assert without.captions == always.captions
    assert not without.camera.any()
    assert always.camera.any(1).all()


def test_caption_statistics() -> None:
    config = SceneConfig(size=32, texture_period=1, texture_variants=1, change_probability=0)
    batch = SceneGenerator(config).sample(3000, 1, 0)
    single = [texts[0] for texts, n in zip(batch.captions, batch.labels["count"], strict=True) if n == 1]
    canonical = [text for text in single if text.startswith("a ") and " over the " in text]
    assert sum(len(text.split()) >= 8 for text in canonical) > 0.28 * len(single)
    for label, low, high in (
        ("size", 0.31, 0.39),
        ("motion", 0.09, 0.15),
        ("background", 0.05, 0.11),
        ("colour", 0.02, 0.06),
        ("shape", 0.0, 0.0),
    ):
        phrases = phrases_of(label)
        silent = sum(not said(text, phrases) for text in single) / len(single)
        assert low <= silent <= high, label
    assert len(set(single)) > 0.6 * len(single)


def test_motions_come_as_often_as_they_are_weighted() -> None:
    """At the start of a clip, and among the other ones where the motion changes."""
    weights = {"circles": 4.0, "zigzag": 4.0}
    config = SceneConfig(motion_weights=weights, change_probability=1.0)
    drawn = sample_attributes(config, 20_000, torch.Generator().manual_seed(0))
    total = len(MOTIONS) - len(weights) + sum(weights.values())
    shares = drawn.motion[:, 0].flatten().bincount(minlength=len(MOTIONS)) / drawn.motion[:, 0].numel()
    for name, share in zip(MOTIONS, shares.tolist(), strict=True):
        assert share == pytest.approx(weights.get(name, 1.0) / total, abs=0.01), name
    rows = drawn.changes[:, CHANGE_KINDS.index("motion")].nonzero()[:, 0]
    before, after = drawn.motion[rows, :, drawn.changed_object[rows]].unbind(1)
    assert (before != after).all()
    circles, right = MOTIONS.index("circles"), MOTIONS.index("right")
    from_left = after[before == MOTIONS.index("left")]
    assert (from_left == circles).float().mean() > 2 * (from_left == right).float().mean()


def test_canonical_captions_of_one_object() -> None:
    small, large = (
        ObjectWords(SHAPES.index(shape), COLOURS.index(colour), SIZES.index(size), MOTIONS.index(motion))
        for shape, colour, size, motion in (
            ("circle", "red", "small", "right"),
            ("star", "white", "large", "up left"),
        )
    )
    assert canonical_caption([small], BACKGROUNDS.index("sea")) == (
        "a small red circle moves right over the sea"
    )
    assert canonical_caption([large], BACKGROUNDS.index("night")) == (
        "a large white star moves up left over the night sky"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 50},
        {"object_weights": (1, 1, 1, 1)},
        {"motion_weights": {"spins": 2}},
        {"motion_weights": {"circles": 0}},
        {"tracks": 2},
        {"change_probability": 1.5},
        {"camera_probability": -0.1},
        {"fade_frames": 0},
    ],
)
def test_bad_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        build(SceneConfig, settings)


def test_bad_sample_size(generator: SceneGenerator) -> None:
    with pytest.raises(ValueError, match="found 0 and 5"):
        generator.sample(0, 5, 0)


def test_contact_sheet(tmp_path: Path, generator: SceneGenerator) -> None:
    batch = generator.sample(3, 30, 0)
    path = tmp_path / "sheet.png"
    contact_sheet(batch.video, ["\n".join(captions) for captions in batch.captions], path, frames=8)
    with Image.open(path) as sheet:
        assert sheet.width > 8 * 64
        assert sheet.height > 3 * 64
    with pytest.raises(ValueError, match="2 captions, 3 clips"):
        contact_sheet(batch.video, ["a", "b"], path)
    with pytest.raises(ValueError, match="uint8"):
        contact_sheet(batch.video.float(), ["a", "b", "c"], path)


@pytest.mark.slow
def test_gallery(tmp_path: Path) -> None:
    """Every picture of docs/world.md is drawn by one call."""
    pages = (Path(__file__).resolve().parents[2] / "docs" / "world.md").read_text(encoding="utf-8")
    for path in write_gallery(tmp_path / "world"):
        assert f"media/world/{path.name}" in pages
        with Image.open(path) as sheet:
            assert min(sheet.size) > 200
