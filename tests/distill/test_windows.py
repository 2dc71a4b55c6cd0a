"""Training windows: frames of tracks, context of streams, captions around a change; the latent cache."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill.window_tracks
import distill.windows
from distill.config import ConfigError
from distill.flow import FlowBatch
from distill.latent_cache import CacheConfig, LatentCache, LatentClips
from distill.scenes import MOTIONS, SceneConfig, caption_vocabulary
from distill.windows import (
    Layout,
    WindowConfig,
    beginnings,
    changes,
    flow_batch,
    image_batch,
    whole_clips,
)
from models.context import ChunkPlan
from models.motion_encoder import OCCLUDED, UNSPECIFIED, VISIBLE
from models.text_encoder import Vocabulary
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from tests.tiny_models import assert_needs

LATENTS, FRAMES, TRACKS = 21, 81, 3
SINGLE = ChunkPlan()


def marked_clips(count: int = 40, switch: int = LATENTS, dragged: bool = False) -> LatentClips:
    """Clips whose numbers tell their place: latents hold their index, points their pixel frame / 100."""
    time = torch.arange(FRAMES) / 100
    return LatentClips(
        latents=torch.arange(LATENTS).half().view(1, -1, 1, 1, 1).expand(count, -1, 2, 4, 4).clone(),
        words=torch.tensor([[5, 6, 0], [7, 8, 9]], dtype=torch.int16).expand(count, -1, -1).clone(),
        switch=torch.full((count,), switch, dtype=torch.int16),
        points=time.view(1, 1, -1, 1).expand(count, TRACKS, -1, 2).half().clone(),
        visible=torch.ones(count, TRACKS, FRAMES, dtype=torch.bool),
        dragged=torch.zeros(count, TRACKS, FRAMES, dtype=torch.bool)
        | (torch.arange(TRACKS)[:, None] == 0)
        & (torch.arange(FRAMES) >= 20)
        & (torch.arange(FRAMES) < 50)
        & dragged,
        camera=torch.zeros(count, FRAMES, dtype=torch.bool),
        background=torch.tensor([False, False, True]).expand(count, -1).clone(),
        pinned=torch.tensor([False, False, True]).expand(count, -1).clone(),
        motions=torch.tensor([[0, -1], [5, -1]], dtype=torch.int8).expand(count, -1, -1).clone(),
        turning=((torch.arange(LATENTS) == 7) & (torch.arange(2)[:, None] == 0))
        .expand(count, -1, -1)
        .clone(),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole_batch(
    clips: LatentClips, size: int, config: WindowConfig, plan: ChunkPlan = SINGLE, seed: int = 0
) -> FlowBatch:
    """Whole clips with all that belongs to them."""
    draws = generator(seed)
    layout = whole_clips(clips, size, config, draws, plan)
    return flow_batch(clips, layout, config, config.silence, draws, plan)


def latent_frames(batch: FlowBatch) -> torch.Tensor:
    return batch.x0[:, :, 0, 0, 0].round().long()


def test_windows_keep_to_the_chunks_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level, one caption, a target or not, for the frames of a chunk; the sink is the first chunk."""
    config = WindowConfig(frames=10, min_gap_prefix=6, text_drop=0.0, target_text_drop=0.3, gap_share=0.5)

    def check() -> None:
        batch = whole_batch(marked_clips(switch=7), 200, config, ChunkPlan(3, 3, 3, 3))
        latent = latent_frames(batch)
        assert latent.shape == (200, 9)
        assert torch.equal(latent[:, :3], torch.arange(3).expand(200, -1))
        assert (latent[:, 3] > 3).any()
        assert torch.equal(latent[:, 4:] - latent[:, 3:-1], torch.ones(200, 5).long())
        for told in (batch.sigma, (batch.weight > 0).float(), batch.segment.float()):
            chunks = told.unflatten(1, (3, 3))
            assert torch.equal(chunks, chunks[:, :, :1].expand(-1, -1, 3))
        behind_a_gap = latent[:, 3] > 3
        assert set((batch.weight == 0).sum(1)[behind_a_gap].tolist()) == {6}
        assert not (batch.weight == 0)[~behind_a_gap].any()

    alone = lambda plan, count: torch.arange(count)  # noqa: E731
    assert_needs(check, monkeypatch, distill.windows, "chunk_starts", alone)


def test_every_latent_frame_of_a_whole_clip_is_a_target() -> None:
    batch = whole_batch(marked_clips(), 16, WindowConfig(turning_weight=3.0))
    assert torch.equal(latent_frames(batch), torch.arange(LATENTS).expand(16, -1))
    assert batch.noise.shape == batch.x0.shape
    # what turns weighs more; in these clips latent frame 7
    assert torch.equal(batch.weight, torch.where(torch.arange(LATENTS) == 7, 3.0, 1.0).expand(16, -1))
    assert batch.counts["targets"] == 16 * LATENTS
    assert batch.counts["turning"] == 16
    assert batch.counts[MOTIONS[0]] == 16 * LATENTS
    assert sum(batch.counts[name] for name in MOTIONS) == 16 * LATENTS


def test_tracks_lie_on_the_pixel_frames_of_their_latents() -> None:
    """Window slot 0 is frame 0; slot i holds latent l, so its four points are frames 4l - 3 .. 4l."""
    batch = whole_batch(marked_clips(), 64, WindowConfig(frames=10, no_motion=0.0, gap_share=0.7))
    latent = latent_frames(batch)
    frame = (batch.tracks.points[:, 0, :, 0] * 100).round().long()
    assert torch.equal(latent[:, 0], torch.zeros(64).long())
    assert torch.equal(frame[:, 0], torch.zeros(64).long())
    assert (latent[:, 1] > 1).any()
    for slot in range(1, 10):
        expected = latent[:, slot, None] * 4 + torch.arange(-3, 1)
        assert torch.equal(frame[:, 4 * slot - 3 : 4 * slot + 1], expected)


def test_after_a_gap_there_is_enough_context() -> None:
    config = WindowConfig(frames=10, gap_share=1.0)
    batch = whole_batch(marked_clips(), 200, config)
    latent = latent_frames(batch)
    gap = latent[:, 1] > 1
    assert gap.any()
    assert torch.equal(latent[:, 2:] - latent[:, 1:-1], torch.ones(200, 8).long())
    assert (batch.weight[gap, : config.min_gap_prefix] == 0).all()
    assert (batch.weight[gap, config.min_gap_prefix :] > 0).all()
    assert (batch.weight[~gap] > 0).all()


def test_what_was_committed_has_little_noise_or_none() -> None:
    config = WindowConfig(context_noise=0.15, clean_share=0.5)
    committed = whole_batch(marked_clips(), 400, config).committed
    assert committed is not None
    assert torch.equal(committed.sigma, committed.sigma[:, :1].expand(-1, LATENTS))
    assert (committed.sigma <= 0.15).all()
    assert 0.4 < (committed.sigma[:, 0] == 0).float().mean() < 0.6
    # under diffusion forcing each chunk at its own
    apart = WindowConfig(frames=9, context_noise=1.0, clean_share=0.0, forcing="diffusion")
    committed = whole_batch(marked_clips(), 50, apart, ChunkPlan(3, 3, 3, 3)).committed
    assert committed is not None
    levels = committed.sigma.unflatten(1, (3, 3))
    assert torch.equal(levels, levels[:, :, :1].expand(-1, -1, 3))
    assert (levels[:, 0] != levels[:, 1]).all()
    assert levels.max() > 0.8


def test_whole_clips_are_steady_but_for_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one changes, each latent frame is committed and made under its own caption: the cache is kept."""
    clips = marked_clips(40)
    clips.switch[::2] = 6
    config = WindowConfig(keep_share=0.25, text_drop=0.0, target_text_drop=0.0)

    def check() -> None:
        batch = whole_batch(clips, 400, config)
        assert batch.committed is not None
        changing = (batch.segment == 1).any(1)
        assert 0.17 < changing.float().mean() < 0.33
        assert torch.equal(batch.segment, batch.committed.segment)
        after = (torch.arange(LATENTS) >= 6).long()
        assert torch.equal(batch.segment[changing], after.expand_as(batch.segment[changing]))

    def any_rows(rows: torch.Tensor, size: int, draws: torch.Generator) -> torch.Tensor:
        return torch.randint(40, (size,), generator=draws)

    assert_needs(check, monkeypatch, distill.windows, "_drawn", any_rows)


@pytest.mark.parametrize("switch", [1, 2, 8, 9, 15])
def test_changes_are_streams_that_have_just_recached(switch: int) -> None:
    """A stream's context at that time, all of it under the new words, and the frames from the change on."""
    config = WindowConfig(text_drop=0.0, target_text_drop=0.0, change_frames=6)
    clips, draws, plan = marked_clips(switch=switch), generator(), ChunkPlan()
    layout = changes(clips, 20, config, draws, plan)
    batch = flow_batch(clips, layout, config, config.quiet, draws, plan)
    past = [0, *range(switch - 8, switch)] if switch > 9 else list(range(switch))
    expected = torch.tensor([*past, *range(switch, switch + 6)])
    assert torch.equal(latent_frames(batch), expected.expand(20, -1))
    assert batch.noise.shape[1] == batch.weight.shape[1] == 6
    assert torch.equal(batch.targets[0, :, 0, 0, 0].long(), torch.arange(switch, switch + 6))
    assert batch.committed is not None
    assert (batch.segment == 1).all()
    assert (batch.committed.segment == 1).all()
    assert batch.counts[MOTIONS[5]] == 20 * 6


def test_changes_need_clips_that_change() -> None:
    with pytest.raises(ConfigError, match="change_probability"):
        changes(marked_clips(), 4, WindowConfig(), generator())


def test_beginnings_show_several_objects_in_their_share() -> None:
    clips = marked_clips(40)
    clips.motions[:4, :, 1] = 3
    config = WindowConfig(pairs_share=0.5)
    rows = beginnings(clips, 400, config, generator()).rows
    assert 0.45 < (rows < 4).float().mean() < 0.65
    layout = beginnings(clips, 8, config, generator())
    assert torch.equal(layout.frames, torch.arange(3).expand(8, -1))


def test_cells_near_an_object_weigh_more() -> None:
    """Points walk along the diagonal, so the weighted cells of a latent frame are those around it."""
    batch = whole_batch(marked_clips(), 4, WindowConfig(object_weight=3.0, object_reach=0.2))
    for sample, weights in zip(latent_frames(batch), batch.focus, strict=True):
        for index, cells in zip(sample.tolist(), weights, strict=True):
            places = torch.tensor([max(0.0, 4 * index - 3), 4 * index]) / 100
            near = ((places[:, None] - (torch.arange(4) + 0.5) / 4 + 0.5) % 1 - 0.5).abs() < 0.2
            expected = (near[:, :, None] & near[:, None, :]).any(0)
            assert torch.equal(cells == 3.0, expected)
            assert torch.equal(cells == 1.0, ~expected)


def test_dropped_text_reads_the_empty_segment() -> None:
    """Some samples know no text at all; others make single chunks without it behind a past that had it."""
    config = WindowConfig(text_drop=0.3, target_text_drop=0.2)
    batch = whole_batch(marked_clips(), 600, config)
    assert batch.committed is not None
    assert float(batch.words[:, 2].abs().max()) == 0
    none, past = batch.segment == 2, batch.committed.segment == 2
    whole = past.all(1)
    assert 0.2 < whole.float().mean() < 0.4
    assert none[whole].all()
    assert not past[~whole].any()
    assert 0.15 < none[~whole].float().mean() < 0.25


def test_dropped_motion_is_that_of_targets_alone() -> None:
    batch = whole_batch(marked_clips(), 200, WindowConfig(target_motion_drop=0.2))
    assert batch.committed is not None
    assert 0.15 < batch.committed.mute.float().mean() < 0.25
    motion = torch.ones(200, LATENTS, 1, 2, 2)
    own = batch.motion_of_targets(motion)
    assert torch.equal(own[:, :, 0, 0, 0] == 0, batch.committed.mute)
    past = batch.past(motion)
    assert past is not None
    assert past.motion is motion


@pytest.mark.parametrize("kind", [beginnings, whole_clips, changes])
def test_copies_are_the_same_targets_under_other_noise(kind: Callable[..., Layout]) -> None:
    """The past, the captions and the tracks are there once; levels, noise and what is dropped are each
    copy's own.
    """
    clips = marked_clips(switch=9)
    config = WindowConfig(copies=3, target_text_drop=0.5, beginning_frames=8)
    layout = kind(clips, 5, config, generator())
    batch = flow_batch(clips, layout, config, config.silence, generator())
    count = layout.weight.shape[1]
    assert batch.noise.shape[1] == batch.sigma.shape[1] == 3 * count
    assert batch.x0.shape[1] == layout.frames.shape[1]
    for alike in (batch.targets, batch.weight, batch.focus):
        assert torch.equal(alike[:, :count], alike[:, count : 2 * count])
        assert torch.equal(alike[:, :count], alike[:, -count:])
    assert torch.equal(batch.targets[:, :count], batch.x0[:, -count:])
    for other in (batch.sigma, batch.noise, batch.segment):
        assert not torch.equal(other[:, :count], other[:, count : 2 * count])
    once = replace(config, copies=1)
    alone = flow_batch(clips, layout, once, config.silence, generator())
    assert batch.counts == {name: 3 * number for name, number in alone.counts.items()}


def test_a_drag_is_always_told() -> None:
    batch = whole_batch(marked_clips(dragged=True), 400, WindowConfig(frames=8, gap_share=0.7, no_motion=1.0))
    frame = (batch.tracks.points[:, 0, :, 0] * 100).round()
    during = (frame >= 20) & (frame < 50)
    told = batch.tracks.state[:, 0] != UNSPECIFIED
    assert during.any()
    assert (told | ~during).all()
    # without a drag in reach, no_motion = 1 means none, with one nothing but it
    assert (~during.any(1)).any()
    assert (batch.tracks.state[~during.any(1)] == UNSPECIFIED).all()
    assert (batch.tracks.state[:, 1:] == UNSPECIFIED).all()
    other = whole_batch(marked_clips(dragged=True), 400, WindowConfig(no_motion=0.0))
    assert (other.tracks.state[:, 1] != UNSPECIFIED).any()


def test_hidden_points_are_occluded_not_unspecified() -> None:
    clips = marked_clips()
    clips.visible[:] = False
    states = whole_batch(clips, 64, WindowConfig(no_motion=0.0)).tracks.state
    assert OCCLUDED in states
    assert VISIBLE not in states


def test_batches_are_functions_of_the_generator() -> None:
    clips = marked_clips()
    one, two, other = (whole_batch(clips, 8, WindowConfig(), seed=s) for s in (1, 1, 2))
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.segment, two.segment)
    assert not torch.equal(one.noise, other.noise)


def test_image_batches_are_first_frames_with_text_alone() -> None:
    clips = marked_clips()
    clips = LatentClips(**{**vars(clips), "latents": clips.latents[:, :1]})
    batch = image_batch(clips, 200, WindowConfig(text_drop=0.15, target_text_drop=0.1), generator(1))
    assert batch.x0.shape == (200, 1, 2, 4, 4)
    assert (batch.tracks.state == UNSPECIFIED).all()
    assert batch.words.shape[1] == 2
    assert batch.committed is None
    assert 0.1 < (batch.segment == 1).float().mean() < 0.4


def cache_in(folder: Path, seed: int = 1) -> LatentCache:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(
        VideoTokenizerConfig(latent_channels=4, dim=16, heads=2, encoder_spatial=1, decoder_spatial=1)
    ).eval()
    config = CacheConfig(str(folder), clips=5, frames=9, images=3, seed=seed)
    return LatentCache(
        config, SceneConfig(size=32), tokenizer, "digest", Vocabulary(caption_vocabulary()), 24
    )


def test_cache_holds_what_the_tokenizer_says_and_resumes(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.build(0, 1, torch.device("cpu"))
    clips, images = cache.load(images=False), cache.load(images=True)
    assert (clips.latents.shape, images.latents.shape) == ((5, 3, 4, 4, 4), (3, 1, 4, 4, 4))
    files = sorted(cache.directory.glob("*.safetensors"))
    stamps = [f.stat().st_mtime_ns for f in files]
    files[0].unlink()
    cache.build(0, 1, torch.device("cpu"))
    again = cache.load(images=False)
    assert torch.equal(again.latents, clips.latents)
    assert [f.stat().st_mtime_ns for f in files[1:]] == stamps[1:]
    assert cache_in(tmp_path, seed=2).directory != cache.directory


def test_processes_build_all_shards_however_late_one_begins(tmp_path: Path) -> None:
    """The second process looks when the first is done, and must not leave out what was never built."""
    cache = cache_in(tmp_path)
    for rank in (0, 1):
        cache.build(rank, 2, torch.device("cpu"))
    assert len(cache.load(images=False).latents) == 5
    assert len(cache.load(images=True).latents) == 3


def test_caches_of_other_mixtures_are_named_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each, with what differs; nothing is said where there is none."""
    cache_in(tmp_path).build(0, 1, torch.device("cpu"))
    assert "another mixture" not in capsys.readouterr().err
    other = cache_in(tmp_path, seed=2)

    def check() -> None:
        other.directory.exists() and [
            f.unlink() for f in other.directory.iterdir()
        ] and other.directory.rmdir()
        other.build(0, 1, torch.device("cpu"))
        said = [line for line in capsys.readouterr().err.splitlines() if "another mixture" in line]
        assert len(said) == 1
        assert said[0].endswith("not used: seed there 1, here 2")
        assert str(cache_in(tmp_path).directory) in said[0]

    assert_needs(check, monkeypatch, LatentCache, "others", lambda self: [])


def test_config_errors_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"cache\.frames: expected 1 \+ 4k"):
        CacheConfig(frames=80)
    with pytest.raises(ConfigError, match=r"windows\.frames"):
        WindowConfig(frames=3)
    with pytest.raises(ConfigError, match=r"windows\.keep_share: expected within \[0, 1\], found 1.5"):
        WindowConfig(keep_share=1.5)


def camera_clips() -> LatentClips:
    """Clips in which the camera moves in pixel frames 20 to 49, carrying ten points of which half are hidden
    and one is out of the picture from frame 35 on; one more track lies on an object.
    """
    count, tracks = 40, 11
    points = torch.rand(count, tracks, 1, 2, generator=generator(3)).expand(-1, -1, FRAMES, -1).clone()
    points[:, 1, 35:] = 1.2
    visible = torch.ones(count, tracks, FRAMES, dtype=torch.bool)
    visible[:, 6:] = False
    time = torch.arange(FRAMES)
    background = (torch.arange(tracks) > 0).expand(count, -1)
    return replace(
        marked_clips(count),
        points=points.half(),
        visible=visible,
        dragged=torch.zeros(count, tracks, FRAMES, dtype=torch.bool),
        camera=((time >= 20) & (time < 50)).expand(count, -1).clone(),
        background=background,
        pinned=torch.zeros(count, tracks, dtype=torch.bool),
    )


def test_a_camera_move_is_always_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By several of its tracks in every frame of it, free ones, and never outside of the picture."""
    config = WindowConfig(frames=8, no_motion=1.0, motion_mask=1.0, gap_share=0.7)

    def check() -> None:
        batch = whole_batch(camera_clips(), 400, config)
        latent = latent_frames(batch)
        frame = torch.cat([latent[:, :1], (latent[:, 1:, None] * 4 + torch.arange(-3, 1)).flatten(1)], 1)
        told = batch.tracks.state != UNSPECIFIED
        during = (frame >= 20) & (frame < 50)
        assert during.any()
        assert (told[:, 1:].sum(1)[during] >= 5).all()
        assert not batch.tracks.pinned.any()
        outside = (batch.tracks.points > 1).any(-1)
        assert outside.any()
        assert not told[outside].any()
        # without a moving camera in reach, no_motion = 1 means none
        assert not told[~during.any(1)].any()
        # a camera's field does not know what is hidden: half of the windows say so, half do not
        states = batch.tracks.state[:, 6:].movedim(1, 2)[during]
        assert 0.3 < (states == OCCLUDED).sum() / (states != UNSPECIFIED).sum() < 0.7

    def few(carried: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return torch.zeros(carried.shape[:2], dtype=torch.bool)

    assert_needs(check, monkeypatch, distill.window_tracks, "_camera_tracks", few)
