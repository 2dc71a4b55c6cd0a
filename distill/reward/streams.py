"""A reward with a gradient on streams: whether they go on showing, and moving, what they were asked for.

What `pictures` says of first pictures is said of one picture in eight; and of where the objects are, the
middle of the pixels of their colour, in the first and last picture of each latent frame: while one is dragged
that is to be the point of its track, else the way of the motion that was told, of which the world knows every
path (`ways`), and its steps are to be those of a way, so that nothing jolts where a latent frame begins.
Drags begin at the object as the stream shows it, as those of people do, wherever that is (`drags`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.motion_encoder import UNSPECIFIED, VISIBLE
from models.video_codec import VideoCodec

from ..evaluation.reading import MIN_AREA, torus_centres, torus_step
from ..pictured import decoded, unbroken
from ..running import RunningStreams, Script
from ..scenes import COLOURS, MOTIONS
from ..scenes.shapes import WORLD_SIZE
from .drags import with_drags
from .pictures import Labels, PictureReward, judgeable
from .ways import Ways, run_on

#: Latent frames of the past whose pictures are looked at, and how many of the last of these are as shown.
_PAST, _SEEN = 5, 12
#: Of pictures, one in so many is asked how objects look.
_LOOK = 8
#: Frames behind a switch in which one look fades into another.
_FADING = 8
#: By which distance, of 64, ways that fit better are e times as likely; which one costs as much, whatever
#: else would fit, so that hops do; from which on a drag's error counts in full; and around which a step that
#: is unlike those of its way counts by the logarithm and no longer by the square.
_SHARPNESS, _FAR, _NEAR, _JOLT = 1.5, 4.0, 2.0, 0.5
#: Frames behind a drag until an object goes its own way again.
_RELEASED = 8


@dataclass(frozen=True)
class Places:
    """Where told objects are in pictures: `centre (B, O, T, 2)` normalised, `seen (B, O, T)`."""

    centre: Tensor
    seen: Tensor

    def times(self, first: int = 0) -> Tensor:
        """At which pixel frames they are, since the picture `first`."""
        offsets = _offsets(self.seen.shape[2]).flip(0)
        return offsets[first] - offsets[first:]


class StreamReward:
    """Judges what streams were asked, and drags their objects.

    Args:
        pictures: the reward of single pictures, whose config it has.
        codec: frozen.
        longest: latent frames that an update makes, at most.
        device: of the streams.
    """

    def __init__(
        self, pictures: PictureReward, codec: VideoCodec, longest: int, device: torch.device
    ) -> None:
        self.pictures, self.codec = pictures, codec
        self._ways = Ways(_SEEN + 4 * longest, device)

    def loss(
        self, seen: Tensor, fresh: Tensor, places: Tensor, script: Script
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What is to be added to the student's loss for `fresh (B, n, C, h, w)` latents, the last ones of
        `seen (B, P, C, h, w)`, at latent frames `places (P,)` of streams that were asked for something; and
        of the objects how many look (`streams/reward/right`) and move (`streams/reward/moves`) as told, how
        unsteadily they go (`streams/reward/jolts`), and how far those that are dragged are off their track
        (`streams/reward/off`, of the width).
        """
        asked, config, count = script.asked, self.pictures.config, fresh.shape[1]
        assert asked is not None
        start = int(places[-count])
        before, made = decoded(self.codec, unbroken(seen, count, places)[:, -_PAST:], fresh, start)
        before = _ends(before[:, -_SEEN:], 1)
        switching = script.switch == start
        labels = asked.labels(script.switch is not None and start >= script.switch)
        looks = _thinned(made[:, _FADING if switching else 0 :], 1)
        repeated = {name: label.repeat_interleave(looks.shape[1], 0) for name, label in labels.items()}
        loss, found = self.pictures.judged(looks.flatten(0, 1), repeated)
        made = _ends(made, 1)
        where = self._places(torch.cat([before, made], 1), labels, asked.before if switching else labels)
        off, dragged, distances = self._off(where, made.shape[1], places[-count:], script)
        changes = (asked.before["motion"] != labels["motion"]) & switching
        moves, jolts, rights = self._moves(where, before.shape[1], labels, changes, dragged)
        metrics = {f"streams/{name}": value for name, value in {**found, **distances, **rights}.items()}
        moved = config.way * moves + config.steps * jolts
        return config.weight * (loss + config.place * off + moved), metrics

    def begin_drags(self, streams: RunningStreams) -> None:
        """Lay tracks from where one object of each stream is, and on from there, over the next frames."""
        script, start = streams.script, streams.frames
        asked = script.asked
        assert asked is not None
        seen, places = streams.context()
        assert seen is not None
        past = unbroken(seen, 0, places)[:, -_PAST:]
        with torch.no_grad():
            _, pictures = decoded(self.codec, past[:, :0], past, start - past.shape[1])
            labels = asked.labels(script.switch is not None and start >= script.switch)
            where = self._places(_ends(pictures[:, -_SEEN:], 1), labels, labels)
        generator = torch.Generator().manual_seed(streams.seed ^ start)
        there = judgeable(labels) & where.seen[..., -1]
        streams.script = with_drags(script, start, where.centre, there, generator)

    def _places(self, pictures: Tensor, labels: Labels, others: Labels) -> Places:
        """Where objects are whose colour is that of `labels` or of `others`, in `(B, T, 3, H, W)`."""
        batch, count, _, height, width = pictures.shape
        shares = self.pictures.shares(pictures.flatten(0, 1)).view(batch, count, -1, height, width)
        told = judgeable(labels) & judgeable(others)
        new, old = (
            found["colour"].clamp(max=len(COLOURS) - 1).to(pictures.device)[:, None, :, None, None]
            for found in (labels, others)
        )
        parts = [shares.gather(2, index.expand(-1, count, -1, height, width)) for index in (new, old)]
        masks = (parts[0] + parts[1] * (old != new)).transpose(1, 2)
        seen = (masks.detach().sum((-2, -1)) >= MIN_AREA * height * width / WORLD_SIZE**2) & told[..., None]
        # what is nowhere has no middle, and no gradient
        corner = torch.zeros(height, width, device=pictures.device)
        corner[0, 0] = 1.0
        return Places(torus_centres(torch.where(seen[..., None, None], masks, corner)), seen)

    def _off(
        self, where: Places, count: int, places: Tensor, script: Script
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """How far dragged objects are off their tracks in the last `count` pictures; which objects `(B, O)`
        are dragged in any picture, or were shortly before.
        """
        asked, (batch, objects, total) = script.asked, where.seen.shape
        assert asked is not None
        none = where.centre.sum() * 0
        dragged = torch.zeros(batch, objects, dtype=torch.bool, device=where.seen.device)
        if asked.dragged is None:
            return none, dragged, {}
        tracks = script.tracks_of(places)
        state, target = (_ends(of[:, 0], 1)[:, -count:] for of in (tracks.state, tracks.points))
        rows, index = torch.arange(batch), asked.dragged.clamp(min=0)
        on = (state == VISIBLE) & (asked.dragged >= 0)[:, None] & where.seen[rows, index, -count:]
        apart = torus_step(where.centre[rows, index, -count:], target.to(where.centre)) * WORLD_SIZE
        lately = _lately(script, places, int(where.times()[total - count]))
        dragged[rows, index] = lately & (asked.dragged >= 0)
        if not bool(on.any()):
            return none, dragged, {}
        # nearly square near 0, then as far as it is
        loss = ((apart[on] / _NEAR).square().sum(-1) + 1).sqrt() - 1
        metrics = {"reward/off": apart.detach()[on].norm(dim=-1).mean() / WORLD_SIZE}
        return loss.mean(), dragged, metrics

    def _moves(
        self, where: Places, before: int, labels: Labels, changes: Tensor, dragged: Tensor
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """How little the ways of objects that go their own are of the motion that was told, and how little
        their steps are of any; of those that `changes (B, O)` the pictures of `before` do not count.
        """
        told = (labels["motion"] < len(MOTIONS)).to(where.seen.device) & ~dragged
        changes, none = changes.to(where.seen.device), where.centre.sum() * 0
        losses, jolts, rights = [], [], []
        for kind, skipped in ((~changes, 0), (changes, before)):
            judged = told & kind & where.seen[:, :, skipped:].all(2)
            if not bool(judged.any()):
                continue
            path = run_on(where.centre[:, :, skipped:][judged]) * WORLD_SIZE
            held = self._ways.held(path, where.times(skipped))
            motion = labels["motion"].to(path.device)[judged]
            own = held.apart.gather(1, motion[:, None])[:, 0]
            right = cross_entropy(-held.apart / _SHARPNESS, motion, reduction="none")
            losses.append(right + own / _FAR)
            # the further a step is off, the less it says: often another thing is read there
            jolts.append((held.steps / _JOLT).square().log1p().sum(1) / 2 / max(1, path.shape[1] - 1))
            rights.append((held.apart.argmin(1) == motion).float())
        if not losses:
            return none, none, {}
        loss, jolt, right = (torch.cat(values).mean() for values in (losses, jolts, rights))
        return loss, jolt, {"reward/moves": right, "reward/jolts": jolt.detach()}


def _thinned(frames: Tensor, dim: int) -> Tensor:
    """The pictures, along a dimension, that are asked how objects look, with the last one."""
    count = frames.shape[dim]
    return frames.index_select(dim, torch.arange(count - 1, -1, -_LOOK, device=frames.device).flip(0))


def _ends(frames: Tensor, dim: int) -> Tensor:
    """The first and last picture of each latent frame, along a dimension that ends with one: from one to the
    next, steps go by turns within a latent frame and into the next one.
    """
    count = frames.shape[dim]
    offsets = _offsets(count)
    return frames.index_select(dim, (count - 1 - offsets[offsets < count]).flip(0).to(frames.device))


def _offsets(count: int) -> Tensor:
    """Of so many pictures, backwards from the last one, how many pixel frames before it they are."""
    index = torch.arange(count)
    return 4 * (index // 2) + 3 * (index % 2)


def _lately(script: Script, places: Tensor, before: int) -> Tensor:
    """Streams `(B,)` with a drag in the latent frames `places` or in the frames `before` them."""
    reach = 1 + math.ceil((before + _RELEASED) / 4)
    around = torch.arange(max(0, int(places[0]) - reach), int(places[-1]) + 1)
    return (script.tracks_of(around).state != UNSPECIFIED).any(2).any(1)
