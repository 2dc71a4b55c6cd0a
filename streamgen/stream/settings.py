"""The dials of a stream: sampler, guidance and context. Defaults come from the checkpoint, `--set` and events
override them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from models.context import ChunkPlan
from models.kv_cache import RopeMode
from models.live_lora import MAX_STRENGTH, parse_strengths

from ..engine.budget import subset
from ..engine.guidance import Guidance
from ..engine.sampler import Sampling
from ..engine.scheduler import FlowMatchScheduler
from ..engine.source import levels_from, strength_problem
from ..errors import InputError
from ..suggest import shorten, unknown_key
from .prompts import MAX_PROMPT
from .recache import RecacheMode, SinkPolicy

Sampler = Literal["euler", "renoise"]
CommitNoise = Literal["drawn", "none"]

# Steps of some chunks; 0 where they are as all others.
STEP_SETTINGS = ("first_steps", "change_steps", "budget_steps")
# Told where they are not what they are in most streams.
_SELDOM = ("lora", "negative_prompt", "negative_scale", "strength", "input_prompt")
# These shape the cache, so they are fixed when a stream opens.
OPEN_ONLY = ("sink_frames", "window_frames", "rope", "recache_mode")


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, these included unless it is `above` the one or `below` the other."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is one of them; of NaN there is none."""
        least = self.least < value if self.above else self.least <= value
        return least and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        if not (self.above or self.below):
            return f"in {self.least:g}..{self.most:g}"
        least = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        return f"{least} and {'below' if self.below else 'at most'} {self.most:g}"


# Every number among the settings. Far inside of what float16 holds: a strength of 1e30 would be told as a
# network's fault, once a chunk of it is not finite.
RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "steps": Range(1, 1000),
        "shift": Range(0.01, 100),
        "context_noise": Range(0, 1, below=True),
        "text_guidance": Range(0, 100),
        "motion_guidance": Range(0, 100),
        "sink_frames": Range(0, 1024),
        "window_frames": Range(0, 1024),
        **dict.fromkeys(STEP_SETTINGS, Range(0, 1000)),
        "lora": Range(-MAX_STRENGTH, MAX_STRENGTH),
        "negative_scale": Range(1, 50),
        "strength": Range(0, 1, above=True),
    }
)


@dataclass(frozen=True)
class StreamSettings:
    """Settings of a stream.

    Attributes:
        steps: network evaluations per chunk, 1 to 1000. Of a model with trained noise levels (sampler
            renoise) fewer steps than it was trained with take a subset of those levels.
        shift: timestep shift of the noise levels, 0.01 to 100.
        sampler: `euler` (probability-flow ODE) or `renoise` (few-step students).
        context_noise: noise level in [0, 1) at which finished chunks enter the cache.
        text_guidance, motion_guidance: strengths of joint guidance, 0 to 100 each, see `Guidance`.
        sink_frames, window_frames: latent frames that stay in reach, 0 to 1024 each, see `ChunkPlan`. Fixed
            when the stream opens.
        rope: `relative` (endless) or `absolute` positions. Fixed when the stream opens.
        recache_mode: how a recache rebuilds the cache: `chunks` (commit one after the other) or `joint`
            (LongLive's one forward, see `models.joint_recache`). Fixed when the stream opens.
        sink_policy: what a recache does with the sink where an event does not say: `refresh` or `keep`.
        commit_noise: with context noise above 0, `drawn` gives committed chunks noise of that level, `none`
            only its timestep, as the published inference code of Self Forcing does.
        first_steps: steps of the first chunk of a stream or scene; 0: as `steps`.
        change_steps: steps of a chunk with which the words change or the cache is made anew; 0: as `steps`.
        budget_steps: steps of all chunks, whatever the three say; 0: none. What a deadline comes to is
            recorded so, and replayed.
        lora: strengths of live LoRAs, -100 to 100, `NAME:0.5,OTHER:1`, or a number for all of them; those not
            named are as they were given when the model was loaded. A change recaches as a change of words
            does.

        negative_prompt: what not to show. Where text guidance compares two predictions, the second one is
            under these words, not under none; else cross-attention turns away from them (normalised attention
            guidance, arXiv 2505.21179). Chunks enter the cache without it.
        negative_scale: how far cross-attention turns away, 1 to 50; 1 is not at all.
        strength: of a stream with live input, how much of it is made anew, above 0 and at most 1: denoising
            begins at the nearest noise level at or under it.
        input_prompt: what the live input shows. Chunks then keep of it what their own words do not change
            (`engine.source.Source.likened`), at the price of a second prediction a step.

    Raises:
        ValueError: a value out of range.
    """

    steps: int = 4
    shift: float = 3.0
    sampler: Sampler = "euler"
    context_noise: float = 0.0
    text_guidance: float = 3.0
    motion_guidance: float = 1.5
    sink_frames: int = 1
    window_frames: int = 8
    rope: RopeMode = "relative"
    recache_mode: RecacheMode = "chunks"
    sink_policy: SinkPolicy = "refresh"
    commit_noise: CommitNoise = "drawn"
    first_steps: int = 0
    change_steps: int = 0
    budget_steps: int = 0
    lora: str = ""
    negative_prompt: str = ""
    negative_scale: float = 9.0
    strength: float = 0.75
    input_prompt: str = ""

    def __post_init__(self) -> None:
        for name in RANGES:
            _check_range(name, vars(self)[name])
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"sampler must be euler or renoise, found {self.sampler!r}")
        for name, kind in (
            ("rope", RopeMode),
            ("recache_mode", RecacheMode),
            ("sink_policy", SinkPolicy),
            ("commit_noise", CommitNoise),
        ):
            found, known = vars(self)[name], get_args(kind)
            if found not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, found {found!r}")
        for name in ("negative_prompt", "input_prompt"):
            _check_length(name, vars(self)[name])
        try:
            parse_strengths(self.lora)
        except ValueError as error:
            raise ValueError(f"lora: {error}") from None
        self.guidance()

    def updated(self, changes: Mapping[str, Any], live: bool = False) -> "StreamSettings":
        """With some values replaced.

        Args:
            changes: values by name, as parsed from a command line or a file.
            live: refuse what can only be set when a stream opens.

        Raises:
            InputError: an unknown name (with the nearest known one), a value of another type or out of range.
        """
        known = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        values: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                raise InputError(f"setting {unknown_key(name, known)}")
            if live and name in OPEN_ONLY and value != getattr(self, name):
                raise InputError(
                    f"setting {name}: fixed when the stream opens, cannot become {shorten(value)}"
                )
            kind = known[name]
            try:
                # before it becomes a float: a whole number may be too large for one
                _check_range(name, value)
            except ValueError as error:
                raise InputError(f"settings: {error}") from None
            if name == "lora" and type(value) in (int, float):
                value = f"{value!r}"
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise InputError(f"setting {name}: expected {kind.__name__}, found {shorten(value)}")
            values[name] = value
        try:
            return replace(self, **values)
        except ValueError as error:
            raise InputError(f"settings: {error}") from None

    def guidance(self) -> Guidance:
        """Strengths of joint guidance."""
        return Guidance(self.text_guidance, self.motion_guidance)

    def steps_of(self, first: bool, changed: bool) -> int:
        """Steps of a chunk.

        Args:
            first: it begins a stream or a scene.
            changed: with it the words change, or the cache is made anew.
        """
        special = (first and self.first_steps) or (changed and self.change_steps)
        return self.budget_steps or special or self.steps

    def sampling(self, steps: int | None = None, trained: "StreamSettings | None" = None) -> Sampling:
        """What the rollout needs of these settings.

        Args:
            steps: of the chunk; by default `self.steps`.
            trained: the settings of the checkpoint, whose noise levels fewer steps are taken from.
        """
        count = self.steps if steps is None else steps
        sigmas = FlowMatchScheduler(count, self.shift).sigmas()
        if trained is not None and self._knows_levels(trained) and count < trained.steps:
            sigmas = subset(FlowMatchScheduler(trained.steps, trained.shift).sigmas(), count)
        drawn = self.commit_noise == "drawn"
        return Sampling(sigmas, self.sampler == "renoise", self.context_noise, drawn)

    def edited(self, steps: int, trained: "StreamSettings") -> Sampling:
        """What the rollout needs for a chunk that is made from pictures: from `strength` on, of the trained
        noise levels where these settings know them.

        Args:
            steps: as many of them at most.
        """
        path = levels_from(self.levels(steps, trained), self.strength)
        return replace(self.sampling(steps, trained), sigmas=subset(path, min(steps, len(path) - 1)))

    def levels(self, steps: int, trained: "StreamSettings") -> tuple[float, ...]:
        """Falling noise levels, from 1 to 0, at which a chunk of so many steps can begin."""
        if self._knows_levels(trained) and steps <= trained.steps:
            steps = trained.steps
        return FlowMatchScheduler(steps, self.shift).sigmas()

    def check_strength(self, trained: "StreamSettings") -> None:
        """Raise InputError where no noise level is at or under the strength."""
        problem = strength_problem(self.levels(self.steps, trained), self.strength)
        if problem is not None:
            raise InputError(problem)

    def _knows_levels(self, trained: "StreamSettings") -> bool:
        """Whether these settings solve at the noise levels that a checkpoint was distilled at."""
        return self.sampler == trained.sampler == "renoise" and self.shift == trained.shift

    def plan(self, base: ChunkPlan) -> ChunkPlan:
        """The checkpoint's chunk plan with this stream's sink and window.

        Raises:
            InputError: sink or window would cut a chunk.
        """
        try:
            return replace(base, sink_frames=self.sink_frames, window_frames=self.window_frames)
        except ValueError as error:
            raise InputError(f"settings: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name; those that few streams have, where they are not as in all others."""
        values, plain = asdict(self), StreamSettings()
        return {n: value for n, value in values.items() if n not in _SELDOM or value != vars(plain)[n]}


def _check_range(name: str, value: Any) -> None:
    """Raise ValueError for a number that the setting cannot have."""
    if name in RANGES and type(value) in (int, float) and not RANGES[name].holds(value):
        raise ValueError(f"{name} must be {RANGES[name]}, found {shorten(value)}")


def _check_length(name: str, words: str) -> None:
    if len(words) > MAX_PROMPT:
        raise ValueError(f"{name}: expected at most {MAX_PROMPT} characters, found {len(words)}")
