"""Training windows: frames of tracks, context of streams, captions around a change; the latent cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill.windows
from distill.config import ConfigError
from distill.latent_cache import CacheConfig, LatentCache, LatentClips
from distill.scenes import SceneConfig, caption_vocabulary
from distill.windows import WindowConfig, image_batch, turning_batch, turning_frames, window_batch
from models.context import ChunkPlan
from models.motion_encoder import OCCLUDED, UNSPECIFIED, VISIBLE
from models.text_encoder import Vocabulary
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from tests.tiny_models import assert_needs

LATENTS, FRAMES, TRACKS = 21, 81, 3


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
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_windows_keep_to_the_chunks_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level, one caption, clean or not, for the frames of a chunk; the sink is the first whole chunk."""
    config = WindowConfig(frames=9, min_gap_prefix=6, text_drop=0.0, target_text_drop=0.3)

    def check() -> None:
        batch = window_batch(marked_clips(switch=7), 200, config, generator(), ChunkPlan(3, 3, 3, 3))
        latent = batch.x0[:, :, 0, 0, 0].round().long()
        assert torch.equal(latent[:, :3], torch.arange(3).expand(200, -1))
        assert (latent[:, 3] > 3).any()
        assert torch.equal(latent[:, 4:] - latent[:, 3:-1], torch.ones(200, 5).long())
        for told in (batch.sigma, batch.weight, batch.segment.float()):
            chunks = told.unflatten(1, (3, 3))
            assert torch.equal(chunks, chunks[:, :, :1].expand(-1, -1, 3))
        clean = set((batch.weight == 0).sum(1).tolist())
        assert clean == {0, 3, 6}
        assert ((batch.weight == 0).sum(1)[latent[:, 3] > 3] == 6).all()

    alone = lambda plan, count: torch.arange(count)  # noqa: E731
    assert_needs(check, monkeypatch, distill.windows, "chunk_starts", alone)


def test_tracks_lie_on_the_pixel_frames_of_their_latents() -> None:
    """Window slot 0 is frame 0; slot i holds latent l, so its four points are frames 4l - 3 .. 4l."""
    batch = window_batch(marked_clips(), 64, WindowConfig(no_motion=0.0), generator())
    latent = batch.x0[:, :, 0, 0, 0].round().long()
    frame = (batch.tracks.points[:, 0, :, 0] * 100).round().long()
    assert torch.equal(latent[:, 0], torch.zeros(64).long())
    assert torch.equal(frame[:, 0], torch.zeros(64).long())
    for slot in range(1, 10):
        expected = latent[:, slot, None] * 4 + torch.arange(-3, 1)
        assert torch.equal(frame[:, 4 * slot - 3 : 4 * slot + 1], expected)


def test_after_a_gap_there_is_enough_clean_context() -> None:
    config = WindowConfig(gap_share=1.0, forcing_share=0.0)
    batch = window_batch(marked_clips(), 200, config, generator())
    latent = batch.x0[:, :, 0, 0, 0].round()
    assert (latent[:, 1] > 1).any()
    assert torch.equal(latent[:, 2:] - latent[:, 1:-1], torch.ones(200, 8))
    clean = batch.weight == 0
    assert clean[:, : config.min_gap_prefix].all()
    assert (batch.sigma[clean] <= config.context_noise).all()
    assert (batch.sigma[clean] == 0).float().mean() > 0.3
    assert (batch.weight.sum(1) > 0).all()


def test_windows_at_a_change_are_streams_that_switched() -> None:
    """Either captions change from frame to frame, or all of the past is clean context under the new words."""
    config = WindowConfig(gap_share=0.0, forcing_share=0.5, text_drop=0.0, target_text_drop=0.0)
    batch = window_batch(marked_clips(switch=4), 400, config, generator())
    recached = (batch.segment == 1).all(1)
    assert 0.35 < recached.float().mean() < 0.65
    assert (batch.weight[recached, :4] == 0).all()
    assert (batch.weight[recached, 4:] == 1).all()
    kept = batch.segment[~recached]
    assert torch.equal(kept, (torch.arange(10) >= 4).long().expand_as(kept))


def test_a_change_in_the_gap_leaves_the_prefix_alone() -> None:
    """After a gap nothing may be asked of a latent frame that has frame 0 alone as context."""
    config = WindowConfig(gap_share=1.0, forcing_share=0.0, text_drop=0.0, target_text_drop=0.0)
    batch = window_batch(marked_clips(switch=6), 600, config, generator())
    latent = batch.x0[:, :, 0, 0, 0].round()
    assert (batch.weight[:, : config.min_gap_prefix] == 0).all()
    gap = latent[:, 1] > 6
    recached = (batch.segment == 1).all(1)
    assert 0.35 < recached[gap].float().mean() < 0.65
    # a change in the window's first clean frames is read from frame to frame
    early = (latent[:, 1] > 3) & (latent[:, 1] <= 6)
    assert not recached[early].any()


def test_cells_near_an_object_weigh_more() -> None:
    """Points walk along the diagonal, so the weighted cells of a latent frame are those around it."""
    batch = window_batch(marked_clips(), 32, WindowConfig(object_weight=3.0, object_reach=0.2), generator())
    latent = batch.x0[:, :, 0, 0, 0].round()
    for sample, weights in zip(latent, batch.focus, strict=True):
        for index, cells in zip(sample.tolist(), weights, strict=True):
            places = torch.tensor([max(0.0, 4 * index - 3), 4 * index]) / 100
            near = ((places[:, None] - (torch.arange(4) + 0.5) / 4 + 0.5) % 1 - 0.5).abs() < 0.2
            expected = (near[:, :, None] & near[:, None, :]).any(0)
            assert torch.equal(cells == 3.0, expected)
            assert torch.equal(cells == 1.0, ~expected)


def test_dropped_text_reads_the_empty_segment() -> None:
    config = WindowConfig(text_drop=0.3, target_text_drop=0.3, forcing_share=0.0)
    batch = window_batch(marked_clips(), 600, config, generator())
    assert float(batch.words[:, 2].abs().max()) == 0
    none = batch.segment == 2
    whole = none.all(1)
    assert 0.2 < whole.float().mean() < 0.45
    partly = none.any(1) & ~whole
    assert partly.any()
    assert torch.equal(none[partly], batch.weight[partly] == 1)


def test_a_drag_is_always_told() -> None:
    batch = window_batch(marked_clips(dragged=True), 400, WindowConfig(no_motion=1.0), generator())
    frame = (batch.tracks.points[:, 0, :, 0] * 100).round()
    during = (frame >= 20) & (frame < 50)
    told = batch.tracks.state[:, 0] != UNSPECIFIED
    assert during.any()
    assert (told | ~during).all()
    # without a drag in reach, no_motion = 1 means none, with one nothing but it
    assert (batch.tracks.state[~during.any(1)] == UNSPECIFIED).all()
    assert (batch.tracks.state[:, 1:] == UNSPECIFIED).all()
    other = window_batch(marked_clips(dragged=True), 400, WindowConfig(no_motion=0.0), generator())
    assert (other.tracks.state[:, 1] != UNSPECIFIED).any()


def test_hidden_points_are_occluded_not_unspecified() -> None:
    clips = marked_clips()
    clips.visible[:] = False
    states = window_batch(clips, 64, WindowConfig(no_motion=0.0), generator()).tracks.state
    assert OCCLUDED in states
    assert VISIBLE not in states


def test_batches_are_functions_of_the_generator() -> None:
    clips = marked_clips()
    one, two, other = (window_batch(clips, 8, WindowConfig(), generator(s)) for s in (1, 1, 2))
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.segment, two.segment)
    assert not torch.equal(one.noise, other.noise)


def test_image_batches_are_first_frames_with_text_alone() -> None:
    clips = marked_clips()
    clips = LatentClips(**{**vars(clips), "latents": clips.latents[:, :1]})
    batch = image_batch(clips, 200, WindowConfig(text_drop=0.25), generator(1))
    assert batch.x0.shape == (200, 1, 2, 4, 4)
    assert (batch.tracks.state == UNSPECIFIED).all()
    assert batch.words.shape[1] == 2
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
    files = sorted(cache.directory.iterdir())
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


def test_config_errors_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"cache\.frames: expected 1 \+ 4k"):
        CacheConfig(frames=80)
    with pytest.raises(ConfigError, match=r"windows\.frames"):
        WindowConfig(frames=3)


@pytest.mark.parametrize("switch", [1, 2, 9, 18])
def test_turnings_end_soon_after_a_change(switch: int) -> None:
    """All before the change is clean and read under the new words; what follows it is the target."""
    config = WindowConfig(text_drop=0.0, turning_frames=8, turning_targets=3)
    batch = turning_batch(marked_clips(switch=switch), 100, config, generator())
    latent = batch.x0[:, :, 0, 0, 0].round()
    assert torch.equal(latent[:, 0], torch.zeros(100))
    assert torch.equal(latent[:, 2:] - latent[:, 1:-1], torch.ones(100, 6))
    assert torch.equal(batch.weight, (latent >= switch).float())
    assert (batch.weight.sum(1) >= 3).all()
    assert (batch.segment == 1).all()
    assert (batch.sigma[batch.weight == 0] <= config.context_noise).all()


def test_turnings_show_the_start_of_a_drag_under_the_words_of_its_time() -> None:
    """Drags of these clips start at pixel frame 20, in latent frame 5; at 12 the caption changes."""
    config = WindowConfig(text_drop=0.0, turning_frames=8, turning_targets=3)
    clips = marked_clips(switch=12, dragged=True)
    assert turning_frames(clips)[0].tolist() == [12, 5, LATENTS]
    batch = turning_batch(clips, 200, config, generator())
    latent = batch.x0[:, :, 0, 0, 0].round()
    drag = latent[:, -1] == 7
    assert 0.3 < drag.float().mean() < 0.7
    assert torch.equal(batch.weight, (latent >= torch.where(drag, 5, 12)[:, None]).float())
    assert (batch.segment[drag] == 0).all()
    assert (batch.segment[~drag] == 1).all()


def test_turnings_need_clips_with_turnings() -> None:
    with pytest.raises(ConfigError, match="change_probability"):
        turning_batch(marked_clips(), 4, WindowConfig(), generator())


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
    config = WindowConfig(no_motion=1.0, motion_mask=1.0, gap_share=0.5)

    def check() -> None:
        batch = window_batch(camera_clips(), 400, config, generator())
        latent = batch.x0[:, :, 0, 0, 0].round().long()
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

    assert_needs(check, monkeypatch, distill.windows, "_camera_tracks", few)


def test_a_camera_move_is_a_turning() -> None:
    """The camera of these clips moves from pixel frame 20 on, in latent frame 5."""
    clips = camera_clips()
    assert turning_frames(clips)[0].tolist() == [LATENTS, LATENTS, 5]
    batch = turning_batch(clips, 20, WindowConfig(turning_frames=8, turning_targets=3), generator())
    latent = batch.x0[:, :, 0, 0, 0].round()
    assert torch.equal(batch.weight, (latent >= 5).float())
