"""Streams of Self Forcing that are judged: captions whose meaning is known, drags, and the reward."""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.motion_encoder import Tracks
from models.text_encoder import PAD

from ..families import TinyFamily
from ..reward.openings import COUNT, Openings
from ..reward.pictures import PictureReward
from ..reward.streams import StreamReward
from ..running import Asked, RunningStreams, Script, draw_switch, is_wanted
from ..words.told import CaptionSampler, ToldBatch
from .scorers import Rolled
from .self_forcing_config import SelfForcingRun, update_boundaries


class JudgedStreams:
    """Asks streams of the procedural world for what can be judged, and judges it.

    Args:
        config: of the stage, with a reward.
        family: whose words and codec are used.
        device: of the streams.
    """

    def __init__(self, config: SelfForcingRun, family: TinyFamily, device: torch.device) -> None:
        self.config, self.device = config, device
        self.captions = CaptionSampler(family.vocabulary, config.network.text_length, config.scenes)
        self.pictures = PictureReward(config.reward, config.scenes, family.codec, device)
        self.streams: StreamReward | None = None
        self.openings: Openings | None = None
        if config.reward.streams and config.reward.openings and update_boundaries(config):
            words = family.vocabulary, config.network.text_length
            frames = config.rollout.window_frames
            self.openings = Openings(config.scenes, family.codec, *words, frames, device, COUNT)
        if config.reward.streams:
            longest = config.rollout.window_frames + config.plan.chunk_frames
            self.streams = StreamReward(self.pictures, family.codec, longest, device)

    def script(
        self,
        size: int,
        generator: torch.Generator,
        shared: torch.Generator | None,
        limit: int,
    ) -> Script:
        """A script for `size` new streams that end after `limit` latent frames: a switch of one thing, as
        often as others have one; else a drag, in the config's share; else words alone. Those without a switch
        may go on from openings. Where they come is drawn from `shared` where that is given.
        """
        config, begins = self.config, update_boundaries(self.config, limit)
        timing = generator if shared is None else shared
        switch = drag = opening = None
        if is_wanted(begins, config.script, timing):
            before, after = self.captions.draw_changes(size, generator)
            switch = draw_switch(begins, config.script, timing)
        else:
            before = after = self.captions.draw(size, generator)
            if begins and self._opens(timing):
                assert self.openings is not None
                opening, before = self.openings.draw(size, generator)
                after = before
            if begins and bool(torch.rand((), generator=timing) < config.reward.drags):
                drag = begins[int(torch.randint(len(begins), (), generator=timing))]
        words = torch.stack([before.ids, after.ids, torch.full_like(before.ids, PAD)], 1)
        one = torch.zeros(size, 1)
        tracks = Tracks(
            one[..., None, None].expand(-1, -1, 1, 2), one[..., None].to(torch.int8), one.bool(), one.long()
        )
        strengths = config.guidance.sample(size, generator)
        asked = Asked(_on(before.labels, self.device), _on(after.labels, self.device), drag)
        return Script(words, switch, tracks, strengths, asked, opening)

    def _opens(self, timing: torch.Generator) -> bool:
        """Whether streams are to go on from openings."""
        share = self.config.reward.openings
        return self.openings is not None and float(torch.rand((), generator=timing)) < share

    def begin_drags(self, streams: RunningStreams) -> None:
        """Begin those of the streams' script when it is time."""
        asked = streams.script.asked
        if self.streams is not None and asked is not None and asked.drag == streams.frames > 0:
            self.streams.begin_drags(streams)

    def loss(self, rolled: Rolled, judged: ToldBatch | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What is to be added to the student's loss: for first pictures that are `judged` by captions, or for
        streams that were asked for something.
        """
        fresh = rolled.window.x[:, -rolled.new :]
        if judged is not None:
            return self.pictures.loss(fresh, judged)
        if self.streams is None or rolled.script.asked is None:
            return fresh.sum() * 0, {}
        return self.streams.loss(rolled.seen, fresh, rolled.places, rolled.script)


def _on(labels: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: label.to(device) for name, label in labels.items()}
