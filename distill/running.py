"""Streams that training rolls out: what they are told, where they are, and a student that carries them on.

They go through `streamgen.stream.rollout` with sink, window, events and recache as at inference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from models.causal_dit import TextContext
from models.kv_cache import CacheCursor, CacheRing, CacheShape
from models.motion_encoder import UNSPECIFIED, Tracks
from models.text_encoder import PAD
from streamgen.engine.guidance import Conditioning, Guidance
from streamgen.engine.noise import SeededNoise
from streamgen.engine.runner import PlainRunner
from streamgen.engine.sampler import Sampling
from streamgen.engine.source import Source
from streamgen.stream.latents import LatentChunk, LatentState
from streamgen.stream.prompts import Text
from streamgen.stream.recache import ByChunk
from streamgen.stream.rollout import rollout

from .config import Checked, Count, Share, require
from .context_gradient import ExitRecorder, StudentRunner, through_context, with_gradient_of
from .flow import FlowNetwork
from .guidance import GuidanceRange, strengths_over
from .latent_cache import LatentClips
from .window_tracks import window_tracks
from .windows import WindowConfig
from .words.told import ToldBatch

#: Pixel frames per latent frame behind the first.
_TEMPORAL = 4


@dataclass(frozen=True)
class Asked:
    """What B streams are asked, as their pictures can be judged by: what the captions `before` and `after`
    the switch say of each object, classes `(B, O)` by attribute (see `words.told`). From the latent frame
    `drag` on one object of each is to be dragged, None for never, or once it is: then these are `dragged
    (B,)`, -1 for none.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    drag: int | None = None
    dragged: Tensor | None = None

    def labels(self, after: bool) -> Mapping[str, Tensor]:
        """What holds after the switch, or before it."""
        return self.after if after else self.before


@dataclass(frozen=True)
class Script:
    """What B streams are told.

    `words (B, 3, L)`: ids of the caption before and after the switch, and of no caption; `switch` the latent
    frame from which the second one holds in all streams, None for never; `tracks` from pixel frame 0 on
    (after their end nothing is said); `strengths (B, 2)` of guidance, as they are set; what they are `asked`
    where that is judged; the `opening` that they go on from as if it were theirs, clean latents `(B, T, C, h,
    w)`, None where they begin with nothing.
    """

    words: Tensor
    switch: int | None
    tracks: Tracks
    strengths: Tensor
    asked: Asked | None = None
    opening: Tensor | None = None

    def of_words(self, ids: Tensor) -> "Script":
        """A script of captions `(B, L)` alone, without switch and tracks."""
        words = ids[:, None].to(self.words).expand(-1, 2, -1)
        silent = replace(self.tracks, state=torch.zeros_like(self.tracks.state))
        return Script(torch.cat([words, self.words[:, 2:]], 1), None, silent, self.strengths)

    def segment(self, places: Tensor) -> Tensor:
        """Which caption each of the latent frames `places (T,)` reads, `(B, T)`."""
        at = places.to(self.words.device)
        after = torch.zeros_like(at) if self.switch is None else (at >= self.switch).long()
        return after.expand(len(self.words), len(at))

    def tracks_of(self, places: Tensor) -> Tracks:
        """Tracks over the `4 T` pixel frames of the latent frames `places (T,)`; nothing is said of pixel
        frames before 0 and after the end.
        """
        last = _TEMPORAL * places[:, None].cpu()
        pixel = (last + torch.arange(1 - _TEMPORAL, 1)).flatten()
        total = self.tracks.state.shape[2]
        inside = ((pixel >= 0) & (pixel < total)).to(self.words.device)
        pixel = pixel.clamp(0, total - 1).to(self.words.device)
        state = torch.where(inside, self.tracks.state[:, :, pixel], UNSPECIFIED).to(torch.int8)
        return replace(self.tracks, points=self.tracks.points[:, :, pixel], state=state)


@dataclass(frozen=True)
class ScriptConfig(Checked, section="script"):
    """`switch_share` of the scripts change the prompt of all streams once, between latent frames
    `switch_from` and `switch_to`, where an update begins: what is scored together is told the same (LongLive
    switches there, too). The others may have tracks.
    """

    switch_share: Share = 0.4
    switch_from: Count = 3
    switch_to: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        most = f"<= switch_to ({self.switch_to})"
        require(self.switch_from <= self.switch_to, "script.switch_from", most, self.switch_from)

    def within(self, boundaries: Sequence[int]) -> list[int]:
        """Those latent frames that a switch may be at."""
        return [frame for frame in boundaries if self.switch_from <= frame <= self.switch_to]


def is_wanted(boundaries: Sequence[int], config: ScriptConfig, timing: torch.Generator) -> bool:
    """Whether streams are to switch; those that end before they could keep to what they were told."""
    drawn = bool(torch.rand((), generator=timing) < config.switch_share)
    return drawn and bool(config.within(boundaries))


def draw_script(
    clips: LatentClips,
    size: int,
    boundaries: Sequence[int],
    config: ScriptConfig,
    windows: WindowConfig,
    guidance: GuidanceRange,
    generator: torch.Generator,
    shared: torch.Generator | None = None,
) -> Script:
    """A script from the captions and tracks of clips; their pictures are not used.

    Switches take place at one of `boundaries`, drawn from `shared` where it is given, alike on all processes.
    They take clips with a change and only their two captions: their tracks belong to the moment at which the
    clip changes, which is not that of the script.
    """
    total = clips.latents.shape[1]
    changing = clips.switch < total
    timing = generator if shared is None else shared
    wanted = is_wanted(boundaries, config, timing) and bool(changing.any())
    # where every clip changes, plain scripts keep to the first caption
    pool = changing if wanted else ~changing
    rows = pool.nonzero()[:, 0] if bool(pool.any()) else torch.arange(len(changing))
    rows = rows[torch.randint(len(rows), (size,), generator=generator)]
    tracks = window_tracks(clips, rows, torch.arange(total).expand(size, total), windows.silence, generator)
    if wanted:
        tracks = replace(tracks, state=torch.zeros_like(tracks.state))
    words = clips.words[rows].long()
    return Script(
        torch.cat([words, torch.full_like(words[:, :1], PAD)], 1),
        draw_switch(boundaries, config, timing) if wanted else None,
        tracks,
        guidance.sample(size, generator),
    )


def prompt_script(
    prompts: Sequence[tuple[Tensor, Tensor]],
    size: int,
    boundaries: Sequence[int],
    config: ScriptConfig,
    guidance: GuidanceRange,
    generator: torch.Generator,
    shared: torch.Generator | None = None,
) -> Script:
    """A script from prompts alone, each `(before, after)` as ids `(L,)`; where a switch is wanted and
    the two are alike, another prompt follows.
    """
    rows = torch.randint(len(prompts), (size,), generator=generator).tolist()
    others = torch.randint(len(prompts), (size,), generator=generator).tolist()
    timing = generator if shared is None else shared
    wanted = is_wanted(boundaries, config, timing)
    words = []
    for row, other in zip(rows, others, strict=True):
        before, after = prompts[row]
        words.append(torch.stack([before, prompts[other][0] if torch.equal(before, after) else after]))
    stacked = torch.stack(words)
    nothing = torch.zeros(size, 1, 1)
    silent = Tracks(
        nothing[..., None].expand(-1, -1, -1, 2),
        nothing.to(torch.int8),
        nothing[..., 0].bool(),
        nothing[..., 0].long(),
    )
    return Script(
        torch.cat([stacked, torch.full_like(stacked[:, :1], PAD)], 1),
        draw_switch(boundaries, config, timing) if wanted else None,
        silent,
        guidance.sample(size, generator),
    )


def draw_switch(boundaries: Sequence[int], config: ScriptConfig, generator: torch.Generator) -> int:
    """One of the latent frames at which updates begin, within the config's range; nothing else decides.

    Raises:
        ConfigError: there is none in that range.
    """
    within = config.within(boundaries)
    require(
        bool(within),
        "script.switch_from, script.switch_to",
        f"one of the latent frames at which updates begin, {list(boundaries)}, between them",
        (config.switch_from, config.switch_to),
    )
    return within[int(torch.randint(len(within), (), generator=generator))]


@dataclass
class RunningStreams:
    """A batch of streams in the middle of their script; `switched` once the cache stands under its second
    caption.
    """

    script: Script
    state: LatentState
    seed: int
    switched: bool = False

    @staticmethod
    def begun(script: Script, ring: CacheRing, seed: int, context_noise: float) -> "RunningStreams":
        """Streams with nothing but their script's opening, which their first step commits at that level."""
        state, opening = LatentState(ring), script.opening
        while opening is not None and state.start < opening.shape[1]:
            latents = opening[:, state.start : state.start + state.length].to(script.words.device)
            chunk = LatentChunk(state.chunk, state.start, latents, None, None, context_noise)
            state = replace(state.followed_by(chunk), due=False)
        # from here on the record has it
        return RunningStreams(replace(script, opening=None), state, seed)

    @property
    def frames(self) -> int:
        """Latent frames generated so far."""
        return self.state.start

    def recent(self, count: int) -> Tensor | None:
        """The last `count` generated latent frames (fewer if the context holds fewer), None at the start."""
        if not self.state.context or count == 0:
            return None
        return torch.cat([chunk.latents for chunk in self.state.context[-count:]], 1)[:, -count:]

    def context(self) -> tuple[Tensor | None, Tensor]:
        """All that the next chunk sees, sink and window: latents `(B, P, C, h, w)`, None at the start, and
        which latent frames of the stream these are, `(P,)`.
        """
        held = self.state.context
        if not held:
            return None, torch.zeros(0, dtype=torch.long)
        places = [torch.arange(c.start, c.start + c.latents.shape[1]) for c in held]
        return torch.cat([chunk.latents for chunk in held], 1), torch.cat(places)

    def save(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        state = self.state
        return {
            "words": self.script.words,
            "switch": self.script.switch,
            "tracks": dict(vars(self.script.tracks)),
            "strengths": self.script.strengths,
            "asked": None if self.script.asked is None else dict(vars(self.script.asked)),
            "cache": state.ring.state(state.cursor),
            "cursor": asdict(state.cursor),
            "context": [[c.index, c.start, c.latents, c.motion, None, c.sigma] for c in state.context],
            "chunk": state.chunk,
            "seed": self.seed,
            "switched": self.switched,
        }

    @staticmethod
    def load(saved: dict[str, Any], ring: CacheRing) -> "RunningStreams":
        """Streams that `save` described, on a cache of the same sizes."""
        cursor = CacheCursor(**saved["cursor"])
        ring.load_state(cursor, saved["cache"])
        context = tuple(LatentChunk(*chunk) for chunk in saved["context"])
        tracks, asked = Tracks(**saved["tracks"]), saved.get("asked")
        script = Script(
            saved["words"],
            saved["switch"],
            tracks,
            saved["strengths"],
            None if asked is None else Asked(**asked),
        )
        state = LatentState(ring, cursor, context, chunk=saved["chunk"])
        return RunningStreams(script, state, saved["seed"], saved["switched"])


class RolloutStudent(FlowNetwork):
    """The student as a generator: its forward carries streams on, which is what data parallelism wraps."""

    def new_cache(self, batch: int, grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> CacheRing:
        """An empty cache for `batch` streams of latents `grid` high and wide."""
        config, weight = self.dit.config, self.dit.head.head.weight
        tokens = config.patches.grid(*grid)
        shape = CacheShape(config.layers, config.heads, config.head_dim, tokens, batch)
        return CacheRing(shape, self.plan, self.dit.rope, weight.device, dtype)

    def forward(
        self,
        streams: RunningStreams,
        frames: int,
        sampling: Sampling,
        told: ToldBatch | None = None,
        context_gradient: bool = False,
        source: Source | None = None,
    ) -> tuple[Tensor, Tensor | float, dict[str, Tensor | float]]:
        """Generate at least `frames` latent frames, in whole chunks: `(B, T, C, h, w)`; and `told_loss` of
        captions.

        With `sampling.with_gradient` the exit step of every chunk carries gradient to the parameters, and
        nothing else does: the context is committed without. With `context_gradient` it carries gradient, too:
        see `distill.context_gradient`. The first chunk may be made from a `source`, noised to the first level
        of `sampling`.
        """
        if context_gradient and sampling.with_gradient:
            assert source is None, "a config asks for one of them"
            return self._with_context(streams, frames, sampling, told)
        made = self._carried_on(streams, frames, sampling, StudentRunner(self.dit), source)
        return torch.cat([chunk.latents for chunk in made], 1), *self.told_loss(told)

    def _with_context(
        self, streams: RunningStreams, frames: int, sampling: Sampling, told: ToldBatch | None
    ) -> tuple[Tensor, Tensor | float, dict[str, Tensor | float]]:
        """`forward` with the gradient of the context."""
        recorder, before = ExitRecorder(self.dit), streams.state.context
        with torch.no_grad():
            made = self._carried_on(streams, frames, replace(sampling, with_gradient=False), recorder)
        noise = SeededNoise(streams.seed, streams.script.words.device)
        again = through_context(self, streams.script, before, made, recorder.exits, noise)
        latents = torch.cat([chunk.latents for chunk in made], 1)
        return with_gradient_of(latents, again), *self.told_loss(told)

    def _carried_on(
        self,
        streams: RunningStreams,
        frames: int,
        sampling: Sampling,
        runner: PlainRunner,
        source: Source | None = None,
    ) -> list[LatentChunk]:
        """The streams' next chunks, at least `frames` latent frames in all, the first one from a source."""
        noise = SeededNoise(streams.seed, streams.script.words.device)
        steer = _Steering(self, streams, noise, runner)
        made: list[LatentChunk] = []
        for state, chunk in rollout(runner, streams.state, steer.direct, noise, sampling, source):
            streams.state = state
            made.append(chunk)
            if sum(part.frames for part in made) >= frames:
                return made
        raise AssertionError("unreachable: a rollout has no end")


@dataclass
class _Steering:
    """Applies a script to its streams, chunk by chunk."""

    student: RolloutStudent
    streams: RunningStreams
    noise: SeededNoise
    runner: PlainRunner
    texts: list[TextContext] = field(default_factory=list)

    def __post_init__(self) -> None:
        words = self.streams.script.words
        encode = self.student.text_encoder
        self.texts = [self.student.dit.embed_text(encode(words[:, i])) for i in (0, 1)]

    def words(self, after: bool) -> Text:
        """What chunks are committed under: a stream outlives the update, its gradients must not."""
        return Text("after" if after else "before", self.texts[int(after)].detached())

    def direct(self, state: LatentState) -> tuple[LatentState, Conditioning, Text]:
        """What the next chunk is told; at the switch the cache is rebuilt under the new caption first."""
        streams, script, student = self.streams, self.streams.script, self.student
        start, length = state.start, state.length
        after = script.switch is not None and start >= script.switch
        unheld = bool(state.context) and not state.cursor.frames
        if unheld or (after and not streams.switched):
            state = ByChunk().rebuild(self.runner, state, self.noise, "refresh", self.words(after))
            streams.switched = after
        grid = student.dit.config.patches.cells(state.ring.shape.grid)
        places = torch.arange(start, start + length)
        tracks = script.tracks_of(places)
        strengths = strengths_over(script.strengths, tracks.state, student.plan, places)
        text = self.texts[int(after)]
        told = Conditioning(text, text, student.motion(tracks, grid), Guidance(1.0, 0.0), strengths)
        return state, told, self.words(after)
